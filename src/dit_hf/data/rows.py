"""Rows of a data set as they are stored: encoded images or latents, their classes, and where each row comes from."""

from collections.abc import Mapping, Sequence
from typing import Any

import fsspec

from ..images import BadImage
from .retries import SourceError, retried

Value = Mapping[str, Any] | bytes | None


def encoded_bytes(value: Value, key: str = "") -> bytes:
    """Return the encoded bytes of an image.

    Args:
        value: The bytes, or a `datasets.Image` that is not decoded: `{"bytes": ..., "path": None}`, or with the path of
            a file and no bytes.
        key: Name of the row for messages; empty if the path says enough.

    Raises:
        BadImage: If there are neither bytes nor a path.
        SourceError: If the file cannot be read, or if the path is an address of the web.
    """
    if not isinstance(value, Mapping):
        content, path = value, None
    else:
        content, path = value.get("bytes"), value.get("path")
    if content is not None:
        return content
    if path is None:
        raise BadImage("no bytes and no path of a file")
    if path.startswith(("http://", "https://")):
        raise SourceError(
            f"{key or 'an image'} holds the address {path.split('?')[0]} instead of an image: download the images first"
        )
    return retried(lambda: _read(path), f"{key}: {path}" if key else path)


def _read(path: str) -> bytes:
    # A local path is opened as it is: fsspec would take "a::b" in it for a chain of addresses.
    with open(path, "rb") if "://" not in path else fsspec.open(path, "rb") as file:
        return file.read()


class Rows:
    """Some rows of one shard, or of one window of a source without row groups.

    Args:
        values: Values of each column: sequences of `Value`, or arrow arrays of them.
        labels: Classes of the rows, as the model counts them.
        numbers: (shard, row) of each row.
        shard_names: Names of the shards for messages.
    """

    def __init__(
        self,
        values: Sequence[Sequence[Any]],
        labels: Sequence[int],
        numbers: Sequence[tuple[int, int]],
        shard_names: Sequence[str],
    ) -> None:
        self._values, self.labels, self.numbers, self._shard_names = values, labels, numbers, shard_names

    def __len__(self) -> int:
        return len(self.labels)

    def slice(self, first: int, stop: int) -> "Rows":
        """Return the rows from `first` up to, but without, `stop`."""
        values = [column[first:stop] for column in self._values]
        return type(self)(values, self.labels[first:stop], self.numbers[first:stop], self._shard_names)

    def read(self, row: int, column: int = 0) -> bytes:
        """Return the encoded bytes of a row.

        Raises:
            BadImage: If the row holds no image.
            SourceError: If the file of the row cannot be read; the message names the row and its shard.
        """
        value = self._values[column][row]
        return encoded_bytes(value.as_py() if hasattr(value, "as_py") else value, self.key(row))

    def key(self, row: int) -> str:
        """Return the name of a row for messages."""
        shard, number = self.numbers[row]
        return f"row {number} of {self._shard_names[shard]}"


class FileRows(Rows):
    """Rows that are a file each, whose name says enough."""

    def key(self, row: int) -> str:
        """Return the path of a file below the folder of the data set."""
        return self._shard_names[self.numbers[row][0]]
