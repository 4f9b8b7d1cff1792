"""Starting a training from one command: in this process, or in as many as Accelerate would start."""

import importlib
import logging
import os
from collections.abc import Sequence

MODULE = "dit_hf.training.run"


def launch(arguments: Sequence[str], num_processes: int | None = None, module: str = MODULE) -> int:
    """Train, or run another module with a `main`, and return the exit code.

    Args:
        arguments: Arguments of the trainer: `[FILE.yaml] [--setting value ...]`.
        num_processes: Number of processes; one, which is this one, if None. Several are started as by `accelerate
            launch`, whose default configuration file (of `accelerate config`) decides between DDP, FSDP and DeepSpeed.
        module: Full name of the module.

    Raises:
        ValueError: If the number is below 1.
    """
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"num_processes={num_processes}: start 1 or more")
    if num_processes is None or num_processes == 1:
        importlib.import_module(module).main(list(arguments))
        return 0
    return _launch_several(arguments, num_processes, module)


def _launch_several(arguments: Sequence[str], num_processes: int, module: str) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # each process has said in one line why it ended
    launcher = ["--num_processes", str(num_processes), "--main_process_port", "0", "--quiet", "--module", module]
    if not _splits_by_default():
        launcher = ["--multi_gpu", *launcher]  # without it, a machine without GPUs starts a single process
    try:
        launch_command(launch_command_parser().parse_args([*launcher, *arguments]))
    except ChildFailedError:
        return 1
    return 0


def _splits_by_default() -> bool:
    """Return whether the configuration file of `accelerate config` asks for FSDP or DeepSpeed."""
    from accelerate.commands.config import default_config_file, load_config_from_file
    from accelerate.utils import DistributedType

    if not os.path.isfile(default_config_file):
        return False
    return load_config_from_file(None).distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
