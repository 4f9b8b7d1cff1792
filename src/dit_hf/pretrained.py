"""Loading and saving a model as transformers does, but never silently a wrong one."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import CommitOperationDelete, HfApi
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils.hub import cached_file

from .configuration_dit import DiTConfig
from .places import check_model_source, describe_folder, places_to_look
from .weight_files import (
    read_name,
    refuse_adapters,
    refuse_two_forms,
    refuse_two_forms_among,
    replaced_whole,
    strip_wrappers,
    superseded,
)

IS_PIPELINE = '{} is a pipeline: pass subfolder="transformer", or load it with DiTPipeline'


def _has_file(source: str | Path, name: str, options: dict[str, Any]) -> bool:
    """Return whether a folder or a repository has a file; a repository that cannot be read has none."""
    given = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
    hub = {name: options[name] for name in given if options.get(name) is not None}
    try:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub) is not None
    except OSError:
        return False


def _is_pipeline(source: str | Path, options: dict[str, Any]) -> bool:
    return _has_file(source, "model_index.json", options)


def _check_repository(source: str, files: Sequence[str], options: dict[str, Any]) -> None:
    """Refuse a repository that has an index of shards beside the single file that was read."""
    for file in files:
        name = read_name(PurePath(file))
        suffix = f".{name.variant}" if name and name.variant else ""
        index = f"model.safetensors.index{suffix}.json"
        if name and name.form == "single" and name.format == "safetensors" and _has_file(source, index, options):
            refuse_two_forms_among([PurePath(file), PurePath(index)], str(source), name.variant)


def _check_folder(folder: Path, options: dict[str, Any]) -> None:
    """Refuse a folder that is no model's, or whose weights cannot be told apart."""
    if "config" not in options and not (folder / "config.json").is_file():
        if _is_pipeline(folder, {}):
            raise ValueError(IS_PIPELINE.format(folder))
        raise ValueError(describe_folder(folder, "config.json"))
    refuse_two_forms(folder, options.get("variant"))


def _check_weights(model: PreTrainedModel, info: dict[str, Any], may_differ: bool, where: str) -> None:
    """Refuse a loaded model that is not made of exactly the weights of its files."""
    weights = dict(model.named_parameters())
    if getattr(model, "hf_quantizer", None) is not None:  # a quantised weight has few operations
        weights = {key: weight for key, weight in weights.items() if type(weight.data) is Tensor}
    finite = {key: bool(weight.is_meta or weight.isfinite().all()) for key, weight in weights.items()}
    faults = {
        "of another shape": [] if may_differ else [key for key, *_ in info["mismatched_keys"]],
        "missing": info["missing_keys"],
        "left over": info["unexpected_keys"],
        "not finite": [key for key, is_finite in finite.items() if not is_finite],
    }
    for fault, keys in faults.items():
        if keys:
            listed = ", ".join(sorted(map(str, keys))[:3]) + (" ..." if len(keys) > 3 else "")
            raise ValueError(
                f"{where}: {len(keys)} weights are {fault}: {listed}. Fetch or convert the model again, or load what "
                "there is with strict=False"
            )


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
            ValueError: If the weights do not make the model whole or are whole numbers, naming file and key; if the
                source is a pipeline; or if a folder or repository holds the weights twice.
        """
        folder = Path(source or "", kwargs.get("subfolder") or "")
        if source and folder.is_dir():
            _check_folder(folder, kwargs)
        elif source:
            check_model_source(source, kwargs.get("subfolder"), **places_to_look(kwargs))
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs["ignore_mismatched_sizes"] = may_differ or strict  # transformers would not name them
        try:
            model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        except OSError as error:
            if not folder.is_dir() and not kwargs.get("subfolder") and _is_pipeline(source, kwargs):
                raise ValueError(IS_PIPELINE.format(source)) from error
            raise
        files = model.__dict__.pop("_read_from", ())
        if not folder.is_dir():
            _check_repository(source, files, kwargs)
        if model.pos_embed is not None:
            model.pos_embed.requires_grad_(False)  # transformers loads every weight as a trainable one
        if strict:
            _check_weights(model, info, may_differ, f"{', '.join(files)} of {source}")
        return (model, info) if output_loading_info else model

    @staticmethod
    def _load_pretrained_model(
        model: "DiTPreTrainedModel", state_dict: Any, checkpoint_files: list[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Refuse files that are damaged or hold whole numbers, which transformers would cast without a warning."""
        files = checkpoint_files or ()
        keys = set(state_dict or ())
        for file in files:
            try:
                weights = load_state_dict(file, map_location="meta")  # types and shapes only
            except SafetensorError as error:
                raise ValueError(f"{file} is cut short or no safetensors file: {error}") from error
            whole = sorted(key for key, weight in weights.items() if not weight.is_floating_point())
            if whole and getattr(model.config, "quantization_config", None) is None:
                raise ValueError(f"{file}: {whole[0]} is {weights[whole[0]].dtype}, weights are floating point numbers")
            keys |= weights.keys()
        if any(strip_wrappers(key) != key for key in keys):
            loaded = [state_dict] if state_dict is not None else [load_state_dict(file) for file in files]
            state_dict = {strip_wrappers(key): weight for part in loaded for key, weight in part.items()}
        model._read_from = [Path(file).name for file in files]
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = None,
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a model as `transformers.PreTrainedModel.save_pretrained` does, without names of wrappers in its keys.

        New files replace those of an earlier save, single file or shards, once they are complete.

        Args:
            save_directory: Folder to write.
            is_main_process: As in transformers.
            state_dict: As in transformers.
            push_to_hub: Refused if True; see `push_to_hub`.
            max_shard_size: As in transformers. None for the default of transformers.
            variant: As in transformers.
            **kwargs: As in transformers.

        Raises:
            ValueError: If push_to_hub=True, or if an adapter is loaded.
        """
        if push_to_hub:
            raise ValueError("push_to_hub=True would be public by default: call the method push_to_hub instead")
        if (
            "_adapters" in self.__dict__
        ):  # loaded: transformers would save the adapter without its classes, and no weights
            refuse_adapters(self, "saving")
        if max_shard_size is not None:
            kwargs["max_shard_size"] = max_shard_size
        if kwargs.get("distributed_checkpoint"):  # every process writes its part to one folder
            return super().save_pretrained(save_directory, is_main_process, state_dict, variant=variant, **kwargs)
        state_dict = self.state_dict() if state_dict is None else state_dict
        state_dict = {strip_wrappers(key): weight for key, weight in state_dict.items()}
        with replaced_whole(Path(save_directory)) as folder:
            super().save_pretrained(folder, is_main_process, state_dict, variant=variant, **kwargs)

    def _upload_modified_files(self, working_dir: str | Path, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Push a saved model, and then delete the weights in the repository that the new ones supersede."""
        commit = super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
        api, revision = HfApi(token=kwargs.get("token")), commit.pr_revision or kwargs.get("revision")
        written = [PurePath(file.name) for file in Path(working_dir).iterdir()]
        outdated = superseded(map(PurePath, api.list_repo_files(repo_id, revision=revision)), written)
        if outdated:
            deletions = [CommitOperationDelete(str(file)) for file in outdated]
            api.create_commit(repo_id, deletions, commit_message="Delete superseded weights", revision=revision)
        return commit

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs: Any) -> Any:
        """Push the model alone as transformers does; a new repository is private by default.

        Raises:
            ValueError: If an adapter is loaded.
        """
        refuse_adapters(self, "pushing")
        return super().push_to_hub(repo_id, private=private, **kwargs)
