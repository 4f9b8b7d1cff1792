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

import functools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .class_names import clean_name
from .images import DECODER_ERRORS, HEIC_REMEDY, HEIC_SUFFIXES, readable_formats, readable_suffixes

# Folders that file servers, recycle bins and file systems make, in lower case.
SYSTEM_FOLDERS = {
    "@eadir", "@recycle", "@recently-snapshot", "@__thumb", "#recycle", "#snapshot", "~snapshot", "$recycle.bin",
    "recycler", "recycled", "system volume information", "network trash folder", "temporary items", "lost+found",
}  # fmt: skip
ARCHIVE = re.compile(r"\.(zip|7z|rar|tgz|tar|tar\.\w+)$", re.IGNORECASE)
OUTSIDE, NO_SUFFIX = "outside the class folders", "without a suffix"
# Suffixes of pictures that are not read, and what to do about them.
CONVERT = "convert them to PNG or JPEG"
RENAME = "they hold images: rename them to end with the suffix of their format, such as .jpg"
CAMERA_RAW = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".gpr", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
OTHER_PICTURES = (
    ".ai", ".dds", ".eps", ".exr", ".hdr", ".icns", ".ico", ".jxl", ".jxr", ".pcx", ".psb", ".psd", ".svg", ".svgz",
    ".tga", ".xcf",
)  # fmt: skip
REMEDIES = dict.fromkeys(HEIC_SUFFIXES, HEIC_REMEDY) | dict.fromkeys((*CAMERA_RAW, *OTHER_PICTURES), CONVERT)
CLASSES_LISTED, KINDS_LISTED, FOLDERS_LISTED = 20, 12, 10
FILES_TRIED, KINDS_TRIED = 10, 100  # files of each kind, and kinds, that are opened to see whether they hold images

