"""The card of a training: that of its pipeline, with the recipe, the samples and the loss curve.

What a training knows before its first step is checked then: a licence or an id that the Hub refuses would else show
only when the first push fails.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image

from .metadata import check_license, hub_id
from .page import CARD
from .pipeline import LOSS_CURVE, SAMPLES, Sample, make_card


@dataclass
class TrainingCard:
    """The card of a training, to be made again at each push.

    Names of models and data sets are looked up when this object is made: a path that exists then stays a local one.

    Args:
        output_dir: Folder of the training, with `metrics.jsonl` and perhaps `SAMPLES` and `LOSS_CURVE`.
        settings: Settings of the training by name, as in `settings.yaml`.
        shown: Names of the settings that the card shows -> what the card calls each.

    Raises:
        ValueError: If the licence is none of the Hub's.
    """

    output_dir: Path
    settings: Mapping[str, Any]
    shown: Mapping[str, str]
    gallery: list[Sample] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        check_license(self.license)
        names = ("dataset_name", "vae_name_or_path", "init_from")
        self._hub_ids = {name: hub_id(self.settings.get(name)) for name in names}

    @property
    def license(self) -> str | None:
        """Licence of the weights."""
        return self.settings.get("hub_license")

    def make(self, pipeline: DiffusionPipeline) -> ModelCard:
        """Make the card as the training stands now.

        Args:
            pipeline: Pipeline with the averaged weights.
        """
        dataset = self._hub_ids["dataset_name"]
        return make_card(
            pipeline,
            license=self.license,
            datasets=[dataset] if dataset else [],
            base_model=self._hub_ids["init_from"],
            recipe={**self._sources(), **self._shown_settings(), **self._progress()},
            has_samples=(self.output_dir / SAMPLES).is_file(),
            has_loss_curve=(self.output_dir / LOSS_CURVE).is_file(),
            gallery=self.gallery,
        )

    def write(self, pipeline: DiffusionPipeline, folder: Path) -> None:
        """Write the card into the folder of the pipeline, with the pictures that the card shows."""
        self.make(pipeline).save(folder / CARD)
        for name in (SAMPLES, LOSS_CURVE, *(sample.file for sample in self.gallery)):
            if (self.output_dir / name).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes((self.output_dir / name).read_bytes())

    def add_samples(self, images: list[Image.Image], texts: list[str]) -> None:
        """Save pictures for the gallery in the folder of the training.

        Args:
            images: Pictures that the model drew.
            texts: What each of them shows.
        """
        self.gallery = [Sample(text, f"samples/{number:02}.png") for number, text in enumerate(texts)]
        (self.output_dir / "samples").mkdir(exist_ok=True)
        for image, sample in zip(images, self.gallery, strict=True):
            image.save(self.output_dir / sample.file)

    def _sources(self) -> dict[str, str]:
        dataset, vae, base = self._hub_ids.values()
        rows = {
            "data set": f"`{dataset}`, {self.settings['dataset_split']}" if dataset else "a local one",
            "VAE": f"`{vae}`" if vae else "a local one, saved with the model",
        }
        if self.settings.get("init_from"):
            rows["fine-tuned from"] = f"`{base}`" if base else "a local model"
        return rows

    def _shown_settings(self) -> dict[str, Any]:
        values = {name: self.settings.get(setting) for setting, name in self.shown.items()}
        return {name: value for name, value in values.items() if value is not None}

    def _progress(self) -> dict[str, Any]:
        """Steps, images and loss from the last row of the metrics; nothing before the first row."""
        path = self.output_dir / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if not lines:
            return {}
        last = json.loads(lines[-1])
        return {
            "steps": last["step"],
            "images seen": last["images_seen"],
            "last training loss": f"{last['loss']:.4f}",
        }
