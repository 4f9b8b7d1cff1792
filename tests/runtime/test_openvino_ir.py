"""OpenVINO's graphs: converted as OpenVINO itself does, without its notes, and in int8 with weights of 8 bits."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("openvino")

from dit_hf.runtime.openvino_ir import OpenVino, _converted


class Upsampled(nn.Module):
    """Operators of a VAE and of a DiT that OpenVINO takes whole; torch has no decomposition of the upsamplings."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        nearest = F.interpolate(F.silu(x), scale_factor=2.0, mode="nearest")
        bilinear = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        return nearest, bilinear, F.scaled_dot_product_attention(x, x, x)


def test_graph_is_that_of_openvino_and_nothing_is_logged(caplog):
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    program = torch.export.export(Upsampled(), (torch.randn(1, 2, 4, 4),))
    with caplog.at_level(logging.WARNING):
        made = _converted(program)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchFXPythonDecoder.from_exported_program(program)
    expected = frontend.convert(frontend.load(decoder))
    kinds = [[node.get_type_name() for node in graph.get_ordered_ops()] for graph in (made, expected)]
    assert kinds[0] == kinds[1]
    assert {"Interpolate", "Swish", "ScaledDotProductAttention"} < set(kinds[0])


class Products(nn.Module):
    """A product with a Linear, and one of two inputs, which has no weights to round."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(128, 32)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.linear(x) @ self.linear(x).transpose(-1, -2),)


@pytest.mark.slow
@torch.no_grad()
def test_weights_in_int8_are_rounded_by_output_and_the_rest_is_not(tmp_path):
    """The matrices of the file, multiplied by their scales, are the weights within half a step."""
    import openvino

    torch.manual_seed(0)
    module, x = Products().eval(), torch.randn(3, 5, 128)
    module.linear.weight[0] *= 100  # a scale for each output leaves the others as exact as they were
    module.linear.weight[1] = 0
    program = torch.export.export(module, (x,))
    sizes = {}
    for dtype in ("float32", "int8"):
        OpenVino().write(program, tmp_path / f"{dtype}.xml", dtype)
        sizes[dtype] = (tmp_path / f"{dtype}.bin").stat().st_size
    assert sizes["int8"] < 0.4 * sizes["float32"]
    graph = openvino.Core().read_model(tmp_path / "int8.xml")
    matrices = [node.data for node in graph.get_ordered_ops() if node.get_type_name() == "Constant"]
    rounded = [data for data in matrices if data.dtype == "int8"]
    assert len({data.tobytes() for data in rounded}) == 1
    scales = next(data for data in matrices if data.shape == (32, 1))
    weight = module.linear.weight.numpy()
    assert (abs(rounded[0] * scales - weight) <= 0.5001 * scales * (weight != 0)).all()
    assert rounded[0].min() >= -127  # so that a weight and its negative are rounded alike
    (expected,), (got,) = module(x), OpenVino().load(tmp_path / "int8.xml", "int8")(x)
    error = (got - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.03
