"""A model at another resolution: where its tokens think they are, against diffusers' own embedding."""

import pytest
import torch
import transformers
from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid

from dit_hf import DiTModel
from dit_hf.finetuning import resize_positions


@pytest.mark.parametrize(("policy", "positions"), [("extend", torch.arange(8.0)), ("interpolate", None)])
def test_positions_are_those_of_diffusers(build, policy: str, positions: torch.Tensor | None):
    """4 x 4 tokens become 8 x 8; interpolated, two of them share the place of one: -0.25, 0.25, 0.75 ..."""
    positions = torch.arange(8.0) / 2 - 0.25 if positions is None else positions
    model = build()
    resize_positions(model, 16, policy)
    grid = torch.stack(torch.meshgrid(positions, positions, indexing="xy")).double()
    theirs = get_2d_sincos_pos_embed_from_grid(32, grid.reshape(2, 1, 8, 8), output_type="pt")
    torch.testing.assert_close(model.pos_embed[0], theirs.float(), rtol=1e-5, atol=1e-5)  # float32 sines
    assert not model.pos_embed.requires_grad
    assert model(torch.randn(1, 4, 16, 16), 3, torch.tensor([0])).sample.shape == (1, 8, 16, 16)


def test_extend_keeps_the_tokens_that_were_there(build):
    model, before = build(), build()
    resize_positions(model, 16, "extend")
    corner = model.pos_embed.unflatten(1, (8, 8))[:, :4, :4].flatten(1, 2)
    torch.testing.assert_close(corner, before.pos_embed, rtol=0, atol=0)


def test_a_resized_model_saves_and_loads_as_what_it_is(build, tmp_path):
    model = build()
    resize_positions(model, (16, 8), "interpolate")
    model.save_pretrained(tmp_path)
    loaded = DiTModel.from_pretrained(tmp_path)
    assert loaded.config.sample_size == [16, 8]
    torch.testing.assert_close(loaded.pos_embed, model.pos_embed, rtol=0, atol=0)


def test_foreign_fields_of_a_configuration_stay_and_are_not_warned_of_again(build, caplog):
    transformers.utils.logging.enable_propagation()
    model = build()
    model.config.use_cache = True  # as transformers' Trainer writes it
    resize_positions(model, 16, "extend")
    assert model.config.use_cache
    assert model.config.sample_size == 16
    assert "does not use" not in caplog.text


def test_unknown_policies_and_sizes_are_refused(build):
    with pytest.raises(ValueError, match="policy='stretch': choose from extend, interpolate"):
        resize_positions(build(), 16, "stretch")
    with pytest.raises(ValueError, match="sample_size=9 is not valid"):
        resize_positions(build(), 9, "extend")
