"""The fields of a noise schedule, named as in the configurations of diffusers' schedulers.

They stand on the ground floor because training, conversion and sampling all carry them from one place to another.
"""

BETA_FIELDS = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")

# What the DiT paper, and so every checkpoint of the original, was trained with.
PAPER_BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
