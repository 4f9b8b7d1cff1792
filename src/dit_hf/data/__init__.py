"""Images for training: opening data sets, their order, preparation, streaming, and latents."""
