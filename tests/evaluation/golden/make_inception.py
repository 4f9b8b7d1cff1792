"""Make `inception.npz`: what torch-fidelity's Inception network gives with random weights, drawn from their names.

    pip install --no-deps --target out/torch-fidelity torch-fidelity==0.4.0
    PYTHONPATH=out/torch-fidelity python tests/evaluation/golden/make_inception.py

torch-fidelity imports torchvision, which its Inception network does not use: a stand-in takes its place here.
"""

import sys
import tempfile
import zlib
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

TORCHVISION = ["torchvision"] + [
    f"torchvision.{name}" for name in ("datasets", "models", "transforms", "transforms.functional")
]


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Weights that keep activations of the order of one, each drawn from its own name."""
    weights = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            value = np.zeros(shape, np.int64)
        elif len(shape) > 1:
            value = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif name.endswith(("weight", "running_var")):
            value = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            value = (rng.standard_normal(shape) * 0.1).astype(np.float32)
        weights[name] = torch.from_numpy(np.asarray(value))
    return weights


def random_images() -> np.ndarray:
    """Three smooth images, neither square nor of the network's size."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, 9, 7, 3)).astype(np.float32)
    return (coarse.repeat(24, 1).repeat(24, 2) + rng.integers(-9, 10, (3, 216, 168, 3))).clip(0, 255).astype(np.uint8)


def main() -> None:
    for name in TORCHVISION:
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None), __path__=[])
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    from dit_hf.evaluation.features.inception import Inception

    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Inception().state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:  # it loads strictly: these are the names of the public file
        torch.save(random_weights(shapes), Path(folder) / "weights.pth")
        network = FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], Path(folder) / "weights.pth")
    branches = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: branches.append(output))
    with torch.no_grad():
        pool, logits = network(torch.from_numpy(random_images()).permute(0, 3, 1, 2))
    spatial = branches[0].permute(0, 2, 3, 1)[..., :7].reshape(3, -1)  # ADM: NHWC, the first seven channels, flat
    small = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 2, 7, 12))).float()
    resized = {
        f"resized_{size}": interpolate_bilinear_2d_like_tensorflow1x(small, (size, size), align_corners=False).numpy()
        for size in (5, 12, 31)
    }
    names = sorted(name for name in network.state_dict() if not name.endswith("num_batches_tracked"))
    np.savez_compressed(
        Path(__file__).with_name("inception.npz"),
        pool=pool, spatial=spatial, logits=logits, small=small, names=np.array(names), **resized,
    )  # fmt: skip


if __name__ == "__main__":
    main()
