"""Compare diffusers' caches with plain sampling in fewer steps, by time and by the distance of the images.

    python benchmarks/caches.py

Each round runs 50 full steps and then every cache once. The time of a cache is its share of the full run's time, the
median over the rounds. The distances are PSNRs to the images of 50 full steps and to those of 500, which are nearly the
exact solution. The last two columns show plain sampling with as many steps as fit into the time of the cache.

The sampler is DPM-Solver++ of order 1, which is DDIM for any number of steps: diffusers' own DDIM starts at too low a
timestep if 1000 is not a multiple of the number of steps. The line below the table shows what that costs.
With one thread, times are those that the processor spent on this process.
"""

import argparse
import ast
import contextlib
import functools
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import SeaCacheConfig
from torch import Tensor

from dit_hf import DiTPipeline

MODEL = Path(__file__).parents[1] / "examples" / "assets" / "dit-emoji"
LABELS = ["strawberry", "panda face", "tulip", "tiger"]
STEPS = 50
NOT_A_DIVISOR = 42  # of 1000


def make_pipeline() -> DiTPipeline:
    pipeline = DiTPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"solver_order": 1, "timestep_spacing": "trailing"}
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **settings)
    return pipeline


def draw(pipeline: DiTPipeline, num_steps: int, cache: Any = None) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1], always from the same noise."""
    latents = torch.randn(len(LABELS), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    if cache is not None:
        pipeline.enable_cache(cache)
    images = pipeline(LABELS, 2.0, num_steps, latents=latents, output_type="pt").images
    if cache is not None:
        pipeline.disable_cache()
    return images


def calibrated_ratios(pipeline: DiTPipeline) -> list[float]:
    """Return the ratios that MagCache measures in a calibration; diffusers only prints them."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        draw(pipeline, STEPS, MagCacheConfig(num_inference_steps=STEPS, calibrate=True))
    return ast.literal_eval(printed.getvalue().strip().splitlines()[-1])


def caches(pipeline: DiTPipeline) -> dict[str, Callable[[], Any]]:
    ratios = calibrated_ratios(pipeline)
    broadcast = PyramidAttentionBroadcastConfig
    return {
        **{f"FirstBlockCacheConfig({x})": lambda x=x: FirstBlockCacheConfig(x) for x in (0.05, 0.1, 0.2)},
        **{
            f"TaylorSeerCacheConfig(cache_interval={n})": lambda n=n: TaylorSeerCacheConfig(
                cache_interval=n, taylor_factors_dtype=None
            )
            for n in (2, 3, 5)
        },
        **{
            f"MagCacheConfig(threshold={x}), calibrated": lambda x=x: MagCacheConfig(
                threshold=x, num_inference_steps=STEPS, mag_ratios=ratios
            )
            for x in (0.06, 0.2)
        },
        "PyramidAttentionBroadcastConfig(2)": lambda: broadcast(spatial_attention_block_skip_range=2),
        **{f"SeaCacheConfig({x})": lambda x=x: SeaCacheConfig(x) for x in (0.1, 0.25)},
    }


def count_blocks(pipeline: DiTPipeline) -> list[int]:
    """Return a list that grows by one element with each evaluation of a block's MLP."""
    calls: list[int] = []
    for block in pipeline.transformer.blocks:

        def counted(x: Tensor, forward: Callable[[Tensor], Tensor] = block.mlp.fc2.forward) -> Tensor:
            calls.append(1)
            return forward(x)

        block.mlp.fc2.forward = counted
    return calls


def decibels(images: Tensor, full: Tensor) -> str:
    """PSNR of images in [0, 1]."""
    return f"{-10 * ((images - full) ** 2).mean().log10().item():.1f} dB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    pipeline = make_pipeline()
    calls = count_blocks(pipeline)
    configurations = caches(pipeline)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ["full", *configurations]}
    images, evaluations = {}, {}
    for _ in range(rounds):
        for name in seconds:
            cache = configurations[name]() if name in configurations else None
            calls.clear()
            start = clock()
            images[name] = draw(pipeline, STEPS, cache)
            seconds[name].append(clock() - start)
            evaluations[name] = len(calls) / len(pipeline.transformer.blocks)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds\n")
    plain = functools.cache(functools.partial(draw, pipeline))
    exact = plain(500)
    columns = ["", "evaluations", "time", "to 50 steps", "to 500 steps", "steps in that time", "these to 500"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    print(f"| 50 steps | {evaluations['full']:.1f} | 1 | - | {decibels(images['full'], exact)} | 50 | - |")
    for name in configurations:
        share = statistics.median(a / b for a, b in zip(seconds[name], seconds["full"], strict=True))
        steps = min(STEPS, round(STEPS * share))
        cells = [f"{evaluations[name]:.1f}", f"{share:.2f}"]
        cells += [decibels(images[name], other) for other in (images["full"], exact)]
        cells += [str(steps), decibels(plain(steps), exact)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    trailing = decibels(plain(NOT_A_DIVISOR), exact)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="leading", clip_sample=False
    )
    leading = decibels(draw(pipeline, NOT_A_DIVISOR), exact)
    print(f"\n{NOT_A_DIVISOR} steps to 500 steps: {leading} by DDIM with leading timesteps, {trailing} as above")


if __name__ == "__main__":
    main()
