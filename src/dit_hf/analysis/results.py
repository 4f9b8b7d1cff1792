"""The file of a study's results: a CSV with one row for each measurement, to which rows are appended.

A row holds what was measured (its key), the numbers, and where they come from. Figures read this file and nothing else.
A file of an older version, which lacks the last columns, is read too; the first row that is appended completes it.
"""

import csv
import math
import os
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ..files import written_whole

REAL = "real"  # stands for the model in rows of held-out real images, whose distance a perfect model would reach


class MeasurementKey(NamedTuple):
    """What identifies a measurement: two measurements with equal keys are the same one."""

    model: str
    block_type: str
    seed: int
    images_seen: int
    num_steps: int
    guidance_scale: float
    num_samples: int

    @property
    def name(self) -> str:
        """The key as a file name, without the number of samples."""
        training = f"{self.model.replace('/', '-')}-{self.block_type}-seed{self.seed}-{self.images_seen}"
        return f"{training}-steps{self.num_steps}-cfg{self.guidance_scale:g}"


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        model: Name of the model, such as "XL/2"; `REAL` for real images.
        block_type: Block design, as in `DiTConfig`.
        seed: Seed of the weights, of the order of the images and of the noise in training.
        images_seen: Number of images that the model was trained on, repetitions included.
        num_steps: Number of steps of the sampler.
        guidance_scale: Scale of classifier-free guidance; 1 is no guidance.
        num_samples: Number of samples that were measured. Distances of different numbers cannot be compared.
        distance: Fréchet distance between the features of the samples and those of the training set.
        class_agreement: Share of samples that the extractor assigns to the class that was asked for.
        precision: Share of samples inside the manifold of real images.
        recall: Share of real images inside the manifold of samples.
        train_loss: Mean squared error over the last 500 steps, or over all steps if there were fewer.
        gmacs: Multiply-adds of a forward of one image, in units of 10^9.
        parameters: Number of parameters, position embedding included.
        train_seconds: Seconds that the training had taken.
        sample_seconds: Seconds that drawing the samples took.
        dataset: Name of the data set.
        recipe: Objective, learning rate, warm-up, batch size and decay of the average.
        sampler: Name of the sampler.
        extractor: Description of the network whose features are compared.
        commit: Commit of the code, with "+" after it if files were changed since. Older rows have 10 digits of it.
        hardware: Processor and number of threads, or the GPU.
        date: Time of the measurement, in UTC.
        train_cpu_seconds: CPU seconds that the training had taken, over all threads; NaN if they were not counted.
        second_distance: Distance in the features of a second network; NaN if it was not measured.
        second_extractor: Description of that network; empty if there is none.
    """

    model: str
    block_type: str
    seed: int
    images_seen: int
    num_steps: int
    guidance_scale: float
    num_samples: int
    distance: float
    class_agreement: float
    precision: float
    recall: float
    train_loss: float
    gmacs: float
    parameters: int
    train_seconds: float
    sample_seconds: float
    dataset: str
    recipe: str
    sampler: str
    extractor: str
    commit: str
    hardware: str
    date: str
    train_cpu_seconds: float = math.nan
    second_distance: float = math.nan
    second_extractor: str = ""

    @property
    def key(self) -> MeasurementKey:
        """What identifies this measurement."""
        return MeasurementKey(*(getattr(self, name) for name in MeasurementKey._fields))


COLUMNS = [field.name for field in fields(Row)]
OLDEST_COLUMNS = [field.name for field in fields(Row) if field.default is MISSING]


def read_rows(path: Path) -> list[Row]:
    """Read a results file; a last line that is not complete, since its writer was killed, is left out.

    Args:
        path: The file. A file that does not exist has no rows.

    Raises:
        ValueError: If the columns are not those of `Row`, or a value is not a number.
    """
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    reader = csv.DictReader(whole.splitlines())
    columns = list(reader.fieldnames or [])
    if whole and (len(columns) < len(OLDEST_COLUMNS) or columns != COLUMNS[: len(columns)]):
        raise ValueError(f"{path} has the columns {columns}, not {COLUMNS}: choose another file")
    types: dict[str, Any] = {field.name: field.type for field in fields(Row)}
    try:
        return [Row(**{name: types[name](row[name]) for name in columns}) for row in reader]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds a row that cannot be read ({error}): repair or remove that line") from error


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a results file, and remove an incomplete last line.

    Raises:
        ValueError: If the file is not a results file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if "\n" in text and text.partition("\n")[0] != ",".join(COLUMNS):
        write_rows(path, [*read_rows(path), *rows])
        return
    with path.open("r+" if path.is_file() else "w", encoding="utf-8", newline="") as file:
        whole = len(text.encode()) - len(text.rpartition("\n")[2].encode())
        file.truncate(whole)
        file.seek(whole)
        _write(file, rows, header=not whole)
        file.flush()
        os.fsync(file.fileno())


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a results file, which replaces the one that was there."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        _write(file, rows, header=True)


def _write(file: TextIO, rows: Iterable[Row], header: bool) -> None:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
