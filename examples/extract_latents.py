"""Extract the latents of a data set. Training on them needs no VAE encoder and decodes no images.

    accelerate launch examples/extract_latents.py --output_dir out/emoji-latents        # the embedded emoji
    torchrun --nproc_per_node 8 examples/extract_latents.py --dataset_name ILSVRC/imagenet-1k \
        --vae_name_or_path stabilityai/sd-vae-ft-ema --resolution 256 --output_dir out/imagenet-latents
    accelerate launch examples/train_dit.py --dataset_name out/imagenet-latents

If the command is stopped, the same command continues. `--help` describes every setting.
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
px{too}, as {info.dtype}, made with dit-hf. To train on them, pass the name of this data set as `--dataset_name`.
`latents.json` records the VAE, the images and their preparation.

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
    """Settings of an extraction: the images, the VAE, and where the latents go."""

    output_dir: str = field(
        default="out/latents", metadata={"help": "Folder that the data set of latents is written to."}
    )
    dataset_name: str = field(
        default=str(ASSETS / "emoji"), metadata={"help": "Images: an id on the Hub, a folder, or a pattern of files."}
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a data set that has several."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the data set."})
    image_column: str = field(default="image", metadata={"help": "Column that holds the images."})
    label_column: str = field(default="label", metadata={"help": "Column that holds the classes."})
    class_names_file: str | None = field(
        default=None, metadata={"help": "File with the names of the classes to keep, one on each line."}
    )
    label_map_file: str | None = field(
        default=None, metadata={"help": 'JSON file: {"name in the data set": "name of the class"}.'}
    )
    vae_name_or_path: str | None = field(
        default=None,
        metadata={"help": "AutoencoderKL: an id on the Hub, or a folder. Default: the shipped one for the emoji."},
    )
    resolution: int = field(default=64, metadata={"help": "Side of the images, in pixels."})
    mirror: bool = field(default=True, metadata={"help": "Whether to store the latents of the mirror images too."})
    dtype: str = field(default="float16", metadata={"help": "Storage: float16, or int8 for half the size."})
    encode_batch_size: int = field(default=32, metadata={"help": "Number of images that are encoded together."})
    num_workers: int = field(default=4, metadata={"help": "Number of threads of each process that prepare images."})
    max_bad_images: float = field(default=0.001, metadata={"help": "Share of the images that may be skipped."})
    push_to_hub: bool = field(default=False, metadata={"help": "Whether to push the finished data set to the Hub."})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "Id on the Hub: user/name. Default: the name of output_dir."}
    )
    hub_private_repo: bool = field(default=True, metadata={"help": "Whether the repository on the Hub is private."})

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
        if self.vae_name_or_path is None:
            embedded = self.dataset_name == str(ASSETS / "emoji")
            self.vae_name_or_path = str(ASSETS / "vae-emoji") if embedded else "stabilityai/sd-vae-ft-ema"
        for name in ("resolution", "encode_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not possible: set it to at least 1")


def public_name(name: str) -> str:
    """Return an id on the Hub as it is, and "local" for a folder, whose name may be private."""
    return "local" if Path(name).exists() or name.count("/") != 1 else name


def make_info(settings: ExtractSettings, vae: AutoencoderKL, source_revision: str) -> LatentsInfo:
    shrink = vae_shrink_factor(vae.config)
    if settings.resolution % shrink:
        raise ValueError(
            f"resolution={settings.resolution} is no multiple of {shrink}, the factor by which the VAE shrinks images"
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
    """Create the repository and return its id, so that a push that is not allowed fails before anything is computed."""
    name = settings.hub_dataset_id or Path(settings.output_dir).resolve().name
    api, private = HfApi(), settings.hub_private_repo
    with one_line_errors(name):
        repository = retried(lambda: api.create_repo(name, repo_type="dataset", private=private, exist_ok=True))
        info = retried(lambda: api.dataset_info(repository.repo_id))
    if private and not info.private:
        raise ValueError(
            f"{repository.repo_id} is public: pass --hub_private_repo false, or make it private in its settings"
        )
    return repository.repo_id


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
    # A process that has no shard left waits for the others, however long their shards take.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
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
