"""Hostile and damaged checkpoints: nothing runs, memory stays bounded, and there is one kind of error."""

import argparse
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from dit_hf import DiTConfig, DiTModel
from dit_hf.conversion import CheckpointError, from_original, to_original
from dit_hf.conversion.safe_load import MAX_PICKLE_BYTES, read_checkpoint

ROOT = Path(__file__).parents[2]
KEY = "x_embedder.proj.weight"


class Attack:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def pt(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def rezip(file: bytes, compression: int = zipfile.ZIP_STORED, **replaced: bytes) -> bytes:
    """The same archive, compressed or with other records, by the last part of their names."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(new, "w", compression) as archive:
        for name in old.namelist():
            archive.writestr(name, replaced.get(name.rpartition("/")[2].replace(".", "_"), old.read(name)))
    return new.getvalue()


def tar_of(content: bytes) -> bytes:
    new = io.BytesIO()
    with tarfile.open(fileobj=new, mode="w") as archive:
        info = tarfile.TarInfo("storages")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return new.getvalue()


def pointing_before_its_start(file: bytes) -> bytes:
    """The archive with a directory that claims to lie further behind, so that records begin before the file."""
    (offset,) = struct.unpack("<I", file[-6:-2])
    return file[:-6] + struct.pack("<I", offset + 10**6) + file[-2:]


def safetensors_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(16)


WEIGHTS = {KEY: torch.ones(8, 4, 2, 2)}
HOSTILE = {
    "code in the archive": (lambda canary: pt({KEY: Attack(canary)}), "asks for (posix|nt).system"),
    "code in place of the arguments": (lambda c: pt({"ema": WEIGHTS, "args": Attack(c)}), "asks for (posix|nt).system"),
    "code under another protocol": (
        lambda canary: rezip(pt(WEIGHTS), data_pkl=pickle.dumps(Attack(canary), protocol=4)),
        "asks for (posix|nt).system",
    ),
    "code in protocol 0": (
        lambda canary: rezip(pt(WEIGHTS), data_pkl=f"(S'touch {canary}'\nios\nsystem\n.".encode()),
        "uses INST",
    ),
    "a bare pickle": (lambda canary: pickle.dumps(Attack(canary)), "neither a safetensors file"),
    "the form before torch 1.6": (
        lambda canary: pt({KEY: Attack(canary)}, _use_new_zipfile_serialization=False),
        "neither a safetensors file",
    ),
    "a tar": (lambda canary: tar_of(pickle.dumps(Attack(canary))), "neither a safetensors file"),
    "a whole model": (lambda canary: pt(torch.nn.Linear(2, 2)), "asks for torch.nn.modules.linear.Linear"),
    "a sparse tensor": (lambda c: pt({KEY: torch.eye(3).to_sparse()}), "_rebuild_sparse_tensor"),
    "a meta tensor": (lambda canary: pt({KEY: torch.empty(2**40, device="meta")}), "_rebuild_meta_tensor"),
    "a zip bomb": (
        lambda canary: rezip(pt({KEY: torch.zeros(2**22)}), zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "a large pickle": (lambda c: rezip(pt(WEIGHTS), data_pkl=bytes(MAX_PICKLE_BYTES + 1)), "bytes, over"),
    "no pickle": (lambda canary: rezip(pt(WEIGHTS)).replace(b"data.pkl", b"date.pkl"), "without data.pkl"),
    "another byte order": (lambda canary: rezip(pt(WEIGHTS), byteorder=b"big"), "big-endian"),
    "a list": (lambda canary: pt([torch.zeros(3)]), "holds a list"),
    "nothing": (lambda canary: b"", "neither a safetensors file"),
    "text": (lambda canary: b"<html>404</html>", "neither a safetensors file"),
    "records before the file's start": (lambda c: pointing_before_its_start(rezip(pt(WEIGHTS))), "is damaged"),
    "a truncated archive": (lambda canary: pt(WEIGHTS)[:-200], "is damaged"),
    "a safetensors header without end": (lambda c: struct.pack("<Q", 2**40) + b"{" + bytes(99), "is damaged"),
    "truncated safetensors": (lambda canary: save(WEIGHTS)[:-4], "is damaged"),
    "safetensors beyond its end": (
        lambda c: safetensors_header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4000000000]}}'),
        "is damaged",
    ),
    "safetensors of whole numbers": (lambda c: save({KEY: torch.ones(3, dtype=torch.int8)}), f"{KEY} has the type I8"),
}
# More of the same: code by every pickle protocol in every place, other callables, headers that lie, spoilt weights.
MODULES = {"builtins": "eval", "subprocess": "Popen", "runpy": "run_path", "shutil": "rmtree", "webbrowser": "open"}
HEADERS = {
    "no JSON": b"{]",
    "a list": b'{"a":[]}',
    "a type that is not": b'{"a":{"dtype":"F1","shape":[4],"data_offsets":[0,16]}}',
    "a negative side": b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}',
    "a shape that overflows": b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}',
    "offsets the wrong way": b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}',
    "tensors that overlap": b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
    b'"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "a hole": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
    "fewer bytes than the shape": b'{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}',
    "deep nesting": b'{"a":' + b"[" * 100_000,
}
SHAPE = (4, 1, 2, 2)
SPOILT = {
    "NaN": (torch.full(SHAPE, float("nan")), f"{KEY} holds values that are not finite"),
    "infinity": (torch.full(SHAPE, float("inf")), f"{KEY} holds values that are not finite"),
    "whole numbers": (torch.ones(SHAPE, dtype=torch.int64), f"{KEY} has the type torch.int64"),
    "truth values": (torch.ones(SHAPE, dtype=torch.bool), f"{KEY} has the type torch.bool"),
    "complex numbers": (torch.ones(SHAPE, dtype=torch.complex64), "asks for torch.ComplexFloatStorage"),
    "no side": (torch.zeros(0, 1, 2, 2), f"{KEY} has the shape"),
    "no shape": (torch.tensor(1.0), f"{KEY} has the shape"),
    "quantised numbers": (torch.quantize_per_tensor(torch.ones(SHAPE), 0.1, 0, torch.qint8), "asks for torch"),
}
TINY = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "sample_size": 2, "in_channels": 1}


def calling(module: str, name: str, canary: Path) -> bytes:
    """A pickle in protocol 2 that calls anything with the canary's path."""
    path = str(canary).encode()
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(path)) + path + b"\x85R."


