"""One diffusers pipeline, stock and unpatched: reading its attention, and running it on an image."""
