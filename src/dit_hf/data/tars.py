"""Webdataset tars, read so that a damaged one is an error: tarfile and `datasets` take damage for the end of a tar.

A tar is a sequence of members, each with a header of 512 bytes, and ends with headers of zeros.
"""

import functools
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import fsspec
from datasets import DatasetBuilder, Features, IterableDataset
from datasets.utils.file_utils import xopen


class StrictTarInfo(tarfile.TarInfo):
    """A header that must be whole: where a tar ends, it is a header of zeros."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "StrictTarInfo":  # the name that the base class gives it
        """Read the next header.

        Raises:
            tarfile.ReadError: If the header is damaged, or missing at the end of the file.
        """
        return _whole_header(super().fromtarfile, tarfile)


def _whole_header(read: Any, archive: tarfile.TarFile) -> Any:
    try:
        return read(archive)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the header of zeros
        raise
    except tarfile.HeaderError as error:
        raise tarfile.ReadError(f"no header of a member at byte {archive.offset}: {error}") from error


class WholeFile:
    """A stream that tells the end of a remote file from a connection that was cut, which look the same.

    Args:
        file: The stream.
        size: Size of the file in bytes; None if it is not known.
    """

    def __init__(self, file: IO[bytes], size: int | None) -> None:
        self.file, self.size, self.num_bytes = file, size, 0

    def read(self, size: int = -1) -> bytes:
        """Read some bytes.

        Raises:
            ConnectionError: If the stream ends before the file does.
        """
        content = self.file.read(size)
        self.num_bytes += len(content)
        if not content and size and self.size is not None and self.num_bytes < self.size:
            raise ConnectionError(f"the connection was cut after {self.num_bytes} of {self.size} bytes")
        return content


def members(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of the files in a tar, one after another, except for hidden ones.

    Raises:
        tarfile.ReadError: If the tar is damaged or truncated.
        ConnectionError: If the connection to a remote tar was cut.
    """
    with xopen(path, "rb", block_size=0) as stream:
        file: Any = WholeFile(stream, _remote_size(path))
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictTarInfo) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None and not member.name.rsplit("/", 1)[-1].startswith((".", "__")):
                    yield member.name, content
                tar.members = []  # type: ignore[attr-defined]  # would grow by each member


def _remote_size(path: str) -> int | None:
    if "://" not in path:
        return None
    system, name = fsspec.url_to_fs(path)
    return system.info(name).get("size")


def stream_tars(builder: DatasetBuilder, paths: Sequence[str], features: Features) -> IterableDataset:
    """Return the rows that the webdataset reader of `datasets` makes of some tars, one shard for each tar.

    Args:
        builder: The reader, which knows how members become rows.
        paths: Paths or addresses of the tars.
        features: Features of the rows.
    """
    generate = functools.partial(_rows, builder)  # no inner function, so that a worker can be sent the data set
    return IterableDataset.from_generator(generate, features=features, gen_kwargs={"tars": list(paths)})


def _rows(builder: DatasetBuilder, tars: Sequence[str]) -> Iterator[dict[str, Any]]:
    for path in tars:
        yield from (row for _, row in builder._generate_examples([path], [members(path)]))
