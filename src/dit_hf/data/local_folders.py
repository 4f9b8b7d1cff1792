"""Which local folders are read file by file, as class folders of images, and which are left to `datasets`.

`datasets` guesses: words such as "train" or "test" in a path make splits, the most frequent suffix decides how all
files are read, and labels are dropped if images lie at several depths or in one folder only. Here a folder of images is
listed by `list_images`, and only a folder in another form goes to `datasets`: see `find_image_folder`.
"""

import csv
import glob
import json
import logging
import os
import re
from pathlib import Path

import pyarrow.parquet as pq

from ..image_folder import ImageFolder, list_images, suffix_of
from ..images import readable_suffixes

logger = logging.getLogger(__name__)

# Split -> names of the folders that `datasets` takes for it; "train2017" and "test_images" count as well.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_WORD = {word: split for split, words in SPLITS.items() for word in words}
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
SHARDS = {".parquet", ".arrow", ".tar"}
NUMBERED_SHARD = re.compile(r"-\d{5}-of-\d{5}(-\w+)?\.(parquet|arrow|tar)$")
DECLARED_FILES = re.compile(r"^configs:", re.MULTILINE)  # in the head of a README.md, as the Hub has it


def find_image_folder(name: str, split: str, label_column: str) -> ImageFolder | None:
    """List the images of a local folder, or of a pattern of image files.

    A folder is left to `datasets` if it holds no images; if it holds shards (parquet, arrow, tar) that are numbered as
    `datasets` numbers them, that are as many as the images, or beside images without class folders; if its README.md
    names the files of a data set; if a metadata file has the column of classes; or if a split is asked for that is none
    of its folders.

    If all images lie in folders of splits, such as `train/cat/1.jpg` and `test/cat/2.jpg`, the folder of the split is
    listed.

    Args:
        name: Folder, or pattern such as `photos/*/*.jpg`.
        split: Split that is asked for; "train" if none was.
        label_column: Column of classes that is asked for; "label" if none was.

    Returns:
        Images with their classes; None if the folder is left to `datasets`.

    Raises:
        ValueError: If the images have no class folders, if a class folder holds an archive, or if the folder has splits
            and not the one that is asked for.
    """
    is_pattern = _is_pattern(name)
    root = _root_of_pattern(name) if is_pattern else Path(name)
    if not root.is_dir() or (is_pattern and suffix_of(name) not in readable_suffixes()):
        return None
    folder = list_images(root, _matches(name, root) if is_pattern else None)
    if not folder.names and folder.unread_pictures and not _count_shards(folder):
        raise ValueError(f"{root} holds no image that is read, but {', '.join(folder.unread_pictures)}")
    if not folder.names or _has_other_form(folder, label_column):
        return None
    if is_pattern and split != "train":
        raise ValueError(f"the images of {name} have no splits: leave out --dataset_split {split}")
    splits = {} if is_pattern else find_splits(folder)
    if splits and split not in splits:
        raise ValueError(
            f"{root} holds the splits {', '.join(sorted(splits))}, and none of them is {split!r}: set --dataset_split"
        )
    if splits:
        folder = list_images(root / splits[split])
    elif split != "train":
        return None
    _check(folder)
    return folder


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) and "://" not in name and not os.path.exists(name)


def _root_of_pattern(pattern: str) -> Path:
    """Return the folder whose subfolders are the classes: `photos` for `photos/*/*.jpg` and for `photos/cat/*.jpg`."""
    start = re.split(r"[*?\[]", os.path.abspath(pattern))[0]
    folder, rest = Path(os.path.dirname(start)), os.path.abspath(pattern)[len(os.path.dirname(start)) + 1 :]
    return folder if os.sep in rest else folder.parent


def _matches(pattern: str, root: Path) -> set[str]:
    paths = glob.iglob(os.path.abspath(pattern), recursive=True)
    return {Path(path).relative_to(root).as_posix() for path in paths}


def find_splits(folder: ImageFolder) -> dict[str, str]:
    """Return the folder of each split; nothing if the folders at the top are no splits with class folders in them.

    Args:
        folder: Images of the folder that holds the splits.
    """
    tops = {name.split("/")[0] for name in folder.names if "/" in name}
    splits = {SPLIT_OF_WORD.get(re.split(r"[-._ 0-9]", top.lower())[0], ""): top for top in sorted(tops)}
    in_classes = sum(name.count("/") > 1 for name in folder.names)
    return splits if tops and "" not in splits and 2 * in_classes > len(folder.names) else {}


def _has_other_form(folder: ImageFolder, label_column: str) -> bool:
    """Whether a folder is a data set in another form than class folders of images."""
    readme = folder.root / "README.md"
    columns = {column for name in folder.other_names for column in _metadata_columns(folder.root / name)}
    if label_column in columns or label_column != "label":
        return True
    return _has_shards(folder) or (
        readme.is_file() and bool(DECLARED_FILES.search(readme.read_text(encoding="utf-8", errors="replace")))
    )


def _has_shards(folder: ImageFolder) -> bool:
    """Whether the data are in shards, and the images in a folder are pictures of them or of its documents."""
    number = _count_shards(folder)
    is_flat = folder.labels is None
    return number >= (1 if is_flat else len(folder.names)) or any(map(NUMBERED_SHARD.search, folder.other_names))


def _count_shards(folder: ImageFolder) -> int:
    return sum(suffix_of(name) in SHARDS for name in folder.other_names)


def _metadata_columns(path: Path) -> list[str]:
    """Return the columns of a metadata file as `datasets` knows them; none for another file."""
    if path.name not in METADATA:
        return []
    try:
        if path.suffix == ".parquet":
            return list(pq.read_schema(path).names)
        with open(path, encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "")
        return next(csv.reader([first]), []) if path.suffix == ".csv" else list(json.loads(first or "{}"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _check(folder: ImageFolder) -> None:
    root, classes = folder.root, folder.class_names
    if folder.labels is None:
        inside = sum("/" in name for name in folder.names)
        raise ValueError(
            f"{root} holds {len(folder.names) - inside} images outside of class folders and {inside} in them: put the "
            f"images of each class into a folder of its own, such as {root}/cat/1.jpg"
        )
    if folder.archives:
        raise ValueError(
            f"{root / folder.archives[0]} is an archive in a class folder: unpack it there if its images are of this "
            "class, and otherwise elsewhere"
        )
    if {name.lower() for name in classes} <= set(SPLIT_OF_WORD):
        logger.warning(f"the classes of {root} are called as splits are: {', '.join(classes)}")
    deeper = {name.split("/")[1] for name in folder.names if name.count("/") > 1}
    if len(classes) == 1 and len(deeper) > 1 and all(name.count("/") > 1 for name in folder.names):
        logger.warning(
            f"all images of {root} are of the one class {classes[0]!r}: if the folders in it are the classes, pass "
            f"{root / classes[0]}"
        )
    if folder.unread_pictures:
        logger.warning(f"{root} holds pictures that are left out: {', '.join(folder.unread_pictures)}")
