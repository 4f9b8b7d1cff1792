"""OpenVINO: Intel's runtime for processors, the fastest one here on a CPU with AMX."""

import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from .engine import Engine, Run

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of all but the products
ACTIVATIONS_OF_A_SCALE = 128  # in int8; divides the widths of all models of the paper


class OpenVino(Engine):
    """OpenVINO as a runtime.

    A file of float32 weights computes in float32 and bfloat16, which is chosen when it is loaded. A file in int8 holds
    the weights of the matrix products in 8 bits, with a scale for each output. While it computes, the inputs of these
    products are rounded to 8 bits as well, 128 of them to a scale, if the processor multiplies such numbers.
    """

    name = "openvino"
    package = "openvino"
    extra = "openvino"
    suffix = ".xml"
    loads_as = {"float32": ("float32", "bfloat16"), "bfloat16": ("bfloat16", "float32"), "int8": ("int8",)}

    def write(self, program: ExportedProgram, file: Path, dtype: str) -> None:
        import openvino

        model = _converted(program)
        if dtype == "int8":
            _round_weights(model)
        openvino.save_model(model, file, compress_to_fp16=False)

    def load(self, file: Path, dtype: str) -> Run:
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": ACTIVATIONS_OF_A_SCALE if dtype == "int8" else 0,
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


def _round_weights(model: Any) -> None:
    """Store the matrices (M, K) that products multiply by as 8 bits, with a scale for each of the M outputs.

    nncf's `compress_weights` does the same, but needs several more packages, and reports each use to its makers.
    """
    from openvino import opset13

    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul" or not product.get_attributes()["transpose_b"]:
            continue
        matrix = product.input_value(1).get_node()
        if matrix.get_type_name() != "Constant" or matrix.data.ndim != 2:
            continue
        scales = np.abs(matrix.data).max(axis=1, keepdims=True) / 127  # (M, 1)
        scales[scales == 0] = 1
        rounded = opset13.constant(np.round(matrix.data / scales).astype(np.int8))
        restored = opset13.multiply(opset13.convert(rounded, "f32"), opset13.constant(scales))
        product.input(1).replace_source_output(restored.output(0))


def _converted(program: ExportedProgram) -> Any:
    """Convert a program as `openvino.convert_model` does, which would report each use to its makers as well.

    The operators that OpenVINO wants whole are kept by `run_decompositions`. Some of them torch keeps anyway, and so
    has no decomposition of: OpenVINO's own `from_exported_program` logs a traceback for each of these.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose

    decompositions = torch.export.default_decompositions()
    for operator in ops_to_not_decompose():
        decompositions.pop(operator, None)
    frontend = FrontEndManager().load_by_framework("pytorch")
    # the frontend does not keep the decoder alive
    decoder = TorchFXPythonDecoder(program.run_decompositions(decompositions).module(), dynamic_shapes=True)
    return frontend.convert(frontend.load(decoder))
