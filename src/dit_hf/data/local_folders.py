"""Which local folders are read file by file, as class folders of images, and which are left to `datasets`.

`datasets` guesses: words such as "train" or "test" in a path make splits, the most frequent suffix decides how all
files are read, and labels are dropped if images lie at several depths or in one folder only. Here a folder of images is
listed by `list_images`, and only a folder in another form goes to `datasets`: see `find_image_folder`.
"""

import dataclasses
import glob
import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..class_names import clean_name
from ..image_folder import ARCHIVE, ImageFolder, list_images, list_names, suffix_of
from ..images import readable_suffixes
from ..network import reason_of
from .metadata import has_label_column
from .retries import SourceError

logger = logging.getLogger(__name__)

# Split -> names of the folders that `datasets` takes for it; "train2017" and "test_images" count as well.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_WORD = {word: split for split, words in SPLITS.items() for word in words}
SHARDS = {".parquet", ".arrow", ".tar"}
# Of these `datasets` makes a data set, if there are no images.
TABLES = {".csv", ".json", ".jsonl", ".gz", ".zst", ".xz", ".bz2", ".lz4", ".h5", ".hdf5"}
NUMBERED_SHARD = re.compile(r"-\d{5}-of-\d{5}(-\w+)?\.(parquet|arrow|tar)$")
DECLARED_FILES = re.compile(r"^configs:", re.MULTILINE)  # in the head of a README.md, as the Hub has it


def find_image_folder(name: str, split: str, label_column: str) -> ImageFolder | None:
    """List the images of a local folder, or of a pattern of image files.

    A folder is left to `datasets` if it holds shards or tables and no images; if it holds shards (parquet, arrow, tar)
    that are numbered as `datasets` numbers them, that are as many as the images, or beside images without class
    folders; if its README.md names the files of a data set; if a metadata file has the column of classes; or if a split
    is asked for that is none of its folders.

    If the folders are splits, such as in `train/cat/1.jpg` and `test/cat/2.jpg`, that of the split is listed.

    Args:
        name: Folder, or pattern such as `photos/*/*.jpg`.
        split: Split that is asked for; "train" if none was.
        label_column: Column of classes that is asked for; "label" if none was.

    Returns:
        Images with their classes; None if the folder is left to `datasets`.

    Raises:
        ValueError: If there are no images, if they have no class folders, if a class folder holds an archive, or if the
            folder has splits and not the one that is asked for.
        SourceError: If a folder cannot be read.
    """
    is_pattern = _is_pattern(name)
    root = _root_of_pattern(name) if is_pattern else Path(name)
    if not root.is_dir():
        return None
    matches = _matches(name, root) if is_pattern else None
    if matches is not None and not _are_images(name, root, matches):
        return None
    folder = _list(root, matches)
    if not folder.names:
        _check_without_images(folder)
        return None
    if _has_other_form(folder, label_column):
        return None
    if is_pattern and split != "train":
        raise ValueError(f"the images of {name} have no splits: leave out --dataset_split {split}")
    if not is_pattern and (splits := find_splits(folder)):
        listed = _list(root / choose_split(folder, splits, split, "--dataset_split"))
        folder = _numbered_as_all(listed, folder, splits)
    elif split != "train":
        return None
    _check(folder)
    return folder


def _list(root: Path, only: set[str] | None = None) -> ImageFolder:
    try:
        return list_images(root, only)
    except OSError as error:
        raise SourceError(f"{error.filename or root} cannot be read: {reason_of(error)}") from error


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) and "://" not in name and not os.path.exists(name)


def _root_of_pattern(pattern: str) -> Path:
    """Return the folder whose subfolders are the classes: `photos` for `photos/*/*.jpg` and for `photos/cat/*.jpg`."""
    folder = _fixed_part(pattern)
    rest = os.path.relpath(os.path.abspath(pattern), folder)
    return folder if os.sep in rest or rest == "**" else folder.parent


def _fixed_part(pattern: str) -> Path:
    """Return the last folder before the first wildcard of a pattern."""
    return Path(os.path.dirname(re.split(r"[*?\[]", os.path.abspath(pattern))[0]))


