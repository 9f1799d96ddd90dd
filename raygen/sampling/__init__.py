"""The denoising loop and the workers built on it: generate, edit, encode."""
