"""Training DiT: settings, EMA, the loop, checkpoints, and the run that puts them together."""
