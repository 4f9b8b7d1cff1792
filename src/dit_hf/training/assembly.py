"""Assembling a training: its objective and techniques, and what it changes, from the model to the learning rate.

Every training of this package, that of `dit_hf.training.run` and those of a study, is put together here, in an order
that matters: an average copies the model before Accelerate changes the model's forward, or after FSDP2 has split it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler

from ..diffusion import OBJECTIVES, Objective
from .adamw_8bit import make_adamw_8bit
from .ema import EMA
from .muon import Muon, block_matrices
from .processes import deepspeed_zero
from .processes.sharding import splits_weights
from .saving.state import TrainingState
from .settings import TrainSettings
from .techniques import TECHNIQUES, Techniques


@dataclass
class Assembly:
    """A model that is ready to be trained.

    Args:
        state: What checkpoints save and restore, unwrapped.
        model: Model as Accelerate has prepared it, which the loop calls.
        optimizer: Optimiser as Accelerate has prepared it.
    """

    state: TrainingState
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer


def make_objective(settings: TrainSettings, schedule: Mapping[str, Any] | None = None) -> Objective:
    """Make the objective that settings name.

    Args:
        settings: Settings of a training.
        schedule: Fields of `Schedule` that hold where the settings say nothing.
    """
    arguments: dict[str, Any] = {**(schedule or {}), **settings.schedule, "density": settings.density}
    return OBJECTIVES[settings.objective](**arguments)


def build_techniques(settings: TrainSettings, objective: Objective, model: Any) -> Techniques:
    """Build the techniques that settings switch on, before the optimiser is made, which trains their modules.

    Args:
        settings: Settings of a training.
        objective: Objective of the training.
        model: The `DiTModel`, on the CPU.

    Raises:
        ValueError: If a technique does not fit the objective or the model.
    """
    built = {
        name: TECHNIQUES[name].build(own_settings, objective, model)
        for name, own_settings in settings.techniques.items()
    }
    return Techniques({name: each for name, each in built.items() if each is not None}, settings.seed)


def assemble_as_set(settings: TrainSettings, accelerator: Accelerator, model: Any, techniques: Techniques) -> Assembly:
    """Call `assemble` with what settings say.

    Args:
        settings: Settings of a training.
        accelerator: Accelerator that says where and how the model is trained.
        model: A `DiTModel`.
        techniques: Techniques that `build_techniques` has built.
    """
    return assemble(
        accelerator,
        model,
        learning_rate=settings.learning_rate,
        optimizer=settings.optimizer,
        muon_learning_rate=settings.muon_learning_rate,
        ema_decays=settings.ema_decays,
        lr_scheduler=settings.lr_scheduler,
        lr_warmup_steps=settings.lr_warmup_steps,
        max_train_steps=settings.max_train_steps,
        adam_betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        compile_blocks=settings.torch_compile,
        techniques=techniques,
    )


def assemble(
    accelerator: Accelerator,
    model: Any,
    *,
    learning_rate: float,
    optimizer: str = "adamw",
    muon_learning_rate: float = 0.006,
    ema_decays: Sequence[float],
    lr_scheduler: str = "constant",
    lr_warmup_steps: int = 0,
    max_train_steps: int | None = None,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    compile_blocks: bool = False,
    techniques: Techniques | None = None,
) -> Assembly:
    """Make the averages, the optimiser and the learning rate of a model, and let Accelerate prepare them.

    Args:
        accelerator: Accelerator that says where and how the model is trained.
        model: A `DiTModel`, which is moved to the device and set to train mode. Its frozen parameters stay frozen.
        learning_rate: Learning rate of AdamW after the warm-up.
        optimizer: Optimiser: "adamw" for all parameters; "adamw_8bit" for the same with moments of 8 bits; or "muon"
            for the matrices of attention and feed-forward in the blocks, beside AdamW for everything else.
        muon_learning_rate: Learning rate of Muon after the warm-up.
        ema_decays: Decays of the averages, the pipeline's first.
        lr_scheduler: Name of a schedule of diffusers' `get_scheduler`.
        lr_warmup_steps: Number of steps in which the learning rates rise from 0.
        max_train_steps: Number of steps of the whole training, if the schedule needs it.
        adam_betas: Decays of AdamW's two moments.
        weight_decay: Weight decay of the optimiser.
        compile_blocks: Whether to compile the blocks, each of which has the same graph.
        techniques: Techniques, whose modules are trained with the model, but not averaged.

    Raises:
        ValueError: If a technique has a module, and FSDP2 or DeepSpeed would have to split it; if DeepSpeed would have
            to split matrices for Muon, or call blocks that a technique changes; or as in `make_optimizer`.
    """
    if optimizer == "adamw_8bit" and (deepspeed_zero.uses_zero(accelerator) or splits_weights(accelerator)):
        raise ValueError(
            "optimizer='adamw_8bit' was never tried with FSDP or DeepSpeed, which split its moments: launch without "
            "them, or set optimizer to adamw"
        )
    if optimizer == "muon" and deepspeed_zero.uses_zero(accelerator):
        raise ValueError(
            "optimizer='muon' needs whole matrices, and DeepSpeed splits them as flat lists of numbers: launch with "
            "FSDP2, as examples/accelerate/fsdp2.yaml, or set optimizer to adamw"
        )
    changing = [] if techniques is None else techniques.that_change_blocks
    if changing and deepspeed_zero.uses_zero(accelerator):
        raise ValueError(
            f"the technique {changing[0]} changes how blocks are called, which was never tried with DeepSpeed: switch "
            "it off, or launch with FSDP2, as examples/accelerate/fsdp2.yaml"
        )
    modules = {} if techniques is None else techniques.modules
    if modules and (splits_weights(accelerator) or deepspeed_zero.uses_zero(accelerator)):
        raise ValueError(
            f"the technique {min(modules)} has a module of its own, which neither FSDP nor DeepSpeed holds: "
            "switch it off, or launch without them"
        )
    for module in (model, *modules.values()):
        module.to(accelerator.device).train()
    ema = None if splits_weights(accelerator) else EMA(model, ema_decays)  # before Accelerate changes the forward
    model._no_split_modules = [type(model.blocks[0]).__name__]  # FSDP refuses names of designs that the model lacks
    if compile_blocks:
        for block in model.blocks:
            block.compile()
    made = make_optimizer(
        optimizer,
        model,
        [each for module in modules.values() for each in module.parameters() if each.requires_grad],
        learning_rate=learning_rate,
        muon_learning_rate=muon_learning_rate,
        betas=adam_betas,
        weight_decay=weight_decay,
    )
    schedule = get_scheduler(lr_scheduler, made, num_warmup_steps=lr_warmup_steps, num_training_steps=max_train_steps)
    prepared_model, prepared_optimizer, *networks = accelerator.prepare(model, made, *modules.values())
    for name, network in zip(modules, networks, strict=True):
        techniques.active[name].network = network
    unwrapped = accelerator.unwrap_model(prepared_model)
    state = TrainingState(accelerator, unwrapped, ema or EMA(unwrapped, ema_decays), made, schedule, modules)
    return Assembly(state, prepared_model, prepared_optimizer)


def make_optimizer(
    name: str,
    model: Any,
    more: Sequence[torch.nn.Parameter] = (),
    *,
    learning_rate: float,
    muon_learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Make the optimiser of all parameters of a model that are not frozen.

    Args:
        name: Name of the optimiser: "adamw", "adamw_8bit" or "muon".
        model: A `DiTModel`.
        more: Further parameters, which AdamW trains.
        learning_rate: Learning rate of AdamW.
        muon_learning_rate: Learning rate of Muon.
        betas: Decays of AdamW's two moments.
        weight_decay: Weight decay of both.

    Raises:
        ImportError: If torchao is needed and not installed.
        ValueError: If the name is unknown, or Muon is asked for a model whose matrices are all frozen.
    """
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    everything = [*trained.values(), *more]
    if name == "adamw_8bit":
        return make_adamw_8bit(everything, learning_rate=learning_rate, betas=betas, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(everything, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
    if name != "muon":
        raise ValueError(f"optimizer={name!r} is unknown: choose adamw, adamw_8bit or muon")
    stacked = block_matrices(model)
    if not stacked:
        raise ValueError("optimizer='muon' finds no matrix to train, all blocks are frozen: set optimizer to adamw")
    by_count = {count: [trained[each] for each in stacked if stacked[each] == count] for count in set(stacked.values())}
    return Muon(
        [*(each for name, each in trained.items() if name not in stacked), *more],
        dict(sorted(by_count.items())),
        learning_rate=learning_rate,
        muon_learning_rate=muon_learning_rate,
        betas=betas,
        weight_decay=weight_decay,
    )
