"""Measure the shipped model on features other than those of FID, and write the result into its card.

    python examples/evaluate_emoji.py        # 1,000 images, in minutes; run it again if it was interrupted

The features are those of EfficientNet-Lite0, so no number here is FID. Three sets of real drawings give the scale. The
drawings that the model was trained on, jittered in another way, are the best that any model can reach. The same
drawings encoded and decoded by the VAE are the best that this model can reach. Drawings of other emoji are far away.
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
from dit_hf.evaluation.run import model_batches, write_result
from dit_hf.evaluation.sources import open_batches

ASSETS = Path(__file__).parent / "assets"
EMOJI, MODEL = ASSETS / "emoji", ASSETS / "dit-emoji"
METRICS = ["fid", "precision_recall", "density_coverage"]  # with these features, "fid" is a Fréchet distance, not FID


def other_drawings(class_names: list[str], num: int) -> np.ndarray:
    """Return the first images of the data set that belong to none of these classes."""
    names = open_images(str(EMOJI)).classes.names
    learnt = {names.index(name) for name in class_names}
    drawings = [
        image
        for images, labels in open_batches(str(EMOJI))
        for image, label in zip(images, labels, strict=True)
        if label not in learnt
    ]
    return np.stack(drawings[:num])


@torch.no_grad()
def through_vae(vae: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Encode and decode images uint8 (N, H, W, 3)."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x.split(50)]
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=1000, help="Number of images of each set.")
    parser.add_argument("--num_inference_steps", type=int, default=25, help="Number of steps.")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="Strength of guidance; 1 is none.")
    parser.add_argument("--num_jitters", type=int, default=8, help="Variants of each drawing in the reference.")
    parser.add_argument("--output_dir", type=Path, default=Path("out/evaluate-emoji"), help="For the results.")
    parser.add_argument("--card", type=Path, help="Model card to write the result into.")
    arguments = parser.parse_args()
    class_names = (EMOJI / "classes_300.txt").read_text().splitlines()
    drawings, jittered_again = (
        load_references(str(EMOJI), class_names, resolution=64, num_jitters=arguments.num_jitters, seed=seed)
        for seed in (0, 1)
    )
    labels = np.arange(len(class_names)).repeat(drawings.shape[1])
    extractor = EfficientNetLite0()
    source = f"emoji, {len(class_names)} classes, mirrored and jittered"
    reference = make_reference(array_batches(drawings.reshape(-1, 64, 64, 3), labels), extractor, source)
    shuffled = np.random.default_rng(0).permutation(
        jittered_again.reshape(-1, 64, 64, 3)
    )  # so that the first ones hold every class
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
    images, sample_settings = model_batches(pipeline, arguments.num_images, labels="balanced", batch_size=50, **call)
    result = evaluate(
        images,
        reference,
        extractor,
        metrics=METRICS,
        settings=settings,
        num_groups=5,
        work_dir=arguments.output_dir / "features",
        sample_settings=sample_settings,
    )
    print(f"the model: {result.table()}")
    write_result(result, arguments.output_dir / "model.json", arguments.card)


if __name__ == "__main__":
    main()
