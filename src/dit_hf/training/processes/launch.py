"""How the processes of a training start, agree with each other, and let one of them work for all."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.state import PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
    LoggerType,
    ProjectConfiguration,
    broadcast_object_list,
    is_deepspeed_available,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.integrations import unset_hf_deepspeed_config

from ..settings import TrainSettings
from . import deepspeed_zero
from .signals import stop_with_launcher

logger = get_logger("dit_hf.training")

DISTRIBUTED_TYPES = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
)


def start_training_accelerator(settings: TrainSettings) -> Accelerator:
    """Start Accelerate on this process, with the threads that are its share of the cores.

    Raises:
        ValueError: If the launcher was asked for more processes than have started, if DeepSpeed or the tracker is not
            installed, or as in `check_accelerator`.
    """
    if deepspeed_zero.is_asked_for() and not is_deepspeed_available():
        raise ValueError(
            "DeepSpeed is not installed: run `pip install deepspeed`, or launch with --config_file "
            "examples/accelerate/fsdp2_keep_weights.yaml, which splits what ZeRO-2 does, or fsdp2.yaml, which splits "
            "what ZeRO-3 does"
        )
    available = ["none", *(tracker.value for tracker in get_available_trackers())]
    if settings.report_to not in available:
        known = {tracker.value for tracker in LoggerType} - {"all"}
        fault = (
            f"not installed: run `pip install {settings.report_to}`, or" if settings.report_to in known else "unknown:"
        )
        raise ValueError(f"report_to={settings.report_to!r} is {fault} choose one of {', '.join(available)}")
    accelerator = Accelerator(
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        log_with=None if settings.report_to == "none" else settings.report_to,
        project_config=ProjectConfiguration(settings.output_dir, logging_dir=str(Path(settings.output_dir) / "logs")),
    )
    # torchrun sets WORLD_SIZE. `accelerate launch --num_processes 2` on a machine without GPU sets MASTER_ADDR, and
    # then starts a single process without a rank.
    by_accelerate = "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ
    asked = int(os.environ.get("WORLD_SIZE", 2 if by_accelerate else 1))
    if accelerator.num_processes < asked:
        raise ValueError(
            f"{accelerator.num_processes} process started where {asked} or more were asked for: use `torchrun "
            "--nproc_per_node N` or `accelerate launch --multi_gpu --num_processes N`, which start N also without GPUs"
        )
    if accelerator.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu(accelerator)
    if deepspeed_zero.is_asked_for():
        start_zero(settings, accelerator)
    check_accelerator(settings, accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        keep_float32_between_blocks(accelerator)
    stop_with_launcher()
    # `accelerate launch` sets OMP_NUM_THREADS=1 on every process.
    cores = available_cores()
    by_user = int(os.environ.get("OMP_NUM_THREADS", 1))
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    torch.set_num_threads(settings.num_threads or (by_user if by_user > 1 else share))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.allow_tf32
    logger.info(
        f"{accelerator.num_processes} processes on {accelerator.device}, {torch.get_num_threads()} threads each, "
        f"mixed precision: {accelerator.mixed_precision}, {global_batch_size(settings, accelerator)} images a step"
    )
    return accelerator


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_accelerator(settings: TrainSettings, accelerator: Accelerator) -> None:
    """Refuse a launcher's configuration that contradicts the settings, or that this package does not support.

    Raises:
        ValueError: If the kind of parallelism is not supported, or the number of accumulation steps is another.
    """
    if accelerator.distributed_type not in DISTRIBUTED_TYPES:
        raise ValueError(
            f"distributed_type={accelerator.distributed_type} is not supported: launch on one process, with "
            "--multi_gpu, or with a file of examples/accelerate"
        )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("FSDP of version 1 is not supported: set fsdp_version: 2, as examples/accelerate/fsdp2.yaml")
    if accelerator.gradient_accumulation_steps != settings.gradient_accumulation_steps:
        raise ValueError(
            f"the launcher sets gradient_accumulation_steps={accelerator.gradient_accumulation_steps}, the settings "
            f"{settings.gradient_accumulation_steps}: set it in one place"
        )


def global_batch_size(settings: TrainSettings, accelerator: Accelerator) -> int:
    """Return the number of images of one optimiser step, over all processes."""
    return settings.train_batch_size * settings.gradient_accumulation_steps * accelerator.num_processes


def shard_on_cpu(accelerator: Accelerator) -> None:
    """Let Accelerate split the model by FSDP2 on CPUs too, as torch can over gloo; Accelerate looks for GPUs first."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # from the launcher's environment
    set_distributed_type(accelerator, DistributedType.FSDP)


def keep_float32_between_blocks(accelerator: Accelerator) -> None:
    """Let FSDP2 cast the weights alone to half precision.

    Accelerate would have FSDP2 cast the inputs of each block as well (the residual stream and the timesteps of flow
    matching), and reduce the gradients in half precision.
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if accelerator.mixed_precision in dtypes:
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=dtypes[accelerator.mixed_precision], reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def set_distributed_type(accelerator: Accelerator, kind: DistributedType) -> None:
    """Let Accelerate prepare models for a kind of parallelism, in both places where it keeps the kind."""
    accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = kind


def start_zero(settings: TrainSettings, accelerator: Accelerator) -> None:
    """Let Accelerate use DeepSpeed on CPUs too, and refuse a configuration that changes the steps or was never tried.

    Raises:
        ValueError: If the launcher's configuration contradicts the settings, or is not supported.
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        plugin = DeepSpeedPlugin()  # from the launcher's environment
        plugin.set_mixed_precision(accelerator.mixed_precision)
        plugin.select(_from_accelerator_state=True)
        accelerator.state.deepspeed_plugins = plugin
        set_distributed_type(accelerator, DistributedType.DEEPSPEED)
    unset_hf_deepspeed_config()  # with it, transformers would split every model that it loads
    plugin = accelerator.deepspeed_plugin
    refused = {
        f"zero_stage={plugin.zero_stage}": plugin.zero_stage not in (2, 3),
        "offload": plugin.hf_ds_config.is_offload(),
        "fp16": accelerator.mixed_precision == "fp16",
        "torch_compile": settings.torch_compile,
    }
    for what in (name for name, is_set in refused.items() if is_set):
        raise ValueError(f"DeepSpeed with {what} is not supported: launch as examples/accelerate/deepspeed_zero2.yaml")
    if plugin.gradient_clipping not in ("auto", settings.max_grad_norm):
        raise ValueError(
            f"the launcher sets gradient_clipping={plugin.gradient_clipping}, the settings max_grad_norm="
            f"{settings.max_grad_norm}: set it in one place"
        )


def splits_weights(accelerator: Accelerator) -> bool:
    """Return whether Accelerate splits a model over the processes."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.deepspeed_plugin.zero_stage == 3
    return accelerator.distributed_type == DistributedType.FSDP


def any_process(accelerator: Accelerator, flags: Sequence[bool]) -> list[bool]:
    """Return for each flag whether it is set on any process. Every process has to call this."""
    if accelerator.num_processes == 1:
        return list(flags)
    sums = accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=accelerator.device), "sum")
    return [value > 0 for value in sums.tolist()]


def on_main_process(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """Call a function on the main process alone, and return its result on every process.

    Raises:
        ValueError: If the function raises it; on every process, so that none waits for another.
        OSError: If the function raises it; on every process.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [function(), None]
        except (ValueError, OSError) as error:
            outcome = [None, error]
    if accelerator.num_processes > 1:
        outcome = broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
