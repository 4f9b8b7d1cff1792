"""Extraction: the latents of a whole data set, encoded on any number of processes and written as parquet shards.

The rows of each shard depend on the source alone. A shard is either whole or not there, so that a run that was killed
and is started again makes the missing shards only.

Legend: B batch, S side of an image, C latent channels, h, w sides of a latent.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Features, Value
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from ..files import remove_leftovers, write_bytes, written_whole
from ..images import BadImage, decode_image
from .bad_images import check_bad_images
from .moments import COLUMNS, METADATA_KEY, LatentsInfo, pack, unpack
from .preparation import image_to_tensor, resize_and_crop
from .rows import Rows
from .sources import ImageSource, SequentialSource

logger = logging.getLogger(__name__)

INFO_FILE = "latents.json"
REPORT_KEY = b"dit_hf.report"
ROWS_OF_A_GROUP = 128
ROWS_OF_A_SHARD = 8192


def plan_shards(source: ImageSource, rows_of_a_shard: int = ROWS_OF_A_SHARD) -> list[range]:
    """Plan which parts of a source each shard holds.

    Args:
        source: Images, from `open_images`.
        rows_of_a_shard: Number of rows that a shard should have; a part of the source is not divided.
    """
    if isinstance(source, SequentialSource):
        return [range(part, part + 1) for part in range(source.num_parts)]
    mean = source.group_sizes.sum() / source.num_parts
    step = max(1, round(rows_of_a_shard / mean))
    return [range(first, min(first + step, source.num_parts)) for first in range(0, source.num_parts, step)]


def extract_latents(
    source: ImageSource,
    vae: AutoencoderKL,
    info: LatentsInfo,
    folder: Path,
    accelerator: Accelerator,
    *,
    split: str = "train",
    batch_size: int = 32,
    num_workers: int = 4,
    max_bad_images: float = 0.001,
    rows_of_a_shard: int = ROWS_OF_A_SHARD,
) -> dict[str, Any]:
    """Encode every image of a source and its mirror image, and write `folder/data/SPLIT-*.parquet` and `latents.json`.

    Args:
        source: Images, from `open_images`.
        vae: VAE on the accelerator's device.
        info: Record that is stored with the latents.
        folder: Folder of the data set. A folder that holds other latents is refused.
        accelerator: Accelerator whose processes divide the missing shards among them.
        split: Split that the shards are named after.
        batch_size: Number of images that are encoded together, and as many mirror images.
        num_workers: Number of threads of each process that prepare images.
        max_bad_images: Share of the images that may be skipped, see `allowed_bad_images`.
        rows_of_a_shard: Number of images that a shard should have.

    Returns:
        Report with the number of images, the skipped images, and the error that storing causes.

    Raises:
        ValueError: If the folder holds other latents, or if too many images cannot be decoded.
        SourceError: If a shard of the source cannot be read.
    """
    plan = plan_shards(source, rows_of_a_shard)
    paths = [folder / "data" / f"{split}-{k:05d}-of-{len(plan):05d}.parquet" for k in range(len(plan))]
    if accelerator.is_main_process:
        _begin(folder, info, paths)
    accelerator.wait_for_everyone()
    missing = [k for k, path in enumerate(paths) if not path.exists()]
    accelerator.wait_for_everyone()  # all processes have seen the same shards before one of them writes
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        for k in missing[accelerator.process_index :: accelerator.num_processes]:
            rows = (rows for part in plan[k] for rows in source.read_part(part))
            images = _prepared(rows, info.resolution, batch_size, pool)
            _write_shard(paths[k], images, vae, info, source.classes.names)
            logger.info(f"wrote {paths[k].name}")
            _check_skipped([path for path in paths if path.exists()], max_bad_images)
    accelerator.wait_for_everyone()
    report = _sum_up(paths)
    if accelerator.is_main_process:
        write_bytes(folder / INFO_FILE, json.dumps({**json.loads(info.to_json()), "report": report}, indent=2).encode())
    accelerator.wait_for_everyone()
    return report


def _begin(folder: Path, info: LatentsInfo, paths: Sequence[Path]) -> None:
    """Make the folder, or check that what it holds is an earlier part of this run."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    if (folder / INFO_FILE).exists():
        before = json.loads((folder / INFO_FILE).read_text())
        now = json.loads(info.to_json())
        if changed := [
            f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in now if before.get(name) != now[name]
        ]:
            raise ValueError(f"{folder} holds other latents: {'; '.join(changed)}. Choose another folder")
    if unexpected := {path.name for path in (folder / "data").glob("*.parquet")} - {path.name for path in paths}:
        raise ValueError(f"{folder}/data holds {min(unexpected)}, which this run would not make: choose another folder")
    remove_leftovers(folder / "data")
    if not (folder / INFO_FILE).exists():
        write_bytes(folder / INFO_FILE, info.to_json().encode())


Prepared = tuple[str, int, Tensor | BadImage]  # key, class, image (3, S, S)


