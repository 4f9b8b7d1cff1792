"""What a study trains: miniatures of the paper's twelve models and four block designs, by one recipe for all of them.

The miniatures have a quarter of the paper's depth, an eighth of its width and half of its heads, so that S, B, L and XL
keep the proportions of table 1. On latents of 16 x 16, patches of 8, 4 and 2 give 4, 16 and 64 tokens.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from ..analysis.results import MeasurementKey
from ..configuration_dit import PAPER_SIZES, PATCHES, SIZES, BlockType, DiTConfig
from ..diffusion import OBJECTIVES
from ..training.settings import TrainSettings
from .additions import check_additions, describe, model_fields, read_numbers, training_settings

MODELS = tuple(f"{size}/{patch}" for patch, size in product(PATCHES, SIZES))  # the cheapest first


@dataclass(frozen=True)
class Recipe:
    """Data, training and evaluation of a study; the same for every model, as in the paper.

    Args:
        dataset: Folder of IDX files (the format of MNIST), or a folder or id that `datasets.load_dataset` takes. There
            is no default: a study needs one.
        test_split: Name of the split of held-out images, if `dataset` is not a folder of IDX files.
        side: Side of the images in pixels, a multiple of 16. The latents have half of it.
        depth_divisor: The paper's number of blocks divided by that of the study; 1 for the paper's own models.
        width_divisor: The paper's width divided by that of the study.
        heads_divisor: The paper's number of attention heads divided by that of the study.
        objective: Key of `dit_hf.diffusion.OBJECTIVES`.
        batch_size: Number of images of a training step.
        learning_rate: Learning rate of AdamW, constant after the warm-up.
        warmup_steps: Number of steps in which the learning rate rises from 0.
        ema_decay: Decay of the exponential moving average, constant.
        additions: Settings beyond the paper's, by name: fields of `DiTConfig`, and settings of a training that change
            its steps, such as `optimizer`; `study/additions.py` says which.
        checkpoints: Numbers of images seen, rising, at which every model is measured.
        models: Models that are trained with adaLN-Zero; any of the paper's twelve, such as "XL/2".
        blocks_model: Model that compares the block designs, if it is one of `models`. The paper compares them on XL/2,
            which costs four times as much as XL/4.
        block_types: Block designs that are compared with adaLN-Zero.
        seeds: Seeds, in the order in which the study trains them.
        num_samples: Number of samples that are measured at each checkpoint.
        num_final_samples: Number of samples of a second measurement at the last checkpoint.
        num_steps: Number of sampling steps.
        second_extractor: Network for the column `second_distance`, as `dit-hf evaluate --extractor` takes it: a name,
            or a class such as `examples/efficientnet_lite.py:EfficientNetLite0Small`. A path in a YAML file that begins
            with `./` or `../` is relative to that file. Empty for none.
        sampling_models: Those of `models` that are also sampled with `sampling_steps` (figure 10), at the last
            checkpoint of the first seed.
        sampling_steps: Numbers of DDIM steps of figure 10.
        num_sampling_samples: Number of samples for each of `sampling_steps`.
        guidance_models: Those of `models` that are also sampled with `guidance_scales`, at the last checkpoint of the
            first seed.
        guidance_scales: Scales of classifier-free guidance.

    Raises:
        ValueError: If a value is outside its limits.
    """

    dataset: str = ""
    test_split: str = "test"
    side: int = 32
    depth_divisor: int = 4
    width_divisor: int = 8
    heads_divisor: int = 2
    objective: str = "sample"
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    ema_decay: float = 0.99
    additions: dict[str, Any] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = (16_000, 32_000, 64_000, 128_000)
    models: tuple[str, ...] = MODELS
    blocks_model: str = "XL/4"
    block_types: tuple[str, ...] = ("in_context", "cross_attention", "adaln")
    seeds: tuple[int, ...] = (0, 1)
    num_samples: int = 1000
    num_final_samples: int = 5000
    num_steps: int = 20
    second_extractor: str = ""
    sampling_models: tuple[str, ...] = ("S/4", "B/4", "L/4", "XL/4")
    sampling_steps: tuple[int, ...] = (16, 32, 64, 128, 256, 1000)
    num_sampling_samples: int = 500
    guidance_models: tuple[str, ...] = ("XL/4",)
    guidance_scales: tuple[float, ...] = (1.25, 1.5, 2.0, 3.0, 4.0)

    def __post_init__(self) -> None:
        wrong = [images for images in self.checkpoints if images % self.batch_size]
        if wrong or not self.checkpoints or list(self.checkpoints) != sorted(set(self.checkpoints)):
            raise ValueError(
                f"checkpoints={self.checkpoints}: they must rise and be multiples of batch_size={self.batch_size}"
            )
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r}: choose from {', '.join(OBJECTIVES)}")
        check_additions(self.additions)
        self.settings()  # raises if a value is not possible
        if self.side % (2 * max(PATCHES)):
            raise ValueError(
                f"side={self.side}: it must be a multiple of {2 * max(PATCHES)}, as latents are half as wide"
            )
        named = (*self.models, self.blocks_model, *self.sampling_models, *self.guidance_models)
        if unknown := [model for model in named if model not in MODELS]:
            raise ValueError(f"models={unknown}: choose from the paper's {', '.join(MODELS)}")
        if unknown := [block for block in self.block_types if block not in get_args(BlockType)]:
            raise ValueError(f"block_types={unknown}: choose from {', '.join(get_args(BlockType))}")
        counts = (self.num_samples, self.num_final_samples, self.num_sampling_samples)
        if min(counts) < 2 or not all(1 <= steps <= 1000 for steps in (self.num_steps, *self.sampling_steps)):
            raise ValueError(
                f"numbers of samples {counts}, numbers of steps {(self.num_steps, *self.sampling_steps)}: a distance "
                "needs at least 2 samples, a sampler takes 1 to 1000 steps"
            )
        if not self.seeds:
            raise ValueError("seeds=(): a study needs at least one")

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Read a recipe from a YAML file; fields that the file does not name keep their defaults.

        Args:
            path: The file.

        Raises:
            ValueError: If a field is unknown, or its value has another type than the default.
        """
        given: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        defaults = asdict(cls())
        if unknown := given.keys() - defaults.keys():
            raise ValueError(f"{path} sets {', '.join(sorted(unknown))}: a recipe has {', '.join(sorted(defaults))}")
        if str(given.get("second_extractor")).startswith(("./", "../")):
            given["second_extractor"] = str((path.parent / given["second_extractor"]).resolve())
        for name, value in given.items():
            default = defaults[name]
            if isinstance(default, float) and not isinstance(value, bool):
                with suppress(TypeError, ValueError):
                    given[name] = float(value)  # 1e-3 is a text in YAML
            if isinstance(default, tuple) and isinstance(value, list):
                given[name] = tuple(value)
            if isinstance(default, dict) and isinstance(value, dict):
                given[name] = read_numbers(value)
            if type(given[name]) is not type(default):
                raise ValueError(f"{path} sets {name} to {value!r}: write it in the form of its default, {default!r}")
        return cls(**given)

    @property
    def summary(self) -> str:
        """The column `recipe` of a row."""
        return (
            f"{self.objective}, AdamW {self.learning_rate:g}, warm-up {self.warmup_steps}, batch {self.batch_size}, "
            f"EMA {self.ema_decay:g}{describe({**self.additions, **self._end})}"
        )

    @property
    def _end(self) -> dict[str, int]:
        """The length of a training whose learning rate depends on it; nothing if the rate is constant."""
        settings = self.settings()
        return {} if settings.lr_scheduler.startswith("constant") else {"max_train_steps": settings.max_train_steps}

    def settings(self, seed: int = 0) -> TrainSettings:
        """Return the settings of a training of this recipe.

        Args:
            seed: Seed of the training.
        """
        return training_settings(
            {"lr_scheduler": "constant_with_warmup", **self.additions},
            objective=self.objective,
            train_batch_size=self.batch_size,
            max_train_steps=self.checkpoints[-1] // self.batch_size,
            learning_rate=self.learning_rate,
            lr_warmup_steps=self.warmup_steps,
            ema_decay=self.ema_decay,
            seed=seed,
        )

    def training_fields(self) -> dict[str, Any]:
        """Return the fields that a training depends on: a study cannot continue if one of these fields changes."""
        data_and_model = ("dataset", "side", "depth_divisor", "width_divisor", "heads_divisor")
        names = (*data_and_model, "objective", "batch_size", "learning_rate", "warmup_steps", "ema_decay", "additions")
        return {**{name: asdict(self)[name] for name in names}, **self._end}

    def config(self, model: str, **config_fields: Any) -> DiTConfig:
        """Return the configuration of the miniature of one of the paper's models.

        Args:
            model: Name of the model, such as "XL/2".
            **config_fields: Fields of `DiTConfig` that the size does not determine, such as `num_classes`.

        Raises:
            ValueError: If the paper has no such model.
        """
        if f"DiT-{model}" not in PAPER_SIZES:
            raise ValueError(f"model={model!r}: choose from the paper's {', '.join(MODELS)}")
        depth, width, heads, patch = PAPER_SIZES[f"DiT-{model}"][:4]
        return DiTConfig(
            num_hidden_layers=depth // self.depth_divisor,
            hidden_size=width // self.width_divisor,
            num_attention_heads=heads // self.heads_divisor,
            patch_size=patch,
            sample_size=self.side // 2,
            learn_sigma=OBJECTIVES[self.objective].learns_variance,
            **model_fields(self.additions),
            **config_fields,
        )


