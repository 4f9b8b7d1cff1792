"""Training objectives: what a network is asked to predict, and its error for each sample.

`OBJECTIVES` is the table. `HybridLoss` is the DiT paper's (arXiv 2212.09748, section 3.1): L_simple plus L_vlb of
Nichol & Dhariwal 2021 (arXiv 2102.09672). A model is any callable `(x_t, timestep, class_labels, **kwargs)` that
returns a tensor or an object with the attribute `sample`. Losses are float32 whatever the model computes in.

An objective states its own traits as class attributes; other rooms read the traits and never compare names.
Legend: B batch, C channels, T training steps.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .density import TimestepDensity
from .schedule import Schedule

Model = Callable[..., Any]


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all dimensions but the first."""
    return x.flatten(1).mean(1)  # (B,)


def predict(model: Model, x_t: Tensor, timestep: Tensor, class_labels: Tensor | None, **model_kwargs: Any) -> Tensor:
    """Call the model and return its prediction as float32."""
    answer = model(x_t, timestep, class_labels, **model_kwargs)
    return getattr(answer, "sample", answer).float()  # (B, C or 2C, ...)


def gaussian_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N_1 || N_2) of diagonal Gaussians, per element, in nats."""
    ratio = torch.exp(log_variance_1 - log_variance_2)
    distance = (mean_1 - mean_2) ** 2 * torch.exp(-log_variance_2)
    return 0.5 * (log_variance_2 - log_variance_1 - 1 + ratio + distance)


def tanh_gaussian_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the standard normal distribution function; the exact one differs by up to 4e-4."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretised_gaussian_nll(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Negative log likelihood of the bin of width 2/255 around x, per element, in nats.

    The outermost bins, beyond +-0.999, are open. Source: Ho et al. 2020, eq. 13.
    """
    inverse_scale = torch.exp(-log_scale)
    below_upper = tanh_gaussian_cdf((x - mean + 1 / 255) * inverse_scale)
    below_lower = tanh_gaussian_cdf((x - mean - 1 / 255) * inverse_scale)
    inner = below_upper - below_lower
    probability = torch.where(x < -0.999, below_upper, torch.where(x > 0.999, 1 - below_lower, inner))
    return -probability.clamp(min=1e-12).log()


