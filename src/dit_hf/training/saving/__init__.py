"""What survives a kill: checkpoints, the state that they hold, resuming, and the lock of a folder."""
