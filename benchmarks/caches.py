"""Caches against fewer steps: block evaluations, and the distance of the images to those of 50 full DDIM steps.

python benchmarks/caches.py
"""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import SeaCacheConfig

from dit_hf import DiTPipeline

MODEL = Path(__file__).parents[1] / "examples" / "assets" / "dit-emoji"
CACHES = {
    "FirstBlockCacheConfig(0.05)": FirstBlockCacheConfig(0.05),
    "FirstBlockCacheConfig(0.1)": FirstBlockCacheConfig(0.1),
    "TaylorSeerCacheConfig(cache_interval=2)": TaylorSeerCacheConfig(cache_interval=2, taylor_factors_dtype=None),
    "TaylorSeerCacheConfig(cache_interval=3)": TaylorSeerCacheConfig(cache_interval=3, taylor_factors_dtype=None),
    "SeaCacheConfig(0.1)": SeaCacheConfig(0.1),
    "SeaCacheConfig(0.25)": SeaCacheConfig(0.25),
}


def main() -> None:
    pipeline = DiTPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="leading", clip_sample=False
    )
    latents = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    calls: list[int] = []
    for block in pipeline.transformer.blocks:

        def counted(x: torch.Tensor, forward=block.mlp.fc2.forward) -> torch.Tensor:
            calls.append(1)
            return forward(x)

        block.mlp.fc2.forward = counted

    def draw(name: str, steps: int, full: torch.Tensor | None = None) -> torch.Tensor:
        calls.clear()
        labels = ["strawberry", "panda face", "tulip", "tiger"]
        images = pipeline(labels, 2.0, steps, latents=latents, output_type="pt").images
        distance = "" if full is None else f"{-10 * ((images - full) ** 2).mean().log10().item():.1f} dB"
        print(f"| {name} | {len(calls) / len(pipeline.transformer.blocks):.1f} | {distance} |")
        return images

    full = draw("50 steps", 50)
    for steps in (25, 20, 17, 10):
        draw(f"{steps} steps", steps, full)
    for name, config in CACHES.items():
        pipeline.enable_cache(config)
        draw(name, 50, full)
        pipeline.disable_cache()


if __name__ == "__main__":
    main()
