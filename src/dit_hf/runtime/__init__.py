"""Exported pipelines: the networks as fixed graphs, which OpenVINO, ONNX Runtime or torch compute.

`graphs` cuts a DiT and a VAE into graphs. `engine` says what every runtime does, `openvino_ir`, `onnx_graph` and
`torch_program` do it, and `engines` is their table. `record` is what an exported folder says of itself.
`transformer` and `autoencoder` are the parts of an exported pipeline, and `export` writes one.
"""

from .autoencoder import ExportedVae
from .transformer import ExportedDiT

__all__ = ["ExportedDiT", "ExportedVae"]
