"""Measure the shipped model with features that need no download, and write the result into its model card.

    python examples/evaluate_emoji.py        # 1,000 images, in minutes; run it again if it was interrupted

The features are those of EfficientNet-Lite0, so the distances are not FIDs. For comparison, three sets of real drawings
are measured as well: the training drawings with another jitter (the best that any model can reach), the same after the
VAE (the best that this model can reach in its latents), and drawings of other emoji (which must be far away).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite import EfficientNetLite0

from dit_hf import DiTPipeline
from dit_hf.data.references import load_references
from dit_hf.data.sources import open_images
from dit_hf.evaluation import MetricSettings, array_batches, evaluate, make_reference
from dit_hf.evaluation.run import model_batches, open_source, write

ASSETS = Path(__file__).parent / "assets"
EMOJI, MODEL = ASSETS / "emoji", ASSETS / "dit-emoji"
METRICS = ["fid", "precision_recall", "density_coverage"]  # with these features, "fid" is a Fréchet distance, not FID


def other_drawings(class_names: list[str], num: int) -> np.ndarray:
    """Return the first images of the data set that belong to none of the given classes."""
    names = open_images(str(EMOJI)).classes.names
    excluded = {names.index(name) for name in class_names}
    drawings = [
        image[None]
        for images, labels in open_source(str(EMOJI))
        for image, label in zip(images, labels, strict=True)
        if label not in excluded
    ]
    return np.concatenate(drawings[:num])


@torch.no_grad()
def through_vae(vae: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x.split(50)]
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=1000, help="number of samples")
    parser.add_argument("--num_inference_steps", type=int, default=25, help="number of sampling steps")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="scale of guidance; 1 is no guidance")
    parser.add_argument("--num_jitters", type=int, default=8, help="variants of each drawing in the reference")
    parser.add_argument("--output_dir", type=Path, default=Path("out/evaluate-emoji"), help="folder for the results")
    parser.add_argument(
        "--card", type=Path, help="model card to write into, such as examples/assets/dit-emoji/README.md"
    )
    arguments = parser.parse_args()
    class_names = (EMOJI / "classes_100.txt").read_text().splitlines()
    drawings, others = (
        load_references(str(EMOJI), class_names, resolution=64, num_jitters=arguments.num_jitters, seed=seed)
        for seed in (0, 1)
    )
    labels = np.arange(100).repeat(drawings.shape[1])
    extractor = EfficientNetLite0()
    source = "emoji, 100 classes, mirrored and jittered"
    reference = make_reference(array_batches(drawings.reshape(-1, 64, 64, 3), labels), extractor, source)
    shuffled = np.random.default_rng(0).permutation(others.reshape(-1, 64, 64, 3))  # every class is there
    real = {
        "the same drawings, jittered otherwise": shuffled[: arguments.num_images],
        "drawings of other emoji": other_drawings(class_names, arguments.num_images),
    }
    pipeline = DiTPipeline.from_pretrained(MODEL)
    real["the same drawings, through the VAE"] = through_vae(pipeline.vae, shuffled[: arguments.num_images])
    settings = MetricSettings()
    for name, images in real.items():
        result = evaluate(array_batches(images), reference, extractor, metrics=METRICS, settings=settings)
        print(f"{name}: {result.table()}\n")
        result.save(arguments.output_dir / f"{name}.json")
    call = {"num_inference_steps": arguments.num_inference_steps, "guidance_scale": arguments.guidance_scale}
    images, about = model_batches(pipeline, arguments.num_images, labels="balanced", batch_size=50, **call)
    kept = {"work_dir": arguments.output_dir / "features", "about": about, "num_groups": 5}
    result = evaluate(images, reference, extractor, metrics=METRICS, settings=settings, **kept)
    print(f"the model: {result.table()}")
    write(result, arguments.output_dir / "model.json", arguments.card)


if __name__ == "__main__":
    main()
