"""What survives a kill: checkpoints and the state that they hold, resuming from one, and the lock of a folder."""
