"""Compare speed and memory of a training step: this package, a plain PyTorch loop, and diffusers' model.

    python benchmarks/training.py     # on a CPU a tiny size and S/4, on CUDA XL/2 at batch 128 and 256
    python benchmarks/training.py --size DiT-S/4 --batch 16 --rounds 3

All trainers start from the same weights (their outputs are compared before anything is timed) and take the same
batches in turn. The speed of a trainer is the time of `plain` divided by its time in the same round; the table holds
the median over the rounds and the range. On a CPU, times are CPU seconds divided by the number of threads. Peak memory
is measured in a process of its own for each trainer.

- `plain`: the model and the loop written from the paper with PyTorch's defaults: eager, no autocast, AdamW that is not
  fused, an average that a Python loop over the parameters updates.
- `diffusers`: `DiTTransformer2DModel` with `EMAModel` under Accelerate.
- `dit-hf`: `dit_hf.training.loop` as `examples/train_dit.py` runs it; with `compiled` also `--torch_compile`, with
  `bf16` also `--mixed_precision bf16`, with `muon` also `--optimizer muon`.
"""

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import accelerate
import diffusers
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dit_hf import DiTConfig, DiTModel
from dit_hf.conversion import to_diffusers
from dit_hf.diffusion import HybridLoss
from dit_hf.training.assembly import make_optimizer
from dit_hf.training.ema import EMA
from dit_hf.training.loop import Draws, LatentBatch, train_steps

TINY = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 4, "sample_size": 16}
# diffusers' model has these values built in; with them all three models compute the same function.
AS_DIFFUSERS = {"timestep_freq_shift": 1.0, "mlp_norm_eps": 1e-5}
LEARNING_RATE, EMA_DECAY = 1e-4, 0.9999
CASES = {"cpu": [("tiny", 32), ("DiT-S/4", 16)], "cuda": [("DiT-XL/2", 128), ("DiT-XL/2", 256)]}


def config_of(size: str) -> DiTConfig:
    return DiTConfig(**TINY, **AS_DIFFUSERS) if size == "tiny" else DiTConfig.from_name(size, **AS_DIFFUSERS)


# --- the plain loop ------------------------------------------------------------------------------------------------


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, eps=AS_DIFFUSERS["mlp_norm_eps"], elementwise_affine=False)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        h = self.norm1(x) * (1 + scale_a.unsqueeze(1)) + shift_a.unsqueeze(1)
        batch, tokens, width = h.shape
        q, k, v = self.attn["qkv"](h).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + gate_a.unsqueeze(1) * self.attn["proj"](h)
        h = self.norm2(x) * (1 + scale_m.unsqueeze(1)) + shift_m.unsqueeze(1)
        return x + gate_m.unsqueeze(1) * self.mlp["fc2"](F.gelu(self.mlp["fc1"](h), approximate="tanh"))


class PlainDiT(nn.Module):
    """adaLN-Zero as in the paper, under the keys of the authors' checkpoints."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config, width, patch = config, config.hidden_size, config.patch_size
        rows, columns = config.grid_height_width
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(config.in_channels, width, patch, patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, width), requires_grad=False)
        mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.t_embedder = nn.ModuleDict({"mlp": mlp})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(config.num_classes + 1, width)})
        self.blocks = nn.ModuleList(
            PlainBlock(width, config.num_attention_heads) for _ in range(config.num_hidden_layers)
        )
        self.final_layer = nn.ModuleDict(
            {
                "linear": nn.Linear(width, patch**2 * config.out_channels),
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
            }
        )
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, drop_labels: Tensor) -> Tensor:
        frequencies = torch.exp(
            -math.log(10000) * torch.arange(128, device=x.device) / (128 - self.config.timestep_freq_shift)
        )
        angles = t[:, None].float() * frequencies[None]
        t_embedding = self.t_embedder["mlp"](torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        y = torch.where(drop_labels, self.config.num_classes, y)
        c = t_embedding + self.y_embedder["embedding_table"](y)
        x = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_layer["adaLN_modulation"](c).chunk(2, dim=1)
        x = self.final_layer["linear"](self.final_norm(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1))
        (rows, columns), patch = self.config.grid_height_width, self.config.patch_size
        x = torch.einsum("nhwpqc->nchpwq", x.reshape(len(x), rows, columns, patch, patch, -1))
        return x.reshape(len(x), -1, rows * patch, columns * patch)


# --- the three trainers --------------------------------------------------------------------------------------------


@dataclass
class Batch:
    x_0: Tensor
    class_labels: Tensor
    draws: Draws


Steps = Callable[[], None]


@dataclass
class Trainer:
    """A model with its loop.

    `step(batch)` is one optimiser step; `update()` is the part of it that comes after the gradients.
    """

    predict: Callable[..., Tensor]  # (x, t, y, drop_labels) -> prediction
    parameters: list[nn.Parameter]
    step: Callable[[Batch], None]
    update: Steps


def plain(config: DiTConfig, weights: dict[str, Tensor], device: torch.device) -> Trainer:
    model = PlainDiT(config).to(device)
    model.load_state_dict(weights)
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.0, foreach=False
    )
    objective = HybridLoss()

    def update() -> None:
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                average[name].mul_(EMA_DECAY).add_(parameter.data, alpha=1 - EMA_DECAY)

    def step(batch: Batch) -> None:
        timestep, noise, drop = batch.draws
        losses = objective(
            model, batch.x_0, timestep=timestep, noise=noise, class_labels=batch.class_labels, drop_labels=drop
        )
        optimizer.zero_grad()
        losses["loss"].mean().backward()
        update()

    return Trainer(model.train(), list(model.parameters()), step, update)


class DropOutside(nn.Module):
    """diffusers' model with labels dropped before it is called: by itself it drops other labels in each block."""

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes

    def forward(self, x: Tensor, t: Tensor, y: Tensor, drop_labels: Tensor) -> Tensor:
        y = torch.where(drop_labels, self.num_classes, y)
        return self.model(x, timestep=t, class_labels=y).sample


