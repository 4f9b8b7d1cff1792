"""What every runtime does: write an exported graph to a file, and load the file as a function of tensors."""

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..extras import require

Run = Callable[..., list[Tensor]]  # from the inputs of a graph to its outputs, all of them tensors on the CPU


class Engine:
    """A runtime. A subclass states the attributes and defines `write` and `load`.

    Attributes:
        name: Name of the runtime, as users give it.
        package: Package that runs the files, by its name on PyPI.
        extra: Extra of this package that installs the runtime; None if it comes with the package.
        writes_with: Further packages that only the export needs.
        suffix: End of the name of a file.
        loads_as: Number formats that a file can be computed in, by the format it was exported in.
    """

    name: str
    package: str
    extra: str | None = None
    writes_with: tuple[str, ...] = ()
    suffix: str
    loads_as: Mapping[str, tuple[str, ...]]

    def write(self, program: ExportedProgram, file: Path, dtype: str) -> None:
        """Write a graph.

        Args:
            program: Graph with float32 weights, or with those of `weight_dtype`.
            file: File to write, which ends in `suffix`. Other files may be written beside it.
            dtype: Number format, a key of `loads_as`.
        """
        raise NotImplementedError

    def load(self, file: Path, dtype: str) -> Run:
        """Load a graph.

        Args:
            file: File that `write` wrote.
            dtype: Number format to compute in, one of those in `loads_as`.
        """
        raise NotImplementedError

    def weight_dtype(self, dtype: str) -> torch.dtype:
        """Return the dtype that the weights must have before the graph is exported."""
        return torch.float32

    def written_dtype(self, dtype: str) -> str:
        """Return the number format to export in, for a file that computes in another one as well.

        Raises:
            ValueError: If no file of this runtime computes in the number format.
        """
        for written, possible in self.loads_as.items():
            if dtype in possible:
                return written
        names = ", ".join(self.loads_as)
        raise ValueError(f"dtype={dtype}: {self.name} computes in {names}: pass one of them, or another runtime")

    def check_can_compute(self, dtype: str) -> None:
        """Refuse a number format that this processor does not compute in.

        Raises:
            ValueError: If the processor lacks the instructions.
        """

    def check_installed(self, to_write: bool = False) -> None:
        """Refuse to go on without the packages of the runtime.

        Args:
            to_write: Whether the packages that only the export needs must be there as well.

        Raises:
            ImportError: If a package is missing; the message says what to install.
        """
        packages = (self.package, *(self.writes_with if to_write else ()))
        require(self.name, *packages)

    def installed_version(self) -> str:
        """Return the version of the runtime's package."""
        try:
            return version(self.package)
        except PackageNotFoundError:  # a build of its own, installed without metadata
            return str(importlib.import_module(self.package).__version__)
