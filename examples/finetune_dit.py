"""Teach the shipped DiT eight emoji that it does not know, in minutes on a CPU, and look at what changed.

    python examples/finetune_dit.py                         # all weights
    python examples/finetune_dit.py --lora_rank 16          # a LoRA adapter

Settings of the training may follow. The example makes a folder of images as a user has it, with one folder per class
and two drawings in each. It adds one sample of the model from each class that the model knows, so that these classes
are not forgotten (prior preservation, Ruiz et al. 2022, arXiv 2208.12242); no image of the model's own training is
needed. For your own images, `dit-hf finetune FOLDER` is shorter: see docs/your_images.md.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, as in train_dit.py

import numpy as np
import torch
from datasets import load_dataset
from diffusers.utils import make_image_grid
from PIL import Image

from dit_hf import DiTPipeline
from dit_hf.data.references import load_references
from dit_hf.evaluation import nearest_class
from dit_hf.training.origin import load_origin
from dit_hf.training.reporting.previews import named
from dit_hf.training.run import main as train
from dit_hf.training.settings import parse_settings
from dit_hf.training.start import adapt_to_data

EXAMPLES = Path(__file__).parent
EMOJI, SHIPPED = EXAMPLES / "assets" / "emoji", EXAMPLES / "assets" / "dit-emoji"
CONFIG = EXAMPLES / "configs" / "finetune_emoji.yaml"
NEW_CLASSES = ["blue heart", "pear", "alien", "hibiscus", "baby chick", "custard", "crocodile", "coffee"]
COPIES = 6  # number of copies of each new drawing: half of all images then show new classes


def write_new_images(folder: Path, names: Sequence[str]) -> None:
    """Write the drawings of some classes as a user's folder of images: `folder/CLASS/K.png`."""
    dataset = load_dataset(str(EMOJI), split="train")
    wanted = {dataset.features["label"].names.index(name): name for name in names}
    for number, label in enumerate(dataset["label"]):
        if label in wanted:
            image = dataset[number]["image"].convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            (folder / wanted[label]).mkdir(parents=True, exist_ok=True)
            for copy in range(COPIES):
                image.save(folder / wanted[label] / f"{number}-{copy}.png")


def write_own_images(folder: Path, pipeline: DiTPipeline, names: Sequence[str]) -> None:
    """Write one sample of the model from each of some classes that it knows."""
    for name, image in zip(names, sample(pipeline, names, seed=1), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        image.save(folder / name / "own.png")


def sample(pipeline: DiTPipeline, labels: Sequence[str], seed: int = 0) -> list[Image.Image]:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(1000 * seed + k) for k in range(len(labels))]
    options = {"guidance_scale": 2.0, "num_inference_steps": 20}
    return pipeline(class_labels=list(labels), generator=generators, **options).images


def recognised(images: Sequence[Image.Image], label_ids: Sequence[int], references: np.ndarray) -> int:
    """Count the images that are clean and nearest to a drawing of their own class, among those of all classes."""
    nearest = nearest_class(np.stack([np.array(image) for image in images]), references)
    return int((nearest == label_ids).sum())


def before(new_classes: Sequence[str]) -> DiTPipeline:
    """Return the model as it starts: every new class begins at the mean of the known ones."""
    pipeline = DiTPipeline.from_pretrained(SHIPPED)
    start = adapt_to_data(load_origin(str(SHIPPED)), new_classes, sample_size=16, keep_classes=True)
    return DiTPipeline(start.model.eval(), pipeline.vae, pipeline.scheduler, dict(enumerate(start.names)))


def main(
    arguments: Sequence[str] = (), new_classes: Sequence[str] = NEW_CLASSES, num_old: int = 300
) -> dict[str, tuple[int, int]]:
    """Train, and count the right samples of the new and of the first `num_old` old classes, before and after."""
    output_dir = Path(parse_settings([str(CONFIG), *arguments]).output_dir)
    folder = output_dir / "images"
    known = DiTPipeline.from_pretrained(SHIPPED)
    old_classes = [known.config.id2label[k] for k in range(num_old)]
    if not folder.exists():
        partial = output_dir / "images.partial"
        shutil.rmtree(partial, ignore_errors=True)
        print(f"drawing one sample of each of {num_old} classes that the model knows")
        write_new_images(partial, new_classes)
        write_own_images(partial, known, old_classes)
        partial.rename(folder)
    train([str(CONFIG), *arguments, "--dataset_name", str(folder)])

    print("drawing samples before and after the training, to compare them")
    pipelines = [before(new_classes), DiTPipeline.from_pretrained(output_dir / "pipeline")]
    new_labels = 5 * list(new_classes)
    new_images = [sample(pipeline, new_labels) for pipeline in pipelines]
    old_images = [sample(pipeline, old_classes) for pipeline in pipelines]
    names = [*known.config.id2label.values(), *new_classes]
    references = load_references(str(EMOJI), names, resolution=64)
    scores = {}
    for what, images, labels in (("new", new_images, new_labels), ("old", old_images, old_classes)):
        label_ids = [names.index(label) for label in labels]
        scores[what] = tuple(recognised(each, label_ids, references) for each in images)
        print(f"{what} classes: {scores[what][0]} of {len(labels)} samples right before, {scores[what][1]} after")
    columns = len(new_classes)
    new_rows = new_images[0][:columns] + new_images[1][: 2 * columns]
    old_rows = old_images[0][:columns] + old_images[1][:columns]
    labels = 3 * list(new_classes) + 2 * old_classes[:columns]
    shown = [named(*each) for each in zip(new_rows + old_rows, labels, strict=True)]
    make_image_grid(shown, rows=5, cols=columns).save(output_dir / "before_after.png")
    print(f"wrote {output_dir / 'before_after.png'}: before; after, twice; old classes before; after")
    return scores


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
