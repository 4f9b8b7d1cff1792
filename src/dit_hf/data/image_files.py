"""A data set of single image files, each of which is read when it is needed."""

from collections.abc import Iterator, Sequence

import numpy as np

from .labels import Classes
from .revision import find_revision
from .rows import Rows

FILES_OF_A_PART = 256


class FilesSource:
    """Single image files, all of which are shuffled together.

    Args:
        rows: (path or address, class) of each image.
        classes: Classes of the data set.

    Raises:
        ValueError: If there is no image.
    """

    num_streams, in_memory, latents = 1, True, None

    def __init__(self, rows: Sequence[tuple[str, int]], classes: Classes) -> None:
        self.classes = classes
        self.paths, labels = [path for path, _ in rows], [label for _, label in rows]
        if not rows:
            raise ValueError(f"the data set has no row of the {len(classes.names)} classes asked for")
        values = [{"bytes": None, "path": path} for path in self.paths]
        self._rows = Rows([values], labels, [(k, 0) for k in range(len(rows))], self.paths)
        self.group_sizes, self.window = np.array([len(rows)], dtype=np.int64), len(rows)
        self.revision = find_revision(self.paths, [""] * len(rows))

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
