"""Patches, positions, timesteps and labels against the original's files, diffusers' functions and sums by hand."""

import math

import pytest
import torch
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
