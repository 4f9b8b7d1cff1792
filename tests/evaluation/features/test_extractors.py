"""Extractors: the file of weights is checked, float32 is float32, and DINOv2 is transformers' own."""

import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image

from dit_hf.evaluation import DINOv2Extractor, InceptionExtractor
from dit_hf.evaluation.features import extractors
from dit_hf.evaluation.features.extractors import FID_NAME, FID_SHA256, fid_weights, full_float32
from dit_hf.evaluation.features.inception import Inception
from dit_hf.provenance import weights_sha256


def test_another_file_of_weights_is_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"has the SHA-256 [0-9a-f]{16}\.\.\., FID's weights have 6726825d0af5f729"):
        InceptionExtractor.from_file(tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        InceptionExtractor.from_file(tmp_path / "nowhere.pth")


def test_weights_that_cannot_be_downloaded_are_told_where_to_put(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fail(url, path, hash_prefix, progress):
        assert hash_prefix == FID_SHA256
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(OSError, match=r"put the file at .*checkpoints/pt_inception-2015-12-05-6726825d\.pth"):
        fid_weights()


@pytest.mark.slow
def test_file_with_the_right_hash_is_loaded_strictly_and_called_fid(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = Inception()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(extractors, "FID_SHA256", extractors.sha256_of_file(tmp_path / "weights.pth"))
    extractor = InceptionExtractor.from_file(tmp_path / "weights.pth")
    assert extractor.name == FID_NAME
    assert extractor.settings["sha256"] == extractors.FID_SHA256
    assert not extractor.network.training
    torch.testing.assert_close(extractor.network.fc.weight, network.fc.weight, rtol=0, atol=0)
    outputs = extractor(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert {tap: value.shape[1] for tap, value in outputs.items()} == extractor.taps
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in outputs.values())


def test_float32_is_not_lowered_by_what_the_program_has_set():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), full_float32(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
            assert (x @ x).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> str:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14)
    folder = tmp_path_factory.mktemp("dino") / "dinov2-tiny"
    Dinov2Model(config).save_pretrained(folder)
    return str(folder)


def test_dinov2_features_are_those_of_transformers(dinov2):
    from transformers import BitImageProcessorPil, Dinov2Model

    images = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    extractor = DINOv2Extractor(dinov2)
    found = extractor(torch.from_numpy(images))["pool"]
    size = {"height": 224, "width": 224}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = BitImageProcessorPil(size=size, do_center_crop=False, image_mean=mean, image_std=std)  # bicubic
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dinov2).eval()(pixels["pixel_values"]).last_hidden_state[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert extractor.taps == {"pool": 32}
    assert extractor.name == "dinov2-tiny"


def test_hash_of_weights_tells_models_apart(dinov2):
    first, second = DINOv2Extractor(dinov2), DINOv2Extractor(dinov2)
    assert first.settings == second.settings
    with torch.no_grad():
        second.network.layernorm.weight[0] += 1
    assert weights_sha256(second.network) != first.settings["sha256_of_weights"]
