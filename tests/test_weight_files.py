"""Names of files of weights and of keys, and folders that are replaced as a whole."""

from pathlib import Path

import pytest

from dit_hf.files import watched
from dit_hf.weight_files import read_name, replaced_whole, strip_wrappers


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        ("blocks.0._orig_mod.attn.qkv.bias", "blocks.0.attn.qkv.bias"),
        ("module.blocks.0._checkpoint_wrapped_module.mlp._fsdp_wrapped_module.fc1.bias", "blocks.0.mlp.fc1.bias"),
        ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.weight"),
        ("module_list.my_orig_mod.weight", "module_list.my_orig_mod.weight"),
    ],
)
def test_wrappers_are_stripped_at_any_depth(key, plain):
    assert strip_wrappers(key) == plain


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.safetensors", ("transformers", None, "safetensors", "single")),
        ("model.fp16.safetensors", ("transformers", "fp16", "safetensors", "single")),
        ("model-00001-of-00002.safetensors", ("transformers", None, "safetensors", "shard")),
        ("model.fp16-00001-of-00002.safetensors", ("transformers", "fp16", "safetensors", "shard")),
        ("model.safetensors.index.json", ("transformers", None, "safetensors", "index")),
        ("model.safetensors.index.fp16.json", ("transformers", "fp16", "safetensors", "index")),
        ("pytorch_model.bin", ("transformers", None, "bin", "single")),
        ("pytorch_model.bin.index.json", ("transformers", None, "bin", "index")),
        ("diffusion_pytorch_model.safetensors", ("diffusers", None, "safetensors", "single")),
        ("diffusion_pytorch_model.safetensors.index.json", ("diffusers", None, "safetensors", "index")),
        ("config.json", None),
        ("model.bin", None),
        ("model.onnx", None),
        ("adapter_model.safetensors", None),
        ("my_model.safetensors", None),
    ],
)
def test_names_of_files_of_weights_are_those_of_transformers_and_diffusers(name, expected):
    assert read_name(Path(name)) == expected


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def files_of(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


SHARDS = [*(f"model-0000{k}-of-00002.safetensors" for k in (1, 2)), "model.safetensors.index.json"]


def test_new_files_supersede_the_weights_of_their_variant_and_nothing_else(tmp_path):
    others = [
        "README.md",
        "model.fp16.safetensors",
        "adapter_model.safetensors",
        "vae/model.safetensors",
        "a/model.onnx",
    ]
    fill(tmp_path, "config.json", "model.safetensors", "pytorch_model.bin", *others)
    with replaced_whole(tmp_path) as folder:
        fill(folder, "config.json", *SHARDS)
    assert files_of(tmp_path) == {"config.json", *SHARDS, *others}


def test_superseded_files_stay_until_the_new_ones_are_in_place(tmp_path):
    fill(tmp_path, "model.safetensors")
    present = []
    with watched(lambda operation, path: present.append(files_of(tmp_path))), replaced_whole(tmp_path) as folder:
        fill(folder, *SHARDS)
    assert all("model.safetensors" in names for names in present)
    assert files_of(tmp_path) == {*SHARDS}


def test_an_index_never_lists_shards_of_two_saves(tmp_path):
    """At each operation on the disk: where there is an index, its shards are all of its save."""
    fill(tmp_path, *SHARDS)
    mixed = []

    def look(operation, path):
        contents = {(tmp_path / name).read_text() for name in SHARDS if (tmp_path / name).exists()}
        if (tmp_path / SHARDS[-1]).exists() and len(contents - {*SHARDS}) not in (0, 3):
            mixed.append(contents)

    with watched(look), replaced_whole(tmp_path) as folder:
        for name in SHARDS:
            (folder / name).write_text(f"new {name}")
    assert not mixed
    assert {(tmp_path / name).read_text() for name in SHARDS} == {f"new {name}" for name in SHARDS}


def test_block_that_fails_changes_nothing_and_makes_no_folder(tmp_path):
    def fail():
        with replaced_whole(tmp_path / "a" / "b") as folder:
            fill(folder, "model.safetensors")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert not list(tmp_path.iterdir())
