"""ZeRO-2 and ZeRO-3 by DeepSpeed: the engine's configuration, and its weights and optimiser as torch names them.

DeepSpeed's engine clips gradients and takes the steps by itself, and skips a step whose gradient is not finite. Weights
stay float32, as everywhere in this package: bfloat16 is an autocast of DeepSpeed.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from .shards import cut_part, local_part, make_whole

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, in the names of torch


def is_asked_for() -> bool:
    """Return whether the launcher asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def uses_zero(accelerator: Accelerator) -> bool:
    """Return whether DeepSpeed's engine takes the steps."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def configure(accelerator: Accelerator, *, train_batch_size: int, max_grad_norm: float | None) -> None:
    """Hand batch size, clipping and precision to DeepSpeed, before Accelerate makes the engine.

    Args:
        accelerator: Accelerator that will make the engine.
        train_batch_size: Number of images of a batch on one process.
        max_grad_norm: Norm that gradients are clipped to; None for no clipping.
    """
    config = accelerator.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = train_batch_size
    config["gradient_clipping"] = max_grad_norm or 0.0
    if accelerator.mixed_precision == "bf16":
        config["bf16"] = {"enabled": False}
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}


def poison(loss: Tensor) -> Tensor:
    """Return the loss, with a gradient that is not finite if the loss is not: DeepSpeed then skips the step."""
    return loss * torch.where(loss.isfinite(), 1.0, torch.nan)


def gather_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the whole weights, on the CPU. Every process has to call this."""
    return {
        name: make_whole(parameter, local_part(parameter)).detach().cpu()
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def set_weights(engine: Any, whole: dict[str, Tensor]) -> None:
    """Overwrite the weights.

    Args:
        engine: Engine of DeepSpeed.
        whole: Whole weights by name, on every process.
    """
    for name, parameter in engine.module.named_parameters():
        value = whole[name].to(parameter.device)
        local_part(parameter).copy_(cut_part(parameter, value))
        if parameter.numel():  # DeepSpeed keeps small parameters whole, besides their parts
            parameter.copy_(value)
    engine.optimizer.refresh_fp32_params()


def gather_optimizer(engine: Any) -> dict[str, Any]:
    """Return the optimiser's state in the form that torch has for a whole model. Every process has to call this."""
    from deepspeed.utils import safe_get_full_optimizer_state

    steps = begin_optimizer(engine)
    state = {
        name: {"step": steps[0].cpu().clone()}
        | {key: safe_get_full_optimizer_state(parameter, key).cpu() for key in MOMENTS}
        for name, parameter in trained_parameters(engine)
    }
    groups = [{**group, "params": list(state)} for group in engine.optimizer.optimizer.param_groups]
    return {"state": state, "param_groups": groups}


@torch.no_grad()
def set_optimizer(engine: Any, whole: dict[str, Tensor]) -> None:
    """Overwrite the optimiser's state.

    Args:
        engine: Engine of DeepSpeed.
        whole: Whole tensors by `name/key`, where `gather_optimizer` has `state[name][key]`, on every process.
    """
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    steps = begin_optimizer(engine)
    for name, parameter in trained_parameters(engine):
        for key in MOMENTS:
            value = whole[f"{name}/{key}"].to(parameter.device)
            if hasattr(parameter, "ds_tensor"):
                safe_set_local_optimizer_state(parameter, cut_part(parameter, value), key)
            else:
                safe_set_full_optimizer_state(parameter, value, key)
    first, _ = trained_parameters(engine)[0]
    for step in steps:
        step.copy_(whole[f"{first}/step"])


def trained_parameters(engine: Any) -> list[tuple[str, Tensor]]:
    """Return names and tensors of the parameters that are trained."""
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def begin_optimizer(engine: Any) -> list[Tensor]:
    """Give AdamW the state that it otherwise makes in its first step, and return its counts of steps, all equal."""
    zero = engine.optimizer
    is_split = engine.zero_optimization_partition_weights()
    flats = zero.fp32_partitioned_groups_flat if is_split else zero.single_partition_of_fp32_groups
    for flat in flats:
        if flat not in zero.optimizer.state:
            zeros = {key: torch.zeros_like(flat) for key in MOMENTS}
            zero.optimizer.state[flat] = {"step": torch.zeros((), device=flat.device), **zeros}
    if not is_split:
        zero._lazy_init_hp_params_optimizer_state()
    return [zero.optimizer.state[flat]["step"] for flat in flats]