def with_diffusers(config: DiTConfig, weights: dict[str, Tensor], device: torch.device) -> Trainer:
    ours = DiTModel(config)
    ours.load_state_dict(weights)
    accelerator = start_inference_accelerator("no", device)
    theirs = to_diffusers(ours).to(device)
    theirs.train()
    for block in theirs.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    model = DropOutside(theirs, config.num_classes)
    average = EMAModel(theirs.parameters(), decay=EMA_DECAY)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    objective = HybridLoss()

    def update() -> None:
        optimizer.step()
        average.step(theirs.parameters())

    def step(batch: Batch) -> None:
        timestep, noise, drop = batch.draws
        losses = objective(
            prepared, batch.x_0, timestep=timestep, noise=noise, class_labels=batch.class_labels, drop_labels=drop
        )
        accelerator.backward(losses["loss"].mean())
        update()
        optimizer.zero_grad()

    return Trainer(prepared, list(theirs.parameters()), step, update)


def ours(
    config: DiTConfig,
    weights: dict[str, Tensor],
    device: torch.device,
    *,
    precision: str = "no",
    compiled: bool = False,
    optimizer_name: str = "adamw",
) -> Trainer:
    model = DiTModel(config)
    model.load_state_dict(weights)
    accelerator = start_inference_accelerator(precision, device)
    model.to(device).train()
    average = EMA(model, [EMA_DECAY])
    if compiled:
        for block in model.blocks:
            block.compile()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(
        optimizer_name,
        model,
        learning_rate=LEARNING_RATE,
        muon_learning_rate=LEARNING_RATE,
        betas=(0.9, 0.999),
        weight_decay=0.0,
    )
    lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    waiting: list[Batch] = []

    def batches() -> Iterator[LatentBatch]:
        while True:
            batch = waiting[0]
            yield LatentBatch(batch.x_0, batch.class_labels, [(0, 0)] * len(batch.x_0), (0, 0))

    records = train_steps(
        accelerator, prepared, wrapped, lr_scheduler, average, HybridLoss(), batches(), lambda _: waiting[0].draws
    )

    def step(batch: Batch) -> None:
        waiting[:] = [batch]
        next(records)

    def update() -> None:
        optimizer.step()
        average.update(model)

    def predict(x: Tensor, t: Tensor, y: Tensor, drop_labels: Tensor) -> Tensor:
        return prepared(x, t, y, drop_labels=drop_labels).sample

    return Trainer(predict, trained, step, update)


def start_inference_accelerator(precision: str, device: torch.device) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)  # one process, several trainers
    GradientState._reset_state()
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu")


TRAINERS: dict[str, Callable[..., Trainer]] = {
    "dit-hf": ours,
    "plain": plain,
    "diffusers": with_diffusers,
    "dit-hf compiled": lambda *arguments: ours(*arguments, compiled=True),
    "dit-hf muon": lambda *arguments: ours(*arguments, optimizer_name="muon"),
    "dit-hf bf16": lambda *arguments: ours(*arguments, precision="bf16"),
    "dit-hf bf16 compiled": lambda *arguments: ours(*arguments, precision="bf16", compiled=True),
}
DEFAULT = {
    "cpu": ["plain", "diffusers", "dit-hf", "dit-hf muon", "dit-hf compiled", "dit-hf bf16"],
    "cuda": ["plain", "diffusers", "dit-hf", "dit-hf muon", "dit-hf bf16", "dit-hf bf16 compiled"],
}


# --- measuring -----------------------------------------------------------------------------------------------------


