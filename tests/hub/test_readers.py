"""Whoever reads while a push runs gets the old pipeline or the new one, whole, its card included."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from dit_hf import DiTPipeline
from dit_hf.hub.push import push_folder

WEIGHTS = "transformer/model.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith((".cache", ".git"))}


@pytest.fixture
def newer(pipeline, saved, tmp_path) -> Path:
    """Two versions that differ in weights, scheduler and card: `saved` is the older."""
    (saved / "README.md").write_text("---\nlicense: mit\n---\n# Old\n")
    newer = tmp_path / "newer"
    DiTPipeline(pipeline.transformer, pipeline.vae, DDIMScheduler(clip_sample=False)).save_pretrained(newer)
    for name in (WEIGHTS, "vae/diffusion_pytorch_model.safetensors"):
        save_file({key: weight + 1 for key, weight in load_file(newer / name).items()}, newer / name)
    (newer / "README.md").write_text("---\nlicense: mit\n---\n# New\n")
    return newer


@pytest.fixture
def before_requests(hub, monkeypatch):
    """Call a function before each request is answered, but for those that it makes itself."""

    def arrange(function) -> None:
        take_fault, is_busy = hub.take_fault, []

        def watching(method: str, path: str):
            if not is_busy:
                is_busy.append(True)
                function()
                is_busy.clear()
            return take_fault(method, path)

        monkeypatch.setattr(hub, "take_fault", watching)

    return arrange


@pytest.mark.slow
def test_reader_at_any_moment_of_a_push_gets_the_old_or_the_new_whole(hub, saved, newer, tmp_path, before_requests):
    push_folder(saved, "user/dit")
    read = []

    def read_all() -> None:
        read.append(contents(Path(snapshot_download("user/dit", local_dir=tmp_path / f"read {len(read)}"))))

    before_requests(read_all)
    push_folder(newer, "user/dit")
    read_all()
    assert len(read) > 10  # requests of a push
    assert len(list(hub.repository("user/dit").history("main"))) == 3  # each push is one commit, after the first
    is_new = [found == contents(newer) for found in read]
    assert all(found == contents(saved) for found, new in zip(read, is_new, strict=True) if not new)
    assert is_new == sorted(is_new)
    assert is_new[0] is False
    assert is_new[-1] is True


@pytest.mark.slow
def test_load_that_a_push_overtakes_at_any_moment_is_of_the_old_or_the_new_whole(
    hub, saved, newer, tmp_path, before_requests
):
    push_folder(saved, "user/dit")
    repository = hub.repository("user/dit")
    old = repository.refs["main"]
    push_folder(newer, "user/dit")
    new = repository.refs["main"]
    seen, requests, moment = [], 0, 0

    def overtake() -> None:
        nonlocal requests
        if requests == moment:
            repository.refs["main"] = new
        requests += 1

    before_requests(overtake)
    while moment <= requests:
        repository.refs["main"], requests = old, 0
        cache = tmp_path / f"cache {moment}"
        pipeline = DiTPipeline.from_pretrained("user/dit", cache_dir=cache)
        seen.append(type(pipeline.scheduler) is DDIMScheduler)
        folder = newer if seen[-1] else saved
        for part, file in ((pipeline.transformer, WEIGHTS), (pipeline.vae, "vae/diffusion_pytorch_model.safetensors")):
            weights = part.state_dict()
            assert all(torch.equal(weights[key], weight) for key, weight in load_file(folder / file).items())
        moment += 1
    assert seen == [True] + [False] * requests  # the first request asks for the commit
    offline = DiTPipeline.from_pretrained("user/dit", cache_dir=cache, local_files_only=True)
    assert type(offline.scheduler) is not DDIMScheduler
