"""A data set of single image files, each of which is read when it is needed."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..image_folder import ImageFolder, describe_classes
from .labels import Classes, warn_of_empty_classes
from .revision import find_revision, short_names
from .rows import FileRows, Rows

FILES_OF_A_PART = 256


class FilesSource:
    """Single image files, all of which are shuffled together.

    Args:
        rows: (path or address, class) of each image.
        classes: Classes of the data set.
        names: Name of each image for messages. Default: its path below the folder that holds all images.
        description: Number of images of each class, and what was left out, for the log.

    Raises:
        ValueError: If there is no image.
    """

    num_streams, in_memory, latents = 1, True, None

    def __init__(
        self,
        rows: Sequence[tuple[str, int]],
        classes: Classes,
        names: Sequence[str] | None = None,
        description: str = "",
    ) -> None:
        self.classes = classes
        self.paths, labels = [path for path, _ in rows], [label for _, label in rows]
        if not rows:
            raise ValueError(f"the data set has no row of the {len(classes.names)} classes asked for")
        warn_of_empty_classes(set(labels), classes.names)
        self.description = description or describe_classes(labels, classes.names)
        values = [{"bytes": None, "path": path} for path in self.paths]
        numbers = [(k, 0) for k in range(len(rows))]
        self._rows = FileRows([values], labels, numbers, names or short_names(self.paths))
        self.group_sizes, self.window = np.array([len(rows)], dtype=np.int64), len(rows)
        self.revision = find_revision(self.paths, classes.names)

    @classmethod
    def of_folder(cls, folder: ImageFolder, classes: Classes) -> "FilesSource":
        """Take the images of a folder with class folders, which `classes` numbers in their order."""
        assert folder.labels is not None
        rows, names = [], []
        for path, name, label in zip(folder.paths, folder.names, folder.labels, strict=True):
            class_label = classes.find(label, name)
            if class_label is not None:
                rows.append((str(path), class_label))
                names.append(name)
        description = folder.describe()
        if len(rows) < len(folder.names) or classes.names != folder.class_names:
            description += f"\nchosen: {describe_classes([label for _, label in rows], classes.names)}"
        return cls(rows, classes, names, description)

    @property
    def num_parts(self) -> int:
        """Number of parts, each of which can be read by itself, in the order of the files."""
        return -(-len(self._rows) // FILES_OF_A_PART)

    def read(self, group: int) -> Rows:
        """Return all rows, which are one group; the bytes of a file are read when they are asked for."""
        return self._rows

    def read_part(self, part: int) -> Iterator[Rows]:
        """Yield the rows of a part."""
        yield self._rows.slice(part * FILES_OF_A_PART, (part + 1) * FILES_OF_A_PART)