def make_batches(config: DiTConfig, size: int, count: int, device: torch.device) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    shape = (size, config.in_channels, *config.sample_height_width)
    return [
        Batch(
            torch.randn(shape, generator=generator).to(device),
            torch.randint(config.num_classes, (size,), generator=generator).to(device),
            Draws(
                torch.randint(1000, (size,), generator=generator).to(device),
                torch.randn(shape, generator=generator).to(device),
                (torch.rand(size, generator=generator) < 0.1).to(device),
            ),
        )
        for _ in range(count)
    ]


def make_weights(config: DiTConfig) -> dict[str, Tensor]:
    """Return weights that are nowhere zero, so that every layer changes the outputs that are compared."""
    torch.manual_seed(0)
    model = DiTModel(config)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.state_dict()


def check_same_outputs(trainers: dict[str, Trainer], batch: Batch) -> None:
    """Assert that all models give the same outputs: float32 within rounding, bf16 within its eight bits."""
    with torch.no_grad():
        arguments = (batch.x_0[:4], batch.draws.timestep[:4], batch.class_labels[:4], batch.draws.drop_labels[:4])
        outputs = {name: trainer.predict(*arguments).float() for name, trainer in trainers.items()}
    expected = next(iter(outputs.values()))
    for name, output in outputs.items():
        tolerance = 5e-2 if "bf16" in name else 1e-3
        torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance * float(expected.std()))


def seconds(work: Steps, device: torch.device) -> float:
    """Time a function: on a GPU by the clock, on a CPU in CPU seconds, which leave out what other programs use."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return (time.process_time() - start) / torch.get_num_threads()
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(size: str, batch_size: int, names: list[str], rounds: int, steps: int, device: torch.device) -> None:
    """Print the table of one model size and one batch size."""
    config = config_of(size)
    weights = make_weights(config)
    batches = make_batches(config, batch_size, steps, device)
    trainers = {name: TRAINERS[name](config, weights, device) for name in names}
    check_same_outputs(trainers, batches[0])
    for trainer in trainers.values():  # warm up, compile
        trainer.step(batches[0])
    times: dict[str, list[float]] = {name: [] for name in names}
    updates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, trainer in trainers.items():

            def run(trainer: Trainer = trainer) -> None:
                for batch in batches:
                    trainer.step(batch)

            times[name].append(seconds(run, device) / steps)
            for parameter in trainer.parameters:  # the step has dropped the gradients
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            updates[name].append(seconds(trainer.update, device))
    del trainers
    memory = {name: peak_memory(size, batch_size, name, device) for name in names}
    print(f"\n{size}, batch {batch_size}, {rounds} rounds of {steps} steps\n")
    print("`speed`: time of `plain` divided by that of the trainer, median over the rounds and range\n")
    print("| trainer | images/s | speed | optimiser and EMA | the same at batch 256 | peak memory |")
    print("|---|---|---|---|---|---|")
    for name in names:
        ratios = [base / own for base, own in zip(times["plain"], times[name], strict=True)]
        step, update = statistics.median(times[name]), statistics.median(updates[name])
        at_256 = update / (update + (step - update) * 256 / batch_size)
        print(
            f"| {name} | {batch_size / step:.2f} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
            f"{max(ratios):.3f}) | {update / step:.1%} | {at_256:.1%} | {memory[name] / 2**30:.2f} GiB |"
        )


def peak_memory(size: str, batch_size: int, name: str, device: torch.device) -> int:
    """Return the peak memory in bytes of a process that runs one trainer.

    On a GPU, that is the allocated memory; on a CPU, the resident memory beyond that of the imports.
    """
    command = [sys.executable, __file__, "--alone", name, "--size", size, "--batch", str(batch_size)]
    command += ["--device", device.type, "--threads", str(torch.get_num_threads())]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def train_alone(size: str, batch_size: int, name: str, device: torch.device) -> int:
    config = config_of(size)
    before = most_resident()
    trainer = TRAINERS[name](config, make_weights(config), device)
    for batch in make_batches(config, batch_size, 2, device):
        trainer.step(batch)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return most_resident() - before


def most_resident() -> int:
    """Return the peak of this process's resident memory in bytes.

    On Linux it is read from /proc, because `getrusage` returns the parent's peak if that was higher.
    """
    try:
        with open("/proc/self/status") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def describe(device: torch.device) -> str:
    name = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"accelerate {accelerate.__version__}, commit {commit or 'unknown'}"
    )


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=list(CASES))
    parser.add_argument("--size", help="size of the model: tiny, or a paper's size; default: the cases of the device")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="number of steps of each trainer in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--trainers", nargs="+", choices=list(TRAINERS), help="trainers to compare; plain must be one of them"
    )
    parser.add_argument("--alone", choices=list(TRAINERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # for every trainer
    if options.alone:
        print(train_alone(options.size, options.batch, options.alone, device))
        return
    print(describe(device))
    cases = [(options.size, options.batch)] if options.size else CASES[options.device]
    for size, batch in cases:
        compare(size, batch, options.trainers or DEFAULT[options.device], options.rounds, options.steps, device)


if __name__ == "__main__":
    main()
