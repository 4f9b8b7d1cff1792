"""Pipelines that are exported once for all tests of a runtime."""

import pytest
from sampling_parts import ID2LABEL, tiny_pipeline

from dit_hf import DiTPipeline

FORMATS = ("openvino", "onnx", "torch")
PACKAGES = {"openvino": "openvino", "onnx": "onnxscript", "torch": "torch"}


@pytest.fixture(scope="session")
def original() -> DiTPipeline:
    """The pipeline that is exported."""
    return tiny_pipeline(id2label=ID2LABEL, guidance_channels="first_three")


@pytest.fixture(scope="session", params=FORMATS)
def folder(request, original, tmp_path_factory):
    """The folder of an export, for each runtime."""
    pytest.importorskip(PACKAGES[request.param])
    path = tmp_path_factory.mktemp("exports") / request.param
    original.export(path, format=request.param)
    return path


@pytest.fixture(scope="session")
def exported(folder) -> DiTPipeline:
    """An exported pipeline, loaded as any other."""
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
