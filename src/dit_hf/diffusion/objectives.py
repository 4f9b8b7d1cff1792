"""Training objectives: what a model is asked to predict, and how far it is from it, per sample.

`OBJECTIVES` is the table. `HybridLoss` is the DiT paper's (arXiv 2212.09748, section 3.1): L_simple plus L_vlb of
Nichol & Dhariwal 2021 (arXiv 2102.09672). A model is any callable `(x_t, timestep, class_labels, **kwargs)` that
returns a tensor or an object with the attribute `sample`. Losses are float32 whatever the model computes in.
Legend: B batch, C channels, T training steps.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from .schedule import Schedule

Model = Callable[..., Any]


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all dimensions but the first."""
    return x.flatten(1).mean(1)  # (B,)


def predict(model: Model, x_t: Tensor, timestep: Tensor, class_labels: Tensor | None, **model_kwargs: Any) -> Tensor:
    """Call the model and return its answer as float32."""
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
    """What all objectives share: the timesteps of training and what is saved beside the model.

    Subclasses define `prediction_type`, the field of the same name in diffusers' schedulers ("flow_prediction" for flow
    matching, whose schedulers have no such field).
    """

    prediction_type: str
    num_train_timesteps: int

    def draw_timesteps(self, uniform: Tensor) -> Tensor:
        """Map uniform numbers to timesteps; the randomness stays with the caller, who keys it by sample.

        Args:
            uniform: (B,) in [0, 1).
        """
        raise NotImplementedError

    def scheduler_config(self) -> dict[str, Any]:
        """Return the `scheduler_config.json` of the diffusers scheduler that samples what was trained."""
        raise NotImplementedError

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
        """Noise x_0, ask the model, and measure.

        Args:
            model: a callable `(x_t, timestep, class_labels, **model_kwargs)`.
            x_0: (B, C, ...) clean samples, float32.
            timestep: (B,) from `draw_timesteps`.
            noise: standard normal, of x_0's shape.
            class_labels: (B,) ids, or None for an unconditional model.
            model_kwargs: handed to the model, for example `drop_labels`.

        Returns:
            float32 tensors (B,): `loss`, `mse` and, from `HybridLoss`, `vb`.

        Raises:
            ValueError: when the model's channels do not fit the objective.
        """
        raise NotImplementedError


