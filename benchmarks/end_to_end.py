"""Time an image from noise to pixels: 250 steps, 20 steps, the fast preset, and the fast preset in another runtime.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/end_to_end.py             # the shipped model and S/2
    python benchmarks/end_to_end.py --models shipped --rounds 1

The shipped model runs every step. DiT-S/2 at 256 px, with random weights and a decoder of the size of Stable
Diffusion's, runs `--steps` of each sampler's steps, with the same share of them guided; the seconds of a step are
multiplied by the number of steps, and those of the decoder, timed once a round and runtime, are added. A ratio is the
median of the rounds' ratios to 250 steps, with the lowest and the highest. With one thread, times are those that the
processor spent on this process.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler
from runtimes import describe_machine, is_installed
from sampling import FAST, GUIDANCE, make_model, ratio, timed

from dit_hf import DiTPipeline, shipped_model
from dit_hf.runtime.export import without_notes_of_exporters
from dit_hf.runtime.once import in_runtime

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
STABLE_DIFFUSION = {**BLOCKS, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}


@dataclass(frozen=True)
class Way:
    """A sampler with a runtime.

    Args:
        num_steps: Number of steps of an image.
        scheduler: Class of the scheduler.
        arguments: Further arguments of the call.
        dtype: Number format of OpenVINO, or None for torch in float32.
    """

    num_steps: int
    scheduler: Any
    arguments: dict[str, Any]
    dtype: str | None = None


HALF_GUIDED = {"guidance_interval": FAST["guidance_interval"]}
WAYS = {
    "250 steps": Way(250, DDPMScheduler, {}),
    "20 steps of DPM-Solver++": Way(20, DPMSolverMultistepScheduler, {}),
    "fast preset": Way(20, DPMSolverMultistepScheduler, HALF_GUIDED),
    "fast preset, openvino float32": Way(20, DPMSolverMultistepScheduler, HALF_GUIDED, "float32"),
    "fast preset, openvino bfloat16": Way(20, DPMSolverMultistepScheduler, HALF_GUIDED, "bfloat16"),
}


def shipped() -> DiTPipeline:
    return DiTPipeline.from_pretrained(shipped_model())


def small_at_256() -> DiTPipeline:
    """Return DiT-S/2 with random weights, and a VAE of Stable Diffusion's architecture."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**STABLE_DIFFUSION).eval()
    return DiTPipeline(make_model("DiT-S/2").to("cpu", torch.float32), vae, DDPMScheduler(clip_sample=False))


MODELS: dict[str, Callable[[], DiTPipeline]] = {"shipped": shipped, "DiT-S/2": small_at_256}
WHOLE = {"shipped"}  # whose images are timed with all of their steps


def schedulers_of(pipe: DiTPipeline, ways: dict[str, Way]) -> dict[str, Any]:
    """Return the scheduler of each way, for a model that answers what this pipeline's answers."""
    schedulers = {}
    for label, way in ways.items():
        config = {**pipe.scheduler.config, "clip_sample": False, "variance_type": "fixed_small"}
        known = way.scheduler().config
        schedulers[label] = way.scheduler.from_config({key: value for key, value in config.items() if key in known})
    return schedulers


def sample(pipe: DiTPipeline, way: Way, scheduler: Any, num_steps: int, output_type: str) -> Callable[[], object]:
    """Return a call of the pipeline."""
    arguments = {"guidance_scale": GUIDANCE, "output_type": output_type, **way.arguments}

    def run() -> object:
        pipe.scheduler = scheduler
        return pipe(0, num_inference_steps=num_steps, generator=torch.Generator().manual_seed(0), **arguments)

    return run


@torch.no_grad()
def seconds_of_decoder(pipe: DiTPipeline, clock: Callable[[], float]) -> float:
    """Return the seconds in which the VAE decodes one latent of the model's size."""
    config = pipe.transformer.config
    latents = torch.zeros(1, config.in_channels, *config.sample_height_width)
    return timed(lambda: pipe.vae.decode(latents), clock)


def measure(
    pipes: dict[str | None, DiTPipeline],
    ways: dict[str, Way],
    schedulers: dict[str, Any],
    most_steps: int | None,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Return the seconds of an image by each way; with `most_steps`, from fewer steps, whose time is scaled."""
    if most_steps is None:
        return {
            label: timed(sample(pipes[way.dtype], way, schedulers[label], way.num_steps, "np"), clock)
            for label, way in ways.items()
        }
    decoders = {dtype: seconds_of_decoder(pipe, clock) for dtype, pipe in pipes.items()}
    seconds = {}
    for label, way in ways.items():
        steps = timed(sample(pipes[way.dtype], way, schedulers[label], most_steps, "latent"), clock)
        seconds[label] = steps * way.num_steps / most_steps + decoders[way.dtype]
    return seconds


def compare(name: str, rounds: int, most_steps: int, ways: dict[str, Way]) -> None:
    """Print a line for each way."""
    original = MODELS[name]()
    pipes: dict[str | None, DiTPipeline] = {
        dtype: in_runtime(original, "openvino", dtype) if dtype else original
        for dtype in dict.fromkeys(way.dtype for way in ways.values())
    }
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    schedulers = schedulers_of(original, ways)
    for label, way in ways.items():  # warm up, guided and not
        sample(pipes[way.dtype], way, schedulers[label], 2, "latent")()
    most = None if name in WHOLE else most_steps
    measured = [measure(pipes, ways, schedulers, most, clock) for _ in range(rounds)]
    slow = [seconds["250 steps"] for seconds in measured]
    for label in ways:
        own = [seconds[label] for seconds in measured]
        print(f"| {name} | {label} | {statistics.median(own):.2f} | {ratio(slow, own)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="Models to time.")
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds.")
    parser.add_argument("--steps", type=int, default=4, help="Number of steps timed of a model that is scaled.")
    parser.add_argument("--only", nargs="+", default=[""], help="Ways to time, by the beginnings of their names.")
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    wanted = [label for label in WAYS if label == "250 steps" or label.startswith(tuple(arguments.only))]
    ways = {label: WAYS[label] for label in wanted if WAYS[label].dtype is None or is_installed("openvino")}
    print(f"{describe_machine()}\n\n| model | way | seconds an image | times faster |\n|---|---|---|---|")
    with TemporaryDirectory() as folder, without_notes_of_exporters():
        os.environ["DIT_HF_EXPORTS"] = folder
        for name in arguments.models:
            compare(name, arguments.rounds, arguments.steps, ways)
    if len(ways) < len(wanted):
        print("\nopenvino: not run, since the package openvino is not installed")


if __name__ == "__main__":
    main()
