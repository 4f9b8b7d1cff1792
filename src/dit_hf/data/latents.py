"""From images to the latents that DiT is trained on: samples of a VAE's posterior, drawn anew each time (section 3.1).

Legend: B batch, M images that are not cached, S side of an image, C latent channels, h, w sides of a latent.
"""

from itertools import islice

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from ..vae import scale_latents
from .batches import ImageBatch

ENCODED_TOGETHER = 64  # number of images, which bounds the memory of the VAE


class LatentEncoder:
    """Encode batches of images with a frozen VAE.

    Args:
        vae: `AutoencoderKL` whose configuration says how latents are scaled to unit deviation.
        seed: Seed of the draws from the posterior, which are keyed by (seed, epoch, offset).
        cache_images: Number of images whose moments are kept. Mirrored and jittered versions count as images.
    """

    def __init__(self, vae: AutoencoderKL, seed: int = 0, cache_images: int = 0) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.seed = seed
        self.cache_images = cache_images
        self._cache: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def __call__(self, batch: ImageBatch) -> Tensor:
        """Return scaled latents (B, C, h, w) of the images of a batch."""
        moments = self._moments(batch)  # (B, 2C, h, w)
        posterior = DiagonalGaussianDistribution(moments)
        noise = np.stack([self._draw(position, posterior.mean.shape[1:]) for position in batch.positions])
        latents = posterior.mean + posterior.std * torch.from_numpy(noise).to(moments)  # (B, C, h, w)
        return scale_latents(latents, self.vae.config)

    def _draw(self, position: tuple[int, int], shape: torch.Size) -> np.ndarray:
        return np.random.default_rng([self.seed, 2, *position]).standard_normal(tuple(shape), dtype=np.float32)

    def _moments(self, batch: ImageBatch) -> Tensor:
        """Return mean and log-variance of the posterior of each image, (B, 2C, h, w)."""
        if batch.are_moments:
            return batch.images.to(self.vae.device)
        known = {identity: self._cache[identity] for identity in batch.identities if identity in self._cache}
        missing = {identity: k for k, identity in enumerate(batch.identities) if identity not in known}
        if missing:
            images = batch.images[list(missing.values())].to(self.vae.device, self.vae.dtype)  # (M, 3, S, S)
            chunks = [self.vae.encode(chunk).latent_dist.parameters.float() for chunk in images.split(ENCODED_TOGETHER)]
            fresh = torch.cat(chunks)  # (M, 2C, h, w)
            known.update(zip(missing, fresh, strict=True))
            room = max(self.cache_images - len(self._cache), 0)
            self._cache.update(islice(zip(missing, fresh, strict=True), room))
        return torch.stack([known[identity] for identity in batch.identities])  # (B, 2C, h, w)