class Variant(NamedTuple):
    """One training of a study."""

    model: str
    block_type: str
    seed: int

    @classmethod
    def of(cls, measurement: MeasurementKey) -> "Variant":
        """Return the training that a measurement is taken of."""
        return cls(measurement.model, measurement.block_type, measurement.seed)

    @property
    def folder(self) -> str:
        """Name of the folder of the training's checkpoints."""
        return f"{self.model.replace('/', '-')}-{self.block_type}-seed{self.seed}"


def variants(recipe: Recipe, seed: int) -> list[Variant]:
    """Return the trainings of a seed: every model with adaLN-Zero, then `blocks_model` with each other block design."""
    trainings = [Variant(model, "adaln_zero", seed) for model in recipe.models]
    if recipe.blocks_model in recipe.models:
        trainings += [Variant(recipe.blocks_model, design, seed) for design in recipe.block_types]
    return list(dict.fromkeys(trainings))


def measurements(recipe: Recipe) -> list[MeasurementKey]:
    """Return everything that the study measures, in the order in which it is done.

    A study can be stopped at any time and leaves models that can be compared: it works seed by seed, and within a seed
    checkpoint by checkpoint over all models. Numbers of steps and scales of guidance come after the first seed.
    """
    keys: list[MeasurementKey] = []
    last = recipe.checkpoints[-1]

    def add(variant: Variant, images_seen: int, num_samples: int, num_steps: int, guidance_scale: float = 1.0) -> None:
        keys.append(MeasurementKey(*variant, images_seen, num_steps, guidance_scale, num_samples))

    for seed in recipe.seeds:
        for images_seen, variant in product(recipe.checkpoints, variants(recipe, seed)):
            add(variant, images_seen, recipe.num_samples, recipe.num_steps)
        for variant in variants(recipe, seed):
            add(variant, last, recipe.num_final_samples, recipe.num_steps)
        if seed == recipe.seeds[0]:
            trained = [Variant(model, "adaln_zero", seed) for model in recipe.models]
            for variant, num_steps in product(trained, recipe.sampling_steps):
                if variant.model in recipe.sampling_models:
                    add(variant, last, recipe.num_sampling_samples, num_steps)
            for variant, scale in product(trained, recipe.guidance_scales):
                if variant.model in recipe.guidance_models:
                    add(variant, last, recipe.num_samples, recipe.num_steps, scale)
    return list(dict.fromkeys(keys))
