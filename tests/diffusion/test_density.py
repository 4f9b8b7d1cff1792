"""Timestep densities against the quantiles of scipy and of torch.distributions, in float64."""

import diffusers
import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from dit_hf.diffusion import OBJECTIVES, TimestepDensity

UNIFORM = torch.cat([torch.tensor([0.0, 2**-24, 1e-4]), torch.linspace(0.01, 0.99, 25), torch.tensor([1 - 2**-24])])


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.8), (-1.5, 0.3)])
def test_logit_normal_times_are_its_quantiles(mean, std):
    found = TimestepDensity("logit_normal", mean, std).quantile(UNIFORM.double())
    expected = expit(norm.ppf(UNIFORM.double().numpy(), loc=mean, scale=std))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=0)
    normal = Normal(*torch.tensor([mean, std], dtype=torch.float64))
    of_torch = TransformedDistribution(normal, [SigmoidTransform()])
    inner = UNIFORM.double()[3:-1]  # torch's erfinv loses digits in the tails
    torch.testing.assert_close(found[3:-1], of_torch.icdf(inner), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["uniform", "logit_normal"])
@pytest.mark.parametrize("shift", [0.3, 3.0])
def test_shift_moves_the_quantiles_by_its_formula(name, shift):
    """s t / (1 + (s - 1) t) turns the odds t / (1 - t) into s times the odds."""
    t = TimestepDensity(name).quantile(UNIFORM.double())[:-1]
    shifted = TimestepDensity(name, shift=shift).quantile(UNIFORM.double())[:-1]
    torch.testing.assert_close(shifted / (1 - shifted), shift * t / (1 - t), rtol=1e-9, atol=0)


def test_a_shift_is_that_of_the_scheduler_of_the_trained_model():
    """diffusers' scheduler maps evenly spaced times as the density maps uniform numbers."""
    objective = OBJECTIVES["flow"](density=TimestepDensity(shift=3.0))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(objective.scheduler_config())
    assert scheduler.config.shift == 3.0
    drawn = objective.draw_timesteps(torch.arange(1, 1000) / 1000)
    torch.testing.assert_close(drawn, scheduler.timesteps.flip(0)[:-1], rtol=1e-5, atol=0)  # both float32


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_density_stays_within_the_timesteps(name):
    """A float32 near 1 must not become timestep T, which a noise schedule does not have."""
    density = TimestepDensity("logit_normal", mean=30.0, std=5.0, shift=100.0)
    timestep = OBJECTIVES[name](density=density).draw_timesteps(UNIFORM)
    assert (timestep >= 0).all()
    assert (timestep < 1000).all() if name.startswith("flow") else timestep.max() == 999


@pytest.mark.parametrize("name", OBJECTIVES)
def test_share_of_each_quarter_is_that_of_the_distribution(name):
    density = TimestepDensity("logit_normal", mean=-0.5, std=1.2)
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    timestep = OBJECTIVES[name](density=density).draw_timesteps(uniform)
    share = [((timestep >= low) & (timestep < low + 250)).double().mean().item() for low in (0, 250, 500, 750)]
    edges = norm.cdf(np.log([1 / 3, 1, 3]), loc=-0.5, scale=1.2)  # logits of 1/4, 1/2, 3/4
    np.testing.assert_allclose(share, np.diff([0, *edges, 1]), atol=2e-5)


def test_the_default_leaves_the_uniform_numbers_as_they_are():
    assert TimestepDensity().quantile(UNIFORM) is UNIFORM
    for name, objective in OBJECTIVES.items():
        assert (objective.density == TimestepDensity()) == (name != "flow_sample")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cosine"}, "'cosine' is unknown: choose one of uniform, logit_normal"),
        ({"mean": float("nan")}, "mean=nan of a timestep density: pass a finite number"),
        ({"std": 0.0}, r"std=0.0 .* above 0"),
        ({"shift": -1.0}, r"shift=-1.0 .* above 0"),
    ],
)
def test_impossible_densities_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimestepDensity(**arguments)