for protocol in range(6):
    HOSTILE[f"code in a pickle of protocol {protocol}"] = (
        lambda c, protocol=protocol: rezip(pt(WEIGHTS), data_pkl=pickle.dumps({"ema": Attack(c)}, protocol)),
        "asks for (posix|nt).system",
    )
    HOSTILE[f"a bare pickle of protocol {protocol}"] = (
        lambda c, protocol=protocol: pickle.dumps(Attack(c), protocol),
        "neither a safetensors file",
    )
for module, name in MODULES.items():
    HOSTILE[f"{module}.{name}"] = (
        lambda c, module=module, name=name: rezip(pt(WEIGHTS), data_pkl=calling(module, name, c)),
        f"asks for {module}.{name}, which no weights need; nothing was executed",
    )
for name, header in HEADERS.items():
    HOSTILE[f"a safetensors header with {name}"] = (
        lambda canary, header=header: safetensors_header(header),
        "is damaged|has the type",
    )
for name, (tensor, message) in SPOILT.items():
    HOSTILE[f"weights of {name}"] = (
        lambda canary, tensor=tensor: pt({**to_original(DiTModel(DiTConfig(**TINY, num_classes=2))), KEY: tensor}),
        message,
    )
HOSTILE["a memo of billions"] = (
    lambda canary: rezip(pt(WEIGHTS), data_pkl=b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."),
    "numbers an object 4294967295",
)
HOSTILE["a key of tuples in tuples without end"] = (
    lambda canary: rezip(pt(WEIGHTS), data_pkl=b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s."),
    "a tuple of more than 10000 objects",
)
HOSTILE["a key that doubles sixty times"] = (
    lambda canary: rezip(pt(WEIGHTS), data_pkl=b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."),
    "a tuple of more than 10000 objects",
)
HOSTILE["a key that doubles by another opcode"] = (
    lambda canary: rezip(pt(WEIGHTS), data_pkl=b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s."),
    "a tuple of more than 10000 objects",
)
HOSTILE["a key of sizes in sizes without end"] = (
    lambda canary: rezip(
        pt(WEIGHTS), data_pkl=b"\x80\x02}ctorch\nSize\nq\x000)" + b"q\x010h\x00h\x01\x85R" * 10**5 + b"K\x01s."
    ),
    "a tuple of more than 10000 objects",
)
HOSTILE["a class that is changed"] = (
    lambda canary: rezip(
        pt(WEIGHTS), data_pkl=b"\x80\x02ccollections\nOrderedDict\nN}X\x03\x00\x00\x00getK\x01s\x86b."
    ),
    "is damaged",
)
HOSTILE["a namespace with code"] = (
    lambda canary: rezip(pt(WEIGHTS), data_pkl=pickle.dumps({"args": argparse.Namespace(model=Attack(canary))}, 2)),
    "asks for (posix|nt).system",
)
HOSTILE["half an archive"] = (lambda canary: pt(WEIGHTS)[:700], "is damaged")
HOSTILE["an archive without its start"] = (lambda canary: pt(WEIGHTS)[100:], "neither a safetensors file")
HOSTILE["an archive without its last byte"] = (lambda canary: pt(WEIGHTS)[:-1], "is damaged")
HOSTILE["an archive with a comment"] = (lambda c: rezip(pt(WEIGHTS))[:-2] + b"\x04\x00note", "or it has a comment")


def test_corpus_has_sixty_files():
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize(("attack", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_refused_and_nothing_runs(attack, message, tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "w.pt").write_bytes(attack(canary))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message) as error:
        from_original(tmp_path / "w.pt", num_attention_heads=1)
    assert tracemalloc.get_traced_memory()[1] < 2**25  # nothing was unpacked before it was refused
    tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert "False" not in str(error.value)  # nobody is told to load it with weights_only=False
    assert not canary.exists()


def test_attack_of_these_tests_would_run_if_it_were_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Attack(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_tensor_that_repeats_the_numbers_of_its_record_is_refused(tmp_path):
    torch.save({KEY: torch.zeros(1).expand(2**40, 4, 2, 2)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"does not fit its 4 bytes in record .*make it \.contiguous\(\)"):
        read_checkpoint(tmp_path / "w.pt")[KEY].read()


WHOLE = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
STRIDED = {
    "channels last": WHOLE.to(memory_format=torch.channels_last),
    "transposed": WHOLE.permute(3, 2, 1, 0),
    "a column": WHOLE.view(24, 5)[:, 2],
    "every other row": WHOLE.view(24, 5)[1::2],
    "the transposed end of a record": WHOLE.view(24, 5)[20:].t(),
    "a single number": WHOLE[1, 2, 3, 4],
    "nothing": WHOLE[:, :0],
    "sides of 1": WHOLE[:1, :, :1].transpose(1, 3),
}


@pytest.mark.parametrize("tensor", STRIDED.values(), ids=STRIDED)
def test_tensor_is_read_as_torch_reads_it_however_it_lies_in_its_record(tensor, tmp_path):
    torch.save({KEY: tensor}, tmp_path / "w.pt")
    read = read_checkpoint(tmp_path / "w.pt")[KEY].read()
    assert torch.equal(read, torch.load(tmp_path / "w.pt", weights_only=True)[KEY])
    assert read.is_contiguous()


def test_strides_beyond_a_record_are_refused(tmp_path):
    torch.save({KEY: WHOLE.view(24, 5)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        pickled = archive.read("w/data.pkl")
    assert pickled.count(b"K\x05K\x01\x86") == 1  # the strides (5, 1)
    lying = pickled.replace(b"K\x05K\x01\x86", b"K\x06K\x01\x86")
    (tmp_path / "w.pt").write_bytes(rezip((tmp_path / "w.pt").read_bytes(), data_pkl=lying))
    with pytest.raises(CheckpointError, match="does not fit its 480 bytes"):
        read_checkpoint(tmp_path / "w.pt")[KEY].read()


SOUND = {  # what torch.load(weights_only=True) takes, and numbers of numpy and paths
    "dtypes and devices": {"args": argparse.Namespace(dtype=torch.bfloat16, device=torch.device("cuda", 1))},
    "sets and counters": {"seen": {1, 2}, "frozen": frozenset("ab"), "counts": Counter("aab")},
    "bytes and complex numbers": {"bytes": b"\x00\xff", "array": bytearray(b"ab"), "root": 1j},
    "numbers of numpy": {"loss": np.float64(1.5), "steps": np.int64(3), "curve": np.zeros(3)},
    "paths": {"args": argparse.Namespace(output=Path("out"), pure=PurePosixPath("a/b"))},
    "a tensor with attributes": {"mean": torch.nn.Parameter(torch.zeros(2))},
    "the state of a generator": {"rng": torch.get_rng_state(), "shape": torch.Size([2, 3])},
    "fp8": {"scale": torch.ones(3).to(torch.float8_e4m3fn), "other": torch.ones(3).to(torch.float8_e5m2)},
    "short whole numbers": {"a": torch.ones(2, dtype=torch.uint16), "b": torch.ones(2, dtype=torch.int16)},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("beside", SOUND.values(), ids=SOUND)
def test_sound_file_is_read_whatever_lies_beside_the_weights(beside, protocol, tmp_path):
    torch.save({"ema": WEIGHTS, **beside}, tmp_path / "w.pt", pickle_protocol=protocol)
    content = read_checkpoint(tmp_path / "w.pt")
    assert content.keys() == {"ema", *beside}
    assert torch.equal(content["ema"][KEY].read(), WEIGHTS[KEY])
    for key, value in beside.items():
        if isinstance(value, torch.Tensor):
            assert content[key].dtype == value.dtype
            assert torch.equal(content[key].read().view(torch.uint8), value.detach().view(torch.uint8))


def test_arguments_of_a_training_are_read(tmp_path):
    arguments = argparse.Namespace(model="DiT-XL/2", lr=1e-4, seeds=[1, 2], dtype=torch.float32)
    torch.save({"ema": WEIGHTS, "args": arguments}, tmp_path / "w.pt")
    read = vars(read_checkpoint(tmp_path / "w.pt")["args"])
    assert read == vars(arguments)


def test_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"ema": WEIGHTS}, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / "w.pt")["ema"][KEY].read(), WEIGHTS[KEY])


def test_reading_a_hostile_file_changes_no_later_reading(tmp_path):
    """A pickle may set attributes on what it names: here `argparse.Namespace.model`."""
    hostile = b"\x80\x02cargparse\nNamespace\nN}X\x05\x00\x00\x00modelX\x03\x00\x00\x00SiTs\x86b."
    (tmp_path / "hostile.pt").write_bytes(rezip(pt(WEIGHTS), data_pkl=hostile))
    with pytest.raises(CheckpointError, match="it holds a type, not a state dict"):
        read_checkpoint(tmp_path / "hostile.pt")
    torch.save({"ema": WEIGHTS, "args": argparse.Namespace(seed=1)}, tmp_path / "w.pt")
    assert not hasattr(read_checkpoint(tmp_path / "w.pt")["args"], "model")
    assert not hasattr(argparse.Namespace, "model")


def test_view_into_a_larger_record_is_read(tmp_path):
    whole = torch.arange(24.0)
    torch.save({"part": whole[6:12].view(2, 3), "all": whole}, tmp_path / "w.pt")
    stored = read_checkpoint(tmp_path / "w.pt")
    assert torch.equal(stored["part"].read(), whole[6:12].view(2, 3))
    assert torch.equal(stored["all"].read(), whole)


def test_flipped_bit_of_a_weight_is_found_by_the_checksum(tmp_path):
    file = bytearray(pt({"a": torch.full((1000,), 0.5)}))
    file[file.index(struct.pack("<f", 0.5)) + 400] ^= 1
    (tmp_path / "w.pt").write_bytes(file)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        read_checkpoint(tmp_path / "w.pt")["a"].read()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model's weights as the bytes of both kinds of file, and a place for a spoilt one."""
    config = DiTConfig(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=1, sample_size=2, in_channels=1, num_classes=2
    )
    state = to_original(DiTModel(config))
    return {"pt": pt(state), "safetensors": save(state)}, state, tmp_path_factory.mktemp("fuzz") / "w"


@given(data=st.data())
def test_spoilt_bytes_give_our_error_or_the_same_weights(tiny, data):
    files, state, path = tiny
    kind = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[kind])
    # the places that readers interpret are few beside the weights' bytes: half of the flips go to the ends
    place = st.integers(0, len(content) - 1) | st.integers(0, 1500) | st.integers(len(content) - 1500, len(content) - 1)
    for where in data.draw(st.lists(place, max_size=4)):
        content[max(0, min(where, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(content)
    try:
        model = from_original(path, num_attention_heads=1)
    except ValueError:
        return
    if kind == "pt":  # a safetensors file has no checksum
        assert all(torch.equal(tensor, state[key]) for key, tensor in to_original(model).items())


MEASURE = """
import sys, torch, dit_hf
from dit_hf.conversion import from_diffusers, from_original
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
from_original(sys.argv[2], num_attention_heads=1)
before = peak()
model = {"original": from_original, "diffusers": from_diffusers}[sys.argv[3]](sys.argv[1])
size = sum(p.nbytes for p in model.parameters())
print((peak() - before) / size, size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("form", ["pt", "training checkpoint", "safetensors", "diffusers"])
def test_converting_takes_about_one_copy_of_the_weights(form, tiny, tmp_path):
    path, model = tmp_path / "big", DiTModel(DiTConfig(num_hidden_layers=8, hidden_size=768, num_attention_heads=12))
    state = to_original(model)
    told = ", num_attention_heads=12"
    if form == "pt":
        torch.save(state, path)
    elif form == "training checkpoint":
        torch.save({"model": {key: tensor + 1 for key, tensor in state.items()}, "ema": state}, path)
    elif form == "safetensors":
        save_file(state, path)
    else:
        from dit_hf.conversion import to_diffusers

        to_diffusers(model).save_pretrained(path)
        told = ""
    (tmp_path / "tiny").write_bytes(tiny[0]["pt"])
    code = MEASURE.replace("(sys.argv[1])", f"(sys.argv[1]{told})")
    kind = "diffusers" if form == "diffusers" else "original"
    command = [sys.executable, "-c", code, path, tmp_path / "tiny", kind]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    copies, size = map(float, result.stdout.split())
    print(f"{form}: {copies:.2f} copies of {size / 2**20:.0f} MiB")
    assert size > 250 * 2**20
    assert copies < 1.25  # the largest tensor and a mask of finite values come on top
