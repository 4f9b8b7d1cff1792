"""The Hub: pushing a pipeline, its model card, and checking what was downloaded."""
