"""The images of a local folder and their classes: one list for training, evaluation and whoever else reads a folder.

Example of a folder, and what becomes of each file:

    photos/cover.jpg             left out: an image outside the class folders
    photos/cat/1.jpg             class "cat"
    photos/cat/2024/may/2.jpg    class "cat": the first folder is the class, deeper folders are not
    photos/dog/3.png             class "dog"
    photos/dog/3.txt             left out: no image, by its suffix
    photos/dog/.thumbs/3.png     hidden, as is every name that begins with "." or "__"
    photos/@eaDir/3.png          hidden: a folder that a file server made
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .images import HEIC_REMEDY, HEIC_SUFFIXES, readable_suffixes

# Folders that file servers, recycle bins and file systems make, in lower case.
SYSTEM_FOLDERS = {
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "system volume information",
    "lost+found",
}  # fmt: skip
ARCHIVE = re.compile(r"\.(zip|7z|rar|tgz|tar|tar\.\w+)$", re.IGNORECASE)
OUTSIDE = "outside the class folders"
# Suffixes of pictures that are not read, and what to do about them.
CONVERT = "convert them to PNG or JPEG"
REMEDIES = dict.fromkeys(HEIC_SUFFIXES, HEIC_REMEDY) | dict.fromkeys(
    (".jxl", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2", ".psd", ".tga", ".exr", ".ico", ".svg"),
    CONVERT,
)
CLASSES_LISTED = 20


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, in the order of their paths.

    Args:
        root: Folder that was listed.
        names: Paths of the images below `root`, with "/" between the parts; (N,).
        labels: Class of each image, an index of `class_names`; (N,). None if the folder has no class folders.
        class_names: Names of the class folders in their order, in Unicode's form NFC; (K,).
        other_names: Paths of all other files that are not hidden, below `root`.
    """

    root: Path
    names: list[str]
    labels: list[int] | None
    class_names: list[str]
    other_names: list[str]

    @property
    def paths(self) -> list[Path]:
        """The paths of the images; (N,)."""
        return [self.root / name for name in self.names]

    @property
    def left_out(self) -> Counter[str]:
        """The number of files that are not among the images, by suffix in lower case."""
        suffixes = readable_suffixes()
        kinds = (suffix_of(name) or "without a suffix" for name in self.other_names)
        return Counter(OUTSIDE if kind in suffixes else kind for kind in kinds)

    @property
    def archives(self) -> list[str]:
        """The paths of the archives in class folders, below `root`."""
        tops = {name.split("/")[0] for name in self.names if "/" in name}
        return [name for name in self.other_names if ARCHIVE.search(name) and name.split("/")[0] in tops]

    @property
    def unread_pictures(self) -> list[str]:
        """What is left out although it is a picture, by number and suffix, each with the remedy."""
        return [_count(number, kind) for kind, number in sorted(self.left_out.items()) if kind in REMEDIES]

    def describe(self) -> str:
        """Say in one line how many images each class has, and in a second one what is left out."""
        text = f"{self.root}: {describe_classes(self.labels or (), self.class_names)}"
        left_out = [_count(number, kind) for kind, number in sorted(self.left_out.items())]
        return text + (f"\nleft out: {', '.join(left_out)}" if left_out else "")


def list_images(root: str | Path, only: Collection[str] | None = None) -> ImageFolder:
    """List the images in a folder, at any depth, and their classes.

    An image is a file with a suffix of `readable_suffixes`. Links are followed, but not in circles. If at least half of
    the images lie in folders, the first folder below `root` is the class of an image, and images in `root` itself are
    left out. Otherwise all images are listed without classes.

    Args:
        root: Folder to list.
        only: Paths below `root` of the files to consider. Default: all files.

    Raises:
        OSError: If a folder cannot be read.
    """
    root, suffixes = Path(root), readable_suffixes()
    files = sorted(name for name in _walk(root, "", ()) if only is None or name in only)
    names = [name for name in files if suffix_of(name) in suffixes]
    in_folders = [name for name in names if "/" in name]
    if not names or 2 * len(in_folders) < len(names):
        return ImageFolder(root, names, None, [], sorted(set(files).difference(names)))
    classes = [unicodedata.normalize("NFC", name.split("/")[0]) for name in in_folders]
    class_names = sorted(set(classes))
    numbers = {name: label for label, name in enumerate(class_names)}
    labels = [numbers[name] for name in classes]
    return ImageFolder(root, in_folders, labels, class_names, sorted(set(files).difference(in_folders)))


def describe_classes(labels: Sequence[int], class_names: Sequence[str]) -> str:
    """Say how many images each class has, such as "3 images of 2 classes: cat 2, dog 1"."""
    counts = Counter(labels)
    listed = ", ".join(f"{name} {counts[label]}" for label, name in enumerate(class_names[:CLASSES_LISTED]))
    more = f" and {len(class_names) - CLASSES_LISTED} more" if len(class_names) > CLASSES_LISTED else ""
    images = "1 image" if len(labels) == 1 else f"{len(labels)} images"
    classes = "1 class" if len(class_names) == 1 else f"{len(class_names)} classes"
    return f"{images} of {classes}: {listed}{more}"


def suffix_of(name: str) -> str:
    """Return the suffix of a file in lower case, such as ".png"."""
    return os.path.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is passed over."""
    return name.startswith((".", "__")) or name.lower() in SYSTEM_FOLDERS


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield the paths of all files that are not hidden.

    Args:
        folder: Folder to be read.
        prefix: Its path below the root, ending with "/"; empty for the root.
        above: Device and inode of the folders that it lies in: a link to one of them would lead in a circle.
    """
    status = os.stat(folder)
    if (here := (status.st_dev, status.st_ino)) in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            # of links, a path also answers where they are broken or lead in a circle; an entry needs no further call
            target = Path(entry.path) if entry.is_symlink() else entry
            if target.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
            elif target.is_file():
                yield prefix + entry.name


def _count(number: int, kind: str) -> str:
    return f"{number} {kind}" + (f" ({REMEDIES[kind]})" if kind in REMEDIES else "")
