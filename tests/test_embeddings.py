"""Patches, positions, timesteps and labels against the original's files, diffusers' functions and sums by hand."""

import math

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch.testing import assert_close

from dit_hf import DiTModel
from dit_hf.embeddings import position_embedding, unpatchify


def test_position_embedding_equals_the_original(tiny_config, golden_dir):
    expected = load_file(golden_dir / "dit_p2_c4.safetensors")["pos_embed"]
    assert_close(DiTModel(tiny_config()).pos_embed.data, expected, atol=1e-6, rtol=0)


def test_position_embedding_of_a_rectangle_has_the_column_first():
    embedding = position_embedding((2, 3), 8)[0]
    for token, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        angles = [position / 10000 ** (i / 2) for position in (column, row) for i in (0, 1)]
        x_0, x_1, y_0, y_1 = angles
        by_hand = [math.sin(x_0), math.sin(x_1), math.cos(x_0), math.cos(x_1)]
        by_hand += [math.sin(y_0), math.sin(y_1), math.cos(y_0), math.cos(y_1)]
        assert_close(embedding[token], torch.tensor(by_hand), atol=1e-6, rtol=0)


def test_timestep_freq_shift_changes_the_frequencies_as_in_diffusers(tiny_config):
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    for shift in (0.0, 1.0):
        embedder = DiTModel(tiny_config(timestep_freq_shift=shift)).t_embedder
        captured = []
        embedder.mlp.register_forward_pre_hook(lambda _, args, captured=captured: captured.append(args[0]))
        t = torch.tensor([0.0, 0.5, 999.0])
        embedder(t)
        expected = embeddings.get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=shift)
        assert_close(captured[0], expected, atol=1e-4, rtol=0)  # float32 sines of angles up to 999


@torch.no_grad()
def test_labels_are_dropped_at_random_in_training_mode_only(tiny_model):
    torch.manual_seed(0)
    model = tiny_model(class_dropout_prob=0.25)
    labels = torch.zeros(4000, dtype=torch.long)
    null = model.y_embedder.embedding_table.weight[10]
    shares = {}
    for training in (True, False):
        embeddings = model.train(training).y_embedder(labels, None)
        shares[training] = (embeddings == null).all(dim=1).float().mean()
    assert shares[False] == 0
    assert shares[True] == pytest.approx(0.25, abs=0.03)  # four standard deviations


def test_unpatchify_puts_every_pixel_in_its_place(tiny_config):
    config = tiny_config(sample_size=(4, 6), learn_sigma=False, in_channels=3)
    latent = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = torch.empty(2, 6, 12)
    for n in range(6):
        for i in range(2):
            for j in range(2):
                for channel in range(3):
                    pixel = latent[:, channel, n // 3 * 2 + i, n % 3 * 2 + j]
                    tokens[:, n, (i * 2 + j) * 3 + channel] = pixel
    assert torch.equal(unpatchify(tokens, config), latent)


LABEL_ADAPTERS = {
    "tokens": lambda: LoraConfig(target_modules=["qkv"], trainable_token_indices={"embedding_table": [7, 2]}),
    "LoRA": lambda: LoraConfig(r=2, target_modules=["embedding_table"]),
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("make_adapter", LABEL_ADAPTERS.values(), ids=LABEL_ADAPTERS)
def test_adapter_on_the_label_table_trains_and_wrong_labels_are_still_refused(make_adapter, tiny_model, tiny_inputs):
    model = tiny_model()
    expected = model(*tiny_inputs()).sample
    model.add_adapter(make_adapter())
    assert_close(model(*tiny_inputs()).sample, expected, atol=0, rtol=0)  # a fresh adapter changes nothing
    model.train()(*tiny_inputs()).sample.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "embedding_table" in n)
    with pytest.raises(ValueError, match=r"\[11, 0, 0\]: pass 0..9, or 10 for no class"):
        model(tiny_inputs()[0], 5, torch.tensor([11, 0, 0]))


@torch.no_grad()
def test_default_device_of_torch_is_not_where_an_existing_model_computes(tiny_model, tiny_inputs):
    # "meta" computes nothing, so that whatever came to lie there would show
    model = tiny_model()
    x, _, y = tiny_inputs()
    expected = model(x, 999.5, y).sample
    resized = [model.resize_pos_embed(12, 4, policy) for policy in ("extend", "interpolate")]
    with torch.device("meta"):
        assert DiTModel(model.config).pos_embed.is_meta
        assert_close(model(x, 999.5, y).sample, expected, atol=0, rtol=0)
        for policy, embedding in zip(("extend", "interpolate"), resized, strict=True):
            assert_close(model.resize_pos_embed(12, 4, policy), embedding, atol=0, rtol=0)
        assert_close(position_embedding((4, 4), 48), position_embedding((4, 4), 48).cpu(), atol=0, rtol=0)


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16])
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
def test_default_dtype_of_torch_changes_new_weights_and_nothing_else(default_dtype, tiny_inputs, tiny_model):
    torch.set_default_dtype(torch.float32)
    model = tiny_model()
    x, _, y = tiny_inputs()
    expected = model(x, 999.5, y).sample  # bfloat16 would round the timestep to 1000
    resized = [model.resize_pos_embed(12, 4, policy) for policy in ("extend", "interpolate")]
    torch.set_default_dtype(default_dtype)
    assert_close(model(x, 999.5, y).sample, expected, atol=0, rtol=0)
    for policy, embedding in zip(("extend", "interpolate"), resized, strict=True):
        assert_close(model.resize_pos_embed(12, 4, policy), embedding, atol=0, rtol=0)
    fresh = DiTModel(model.config).eval()
    assert {parameter.dtype for parameter in fresh.parameters()} == {default_dtype}
    assert_close(fresh.pos_embed, position_embedding((4, 4), 48).to(default_dtype), atol=0, rtol=0)
    assert fresh(x, 999.5, y).sample.dtype == default_dtype
