"""How latents made beforehand are stored: the VAE's mean and log-variance of an image as bytes, and what made them.

Each row holds the moments of the image and, unless left out, of its mirror image. The ends of the parquet shards say
which VAE made them, from which images, prepared how (`LatentsInfo`); the posterior is sampled in training, anew each
time.

Legend: C latent channels, h, w sides of a latent.
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
PREPARATION = "short side to S by box halving, then bicubic; centre square; RGB in [-1, 1] (dit_hf.data.images)"
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # to which diffusers clips it


@dataclass(frozen=True)
class LatentsInfo:
    """What a set of latents was made of, and how it is stored."""

    vae: str  # name on the Hub, or "local"
    vae_sha256: str  # of configuration and weights
    scaling_factor: float
    shape: tuple[int, int, int]  # (2C, h, w)
    resolution: int  # S, in pixels
    dtype: str  # one of DTYPES
    mirrored: bool  # whether the mirror images are there
    source: str  # name on the Hub, or "local"
    source_revision: str
    preparation: str = PREPARATION

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_footer(cls, metadata: Mapping[bytes, bytes] | None) -> "LatentsInfo | None":
        """Read it from the end of a parquet file; None where the file holds something else."""
        if not metadata or METADATA_KEY not in metadata:
            return None
        values = json.loads(metadata[METADATA_KEY])
        return cls(**{**values, "shape": tuple(values["shape"])})


def hash_vae(vae: AutoencoderKL) -> str:
    """SHA-256 of what makes a VAE: its configuration, without where it came from, and its weights as float32."""
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_latents(
    info: LatentsInfo, vae: AutoencoderKL, *, resolution: int, random_flip: bool, num_jitters: int
) -> None:
    """Refuse latents that are not what a training would make of the images.

    Raises:
        ValueError: for another VAE or resolution, for flips without mirror images, and for jitters.
    """
    if hash_vae(vae) != info.vae_sha256:
        raise ValueError(
            f"the latents were made by the VAE {info.vae} (SHA-256 {info.vae_sha256[:12]}), not by this one "
            f"({hash_vae(vae)[:12]}): set --vae_name_or_path, or extract them anew"
        )
    if info.resolution != resolution:
        raise ValueError(
            f"the latents are of {info.resolution} px, not {resolution}: set --resolution {info.resolution}"
        )
    if random_flip and not info.mirrored:
        raise ValueError("the latents have no mirror images: set --random_flip false, or extract them anew")
    if num_jitters:
        raise ValueError(
            f"latents cannot be jittered: set --num_jitters 0 instead of {num_jitters}, or train on images"
        )


def pack(moments: NDArray[np.float32], dtype: str) -> bytes:
    """Moments (2C, h, w) as bytes: of float16, or of 8 bits a number between the least and greatest of each channel."""
    mean, log_variance = np.split(moments, 2)
    moments = np.concatenate([mean, log_variance.clip(*LOG_VARIANCE_RANGE)])
    if dtype == "float16":
        return moments.astype(np.float16).tobytes()
    low = moments.min(axis=(1, 2), keepdims=True)
    step = (moments.max(axis=(1, 2), keepdims=True) - low) / 255
    levels = np.rint((moments - low) / np.where(step == 0, 1, step)).astype(np.uint8)
    return np.concatenate([low, step]).astype(np.float32).tobytes() + levels.tobytes()


def unpack(data: bytes, info: LatentsInfo) -> Tensor:
    """Moments (2C, h, w) in float32 from bytes that `pack` made.

    Raises:
        BadImage: if they have another length.
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
