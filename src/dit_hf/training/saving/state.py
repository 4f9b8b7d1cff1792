"""All that a training changes, as one object that checkpoints are taken from and restored to.

The main process alone writes and reads files: it gathers whole tensors from all processes, and sends them back. So a
checkpoint depends neither on the number of processes nor on whether FSDP2 or DeepSpeed had split the model.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..adamw_8bit import from_plain, quantizes, to_plain
from ..ema import EMA
from ..muon import Muon
from ..processes import deepspeed_zero
from .checkpoint import Snapshot

MODEL, AVERAGE = "model.safetensors", "ema.safetensors"


@dataclass
class TrainingState:
    """The objects that a checkpoint saves and restores, all unwrapped.

    `modules` are those of techniques, by name: the optimiser trains them with the model, and nothing averages them.
    """

    accelerator: Accelerator
    model: torch.nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR
    modules: Mapping[str, torch.nn.Module] = field(default_factory=dict)

    @property
    def engine(self) -> Any:
        """Engine of DeepSpeed, which holds the weights and the optimiser; None without DeepSpeed."""
        return self.accelerator.deepspeed_engine_wrapped.engine if deepspeed_zero.uses_zero(self.accelerator) else None

    @property
    def average_files(self) -> dict[float, str]:
        """File name of each average, by its decay; the first is the one that the pipeline gets."""
        first, *further = self.ema.averages
        return {first: AVERAGE, **{decay: f"ema_{decay}.safetensors" for decay in further}}

    @property
    def module_files(self) -> dict[str, str]:
        """File name of each technique's module, by the technique's name."""
        return {name: f"technique_{name}.safetensors" for name in self.modules}

    @property
    def trained(self) -> torch.nn.Module:
        """Module of all that the optimiser trains: the model's parts under their own names, beside those of techniques.

        torch names the states of an optimiser by the parameters of one module.
        """
        if not self.modules:
            return self.model
        whole = torch.nn.Module()
        for name, part in self.model.named_children():
            whole.add_module(name, part)
        for name, parameter in self.model.named_parameters(recurse=False):
            whole.register_parameter(name, parameter)
        whole.add_module("techniques", torch.nn.ModuleDict(self.modules))
        return whole

    def snapshot(self) -> Snapshot:
        """Return everything, whole and on the CPU of the main process. Every process has to call this."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = {
            MODEL: deepspeed_zero.gather_weights(self.model)
            if self.engine
            else get_model_state_dict(self.model, options=options)
        }
        for decay, file in self.average_files.items():
            weights[file] = self.ema.gather(decay, self.model)
        for name, file in self.module_files.items():
            weights[file] = get_model_state_dict(self.modules[name], options=options)
        held: dict[str, Any] = (
            deepspeed_zero.gather_optimizer(self.engine)
            if self.engine
            else get_optimizer_state_dict(self.trained, self.optimizer, options=options)
        )
        optimizer = {
            "optimizer": {**held, "state": {name: to_plain(each) for name, each in held.get("state", {}).items()}},
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }
        return Snapshot(weights, optimizer)

    def restore(self, path: Path | None, *, may_start_averages: bool = False) -> None:
        """Overwrite everything with what a checkpoint holds. Every process has to call this.

        The optimiser's settings stay those of this run: they differ from the checkpoint's only where a change was
        allowed.

        Args:
            path: Folder of a whole checkpoint, on the main process; None on the other processes.
            may_start_averages: Whether an average that the checkpoint lacks may start as a copy of its weights.

        Raises:
            ValueError: If the checkpoint lacks an average, and it may not start as a copy; or if it holds the modules
                of other techniques.
        """
        self._check_modules(path)
        missing = [file for file in self.average_files.values() if path and not (path / file).is_file()]
        missing = self._share(missing)
        if missing and not may_start_averages:
            raise ValueError(
                f"the checkpoint has no {missing[0]}: set --ema_decay and --extra_ema_decays as before, or let the "
                "average start from the checkpoint's weights with --allow_config_change"
            )
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.accelerator.num_processes > 1)
        weights = load_file(path / MODEL) if path else {}
        if self.engine:
            deepspeed_zero.set_weights(self.engine, self._share_tensors(weights))
        else:
            set_model_state_dict(self.model, weights, options=options)
        for name, file in self.module_files.items():
            set_model_state_dict(self.modules[name], load_file(path / file) if path else {}, options=options)
        for decay, file in self.average_files.items():
            if file in missing:
                warnings.warn(f"{file} is missing: this average starts from the checkpoint's weights", stacklevel=2)
            tensors = load_file(path / (MODEL if file in missing else file)) if path else {}
            self.ema.set(decay, self.model, self._share_tensors(tensors))
        saved = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True) if path else {}
        self._restore_optimizer(saved.get("optimizer", {}), options)
        small = self._share({name: saved.get(name) for name in ("lr_scheduler", "scaler")})
        self._restore_learning_rate(small["lr_scheduler"])
        if self.accelerator.scaler and small["scaler"]:
            self.accelerator.scaler.load_state_dict(small["scaler"])

    def _check_modules(self, path: Path | None) -> None:
        held = self._share(sorted(file.name for file in path.glob("technique_*.safetensors")) if path else None)
        wanted = sorted(self.module_files.values())
        if held != wanted:
            raise ValueError(
                f"the checkpoint holds the modules {held} of techniques, this run has {wanted}: a technique with a "
                "module trains from the first step or not at all. Start anew from the pipeline with --init_from"
            )

    def _restore_optimizer(self, saved: dict[str, Any], options: StateDictOptions) -> None:
        tensors = {
            f"{name}/{key}": value for name, state in saved.get("state", {}).items() for key, value in state.items()
        }
        keys = self._share(sorted({key.rpartition("/")[2] for key in tensors}))
        is_of_muon, has_8_bits = "momentum_buffer" in keys, any(key.endswith(".codes") for key in keys)
        if (is_of_muon, has_8_bits) != (isinstance(self.optimizer, Muon), quantizes(self.optimizer)):
            raise ValueError(
                "the checkpoint is of another optimizer: a training is continued by the optimizer that it began with. "
                "Set it back, or start anew from the pipeline with --init_from"
            )
        if self.engine:
            return deepspeed_zero.set_optimizer(self.engine, self._share_tensors(tensors))
        if quantizes(self.optimizer):  # torch cannot send its moments from one process to another
            state: dict[str, Any] = {}
            for path, value in self._share_tensors(tensors).items():
                name, _, key = path.rpartition("/")
                state.setdefault(name, {})[key] = value
            groups = self._share(saved.get("param_groups"))
            saved = {"state": {name: from_plain(each) for name, each in state.items()}, "param_groups": groups}
            options = StateDictOptions(full_state_dict=True)
        of_settings = {"betas", "weight_decay", "initial_lr"}
        before = [{name: group[name] for name in of_settings & group.keys()} for group in self.optimizer.param_groups]
        set_optimizer_state_dict(self.trained, self.optimizer, saved, options=options)
        for group, values in zip(self.optimizer.param_groups, before, strict=True):
            group.update(values)

    def _restore_learning_rate(self, saved: dict[str, Any]) -> None:
        base_lrs = self.lr_scheduler.base_lrs
        self.lr_scheduler.load_state_dict({**saved, "base_lrs": base_lrs})
        step = self.lr_scheduler.last_epoch
        rates = [base * factor(step) for base, factor in zip(base_lrs, self.lr_scheduler.lr_lambdas, strict=True)]
        self.lr_scheduler._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):  # a compiled step reads this tensor
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _share(self, value: Any) -> Any:
        return broadcast_object_list([value])[0] if self.accelerator.num_processes > 1 else value

    def _share_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Send tensors of the main process to all, one at a time, as together they may be as large as the model."""
        if self.accelerator.num_processes == 1:
            return tensors
        kinds = self._share({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        shared = {}
        for name, (shape, dtype) in kinds.items():
            empty = torch.empty(shape, dtype=dtype, device=self.accelerator.device)
            tensor = tensors[name].to(self.accelerator.device) if name in tensors else empty
            torch.distributed.broadcast(tensor, src=0)
            shared[name] = tensor.cpu()
        return shared
