"""`DiTPipeline`: from class labels to images; the loop, loading and saving, and the doors to the rest of the package.

`save_pretrained` writes this file and what it is made of beside the weights, as one file that runs without the package
(see `saved_code.py`). So a method that needs another room of the package imports it when it is called, by `import_for`.
Legend: B images, C latent channels, H and W latent height and width.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import CacheMixin
from diffusers.utils import logging
from torch import Tensor
from transformers import PreTrainedModel

from .class_names import names_to_ids, synonyms_to_ids
from .lora_pipeline import DiTLoraLoaderMixin
from .places import check_pipeline_source, places_to_look
from .sampling.callbacks import Watched, check_callback
from .sampling.class_names import ids_of_names, label_batch
from .sampling.defaults import (
    PIPELINE_SETTINGS,
    check_own_guidance,
    check_own_steps,
    usual_guidance_scale,
    usual_num_steps,
)
from .sampling.denoising import Denoising, cache_to_oneself, cached_model
from .sampling.guidance import Guidance, check_guidance_channels
from .sampling.latents import check_noise, check_vae, decode_latents, draw_noise, latent_size, resized_positions
from .sampling.rehearsal import rehearse
from .sampling.schedulers import (
    check_scheduler,
    noise_levels,
    set_timesteps,
    start_midway,
    step_arguments,
    takes_variance,
    warn_of_clipping,
)
from .sampling.sources import EncodedSource, SourceImage, encode_source, first_latents, put_back, read_images
from .saved_code import IN_PACKAGE, import_for, remove_older_code, update_json, write_code
from .vae import vae_shrink_factor
from .weight_files import refuse_adapters, refuse_two_forms, replaced_whole

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class DiTPipeline(Watched, DiTLoraLoaderMixin, DiffusionPipeline):
    """Class-conditional image generation with a DiT.

    Args:
        transformer: `DiTModel`.
        vae: `AutoencoderKL` or the like with the transformer's latent channels; None for a model of pixels.
        scheduler: One of `dit_hf.sampling.schedulers.SCHEDULERS`; it can be replaced later.
        id2label: Class names by id; several names of a class are separated by commas. Kept in `model_index.json`.
        guidance_channels: "first_three", as in the published numbers, or "all".
        prediction_type: What the model was trained to predict; None if the scheduler says it. Flow matching needs
            "flow_prediction" (the velocity noise - x_0) or "flow_sample" (x_0), as its schedulers do not say it. Kept
            in `model_index.json`.
        guidance_scale: Scale of guidance of a call that names none; None for 4. Kept in `model_index.json`.
        num_inference_steps: Number of steps of a call that names none, for this scheduler, or numbers by class names of
            schedulers; None for the scheduler's usual number. Kept in `model_index.json`.

    Raises:
        ValueError: If the parts do not fit each other.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _transformer_module = "dit_hf.modeling_dit"  # where `from_pretrained` finds DiTModel

    conditioning_bytes = 2**29  # most memory for precomputed conditionings; may be set
    decode_batch_size = 16  # images that the VAE decodes at once; may be set

    def __init__(
        self,
        transformer: PreTrainedModel,
        vae: ModelMixin | None,
        scheduler: SchedulerMixin,
        id2label: dict[int, str] | dict[str, str] | None = None,
        guidance_channels: str = "all",  # diffusers reads annotations when loading, and knows no Literal
        prediction_type: str | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        config = transformer.config
        if getattr(config, "model_type", None) != "dit":
            raise ValueError(f"{type(transformer).__name__} is not a DiTModel: convert it with dit_hf.conversion")
        if vae is not None:
            check_vae(vae, config.in_channels)
        check_guidance_channels(guidance_channels)
        predicted = check_scheduler(scheduler, prediction_type, config.learn_sigma)
        if vae is not None:
            warn_of_clipping(scheduler)
        names = {int(class_id): str(label) for class_id, label in (id2label or {}).items()}
        outside = [class_id for class_id in names if not 0 <= class_id < config.num_classes]
        if outside:
            raise ValueError(f"id2label has the id {outside[0]}, the transformer the ids 0..{config.num_classes - 1}")
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label=names or None, guidance_channels=guidance_channels, prediction_type=predicted)
        own = {"guidance_scale": check_own_guidance(guidance_scale, config)}
        self.register_to_config(**own, num_inference_steps=check_own_steps(num_inference_steps, scheduler))
        factor = self.vae_scale_factor = 1 if vae is None else vae_shrink_factor(vae.config)
        self.image_channels = config.in_channels if vae is None else vae.config.in_channels
        processor = functools.partial(VaeImageProcessor, vae_scale_factor=factor)  # to multiples of which it resizes
        self.image_processor = processor()
        self.mask_processor = processor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
        self.current_timestep: Tensor | None = None  # callbacks for diffusers' caches ask for it

    @property
    def labels(self) -> dict[str, int]:
        """Class ids by name, without names that several classes share; each synonym in ImageNet's labels is one."""
        id2label = self.config.id2label or {}
        ids = names_to_ids(id2label)
        return {name: ids[name][0] for name in synonyms_to_ids(id2label) if len(ids[name]) == 1}

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Map class names to ids.

        Args:
            label: A name or a list of names: whole labels of `id2label`, or synonyms in ImageNet's.

        Raises:
            ValueError: If no class or several classes have a name.
        """
        return ids_of_names(label, self.config.id2label or {})

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        guidance_scale: float | BaseGuidance | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        num_images_per_label: int = 1,
        num_images: int | None = None,
        guidance_channels: Literal["first_three", "all"] | None = None,
        eta: float = 0.0,
        callback_on_step_end: Callable[["DiTPipeline", int, Any, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        *,
        guidance_interval: tuple[float, float] | None = None,
        guidance_interval_unit: Literal["steps", "sigma"] = "steps",
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        position_policy: Literal["extend", "interpolate"] | None = None,
        guide_model: PreTrainedModel | None = None,
        _source: SourceImage | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate images of the given classes.

        Args:
            class_labels: Id or name of a class, or a list in which both may stand; None for an unconditional model.
            guidance_scale: Scale of classifier-free guidance; at 1 and below there is no guidance, and no second pass
                through the model. Or a guider of diffusers, one of `dit_hf.sampling.guidance.GUIDERS`. None for the
                pipeline's own scale, or 4 if it states none.
            num_inference_steps: Number of steps in 1..T; None for the pipeline's own, or the scheduler's usual number.
            generator: Generator of all noise, or one per image, which makes an image independent of its batch.
            latents: Standard normal noise (B, C, H, W) to start from, instead of drawing it.
            output_type: Form of the images; "latent" for the final latents, undecoded.
            return_dict: Whether to return an `ImagePipelineOutput` instead of a tuple.
            num_images_per_label: Number of images of each label, next to each other.
            num_images: Number of images; only for an unconditional model.
            guidance_channels: Channels that guidance moves; None for the pipeline's own setting.
            eta: Share of noise in [0, 1]; only for DDIM.
            callback_on_step_end: Function called as `(pipeline, step, timestep, {"latents": latents})` after each step;
                it may return a dictionary with other latents.
            guidance_interval: Guide only from the first to the second of these; None guides everywhere.
            guidance_interval_unit: "steps" for fractions of the steps from 0 (the start) to 1, the end left out;
                "sigma" for noise levels, the lower one left out: standard deviation of the noise divided by the factor
                of the data; in flow matching the time t.
            timesteps: Falling whole numbers of the training schedule instead of `num_inference_steps`, if the scheduler
                takes them.
            sigmas: Falling noise levels in the scheduler's own terms, if it takes them.
            height: Height of the images in pixels; None for the trained one.
            width: Width of the images in pixels; None for the trained one.
            position_policy: How to place patches at another size; see `DiTModel.positions`.
            guide_model: Weaker DiT, trained less or smaller, whose answer guidance moves away from instead of the
                answer for the null class (autoguidance, Karras et al. 2024, arXiv 2406.02507).

        Raises:
            ValueError: If an argument is outside its limits; raised before any work.
            FloatingPointError: If latents or images stop being finite; the message names the step.

        Source: Peebles & Xie 2022 (arXiv 2212.09748), sections 3.1 and 4.
        """
        config, device, call = self.transformer.config, self._execution_device, self._for_one_call()
        scheduler = call.scheduler  # it keeps a state: calls in several threads may share the pipeline
        labels = label_batch(class_labels, num_images_per_label, num_images, config, self.config.id2label or {})
        size = latent_size(config, self.vae_scale_factor, height, width)
        models = [self.transformer, *([] if guide_model is None else [guide_model])]
        scale = usual_guidance_scale(self) if guidance_scale is None else guidance_scale
        guidance = Guidance(scale, guidance_channels or self.config.guidance_channels, guide_model, config)
        positions = resized_positions(models, size, self.vae_scale_factor, position_policy)
        predicted = check_scheduler(scheduler, self.config.prediction_type, config.learn_sigma)
        if self.vae is not None:
            warn_of_clipping(scheduler)  # it may be another one than at first
        check_callback(callback_on_step_end)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r}: choose from {', '.join(OUTPUT_TYPES)}")
        shape = (len(labels), config.in_channels, *size)  # (B, C, H, W)
        generator = check_noise(shape, generator, latents, device)
        arguments = step_arguments(scheduler, generator, eta)
        if num_inference_steps is None and timesteps is None and sigmas is None:
            num_inference_steps = usual_num_steps(self)
        ts = set_timesteps(scheduler, num_inference_steps, timesteps, sigmas)  # (N,) in host memory
        ts = ts if _source is None else start_midway(scheduler, _source.strength)
        rehearse(scheduler, ts, arguments, takes_variance(scheduler, config.learn_sigma))
        guidance.plan(ts, guidance_interval, guidance_interval_unit, functools.partial(noise_levels, scheduler))
        if (cached := cached_model(self.transformer)) is not None:
            import_for("a cache", "dit_hf.caches").check(cached._cache_config, guidance.is_guided)

        source = None if _source is None else self._encode_source(_source, shape)
        noise = draw_noise(shape, generator, latents, device)
        latents = first_latents(scheduler, noise, source, ts[:1])  # (B, C, H, W)
        denoising = Denoising(
            self.transformer, scheduler, ts, labels, guidance, positions, self.conditioning_bytes, predicted
        )
        self._num_timesteps = call._num_timesteps = len(ts)
        first_bad = torch.full((), len(ts), device=device)
        with cache_to_oneself(cached):
            for step, (t, denoise) in enumerate(zip(self.progress_bar(ts), denoising.steps(device), strict=True)):
                self.current_timestep = t
                answer = denoise(latents)  # (B, C or 2C, H, W)
                latents = scheduler.step(answer, t, latents, **arguments).prev_sample  # (B, C, H, W)
                if source is not None and step + 1 < len(ts):
                    latents = put_back(latents, source, noise, scheduler, ts[step + 1 : step + 2])
                # kept on the device, so that the loop never waits for it
                first_bad = torch.where(torch.isfinite(latents).all(), first_bad, first_bad.clamp(max=step))
                if callback_on_step_end is not None:
                    latents = (callback_on_step_end(call, step, t, {"latents": latents}) or {}).get("latents", latents)
                if call.interrupt or self._interruptions > call._interruptions_before:
                    break
        if first_bad < len(ts):
            raise FloatingPointError(
                f"latents are not finite after step {first_bad} (t = {ts[first_bad]:g}): lower "
                "guidance_scale, use bfloat16 or float32, or look at the weights"
            )
        images = latents if output_type == "latent" else self._decode(latents, output_type, source)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _encode_source(self, source: SourceImage, shape: tuple) -> EncodedSource:
        device, mask = self._execution_device, None
        pixels = read_images("image", source.image, self.image_processor, shape, self.image_channels).to(device)
        if source.mask_image is not None:
            mask = read_images("mask_image", source.mask_image, self.mask_processor, shape, 1).to(device)
        return encode_source(self.vae, pixels, mask, self.vae_scale_factor, self.decode_batch_size)

    def _decode(self, latents: Tensor, output_type: str, source: EncodedSource | None = None) -> Any:
        images = decode_latents(self.vae, latents, self.decode_batch_size)  # (B, 3, height, width)
        if source is not None and source.mask is not None:
            images = torch.where(source.mask > 0, images, source.pixels)
        return self.image_processor.postprocess(images, output_type)

    def enable_cache(self, config: Any) -> None:
        """Let blocks repeat or extrapolate what they computed in earlier steps; the images change a little.

        Args:
            config: Configuration of one of diffusers' caches; `dit_hf.caches` names those that serve a DiT.

        Raises:
            ImportError: If this file runs without the package.
            ValueError: If a cache or a setting would do nothing, or a DiT cannot serve it.
        """
        import_for("enable_cache", "dit_hf.caches").enable(self, config)

    def disable_cache(self) -> None:
        """Compute every step in full again."""
        CacheMixin.disable_cache(getattr(self.transformer, "_orig_mod", self.transformer))

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "DiTPipeline":
        """Make a pipeline of this class that shares the parts of another, which keep their dtypes.

        Args:
            pipeline: `DiTPipeline` or one of the image pipelines.
            **kwargs: Parts or settings that differ, such as `scheduler`.

        Raises:
            ValueError: If the parts do not fit.
        """
        kept = {name: pipeline.config.get(name) for name in PIPELINE_SETTINGS if pipeline.config.get(name) is not None}
        return cls(**{**pipeline.components, **kept, **kwargs})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, verify: bool = True, **kwargs: Any
    ) -> "DiTPipeline":
        """Load a pipeline as diffusers does; with the package installed also one that others packaged.

        Args:
            pretrained_model_name_or_path: Folder or id on the Hub, in this project's form or in diffusers' own (such as
                facebook/DiT-XL-2-256); or the file of an original checkpoint, with `vae`: an autoencoder, its folder or
                its id, or None for a model of pixels.
            verify: Whether to compare what came from the Hub with the Hub's hashes; only with the package.
            **kwargs: Arguments of diffusers' method; for weights of others also what `dit_hf.conversion` takes.

        Raises:
            OSError: If the Hub or its cache cannot be used, or a file does not have the Hub's hash.
            ValueError: If there is no such folder, with what to pass instead; or if a part is missing or damaged; for
                weights of others the message names the key.
        """
        source, load = pretrained_model_name_or_path, super().from_pretrained
        if not IN_PACKAGE:
            return load(source, **kwargs)
        check_pipeline_source(source, **places_to_look(kwargs))
        load_pipeline = import_for("from_pretrained", "dit_hf.conversion").load_pipeline
        if Path(source).exists():
            for folder in Path(source).glob("*/"):
                refuse_two_forms(folder, kwargs.get("variant"))
            return load_pipeline(cls, load, source, **kwargs)
        call = functools.partial(load_pipeline, cls, load, source, **kwargs)
        given = {"revision", "cache_dir", "local_files_only", "token"} & kwargs.keys()
        hub = {name: kwargs[name] for name in given if kwargs[name] is not None}
        load_from_hub = import_for("from_pretrained", "dit_hf.hub.load").load_from_hub
        pipeline = load_from_hub(str(source), call, variant=kwargs.get("variant"), **hub)
        import_for("from_pretrained", "dit_hf.hub.verify").check_cached(str(source), verify=verify, **hub)
        return pipeline

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, format: Literal["dit_hf", "diffusers"] = "dit_hf", **kwargs: Any
    ) -> None:
        """Write the pipeline's folder, with its code; diffusers' method.

        Args:
            save_directory: Folder.
            *args: Arguments of diffusers' method.
            format: "dit_hf" loads with and without this package; "diffusers" is for diffusers' own `DiTPipeline`, which
                guides all channels, samples with DDIM, and cannot run every model.
            **kwargs: Arguments of diffusers' method.

        Raises:
            ValueError: If the format is unknown, an adapter is loaded, or diffusers' own pipeline cannot run this one.
        """
        if format not in ("dit_hf", "diffusers"):
            raise ValueError(f"format={format!r}: choose from dit_hf, diffusers")
        refuse_adapters(self.transformer, "saving")
        if kwargs.pop("push_to_hub", False):
            raise ValueError("push_to_hub=True would be public by default: call the method push_to_hub instead")
        with replaced_whole(Path(save_directory)) as folder:
            if format == "dit_hf":
                super().save_pretrained(folder, *args, **kwargs)
            else:
                conversion = import_for("format='diffusers'", "dit_hf.conversion")
                conversion.save_for_diffusers(self, folder, *args, **kwargs)
        remove_older_code(Path(save_directory))

    def export(
        self,
        save_directory: str | Path,
        format: Literal["openvino", "onnx", "torch"] = "openvino",
        dtype: Literal["float32", "bfloat16", "int8"] = "float32",
    ) -> None:
        """Write the pipeline as fixed graphs for a runtime, in a folder that `from_pretrained` loads.

        Args:
            save_directory: New folder.
            format: Runtime that is to compute the graphs.
            dtype: Number format to compute in; `dit_hf.runtime.engines` says which one a runtime has.

        Raises:
            ImportError: If this file runs without the package, or a package of the runtime is missing.
            ValueError: If the folder is taken, the runtime lacks the number format, or the pipeline cannot be exported.
        """
        source = str(self.config.get("_name_or_path") or "")
        export_pipeline = import_for("export", "dit_hf.runtime.export").export_pipeline
        export_pipeline(self, save_directory, format=format, dtype=dtype, source=source)

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the index so that it loads with and without the package, and the code; `save_pretrained` ends so."""
        super().to_json_file(json_file_path)
        room = __name__.rpartition(".")[0]  # of this file and of the image pipelines
        pipeline_class = next(cls for cls in type(self).__mro__ if cls.__module__.rpartition(".")[0] == room)
        names = {"_class_name": ["pipeline_dit", pipeline_class.__name__], "transformer": ["modeling_dit", "DiTModel"]}
        update_json(Path(json_file_path), **names)
        write_code(Path(json_file_path).parent, self.transformer)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path, **kwargs: Any) -> dict[str, Any]:
        """Read the index so that the package's own classes are taken, never the code that lies beside the weights."""
        index = super()._dict_from_json_file(json_file, **kwargs)
        if IN_PACKAGE and index.get("transformer") == ["modeling_dit", "DiTModel"]:
            import_for("from_pretrained", "dit_hf.modeling_dit")  # diffusers takes classes of imported modules only
            index["_class_name"] = cls.__name__
            index["transformer"] = [cls._transformer_module, "DiTModel"]
        elif IN_PACKAGE and index.get("transformer") == ["dit_hf.runtime.transformer", "ExportedDiT"]:
            import_for("from_pretrained", "dit_hf.runtime")
        elif IN_PACKAGE and cls._transformer_module != "transformers" and "diffusers" in index.get("transformer", []):
            index["transformer"] = [cls._transformer_module, "DiTModel"]  # `from_pretrained` converts it
        return index

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Fetch a pipeline from the Hub, without its code if the package is installed; see diffusers' method."""
        # there diffusers knows libraries by a fixed list, and would look for any other in the repository
        downloading = type(cls.__name__, (cls,), {"__module__": cls.__module__, "_transformer_module": "transformers"})
        return super(DiTPipeline, downloading).download(pretrained_model_name, **kwargs)  # type: ignore[misc]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        license: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | None = None,
    ) -> Any:
        """Save the pipeline in a repository of the Hub, with its code and a model card; only what changed is sent.

        Args:
            repo_id: "user/name"; the repository is created if it does not exist.
            private: False for a repository that everybody sees; True refuses one that is public.
            license: Licence of the weights for the model card, such as "apache-2.0"; None keeps what the card states.
            revision: Branch, made from `main` if it does not exist; None for `main`.
            commit_message: First line of the commit.
            create_pr: Whether to open a pull request instead of committing.
            token: Token with write access; None for the one of `hf auth login` or HF_TOKEN.

        Returns:
            The commit, as `huggingface_hub.CommitInfo`.

        Raises:
            ImportError: If this file runs without the package.
            OSError: If the Hub cannot be used, in one line with the remedy.
            ValueError: If something would be sent or seen that should not be.
        """
        push = import_for("push_to_hub", "dit_hf.hub.push")
        options = {"revision": revision, "commit_message": commit_message, "create_pr": create_pr, "token": token}
        return push.push_pipeline(self, repo_id, private=private, license=license, **options)
