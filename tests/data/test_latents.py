"""Latents for training against the posterior that diffusers' VAE gives."""

from itertools import islice

import pytest
import torch
from diffusers import AutoencoderKL

from dit_hf.data.latents import LatentEncoder
from dit_hf.data.sources import open_images
from dit_hf.data.streaming import ImageBatch, ImageStream
from dit_hf.vae import scale_latents, unscale_latents


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=2, scaling_factor=0.5, shift_factor=0.1
    )


def same_image(count: int) -> ImageBatch:
    image = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    positions = [(0, k) for k in range(count)]
    return ImageBatch(image.expand(count, -1, -1, -1), torch.zeros(count), positions, [(0, 0)] * count, (0, count))


def test_latents_have_the_posterior_s_moments_after_shift_and_scale(vae):
    count = 4000
    latents = LatentEncoder(vae)(same_image(count))
    with torch.no_grad():
        posterior = vae.encode(same_image(1).images).latent_dist
    # standard errors of a mean and of a standard deviation of 4000 draws, times five
    torch.testing.assert_close(
        latents.mean(0), (posterior.mean[0] - 0.1) * 0.5, rtol=0, atol=0.04 * posterior.std.max()
    )
    torch.testing.assert_close(latents.std(0), posterior.std[0] * 0.5, rtol=0.06, atol=0)


def test_draw_depends_on_seed_and_position_alone(vae):
    batch = same_image(4)
    latents = LatentEncoder(vae, seed=1)(batch)
    part = ImageBatch(batch.images[2:3], batch.class_labels[2:3], batch.positions[2:3], batch.identities[2:3], (0, 4))
    torch.testing.assert_close(LatentEncoder(vae, seed=1)(part), latents[2:3])
    assert not torch.allclose(LatentEncoder(vae, seed=2)(part), latents[2:3])
    assert not torch.allclose(latents[0], latents[1])


@pytest.mark.slow
def test_cache_changes_no_latent_and_saves_the_encoder_s_work(vae, colours, monkeypatch):
    def batches():
        return islice(ImageStream(open_images(str(colours)), batch_size=5, resolution=8, num_jitters=2), 40)

    encoded = []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda x: (encoded.append(len(x)), encode(x))[1])
    plain = [LatentEncoder(vae)(batch) for batch in batches()]
    assert 190 < sum(encoded) <= 200  # an image that a batch holds twice is encoded once
    encoded.clear()
    encoder = LatentEncoder(vae, cache_images=1000)
    torch.testing.assert_close([encoder(batch) for batch in batches()], plain)
    assert sum(encoded) <= 23 * 2 * 2
    encoded.clear()
    encoder = LatentEncoder(vae, cache_images=3)  # a full cache keeps what it has
    torch.testing.assert_close([encoder(batch) for batch in batches()], plain)
    assert 100 < sum(encoded) < 200


def test_pipeline_s_decoding_undoes_the_scaling():
    """The formula by hand, and the way back that the pipeline takes before it decodes."""
    vae = AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=2,
        scaling_factor=0.5,
        shift_factor=0.1,
        latents_mean=[0.3, -0.2],
        latents_std=[2.0, 3.0],
    )
    z = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    latents = scale_latents(z, vae.config)
    torch.testing.assert_close(latents[:, 0], (z[:, 0] - 0.1 - 0.3) * 0.5 / 2)
    torch.testing.assert_close(latents[:, 1], (z[:, 1] - 0.1 + 0.2) * 0.5 / 3)
    torch.testing.assert_close(unscale_latents(latents, vae.config), z)
