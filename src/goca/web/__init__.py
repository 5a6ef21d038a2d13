"""The page of `goca serve`: one module for each tab, on gradio."""
