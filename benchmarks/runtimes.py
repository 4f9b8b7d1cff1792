"""Time the ways to compute a model on a CPU beside eager float32: torch, compiled, torchao, OpenVINO, ONNX Runtime.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/runtimes.py            # S/2 and B/4, batches 1 and 8; half an hour
    python benchmarks/runtimes.py --sizes DiT-S/2 --batches 1 --only eager openvino
    python benchmarks/runtimes.py --sizes --images 60       # what each way does to the images of the shipped model

Every row has the same weights, noise and DDIM scheduler, and samples with guidance by `DiTPipeline`. Each round runs
every row once; a ratio is the median of the rounds' ratios to eager float32, with the lowest and the highest, followed
by the ratio of the fastest rounds. The milliseconds are those of the fastest round. The relative error is that of one
forward: the norm of the difference to eager float32 over the norm of eager float32. With one thread, times are those
that the processor spent on this process, which other programs disturb little. A line says what share of a processor
the process was given meanwhile, and the last lines which packages are missing. Exports are written to a temporary
folder.

The table of images draws the same classes from the same noise by each way, in 20 steps of DPM-Solver++. "per image" is
the mean distance of an image to that of eager float32 in the features of EfficientNet-lite0, as a share of the mean
distance of two images of a class: 0 is the same image, 1 another image of the class. "levels" is the mean difference of
a pixel, which has 256 levels.
"""

import argparse
import copy
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from tempfile import TemporaryDirectory

import diffusers
import numpy as np
import torch
import torch._dynamo.config
import transformers
from diffusers import DPMSolverMultistepScheduler
from sampling import STEPS, call, features, make_pipelines, race, ratio

from dit_hf import DiTPipeline, shipped_model
from dit_hf.generation import iterate_batches, pipeline_sampler
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
    "openvino int8": exported("openvino", "int8"),
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


def quiet(pipe: DiTPipeline) -> DiTPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compare(name: str, batches: list[int], rows: list[str], rounds: int, num_steps: int | None) -> list[str]:
    """Print a line for each batch and row; return what share of a processor the process had."""
    shares = []
    pipes = {row: quiet(ROWS[row](copy.deepcopy(make_on_cpu(name)))) for row in rows}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for batch in batches:
        labels, steps = list(range(batch)), num_steps or STEPS[batch]
        expected = predict(pipes[EAGER], batch)
        runs = {row: partial(call, pipe, labels, steps, output_type="latent") for row, pipe in pipes.items()}
        begin = time.process_time(), time.perf_counter()
        seconds = race(runs, rounds, clock)
        processor, wall = time.process_time() - begin[0], time.perf_counter() - begin[1]
        for row, pipe in pipes.items():
            error = ((predict(pipe, batch) - expected).norm() / expected.norm()).item()
            fastest = min(seconds[EAGER]) / min(seconds[row])
            milliseconds = 1000 * min(seconds[row]) / steps / batch
            cells = f"{ratio(seconds[EAGER], seconds[row])} | {fastest:.2f} | {error:.1e} | {milliseconds:.0f}"
            print(f"| {name} | {batch} | {row} | {cells} |", flush=True)
        shares.append(f"{name}, batch {batch}: the process had {processor / wall:.0%} of a processor")
    return shares


def draw(pipe: DiTPipeline, num_images: int, seed: int = 0) -> np.ndarray:
    """Draw images uint8 (N, H, W, 3), two of a class beside each other."""
    classes = np.linspace(0, pipe.transformer.config.num_classes - 1, num_images // 2).round().astype(int)
    sampler = pipeline_sampler(pipe, num_inference_steps=20, guidance_scale=2.0)
    return np.concatenate(list(iterate_batches(sampler, num_images, labels=np.repeat(classes, 2), seed=seed)))


def compare_images(num_images: int, rows: list[str]) -> None:
    """Print a line for each row: how far its images lie from those of eager float32."""
    print("| computed by | per image | levels |\n|---|---|---|")
    for row in rows:
        pipe = shipped()
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        images = draw(quiet(ROWS[row](pipe)), num_images)
        if row == EAGER:
            exact, exact_features = images.astype(float), features(images)
            unit = np.linalg.norm(exact_features[::2] - exact_features[1::2], axis=1).mean()
        per_image = np.linalg.norm(features(images) - exact_features, axis=1).mean() / unit
        print(f"| {row} | {per_image:.4f} | {np.abs(images - exact).mean():.3f} |", flush=True)


def shipped() -> DiTPipeline:
    return DiTPipeline.from_pretrained(shipped_model())


def make_on_cpu(name: str) -> DiTPipeline:
    pipe, _ = make_pipelines(name)
    return pipe.to("cpu", torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="Number of rounds.")
    parser.add_argument("--sizes", nargs="*", default=["DiT-S/2", "DiT-B/4"], help="Names of the paper's models.")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], choices=[1, 8], help="Numbers of images.")
    parser.add_argument("--steps", type=int, help="Number of steps in a round; default: 4 of one image, 2 of eight.")
    parser.add_argument("--images", type=int, default=0, help="Number of images of the shipped model; even.")
    parser.add_argument("--only", nargs="+", default=[""], help="Rows to run, by the beginnings of their names.")
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    wanted = [row for row in ROWS if row == EAGER or row.startswith(tuple(arguments.only))]
    rows = [row for row in wanted if is_installed(row)]
    print(describe_machine() + "\n")
    # torch counts the graphs of a function, which the compiled rows of all sizes and batches share
    many_graphs = torch._dynamo.config.patch(recompile_limit=64)
    with TemporaryDirectory() as folder, without_notes_of_exporters(), many_graphs:
        os.environ["DIT_HF_EXPORTS"] = folder
        if arguments.sizes:
            heads = ("times faster", "of the fastest rounds", "relative error", "ms a step and image")
            print(f"| model | batch | computed by | {' | '.join(heads)} |\n" + "|---" * 7 + "|")
        shares = [
            share
            for name in arguments.sizes
            for share in compare(name, arguments.batches, rows, arguments.rounds, arguments.steps)
        ]
        print("\n" + "\n".join(shares) + "\n")
        if arguments.images:
            compare_images(arguments.images, rows)
    for row in sorted(set(wanted) - set(rows)):
        print(f"\n{row}: not run, since the package {PACKAGES[row.split()[0]]} is not installed")


if __name__ == "__main__":
    main()
