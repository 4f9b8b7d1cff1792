"""Fuzz what reads the files of others, with atheris: only our errors come out, nothing runs, and memory is bounded.

    pip install atheris
    python tests/fuzz.py checkpoint -max_total_time=600 -rss_limit_mb=2500

The targets are the keys of `TARGETS`; what follows goes to libFuzzer. An input that breaks a rule is kept as `crash-*`
in the working folder, and given as the last argument it is run again.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import pickle
import struct
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import atheris
import diffusers  # noqa: F401  before the instrumented imports, since only what reads files is to be instrumented
import torch
import transformers
from safetensors.torch import save, save_file

with atheris.instrument_imports(include=["dit_hf", "json", "pickletools", "zipfile"]):
    from dit_hf import DiTConfig, DiTModel
    from dit_hf.conversion import from_diffusers, from_original, to_diffusers, to_original
    from dit_hf.training.saving.checkpoint import find_damage

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
CANARY = FOLDER / "canary"
SIZES = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "sample_size": 2, "in_channels": 1}
FORBIDDEN_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork", "socket.connect")


def watch(event: str, arguments: tuple) -> None:
    """Stop at what a checkpoint could run, and has no business to."""
    if event in FORBIDDEN_EVENTS:
        os.write(2, f"{event} {arguments}\n".encode())
        os.abort()


class Attack:
    """A pickle that touches the canary when it is loaded."""

    def __reduce__(self) -> Any:
        return Path.touch, (CANARY,)


def pt(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


# ---- the targets: what runs, and inputs to begin with


def tiny_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return to_original(DiTModel(DiTConfig(**SIZES, num_classes=2)))


def read_checkpoint_file(content: bytes) -> None:
    file = FOLDER / "weights"
    file.write_bytes(content)
    with contextlib.suppress(ValueError):
        from_original(file, num_attention_heads=1)
    assert not CANARY.exists(), "a pickle was executed"


def checkpoints() -> list[bytes]:
    state = tiny_state()
    training = {"model": state, "ema": state, "opt": {"state": {}}, "args": argparse.Namespace(model="DiT-XL/2")}
    spoilt = [{**training, "args": Attack()}, {"x_embedder.proj.weight": Attack()}]
    old = pt(state, _use_new_zipfile_serialization=False)
    return [save(state), pickle.dumps(Attack()), old, *map(pt, [state, training, *spoilt])]


def read_pickle(content: bytes) -> None:
    """The pickle inside an archive whose records and checksums are right, which chance would not write."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", content)
        for name, record in RECORDS.items():
            file.writestr(name, record)
    read_checkpoint_file(archive.getvalue())


def pickles() -> list[bytes]:
    seeds = [pickle.dumps({"a": Attack()}, protocol=protocol) for protocol in range(6)]
    for content in checkpoints():
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as file:
                records = {name: file.read(name) for name in file.namelist()}
            seeds.append(records.pop("archive/data.pkl"))
            RECORDS.update(records)
    return seeds


def read_header(content: bytes) -> None:
    """The header of a safetensors file, before bytes enough for its tensors."""
    read_checkpoint_file(struct.pack("<Q", len(content)) + content + bytes(4096))


def headers() -> list[bytes]:
    content = save(tiny_state())
    return [content[8 : 8 + struct.unpack("<Q", content[:8])[0]]]


FIELDS = [*DiTConfig().to_dict(), *SIZES, "attn_implementation", "auto_map", "num_labels", "id2label", "dtype"]
VALUES = [None, True, False, 0, 1, -1, 2, 3, 4, 8, 2**31, 2**70, 0.1, 1e-6, 1e308, float("nan"), "", "sdpa", "x/y", []]


def any_value(data: atheris.FuzzedDataProvider, depth: int = 2) -> Any:
    kind = data.ConsumeIntInRange(0, 7 if depth else 4)
    if kind <= 2:
        return data.PickValueInList(VALUES)
    if kind == 3:
        return data.ConsumeInt(8)
    if kind == 4:
        return data.ConsumeUnicodeNoSurrogates(12)
    if kind == 5:
        return data.ConsumeRegularFloat()
    inner = [any_value(data, depth - 1) for _ in range(data.ConsumeIntInRange(0, 3))]
    return inner if kind == 6 else {data.ConsumeUnicodeNoSurrogates(6): value for value in inner}


