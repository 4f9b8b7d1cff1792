"""What an exported network says of itself, in `export.json` beside its graphs, and whether it can run here."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from packaging.version import Version
from torch import Tensor

from .. import __version__
from ..extras import how_to_install
from .engine import Run
from .engines import ENGINES

FILE = "export.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """What an exported network is.

    Args:
        format: Name of the runtime.
        dtype: Number format that the network was exported in.
        runtime_version: Version of the runtime that the files were written with.
        dit_hf_version: Version of this package that wrote the files.
        weights_sha256: Hash of the weights of the network that was exported.
    """

    format: str
    dtype: str
    runtime_version: str
    dit_hf_version: str = __version__
    weights_sha256: str = ""

    def write(self, folder: Path) -> None:
        """Write the record into the folder of the network."""
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @property
    def tensor_dtype(self) -> torch.dtype:
        """The dtype of the tensors that go into the graphs and come out."""
        return ENGINES[self.format].weight_dtype(self.dtype)

    @property
    def exact_dtype(self) -> str:
        """Number format for a graph that must not lose precision: bfloat16 has no number 999, which is a timestep."""
        return str(self.tensor_dtype).removeprefix("torch.")

    def digest(self, dtype: str) -> Tensor:
        """Return a hash of all that the network's answers depend on, as 32 numbers (32,) in uint8."""
        content = json.dumps([dataclasses.asdict(self), dtype]).encode()
        return torch.tensor(list(hashlib.sha256(content).digest()), dtype=torch.uint8)


def read_record(folder: Path) -> Record:
    """Read the record of a network.

    Raises:
        ValueError: If there is none, or it is of a version of this package that wrote other fields.
    """
    try:
        fields = json.loads((folder / FILE).read_text(encoding="utf-8"))
        record = Record(**fields)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {FILE}: export the pipeline again, with dit-hf export") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{folder / FILE} cannot be read ({error}): export the pipeline again") from error
    if record.format not in ENGINES:
        raise ValueError(f"{folder / FILE} names the format {record.format!r}: this version knows {', '.join(ENGINES)}")
    return record


def choose_dtype(record: Record, dtype: torch.dtype | None) -> str:
    """Return the number format to compute in.

    Args:
        record: What the network was exported as.
        dtype: What the user asks for; None for what the network was exported in.

    Raises:
        ValueError: If the files cannot be computed in it.
    """
    wanted = record.dtype if dtype is None else str(dtype).removeprefix("torch.")
    possible = ENGINES[record.format].loads_as[record.dtype]
    if wanted not in possible:
        raise ValueError(
            f"dtype={wanted}: this export for {record.format} computes in {' or '.join(possible)}: pass that, or "
            "export the pipeline again"
        )
    return wanted


def load_graphs(folder: Path, record: Record, dtypes: Mapping[str, str]) -> dict[str, Run]:
    """Load the graphs of a network.

    Args:
        folder: Folder of the network.
        record: What the network was exported as.
        dtypes: Number format to compute in, by the name of the graph.

    Raises:
        ImportError: If the runtime is not installed.
        ValueError: If the runtime is older than the files, the processor lacks the instructions, or a file is missing
            or damaged.
    """
    engine = ENGINES[record.format]
    engine.check_installed()
    installed = engine.installed_version()
    if Version(installed) < Version(record.runtime_version):
        raise ValueError(
            f"{folder} was exported with {engine.package} {record.runtime_version}, and {installed} is installed: "
            f"{how_to_install(f'{engine.package}>={Version(record.runtime_version).public}')}, or export the pipeline "
            "again"
        )
    graphs: dict[str, Any] = {}
    for name, dtype in dtypes.items():
        engine.check_can_compute(dtype)
        file = folder / f"{name}{engine.suffix}"
        if not file.is_file():
            raise ValueError(f"{file} is missing: copy the whole folder, or export the pipeline again")
        try:
            graphs[name] = engine.load(file, dtype)
        except (
            RuntimeError,
            OSError,
            ValueError,
            BadZipFile,
        ) as error:  # each runtime has other words for a damaged file
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{file} cannot be loaded by {engine.package} {installed}: {reason}") from error
    return graphs
