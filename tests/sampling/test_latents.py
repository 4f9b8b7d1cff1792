"""Sizes, noise and the scale of latents, and the VAE between latents and images."""

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from sampling_parts import seeded, tiny_model, tiny_pipeline, tiny_vae

from dit_hf import DiTImg2ImgPipeline
from dit_hf.sampling.latents import encode_images, vae_without_overflow


@pytest.mark.parametrize("policy", ["extend", "interpolate"])
def test_other_sizes_are_sampled_under_a_named_policy(policy):
    pipe = tiny_pipeline()
    sizes = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[2:])))
    images = pipe(7, height=24, width=12, position_policy=policy, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 24, 12, 3)
    assert sizes == [(12, 6)] * 2


def test_trained_size_needs_no_policy():
    pipe = tiny_pipeline()
    arguments = {"num_inference_steps": 2, "output_type": "latent"}
    images = [pipe(7, generator=seeded(0), **size, **arguments).images for size in ({}, {"height": 16, "width": 16})]
    torch.testing.assert_close(*images, rtol=0, atol=0)


def test_vae_decodes_in_chunks():
    pipe = tiny_pipeline()
    latents = torch.randn(5, 4, 8, 8, generator=seeded(0))
    expected = pipe._decode(latents, "pt")
    chunks = []
    pipe.vae.decoder.register_forward_pre_hook(lambda _, args: chunks.append(len(args[0])))
    pipe.decode_batch_size = 2
    torch.testing.assert_close(pipe._decode(latents, "pt"), expected, rtol=1e-5, atol=1e-6)
    assert chunks == [2, 2, 1]


def test_vae_slicing_and_tiling_are_the_vae_s_own():
    pipe = tiny_pipeline(vae=tiny_vae(sample_size=8))
    latents = torch.randn(2, 4, 8, 8, generator=seeded(0))
    seen = []
    pipe.vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    pipe.vae.enable_slicing()
    pipe._decode(latents, "pt")
    assert seen == [(1, 4, 8, 8)] * 2
    pipe.vae.disable_slicing()
    pipe.vae.enable_tiling()
    assert pipe._decode(latents, "pt").shape == (2, 3, 16, 16)
    assert len(seen) > 3


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.5},
        {"scaling_factor": 2.0, "shift_factor": 0.3},
        {"scaling_factor": 1.0, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]},
    ],
)
def test_latents_are_unscaled_before_decoding(config):
    vae = tiny_vae(**config)
    pipe = tiny_pipeline(vae=vae)
    z = torch.randn(1, 4, 8, 8, generator=seeded(0))  # what the encoder gave
    mean, std = (torch.tensor(config.get(key, [0.0])).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
    std = torch.where(std == 0, 1, std)
    scaled = (z - mean - config.get("shift_factor", 0.0)) / std * config["scaling_factor"]
    with torch.no_grad():
        expected = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(pipe._decode(scaled, "pt"), expected, rtol=1e-4, atol=1e-5)


def test_autoencoder_that_fails_in_float32_is_half_again():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4, force_upcast=True).half()
    with pytest.raises(MemoryError), vae_without_overflow(vae) as dtype:
        raise MemoryError
    assert (dtype, vae.dtype) == (torch.float32, torch.float16)


def test_rectangular_latents_are_sampled():
    pipe = tiny_pipeline(tiny_model(sample_size=(4, 8)))
    assert pipe(1, num_inference_steps=1, output_type="latent").images.shape == (1, 4, 4, 8)


def test_generators_may_be_a_tuple():
    scheduler = DDIMScheduler(timestep_spacing="leading", clip_sample=False)
    pipe = tiny_pipeline(tiny_model(learn_sigma=False), scheduler)
    images = [
        pipe([1, 2], generator=kind([seeded(0), seeded(1)]), num_inference_steps=2, output_type="latent").images
        for kind in (tuple, list)
    ]
    torch.testing.assert_close(*images, rtol=0, atol=0)


def test_image_with_its_own_generator_is_independent_of_its_batch():
    pipe = tiny_pipeline()
    arguments = {"num_inference_steps": 3, "output_type": "latent"}
    batch = pipe([1, 7, 2], generator=[seeded(11), seeded(12), seeded(13)], **arguments).images
    alone = pipe(7, generator=seeded(12), **arguments).images
    # a matrix product of another height may sum in another order; values reach some hundreds
    torch.testing.assert_close(batch[1:2], alone, rtol=1e-4, atol=1e-3)


AUTOENCODERS = {
    "AutoencoderTiny": lambda: diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        scaling_factor=0.5,
    ),
    "AutoencoderDC": lambda: diffusers.AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.4,
    ),
    "VQModel": lambda: diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=16,
        scaling_factor=0.3,
    ),
    "AsymmetricAutoencoderKL": lambda: diffusers.AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        down_block_out_channels=(8, 8),
        up_block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.2,
    ),
}
SHRINK = {"AutoencoderDC": 4}  # the others halve once


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_autoencoder_decodes_and_encodes_at_its_scale(name: str):
    torch.manual_seed(0)
    vae = AUTOENCODERS[name]().eval()
    scheduler = DDIMScheduler(clip_sample=False)
    pipe = tiny_pipeline(tiny_model(learn_sigma=False), scheduler, vae=vae)
    side = 8 * SHRINK.get(name, 2)
    assert pipe.vae_scale_factor * 8 == side
    z = torch.randn(1, 4, 8, 8, generator=seeded(0))
    scale = vae.config.scaling_factor
    with torch.no_grad():
        expected = (vae.decode(z / scale).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(pipe._decode(z, "pt"), expected)
        assert expected.shape == (1, 3, side, side)
        pixels = torch.rand(1, 3, side, side, generator=seeded(1)) * 2 - 1
        encoded = vae.encode(pixels)
        expected = getattr(encoded, {"AutoencoderDC": "latent"}.get(name, "latents"), None)
        expected = encoded.latent_dist.mean if expected is None else expected
        torch.testing.assert_close(encode_images(vae, pixels, 16), expected * scale)
    assert pipe(1, num_inference_steps=2, guidance_scale=1, output_type="pt").images.shape == (1, 3, side, side)
    change = DiTImg2ImgPipeline.from_pipe(pipe)
    image = Image.new("RGB", (side, side), "red")
    arguments = {"num_inference_steps": 2, "guidance_scale": 1, "output_type": "pt"}
    assert change(image, 1, 0.5, **arguments).images.shape == (1, 3, side, side)


@pytest.mark.parametrize(
    "vae",
    [
        lambda: diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",), latent_channels=4
        ),
        lambda: diffusers.AutoencoderOobleck(encoder_hidden_size=8, decoder_channels=8, downsampling_ratios=[2]),
        lambda: torch.nn.Identity(),
    ],
    ids=["of films", "of sounds", "none at all"],
)
def test_autoencoder_of_something_else_is_refused_at_construction(vae):
    with pytest.raises(ValueError, match="is not supported as a VAE: choose from AutoencoderKL, "):
        tiny_pipeline(vae=vae())


class Own(AutoencoderKL):
    """Somebody's own autoencoder."""


def test_autoencoder_derived_from_a_known_one_is_taken():
    own = Own(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    assert tiny_pipeline(vae=own).vae is own
