"""Min-SNR weighting: give the timesteps of little noise no more weight than those of more (arXiv 2303.09556).

The squared errors of the predictions of x_0, of epsilon and of v differ by factors of the signal-to-noise ratio
SNR(t) = alpha_bar / (1 - alpha_bar). Hang et al. 2023 weigh the error of x_0 by min(SNR, gamma), which is (section 3.4)

    x_0: min(SNR, gamma)    epsilon: min(SNR, gamma) / SNR    v: min(SNR, gamma) / (SNR + 1)

of the error that an objective measures. The variational bound of a learned variance keeps its weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from ...diffusion import Objective
from ..setting_row import row
from .technique import ForwardPass, Technique

# Prediction type -> weight of its squared error, given min(SNR, gamma) and SNR.
WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sample": lambda clipped, snr: clipped,
    "epsilon": lambda clipped, snr: clipped / snr,
    "v_prediction": lambda clipped, snr: clipped / (snr + 1),
}


@dataclass
class MinSNRSettings:
    """The settings of min-SNR weighting."""

    min_snr_gamma: float | None = row(
        None,
        "Gamma of min-SNR weighting, the highest weight of a timestep (arXiv 2303.09556, which uses 5). "
        "Default: no weighting.",
        at_least=1e-3,
        card="gamma of min-SNR weighting",
    )


class MinSNR(Technique):
    """Weigh each sample's squared error by its timestep.

    Args:
        objective: Objective with a signal-to-noise ratio.
        gamma: Highest weight, in units of the error of x_0.

    Raises:
        ValueError: If the objective has no signal-to-noise ratio, or predicts something that the paper does not treat.
    """

    Settings = MinSNRSettings

    def __init__(self, objective: Objective, gamma: float) -> None:
        if not objective.has_snr or objective.prediction_type not in WEIGHTS:
            raise ValueError(
                f"min_snr_gamma={gamma} does not fit {type(objective).__name__}: min-SNR weighting is defined for "
                f"predictions of {', '.join(WEIGHTS)} on a noise schedule; leave it out, or choose another objective"
            )
        self.objective, self.gamma = objective, gamma
        self.weight = WEIGHTS[objective.prediction_type]

    @classmethod
    def build(cls, settings: Any, objective: Objective, model: Any) -> Self | None:
        return None if settings.min_snr_gamma is None else cls(objective, settings.min_snr_gamma)

    def weigh(self, forward: ForwardPass) -> Tensor:
        snr = self.objective.snr(forward.draws.timestep)  # (B,)
        return self.weight(snr.clamp(max=self.gamma), snr)