class DiscreteObjective(Objective):
    """An objective on T discrete timesteps, q(x_t | x_0) of Ho et al. 2020, eq. 4.

    Args:
        num_train_timesteps: the number of steps T.
        beta_schedule: a key of `BETA_SCHEDULES`; None is the paper's "linear".
        beta_start: the first beta.
        beta_end: the last beta.
        trained_betas: T betas instead of a named schedule.
        rescale_betas_zero_snr: make the last step pure noise, for "v_prediction" and "sample" only.

    Raises:
        ValueError: for an unknown schedule, or one that ends in pure noise where epsilon is predicted.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str | None = None,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
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
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the objective whose model the given diffusers scheduler samples.

        Args:
            config: `scheduler.config`, or the content of `scheduler_config.json`.

        Raises:
            ValueError: when the scheduler expects another prediction.
        """
        expected = config.get("prediction_type", "epsilon")
        if expected != cls.prediction_type:
            raise ValueError(
                f"the scheduler has prediction_type={expected!r}, {cls.__name__} trains {cls.prediction_type!r}: "
                "change one of them"
            )
        return cls(**{name: config[name] for name in Schedule.FIELDS if name in config})

    def draw_timesteps(self, uniform: Tensor) -> Tensor:
        """Return floor(u T), integers in 0..T-1."""
        return (uniform * self.num_train_timesteps).long()  # (B,)

    def add_noise(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Draw x_t given x_0 (Ho et al. 2020, eq. 4).

        Raises:
            ValueError: for timesteps that are not integers.
        """
        if timestep.is_floating_point():
            raise ValueError(f"timestep has dtype {timestep.dtype}: {type(self).__name__} takes integers")
        signal = self.schedule.at("sqrt_alpha_bar", timestep, x_0)
        sigma = self.schedule.at("sqrt_one_minus_alpha_bar", timestep, x_0)
        return signal * x_0 + sigma * noise  # (B, C, ...)

    def scheduler_config(self) -> dict[str, Any]:
        """DPM-Solver++ of second order: for a Gaussian and its exact model 25 steps err less than 50 of DDIM."""
        return {
            "_class_name": "DPMSolverMultistepScheduler",
            **self.schedule.config,
            "prediction_type": self.prediction_type,
            "timestep_spacing": "trailing" if self.schedule.ends_in_pure_noise else "linspace",
        }


class _MeanSquaredError(DiscreteObjective):
    """Mean squared error to one target; no learned variance."""

    def target(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        raise NotImplementedError

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
        x_t = self.add_noise(x_0, noise, timestep)  # (B, C, ...)
        answer = predict(model, x_t, timestep, class_labels, **model_kwargs)  # (B, C, ...)
        _check_channels(self, answer, x_0.shape[1])
        mse = mean_flat((self.target(x_0, noise, timestep) - answer) ** 2)  # (B,)
        return {"loss": mse, "mse": mse}


class EpsilonLoss(_MeanSquaredError):
    """L_simple: predict the noise, for models without learned variance (Ho et al. 2020, eq. 14)."""

    prediction_type = "epsilon"

    def target(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return noise


class SampleLoss(_MeanSquaredError):
    """Predict x_0 itself."""

    prediction_type = "sample"

    def target(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return x_0


class VelocityLoss(_MeanSquaredError):
    """Predict v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D)."""

    prediction_type = "v_prediction"

    def target(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        signal = self.schedule.at("sqrt_alpha_bar", timestep, x_0)
        sigma = self.schedule.at("sqrt_one_minus_alpha_bar", timestep, x_0)
        return signal * noise - sigma * x_0


class HybridLoss(DiscreteObjective):
    """The paper's loss: L_simple on epsilon plus L_vlb, in bits, on the learned variance.

    The model answers 2C channels: epsilon, then v, which interpolates the log variance. The variational bound does not
    move epsilon: its mean is detached. At T = 1000 this is the original's rescaled form: no factor stands before L_vlb.
    A model that answers zeros has, for x_0 ~ N(0, 1) and over all t, mse 1.000 and vb 0.016 (1.99 at t = 0, 0.63 at
    t = 1). Source: Nichol & Dhariwal 2021, section 3.1, eq. 14-16.
    """

    prediction_type = "epsilon"

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
        x_t = self.add_noise(x_0, noise, timestep)  # (B, C, ...)
        answer = predict(model, x_t, timestep, class_labels, **model_kwargs)  # (B, 2C, ...)
        _check_channels(self, answer, 2 * x_0.shape[1])
        eps, v = answer.chunk(2, dim=1)  # (B, C, ...) each
        mse = mean_flat((noise - eps) ** 2)  # (B,)
        vb = self._bound(eps.detach(), v, x_0, x_t, timestep)  # (B,)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

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
        num_train_timesteps: the timestep of pure noise; only a scale, for the path is continuous.
        beta_schedule: nothing to set here; a value is ignored with a warning.
    """

    prediction_type = "flow_prediction"

    def __init__(self, num_train_timesteps: int = 1000, beta_schedule: str | None = None) -> None:
        if beta_schedule is not None:
            warnings.warn(f"beta_schedule={beta_schedule!r} is ignored: flow matching has no betas", stacklevel=2)
        self.num_train_timesteps = num_train_timesteps

    def draw_timesteps(self, uniform: Tensor) -> Tensor:
        """Return u T, continuous."""
        return uniform * self.num_train_timesteps  # (B,)

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
        sigma = (timestep.float() / self.num_train_timesteps).reshape(-1, *[1] * (x_0.dim() - 1))  # (B, 1, ..., 1)
        x_t = (1 - sigma) * x_0 + sigma * noise  # (B, C, ...)
        answer = predict(model, x_t, timestep, class_labels, **model_kwargs)  # (B, C, ...)
        _check_channels(self, answer, x_0.shape[1])
        mse = mean_flat((noise - x_0 - answer) ** 2)  # (B,)
        return {"loss": mse, "mse": mse}

    def scheduler_config(self) -> dict[str, Any]:
        """Euler steps along the path, unshifted."""
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": self.num_train_timesteps,
            "shift": 1.0,
        }


def _check_channels(objective: Objective, answer: Tensor, expected: int) -> None:
    if answer.shape[1] != expected:
        learns_variance = isinstance(objective, HybridLoss)
        raise ValueError(
            f"{type(objective).__name__} needs {expected} channels, the model gives {answer.shape[1]}: "
            f"build the model with learn_sigma={learns_variance}"
            + ("" if learns_variance else ", or train it with the objective 'hybrid'")
        )


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "hybrid": HybridLoss,  # the paper's; 2C channels
    "epsilon": EpsilonLoss,
    "v_prediction": VelocityLoss,
    "sample": SampleLoss,
    "flow": FlowLoss,
}
