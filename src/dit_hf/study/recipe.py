"""What a study trains: miniatures of the paper's twelve models and four blocks, and the one recipe for all of them.

The miniatures have a quarter of the paper's depth, an eighth of its width and half of its heads, so that S, B, L and XL
stand to each other as in table 1; on latents of 16 x 16 the patches of 8, 4 and 2 give 4, 16 and 64 tokens.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from ..analysis.results import MeasurementKey
from ..analysis.selection import PATCHES, SIZES
from ..configuration_dit import PAPER_SIZES, BlockType, DiTConfig
from ..diffusion import OBJECTIVES, DiscreteObjective

MODELS = tuple(f"{size}/{patch}" for patch, size in product(PATCHES, SIZES))  # the cheapest first


@dataclass(frozen=True)
class Recipe:
    """Data, training and evaluation of a study; the same for every model, as in the paper.

    Args:
        dataset: a folder of IDX files, or what `datasets.load_dataset` takes.
        test_split: the name of the split of held-out images, for data sets that are no IDX files.
        side: of the images, in pixels; half of it is the side of the latents.
        depth_divisor: the paper's number of blocks over this study's; 1 for the paper's models.
        width_divisor: the same for the width.
        heads_divisor: the same for the heads.
        objective: a key of `dit_hf.diffusion.OBJECTIVES` that DDIM can sample.
        batch_size: images of a step.
        learning_rate: constant after the warm-up.
        warmup_steps: in which the learning rate rises.
        ema_decay: constant.
        checkpoints: images seen, rising, at which every model is measured.
        models: those of the paper's twelve that are trained, with adaLN-Zero.
        blocks_model: on which the designs of the block are compared, if it is among `models`. The paper's is XL/2,
            four times as dear as XL/4.
        block_types: designs beside adaLN-Zero.
        seeds: in the order in which they are worked off.
        num_samples: measured at each checkpoint.
        num_final_samples: measured at the last one as well.
        num_steps: of DDIM.
        sampling_models: those of `models` whose sampling compute is varied (figure 10), at the last checkpoint of the
            first seed.
        sampling_steps: figure 10's.
        num_sampling_samples: of each of these.
        guidance_models: those of `models` whose guidance is varied, likewise.
        guidance_scales: that are measured.

    Raises:
        ValueError: for a value outside its limits.
    """

    dataset: str = "/usr/share/datasets/fashion-mnist"
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
    checkpoints: tuple[int, ...] = (16_000, 32_000, 64_000, 128_000)
    models: tuple[str, ...] = MODELS
    blocks_model: str = "XL/4"
    block_types: tuple[str, ...] = ("in_context", "cross_attention", "adaln")
    seeds: tuple[int, ...] = (0, 1)
    num_samples: int = 1000
    num_final_samples: int = 5000
    num_steps: int = 20
    sampling_models: tuple[str, ...] = ("S/4", "B/4", "L/4", "XL/4")
    sampling_steps: tuple[int, ...] = (16, 32, 64, 128, 256, 1000)
    num_sampling_samples: int = 500
    guidance_models: tuple[str, ...] = ("XL/4",)
    guidance_scales: tuple[float, ...] = (1.25, 1.5, 2.0, 3.0, 4.0)

    def __post_init__(self) -> None:
        wrong = [images for images in self.checkpoints if images % self.batch_size]
        if wrong or not self.checkpoints or list(self.checkpoints) != sorted(set(self.checkpoints)):
            raise ValueError(
                f"checkpoints={self.checkpoints}: they must rise, and be multiples of batch_size={self.batch_size}"
            )
        discrete = [name for name, cls in OBJECTIVES.items() if issubclass(cls, DiscreteObjective)]
        if self.objective not in discrete:
            raise ValueError(f"objective={self.objective!r}: DDIM samples {', '.join(discrete)}")
        if self.side % (2 * max(PATCHES)):
            raise ValueError(f"side={self.side}: latents of half of it need a multiple of {2 * max(PATCHES)}")
        named = (*self.models, self.blocks_model, *self.sampling_models, *self.guidance_models)
        if unknown := [model for model in named if model not in MODELS]:
            raise ValueError(f"models={unknown}: the paper has {', '.join(MODELS)}")
        if unknown := [block for block in self.block_types if block not in get_args(BlockType)]:
            raise ValueError(f"block_types={unknown}: there are {', '.join(get_args(BlockType))}")
        counts = (self.num_samples, self.num_final_samples, self.num_sampling_samples)
        if min(counts) < 2 or not all(1 <= steps <= 1000 for steps in (self.num_steps, *self.sampling_steps)):
            raise ValueError(
                f"numbers of samples {counts} and of steps {(self.num_steps, *self.sampling_steps)}: a distance needs "
                "2 samples at least, a sampler 1 to 1000 steps"
            )
        if not self.seeds:
            raise ValueError("seeds=(): a study needs one")

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Read the fields that differ from a YAML file.

        Raises:
            ValueError: for a field that there is not, or a value of another type.
        """
        given: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        known = {field.name for field in fields(cls)}
        if unknown := set(given) - known:
            raise ValueError(f"{path} sets {', '.join(sorted(unknown))}: a recipe has {', '.join(sorted(known))}")
        for name, value in given.items():
            usual = getattr(cls, name)
            if isinstance(usual, float) and not isinstance(value, bool):
                with suppress(TypeError, ValueError):
                    given[name] = float(value)  # 1e-3 is a text in YAML
            if isinstance(usual, tuple) and isinstance(value, list):
                given[name] = tuple(value)
            if type(given[name]) is not type(usual):
                raise ValueError(f"{path} sets {name} to {value!r}: write it as {usual!r} is")
        return cls(**given)

    @property
    def summary(self) -> str:
        """What a row says of the training."""
        return (
            f"{self.objective}, AdamW {self.learning_rate:g}, warm-up {self.warmup_steps}, batch {self.batch_size}, "
            f"EMA {self.ema_decay:g}"
        )

    def training_fields(self) -> dict[str, Any]:
        """What a checkpoint depends on; a study cannot go on when one of these changes."""
        data_and_model = ("dataset", "side", "depth_divisor", "width_divisor", "heads_divisor")
        names = (*data_and_model, "objective", "batch_size", "learning_rate", "warmup_steps", "ema_decay")
        return {name: asdict(self)[name] for name in names}

    def config(self, model: str, **others: Any) -> DiTConfig:
        """The miniature of one of the paper's sizes.

        Args:
            model: such as "XL/2".
            **others: the other fields of `DiTConfig`.

        Raises:
            ValueError: if the paper has no such size.
        """
        if f"DiT-{model}" not in PAPER_SIZES:
            raise ValueError(f"model={model!r} is none of {', '.join(MODELS)}")
        depth, width, heads, patch = PAPER_SIZES[f"DiT-{model}"][:4]
        return DiTConfig(
            num_hidden_layers=depth // self.depth_divisor,
            hidden_size=width // self.width_divisor,
            num_attention_heads=heads // self.heads_divisor,
            patch_size=patch,
            sample_size=self.side // 2,
            learn_sigma=OBJECTIVES[self.objective].learns_variance,
            **others,
        )


