"""The Inception network against torch-fidelity's with the same random weights, stored by golden/make_inception.py."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_hf.evaluation.features.inception import Inception, InceptionOutput, resize_tf1

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "inception.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def made() -> dict:
    """The functions of the script that made the golden file."""
    return runpy.run_path(str(GOLDEN / "make_inception.py"))


@pytest.fixture(scope="module")
def network(made) -> Inception:
    with torch.device("meta"):
        network = Inception()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(made["random_weights"](shapes), assign=True)
    return network.eval()


@pytest.fixture(scope="module")
def images(made) -> torch.Tensor:
    return torch.from_numpy(made["random_images"]())


@pytest.fixture(scope="module")
def output(network, images) -> InceptionOutput:
    with torch.no_grad():
        return network(images)


@pytest.mark.parametrize("tap", ["pool", "spatial", "logits"])
def test_features_are_those_of_torch_fidelity(output, golden, tap):
    ours, theirs = getattr(output, tap).numpy(), golden[tap]
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * theirs.std())


def test_features_tell_the_images_apart(output):
    """So that the comparison above means something."""
    for tap in output:
        assert (tap[0] - tap[1]).std() > 0.05 * tap.std()


def test_public_file_of_weights_has_the_names_of_the_network(golden):
    with torch.device("meta"):
        names = [name for name in Inception().state_dict() if not name.endswith("num_batches_tracked")]
    assert sorted(names) == golden["names"].tolist()


def test_a_file_without_counters_of_batches_loads_strictly(made):
    """pytorch-fid's file was written by a network that had none, as torch-fidelity converts from TensorFlow."""
    with torch.device("meta"):
        network = Inception()
    state = {name: torch.empty(tensor.shape) for name, tensor in network.state_dict().items()}
    without = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    network.load_state_dict(without, assign=True)


def test_features_do_not_depend_on_the_batch(network, images, output):
    with torch.no_grad():
        alone = [network(image[None]) for image in images]
    for tap, whole in output._asdict().items():
        single = torch.cat([getattr(each, tap) for each in alone])
        error = torch.linalg.vector_norm(single - whole, dim=1) / torch.linalg.vector_norm(whole, dim=1)
        assert error.max() < 1e-5


@pytest.mark.parametrize("size", [5, 12, 31])
def test_resizing_is_tensorflow_1s(golden, size):
    small = torch.from_numpy(golden["small"])
    np.testing.assert_array_equal(resize_tf1(small, size).numpy(), golden[f"resized_{size}"])


def test_resizing_starts_at_the_corner_and_repeats_the_last_pixel():
    """By hand: output pixel k lies at k * 2 / 4 of the input, and beyond the last pixel there is the last pixel."""
    row = torch.tensor([[[[10.0, 20.0], [30.0, 40.0]]]])
    expected = [[10, 15, 20, 20], [20, 25, 30, 30], [30, 35, 40, 40], [30, 35, 40, 40]]
    assert resize_tf1(row, 4)[0, 0].tolist() == expected


def test_spatial_features_are_channel_last(network, images, output):
    branches = []
    handle = network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, out: branches.append(out))
    with torch.no_grad():
        network(images[:1])
    handle.remove()
    spatial = output.spatial[:1].reshape(1, 17, 17, 7)
    torch.testing.assert_close(spatial.permute(0, 3, 1, 2), branches[0][:, :7], rtol=1e-5, atol=1e-5)
