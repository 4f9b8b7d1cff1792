"""The way of a batch from the disk to the loop: open the data set, prepare images, encode them to latents.

    open_source -> ImageStream (decoded, cropped, flipped; on loader workers)
                -> LatentEncoder (the VAE's posterior, drawn anew each time)
                -> LatentBatch, which `loop.train_steps` takes

Each stage keys its random numbers by (seed, epoch, position), so that a resumed training sees the same batches.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import AutoencoderKL

from ..data.labels import read_map, read_names
from ..data.latents import LatentEncoder
from ..data.moments import check_latents
from ..data.names import local_path
from ..data.revision import LOCAL_PREFIX, commit_of, with_choice
from ..data.sequential import SequentialSource
from ..data.sources import FilesSource, ImageSource, open_images
from ..data.streaming import ImageBatch, ImageStream, Position
from ..image_folder import is_hidden
from .batch import LatentBatch
from .processes.launch import available_cores
from .processes.signals import shield_worker
from .saving.checkpoint import Progress
from .settings import TrainSettings, read_yaml, rows

# What a batch can carry for techniques, besides latents and labels; (B, ...) each.
EXTRAS: dict[str, Callable[[ImageBatch], torch.Tensor]] = {
    "images": lambda batch: batch.images,  # (B, 3, S, S) in [-1, 1], cropped and flipped as they are encoded
}
logger = get_logger("dit_hf.training")

MAX_WORKERS = 4  # of a process, if the user sets no number

# Settings that decode or crop images, and so have no effect on latents that were made beforehand.
ONLY_FOR_IMAGES = ("image_column", "label_column", "cache_latents")


def open_source(settings: TrainSettings) -> ImageSource:
    """Open the data set, log what it holds, and record in the settings which version of it was found.

    A resumed run takes the version that it began with, also if the Hub has a newer one. Of local files there is one
    version only, which `saving.resume` compares with that of the checkpoint.
    """
    recorded_file = Path(settings.output_dir) / "settings.yaml"
    recorded = read_yaml(recorded_file) if recorded_file.exists() else {}
    before = recorded.get("dataset_revision") if recorded.get("dataset_name") == settings.dataset_name else None
    is_local = (before or "").startswith(LOCAL_PREFIX)
    if settings.dataset_revision in (None, before):
        settings.dataset_revision = None if is_local else before
    source = open_images(
        settings.dataset_name,
        settings.dataset_split,
        settings.image_column,
        settings.label_column,
        config_name=settings.dataset_config_name,
        revision=commit_of(settings.dataset_revision),
        class_names=read_names(settings.class_names_file),
        label_map=read_map(settings.label_map_file),
    )
    logger.info(source.description)
    if isinstance(source, FilesSource):
        check_output_dir(settings.output_dir, settings.dataset_name)
    settings.dataset_revision = source.revision
    chooses_classes = settings.class_names_file or settings.label_map_file
    if chooses_classes and before != source.revision:  # recorded by a version that did not compare these files
        settings.dataset_revision = with_choice(source.revision, source.classes.names, source.classes.numbers)
    return source


def check_output_dir(output_dir: str, dataset_name: str) -> None:
    """Refuse to write into the folder of the images: a resumed training would take its own previews for a class.

    Raises:
        ValueError: If the output would lie among the images, and not in a hidden folder.
    """
    root, output = Path(local_path(dataset_name)).resolve(), Path(output_dir).resolve()
    if root.is_dir() and output.is_relative_to(root) and not any(map(is_hidden, output.relative_to(root).parts)):
        raise ValueError(
            f"output_dir={output_dir!r} lies in {root}, the folder of the images, which its previews would join: set "
            "another --output_dir"
        )


def check_stored_latents(settings: TrainSettings, source: ImageSource, vae: AutoencoderKL) -> None:
    """Check latents that were made beforehand, if the data set holds them.

    Raises:
        ValueError: If the settings would make other latents from the images, or if a setting has no effect on latents.
    """
    if not source.latents:
        return
    check_latents(
        source.latents,
        vae,
        resolution=settings.resolution,
        random_flip=settings.random_flip,
        num_jitters=settings.num_jitters,
    )
    for name in ONLY_FOR_IMAGES:
        if (value := getattr(settings, name)) != rows(settings)[name].default:
            raise ValueError(
                f"{name}={value!r} has no effect, because {settings.dataset_name} holds latents made beforehand: "
                "leave it out"
            )


def check_extras(extras: Mapping[str, Sequence[str]], source: ImageSource) -> None:
    """Check that batches can carry what techniques need.

    Args:
        extras: Name of each extra, and the techniques that need it.
        source: Data set.

    Raises:
        ValueError: If there is no such extra, or if the data set holds latents made beforehand instead of images.
    """
    for extra, techniques in extras.items():
        if extra not in EXTRAS:
            raise ValueError(f"the technique {techniques[0]} needs {extra!r}, but a batch has only {', '.join(EXTRAS)}")
        if source.latents:
            raise ValueError(
                f"the technique {techniques[0]} needs {extra!r}, but the data set holds latents made beforehand: train "
                "on images"
            )


def open_stream(
    settings: TrainSettings, source: ImageSource, accelerator: Accelerator, progress: Progress
) -> ImageStream:
    """Return this process's endless batches of prepared images, from where the training has come to."""
    return ImageStream(
        source,
        batch_size=settings.train_batch_size,
        resolution=settings.resolution,
        random_flip=settings.random_flip,
        num_jitters=settings.num_jitters,
        seed=settings.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start=Position(progress.epoch, progress.offset),
        images_seen=progress.images_seen,
        bad_images=progress.bad_images,
        num_workers=choose_num_workers(
            settings.dataloader_num_workers,
            source.num_streams,
            accelerator.num_processes,
            has_row_groups=not isinstance(source, SequentialSource),
        ),
        max_bad_images=settings.max_bad_images,
        worker_init=shield_worker,
    )


