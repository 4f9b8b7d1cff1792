"""What the weights of others were trained to predict, as far as a file says it.

Weights of other objectives have the keys and shapes of DiT's, and would give noise for images without an error. SiT
(Ma et al. 2024, arXiv 2401.08740) is such a model: with data x and noise eps it sees

    x_t = t x + (1 - t) eps,  t in [0, 1],        and predicts x - eps

while flow matching here has x_t = (1 - sigma) x + sigma eps, sees 1000 sigma, and predicts eps - x. The sign and the
direction of time could be put into the weights: cos and sin of (1 - sigma) f are a rotation of cos and sin of sigma f,
for each frequency f. The factor 1000 cannot: frequencies 1, ..., 1e-4 of SiT's t are 1e-3, ..., 1e-7 of ours, where the
timestep embedding here ends at 1e-4. So SiT is refused, and not converted inexactly.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..modeling_dit import DiTModel
from .stored import CheckpointError

# Argument of a training -> its values that mean what DiT was trained for: to predict the noise, under linear betas.
EXPECTED: dict[str, tuple[str, ...]] = {
    "prediction": ("noise", "epsilon", "eps"),
    "prediction_type": ("noise", "epsilon", "eps"),
    "pred_type": ("noise", "epsilon", "eps"),
    "objective": ("noise", "epsilon", "eps", "pred_noise", "hybrid"),
    "parameterization": ("noise", "epsilon", "eps"),
    "predict_xstart": ("false",),
    "predict_v": ("false",),
    "noise_schedule": ("linear",),
    "beta_schedule": ("linear",),
    "num_train_timesteps": ("1000",),
    "diffusion_steps": ("1000",),
    "path_type": (),  # an interpolant of SiT
}
PLACES = ("args", "config", "cfg", "opts", "hparams", "hyper_parameters")  # of the arguments in a checkpoint
OTHER_MODELS = ("sit",)  # beginnings of `args.model`, in lower case
REMEDY = (
    "Sample these weights with the code that trained them, or pass any_objective=True to from_original to load the "
    "weights alone"
)


def check_arguments(content: Mapping[str, Any]) -> None:
    """Refuse weights that were trained for another objective than DiT's, if the arguments in the file say so.

    Raises:
        CheckpointError: If they do; the message names the arguments.
    """
    contradictions = []
    for name, value in _arguments(content):
        text = str(value)[:60] if isinstance(value, str | int | float) else ""
        is_other_model = name == "model" and text.lower().startswith(OTHER_MODELS)
        if is_other_model or (text and name in EXPECTED and text.lower() not in EXPECTED[name]):
            contradictions.append(f"{name}={text!r}")
    if contradictions:
        raise CheckpointError(
            f"its training had {', '.join(contradictions)}: the weights do not predict what DiT predicts, the noise "
            f"at timesteps 0 to 999 of linear betas. {REMEDY}"
        )


def check_variance(model: DiTModel) -> None:
    """Refuse weights with a variance that was never trained, as SiT's, which drops this half of its output.

    The last layer is zero at the start, and stays zero where no loss reads it.

    Raises:
        CheckpointError: If the variance is zero and the prediction is not.
    """
    if has_untrained_variance(model):
        raise CheckpointError(
            "the second half of its output channels was never trained, as in the weights of SiT, which have the keys "
            f"and shapes of DiT's: final_layer.linear is 0 there. {REMEDY}"
        )


def has_untrained_variance(model: DiTModel) -> bool:
    """Whether the model's last layer is zero for the variance, and only there."""
    config = model.config
    if not config.learn_sigma:
        return False
    weight = model.final_layer.linear.weight  # (p p 2C, D), channel fastest
    mean, variance = weight.view(config.patch_size**2, 2, config.in_channels, -1).unbind(1)
    return bool(mean.any()) and not variance.any()


def _arguments(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of a training: attributes of a namespace, or a dictionary, also one level deeper."""
    for place in PLACES:
        values = content.get(place)
        values = values if isinstance(values, Mapping) else getattr(values, "__dict__", {})
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from ((str(inner).replace("-", "_"), v) for inner, v in value.items())
            else:
                yield str(name).replace("-", "_"), value
