"""DiT in the Hugging Face ecosystem: the public names, and their registration with transformers' Auto classes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel

from .configuration_dit import DiTConfig
from .modeling_dit import DiTModel

if TYPE_CHECKING:
    from .image_pipelines import DiTImg2ImgPipeline, DiTInpaintPipeline
    from .pipeline_dit import DiTPipeline


__version__ = "0.1.0"
__all__ = ["DiTConfig", "DiTImg2ImgPipeline", "DiTInpaintPipeline", "DiTModel", "DiTPipeline"]

AutoConfig.register("dit", DiTConfig, exist_ok=True)
AutoModel.register(DiTConfig, DiTModel, exist_ok=True)


def __getattr__(name: str) -> Any:
    # diffusers takes seconds to import, and only the pipelines need it.
    if name == "DiTPipeline":
        return import_module("dit_hf.pipeline_dit").DiTPipeline
    if name in ("DiTImg2ImgPipeline", "DiTInpaintPipeline"):
        return getattr(import_module("dit_hf.image_pipelines"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
