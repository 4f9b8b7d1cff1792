"""A model at another resolution: where its tokens think they are, against diffusers' own embedding."""

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from dit_hf import DiTModel
from dit_hf.finetuning import resize_positions


def theirs(side: int, base: int) -> torch.Tensor:
    """diffusers' embedding, whose positions are i * base / side."""
    return get_2d_sincos_pos_embed(32, side, base_size=base, output_type="pt").reshape(1, side**2, 32).float()


@pytest.mark.parametrize(("policy", "base"), [("extend", 8), ("interpolate", 4)])
def test_positions_are_those_of_diffusers(build, policy: str, base: int):
    model = build()  # 4 x 4 tokens
    resize_positions(model, 16, policy)
    torch.testing.assert_close(model.pos_embed.data, theirs(8, base), rtol=1e-5, atol=1e-5)  # float32 sines there
    assert not model.pos_embed.requires_grad
    assert model(torch.randn(1, 4, 16, 16), 3, torch.tensor([0])).sample.shape == (1, 8, 16, 16)


def test_extend_keeps_the_tokens_that_were_there(build):
    model, before = build(), build()
    resize_positions(model, 16, "extend")
    corner = model.pos_embed.unflatten(1, (8, 8))[:, :4, :4].flatten(1, 2)
    torch.testing.assert_close(corner, before.pos_embed, rtol=0, atol=0)


def test_interpolate_keeps_every_second_token_of_twice_the_side(build):
    model, before = build(), build()
    resize_positions(model, 16, "interpolate")
    coarse = model.pos_embed.unflatten(1, (8, 8))[:, ::2, ::2].flatten(1, 2)
    torch.testing.assert_close(coarse, before.pos_embed, rtol=0, atol=0)


def test_a_resized_model_saves_and_loads_as_what_it_is(build, tmp_path):
    model = build()
    resize_positions(model, (16, 8), "interpolate")
    model.save_pretrained(tmp_path)
    loaded = DiTModel.from_pretrained(tmp_path)
    assert loaded.config.sample_size == [16, 8]
    torch.testing.assert_close(loaded.pos_embed, model.pos_embed, rtol=0, atol=0)


def test_unknown_policies_and_sizes_are_refused(build):
    with pytest.raises(ValueError, match="position_embedding='stretch': choose from extend, interpolate"):
        resize_positions(build(), 16, "stretch")
    with pytest.raises(ValueError, match="sample_size=9 is not valid"):
        resize_positions(build(), 9, "extend")
