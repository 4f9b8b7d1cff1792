"""Images from files and back from latents without a loss."""

import numpy as np
import pytest
import torch
from PIL import Image

from dit_hf.study.images import PixelLatents, load_images, to_unit


def test_files_of_mnist_are_read_and_padded(toys):
    data = load_images(str(toys), "train", 16)
    assert data.images.shape == (160, 1, 16, 16)
    assert data.num_classes == 2
    assert data.labels[:4].tolist() == [0, 1, 0, 1]
    assert data.images[:, :, :2].max() == 0  # the margin
    left, right = data.images[:, 0, 2:14, 2:8].float().mean((1, 2)), data.images[:, 0, 2:14, 8:14].float().mean((1, 2))
    assert ((left > right) == (data.labels == 0)).all()
    assert len(load_images(str(toys), "test", 16).images) == 20
    with pytest.raises(ValueError, match="set a larger side"):
        load_images(str(toys), "train", 8)


def test_folder_of_images_is_read_as_datasets_does(tmp_path):
    for label, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.new("RGB", (40, 20), colour).save(tmp_path / "train" / label / "one.png")
    data = load_images(str(tmp_path), "train", 16)
    assert data.images.shape == (2, 3, 16, 16)
    assert data.images[data.labels == 1][0, :, 0, 0].tolist() == [0, 0, 255]


def test_hub_s_form_of_a_set_gives_what_its_files_give(toys, tmp_path):
    data = load_images(str(toys), "train", 16)
    for number in range(12):
        folder = tmp_path / "train" / str(int(data.labels[number]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[number, 0, 2:14, 2:14].numpy()).save(folder / f"{number:02}.png")
    found = load_images(str(tmp_path), "train", 16)
    order = sorted(range(12), key=lambda number: (data.labels[number], number))  # by folder
    assert torch.equal(found.images, data.images[order])
    assert torch.equal(found.labels, data.labels[order])


def test_latents_are_of_zero_mean_and_unit_deviation_and_lose_nothing():
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8))
    latents = PixelLatents.of(images)
    x = latents.encode(images)
    assert x.shape == (20, 12, 4, 4)
    torch.testing.assert_close(x.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert torch.equal(latents.decode(x), images)
    # one latent pixel is a square of two by two
    expected = (to_unit(images[0, 1, 2:4, 4:6]).flatten() - latents.mean) / latents.std
    torch.testing.assert_close(x[0, 4:8, 1, 2], expected)
