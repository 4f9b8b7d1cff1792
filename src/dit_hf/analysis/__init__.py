"""Counting and figures: what a DiT computes, and what its results look like."""
