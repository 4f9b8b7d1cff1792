"""Stored moments: what comes back, how far off it is, and which latents a training refuses."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from dit_hf.data.moments import LatentsInfo, check_latents, hash_vae, pack, unpack
from dit_hf.images import BadImage

SHAPE = (4, 6, 6)


def make_vae(seed: int = 0, **changes) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(**{"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 2, **changes})


def info_of(vae: AutoencoderKL, **changes) -> LatentsInfo:
    known = {"vae": "local", "vae_sha256": hash_vae(vae), "scaling_factor": 0.5, "shape": SHAPE, "resolution": 6}
    known |= {"dtype": "float16", "mirrored": True, "source": "local", "source_revision": "files-0"}
    return LatentsInfo(**(known | changes))


def random_moments() -> np.ndarray:
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(0, 8, (2, 6, 6)), rng.normal(-8, 4, (2, 6, 6))
    return np.concatenate([mean, log_variance]).astype(np.float32)


def test_float16_keeps_eleven_bits():
    moments = random_moments()
    back = unpack(pack(moments, "float16"), info_of(make_vae())).numpy()
    np.testing.assert_allclose(back, moments, rtol=2**-11)


def test_int8_is_off_by_half_a_255th_of_each_channel_s_range_at_most():
    moments = random_moments()
    data = pack(moments, "int8")
    assert len(data) == 8 * 4 + moments.size  # about half of float16
    back = unpack(data, info_of(make_vae(), dtype="int8")).numpy()
    step = np.ptp(moments, axis=(1, 2), keepdims=True) / 255
    error = np.abs(back - moments)
    assert (error <= step / 2 * (1 + 1e-4)).all()
    assert error.max() > 0
    constant = np.full((4, 6, 6), 3.25, np.float32)
    np.testing.assert_array_equal(unpack(pack(constant, "int8"), info_of(make_vae(), dtype="int8")).numpy(), constant)


def test_log_variance_is_clipped_as_the_posterior_clips_it():
    moments = np.zeros((4, 6, 6), np.float32)
    moments[2:, 0], moments[2:, 1] = 1e6, -1e6  # beyond float16
    back = unpack(pack(moments, "float16"), info_of(make_vae()))
    expected, found = (DiagonalGaussianDistribution(x[None]) for x in (torch.from_numpy(moments), back))
    torch.testing.assert_close(found.std, expected.std, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_bytes_of_another_length_are_a_bad_sample(dtype: str):
    with pytest.raises(BadImage, match="bytes are no latent of"):
        unpack(pack(random_moments(), dtype)[:-1], info_of(make_vae(), dtype=dtype))


def test_hash_tells_vaes_apart_by_weights_and_configuration():
    vae = make_vae()
    assert hash_vae(vae) == hash_vae(make_vae())
    assert hash_vae(vae) == hash_vae(make_vae().double())
    others = [make_vae(seed=1), make_vae(scaling_factor=0.25), make_vae(norm_num_groups=2)]
    assert len({hash_vae(vae), *map(hash_vae, others)}) == 4


GOOD = {"resolution": 6, "random_flip": True, "num_jitters": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 12}, "latents are of 6 px, not 12: set --resolution 6"),
        ({"num_jitters": 3}, "--num_jitters 0 instead of 3"),
        ({}, None),
    ],
)
def test_latents_of_another_preparation_are_refused(changes: dict, message: str | None):
    vae = make_vae()
    if message is None:
        check_latents(info_of(vae), vae, **GOOD)
        return
    with pytest.raises(ValueError, match=message):
        check_latents(info_of(vae), vae, **(GOOD | changes))


def test_latents_without_mirror_images_or_of_another_vae_are_refused():
    vae = make_vae()
    with pytest.raises(ValueError, match="no mirror images: set --random_flip false"):
        check_latents(info_of(vae, mirrored=False), vae, **GOOD)
    with pytest.raises(ValueError, match=r"made by the VAE local \(SHA-256 \w{12}\), not by this one"):
        check_latents(info_of(vae), make_vae(seed=1), **GOOD)


def test_information_survives_the_footer():
    info = info_of(make_vae())
    assert LatentsInfo.from_footer({b"dit_hf.latents": info.to_json().encode()}) == info
    assert LatentsInfo.from_footer({b"huggingface": b"{}"}) is None
