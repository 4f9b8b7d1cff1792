"""torch's own exported programs: the graph runs without the Python code of the model, operator by operator."""

from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .engine import Engine, Run


class TorchProgram(Engine):
    """torch as a runtime. Its files run wherever torch runs; they are about as fast as the model itself."""

    name = "torch"
    package = "torch"
    suffix = ".pt2"
    loads_as = {"float32": ("float32",), "bfloat16": ("bfloat16",)}

    def write(self, program: ExportedProgram, file: Path, dtype: str) -> None:
        torch.export.save(program, file)

    def load(self, file: Path, dtype: str) -> Run:
        module = torch.export.load(file).module()

        def run(*inputs: Tensor) -> list[Tensor]:
            return list(module(*inputs))

        return run

    def weight_dtype(self, dtype: str) -> torch.dtype:
        return getattr(torch, dtype)
