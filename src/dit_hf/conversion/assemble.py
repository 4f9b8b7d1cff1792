"""A `DiTModel` from tensors that are read one at a time, so that converting takes one copy of the weights."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ..configuration_dit import DiTConfig
from ..modeling_dit import DiTModel
from ..weight_files import WRAPPERS, strip_wrappers
from .stored import CheckpointError, StoredTensor, readable


def empty_model(config: DiTConfig) -> DiTModel:
    """Build a model without memory for its weights."""
    with torch.device("meta"):
        return DiTModel(config)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the model inside of what torch.compile, data parallelism, checkpointing or FSDP put around it."""
    for name in WRAPPERS:
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return unwrap(inner)
    return module


def unwrap_dit(module: nn.Module) -> DiTModel:
    """Return the DiT inside of a wrapper.

    Raises:
        ValueError: If the model inside is of another class.
    """
    model = unwrap(module)
    if getattr(getattr(model, "config", None), "model_type", None) != DiTConfig.model_type:
        raise ValueError(f"{type(model).__name__} is not a DiTModel")
    return model  # type: ignore[return-value]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by their keys, without the names of wrappers around its layers."""
    return {strip_wrappers(key): tensor for key, tensor in model.state_dict().items()}


def assemble(config: DiTConfig, tensors: Mapping[str, StoredTensor]) -> DiTModel:
    """Fill a model with tensors in their own precision, fp8 in bfloat16.

    Args:
        config: Architecture of the model.
        tensors: Tensors by the model's keys; each is read once.

    Raises:
        CheckpointError: If a key is missing or left over, or a tensor has another shape, is no floating point number
            or is not finite.
    """
    model = empty_model(config)
    parameters = dict(model.named_parameters())
    check_keys(parameters.keys(), tensors.keys())
    for key, parameter in parameters.items():
        if tensors[key].shape != tuple(parameter.shape):
            raise CheckpointError(f"{key} has the shape {tensors[key].shape}, this model's is {tuple(parameter.shape)}")
        if not tensors[key].dtype.is_floating_point:
            raise CheckpointError(f"{key} has the type {tensors[key].dtype}: weights are floating point numbers")
    for key, parameter in parameters.items():
        try:
            tensor = tensors[key].read()
        except CheckpointError as error:
            raise CheckpointError(f"{key}: {error}") from None
        if tensor.dtype.itemsize == 1:  # fp8 stores weights, and nothing computes with them
            tensor = tensor.to(torch.bfloat16)  # exact
        low, high = torch.aminmax(tensor)  # NaN and infinity show in these, without a mask's memory
        if not (low.isfinite() and high.isfinite()):
            raise CheckpointError(f"{key} holds values that are not finite: the training had diverged")
        module, _, name = key.rpartition(".")
        filled = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        setattr(model.get_submodule(module), name, filled)
    return model.eval()


def check_keys(expected: Collection[str], present: Collection[str]) -> None:
    """Refuse keys that are missing or left over.

    Raises:
        CheckpointError: If there are such keys; the message names the first few of them.
    """
    missing, left_over = set(expected) - set(present), set(present) - set(expected)
    for keys, verb in ((missing, "lacks"), (left_over, "has, of another model,")):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise CheckpointError(f"the checkpoint {verb} {', '.join(map(readable, sorted(keys)[:5]))}{more}")
