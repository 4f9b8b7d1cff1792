"""Reading a checkpoint that nobody vouches for: what it holds is known before it is read, and nothing is executed.

A `.pt` file is a zip archive of one pickle and one record per tensor. The pickle is read by a class that imports no
name of the file: it knows a table of names, and gives each of them a stand-in that makes numbers, dictionaries and
descriptions of tensors. Every other name, such as `os.system`, is refused. A record is read when its tensor is wanted,
held against the bounds of the record and the checksum of the archive. A `.safetensors` file has the same in its header.
"""

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from .pickle_scan import check_pickle
from .stored import CheckpointError, StoredTensor, readable

MAX_PICKLE_BYTES = 16 * 2**20  # that of a training checkpoint of DiT-XL/2 has 0.2 MB
MAX_RECORDS = 100_000  # a training checkpoint of DiT-XL/2 has 2,000
MAX_DIMENSIONS = 16
MAX_DEPTH = 3  # of dictionaries in dictionaries that are searched for weights
STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
SAVE_AGAIN = "If you trust the file, load it with the code that wrote it, and save the state dict alone"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """List what a `.pt` or `.safetensors` file holds, with every tensor still in the file.

    Args:
        path: File of either kind; its first bytes say which.

    Raises:
        CheckpointError: If the file is of neither kind, is damaged, or asks for more than data.
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
        raise CheckpointError(f"{path.name} is damaged: {' '.join(str(error).split())[:300]}") from error


# --- the archive ---------------------------------------------------------------------------------------------------


class _Archive(NamedTuple):
    """A zip archive of torch.save, by the names of its records without the folder that all of them are in."""

    path: Path
    records: dict[str, zipfile.ZipInfo]
    has_checksums: bool  # torch.serialization.set_crc32_options(False) writes 0 for all of them

    def read_into(self, name: str, buffer: Any, begin: int = 0) -> None:
        """Fill a buffer with the bytes of a record from `begin` on."""
        entry = self.records[name]
        with self.path.open("rb") as file:
            file.seek(_data_offset(file, entry) + begin)
            if file.readinto(buffer) != len(buffer):
                raise CheckpointError(f"record {entry.filename} is cut short")
        if len(buffer) == entry.file_size and self.has_checksums and zlib.crc32(buffer) != entry.CRC:
            raise CheckpointError(f"record {entry.filename} does not match its checksum: the file is damaged")

    def read(self, name: str) -> bytes:
        """Return the bytes of a record."""
        buffer = bytearray(self.records[name].file_size)
        self.read_into(name, buffer)
        return bytes(buffer)


def _read_archive(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as file:
        entries = _checked_entries(file, path)
    records = {entry.filename.partition("/")[2]: entry for entry in entries}
    archive = _Archive(path, records, has_checksums=any(entry.CRC for entry in entries))
    if "data.pkl" not in records:
        raise CheckpointError("it is a zip archive without data.pkl, so no checkpoint of torch.save")
    if "byteorder" in records and archive.read("byteorder") != b"little":
        raise CheckpointError("it was written on a big-endian machine: save it again on a little-endian one")
    pickled = archive.read("data.pkl")
    check_pickle(pickled)
    content = _DataReader(pickled).load()
    if not isinstance(content, Mapping):
        raise CheckpointError(f"it holds a {type(content).__name__}, not a state dict. {SAVE_AGAIN}")
    return _with_stored_tensors(archive, content, MAX_DEPTH)


def _checked_entries(file: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """Return the archive's records, none of which may unfold to more than its bytes in the file."""
    entries = file.infolist()
    if len(entries) > MAX_RECORDS:
        raise CheckpointError(f"it has {len(entries)} records, over {MAX_RECORDS}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(f"record {entry.filename} is compressed, which torch.save never does")
        if entry.filename.endswith("data.pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{entry.filename} has {entry.file_size} bytes, over {MAX_PICKLE_BYTES}")
    if file.comment or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError("its records overlap, or it has a comment, which torch.save never writes")
    return entries


def _data_offset(file: Any, entry: zipfile.ZipInfo) -> int:
    """Return where a record's bytes begin: after its local header, whose two lengths stand at its end."""
    file.seek(entry.header_offset)
    header = file.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return entry.header_offset + 30 + name_length + extra_length


# --- the pickle ----------------------------------------------------------------------------------------------------


class _Storage(NamedTuple):
    """A record of the archive, and the data type of its numbers; None where the tensor says it."""

    record: str
    dtype: torch.dtype | None


class _FileTensor(NamedTuple):
    """A tensor as the pickle describes it: numbers in a record, from an offset on, at strides."""

    record: str
    dtype: torch.dtype | None
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _DataReader(pickle.Unpickler):
    """Reads a pickle into dictionaries, numbers and descriptions of tensors.

    Nothing that the pickle names is imported. The stand-ins are made anew for each reader, so that a file which changes
    one of them does not change the next reading.
    """

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled), encoding="utf-8")
        self._stand_ins = _make_stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        if module == "__builtin__":  # of Python 2, whose names pickles up to protocol 2 have
            module = "builtins"
        try:
            return self._stand_ins[f"{module}.{name}"]
        except KeyError:
            raise CheckpointError(
                f"its pickle asks for {readable(module)}.{readable(name)}, which no weights need; nothing was "
                f"executed. {SAVE_AGAIN}"
            ) from None

    def persistent_load(self, key: Any) -> _Storage:
        kind, storage_type, record, *_ = key
        if kind != "storage" or not isinstance(storage_type, _Storage):
            raise CheckpointError("its pickle has an object outside of it that is no storage")
        return storage_type._replace(record=f"data/{record}")


