"""Samples that depend on model and place only, and measures against brute force."""

import pytest
import torch

from dit_hf import DiTModel
from dit_hf.diffusion import SampleLoss
from dit_hf.study.classifier import Classifier
from dit_hf.study.images import PixelLatents, load_images
from dit_hf.study.score import Scorer, draw_samples


def test_scorer_finds_real_images_near_and_noise_far(toys):
    train, test = load_images(str(toys), "train", 16), load_images(str(toys), "test", 16)
    torch.manual_seed(0)
    scorer = Scorer(Classifier(1, 2).eval(), train)
    noise = torch.randint(0, 256, test.images.shape, dtype=torch.uint8)
    real, far = scorer(test.images, test.labels), scorer(noise, test.labels)
    assert real.distance < 0.2 * far.distance
    assert real.precision > far.precision
    assert scorer(train.images, train.labels).distance == pytest.approx(0, abs=1e-6)


def test_sample_is_the_same_among_few_and_among_many_and_for_every_batch(recipe, monkeypatch):
    monkeypatch.setattr("dit_hf.study.score.BATCH", 4)
    torch.manual_seed(0)
    model = DiTModel(recipe.config("S/8", in_channels=4, num_classes=2)).eval()
    torch.nn.init.normal_(model.final_layer.linear.weight)  # a fresh one answers zeros
    few, many = (draw_samples(model, SampleLoss(), PixelLatents(0.0, 1.0), n, 2, 1.0) for n in (4, 8))
    assert torch.equal(few, many[:4])
    assert not torch.equal(many[:4], many[4:])  # other noise
