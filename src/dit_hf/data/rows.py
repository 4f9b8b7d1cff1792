"""Rows of a data set as they are stored: encoded images or latents, their classes, and where each row comes from."""

from collections.abc import Mapping, Sequence
from typing import Any

import fsspec

from .retries import retried

Value = Mapping[str, Any] | bytes


def encoded_bytes(value: Value) -> bytes:
    """Return the encoded bytes of an image.

    Args:
        value: The bytes, or a `datasets.Image` that is not decoded: `{"bytes": ..., "path": None}`, or with the path of
            a file and no bytes.
    """
    if not isinstance(value, Mapping):
        return value
    if value["bytes"] is not None:
        return value["bytes"]
    path = value["path"]

    def read() -> bytes:
        with fsspec.open(path, "rb") as file:
            return file.read()

    return retried(read, path)


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
        return Rows(values, self.labels[first:stop], self.numbers[first:stop], self._shard_names)

    def read(self, row: int, column: int = 0) -> bytes:
        """Return the encoded bytes of a row."""
        value = self._values[column][row]
        return encoded_bytes(value.as_py() if hasattr(value, "as_py") else value)

    def key(self, row: int) -> str:
        """Return the name of a row for messages."""
        shard, number = self.numbers[row]
        return f"row {number} of {self._shard_names[shard]}"
