"""How extracted latents are stored: mean and log-variance of a VAE's posterior as bytes, and how they were made.

A row holds these moments of an image and, by default, of its mirror image. The footers of the parquet shards record
the VAE, the images and their preparation (`LatentsInfo`). Training samples the posterior anew in each epoch.

Legend: C latent channels, h, w sides of a latent, S side of an image.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from ..images import BadImage

METADATA_KEY = b"dit_hf.latents"
COLUMNS = ("moments", "moments_mirrored")
DTYPES = ("float16", "int8")
# Compared with what existing shards record, so the name of a module that has moved since stays as it was.
PREPARATION = "short side to S by box halving, then bicubic; centre square; RGB in [-1, 1] (dit_hf.data.images)"
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # diffusers clips the log-variance to it


@dataclass(frozen=True)
class LatentsInfo:
    """How a set of latents was made, and how it is stored."""

    vae: str  # id on the Hub, or "local"
    vae_sha256: str  # hash of configuration and weights
    scaling_factor: float
    shape: tuple[int, int, int]  # (2C, h, w)
    resolution: int  # S, in pixels
    dtype: str  # one of DTYPES
    mirrored: bool  # whether the moments of the mirror images are stored too
    source: str  # id on the Hub, or "local"
    source_revision: str
    preparation: str = PREPARATION

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_footer(cls, metadata: Mapping[bytes, bytes] | None) -> "LatentsInfo | None":
        """Read the record from the footer of a parquet file; None if the file holds no latents."""
        if not metadata or METADATA_KEY not in metadata:
            return None
        values = json.loads(metadata[METADATA_KEY])
        return cls(**{**values, "shape": tuple(values["shape"])})


def hash_vae(vae: AutoencoderKL) -> str:
    """Return the SHA-256 of a VAE's configuration, except where it was loaded from, and of its weights in float32."""
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_latents(
    info: LatentsInfo, vae: AutoencoderKL, *, resolution: int, random_flip: bool, num_jitters: int
) -> None:
    """Check that a training would make the same latents from the images.

    Args:
        info: Record of the latents.
        vae: VAE of the training.
        resolution: Resolution of the training, in pixels.
        random_flip: Whether the training mirrors images.
        num_jitters: Number of jittered variants of each image in the training.

    Raises:
        ValueError: If the VAE or the resolution is another one, if flips are asked for and the mirror images are not
            stored, or if jitters are asked for.
    """
    if hash_vae(vae) != info.vae_sha256:
        raise ValueError(
            f"the latents were made by the VAE {info.vae} (SHA-256 {info.vae_sha256[:12]}), not by this one "
            f"({hash_vae(vae)[:12]}): set --vae_name_or_path, or extract the latents anew"
        )
    if info.resolution != resolution:
        raise ValueError(
            f"the latents are of {info.resolution} px, not {resolution}: set --resolution {info.resolution}"
        )
    if random_flip and not info.mirrored:
        raise ValueError("the latents have no mirror images: set --random_flip false, or extract the latents anew")
    if num_jitters:
        raise ValueError(
            f"latents cannot be jittered: set --num_jitters 0 instead of {num_jitters}, or train on images"
        )


def pack(moments: NDArray[np.float32], dtype: str) -> bytes:
    """Store moments (2C, h, w) as bytes.

    Args:
        moments: Mean and log-variance, (2C, h, w).
        dtype: "float16"; or "int8": 255 steps between the lowest and the highest value of each channel.
    """
    mean, log_variance = np.split(moments, 2)
    moments = np.concatenate([mean, log_variance.clip(*LOG_VARIANCE_RANGE)])
    if dtype == "float16":
        return moments.astype(np.float16).tobytes()
    low = moments.min(axis=(1, 2), keepdims=True)
    step = (moments.max(axis=(1, 2), keepdims=True) - low) / 255
    levels = np.rint((moments - low) / np.where(step == 0, 1, step)).astype(np.uint8)
    return np.concatenate([low, step]).astype(np.float32).tobytes() + levels.tobytes()


def unpack(data: bytes, info: LatentsInfo) -> Tensor:
    """Return moments (2C, h, w) in float32 from the bytes that `pack` made.

    Raises:
        BadImage: If the bytes have another length.
    """
    channels, count = info.shape[0], int(np.prod(info.shape))
    expected = 2 * count if info.dtype == "float16" else 8 * channels + count
    if len(data) != expected:
        raise BadImage(f"{len(data)} bytes are no latent of {expected}")
    if info.dtype == "float16":
        return torch.from_numpy(np.frombuffer(data, np.float16).reshape(info.shape).astype(np.float32))
    low, step = np.frombuffer(data, np.float32, 2 * channels).reshape(2, channels, 1, 1)
    levels = np.frombuffer(data, np.uint8, offset=8 * channels).reshape(info.shape)
    return torch.from_numpy(low + step * levels.astype(np.float32))
