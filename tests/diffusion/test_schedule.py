"""The schedules against diffusers' schedulers and closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from dit_hf.diffusion import BETA_SCHEDULES, Schedule

CONFIGS = {
    "the paper's linear": {"beta_schedule": "linear"},
    "scaled linear of latent diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "cosine in 50 steps": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
    "trained betas": {"trained_betas": [0.01, 0.02, 0.05, 0.1], "num_train_timesteps": 4},
    "linear to zero signal": {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tables_are_those_of_the_scheduler_that_will_sample(config):
    scheduler = DDPMScheduler(**config)
    schedule = Schedule.from_config(scheduler.config)
    assert schedule.betas.dtype == torch.float64
    # theirs are float32: products of 1000 factors drift by some 1e-4 of their value
    torch.testing.assert_close(schedule.betas.float(), scheduler.betas, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(schedule.alpha_bar.float(), scheduler.alphas_cumprod, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("name", "last"), [("linear", 4.0358e-5), ("squaredcos_cap_v2", 2.42877e-9)])
def test_last_alpha_bar_is_the_published_one(name, last):
    torch.testing.assert_close(Schedule(1000, name).alpha_bar[-1].item(), last, rtol=1e-4, atol=0)
    assert name in BETA_SCHEDULES


def test_config_makes_the_round_trip_through_a_scheduler():
    schedule = Schedule(trained_betas=[0.1, 0.2, 0.4], rescale_betas_zero_snr=True)
    scheduler = DDIMScheduler(**schedule.config)
    assert Schedule.from_config(scheduler.config).config == schedule.config
    assert schedule.num_steps == 3
    assert schedule.ends_in_pure_noise


def test_posterior_is_bayes_rule_of_two_gaussians():
    # q(x_{t-1} | x_0) has precision 1/(1-ab_prev), q(x_t | x_{t-1}) adds alpha/beta: compare at every t > 0, in float64
    schedule = Schedule(20, "linear", 0.01, 0.5)
    alpha, beta = 1 - schedule.betas[1:], schedule.betas[1:]
    prior_mean, prior_variance = schedule.alpha_bar[:-1].sqrt(), 1 - schedule.alpha_bar[:-1]
    variance = 1 / (1 / prior_variance + alpha / beta)
    torch.testing.assert_close(schedule.log_beta_tilde[1:], variance.log())
    torch.testing.assert_close(schedule.posterior_x_0[1:], variance * prior_mean / prior_variance)
    torch.testing.assert_close(schedule.posterior_x_t[1:], variance * alpha.sqrt() / beta)


def test_log_variance_at_zero_is_that_of_the_next_step():
    schedule = Schedule()
    assert schedule.log_beta_tilde[0] == schedule.log_beta_tilde[1]
    assert torch.isfinite(schedule.log_beta_tilde).all()


def test_tables_are_read_per_sample_in_float32():
    schedule = Schedule()
    read = schedule.at("alpha_bar", torch.tensor([999, 0]), torch.zeros(2, 4, 8, 8, dtype=torch.bfloat16))
    assert read.shape == (2, 1, 1, 1)
    torch.testing.assert_close(read.flatten(), schedule.alpha_bar[[999, 0]].float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta_schedule": "quadratic"}, "'quadratic'.*linear, scaled_linear, squaredcos_cap_v2"),
        ({"trained_betas": [0.1, 1.5]}, "1.5"),
        ({"beta_start": 0.0}, "outside"),
        ({"num_train_timesteps": 1}, "at least 2"),
    ],
)
def test_bad_schedules_are_refused_with_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)