def _make_stand_ins() -> dict[str, Any]:
    """Return a stand-in for each name that a checkpoint's pickle may hold.

    These are the names that torch's `weights_only` takes, without sparse, quantised, complex and meta tensors. What
    weights do not need, such as a device in the arguments of a training, becomes a `Value` that nothing reads.
    """

    class Value:
        def __init__(self, *arguments: Any) -> None:
            self.arguments = arguments

        def __setstate__(self, state: Any) -> None:
            self.state = state

    class Namespace:  # of argparse: the arguments of a training, as attributes
        pass

    def tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _FileTensor:
        return _FileTensor(storage.record, storage.dtype, offset, tuple(shape), tuple(strides))

    def tensor_of_dtype(
        storage: _Storage, offset: int, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
    ) -> _FileTensor:
        return tensor(storage._replace(dtype=dtype), offset, shape, strides)

    return {
        "argparse.Namespace": Namespace,
        "collections.OrderedDict": OrderedDict,
        "collections.Counter": lambda counts=(): dict(counts),
        "builtins.set": lambda items=(): set(items),
        "builtins.frozenset": lambda items=(): frozenset(items),
        "torch.Size": lambda sides=(): tuple(sides),
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": tensor_of_dtype,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, arguments, state: rebuild(*arguments),
        **{f"torch.{name}Storage": _Storage("", dtype) for name, dtype in STORAGES.items()},
        "torch.storage.UntypedStorage": _Storage("", None),
        "torch.UntypedStorage": _Storage("", None),
        **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
        **dict.fromkeys(VALUES, Value),
    }


VALUES = (
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
)


# --- tensors -------------------------------------------------------------------------------------------------------


def _with_stored_tensors(archive: _Archive, value: Any, depth: int) -> Any:
    """Replace the descriptions in the outer dictionaries; what lies deeper, the optimiser's state, is not looked at."""
    if isinstance(value, _FileTensor):
        return _stored_tensor(archive, value)
    if isinstance(value, Mapping) and depth:
        return {key: _with_stored_tensors(archive, inner, depth - 1) for key, inner in value.items()}
    return value


def _stored_tensor(archive: _Archive, tensor: _FileTensor) -> StoredTensor:
    record, dtype, offset, shape, strides = tensor
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise CheckpointError("a tensor has a side, a stride or an offset that is no whole number from 0 up")
    if not len(shape) == len(strides) <= MAX_DIMENSIONS:
        raise CheckpointError(f"a tensor has {len(shape)} sides and {len(strides)} strides, over {MAX_DIMENSIONS}")
    if not isinstance(dtype, torch.dtype) or record not in archive.records:
        raise CheckpointError("a tensor has no data type, or is in a record that is not there")
    return StoredTensor(shape, dtype, partial(_read_strided, archive, tensor))


def _read_strided(archive: _Archive, tensor: _FileTensor) -> Tensor:
    """Read the part of a record that a tensor spans, and lay the tensor out in it."""
    record, dtype, offset, shape, strides = tensor
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    entry = archive.records[record]
    span = sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) + 1
    # a tensor of more numbers than it spans repeats some: of stride 0, a record of 4 bytes would fill any memory
    if (offset + span) * dtype.itemsize > entry.file_size or math.prod(shape) > span:
        raise CheckpointError(
            f"a tensor of shape {shape} and strides {strides} does not fit its {entry.file_size} bytes in "
            f"record {entry.filename}: make it .contiguous(), and save it again"
        )
    flat = torch.empty(span, dtype=dtype)
    archive.read_into(record, flat.view(torch.uint8).numpy().data, offset * dtype.itemsize)  # the same memory
    return flat.as_strided(shape, strides).contiguous()


def _read_safetensors(path: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():
            view = file.get_slice(key)
            if view.get_dtype() not in SAFETENSORS_DTYPES:
                kind = view.get_dtype()
                raise CheckpointError(f"{readable(key)} has the type {kind}: weights are floating point numbers")
            dtype = SAFETENSORS_DTYPES[view.get_dtype()]
            tensors[key] = StoredTensor(tuple(view.get_shape()), dtype, partial(_read_one, path, key))
    return tensors


def _read_one(path: Path, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:  # opened again, so that no tensor stays mapped to the file
        return file.get_tensor(key).clone()
