"""The page of `goca serve`: a gradio app with one module per tab."""