class Variant(NamedTuple):
    """One training."""

    model: str
    block_type: str
    seed: int

    @property
    def folder(self) -> str:
        """A name for its files."""
        return f"{self.model.replace('/', '-')}-{self.block_type}-seed{self.seed}"


def variants(recipe: Recipe, seed: int) -> list[Variant]:
    """The trainings of a seed: the models with adaLN-Zero, and one of them with the other blocks."""
    models = [Variant(model, "adaln_zero", seed) for model in recipe.models]
    others = [Variant(recipe.blocks_model, block, seed) for block in recipe.block_types]
    return list(dict.fromkeys(models + others if recipe.blocks_model in recipe.models else models))


def measurements(recipe: Recipe) -> list[MeasurementKey]:
    """Everything the study measures, in the order in which it is worked off.

    Seed by seed, and within a seed checkpoint by checkpoint over all models, so that every stop leaves models that can
    be compared; sampling compute and guidance after the first seed.
    """
    keys: list[MeasurementKey] = []
    last = recipe.checkpoints[-1]

    def add(cell: Variant, images_seen: int, num_samples: int, num_steps: int, guidance_scale: float = 1.0) -> None:
        keys.append(MeasurementKey(*cell, images_seen, num_steps, guidance_scale, num_samples))

    for seed in recipe.seeds:
        for images_seen, cell in product(recipe.checkpoints, variants(recipe, seed)):
            add(cell, images_seen, recipe.num_samples, recipe.num_steps)
        for cell in variants(recipe, seed):
            add(cell, last, recipe.num_final_samples, recipe.num_steps)
        if seed == recipe.seeds[0]:
            trained = [Variant(model, "adaln_zero", seed) for model in recipe.models]
            for cell, num_steps in product(trained, recipe.sampling_steps):
                if cell.model in recipe.sampling_models:
                    add(cell, last, recipe.num_sampling_samples, num_steps)
            for cell, scale in product(trained, recipe.guidance_scales):
                if cell.model in recipe.guidance_models:
                    add(cell, last, recipe.num_samples, recipe.num_steps, scale)
    return list(dict.fromkeys(keys))
