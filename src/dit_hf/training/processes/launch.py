"""How the processes of a training start, agree with each other, and let one of them work for all."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedType,
    LoggerType,
    ProjectConfiguration,
    broadcast_object_list,
    is_deepspeed_available,
)

from ...extras import how_to_install
from ..settings import TrainSettings
from . import deepspeed_zero
from .sharding import keep_float32_between_blocks, shard_on_cpu, start_zero
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
            installed, or if the launcher's configuration contradicts the settings or is not supported.
    """
    check_installed(settings.report_to)
    accelerator = Accelerator(
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        log_with=None if settings.report_to == "none" else settings.report_to,
        project_config=ProjectConfiguration(settings.output_dir, logging_dir=str(Path(settings.output_dir) / "logs")),
    )
    check_num_processes(accelerator.num_processes)
    if accelerator.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu(accelerator)
    if deepspeed_zero.is_asked_for():
        start_zero(accelerator, max_grad_norm=settings.max_grad_norm, torch_compile=settings.torch_compile)
    check_accelerator(accelerator, settings.gradient_accumulation_steps)
    if accelerator.distributed_type == DistributedType.FSDP:
        keep_float32_between_blocks(accelerator)
    stop_with_launcher()
    torch.set_num_threads(settings.num_threads or share_of_cores())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.allow_tf32
    batch_size = settings.train_batch_size * settings.gradient_accumulation_steps * accelerator.num_processes
    num_processes, num_threads = accelerator.num_processes, torch.get_num_threads()
    logger.info(
        f"{num_processes} process{'es' if num_processes > 1 else ''} on {accelerator.device}, "
        f"{num_threads} thread{'s' if num_threads > 1 else ''} each, "
        f"mixed precision: {accelerator.mixed_precision}, {batch_size} images a step"
    )
    return accelerator


def check_installed(report_to: str) -> None:
    """Refuse a launcher or a tracker that needs a package that is not installed.

    Args:
        report_to: Name of the tracker, or "none".

    Raises:
        ValueError: If a package is missing, with what to install or to take instead.
    """
    if deepspeed_zero.is_asked_for() and not is_deepspeed_available():
        raise ValueError(
            f"DeepSpeed is not installed: {how_to_install('deepspeed')}, or launch with --config_file "
            "examples/accelerate/fsdp2_keep_weights.yaml, which splits what ZeRO-2 does, or fsdp2.yaml, which splits "
            "what ZeRO-3 does"
        )
    available = ["none", *(tracker.value for tracker in get_available_trackers())]
    if report_to not in available:
        known = {tracker.value for tracker in LoggerType} - {"all"}
        fault = f"not installed: {how_to_install(report_to)}, or" if report_to in known else "unknown:"
        raise ValueError(f"report_to={report_to!r} is {fault} choose one of {', '.join(available)}")


def check_num_processes(num_processes: int) -> None:
    """Refuse fewer processes than the launcher was asked for.

    torchrun sets WORLD_SIZE. `accelerate launch --num_processes 2` on a machine without GPU sets MASTER_ADDR, and then
    starts a single process without a rank.

    Args:
        num_processes: Number of processes that have started.

    Raises:
        ValueError: If there should be more, with the commands that start them.
    """
    by_accelerate = "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ
    asked = int(os.environ.get("WORLD_SIZE", 2 if by_accelerate else 1))
    if num_processes < asked:
        raise ValueError(
            f"{num_processes} process started where {asked} or more were asked for: use `torchrun --nproc_per_node N` "
            "or `accelerate launch --multi_gpu --num_processes N`, which start N also without GPUs"
        )


def share_of_cores() -> int:
    """Return the number of threads for this process: the user's OMP_NUM_THREADS, or its share of the cores.

    A value of 1 does not count, because `accelerate launch` sets it on every process.
    """
    by_user = int(os.environ.get("OMP_NUM_THREADS", 1))
    return by_user if by_user > 1 else max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_accelerator(accelerator: Accelerator, gradient_accumulation_steps: int) -> None:
    """Refuse a launcher's configuration that contradicts the settings, or that this package does not support.

    Args:
        accelerator: Accelerator, made with the launcher's configuration.
        gradient_accumulation_steps: Number of accumulation steps in the settings.

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
    if accelerator.gradient_accumulation_steps != gradient_accumulation_steps:
        raise ValueError(
            f"the launcher sets gradient_accumulation_steps={accelerator.gradient_accumulation_steps}, the settings "
            f"{gradient_accumulation_steps}: set it in one place"
        )


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
