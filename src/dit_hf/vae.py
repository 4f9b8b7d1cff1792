"""The facts of a VAE that sampling and training share: by how much it shrinks images, and the scale of its latents.

A diffusion model works on latents of zero mean and unit deviation. With the fields of an `AutoencoderKL`'s
configuration, z being what the encoder gives:

    latents = (z - shift_factor - latents_mean) * scaling_factor / latents_std

This file travels to the Hub as a part of `pipeline_dit.py`.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

# Autoencoders of diffusers that pipelines work with: images of 3 channels to latents (B, C, h, w) and back.
AUTOENCODERS = ("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "VQModel")
EXPORTED = "ExportedVae"  # one of them as a graph for another runtime


def is_supported_vae(vae: Any) -> bool:
    """Return whether a VAE is one of `AUTOENCODERS`, or of a class derived from one."""
    return any(cls.__name__ in (*AUTOENCODERS, EXPORTED) for cls in type(vae).__mro__)


def vae_shrink_factor(vae_config: Any) -> int:
    """Return the number of pixels along one side of a latent pixel, such as 8.

    Args:
        vae_config: Configuration of one of `AUTOENCODERS`.
    """
    blocks = vae_config.get("encoder_block_out_channels") or vae_config["block_out_channels"]
    return 2 ** (len(blocks) - 1)


def check_resolution(resolution: int, multiple: int) -> None:
    """Refuse images whose sides are no multiple of a number of pixels.

    Args:
        resolution: Side of the images, in pixels.
        multiple: Factor by which the VAE shrinks images.

    Raises:
        ValueError: If the resolution is no multiple, with the nearest ones.
    """
    if resolution % multiple:
        lower = resolution // multiple * multiple
        nearest = f"{lower} or {lower + multiple}" if lower else multiple
        raise ValueError(
            f"resolution={resolution} is no multiple of {multiple}, by which the VAE shrinks images: take {nearest}"
        )


def vae_subfolder(name: str) -> str | None:
    """Return where the VAE lies: in a folder of its own if the name is that of a pipeline's folder."""
    return "vae" if (Path(name) / "model_index.json").is_file() else None


def mean_latents(encoded: Any) -> Tensor:
    """Return the latents (B, C, h, w) of what a VAE's `encode` returns; of a distribution, its mean."""
    if "latent_dist" in encoded:  # AutoencoderKL
        return encoded.latent_dist.mode()
    return encoded.latents if "latents" in encoded else encoded.latent  # AutoencoderTiny and VQModel, or AutoencoderDC


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
