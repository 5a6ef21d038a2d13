"""One diffusers pipeline, stock and unpatched: what its attention does, and how to ask it about an image."""