def _prepared(
    groups: Iterator[Rows], resolution: int, batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[list[Prepared]]:
    """Yield batches of images; threads prepare a batch while the batch before it is encoded."""

    def prepare(row: tuple[Rows, int]) -> Prepared:
        rows, k = row
        try:
            image: Tensor | BadImage = image_to_tensor(resize_and_crop(decode_image(rows.read(k)), resolution))
        except BadImage as error:
            image = error
        return rows.key(k), rows.labels[k], image

    rows = ((group, k) for group in groups for k in range(len(group)))
    batch = [pool.submit(prepare, row) for row in islice(rows, batch_size)]
    while batch:
        next_batch = [pool.submit(prepare, row) for row in islice(rows, batch_size)]
        yield [future.result() for future in batch]
        batch = next_batch


def _write_shard(
    path: Path, batches: Iterator[list[Prepared]], vae: AutoencoderKL, info: LatentsInfo, class_names: list[str]
) -> None:
    columns = COLUMNS if info.mirrored else COLUMNS[:1]
    features = Features(
        {**{name: Value("binary") for name in columns}, "label": ClassLabel(names=class_names), "key": Value("string")}
    )
    schema = features.arrow_schema.with_metadata(
        {**(features.arrow_schema.metadata or {}), METADATA_KEY: info.to_json().encode()}
    )
    skipped: list[str] = []
    errors = [0.0, 0.0, 0.0]  # largest, sum of squares, count
    held: list[dict[str, Any]] = []
    with (
        written_whole(path) as partial,
        # without compression, because latents are close to random bits
        pq.ParquetWriter(partial, schema, compression="none", use_dictionary=False) as writer,
    ):
        for batch in batches:
            good = [(key, label, image) for key, label, image in batch if isinstance(image, Tensor)]
            skipped += [f"{key}: {image}" for key, _, image in batch if isinstance(image, BadImage)]
            held += _encode(good, vae, info, columns, errors)
            while len(held) >= ROWS_OF_A_GROUP:
                writer.write_table(pa.Table.from_pylist(held[:ROWS_OF_A_GROUP], schema=schema))
                held = held[ROWS_OF_A_GROUP:]
        if held:
            writer.write_table(pa.Table.from_pylist(held, schema=schema))
        writer.add_key_value_metadata({REPORT_KEY: json.dumps({"skipped": skipped, "errors": errors}).encode()})
    for reason in skipped:
        logger.warning(f"skipped {reason}")


@torch.no_grad()
def _encode(
    images: list[tuple[str, int, Tensor]],
    vae: AutoencoderKL,
    info: LatentsInfo,
    columns: Sequence[str],
    errors: list[float],
) -> list[dict[str, Any]]:
    """Return the rows of a shard for some images, and add to `errors` what storing them changes."""
    if not images:
        return []
    x = torch.stack([image for _, _, image in images]).to(vae.device, vae.dtype)  # (B, 3, S, S)
    both = [x, x.flip(-1)][: len(columns)]
    moments = [vae.encode(each).latent_dist.parameters.float().cpu().numpy() for each in both]  # each (B, 2C, h, w)
    rows = []
    for k, (key, label, _) in enumerate(images):
        packed = {name: pack(each[k], info.dtype) for name, each in zip(columns, moments, strict=True)}
        for name, each in zip(columns, moments, strict=True):
            _add_error(errors, each[k], packed[name], info)
        rows.append({**packed, "label": label, "key": key})
    return rows


def _add_error(errors: list[float], moments: NDArray[np.float32], packed: bytes, info: LatentsInfo) -> None:
    means = slice(None, len(moments) // 2)
    error = (unpack(packed, info).numpy()[means].astype(np.float64) - moments[means]) * info.scaling_factor
    errors[0] = max(errors[0], float(np.abs(error).max()))
    errors[1] += float(np.square(error).sum())
    errors[2] += error.size


def _report(path: Path) -> tuple[int, dict[str, Any]]:
    footer = pq.read_metadata(path)
    return footer.num_rows, json.loads(footer.metadata[REPORT_KEY])


def _check_skipped(paths: Sequence[Path], max_bad_images: float) -> None:
    """Raise a ValueError if more images were skipped, in all finished shards together, than `max_bad_images` allows."""
    reports = list(map(_report, paths))
    skipped = [key for _, report in reports for key in report["skipped"]]
    check_bad_images(skipped, max_bad_images, sum(rows for rows, _ in reports) + len(skipped))


def _sum_up(paths: Sequence[Path]) -> dict[str, Any]:
    reports = list(map(_report, paths))
    largest, squares, counts = zip(*(report["errors"] for _, report in reports), strict=True)
    return {
        "num_images": sum(rows for rows, _ in reports),
        "skipped": [key for _, report in reports for key in report["skipped"]],
        "latent_error_max": max(largest),  # how far storing moves the scaled mean, at most
        "latent_error_rms": (sum(squares) / max(sum(counts), 1)) ** 0.5,
    }
