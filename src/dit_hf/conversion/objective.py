"""What the weights of others were trained to predict, as far as a file says it.

Weights of other objectives have the keys and shapes of DiT's, and would give noise for images without an error. So the
arguments that a training stores beside its weights are read. Weights of SiT are loaded as such where the file is
certain to hold them, or where the user says so; all others are refused by name.
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
OF_SIT = {"path_type": "Linear", "prediction": "velocity"}  # the arguments of SiT's published weights
OF_FLOW = {"path_type": ("linear",), "prediction": ("velocity", "v")}  # those that SiT and REPA may have, in lower case
REMEDY = (
    "For velocities on the linear path of SiT or REPA pass trained_as='sit' or 'repa', on the command line "
    "--trained-as. Sample other weights with the code that trained them, or pass any_objective=True to from_original "
    "to load the weights alone"
)


def is_certainly_sit(content: Mapping[str, Any], name: str, model: DiTModel) -> bool:
    """Whether a file holds weights of SiT on its linear path that predict its velocity.

    The arguments of its training say so; or there are none, the name is that of the authors' files, and the half of the
    output channels that SiT's training does not read was left at zero.

    Args:
        content: Content of the file.
        name: Name of the file; empty if the content was in memory.
        model: Model with the weights.
    """
    arguments = dict(_arguments(content))
    if "model" in arguments or OF_SIT.keys() & arguments.keys():
        says_sit = str(arguments.get("model")).startswith("SiT")
        return says_sit and all(arguments.get(key) == value for key, value in OF_SIT.items())
    return name.startswith("SiT-") and has_untrained_variance(model)


def check_name(name: str) -> None:
    """Refuse a file whose name says SiT, where nothing in it says so for certain.

    Raises:
        CheckpointError: If the name does.
    """
    if name.lower().startswith("sit"):
        raise CheckpointError(
            f"{name} is named as SiT's weights are, and nothing in it says what its training was: pass "
            "trained_as='sit', 'repa' or 'dit', on the command line --trained-as"
        )


def check_flow_arguments(content: Mapping[str, Any], trained_as: str) -> None:
    """Refuse weights that the user takes for SiT's or REPA's, if the arguments in the file say something else.

    Raises:
        CheckpointError: If they do; the message names the arguments.
    """
    found = []
    for name, value in _arguments(content):
        text = str(value).lower() if isinstance(value, str | int | float) else ""
        if (name in OF_FLOW and text not in OF_FLOW[name]) or (name == "model" and text.startswith("dit")):
            found.append(f"{name}={value!r}")
    if found:
        raise CheckpointError(
            f"its training had {', '.join(found)}, and trained_as={trained_as!r} means velocities on the linear path: "
            "leave trained_as out, or sample these weights with the code that trained them"
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
