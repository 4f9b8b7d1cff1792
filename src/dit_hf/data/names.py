"""What the name of a data set stands for: a local folder, files that fit a pattern, or an id on the Hub.

A mistyped path raises an error at once, with the names that its folder holds.
"""

import glob
import os
from urllib.parse import unquote, urlsplit

from datasets import DatasetBuilder, load_dataset_builder
from datasets import config as datasets_config

from ..image_folder import ARCHIVE, suffix_of
from ..places import check_repository, describe_missing, is_path
from .retries import SourceError, retried
from .revision import LOCAL_PREFIX

# Suffix of a file or of a pattern of files -> the reader of `datasets`.
READERS = {
    ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json", ".tar": "webdataset",
    ".tgz": "webdataset", ".tar.gz": "webdataset",
}  # fmt: skip


def local_path(name: str) -> str:
    """Return the name of a data set with the path of a `file://` address, and of the home folder in place of "~".

    Raises:
        ValueError: If the name is blank, as the value of a variable that is not set.
    """
    if not name.strip():
        raise ValueError(f"dataset_name={name!r} is blank: name a folder, a file, or an id on the Hub")
    address = urlsplit(name) if name.lower().startswith("file://") else None
    return os.path.expanduser(unquote(address.path) if address and address.netloc in ("", "localhost") else name)


def find_builder(
    name: str, config_name: str | None = None, revision: str | None = None, *, is_one_split: bool = False
) -> DatasetBuilder:
    """Find the reader of `datasets` for a data set.

    Args:
        name: Folder, file, pattern of files, or id on the Hub.
        config_name: Configuration of a data set that has several.
        revision: Branch, tag or commit on the Hub; of local files it is passed over.
        is_one_split: Whether all images of a local folder are one split, "train", whatever their names are.

    Raises:
        ValueError: If `datasets` cannot read the file or the folder.
        SourceError: If there is no such file or folder, or if the Hub has no such data set or cannot be asked.
    """
    commit = None if revision and revision.startswith(LOCAL_PREFIX) else revision
    if (reader := READERS.get(_reader_suffix(name))) and not os.path.isdir(name):
        if "://" not in name and not glob.glob(name, recursive=True) and not os.path.exists(name):
            raise _not_there(name)
        return retried(lambda: load_dataset_builder(reader, config_name, data_files=name), f"the data set {name}")
    path = name
    if "://" in name:
        raise SourceError(f"the data set {name} cannot be read: its name ends with none of {', '.join(READERS)}")
    if os.path.exists(name):
        path = os.path.abspath(name)  # a folder that is called "csv" is not the reader of this name
        _check_path(path)
        if is_one_split:
            options = {"data_dir": path, "data_files": {"train": "**"}}
            return retried(lambda: load_dataset_builder("imagefolder", config_name, **options), f"the data set {name}")
    else:
        _check_name(name, is_known=commit is not None)
    return retried(lambda: load_dataset_builder(path, config_name, revision=commit), f"the data set {name}")


def _reader_suffix(name: str) -> str:
    """Return the suffix of a file, or of the first file that fits a pattern."""
    first = next(glob.iglob(name, recursive=True), name) if glob.has_magic(name) else name
    return ".tar.gz" if first.lower().endswith(".tar.gz") else suffix_of(first)


def _check_path(path: str) -> None:
    """Refuse a local file or folder that `datasets` cannot read, with the remedy."""
    if os.path.isfile(path):
        remedy = "unpack it, and pass the folder" if ARCHIVE.search(path) else "pass a folder, or another file"
        raise ValueError(f"{path} is a file that ends with none of {', '.join(READERS)}: {remedy}")
    if special := [mark for mark in ("::", "[", "]", "*", "?") if mark in path]:
        raise ValueError(
            f"the path {path} holds {special[0]!r}, which has a meaning for `datasets`: rename or move the folder"
        )


def _check_name(name: str, *, is_known: bool) -> None:
    """Tell a mistyped path from an id on the Hub.

    Args:
        name: Name of which there is no file or folder.
        is_known: Whether the name was found on the Hub before, so that a connection that fails is worth another try.

    Raises:
        SourceError: If the name is a path, or if the Hub does not have it or cannot be asked for it.
    """
    if is_path(name, may_be_one_word=True):
        raise _not_there(name)
    is_prepared = os.path.isdir(os.path.join(datasets_config.HF_DATASETS_CACHE, name.replace("/", "___")))
    if is_known or is_prepared:
        return
    try:
        check_repository(name, "dataset")
    except ValueError as error:
        raise SourceError(f"the data set {name} cannot be read: {error}") from error


def _not_there(name: str) -> SourceError:
    return SourceError(f"the data set {name} cannot be read: {describe_missing(name)}")