FILE, FOLDER, HIDDEN = "a file", "a folder", "a hidden folder"  # what an entry of a folder is
BROKEN, CIRCLE, SPECIAL = "behind broken links", "in a circle of links", "neither file nor folder"


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, in the order of their paths.

    Args:
        root: Folder that was listed.
        names: Paths of the images below `root`, with "/" between the parts; (N,).
        labels: Class of each image, an index of `class_names`; (N,). None if the folder has no class folders.
        class_names: Names of the class folders in their order, as `clean_name` returns them; (K,).
        other_names: Paths of all other files that are not hidden, below `root`.
        folders: Names of the folders in `root` that are not hidden.
        hidden_folders: Names of the hidden folders in `root`.
        no_files: Paths of entries that are neither files nor folders, below `root`, and what they are.
    """

    root: Path
    names: list[str]
    labels: list[int] | None
    class_names: list[str]
    other_names: list[str]
    folders: list[str]
    hidden_folders: list[str]
    no_files: Mapping[str, str]

    @property
    def paths(self) -> list[Path]:
        """The paths of the images; (N,)."""
        return [self.root / name for name in self.names]

    @property
    def left_out(self) -> Counter[str]:
        """The number of files that are not among the images, by suffix in lower case."""
        suffixes = readable_suffixes()
        kinds = map(kind_of, self.other_names)
        return Counter(OUTSIDE if kind in suffixes else kind for kind in kinds) + Counter(self.no_files.values())

    @property
    def archives(self) -> list[str]:
        """The paths of the archives in folders, below `root`."""
        return [name for name in self.other_names if ARCHIVE.search(name) and "/" in name]

    @property
    def empty_folders(self) -> list[str]:
        """The names of the folders in `root` that hold no image."""
        tops = {name.split("/")[0] for name in self.names if "/" in name}
        return sorted(set(self.folders) - tops)

    @functools.cached_property
    def remedies(self) -> Mapping[str, str]:
        """What to do about pictures that are left out, by kind of file.

        Files of unknown suffixes, or without a suffix, are opened: "1.jpg?w=640" and "IMG_0001" may be images.
        """
        known = {*REMEDIES, *readable_suffixes()}
        tried: dict[str, list[str]] = {}
        for name in self.other_names:
            if (kind := kind_of(name)) not in known and (kind in tried or len(tried) < KINDS_TRIED):
                tried.setdefault(kind, []).append(name)
        images = [
            kind for kind, names in tried.items() if any(_is_image(self.root / name) for name in names[:FILES_TRIED])
        ]
        return REMEDIES | dict.fromkeys(images, RENAME)

    @property
    def unread_pictures(self) -> list[str]:
        """What is left out although it is a picture, by number and suffix; in one text for each remedy."""
        left_out, kinds_of = self.left_out, defaultdict(list)
        for kind in sorted(left_out):
            if kind in self.remedies:
                kinds_of[self.remedies[kind]].append(f"{left_out[kind]} {kind}")
        return [f"{', '.join(counts[:KINDS_LISTED])} ({remedy})" for remedy, counts in kinds_of.items()]

    def describe(self) -> str:
        """Say how many images each class has, and in further lines what is left out and which folders hold no image."""
        lines = [f"{self.root}: {describe_classes(self.labels or (), self.class_names)}"]
        if left_out := self._describe_left_out():
            lines.append(f"left out: {', '.join(left_out)}")
        if self.labels is not None and self.empty_folders:
            lines.append(f"folders without images: {list_names(self.empty_folders)}")
        if self.hidden_folders:
            lines.append(f"hidden folders: {list_names(self.hidden_folders)}")
        return "\n".join(lines)

    def _describe_left_out(self) -> list[str]:
        others = {kind: number for kind, number in self.left_out.items() if kind not in self.remedies}
        frequent = sorted(others, key=lambda kind: (-others[kind], kind))
        counts = [f"{others[kind]} {kind}" for kind in sorted(frequent[:KINDS_LISTED])]
        if rare := frequent[KINDS_LISTED:]:
            counts.append(f"{sum(others[kind] for kind in rare)} files of {len(rare)} other kinds")
        return self.unread_pictures + counts


def list_images(root: str | Path, only: Collection[str] | None = None) -> ImageFolder:
    """List the images in a folder, at any depth, and their classes.

    An image is a file with a suffix of `readable_suffixes`. Links are followed, but not in circles. If at least half of
    the images lie in folders, the first folder below `root` is the class of an image, and images in `root` itself are
    left out. Otherwise all images are listed without classes.

    Folders whose names differ only in Unicode's form or in spaces around the name are one class.

    Args:
        root: Folder to list.
        only: Paths below `root` of the files to consider. Default: all files.

    Raises:
        OSError: If a folder cannot be read.
    """
    root, suffixes = Path(root), readable_suffixes()
    entries = dict(_walk(root, "", ()))
    if only is not None:
        tops = {name.split("/")[0] for name in only if "/" in name}
        entries = {name: kind for name, kind in entries.items() if name in (tops if kind == FOLDER else only)}
    files = sorted(name for name, kind in entries.items() if kind == FILE)
    names = [name for name in files if suffix_of(name) in suffixes]
    in_folders = [name for name in names if "/" in name]
    if has_classes := bool(names) and 2 * len(in_folders) >= len(names):
        names = in_folders
    classes = [clean_name(name.split("/")[0]) for name in names] if has_classes else []
    class_names = sorted(set(classes))
    numbers = {name: label for label, name in enumerate(class_names)}
    tops_of = {kind: sorted(name for name in entries if entries[name] == kind) for kind in (FOLDER, HIDDEN)}
    return ImageFolder(
        root=root,
        names=names,
        labels=[numbers[name] for name in classes] if has_classes else None,
        class_names=class_names,
        other_names=sorted(set(files).difference(names)),
        folders=tops_of[FOLDER],
        hidden_folders=tops_of[HIDDEN],
        no_files={name: kind for name, kind in entries.items() if kind in (BROKEN, CIRCLE, SPECIAL)},
    )


def describe_classes(labels: Sequence[int], class_names: Sequence[str]) -> str:
    """Say how many images each class has, such as "3 images of 2 classes: cat 2, dog 1"."""
    counts = Counter(labels)
    listed = ", ".join(f"{name} {counts[label]}" for label, name in enumerate(class_names[:CLASSES_LISTED]))
    more = f" and {len(class_names) - CLASSES_LISTED} more" if len(class_names) > CLASSES_LISTED else ""
    images = "1 image" if len(labels) == 1 else f"{len(labels)} images"
    classes = "1 class" if len(class_names) == 1 else f"{len(class_names)} classes"
    return f"{images} of {classes}: {listed}{more}"


def list_names(names: Sequence[str]) -> str:
    """Return names with commas between them, the first ones if they are many."""
    more = f" and {len(names) - FOLDERS_LISTED} more" if len(names) > FOLDERS_LISTED else ""
    return ", ".join(names[:FOLDERS_LISTED]) + more


def suffix_of(name: str) -> str:
    """Return the suffix of a file in lower case, such as ".png"."""
    return os.path.splitext(name)[1].lower()


def kind_of(name: str) -> str:
    """Return the suffix of a file, or that it has none."""
    return suffix_of(name) or NO_SUFFIX


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is passed over."""
    return name.startswith((".", "__")) or name.lower() in SYSTEM_FOLDERS


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str]]:
    """Yield the path and the kind of all entries that are not hidden; of folders, only those at the top.

    Args:
        folder: Folder to be read.
        prefix: Its path below the root, ending with "/"; empty for the root.
        above: Device and inode of the folders that it lies in: a link to one of them would lead in a circle.
    """
    status = os.stat(folder)
    if (here := (status.st_dev, status.st_ino)) in above:
        yield prefix.rstrip("/"), CIRCLE
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            # of links, a path also answers where they are broken or lead in a circle; an entry needs no further call
            target = Path(entry.path) if entry.is_symlink() else entry
            if is_hidden(entry.name):
                if not prefix and target.is_dir():
                    yield name, HIDDEN
            elif target.is_dir():
                if not prefix:
                    yield name, FOLDER
                yield from _walk(Path(entry.path), f"{name}/", (*above, here))
            elif target.is_file():
                yield name, FILE
            else:
                yield name, BROKEN if entry.is_symlink() else SPECIAL


def _is_image(path: Path) -> bool:
    """Return whether a file begins as an image does."""
    try:
        with Image.open(path, formats=readable_formats()):
            return True
    except DECODER_ERRORS:
        return False
