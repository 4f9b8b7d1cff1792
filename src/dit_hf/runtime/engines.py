"""The table of the runtimes."""

from .engine import Engine
from .onnx_graph import Onnx
from .openvino_ir import OpenVino
from .torch_program import TorchProgram

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (OpenVino(), Onnx(), TorchProgram())}


def find_engine(name: str) -> Engine:
    """Return a runtime by its name.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in ENGINES:
        raise ValueError(f"format={name!r}: choose from {', '.join(ENGINES)}")
    return ENGINES[name]
