"""Time the ways to compute a model on a CPU beside eager float32: torch, compiled, torchao, OpenVINO, ONNX Runtime.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/runtimes.py            # S/2 and B/4, batches 1 and 8; half an hour
    python benchmarks/runtimes.py --sizes DiT-S/2 --batches 1 --only eager openvino

Every row has the same weights, noise and DDIM scheduler, and samples with guidance by `DiTPipeline`. Each round runs
every row once; a ratio is the median of the rounds' ratios to eager float32, with the lowest and the highest. The
relative error is that of one forward: the norm of the difference to eager float32 over the norm of eager float32. With
one thread, times are those that the processor spent on this process, which other programs disturb little. The last
lines say which packages are missing. Exports are written to a temporary folder.
"""

import argparse
import copy
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from tempfile import TemporaryDirectory

import diffusers
import torch
import transformers
from sampling import STEPS, call, make_pipelines, race, ratio

from dit_hf import DiTPipeline
from dit_hf.runtime.export import without_notes_of_exporters
from dit_hf.runtime.once import in_runtime

FLAGS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
PACKAGES = {"torchao": "torchao", "openvino": "openvino", "onnx": "onnxruntime"}  # by the first word of a row
EAGER = "eager float32"

Prepare = Callable[[DiTPipeline], DiTPipeline]


def in_torch(dtype: torch.dtype = torch.float32, int8: bool = False, compiled: bool = False) -> Prepare:
    """Return what makes a pipeline compute in torch: eager or compiled, in another dtype, or with int8 products."""

    def prepare(pipe: DiTPipeline) -> DiTPipeline:
        if int8:
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            quantize_(pipe.transformer, Int8DynamicActivationInt8WeightConfig())
        pipe.to(dtype)
        if compiled:
            pipe.transformer.compile_repeated_blocks(fullgraph=True)
        return pipe

    return prepare


def exported(format: str, dtype: str) -> Prepare:
    """Return what makes a pipeline compute in another runtime."""
    return lambda pipe: in_runtime(pipe, format, dtype)


ROWS: dict[str, Prepare] = {
    EAGER: in_torch(),
    "eager bfloat16": in_torch(torch.bfloat16),
    "compiled float32": in_torch(compiled=True),
    "compiled bfloat16": in_torch(torch.bfloat16, compiled=True),
    "torchao int8": in_torch(int8=True),
    "torchao int8 compiled": in_torch(int8=True, compiled=True),
    "openvino float32": exported("openvino", "float32"),
    "openvino bfloat16": exported("openvino", "bfloat16"),
    "onnx float32": exported("onnx", "float32"),
    "onnx int8": exported("onnx", "int8"),
}


def is_installed(row: str) -> bool:
    package = PACKAGES.get(row.split()[0])
    return package is None or importlib.util.find_spec(package) is not None


def describe_machine() -> str:
    """Name the processor's instructions, its threads, and the versions of the packages."""
    capabilities = torch.cpu.get_capabilities()
    flags = [flag for flag in FLAGS if capabilities.get(flag)]
    packages = [name for name in ("torch", *PACKAGES.values()) if importlib.util.find_spec(name)]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{platform.machine()} CPU with {' '.join(flags)}; {torch.get_num_threads()} threads; {versions}"


@torch.no_grad()
def predict(pipe: DiTPipeline, batch: int) -> torch.Tensor:
    """Return the float32 prediction of one forward (batch, out_channels, H, W)."""
    model = pipe.transformer
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, model.config.in_channels, *model.config.sample_height_width, generator=generator)
    timestep, labels = torch.linspace(999, 1, batch).round(), torch.arange(batch)
    return model(x.to(model.dtype), timestep, labels).sample.float()


def compare(name: str, batch: int, rows: list[str], rounds: int) -> None:
    """Print a line for each row."""
    pipes = {row: ROWS[row](copy.deepcopy(make_on_cpu(name))) for row in rows}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    labels, num_steps = list(range(batch)), STEPS[batch]
    expected = predict(pipes[EAGER], batch)
    runs = {row: lambda pipe=pipe: call(pipe, labels, num_steps, output_type="latent") for row, pipe in pipes.items()}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = race(runs, rounds, clock)
    for row, pipe in pipes.items():
        error = ((predict(pipe, batch) - expected).norm() / expected.norm()).item()
        milliseconds = 1000 * statistics.median(seconds[row]) / num_steps / batch
        cells = f"{row} | {ratio(seconds[EAGER], seconds[row])} | {error:.1e} | {milliseconds:.0f}"
        print(f"| {name} | {batch} | {cells} |", flush=True)


def make_on_cpu(name: str) -> DiTPipeline:
    pipe, _ = make_pipelines(name)
    return pipe.to("cpu", torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="Number of rounds.")
    parser.add_argument("--sizes", nargs="+", default=["DiT-S/2", "DiT-B/4"], help="Names of the paper's models.")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], choices=[1, 8], help="Numbers of images.")
    parser.add_argument("--only", nargs="+", default=[""], help="Rows to run, by the beginnings of their names.")
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    wanted = [row for row in ROWS if row == EAGER or row.startswith(tuple(arguments.only))]
    rows = [row for row in wanted if is_installed(row)]
    print(
        f"{describe_machine()}\n\n| model | batch | computed by | times faster | relative error | ms a step and image |"
    )
    print("|---" * 6 + "|")
    with TemporaryDirectory() as folder, without_notes_of_exporters():
        os.environ["DIT_HF_EXPORTS"] = folder
        for name in arguments.sizes:
            for batch in arguments.batches:
                compare(name, batch, rows, arguments.rounds)
    for row in sorted(set(wanted) - set(rows)):
        print(f"\n{row}: not run, since the package {PACKAGES[row.split()[0]]} is not installed")


if __name__ == "__main__":
    main()
