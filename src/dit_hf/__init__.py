"""DiT in the Hugging Face ecosystem: the public names, and their registration with transformers' Auto classes."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_dit import DiTConfig
    from .image_pipelines import DiTImg2ImgPipeline, DiTInpaintPipeline
    from .modeling_dit import DiTModel
    from .pipeline_dit import DiTPipeline
    from .shipped import shipped_model


__version__ = "0.1.0"
__all__ = ["DiTConfig", "DiTImg2ImgPipeline", "DiTInpaintPipeline", "DiTModel", "DiTPipeline", "shipped_model"]

_MODULES = {  # public name -> module that defines it
    "DiTConfig": "dit_hf.configuration_dit",
    "DiTImg2ImgPipeline": "dit_hf.image_pipelines",
    "DiTInpaintPipeline": "dit_hf.image_pipelines",
    "DiTModel": "dit_hf.modeling_dit",
    "DiTPipeline": "dit_hf.pipeline_dit",
    "shipped_model": "dit_hf.shipped",
}


def __getattr__(name: str) -> Any:
    # torch, transformers and diffusers take seconds to import.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register_auto_classes() -> None:
    """Let `AutoConfig` and `AutoModel` of transformers load DiT models; `import dit_hf` does so by itself."""
    from transformers import AutoConfig, AutoModel

    from .configuration_dit import DiTConfig
    from .modeling_dit import DiTModel

    AutoConfig.register("dit", DiTConfig, exist_ok=True)
    AutoModel.register(DiTConfig, DiTModel, exist_ok=True)


# The command registers them after it has parsed its arguments: `dit-hf --help` has to answer at once.
if not sys.argv[:1] or Path(sys.argv[0]).stem != "dit-hf":
    register_auto_classes()
