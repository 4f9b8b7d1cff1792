"""A cache that is complete and cannot be written to, as on a cluster's shared disk: models load from it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

import dit_hf
from dit_hf import DiTPipeline
from dit_hf.hub.push import push_folder

CAN_MOUNT = sys.platform.startswith("linux") and os.geteuid() == 0
LOAD = """
import sys
from pathlib import Path
from dit_hf import DiTPipeline

cache = Path(sys.argv[1])
try:
    (cache / "new").touch()
except OSError as error:
    print(error.strerror)
for arguments in ({}, {"revision": "main"}, {"local_files_only": True}, {"revision": sys.argv[2]}):
    print(DiTPipeline.from_pretrained("user/dit", **arguments).labels["goldfish"])
"""
MOUNT = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in folder.rglob("*")}


@pytest.fixture
def cache(hub, saved) -> Path:
    push_folder(saved, "user/dit")
    folder = Path(constants.HF_HUB_CACHE)
    DiTPipeline.from_pretrained("user/dit", cache_dir=folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not CAN_MOUNT, reason="mounts a folder read-only in a namespace of its own")
@pytest.mark.parametrize("has_reference", [True, False])
def test_complete_cache_on_a_read_only_mount_loads(hub, cache, hub_environment, has_reference):
    reference = cache / "models--user--dit" / "refs" / "main"
    commit = reference.read_text()
    if not has_reference:  # as where the cache was filled by its commit: offline, main is not known then
        reference.unlink()
    load = LOAD if has_reference else LOAD.replace('{"local_files_only": True}, ', "")
    before = state_of(cache)
    environment = hub_environment | {"HF_HUB_CACHE": str(cache), "PYTHONPATH": str(Path(dit_hf.__file__).parents[1])}
    command = [
        "unshare",
        "-m",
        "bash",
        "-c",
        MOUNT,
        "mount",
        str(cache),
        sys.executable,
        "-c",
        load,
        str(cache),
        commit,
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split("\n")[:-1] == ["Read-only file system", *["1"] * (4 if has_reference else 3)]
    assert state_of(cache) == before


@pytest.mark.slow
def test_reference_is_written_only_if_the_branch_has_moved_and_never_half(hub, cache, saved):
    reference = cache / "models--user--dit" / "refs" / "main"
    repository = hub.repository("user/dit")
    assert reference.read_text() == repository.refs["main"].oid
    before = state_of(reference.parent)
    DiTPipeline.from_pretrained("user/dit", cache_dir=cache)
    assert state_of(reference.parent) == before
    (saved / "new.txt").write_text("new")
    push_folder(saved, "user/dit")
    DiTPipeline.from_pretrained("user/dit", cache_dir=cache)
    assert reference.read_text() == repository.refs["main"].oid
    assert [path.name for path in reference.parent.iterdir()] == ["main"]
    assert reference.stat().st_ino != before[str(reference)][1]  # renamed into its place
