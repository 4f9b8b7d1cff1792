"""Build the emoji data set from the two npm packages that hold the drawings.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    for vendor in google twitter; do
        mkdir -p $vendor && tar xzf emoji-datasource-$vendor-16.0.0.tgz -C $vendor --strip-components=1
    done
    python examples/assets/emoji/build.py --google google --twitter twitter

Each row is one drawing: 64 x 64 pixels composited on white, stored as lossless WebP, labelled with the emoji's
name. Skin-tone variants, the skin-tone swatches and the flags of countries and regions are left out.
"""

import argparse
import hashlib
import io
import json
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

HERE = Path(__file__).parent
VENDORS = ("google", "twitter")
NUM_TRAIN_SHARDS = 4  # split evenly over 1, 2 or 4 processes
LEFT_OUT = {"skin-tone", "country-flag", "subdivision-flag"}


def read_emoji(package: Path) -> list[dict]:
    """Return the entries of `emoji.json` that both vendors draw, in Unicode's order."""
    entries = json.loads((package / "emoji.json").read_text())
    kept = [entry for entry in entries if entry["subcategory"] not in LEFT_OUT]
    kept = [entry for entry in kept if all(entry[f"has_img_{vendor}"] for vendor in VENDORS)]
    return sorted(kept, key=lambda entry: entry["sort_order"])


def class_name(entry: dict) -> str:
    return entry["short_name"].replace("_", " ")


def on_white_webp(path: Path) -> bytes:
    with PILImage.open(path) as drawing:
        drawing = drawing.convert("RGBA")
    canvas = PILImage.new("RGBA", drawing.size, "white")
    canvas.alpha_composite(drawing)
    buffer = io.BytesIO()
    canvas.convert("RGB").save(buffer, "WEBP", lossless=True, method=6)
    return buffer.getvalue()


def is_held_out(name: str, trained_classes: set[str]) -> bool:
    """Return True for one in ten of the names that no shipped model is trained on, chosen by a hash of the name."""
    return name not in trained_classes and hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def build_rows(packages: dict[str, Path], entries: list[dict]) -> list[dict]:
    return [
        {
            "image": {"bytes": on_white_webp(packages[vendor] / "img" / vendor / "64" / entry["image"]), "path": None},
            "label": label,
            "vendor": vendor,
        }
        for label, entry in enumerate(entries)
        for vendor in VENDORS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for vendor in VENDORS:
        parser.add_argument(f"--{vendor}", type=Path, required=True, help=f"unpacked emoji-datasource-{vendor}")
    packages = vars(parser.parse_args())

    entries = read_emoji(packages["google"])
    names = [class_name(entry) for entry in entries]
    trained_classes = set((HERE / "classes_300.txt").read_text().splitlines())
    if unknown := trained_classes - set(names):
        raise ValueError(f"classes_300.txt names emoji that the packages do not have: {sorted(unknown)}")

    features = Features({"image": Image(), "label": ClassLabel(names=names), "vendor": Value("string")})
    rows = build_rows(packages, entries)
    held_out = [row for row in rows if is_held_out(names[row["label"]], trained_classes)]
    train = [row for row in rows if not is_held_out(names[row["label"]], trained_classes)]
    train = [train[i] for i in np.random.default_rng(0).permutation(len(train))]  # classes mixed within each shard

    (HERE / "data").mkdir(exist_ok=True)
    for shard in range(NUM_TRAIN_SHARDS):
        path = HERE / "data" / f"train-{shard:05d}-of-{NUM_TRAIN_SHARDS:05d}.parquet"
        Dataset.from_list(train[shard::NUM_TRAIN_SHARDS], features=features).to_parquet(path, batch_size=100)
    Dataset.from_list(held_out, features=features).to_parquet(HERE / "data" / "validation-00000-of-00001.parquet")
    print(f"{len(names)} classes, {len(train)} training and {len(held_out)} validation images")


if __name__ == "__main__":
    main()
