"""Time the data in images per second: decoding, streaming with workers, and stored latents beside images.

    python benchmarks/data.py                              # photos of ImageNet's mean size, cropped to 64 px, on a CPU
    python benchmarks/data.py --images 2000 --resolution 256 --seconds 10 --vae stabilityai/sd-vae-ft-ema

Each round times every way of reading once. The table holds the median over the rounds, the lowest and the highest.
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Features, Image
from diffusers import AutoencoderKL
from PIL import Image as PILImage

from dit_hf.data.extract import extract_latents
from dit_hf.data.latents import LatentEncoder
from dit_hf.data.moments import LatentsInfo, hash_vae
from dit_hf.data.preparation import image_to_tensor, resize_and_crop
from dit_hf.data.sources import open_images
from dit_hf.data.streaming import ImageStream
from dit_hf.images import decode_image
from dit_hf.vae import vae_shrink_factor

SHIPPED_VAE = Path(__file__).parents[1] / "examples" / "assets" / "vae-emoji"


def photo(seed: int, width: int = 500, height: int = 375) -> bytes:
    """A JPEG of ImageNet's mean size: smooth colours with some noise, about 100 kB."""
    rng = np.random.default_rng(seed)
    coarse = PILImage.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.array(coarse, np.int16) + rng.integers(-24, 24, (height, width, 3))
    buffer = io.BytesIO()
    PILImage.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_photos(folder: Path, count: int) -> None:
    schema = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])}).arrow_schema
    rows = [{"image": {"bytes": photo(k), "path": None}, "label": k % 2} for k in range(count)]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "train.parquet", row_group_size=100)


def images_per_second(batches: Iterator[int], seconds: float) -> float:
    """Read for a number of seconds, after one batch that is not timed."""
    next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += next(batches)
    return images / (time.perf_counter() - start)


def decoded(folder: Path, resolution: int) -> Iterator[int]:
    """Decode and crop images in one thread, without a stream."""
    source = open_images(str(folder))
    while True:
        for rows in (rows for part in range(source.num_parts) for rows in source.read_part(part)):
            for row in range(len(rows)):
                image_to_tensor(resize_and_crop(decode_image(rows.read(row)), resolution))
                yield 1


def streamed(folder: Path, resolution: int, num_workers: int) -> Iterator[int]:
    for batch in ImageStream(open_images(str(folder)), batch_size=16, resolution=resolution, num_workers=num_workers):
        yield len(batch.positions)


def encoded(folder: Path, resolution: int, vae: AutoencoderKL) -> Iterator[int]:
    """Read the x_0 of each batch, which is what a training waits for."""
    encoder = LatentEncoder(vae)
    for batch in ImageStream(open_images(str(folder)), batch_size=16, resolution=resolution):
        yield len(encoder(batch))


def make_latents(folder: Path, target: Path, vae: AutoencoderKL, resolution: int) -> float:
    """Store the latents of a data set; return the number of images and mirror images per second."""
    side = resolution // vae_shrink_factor(vae.config)
    shape = (2 * vae.config.latent_channels, side, side)
    info = LatentsInfo(
        "local", hash_vae(vae), vae.config.scaling_factor, shape, resolution, "float16", True, "local", ""
    )
    start = time.perf_counter()
    report = extract_latents(open_images(str(folder)), vae, info, target, Accelerator(cpu=vae.device.type == "cpu"))
    return 2 * report["num_images"] / (time.perf_counter() - start)


def compare(ways: dict[str, Callable[[], Iterator[int]]], rounds: int, seconds: float) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            speeds[name].append(images_per_second(way(), seconds))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--vae", default=str(SHIPPED_VAE))
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = AutoencoderKL.from_pretrained(options.vae).to(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as temporary:
        photos, latents = Path(temporary) / "photos", Path(temporary) / "latents"
        write_photos(photos, options.images)
        extraction = make_latents(photos, latents, vae, options.resolution)
        ways = {
            "decode, one thread": lambda: decoded(photos, options.resolution),
            "stream of images": lambda: streamed(photos, options.resolution, 0),
            f"stream of images, {cores} workers": lambda: streamed(photos, options.resolution, cores),
            "x_0 from images": lambda: encoded(photos, options.resolution, vae),
            "x_0 from latents": lambda: encoded(latents, options.resolution, vae),
        }
        speeds = compare(ways, options.rounds, options.seconds)
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores, {device}, torch {torch.__version__}",
        file=sys.stderr,
    )
    print(json.dumps({"extraction, images and mirror images": round(extraction, 1)}))
    for name, values in speeds.items():
        row = {"way": name, "images_per_second": round(statistics.median(values), 1)}
        print(json.dumps({**row, "least": round(min(values), 1), "most": round(max(values), 1)}))
    ratios = [a / b for a, b in zip(speeds["x_0 from latents"], speeds["x_0 from images"], strict=True)]
    print(json.dumps({"latents / images": round(statistics.median(ratios), 1)}))


if __name__ == "__main__":
    main()
