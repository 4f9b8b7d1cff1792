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
from .page import CARD, link, make_page
from .pipeline import LOSS_CURVE, SAMPLES, Sample, make_card
from .stamp import digest_of_weights, stamped


@dataclass
class TrainingCard:
    """The card of a training, to be made again at each push.

    Names of models and data sets are looked up when this object is made and in `read_settings`: a path that exists then
    stays a local one.

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
    early_end: str | None = field(default=None, init=False)  # why the training ended before its last step

    def __post_init__(self) -> None:
        self.read_settings(self.settings)

    def read_settings(self, settings: Mapping[str, Any]) -> None:
        """Take over the settings, and look up the names in them.

        Args:
            settings: Settings of the training by name, as in `settings.yaml`.

        Raises:
            ValueError: If the licence is none of the Hub's.
        """
        self.settings = settings
        check_license(self.license)
        self._dataset, self._vae, self._base = (
            hub_id(self.settings.get(name)) for name in ("dataset_name", "vae_name_or_path", "init_from")
        )
        self._datasets = [self._dataset] if self._dataset else None

    @property
    def license(self) -> str | None:
        """Licence of the weights."""
        return self.settings.get("hub_license")

    def outline(self) -> ModelCard:
        """Make a card of what is known before the first step, so that the Hub can be asked whether it takes it."""
        return make_page("DiT", "", {}, license=self.license, datasets=self._datasets, base_model=self._base)

    def make(self, pipeline: DiffusionPipeline) -> ModelCard:
        """Make the card as the training stands now.

        Args:
            pipeline: Pipeline with the averaged weights.
        """
        return make_card(
            pipeline,
            license=self.license,
            datasets=self._datasets or (),
            base_model=self._base,
            recipe={**self._sources(), **self._shown_settings(), **self._progress()},
            has_samples=(self.output_dir / SAMPLES).is_file(),
            has_loss_curve=(self.output_dir / LOSS_CURVE).is_file(),
            gallery=self.gallery,
        )

    def write(self, pipeline: DiffusionPipeline, folder: Path) -> None:
        """Write the card into the folder of the pipeline, with the pictures that the card shows."""
        (folder / CARD).write_text(stamped(str(self.make(pipeline)), digest_of_weights(folder)), encoding="utf-8")
        for name in (SAMPLES, LOSS_CURVE, *(sample.file for sample in self.gallery)):
            if (self.output_dir / name).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes((self.output_dir / name).read_bytes())

    def add_samples(self, images: list[Image.Image], texts: list[str]) -> None:
        """Save pictures for the gallery in the folder of the training.

        Args:
            images: Pictures that the model drew.
            texts: What each of them shows; empty for pictures of an unconditional model.
        """
        texts = texts or ["a sample"] * len(images)
        self.gallery = [Sample(text, f"samples/{number:02}.png") for number, text in enumerate(texts)]
        (self.output_dir / "samples").mkdir(exist_ok=True)
        for image, sample in zip(images, self.gallery, strict=True):
            image.save(self.output_dir / sample.file)

    def _sources(self) -> dict[str, str]:
        split = self.settings["dataset_split"]
        rows = {
            "data set": f"`{self._dataset}`, {split}" if self._dataset else "a local one",
            "VAE": f"`{self._vae}`" if self._vae else "a local one, saved with the model",
        }
        if self.settings.get("init_from"):
            rows["fine-tuned from"] = link(self._base) if self._base else "a local model"
        return rows

    def _shown_settings(self) -> dict[str, Any]:
        values = {name: self.settings.get(setting) for setting, name in self.shown.items()}
        return {name: value for name, value in values.items() if value is not None}

    def _progress(self) -> dict[str, Any]:
        """Return steps, images and loss of the last row of the metrics; nothing before the first row."""
        path = self.output_dir / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if not lines:
            return {}
        last = json.loads(lines[-1])
        scope = " in the fine-tuning" if self.settings.get("init_from") else ""
        return {
            f"steps{scope}": last["step"],
            f"images seen{scope}": last["images_seen"],
            "last training loss": f"{last['loss']:.4f}",
            **({"ended early": self.early_end} if self.early_end else {}),
        }
