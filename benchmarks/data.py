"""Time the data in images per second: decoding, streaming from parquet and tar, and stored latents beside images.

    python benchmarks/data.py                              # photos of ImageNet's mean size, cropped to 64 px, on a CPU
    python benchmarks/data.py --images 2000 --resolution 256 --seconds 10 --vae stabilityai/sd-vae-ft-ema

Each round times every way of reading once. The table holds the median over the rounds, the lowest and the highest, by
the clock, and "per_core" the median of images a second that one core spends on the process itself, which other programs
disturb less; it leaves out what loader workers do.
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from dit_hf.data.sources import ImageSource, open_images
from dit_hf.data.streaming import ImageStream
from dit_hf.images import decode_image
from dit_hf.vae import vae_shrink_factor

BATCH = 16
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
    """Write the same photos as a file of parquet and as a tar."""
    photos = [photo(k) for k in range(count)]
    schema = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])}).arrow_schema
    rows = [{"image": {"bytes": each, "path": None}, "label": k % 2} for k, each in enumerate(photos)]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "train.parquet", row_group_size=100)
    with tarfile.open(folder / "train.tar", "w") as tar:
        for k, each in enumerate(photos):
            for suffix, content in (("jpg", each), ("cls", str(k % 2).encode())):
                member = tarfile.TarInfo(f"{k:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def open_parquet(folder: Path) -> ImageSource:
    return open_images(str(folder / "train.parquet"))


def open_tar(folder: Path) -> ImageSource:
    return open_images(str(folder / "train.tar"), image_column="jpg", label_column="cls", class_names=["a", "b"])


@dataclass(frozen=True)
class Speed:
    """Images a second, by the clock and by the processor's time of this process."""

    clock: float
    core: float


def images_per_second(batches: Iterator[int], seconds: float) -> Speed:
    """Read for a number of seconds, after one batch that is not timed."""
    next(batches)
    start, start_core, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        images += next(batches)
    return Speed(images / (time.perf_counter() - start), images / (time.process_time() - start_core))


def decoded(folder: Path, resolution: int) -> Iterator[int]:
    """Decode and crop images in one thread, without a stream."""
    source = open_parquet(folder)
    while True:
        for rows in (rows for part in range(source.num_parts) for rows in source.read_part(part)):
            for row in range(len(rows)):
                image_to_tensor(resize_and_crop(decode_image(rows.read(row)), resolution))
                yield 1


def streamed(source: ImageSource, resolution: int, num_workers: int = 0) -> Iterator[int]:
    for batch in ImageStream(source, batch_size=BATCH, resolution=resolution, num_workers=num_workers):
        yield len(batch.positions)


def encoded(source: ImageSource, resolution: int, vae: AutoencoderKL) -> Iterator[int]:
    """Read the x_0 of each batch, which is what a training waits for."""
    encoder = LatentEncoder(vae)
    for batch in ImageStream(source, batch_size=BATCH, resolution=resolution):
        yield len(encoder(batch))


def make_latents(folder: Path, target: Path, vae: AutoencoderKL, resolution: int) -> float:
    """Store the latents of a data set; return the number of images and mirror images per second."""
    side = resolution // vae_shrink_factor(vae.config)
    shape = (2 * vae.config.latent_channels, side, side)
    info = LatentsInfo(
        "local", hash_vae(vae), vae.config.scaling_factor, shape, resolution, "float16", True, "local", ""
    )
    start = time.perf_counter()
    report = extract_latents(open_parquet(folder), vae, info, target, Accelerator(cpu=vae.device.type == "cpu"))
    return 2 * report["num_images"] / (time.perf_counter() - start)


def compare(ways: dict[str, Callable[[], Iterator[int]]], rounds: int, seconds: float) -> dict[str, list[Speed]]:
    speeds: dict[str, list[Speed]] = {name: [] for name in ways}
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
            "stream of images, parquet": lambda: streamed(open_parquet(photos), options.resolution),
            "stream of images, tar": lambda: streamed(open_tar(photos), options.resolution),
            f"stream of images, {cores} workers": lambda: streamed(open_parquet(photos), options.resolution, cores),
            "x_0 from images": lambda: encoded(open_parquet(photos), options.resolution, vae),
            "x_0 from latents": lambda: encoded(open_images(str(latents)), options.resolution, vae),
        }
        speeds = compare(ways, options.rounds, options.seconds)
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores, {device}, torch {torch.__version__}",
        file=sys.stderr,
    )
    print(json.dumps({"extraction, images and mirror images": round(extraction, 1)}))
    for name, values in speeds.items():
        by_clock = [value.clock for value in values]
        numbers = {
            "images_per_second": statistics.median(by_clock),
            "least": min(by_clock),
            "most": max(by_clock),
            "per_core": statistics.median(value.core for value in values),
        }
        print(json.dumps({"way": name, **{key: round(value, 1) for key, value in numbers.items()}}))
    pairs = zip(speeds["x_0 from latents"], speeds["x_0 from images"], strict=True)
    print(json.dumps({"latents / images": round(statistics.median(a.core / b.core for a, b in pairs), 1)}))


if __name__ == "__main__":
    main()
