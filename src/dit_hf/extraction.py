"""The latents of a data set, made once: training on them needs no VAE encoder and decodes no images.

    accelerate launch -m dit_hf.extraction --dataset_name photos --output_dir out/photos-latents

If the command is stopped, the same command continues.
"""

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from diffusers import AutoencoderKL
from huggingface_hub import HfApi
from transformers import HfArgumentParser

from .cards.latents import write_latents_card
from .data.extract import extract_latents
from .data.labels import read_map, read_names
from .data.moments import DTYPES, LatentsInfo, hash_vae
from .data.sources import open_images
from .flags import exit_with_line, print_log
from .hub.errors import one_line_errors
from .network import retried
from .places import check_model_source
from .vae import check_resolution, vae_shrink_factor, vae_subfolder


@dataclass
class ExtractSettings:
    """Settings of an extraction: the images, the VAE, and where the latents go."""

    output_dir: str = field(
        default="out/latents", metadata={"help": "Folder that the data set of latents is written to."}
    )
    dataset_name: str = field(
        default="", metadata={"help": "Images: an id on the Hub, a folder, or a pattern of files."}
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
    vae_name_or_path: str = field(
        default="stabilityai/sd-vae-ft-ema",
        metadata={"help": "AutoencoderKL, or a pipeline that has one: an id on the Hub, or a folder."},
    )
    resolution: int = field(default=256, metadata={"help": "Side of the images, in pixels."})
    mirror: bool = field(default=True, metadata={"help": "Whether to store the latents of the mirror images too."})
    dtype: str = field(default="float16", metadata={"help": "Storage: float16, or int8 for half the size."})
    encode_batch_size: int = field(default=32, metadata={"help": "Number of images that are encoded together."})
    num_workers: int = field(default=4, metadata={"help": "Number of threads of each process that prepare images."})
    max_bad_images: float = field(
        default=0.001,
        metadata={"help": "Share of images that may be skipped. Unless it is 0, one may be."},
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Whether to push the finished data set to the Hub."})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "Id on the Hub: user/name. Default: the name of output_dir."}
    )
    hub_private_repo: bool = field(default=True, metadata={"help": "Whether the repository on the Hub is private."})

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
        if not self.dataset_name:
            raise ValueError("dataset_name is missing: name a folder of images, or an id on the Hub")
        for name in ("resolution", "encode_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not possible: set it to at least 1")


def _public_name(name: str) -> str:
    """Return an id on the Hub as it is, and "local" for a folder, whose name may be private."""
    return "local" if Path(name).exists() or name.count("/") != 1 else name


def _make_info(settings: ExtractSettings, vae: AutoencoderKL, source_revision: str) -> LatentsInfo:
    shrink = vae_shrink_factor(vae.config)
    check_resolution(settings.resolution, shrink)
    side = settings.resolution // shrink
    return LatentsInfo(
        vae=_public_name(settings.vae_name_or_path),
        vae_sha256=hash_vae(vae),
        scaling_factor=vae.config.scaling_factor,
        shape=(2 * vae.config.latent_channels, side, side),
        resolution=settings.resolution,
        dtype=settings.dtype,
        mirrored=settings.mirror,
        source=_public_name(settings.dataset_name),
        source_revision=source_revision,
    )


FIELDS = tuple(ExtractSettings.__dataclass_fields__)


class _Parser(HfArgumentParser):
    """A parser that raises what is wrong in one line, where argparse would print the usage of all settings."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_settings(arguments: Sequence[str]) -> ExtractSettings:
    """Read settings from flags.

    Raises:
        ValueError: If a flag is unknown or a value is not possible.
    """
    parser = _Parser(ExtractSettings, allow_abbrev=False)
    parsed, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        close = difflib.get_close_matches(unknown[0].removeprefix("--"), FIELDS, n=1)
        hint = f": --{close[0]} is" if close else ""
        raise ValueError(f"the command line sets {unknown[0]!r}, which is not a setting{hint}")
    return ExtractSettings(**vars(parsed))


def _check_push(settings: ExtractSettings) -> str:
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


def _push(settings: ExtractSettings, repo_id: str) -> None:
    files = [f"data/{settings.dataset_split}-*.parquet", "latents.json", "README.md"]
    with one_line_errors(repo_id):
        commit = retried(
            lambda: HfApi().upload_folder(
                repo_id=repo_id, folder_path=settings.output_dir, repo_type="dataset", allow_patterns=files
            )
        )
    print(f"pushed to {commit.commit_url} ({'private' if settings.hub_private_repo else 'PUBLIC'})", file=sys.stderr)  # noqa: T201


def run(settings: ExtractSettings) -> dict[str, Any]:
    """Extract the latents that the settings describe, write their card, and push them if that is asked for.

    Returns:
        The report of `extract_latents`.

    Raises:
        HubError: If the Hub cannot be used.
        ValueError: If the settings do not fit the data or the VAE, or the folder holds other latents.
    """
    check_model_source(settings.vae_name_or_path, vae_subfolder(settings.vae_name_or_path))
    # A process that has no shard left waits for the others, however long their shards take.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
    repo_id = _check_push(settings) if settings.push_to_hub and accelerator.is_main_process else None
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
    subfolder = vae_subfolder(settings.vae_name_or_path)
    vae = AutoencoderKL.from_pretrained(settings.vae_name_or_path, subfolder=subfolder).to(accelerator.device)
    vae.eval().requires_grad_(False)
    info = _make_info(settings, vae, source.revision)
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
        write_latents_card(folder, info, report, settings.dataset_split)
        print(json.dumps({**report, "skipped": len(report["skipped"])}))  # noqa: T201
        if repo_id:
            _push(settings, repo_id)
    accelerator.end_training()
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the settings and extract. A wrong setting ends with one line and exit code 1."""
    print_log()
    try:
        run(parse_settings(sys.argv[1:] if arguments is None else arguments))
    except (ValueError, OSError, ImportError, MemoryError) as error:
        exit_with_line(error, FIELDS)


if __name__ == "__main__":
    main()
