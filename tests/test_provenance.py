"""Where a number comes from: the commit of this code and of no other, hardware, versions, hashes of weights."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from dit_hf import provenance
from dit_hf.provenance import commit, environment, hardware, weights_sha256

AUTHOR = ["-c", "user.name=a", "-c", "user.email=a@b"]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *AUTHOR, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    """A repository with one commit, in which the module believes to lie."""
    git(tmp_path, "init", "-q")
    (tmp_path / "provenance.py").write_text("")
    (tmp_path / "other.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    return tmp_path


def test_commit_has_a_plus_where_a_file_was_changed_since(repository: Path):
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "a")
    head = git(repository, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert commit() == head
    (repository / "other.py").write_text("changed")
    assert commit() == head + "+"


def test_commit_of_another_repository_is_not_taken_for_this_codes(repository: Path):
    git(repository, "commit", "-q", "--allow-empty", "-m", "a")  # the module is in the folder, not in the repository
    assert commit() is None


def test_there_is_no_commit_without_git(repository: Path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit() is None


def test_environment_names_versions_commit_and_hardware():
    device = torch.device("cpu")
    found = environment(device)
    assert found["torch"] == torch.__version__
    assert found["commit"] == commit()
    assert found["hardware"] == hardware(device)
    assert f"{torch.get_num_threads()} thread(s)" in found["hardware"]


def test_hash_of_weights_tells_shapes_and_names_apart():
    zeros = [torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False), torch.nn.Embedding(3, 2)]
    for module in zeros:
        torch.nn.init.zeros_(module.weight)
    modules = [*zeros, torch.nn.Sequential(zeros[0])]
    hashes = [weights_sha256(module) for module in modules]
    assert hashes[0] == hashes[2]  # the name and shape of both are the same
    assert len(set(hashes)) == 3


def test_hash_of_weights_tells_one_bit_and_the_precision_apart():
    model = torch.nn.Linear(3, 2)
    hashes = {weights_sha256(model), weights_sha256(model, None)}
    assert len(hashes) == 1
    model.weight.data[0, 0] = torch.nextafter(model.weight.data[0, 0], torch.tensor(9.0))
    hashes |= {weights_sha256(model), weights_sha256(model.to(torch.bfloat16))}
    assert len(hashes) == 3
