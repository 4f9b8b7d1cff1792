"""Reading a checkpoint that nobody vouches for: what it holds is known before it is read, and nothing is executed.

A `.pt` file is a zip archive of one pickle and one record per tensor. The pickle is scanned for the names it would
import, and then loaded with torch's `weights_only` on fake tensors, which have a shape and no memory; each record is
read when it is wanted, held against the archive's checksum. A `.safetensors` file has the same in its header.
"""

import argparse
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from .stored import CheckpointError, StoredTensor

MAX_PICKLE_BYTES = 16 * 2**20  # that of a training checkpoint of DiT-XL/2 has 0.2 MB
MAX_RECORDS = 100_000  # a training checkpoint of DiT-XL/2 has 2,000
STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
# All that a checkpoint's pickle may name: tensors, containers, and the class of the original's `args`.
ALLOWED_GLOBALS = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "collections OrderedDict",
    "argparse Namespace",
    *(f"torch {name}Storage" for name in STORAGES),
}
SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """List what a `.pt` or `.safetensors` file holds, with every tensor still in the file.

    Args:
        path: The file. Its first bytes say which of the two it is.

    Raises:
        CheckpointError: If the file is neither, is damaged, or asks for more than tensors.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":
        with _one_error(path):
            return _read_archive(path)
    if start[8:9] == b"{":  # after the header's length
        with _one_error(path):
            return _read_safetensors(path)
    raise CheckpointError(
        f"{path.name} is neither a safetensors file nor torch.save's archive: if it was written before torch 1.6, "
        "load it with torch.load(path, weights_only=True) and save it again"
    )


@contextmanager
def _one_error(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from None
    except Exception as error:  # a damaged file makes its readers fail in any way, OSError included
        # torch wraps what its reader said in the advice to unpickle the file after all
        said = error.__context__ if isinstance(error, pickle.UnpicklingError) and error.__context__ else error
        raise CheckpointError(f"{path.name} is damaged: {' '.join(str(said).split())[:300]}") from error


def _read_archive(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        records = {_data_offset(path, entry): entry for entry in _checked_entries(archive, path)}
        names = {entry.filename.partition("/")[2]: entry for entry in records.values()}
        if "data.pkl" not in names:
            raise CheckpointError("it is a zip archive without data.pkl, so no checkpoint of torch.save")
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise CheckpointError("it was written on a big-endian machine: save it again on a little-endian one")
        pickled = archive.read(names["data.pkl"])
    _check_globals(pickled)
    with FakeTensorMode(), torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"it holds a {type(loaded).__name__}, not a state dict")
    return _stored_tensors(path, loaded, records, depth=2)


def _checked_entries(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The archive's records, none of which may unfold to more than its bytes in the file."""
    entries = archive.infolist()
    if len(entries) > MAX_RECORDS:
        raise CheckpointError(f"it has {len(entries)} records, over {MAX_RECORDS}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(f"record {entry.filename} is compressed, which torch.save never does")
        if entry.filename.endswith("data.pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{entry.filename} has {entry.file_size} bytes, over {MAX_PICKLE_BYTES}")
    if archive.comment or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError("its records overlap, or it has a comment, which torch.save never writes")
    return entries


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: after its local header, whose two lengths stand at its end."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return entry.header_offset + 30 + name_length + extra_length


def _check_globals(pickled: bytes) -> None:
    """Refuse a pickle that names anything but tensors and containers; scanning it executes nothing."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise CheckpointError(f"its pickle uses {opcode.name}, which torch.save never writes; nothing was executed")
        if opcode.name == "GLOBAL" and argument not in ALLOWED_GLOBALS:
            raise CheckpointError(
                f"its pickle asks for {str(argument).replace(' ', '.')}, which no weights need; nothing was executed"
            )


def _stored_tensors(path: Path, value: Any, records: Mapping[int, zipfile.ZipInfo], depth: int) -> Any:
    """Replace the fake tensors of the outer dictionaries; what lies deeper, the optimiser's state, is not looked at."""
    if isinstance(value, Tensor):
        return _stored_record(path, value, records)
    if isinstance(value, Mapping) and depth:
        return {key: _stored_tensors(path, inner, records, depth - 1) for key, inner in value.items()}
    return value


def _stored_record(path: Path, fake: Tensor, records: Mapping[int, zipfile.ZipInfo]) -> StoredTensor:
    shape, dtype = tuple(fake.shape), fake.dtype
    # documented in torch's notes on serialization
    offset: int = fake.untyped_storage()._checkpoint_offset  # type: ignore[assignment]
    entry = records[offset]
    begin, num_bytes = int(fake.storage_offset()) * dtype.itemsize, fake.numel() * dtype.itemsize

    def read() -> Tensor:
        if not fake.is_contiguous() or begin + num_bytes > entry.file_size:
            raise CheckpointError(
                f"a tensor of shape {shape} and strides {fake.stride()} does not fit its {entry.file_size} bytes in "
                f"record {entry.filename}"
            )
        tensor = torch.empty(shape, dtype=dtype)
        content = tensor.reshape(-1).view(torch.uint8).numpy().data  # the same memory
        with path.open("rb") as file:
            file.seek(offset + begin)
            if file.readinto(content) != num_bytes:
                raise CheckpointError(f"record {entry.filename} is cut short")
        if num_bytes == entry.file_size and zlib.crc32(content) != entry.CRC:
            raise CheckpointError(f"record {entry.filename} does not match its checksum: the file is damaged")
        return tensor

    return StoredTensor(shape, dtype, read)


def _read_safetensors(path: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():
            view = file.get_slice(key)
            if view.get_dtype() not in SAFETENSORS_DTYPES:
                raise CheckpointError(f"{key} has the type {view.get_dtype()}: weights are floating point numbers")
            dtype = SAFETENSORS_DTYPES[view.get_dtype()]
            tensors[key] = StoredTensor(tuple(view.get_shape()), dtype, partial(_read_one, path, key))
    return tensors


def _read_one(path: Path, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:  # opened again, so that no tensor stays mapped to the file
        return file.get_tensor(key).clone()