def _matches(pattern: str, root: Path) -> set[str]:
    paths = glob.iglob(os.path.abspath(pattern), recursive=True)
    return {Path(path).relative_to(root).as_posix() for path in paths}


def _are_images(pattern: str, root: Path, matches: set[str]) -> bool:
    """Whether the files that fit a pattern are images, for the most part.

    Raises:
        ValueError: If the pattern fits folders only.
    """
    files = [name for name in matches if (root / name).is_file()]
    if matches and not files:
        fixed = _fixed_part(pattern)
        raise ValueError(f"{pattern} fits folders and no files: pass {fixed}, or a pattern such as {fixed}/*/*.jpg")
    return 2 * sum(suffix_of(name) in readable_suffixes() for name in files) > len(files)


def find_splits(folder: ImageFolder) -> dict[str, list[str]]:
    """Return the folders of each split; nothing if the folders at the top are classes.

    They are splits if all of them are named after splits, and one of them has its images in class folders. Beside other
    folders, they are splits if two splits hold a class folder of the same name: `train/cat` and `test/cat`.

    Args:
        folder: Images of the folder that holds the splits.
    """
    inside: dict[str, list[str | None]] = defaultdict(list)  # top -> folder below it of each of its images
    for parts in (name.split("/") for name in folder.names if "/" in name):
        inside[parts[0]].append(parts[1] if len(parts) > 2 else None)
    splits: dict[str, list[str]] = defaultdict(list)
    for top in sorted(inside):
        if split := SPLIT_OF_WORD.get(re.split(r"[-._ 0-9]", top.lower())[0]):
            splits[split].append(top)
    named = [top for tops in splits.values() for top in tops]
    has_classes = any(2 * inside[top].count(None) < len(inside[top]) for top in named)
    classes = [{below for top in tops for below in inside[top] if below} for tops in splits.values()]
    are_alike = sum(map(len, classes)) > len(set().union(*classes))
    return dict(splits) if has_classes and (len(named) == len(inside) or are_alike) else {}


def choose_split(folder: ImageFolder, splits: Mapping[str, Sequence[str]], split: str, option: str) -> str:
    """Return the name of the folder of a split.

    Args:
        folder: Images of the folder that holds the splits.
        splits: Folders of each split, as `find_splits` returns them.
        split: Split that is asked for.
        option: Option that asks for a split, for messages.

    Raises:
        ValueError: If the folder has no such split, or several folders of it.
    """
    if split not in splits:
        raise ValueError(
            f"{folder.root} holds the splits {', '.join(sorted(splits))}, and none of them is {split!r}: set {option}"
        )
    if len(tops := splits[split]) > 1:
        raise ValueError(
            f"{folder.root} holds several folders of the split {split!r}: {', '.join(tops)}. Move their images into "
            f"one folder, or pass one of them, such as {folder.root / tops[0]}"
        )
    folders = {name.split("/")[0] for name in folder.names if "/" in name}
    if others := sorted(folders.difference(*splits.values())):
        logger.warning(f"{folder.root} holds splits, beside which these folders are left out: {list_names(others)}")
    return splits[split][0]


def _numbered_as_all(listed: ImageFolder, whole: ImageFolder, splits: Mapping[str, Sequence[str]]) -> ImageFolder:
    """Number the classes of a split as all splits have them: a test without cats has the ids of the training.

    Args:
        listed: Images of the split.
        whole: Images of all splits.
        splits: Folders of each split.
    """
    if listed.labels is None:
        return listed
    tops = {top for folders in splits.values() for top in folders}
    inside = [parts[1] for parts in (name.split("/") for name in whole.names) if parts[0] in tops and len(parts) > 2]
    names = sorted({*map(clean_name, inside), *listed.class_names})
    labels = [names.index(name) for name in listed.class_names]
    return dataclasses.replace(listed, class_names=names, labels=[labels[label] for label in listed.labels])


def _has_other_form(folder: ImageFolder, label_column: str) -> bool:
    """Whether a folder is a data set in another form than class folders of images."""
    if has_label_column(folder.root, folder.other_names, label_column) or label_column != "label":
        return True
    return _has_shards(folder) or _declares_files(folder.root)


