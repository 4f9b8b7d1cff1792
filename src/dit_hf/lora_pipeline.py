"""What a pipeline does with LoRA adapters, named as in diffusers: load several by name, scale, fuse and unload them.

This file travels to the Hub as a part of `pipeline_dit.py`. The work is done by `dit_hf.finetuning.adapters`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .saved_code import import_for


class DiTLoraLoaderMixin:
    """LoRA adapters of `self.transformer`. Each has its own classes; the pipeline has those of the first in use."""

    transformer: Any
    config: Any
    register_to_config: Any

    def load_lora_weights(
        self,
        source: str | Path,
        adapter_name: str | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> None:
        """Load a LoRA adapter and use it alone, with the classes it was trained for.

        Args:
            source: Folder or id on the Hub, as a training with `lora_rank` writes it.
            adapter_name: Name for `set_adapters`. Default: "default_0" for the first, "default_1" for the next.
            revision: Branch, tag or commit on the Hub.
            token: Token for the Hub; None for the one of `hf auth login` or HF_TOKEN.
            cache_dir: Folder of downloaded files.
            local_files_only: Whether to take files from the cache only.

        Raises:
            ImportError: If this package or PEFT is not installed.
            ValueError: If the name is taken, or if the source is no adapter, or one of another model.
        """
        finetuning = import_for("load_lora_weights", "dit_hf.finetuning")
        is_first = not getattr(self.transformer, "peft_config", None)
        options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        id2label = finetuning.load_lora(self.transformer, source, adapter_name, **options)
        if is_first:
            self.transformer._id2label_before_lora = self.config.id2label  # there, as pipelines may share it
        self.register_to_config(id2label=id2label)

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] = 1.0) -> None:
        """Use loaded adapters together; the first one gives the classes.

        Args:
            adapter_names: Name or names, such as `["my-dog", "watercolour"]`.
            adapter_weights: Scale of each, 1 as it was trained; one number for all.

        Raises:
            ImportError: If this package is not installed.
            ValueError: If an adapter is unknown or named twice, or a scale is missing or not finite.
        """
        finetuning = import_for("set_adapters", "dit_hf.finetuning")
        self.register_to_config(id2label=finetuning.set_adapters(self.transformer, adapter_names, adapter_weights))

    def get_active_adapters(self) -> list[str]:
        """Return the names of the adapters in use, the one that gives the classes first."""
        return import_for("get_active_adapters", "dit_hf.finetuning").active_adapters(self.transformer)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of all loaded adapters, by the component that they are in."""
        return {"transformer": import_for("get_list_adapters", "dit_hf.finetuning").loaded_adapters(self.transformer)}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove loaded adapters; without any left in use, the pipeline has its own classes again.

        Raises:
            ValueError: If an adapter is unknown.
        """
        finetuning = import_for("delete_adapters", "dit_hf.finetuning")
        id2label = finetuning.delete_adapters(self.transformer, adapter_names)
        is_any_in_use = bool(finetuning.active_adapters(self.transformer))
        self.register_to_config(id2label=id2label if is_any_in_use else self._own_id2label())

    def disable_lora(self) -> None:
        """Draw with the model itself and its own classes, and keep the adapters loaded.

        Raises:
            ValueError: If no adapter is loaded.
        """
        import_for("disable_lora", "dit_hf.finetuning").disable_adapters(self.transformer)
        self.register_to_config(id2label=self._own_id2label())

    def enable_lora(self) -> None:
        """Use the adapters again that were in use before `disable_lora`.

        Raises:
            ValueError: If no adapter is loaded.
        """
        id2label = import_for("enable_lora", "dit_hf.finetuning").enable_adapters(self.transformer)
        self.register_to_config(id2label=id2label)

    def fuse_lora(self, lora_scale: float = 1.0, adapter_names: str | Sequence[str] | None = None) -> None:
        """Add adapters to the weights; after that the pipeline saves as any other.

        Args:
            lora_scale: Factor of the adapters' scales; 1 as they are in use.
            adapter_names: Adapters to add; by default those in use.

        Raises:
            ImportError: If this file runs without the package.
            ValueError: If no adapter is loaded, one is unknown, or all are disabled and none is named.
        """
        merge_lora = import_for("fuse_lora", "dit_hf.finetuning").merge_lora
        id2label = merge_lora(self.transformer, lora_scale, adapter_names)
        if adapter_names is not None:
            self.register_to_config(id2label=id2label)

    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights again, up to rounding, and use them as loaded ones.

        Raises:
            ValueError: If no adapter is fused, or another one was loaded since.
        """
        id2label = import_for("unfuse_lora", "dit_hf.finetuning").unmerge_lora(self.transformer)
        self.register_to_config(id2label=id2label)

    def unload_lora_weights(self) -> None:
        """Take out all adapters that are not fused, and return to the classes before them."""
        if getattr(self.transformer, "peft_config", None):
            import_for("unload_lora_weights", "dit_hf.finetuning").remove_lora(self.transformer)
            self.register_to_config(id2label=self._own_id2label())

    def _own_id2label(self) -> dict[int, str] | None:
        """Return the names of the model's own classes, which the model keeps, as pipelines may share it."""
        return getattr(self.transformer, "_id2label_before_lora", None)
