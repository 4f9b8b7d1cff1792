"""Export the networks of a pipeline once, and take them from a cache afterwards."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from transformers.utils import logging

from .. import __version__
from ..precision import fast_dtype
from ..provenance import weights_sha256
from .autoencoder import ExportedVae
from .engines import ENGINES, find_engine
from .export import export_pipeline
from .record import FILE, read_record
from .transformer import ExportedDiT

logger = logging.get_logger(__name__)


def cache_folder() -> Path:
    """Return the folder of all exports: the one that DIT_HF_EXPORTS names, or one beside the cache of the Hub."""
    return Path(os.environ.get("DIT_HF_EXPORTS") or Path(HF_HOME, "dit_hf", "exports"))


def auto_dtype(format: str, device: torch.device) -> str:
    """Choose the fastest number format.

    Args:
        format: Name of the runtime; ONNX Runtime computes in float32 on every CPU.
        device: Device that computes.
    """
    return "float32" if format == "onnx" else str(fast_dtype(device)).removeprefix("torch.")


def load_for(cls: Any, source: str, runtime: str | None, dtype: str) -> Any:
    """Load a pipeline to be computed by a runtime, in a number format.

    Args:
        cls: `DiTPipeline`.
        source: Folder of a pipeline or of an exported one, or an id on the Hub.
        runtime: Name of the runtime. None takes the one of an exported folder, else torch.
        dtype: Number format, or auto for what `auto_dtype` chooses.

    Raises:
        ImportError: If a package of the runtime is missing.
        ValueError: If the source or the runtime does not go with the runtime or the number format.
    """
    file = Path(source, "transformer", FILE)
    if file.is_file():
        record = read_record(file.parent)
        if runtime not in (None, record.format):
            raise ValueError(f"runtime={runtime}: {source} is exported for {record.format}: leave runtime out")
        if dtype == "auto":
            fastest = auto_dtype(record.format, torch.device("cpu"))
            dtype = fastest if fastest in ENGINES[record.format].loads_as[record.dtype] else record.dtype
        return cls.from_pretrained(source, dtype=None if dtype == record.dtype else getattr(torch, dtype))
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    format = runtime or "torch"
    chosen = auto_dtype(format, device if format == "torch" else torch.device("cpu")) if dtype == "auto" else dtype
    if format != "torch":
        find_engine(format).written_dtype(chosen)  # refuses what it cannot do, before the weights are read
        return in_runtime(cls.from_pretrained(source), format, chosen)
    if chosen == "int8":
        raise ValueError("dtype=int8: torch computes in float32, bfloat16 and float16: pass runtime=openvino or onnx")
    return cls.from_pretrained(source, dtype=getattr(torch, chosen))


def in_runtime(pipeline: Any, format: str, dtype: str) -> Any:
    """Return a pipeline whose networks another runtime computes; all else is that of the pipeline given.

    The first call for these weights exports them, and says where to.

    Args:
        pipeline: `DiTPipeline` of torch models in float32.
        format: Name of the runtime.
        dtype: Number format to compute in.

    Raises:
        ImportError: If a package of the runtime is missing.
        ValueError: If the runtime has no such number format, or the pipeline cannot be exported.
    """
    engine = find_engine(format)
    written = engine.written_dtype(dtype)
    engine.check_installed()
    vae_config = {} if pipeline.vae is None else dict(pipeline.vae.config)
    config = json.dumps([pipeline.transformer.config.to_dict(), vae_config], default=str, sort_keys=True)
    weights = weights_sha256(pipeline.transformer, pipeline.vae)
    key = json.dumps([weights, config, format, written, engine.installed_version(), __version__])
    folder = cache_folder() / f"{format}-{written}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        logger.warning(f"exporting the networks for {format}, once for these weights, to {folder}")
        export_pipeline(pipeline, folder, format=format, dtype=written)
    computed_in = None if dtype == "int8" else getattr(torch, dtype)
    parts: dict[str, Any] = {"transformer": ExportedDiT.from_pretrained(folder / "transformer", dtype=computed_in)}
    if pipeline.vae is not None:
        parts["vae"] = ExportedVae.from_pretrained(folder / "vae", torch_dtype=computed_in)
    return type(pipeline).from_pipe(pipeline, **parts)
