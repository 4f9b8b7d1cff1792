"""The facts of a VAE that sampling and training share: by how much it shrinks images, and the scale of its latents.

A diffusion model works on latents of zero mean and unit deviation. With the fields of an `AutoencoderKL`'s
configuration, z being what the encoder gives:

    latents = (z - shift_factor - latents_mean) * scaling_factor / latents_std

This file travels to the Hub as a part of `pipeline_dit.py`.
"""

from typing import Any

from torch import Tensor


def vae_shrink_factor(vae_config: Any) -> int:
    """Return the number of pixels along one side of a latent pixel, such as 8.

    Args:
        vae_config: The configuration of an `AutoencoderKL`.
    """
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def _std_and_mean(vae_config: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = (
        like.new_tensor(vae_config.get(name) or [default]).view(1, -1, 1, 1)  # (1, C or 1, 1, 1)
        for name, default in (("latents_std", 1.0), ("latents_mean", 0.0))
    )
    return std, mean + (vae_config.get("shift_factor") or 0.0)


def scale_latents(latents: Tensor, vae_config: Any) -> Tensor:
    """Bring latents (B, C, h, w) from the scale of the VAE to the scale of the diffusion model."""
    std, mean = _std_and_mean(vae_config, latents)
    return (latents - mean) * vae_config["scaling_factor"] / std


def unscale_latents(latents: Tensor, vae_config: Any) -> Tensor:
    """Bring latents (B, C, h, w) from the scale of the diffusion model back to the scale of the VAE."""
    std, mean = _std_and_mean(vae_config, latents)
    return latents * (std / vae_config["scaling_factor"]) + mean