def _declares_files(root: Path) -> bool:
    readme = root / "README.md"
    return readme.is_file() and bool(DECLARED_FILES.search(readme.read_text(encoding="utf-8", errors="replace")))


def _has_shards(folder: ImageFolder) -> bool:
    """Whether the data are in shards, and the images in a folder are pictures of them or of its documents."""
    number = _count_shards(folder)
    is_flat = folder.labels is None
    return number >= (1 if is_flat else len(folder.names)) or any(map(NUMBERED_SHARD.search, folder.other_names))


def _count_shards(folder: ImageFolder) -> int:
    return sum(suffix_of(name) in SHARDS for name in folder.other_names)


def _check_without_images(folder: ImageFolder) -> None:
    """Refuse a folder without images, unless it holds shards or tables, which `datasets` reads.

    Raises:
        ValueError: If there are none; the message says what there is instead.
    """
    root, others = folder.root, folder.other_names
    archives = [name for name in others if ARCHIVE.search(name) and suffix_of(name) not in SHARDS]
    if {suffix_of(name) for name in set(others).difference(archives)} & (SHARDS | TABLES) or _declares_files(root):
        return
    if folder.unread_pictures:
        raise ValueError(f"{root} holds no image that is read, but {', '.join(folder.unread_pictures)}")
    if archives:
        raise ValueError(
            f"{root} holds no image, but {_number_of(archives, 'archive')} such as {archives[0]}: unpack them, so that "
            f"the images of each class lie in a folder of its own, such as {root}/cat/1.jpg"
        )
    found = ", ".join(f"{number} {kind}" for kind, number in folder.left_out.most_common(5))
    raise ValueError(f"{root} holds no image{f', but {found}' if found else ''}: pass a folder of images")


def _number_of(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}" + ("s" if len(names) > 1 else "")


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
    _check_names(folder)
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
    if folder.empty_folders:
        logger.warning(f"{root} holds folders without images, which are no classes: {list_names(folder.empty_folders)}")


def _check_names(folder: ImageFolder) -> None:
    """Refuse names of class folders that nobody can type, and point out those that are easily taken for each other.

    Raises:
        ValueError: If a name is blank, not in UTF-8, or holds a control character such as the end of a line.
    """
    root = folder.root
    tops = sorted({name.split("/")[0] for name in folder.names})
    for name in tops:
        if not _is_utf_8(name):
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            raise ValueError(
                f"the name of the folder {shown} in {root} is not in UTF-8: rename it, or all of them by `convmv -f "
                f"latin1 -t utf8 -r --notest {root}`"
            )
        if not clean_name(name) or any(unicodedata.category(character) == "Cc" for character in clean_name(name)):
            raise ValueError(f"the folder {name!r} in {root} has no name for a class: rename it")
    same, alike = defaultdict(list), defaultdict(set)
    for name in tops:
        same[clean_name(name)].append(name)
        alike[_as_seen(name)].add(clean_name(name))
    for name, folders in same.items():
        if len(folders) > 1:
            logger.warning(f"{root} holds {len(folders)} folders whose names look alike, as one class: {name}")
    for names in alike.values():
        if len(names) > 1:
            logger.warning(f"{root} holds {len(names)} classes whose names look alike: {', '.join(sorted(names))}")
    digits = [name for name in folder.class_names if name.isdecimal()]
    moved = [name for name in digits if folder.class_names.index(name) != int(name) < len(digits)]
    if moved and len(digits) == len(folder.class_names):
        logger.warning(
            f"the classes of {root} are numbered in the order of their names: class {moved[0]!r} has the id "
            f"{folder.class_names.index(moved[0])}. Ask for it by its name, as a text"
        )


def _as_seen(name: str) -> str:
    """Return a name without what a reader overlooks: capitals, forms of letters, characters that take no place."""
    letters = unicodedata.normalize("NFKC", clean_name(name)).casefold()
    return "".join(
        letter for letter in letters if unicodedata.category(letter) != "Cf" and letter not in "\ufe0e\ufe0f"
    )


def _is_utf_8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