def spoilt(content: dict[str, Any], names: list[str], data: atheris.FuzzedDataProvider) -> Any:
    """The content with some fields changed, or something else altogether."""
    if data.ConsumeIntInRange(0, 30) == 0:
        return any_value(data)
    changed = dict(content)
    for _ in range(data.ConsumeIntInRange(0, 4)):
        name = data.PickValueInList(names) if data.ConsumeBool() else data.ConsumeUnicodeNoSurrogates(10)
        if data.ConsumeIntInRange(0, 5) == 0:
            changed.pop(name, None)
        else:
            changed[name] = any_value(data)
    return changed


def spoilt_text(content: dict[str, Any], names: list[str], data: atheris.FuzzedDataProvider) -> bytes:
    text = json.dumps(spoilt(content, names, data)).encode()
    if data.ConsumeIntInRange(0, 20) == 0:
        return data.ConsumeBytes(200)
    return text[: data.ConsumeIntInRange(0, len(text))] if data.ConsumeIntInRange(0, 20) == 0 else text


def read_configuration(content: bytes) -> None:
    file = FOLDER / "configuration" / "config.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(spoilt_text(TINY_CONFIG, FIELDS, atheris.FuzzedDataProvider(content)))
    try:
        config = DiTConfig.from_pretrained(file.parent)
    except (ValueError, OSError):  # transformers' OSError: no valid JSON file
        return
    assert DiTConfig.from_dict(config.to_dict()).to_dict() == config.to_dict(), "the round trip changes it"


def read_diffusers_folder(content: bytes) -> None:
    data = atheris.FuzzedDataProvider(content)
    names = [*THEIR_CONFIG, "_dit_hf"]
    (FOLDER / "theirs" / "config.json").write_bytes(spoilt_text(THEIR_CONFIG, names, data))
    index = FOLDER / "theirs" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_bytes(spoilt_text(THEIR_INDEX, ["weight_map", "metadata"], data))
    with contextlib.suppress(ValueError):
        from_diffusers(FOLDER / "theirs")


def read_manifest(content: bytes) -> None:
    folder = FOLDER / "step-00000001"
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(b"weights")
    good = {"files": {"w.bin": {"bytes": 7, "sha256": "0" * 64}}, "torch": "2"}
    data = atheris.FuzzedDataProvider(content)
    (folder / "manifest.json").write_bytes(spoilt_text(good, ["files", "torch"], data))
    damage = find_damage(folder)
    assert damage is None or isinstance(damage, str)


def no_seeds() -> list[bytes]:
    return [bytes(64), bytes(range(256))]


RECORDS: dict[str, bytes] = {}
TARGETS = {
    "checkpoint": (read_checkpoint_file, checkpoints),
    "pickle": (read_pickle, pickles),
    "header": (read_header, headers),
    "configuration": (read_configuration, no_seeds),
    "diffusers": (read_diffusers_folder, no_seeds),
    "manifest": (read_manifest, no_seeds),
}

TINY_CONFIG = DiTConfig(**SIZES).to_dict()
THEIR_CONFIG: dict[str, Any] = {}
THEIR_INDEX: dict[str, Any] = {"metadata": {}, "weight_map": {"proj_out_1.weight": "a.safetensors"}}


def prepare_diffusers_folder() -> None:
    model = to_diffusers(DiTModel(DiTConfig(**SIZES, num_classes=2)))
    model.save_pretrained(FOLDER / "theirs")
    THEIR_CONFIG.update(json.loads((FOLDER / "theirs" / "config.json").read_text()))
    (FOLDER / "theirs" / "diffusion_pytorch_model.safetensors").unlink()
    save_file(model.state_dict(), FOLDER / "theirs" / "a.safetensors")


def main() -> None:
    target, seeds = TARGETS[sys.argv[1]]
    logging.disable(logging.CRITICAL)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    prepare_diffusers_folder()
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for k, seed in enumerate(seeds()):
        (corpus / str(k)).write_bytes(seed)
    sys.addaudithook(watch)
    files = [] if any(not word.startswith("-") for word in sys.argv[2:]) else [str(corpus)]
    atheris.Setup([sys.argv[0], *sys.argv[2:], *files], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
