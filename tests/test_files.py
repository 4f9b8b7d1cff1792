"""Files and folders that are whole or not there, wherever the write is cut off."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dit_hf.files import (
    folder_written_whole,
    remove_folder,
    remove_leftovers,
    sha256_of_file,
    watched,
    write_text,
    written_whole,
)


class Kill(BaseException):
    """Not an Exception: nothing may catch it and go on."""


def operations_of(work: Callable[[], None], kill_at: int | None = None) -> list[str]:
    """Do the work, and nothing more from operation number `kill_at` on, as if the power had gone; what was done."""
    done: list[str] = []

    def watcher(operation: str, path: Path) -> None:
        if len(done) == kill_at:
            raise Kill
        done.append(operation)

    with watched(watcher), contextlib.suppress(Kill):
        work()
    return done


def fill(folder: Path, text: str) -> None:
    with folder_written_whole(folder) as partial:
        write_text(partial / "a.txt", text)
        (partial / "inner").mkdir()
        write_text(partial / "inner" / "b.txt", text)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def whole(text: str) -> dict[str, str]:
    return {"a.txt": text, "inner/b.txt": text}


def test_file_has_the_old_content_or_the_new_wherever_the_write_is_cut_off(tmp_path: Path):
    file = tmp_path / "file"
    write_text(file, "old")
    operations = operations_of(lambda: write_text(file, "old"))
    assert operations == ["write", "flush", "rename", "flush"]
    found = []
    for number in range(len(operations)):
        write_text(file, "old")
        operations_of(lambda: write_text(file, "new"), kill_at=number)
        found.append(file.read_text())
        remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert found == ["old", "old", "old", "new"]


def test_folder_is_the_old_one_or_the_new_or_comes_back_wherever_its_replacement_is_cut_off(tmp_path: Path):
    folder = tmp_path / "folder"
    fill(folder, "old")
    operations = operations_of(lambda: fill(folder, "old"))
    assert operations.count("rename") == 2 + 2  # two files, the old folder and the new one
    for number in range(len(operations)):
        remove_folder(folder)
        fill(folder, "old")
        operations_of(lambda: fill(folder, "new"), kill_at=number)
        if not folder.exists():
            assert operations[:number].count("rename") == 2 + 1  # the old one has gone aside
        else:
            assert contents(folder) in (whole("old"), whole("new"))
        remove_leftovers(tmp_path, "folder")
        assert contents(folder) in (whole("old"), whole("new"))
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_write_after_one_that_was_cut_off_finds_nothing_in_its_way(tmp_path: Path):
    operations = operations_of(lambda: fill(tmp_path / "folder", "old"))
    for first in range(len(operations)):
        operations_of(lambda: fill(tmp_path / "folder", "cut"), kill_at=first)
        fill(tmp_path / "folder", "new")
        assert contents(tmp_path / "folder") == whole("new")
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_folder_is_there_or_gone_wherever_its_deletion_is_cut_off(tmp_path: Path):
    fill(tmp_path / "folder", "old")
    operations = operations_of(lambda: remove_folder(tmp_path / "folder"))
    assert operations == ["rename", "flush", "delete"]
    for number in range(len(operations)):
        fill(tmp_path / "folder", "old")
        operations_of(lambda: remove_folder(tmp_path / "folder"), kill_at=number)
        assert number > 0 or contents(tmp_path / "folder") == whole("old")
        remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ([] if number else ["folder"])


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path):
    seen: list[tuple[str, str]] = []
    with watched(lambda operation, path: seen.append((operation, path.name))):
        with folder_written_whole(tmp_path / "folder") as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / "b.txt").write_text("b")
            (partial / "a.txt").write_text("a")
    name = seen[0][1]
    assert name.startswith(".folder.")
    flushed = ["a.txt", "inner", "b.txt", name]
    assert seen == [
        ("create", name),
        *(("flush", each) for each in flushed),
        ("rename", name),
        ("flush", tmp_path.name),
    ]


def test_error_in_the_block_leaves_the_old_file_and_folder(tmp_path: Path):
    write_text(tmp_path / "file", "old")
    fill(tmp_path / "folder", "old")
    for writing, name in ((written_whole, "file"), (folder_written_whole, "folder")):
        with pytest.raises(ZeroDivisionError), writing(tmp_path / name):
            raise ZeroDivisionError
    assert contents(tmp_path / "folder") == whole("old")
    assert contents(tmp_path).keys() == {"file", "folder/a.txt", "folder/inner/b.txt"}


def test_leftovers_of_one_name_are_not_those_of_another(tmp_path: Path):
    for name in (".a.txt.1.partial", ".ab.txt.1.partial", ".a.txt.2.deleted"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == [".ab.txt.1.partial"]
    remove_leftovers(tmp_path / "missing")


def test_sha256_is_that_of_the_standard(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
