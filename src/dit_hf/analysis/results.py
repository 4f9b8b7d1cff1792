"""The file of a study's results: one row a measurement, appended whole, never rewritten.

A row says what was measured (the key), what came out, and where it came from. Figures read this file and nothing else.
"""

import csv
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

REAL = "real"  # the model's name in rows that measure held-out real images: what a perfect model would reach


class MeasurementKey(NamedTuple):
    """What makes two measurements the same."""

    model: str
    block_type: str
    seed: int
    images_seen: int
    num_steps: int
    guidance_scale: float
    num_samples: int

    @property
    def name(self) -> str:
        """What was measured, as a name for files; without the number of samples."""
        training = f"{self.model.replace('/', '-')}-{self.block_type}-seed{self.seed}-{self.images_seen}"
        return f"{training}-steps{self.num_steps}-cfg{self.guidance_scale:g}"


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        model: such as "XL/2", or `REAL`.
        block_type: as in `DiTConfig`.
        seed: of the weights, the order of the images and the noise of the training.
        images_seen: in training, repetitions counted.
        num_steps: of the sampler.
        guidance_scale: 1 for none.
        num_samples: that were measured; distances of different numbers cannot be compared.
        distance: Fréchet distance of the samples' features to those of the training set.
        class_agreement: share of samples that the extractor assigns to the class that was asked for.
        precision: share of samples inside the manifold of real images.
        recall: share of real images inside the manifold of samples.
        train_loss: mean squared error of the last 500 steps, or of all where there were fewer.
        gmacs: multiply-adds of a forward of an image, in units of 10^9.
        parameters: the position embedding counted.
        train_seconds: of the training up to here.
        sample_seconds: of drawing the samples.
        dataset: its name.
        recipe: objective, batch size, learning rate, decay of the average.
        sampler: the scheduler.
        extractor: of the features.
        commit: of the code, "+" appended where files differed from it.
        hardware: processor and number of threads.
        date: of the measurement, UTC.
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

    @property
    def key(self) -> MeasurementKey:
        """What makes two measurements the same."""
        return MeasurementKey(*(getattr(self, name) for name in MeasurementKey._fields))


COLUMNS = [field.name for field in fields(Row)]


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file; a last line that a kill cut off is passed over.

    Args:
        path: the file; none there is no row.

    Raises:
        ValueError: if the columns are others, or a value is no number.
    """
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    reader = csv.DictReader(whole.splitlines())
    if whole and reader.fieldnames != COLUMNS:
        raise ValueError(f"{path} has the columns {reader.fieldnames}, not {COLUMNS}: choose another file")
    try:
        return [Row(**{field.name: field.type(row[field.name]) for field in fields(Row)}) for row in reader]  # type: ignore[operator]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds a row that cannot be read ({error}): repair or remove that line") from error


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows, each in one write; what a kill cut off before is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    with path.open("r+" if path.is_file() else "w", encoding="utf-8", newline="") as file:
        whole = len(text.encode()) - len(text.rpartition("\n")[2].encode())
        file.truncate(whole)
        file.seek(whole)
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not whole:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
        file.flush()
        os.fsync(file.fileno())