def choose_num_workers(wanted: int | None, num_streams: int, num_processes: int, *, has_row_groups: bool = True) -> int:
    """Return the number of loader workers of each process; what a batch holds does not depend on it.

    Args:
        wanted: Number that the user has set; None to choose one.
        num_streams: Number of streams of the data set's order. Unless it is a multiple of processes x workers, row
            groups are read more than once.
        num_processes: Number of training processes on all machines.
        has_row_groups: Whether a worker can read its own rows only; if not, one worker reads as much as many do.
    """
    if wanted is not None:
        return wanted
    cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    most = min(MAX_WORKERS if has_row_groups else 1, cores - 1)  # a core stays with the training
    fitting = [count for count in range(1, most + 1) if num_streams == 1 or num_streams % (count * num_processes) == 0]
    return max(fitting, default=0)


def latent_batches(
    batches: Iterator[ImageBatch | None],
    encoder: LatentEncoder,
    device: torch.device,
    class_indices: list[int],
    extras: Collection[str] = (),
) -> Iterator[LatentBatch | None]:
    """Yield the latents of this process without end; None if the run was asked to stop while it waited for images.

    Args:
        batches: Batches of prepared images, as `ImageStream.batches` yields them.
        encoder: VAE that encodes them.
        device: Device that the model is on.
        class_indices: The model's class of each class of the data; empty for an unconditional model.
        extras: Keys of `EXTRAS` that techniques need.
    """
    to_model = torch.tensor(class_indices)  # (K,)
    for batch in batches:
        if batch is None:
            yield None
            continue
        yield LatentBatch(
            x_0=encoder(batch).to(device),
            class_labels=to_model[batch.class_labels].to(device) if class_indices else None,
            positions=list(batch.positions),
            next_position=batch.next_position,
            extras={name: EXTRAS[name](batch).to(device) for name in extras},
        )
