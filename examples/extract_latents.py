"""Make the latents of a data set beforehand: training on them needs no VAE encoder and no image decoding.

    accelerate launch examples/extract_latents.py --output_dir out/emoji-latents        # the embedded emoji
    torchrun --nproc_per_node 8 examples/extract_latents.py --dataset_name ILSVRC/imagenet-1k \
        --vae_name_or_path stabilityai/sd-vae-ft-ema --resolution 256 --output_dir out/imagenet-latents
    accelerate launch examples/train_dit.py --dataset_name out/imagenet-latents

The same command again goes on where it was stopped. Every setting is described by --help.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from diffusers import AutoencoderKL
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from transformers import HfArgumentParser

from dit_hf.data.extract import extract_latents
from dit_hf.data.labels import read_map, read_names
from dit_hf.data.moments import DTYPES, LatentsInfo, hash_vae
from dit_hf.data.sources import open_images
from dit_hf.hub.errors import one_line_errors
from dit_hf.network import retried
from dit_hf.vae import vae_shrink_factor

ASSETS = Path(__file__).parent / "assets"
CARD = """{front}

# Latents of {info.source}

Mean and log-variance of the posterior of the VAE {info.vae} for {report[num_images]} images of {info.resolution}
px{too}, as {info.dtype}, made with dit-hf. Train with `--dataset_name` and this set's name; `latents.json` holds what
they were made of.

```python
import numpy as np
from dit_hf.vae import vae_shrink_factor
from datasets import load_dataset

row = next(iter(load_dataset("data set", split="{split}", streaming=True)))
{snippet}
```

Storing changed the scaled means by {report[latent_error_rms]:.2g} (root mean square), at most
{report[latent_error_max]:.2g}.
"""
SNIPPETS = {
    "float16": 'moments = np.frombuffer(row["moments"], np.float16).reshape({shape})  # mean, then log-variance',
    "int8": 'low, step = np.frombuffer(row["moments"], np.float32, {double}).reshape(2, {channels}, 1, 1)\n'
    'levels = np.frombuffer(row["moments"], np.uint8, offset=4 * {double}).reshape({shape})\n'
    "moments = low + step * levels  # mean, then log-variance",
}


@dataclass
class ExtractSettings:
    """What is encoded, by which VAE, and where it goes."""

    output_dir: str = field(default="out/latents", metadata={"help": "folder of the data set of latents"})
    dataset_name: str = field(default=str(ASSETS / "emoji"), metadata={"help": "id on the Hub, a folder, or files"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "of a data set that has several"})
    dataset_revision: str | None = field(default=None, metadata={"help": "branch, tag or commit on the Hub"})
    dataset_split: str = field(default="train", metadata={"help": "split of the data set"})
    image_column: str = field(default="image", metadata={"help": "column of images"})
    label_column: str = field(default="label", metadata={"help": "column of class labels"})
    class_names_file: str | None = field(default=None, metadata={"help": "these classes only: names, one a line"})
    label_map_file: str | None = field(default=None, metadata={"help": 'JSON, {"name in the data set": "name here"}'})
    vae_name_or_path: str | None = field(
        default=None, metadata={"help": "an AutoencoderKL; for the emoji the shipped one"}
    )
    resolution: int = field(default=64, metadata={"help": "side of the images, in pixels"})
    mirror: bool = field(default=True, metadata={"help": "store the mirror images too"})
    dtype: str = field(default="float16", metadata={"help": "float16, or int8: half the size, see docs/data.md"})
    encode_batch_size: int = field(default=32, metadata={"help": "images that are encoded together"})
    num_workers: int = field(default=4, metadata={"help": "threads that prepare images, in each process"})
    max_bad_images: float = field(default=0.001, metadata={"help": "share of images that may be skipped"})
    push_to_hub: bool = field(default=False, metadata={"help": "push the data set when it is complete"})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "user/name; output_dir's name unless given"})
    hub_private_repo: bool = field(default=True, metadata={"help": "whether the repository is private"})

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
        if self.vae_name_or_path is None:
            embedded = self.dataset_name == str(ASSETS / "emoji")
            self.vae_name_or_path = str(ASSETS / "vae-emoji") if embedded else "stabilityai/sd-vae-ft-ema"
        shrunk = min(self.resolution, self.encode_batch_size)
        if shrunk < 1:
            raise ValueError(f"resolution and encode_batch_size must be at least 1: one of them is {shrunk}")


def public_name(name: str) -> str:
    """An id on the Hub; the name of a local folder is nobody's business."""
    return "local" if Path(name).exists() or name.count("/") != 1 else name


