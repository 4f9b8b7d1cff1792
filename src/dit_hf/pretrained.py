"""Loading and saving a model as transformers does, but never silently a wrong one."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict

from .configuration_dit import DiTConfig

# Modules that torch.compile, data parallelism, activation checkpointing and FSDP put around another one.
WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def strip_wrappers(key: str) -> str:
    """Take the names of wrappers out of a weight's key: "blocks.0._orig_mod.attn.qkv.bias" has one in the middle."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


class DiTPreTrainedModel(PreTrainedModel):
    """What `DiTModel` changes in transformers' loading, saving and pushing."""

    config: DiTConfig
    config_class = DiTConfig
    base_model_prefix = "dit"

    @classmethod
    def from_pretrained(
        cls, source: Any = None, *args: Any, strict: bool = True, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a model as `transformers.PreTrainedModel.from_pretrained` does, and check its weights.

        Args:
            source: Folder, or id on the Hub.
            *args: As in transformers.
            strict: Whether to refuse weights that are missing, left over, of another shape or not finite. With False,
                what is missing is initialised at random, and transformers warns.
            output_loading_info: Whether to return a dictionary beside the model, of what was missing or left over.
            **kwargs: As in transformers.

        Raises:
            ValueError: If the weights do not make the model whole or are whole numbers, naming file and key.
        """
        folder = Path(source or ".", kwargs.get("subfolder") or "")
        if folder.is_dir() and source and "config" not in kwargs and not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json, and the default one would be a guess: pass config=...")
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs["ignore_mismatched_sizes"] = may_differ or strict  # transformers would not name them
        model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        files = model.__dict__.pop("_read_from", ())
        model.pos_embed.requires_grad_(False)  # transformers loads every weight as a trainable one
        if strict:
            finite = {key: bool(weight.is_meta or weight.isfinite().all()) for key, weight in model.named_parameters()}
            faults = {
                "of another shape": [] if may_differ else [key for key, *_ in info["mismatched_keys"]],
                "missing": info["missing_keys"],
                "left over": info["unexpected_keys"],
                "not finite": [key for key, is_finite in finite.items() if not is_finite],
            }
            for fault, keys in faults.items():
                if keys:
                    first = ", ".join(sorted(map(str, keys))[:3])
                    raise ValueError(
                        f"{', '.join(files)} of {source}: {len(keys)} weights are {fault}: {first}"
                        f"{' ...' if len(keys) > 3 else ''}. Fetch or convert the model again, or load what there is "
                        "with strict=False"
                    )
        return (model, info) if output_loading_info else model

    @staticmethod
    def _load_pretrained_model(
        model: "DiTPreTrainedModel", state_dict: Any, checkpoint_files: list[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Refuse files that are damaged or hold whole numbers, which transformers would cast without a warning."""
        for file in checkpoint_files or ():
            try:
                weights = load_state_dict(file, map_location="meta")  # types and shapes only
            except SafetensorError as error:
                raise ValueError(f"{file} is cut short or no safetensors file: {error}") from error
            whole = sorted(key for key, weight in weights.items() if not weight.is_floating_point())
            if whole and getattr(model.config, "quantization_config", None) is None:
                raise ValueError(f"{file}: {whole[0]} is {weights[whole[0]].dtype}, weights are floating point numbers")
        model._read_from = [Path(file).name for file in checkpoint_files or ()]
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs: Any) -> Any:
        """Push the model alone as transformers does; a new repository is private by default."""
        return super().push_to_hub(repo_id, private=private, **kwargs)
