"""Samples that depend on model and place only, and measures against brute force."""

import pytest
import torch

from dit_hf import DiTModel, DiTPipeline
from dit_hf.diffusion import SampleLoss
from dit_hf.study.classifier import Classifier
from dit_hf.study.images import PixelLatents, load_images
from dit_hf.study.score import Scorer, choose_sampler, generate_samples


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
    _, scheduler = choose_sampler(SampleLoss(), 2)
    few, many = (
        generate_samples(DiTPipeline(model, None, scheduler), PixelLatents(0.0, 1.0), n, 2, 1.0) for n in (4, 8)
    )
    assert torch.equal(few, many[:4])
    assert not torch.equal(many[:4], many[4:])  # other noise


@pytest.mark.parametrize("num_steps", [16, 20, 64, 256, 1000])
def test_sampler_is_ddim_over_the_whole_range_for_any_number_of_steps(num_steps):
    """Song et al. 2021 (arXiv 2010.02502), eq. 12 with sigma = 0, in float64, for a model that answers tanh(x)."""
    objective = SampleLoss()
    _, scheduler = choose_sampler(objective, num_steps)
    scheduler.set_timesteps(num_steps)
    assert len(scheduler.timesteps) == num_steps
    assert scheduler.timesteps[0] >= objective.num_train_timesteps - objective.num_train_timesteps // num_steps
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)  # Ho et al. 2020, section 4
    alphas = [*alpha_bar[scheduler.timesteps].tolist(), 1.0]
    sampled = x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for timestep, now, then in zip(scheduler.timesteps, alphas, alphas[1:], strict=False):
        sampled = scheduler.step(sampled.tanh(), timestep, sampled).prev_sample
        x_0 = x.tanh()
        x = then**0.5 * x_0 + (1 - then) ** 0.5 * (x - now**0.5 * x_0) / (1 - now) ** 0.5
    assert torch.allclose(sampled, x, atol=1e-4, rtol=0)