def make_info(settings: ExtractSettings, vae: AutoencoderKL, source_revision: str) -> LatentsInfo:
    shrink = vae_shrink_factor(vae.config)
    if settings.resolution % shrink:
        raise ValueError(
            f"resolution={settings.resolution} is no multiple of {shrink}, by which the VAE shrinks images"
        )
    side = settings.resolution // shrink
    return LatentsInfo(
        vae=public_name(settings.vae_name_or_path),
        vae_sha256=hash_vae(vae),
        scaling_factor=vae.config.scaling_factor,
        shape=(2 * vae.config.latent_channels, side, side),
        resolution=settings.resolution,
        dtype=settings.dtype,
        mirrored=settings.mirror,
        source=public_name(settings.dataset_name),
        source_revision=source_revision,
    )


def write_card(folder: Path, info: LatentsInfo, report: dict, split: str) -> None:
    front = DatasetCardData(tags=["latents", "dit", "dit-hf"], task_categories=["unconditional-image-generation"])
    channels = info.shape[0]
    snippet = SNIPPETS[info.dtype].format(shape=info.shape, channels=channels, double=2 * channels)
    known = {"info": info, "report": report, "split": split, "snippet": snippet}
    known |= {"too": ", and for their mirror images" if info.mirrored else "", "front": f"---\n{front.to_yaml()}\n---"}
    text = CARD.format(**known)
    DatasetCard(text).save(folder / "README.md")


def check_push(settings: ExtractSettings) -> str:
    """Create the repository, so that what forbids a push is found before anything is computed; its full id."""
    name = settings.hub_dataset_id or Path(settings.output_dir).resolve().name
    api, private = HfApi(), settings.hub_private_repo
    with one_line_errors(name):
        made = retried(lambda: api.create_repo(name, repo_type="dataset", private=private, exist_ok=True))
        found = retried(lambda: api.dataset_info(made.repo_id))
    if private and not found.private:
        raise ValueError(f"{made.repo_id} is public: pass --hub_private_repo false, or make it private in its settings")
    return made.repo_id


def push(settings: ExtractSettings, repo_id: str) -> None:
    files = [f"data/{settings.dataset_split}-*.parquet", "latents.json", "README.md"]
    with one_line_errors(repo_id):
        commit = retried(
            lambda: HfApi().upload_folder(
                repo_id=repo_id, folder_path=settings.output_dir, repo_type="dataset", allow_patterns=files
            )
        )
    print(f"pushed to {commit.commit_url} ({'private' if settings.hub_private_repo else 'PUBLIC'})", file=sys.stderr)


def run(settings: ExtractSettings) -> dict:
    # The last process waits for the others for as long as they need.
    waiting = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[waiting])
    repo_id = check_push(settings) if settings.push_to_hub and accelerator.is_main_process else None
    source = open_images(
        settings.dataset_name,
        settings.dataset_split,
        settings.image_column,
        settings.label_column,
        config_name=settings.dataset_config_name,
        revision=settings.dataset_revision,
        class_names=read_names(settings.class_names_file),
        label_map=read_map(settings.label_map_file),
    )
    vae = AutoencoderKL.from_pretrained(settings.vae_name_or_path).to(accelerator.device).eval().requires_grad_(False)
    info = make_info(settings, vae, source.revision)
    folder = Path(settings.output_dir)
    report = extract_latents(
        source,
        vae,
        info,
        folder,
        accelerator,
        split=settings.dataset_split,
        batch_size=settings.encode_batch_size,
        num_workers=settings.num_workers,
        max_bad_images=settings.max_bad_images,
    )
    if accelerator.is_main_process:
        write_card(folder, info, report, settings.dataset_split)
        print(json.dumps({**report, "skipped": len(report["skipped"])}))
        if repo_id:
            push(settings, repo_id)
    accelerator.end_training()
    return report


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dit_hf").setLevel(logging.INFO)
    try:
        (parsed,) = HfArgumentParser(ExtractSettings).parse_args_into_dataclasses()
        run(parsed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
