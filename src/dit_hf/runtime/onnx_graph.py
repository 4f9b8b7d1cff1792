"""ONNX, run by ONNX Runtime: the format that most other programs and devices read."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .engine import Engine, Run


class Onnx(Engine):
    """ONNX Runtime as a runtime. In int8 the matrix products are of whole numbers, and all else is float32."""

    name = "onnx"
    package = "onnxruntime"
    extra = "onnx"
    writes_with = ("onnx", "onnxscript")
    suffix = ".onnx"
    loads_as = {"float32": ("float32",), "int8": ("int8",)}

    def write(self, program: ExportedProgram, file: Path, dtype: str) -> None:
        onnx_program = torch.onnx.export(program, dynamo=True, verbose=False)
        if dtype == "float32":
            onnx_program.save(file)
            return
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with TemporaryDirectory() as folder:  # weights in int8; activations are rounded to int8 while it computes
            whole = Path(folder, file.name)
            onnx_program.save(whole)
            options = {"op_types_to_quantize": ["MatMul", "Gemm"], "per_channel": True}
            quantize_dynamic(whole, file, weight_type=QuantType.QInt8, **options)

    def load(self, file: Path, dtype: str) -> Run:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.NoSuchFile, state.NotImplemented) as error:
            raise ValueError(str(error)) from error  # these have no class in common but Exception
        names = [each.name for each in session.get_inputs()]

        def run(*inputs: Tensor) -> list[Tensor]:
            feed = {name: tensor.contiguous().numpy() for name, tensor in zip(names, inputs, strict=True)}
            return [torch.from_numpy(array) for array in session.run(None, feed)]

        return run
