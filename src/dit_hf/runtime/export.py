"""Write a pipeline as an exported one: a folder that `DiTPipeline.from_pretrained` loads."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from ..cards.exported import make_exported_card
from ..cards.licences import Licence, stated_licence
from ..cards.page import CARD
from ..files import folder_written_whole
from ..provenance import weights_sha256
from ..weight_files import refuse_adapters
from .engine import Engine
from .engines import find_engine
from .graphs import dit_programs, tensors_of, vae_programs
from .record import Record
from .transformer import OWN_WEIGHTS, skeleton_of


def export_pipeline(
    pipeline: Any, destination: str | Path, *, format: str = "openvino", dtype: str = "float32", source: str = ""
) -> None:
    """Export a pipeline.

    Args:
        pipeline: `DiTPipeline` of torch models.
        destination: New folder.
        format: Name of the runtime: openvino, onnx or torch.
        dtype: Number format to compute in: float32, bfloat16 or int8.
        source: Folder or id on the Hub that the pipeline was loaded from, whose licence the card states.

    Raises:
        ImportError: If a package of the runtime is missing.
        ValueError: If the destination is taken, the runtime has no such number format, or the pipeline cannot be
            exported.
    """
    destination, engine = Path(destination), find_engine(format)
    _check_request(pipeline, destination, engine, dtype)
    engine.check_installed(to_write=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with folder_written_whole(destination) as folder, without_notes_of_exporters():
        _write_transformer(pipeline.transformer, folder / "transformer", engine, dtype)
        if pipeline.vae is not None:
            size = pipeline.transformer.config.sample_height_width
            _write_vae(pipeline.vae, folder / "vae", engine, dtype, size, pipeline.vae_scale_factor)
        pipeline.scheduler.save_pretrained(folder / "scheduler")
        _write_index(pipeline, folder)
        licence = stated_licence(source) if source else Licence()
        card: ModelCard = make_exported_card(pipeline, destination.name, source, licence, engine.package, format, dtype)
        card.save(folder / CARD)


@contextmanager
def without_notes_of_exporters() -> Iterator[None]:
    """Keep quiet what the exporters of torch and OpenVINO say about themselves, which no user can change."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")  # misses torchvision
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        registration.setLevel(level)


def _check_request(pipeline: Any, destination: Path, engine: Engine, dtype: str) -> None:
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise ValueError(f"{destination} exists: choose a new name, nothing is overwritten")
    if dtype not in engine.loads_as:
        raise ValueError(f"dtype={dtype!r}: {engine.name} computes in {', '.join(engine.loads_as)}")
    if hasattr(pipeline.transformer, "record"):
        raise ValueError("this pipeline is an export already: export the original pipeline")
    refuse_adapters(pipeline.transformer, "exporting")
    if getattr(pipeline.transformer, "hf_quantizer", None) is not None:
        raise ValueError("the transformer's weights are quantised: load the pipeline without, and pass dtype='int8'")


def _ready(module: nn.Module, dtype: torch.dtype) -> Any:
    """Return a copy of a network on the CPU, as its graphs are exported; a compiled one without its wrapper."""
    module = getattr(module, "_orig_mod", module)
    is_ready = module.device.type == "cpu" and module.dtype == dtype and not module.training
    return module if is_ready else copy.deepcopy(module).to("cpu", dtype).eval()


def _write_transformer(model: Any, folder: Path, engine: Engine, dtype: str) -> None:
    folder.mkdir()
    model = _ready(model, engine.weight_dtype(dtype))
    record = _record(model, engine, dtype)
    own = {name: weight.clone() for name, weight in model.state_dict().items() if "." not in name}
    save_file(own, folder / OWN_WEIGHTS)
    _check_skeleton(model, own)
    programs = dit_programs(model)
    engine.write(programs["condition"], folder / f"condition{engine.suffix}", record.exact_dtype)
    engine.write(programs["denoise"], folder / f"denoise{engine.suffix}", dtype)
    model.config.save_pretrained(folder)
    record.write(folder)


def _check_skeleton(model: Any, own: dict[str, torch.Tensor]) -> None:
    """Refuse a design whose positions depend on weights inside of its layers, which an export has no more."""
    skeleton, _ = skeleton_of(model.config, own)
    taller = [2 * side for side in model.config.sample_height_width]
    for arguments in ((), (*taller, "extend"), (*taller, "interpolate")):
        made, expected = (tensors_of(each.positions(*arguments)) for each in (skeleton, model))
        assert_close(made, expected, atol=0, rtol=0)


def _write_vae(
    vae: Any, folder: Path, engine: Engine, dtype: str, latent_size: tuple[int, int], vae_scale_factor: int
) -> None:
    folder.mkdir()
    vae = _ready(vae, engine.weight_dtype(dtype))
    record = _record(vae, engine, dtype)
    for name, program in vae_programs(vae, latent_size, vae_scale_factor).items():
        engine.write(program, folder / f"{name}{engine.suffix}", dtype)
    vae.save_config(folder)
    record.write(folder)


def _record(module: nn.Module, engine: Engine, dtype: str) -> Record:
    return Record(engine.name, dtype, engine.installed_version(), weights_sha256=weights_sha256(module))


def _write_index(pipeline: Any, folder: Path) -> None:
    """Write `model_index.json`, by which diffusers finds the classes of the parts."""
    kept = {name: value for name, value in pipeline.config.items() if name != "_name_or_path"}
    vae = [None, None] if pipeline.vae is None else ["dit_hf.runtime.autoencoder", "ExportedVae"]
    parts = {"transformer": ["dit_hf.runtime.transformer", "ExportedDiT"], "vae": vae}
    index = {**kept, "_class_name": "DiTPipeline", **parts}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
