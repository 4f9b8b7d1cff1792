"""OpenVINO: Intel's runtime for processors, the fastest one here on a CPU with AMX."""

import functools
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .engine import Engine, Run

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVino(Engine):
    """OpenVINO as a runtime. A file holds float32 weights; the number format is chosen when it is loaded."""

    name = "openvino"
    package = "openvino"
    extra = "openvino"
    suffix = ".xml"
    loads_as = {"float32": ("float32", "bfloat16"), "bfloat16": ("bfloat16", "float32")}

    def write(self, program: ExportedProgram, file: Path, dtype: str) -> None:
        import openvino

        openvino.save_model(_converted(program), file, compress_to_fp16=False)

    def load(self, file: Path, dtype: str) -> Run:
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = _core().compile_model(file, "CPU", options)
        mine = threading.local()  # a request serves one thread at a time

        def run(*inputs: Tensor) -> list[Tensor]:
            if not hasattr(mine, "request"):
                mine.request = compiled.create_infer_request()
            arrays = [tensor.contiguous().numpy() for tensor in inputs]
            results = mine.request.infer(arrays, share_inputs=True, share_outputs=False)
            return [torch.from_numpy(results[place]) for place in range(len(compiled.outputs))]

        return run

    def check_can_compute(self, dtype: str) -> None:
        if dtype == "bfloat16" and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError("dtype=bfloat16: this processor has neither AMX nor AVX512-BF16: pass dtype=float32")


@functools.cache
def _core() -> Any:
    """Return OpenVINO, which stays for the whole process.

    On a CPU with AMX it gives the process a stack for signals, and takes it away when it ends, also from another that
    was begun in between: the next signal, such as Ctrl-C, would crash.
    """
    import openvino

    return openvino.Core()


def _converted(program: ExportedProgram) -> Any:
    """Convert a program as `openvino.convert_model` does, which would report each use to its makers as well."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchFXPythonDecoder.from_exported_program(program)  # the frontend does not keep it alive
    return frontend.convert(frontend.load(decoder))
