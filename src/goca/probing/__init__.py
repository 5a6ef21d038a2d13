"""Recognises a denoiser that no family lists."""
