"""Real images for training: preparation, streaming and latents."""
