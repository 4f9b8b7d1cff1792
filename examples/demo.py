"""The whole line in minutes: sample the shipped DiT, train a small one from scratch, load it back, look at both.

    make demo                       # or: python examples/demo.py --output_dir demo

Writes pictures and a README with what was measured to the output folder.
"""

import argparse
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Threads that wait for each other sleep instead of spinning: beside other work, training on a CPU is many times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image

from dit_hf import DiTPipeline
from dit_hf.data.references import load_references
from dit_hf.evaluation import nearest_class

EXAMPLES = Path(__file__).parent
ASSETS = EXAMPLES / "assets"
EMOJI = ASSETS / "emoji"


@dataclass
class Score:
    """How many samples a stranger would put in their class."""

    recognised: int
    num_samples: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.recognised} of {self.num_samples} samples nearest to their own class, {self.seconds:.0f} s"


def read_classes(file: str) -> list[str]:
    return (EMOJI / file).read_text().splitlines()


def sample(
    pipeline: DiTPipeline, labels: Sequence[int], guidance_scale: float, num_inference_steps: int, seed: int = 0
) -> list[Image.Image]:
    """One image a label, fifty at a time."""
    generator = torch.Generator().manual_seed(seed)
    chunks = [list(labels[start : start + 50]) for start in range(0, len(labels), 50)]
    return [
        image
        for chunk in chunks
        for image in pipeline(
            class_labels=chunk,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=generator,
        ).images
    ]


@functools.cache
def read_references(class_names: tuple[str, ...], resolution: int) -> np.ndarray:
    return load_references(str(EMOJI), class_names, resolution=resolution)


def score(
    pipeline: DiTPipeline,
    class_names: list[str],
    num_samples: int,
    guidance_scale: float = 2.0,
    num_inference_steps: int = 20,
) -> tuple[Score, list[Image.Image]]:
    """Sample every class equally often, and count the samples that are clean and nearest to their own class."""
    labels = [k % len(class_names) for k in range(num_samples)]
    start = time.perf_counter()
    images = sample(pipeline, labels, guidance_scale, num_inference_steps)
    seconds = time.perf_counter() - start
    references = read_references(tuple(class_names), images[0].width)
    nearest = nearest_class(np.stack([np.array(image) for image in images]), references)
    return Score(int((nearest == np.array(labels)).sum()), num_samples, seconds), images


def save_grid(images: list[Image.Image], columns: int, path: Path) -> None:
    make_image_grid(images, rows=len(images) // columns, cols=columns).save(path)


def train(output_dir: Path, *settings: str) -> float:
    """Train on ten classes as a user would, and return the seconds it took."""
    if (output_dir / "settings.yaml").exists():  # of an earlier demo, and of nothing else
        shutil.rmtree(output_dir)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += [str(EXAMPLES / "train_dit.py"), str(EXAMPLES / "configs" / "emoji_10.yaml")]
    start = time.perf_counter()
    subprocess.run([*launch, "--output_dir", str(output_dir), *settings], check=True)
    return time.perf_counter() - start


REPORT = """# What the demo made

On {machine}, torch {torch}, number of threads: {threads}.

![samples of the shipped model](shipped.png)

The shipped model, one sample of each class, 20 steps of DPM-Solver++, guidance 2: {shipped}.

![samples of the model trained just now](trained.png)

A model trained from scratch in {train_seconds:.0f} s ({train_steps} steps, {images_seen} images seen), loaded with
`DiTPipeline.from_pretrained("training/pipeline")`, one class a column: {trained}.

![loss curve](training/loss.png)

A sample counts when its nearest training drawing (mirrored, jittered) is of its own class and it is neither blurred nor
noisy. Both models have memorised their few drawings: this shows that the line works, not that it generalises.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo"))
    output_dir = parser.parse_args().output_dir
    output_dir.mkdir(parents=True, exist_ok=True)

    print("sampling the shipped model")
    shipped = DiTPipeline.from_pretrained(ASSETS / "dit-emoji")
    shipped_score, images = score(shipped, read_classes("classes_300.txt"), 300)
    save_grid(images, 20, output_dir / "shipped.png")
    print(shipped_score)

    print("training on ten classes")
    train_seconds = train(output_dir / "training")
    trained = DiTPipeline.from_pretrained(output_dir / "training" / "pipeline")
    trained_score, images = score(trained, read_classes("classes_10.txt"), 100)
    save_grid(images, 10, output_dir / "trained.png")
    print(trained_score)

    last = json.loads((output_dir / "training" / "metrics.jsonl").read_text().splitlines()[-1])
    text = REPORT.format(
        machine=f"{platform.machine()} {platform.system()}",
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        shipped=shipped_score,
        trained=trained_score,
        train_seconds=train_seconds,
        train_steps=last["step"],
        images_seen=last["images_seen"],
    )
    (output_dir / "README.md").write_text(text)
    print(f"wrote {output_dir / 'README.md'}")


if __name__ == "__main__":
    main()