class Objective:
    """A training objective: how a sample is noised, what the network predicts, and what samples the trained network.

    A subclass defines the traits below, `draw_timesteps`, `add_noise`, `target` and `scheduler_config`. One that adds a
    term to the loss extends `terms`.

    Attributes:
        prediction_type: What the network predicts, as the pipeline stores it: the value of the field of this name in
            diffusers' schedulers; "flow_prediction" or "flow_sample" for flow matching, whose schedulers have no such
            field.
        learns_variance: Whether the network predicts 2C channels, the second half of which sets the variance.
        has_snr: Whether `snr` is defined.
        num_train_timesteps: Number of timesteps T of the diffusion.
        density: How often each timestep is drawn; the class has its usual one, an instance may have another.
    """

    prediction_type: ClassVar[str]
    learns_variance: ClassVar[bool] = False
    has_snr: ClassVar[bool] = False
    num_train_timesteps: int
    density: TimestepDensity = TimestepDensity()

    def __init__(self, *, density: TimestepDensity | None = None) -> None:
        self.density = density or self.density

    @classmethod
    def fields_in_use(cls, beta_schedule: str | None = None) -> set[str]:
        """Return the fields of `Schedule` that have an effect on this objective.

        Args:
            beta_schedule: Key of `BETA_SCHEDULES`; None for the paper's.
        """
        return {"num_train_timesteps"}

    def draw_timesteps(self, uniform: Tensor) -> Tensor:
        """Map uniform numbers to timesteps. The caller draws the numbers and so can key them by sample.

        Args:
            uniform: Numbers in [0, 1); (B,).
        """
        raise NotImplementedError

    def add_noise(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return x_t, the sample at its timestep."""
        raise NotImplementedError

    def target(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return what the network should predict."""
        raise NotImplementedError

    def snr(self, timestep: Tensor) -> Tensor:
        """Return the signal-to-noise ratio a_t^2 / s_t^2 of each timestep, float32 (B,), if `has_snr`."""
        raise NotImplementedError

    def scheduler_config(self) -> dict[str, Any]:
        """Return the `scheduler_config.json` of the diffusers scheduler that samples the trained network."""
        raise NotImplementedError

    def terms(self, prediction: Tensor, x_0: Tensor, noise: Tensor, x_t: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """Return the terms of the loss by name, float32 (B,) each; the loss is their sum."""
        return {"mse": mean_flat((self.target(x_0, noise, timestep) - prediction) ** 2)}

    def __call__(
        self,
        model: Model,
        x_0: Tensor,
        *,
        timestep: Tensor,
        noise: Tensor,
        class_labels: Tensor | None,
        **model_kwargs: Any,
    ) -> dict[str, Tensor]:
        """Add noise to x_0, call the model, and measure its error.

        Args:
            model: Callable `(x_t, timestep, class_labels, **model_kwargs)`.
            x_0: Clean samples, float32; (B, C, ...).
            timestep: Timesteps from `draw_timesteps`; (B,).
            noise: Standard normal noise of x_0's shape.
            class_labels: Class of each sample, (B,); None for an unconditional model.
            **model_kwargs: Further arguments of the model, for example `drop_labels`.

        Returns:
            float32 tensors (B,): `loss`, and its terms `mse` and, from `HybridLoss`, `vb`.

        Raises:
            ValueError: If the number of channels of the prediction does not fit the objective.
        """
        x_t = self.add_noise(x_0, noise, timestep)  # (B, C, ...)
        prediction = predict(model, x_t, timestep, class_labels, **model_kwargs)  # (B, C or 2C, ...)
        self._check_channels(prediction, x_0)
        terms = self.terms(prediction, x_0, noise, x_t, timestep)
        return {"loss": reduce(add, terms.values()), **terms}

    def _check_channels(self, prediction: Tensor, x_0: Tensor) -> None:
        expected = x_0.shape[1] * (2 if self.learns_variance else 1)
        if prediction.shape[1] != expected:
            others = [name for name, each in OBJECTIVES.items() if each.learns_variance != self.learns_variance]
            raise ValueError(
                f"{type(self).__name__} needs {expected} channels, the model gives {prediction.shape[1]}: build the "
                f"model with learn_sigma={self.learns_variance}, or train it with another objective: "
                f"{', '.join(others)}"
            )


class DiscreteObjective(Objective):
    """An objective on T discrete timesteps, q(x_t | x_0) of Ho et al. 2020, eq. 4.

    Args:
        num_train_timesteps: Number of steps T.
        beta_schedule: Key of `BETA_SCHEDULES`; None is the paper's "linear".
        beta_start: First beta.
        beta_end: Last beta.
        trained_betas: T betas instead of a named schedule.
        rescale_betas_zero_snr: Whether the last step is pure noise, for "v_prediction" and "sample" only.
        density: How often each timestep is drawn: the density of t / T. Default: every timestep equally often.

    Raises:
        ValueError: If the schedule is unknown, or ends in pure noise while epsilon is predicted.
    """

    has_snr = True

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str | None = None,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        density: TimestepDensity | None = None,
    ) -> None:
        super().__init__(density=density)
        self.schedule = Schedule(
            num_train_timesteps, beta_schedule or "linear", beta_start, beta_end, trained_betas, rescale_betas_zero_snr
        )
        self.num_train_timesteps = self.schedule.num_steps
        if self.prediction_type == "epsilon" and self.schedule.ends_in_pure_noise:
            raise ValueError(
                "rescale_betas_zero_snr=True: at pure noise epsilon says nothing of x_0. "
                "Use the objective 'v_prediction' or 'sample', or a schedule that ends above zero."
            )

    @classmethod
    def fields_in_use(cls, beta_schedule: str | None = None) -> set[str]:
        """Return the fields of `Schedule` that have an effect: all, but for ends that the schedule does not take."""
        return Schedule.fields_in_use(beta_schedule or "linear")

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the objective whose trained network the given diffusers scheduler samples.

        Args:
            config: `scheduler.config`, or the content of `scheduler_config.json`.

        Raises:
            ValueError: If the scheduler expects another prediction.
        """
        expected = config.get("prediction_type", "epsilon")
        if expected != cls.prediction_type:
            raise ValueError(
                f"the scheduler has prediction_type={expected!r}, {cls.__name__} trains {cls.prediction_type!r}: "
                "change one of them"
            )
        return cls(**{name: config[name] for name in Schedule.FIELDS if name in config})

    def draw_timesteps(self, uniform: Tensor) -> Tensor:
        """Return floor(q(u) T), integers in 0..T-1, where q is the inverse distribution function of the density."""
        return (self.density.quantile(uniform) * self.num_train_timesteps).long()  # (B,)

    def add_noise(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Draw x_t given x_0 (Ho et al. 2020, eq. 4).

        Raises:
            ValueError: If the timesteps are not integers.
        """
        if timestep.is_floating_point():
            raise ValueError(f"timestep has dtype {timestep.dtype}: {type(self).__name__} takes integers")
        signal = self.schedule.at("sqrt_alpha_bar", timestep, x_0)
        sigma = self.schedule.at("sqrt_one_minus_alpha_bar", timestep, x_0)
        return signal * x_0 + sigma * noise  # (B, C, ...)

    def snr(self, timestep: Tensor) -> Tensor:
        """Return alpha_bar / (1 - alpha_bar) of each timestep, float32 (B,)."""
        return self.schedule.at("snr", timestep, timestep)  # (B,)

    def scheduler_config(self) -> dict[str, Any]:
        """DPM-Solver++ of second order: for a Gaussian and its exact model 25 steps err less than 50 of DDIM."""
        return {
            "_class_name": "DPMSolverMultistepScheduler",
            **self.schedule.config,
            "prediction_type": self.prediction_type,
            "timestep_spacing": "trailing" if self.schedule.ends_in_pure_noise else "linspace",
        }


class EpsilonLoss(DiscreteObjective):
    """L_simple: predict the noise, for models without learned variance (Ho et al. 2020, eq. 14)."""

    prediction_type = "epsilon"

    def target(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return noise


class SampleLoss(DiscreteObjective):
    """Predict x_0 itself."""

    prediction_type = "sample"

    def target(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return x_0


class VelocityLoss(DiscreteObjective):
    """Predict v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D)."""

    prediction_type = "v_prediction"

    def target(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        signal = self.schedule.at("sqrt_alpha_bar", timestep, x_0)
        sigma = self.schedule.at("sqrt_one_minus_alpha_bar", timestep, x_0)
        return signal * noise - sigma * x_0


class HybridLoss(EpsilonLoss):
    """The paper's loss: L_simple on epsilon plus L_vlb, in bits, on the learned variance.

    The model predicts 2C channels: epsilon, then v, which interpolates the log variance. The variational bound does not
    move epsilon, because the mean is detached. At T = 1000 this is the original's rescaled form: no factor stands
    before L_vlb. A model that predicts zeros has, for x_0 ~ N(0, 1) and over all t, mse 1.000 and vb 0.016 (1.99 at
    t = 0, 0.63 at t = 1). Source: Nichol & Dhariwal 2021, section 3.1, eq. 14-16.
    """

    learns_variance = True

    def terms(self, prediction: Tensor, x_0: Tensor, noise: Tensor, x_t: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """Return `mse` of epsilon, and `vb`, the variational bound of the variance."""
        eps, v = prediction.chunk(2, dim=1)  # (B, C, ...) each
        vb = self._bound(eps.detach(), v, x_0, x_t, timestep)  # (B,)
        return {**super().terms(eps, x_0, noise, x_t, timestep), "vb": vb}

    def _bound(self, eps: Tensor, v: Tensor, x_0: Tensor, x_t: Tensor, timestep: Tensor) -> Tensor:
        """L_{t-1} of the variational bound, or L_0 where t = 0, in bits per dimension (Ho et al. 2020, eq. 5)."""

        def at(table: str) -> Tensor:
            return self.schedule.at(table, timestep, x_t)  # (B, 1, ..., 1)

        predicted_x_0 = (x_t - at("sqrt_one_minus_alpha_bar") * eps) / at("sqrt_alpha_bar")  # (B, C, ...)
        mean = at("posterior_x_0") * predicted_x_0 + at("posterior_x_t") * x_t  # mu_theta
        true_mean = at("posterior_x_0") * x_0 + at("posterior_x_t") * x_t  # mu_tilde
        fraction = (v + 1) / 2  # not clamped
        log_variance = fraction * at("log_beta") + (1 - fraction) * at("log_beta_tilde")  # eq. 15

        kl = mean_flat(gaussian_kl(true_mean, at("log_beta_tilde"), mean, log_variance))  # (B,)
        nll = mean_flat(discretised_gaussian_nll(x_0, mean, 0.5 * log_variance))  # (B,)
        return torch.where(timestep == 0, nll, kl) / math.log(2)

    def scheduler_config(self) -> dict[str, Any]:
        """The original's ancestral sampler with the learned variance."""
        return {
            "_class_name": "DDPMScheduler",
            **self.schedule.config,
            "prediction_type": self.prediction_type,
            "variance_type": "learned_range",
            "timestep_spacing": "linspace",
            "clip_sample": False,
        }


class FlowLoss(Objective):
    """Predict the velocity noise - x_0 of the straight path (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023).

    The model sees sigma * num_train_timesteps, as it does under diffusers' flow matching schedulers.

    Args:
        num_train_timesteps: Timestep of pure noise. It is only a scale, because the path is continuous.
        beta_schedule: Ignored with a warning, because flow matching has no betas.
        density: How often each sigma is drawn; its shift is also that of the scheduler. Default: that of the class.
    """

    prediction_type = "flow_prediction"

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str | None = None,
        density: TimestepDensity | None = None,
    ) -> None:
        if beta_schedule is not None:
            warnings.warn(f"beta_schedule={beta_schedule!r} is ignored: flow matching has no betas", stacklevel=2)
        super().__init__(density=density)
        self.num_train_timesteps = num_train_timesteps

    def draw_timesteps(self, uniform: Tensor) -> Tensor:
        """Return q(u) T, continuous, where q is the inverse distribution function of the density."""
        return self.density.quantile(uniform) * self.num_train_timesteps  # (B,)

    def sigma(self, timestep: Tensor, x_0: Tensor) -> Tensor:
        """Return the noise level timestep / T in [0, 1], float32 (B, 1, ..., 1), with as many dimensions as x_0."""
        return (timestep.float() / self.num_train_timesteps).reshape(-1, *[1] * (x_0.dim() - 1))

    def add_noise(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Return the point of the straight path from x_0 to the noise at sigma = timestep / T."""
        sigma = self.sigma(timestep, x_0)  # (B, 1, ..., 1)
        return (1 - sigma) * x_0 + sigma * noise  # (B, C, ...)

    def target(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return noise - x_0

    def scheduler_config(self) -> dict[str, Any]:
        """Euler steps along the path, shifted as the density is."""
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": self.num_train_timesteps,
            "shift": self.density.shift,
        }


class FlowSampleLoss(FlowLoss):
    """Predict x_0 on the straight path, and measure the error of the velocity that follows (Li & He 2025, JiT).

    With x_t = (1 - sigma) x_0 + sigma noise, the velocity is (x_t - x_0) / sigma, so its error is that of x_0 over
    sigma; near data the divisor stays at 0.05. Most sigmas are drawn above 1/2: the paper's time is 1 - sigma, and its
    N(-0.8, 0.8^2) is this N(0.8, 0.8^2). Source: arXiv 2511.13720, sections 3 and 4, table 1.
    """

    prediction_type = "flow_sample"
    density = TimestepDensity("logit_normal", mean=0.8, std=0.8)
    least_sigma: ClassVar[float] = 0.05

    def target(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return x_0

    def terms(self, prediction: Tensor, x_0: Tensor, noise: Tensor, x_t: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """Return `mse` of the velocity."""
        sigma = self.sigma(timestep, x_0).clamp(min=self.least_sigma)  # (B, 1, ..., 1)
        return {"mse": mean_flat(((x_0 - prediction) / sigma) ** 2)}  # (B,)


OBJECTIVES: dict[str, type[Objective]] = {
    "hybrid": HybridLoss,  # the paper's; 2C channels
    "epsilon": EpsilonLoss,
    "v_prediction": VelocityLoss,
    "sample": SampleLoss,
    "flow": FlowLoss,
    "flow_sample": FlowSampleLoss,
}
