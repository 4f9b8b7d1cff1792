"""Noise schedules: the betas of T steps, and every table that follows from the betas.

Source: Ho et al. 2020 (arXiv 2006.11239), Nichol & Dhariwal 2021 (arXiv 2102.09672). Names and values are those of
diffusers' schedulers, so that sampling uses exactly the schedule of the training. Tables are computed in float64.
Legend: T training steps, B batch.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..betas import BETA_FIELDS


def linear_betas(num_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """Betas in equal steps, the schedule of the DiT paper (Ho et al. 2020, section 4)."""
    return torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)  # (T,)


def scaled_linear_betas(num_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """Betas whose square roots go in equal steps, the schedule of latent diffusion (Rombach et al. 2022)."""
    return torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64) ** 2  # (T,)


def cosine_betas(num_steps: int) -> Tensor:
    """Betas of a squared cosine for alpha_bar, at most 0.999; a first and a last beta cannot be chosen.

    Source: Nichol & Dhariwal 2021, eq. 17.
    """
    time = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)  # (T,)


def rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that the last step is pure noise (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])  # (T,)


# The parameters of each function say which of beta_start and beta_end have an effect.
BETA_SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": linear_betas,  # the paper's: alpha_bar of the last of 1000 steps is 4.04e-5
    "scaled_linear": scaled_linear_betas,  # with 0.00085 .. 0.012 and 1000 steps: 4.66e-3
    "squaredcos_cap_v2": cosine_betas,  # with 1000 steps: 2.43e-9
}


class Schedule:
    """The betas of one diffusion process and the tables that the losses read, float64.

    Args:
        num_train_timesteps: Number of steps T, at least 2.
        beta_schedule: Key of `BETA_SCHEDULES`.
        beta_start: First beta.
        beta_end: Last beta.
        trained_betas: T betas in (0, 1], instead of the four arguments above.
        rescale_betas_zero_snr: Whether the last step is made pure noise.

    Raises:
        ValueError: If the schedule is unknown, or a beta lies outside (0, 1].
    """

    FIELDS = ("num_train_timesteps", *BETA_FIELDS)

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        if trained_betas is not None:
            betas = torch.as_tensor(trained_betas, dtype=torch.float64)
            num_train_timesteps = len(betas)
        else:
            ends = {"beta_start": beta_start, "beta_end": beta_end}
            used = {name: value for name, value in ends.items() if name in self.fields_in_use(beta_schedule)}
            betas = BETA_SCHEDULES[beta_schedule](num_train_timesteps, **used)
        if len(betas) < 2:
            raise ValueError(f"num_train_timesteps={len(betas)}: a diffusion has at least 2 steps")
        if not ((betas > 0) & (betas <= 1)).all():
            raise ValueError(f"betas from {betas.min():g} to {betas.max():g} lie outside (0, 1]: change their range")
        self.betas = rescale_to_zero_snr(betas) if rescale_betas_zero_snr else betas
        self.config = {
            "num_train_timesteps": num_train_timesteps,
            "beta_schedule": beta_schedule,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "trained_betas": None if trained_betas is None else [float(beta) for beta in betas],
            "rescale_betas_zero_snr": rescale_betas_zero_snr,
        }
        self._fill_tables()

    @classmethod
    def fields_in_use(cls, beta_schedule: str) -> set[str]:
        """Return the fields that have an effect on a named schedule; the cosine takes neither first nor last beta.

        Raises:
            ValueError: If the schedule is unknown.
        """
        if beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"beta_schedule={beta_schedule!r} is unknown: choose from {', '.join(BETA_SCHEDULES)}")
        parameters = inspect.signature(BETA_SCHEDULES[beta_schedule]).parameters
        return {name for name in cls.FIELDS if name not in ("beta_start", "beta_end") or name in parameters}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the schedule that a diffusers scheduler samples; other fields of its configuration are not read.

        Args:
            config: `scheduler.config`, or the content of `scheduler_config.json`.
        """
        return cls(**{name: config[name] for name in cls.FIELDS if name in config})

    def _fill_tables(self) -> None:
        self._copies: dict[tuple[str, torch.device], Tensor] = {}
        alpha_bar = torch.cumprod(1 - self.betas, 0)
        alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        variance = self.betas * (1 - alpha_bar_prev) / (1 - alpha_bar)  # beta_tilde, Ho et al. 2020, eq. 7
        # beta_tilde is 0 at t = 0, where the logarithm of t = 1 stands instead (Nichol & Dhariwal 2021, section 3.1)
        self.log_beta_tilde = torch.cat([variance[1:2], variance[1:]]).log()
        self.log_beta = self.betas.log()
        self.alpha_bar = alpha_bar
        self.sqrt_alpha_bar = alpha_bar.sqrt()
        self.sqrt_one_minus_alpha_bar = (1 - alpha_bar).sqrt()
        self.snr = alpha_bar / (1 - alpha_bar)  # signal-to-noise ratio, Kingma et al. 2021 (arXiv 2107.00630), eq. 1
        # mu_tilde = x_0 * posterior_x_0 + x_t * posterior_x_t, Ho et al. 2020, eq. 7
        self.posterior_x_0 = self.betas * alpha_bar_prev.sqrt() / (1 - alpha_bar)
        self.posterior_x_t = (1 - alpha_bar_prev) * (1 - self.betas).sqrt() / (1 - alpha_bar)

    @property
    def num_steps(self) -> int:
        """Number of training steps T."""
        return len(self.betas)

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether alpha_bar of the last step is 0."""
        return self.alpha_bar[-1].item() == 0

    def at(self, table: str, timestep: Tensor, like: Tensor) -> Tensor:
        """Read one table at each sample's timestep, as float32 that broadcasts against `like`.

        Args:
            table: Name of a table of this schedule, such as `"sqrt_alpha_bar"`.
            timestep: Integers in 0..T-1; (B,).
            like: Tensor that gives device and number of dimensions; (B, ...).
        """
        key = (table, like.device)
        if key not in self._copies:  # copied once: a copy in each step would make the host wait for the device
            self._copies[key] = getattr(self, table).float().to(like.device)
        return self._copies[key][timestep].reshape(-1, *[1] * (like.dim() - 1))  # (B, 1, ..., 1)
