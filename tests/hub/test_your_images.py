"""docs/your_images.md, from the folder of photographs to the model on a local Hub, run as printed."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from fresh_process import dit_hf_command
from PIL import Image

from dit_hf import DiTPipeline

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "your_images.md"
FEW = ["--max_train_steps", "2", "--ema_decay", "0", "--train_batch_size", "2", "--report_to", "none"]


def take_photographs(folder: Path) -> None:
    """Pictures of one colour and some noise, in a folder for each class."""
    generator = np.random.default_rng(0)
    for name, colour in (("cat", (150, 100, 60)), ("coffee", (200, 40, 20)), ("rocket", (10, 20, 90))):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            noise = generator.integers(0, 40, (90, 70, 3))
            Image.fromarray((noise + colour).astype(np.uint8)).save(folder / name / f"{number}.jpg")


def blocks_until(heading: str) -> list[tuple[str, str]]:
    """Language and text of each block of code above a heading, in order."""
    text = PAGE.read_text(encoding="utf-8").partition(f"## {heading}")[0]
    return re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_page(folder: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]) -> dict:
    """Run every block of the page but the one that needs a GPU; what the Python blocks have defined."""
    monkeypatch.chdir(folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    take_photographs(folder / "photos")
    namespace: dict = {}
    for language, text in blocks_until("With a GPU"):
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), namespace)
            continue
        program, *arguments = shlex.split(text)
        assert program == "dit-hf"
        result = dit_hf_command(*arguments, *(extra if arguments[0] == "finetune" else []))
        assert result.returncode == 0, result.stderr[-3000:]
    return namespace


def check(folder: Path, namespace: dict, hub) -> None:
    assert list(namespace["pipeline"].labels) == ["cat", "coffee", "rocket"]
    assert Image.open(folder / "photos.png").size == (4 * 64, 3 * 64)  # a row for each class
    for picture in ("cat.png", "coffee.png", "adapted.png"):
        assert Image.open(folder / picture).size == (64, 64)
    before_after = np.array(Image.open(folder / "out" / "photos" / "before_after.png"))
    assert before_after.shape == (64 + 14 + 8 + 64 + 14, 3 * 64, 3)  # 14 pixels for the names
    assert hub.repository("user/my-photos").private
    assert namespace["elsewhere"].config.id2label == {0: "cat", 1: "coffee", 2: "rocket"}
    assert len(namespace["base"].labels) == 300  # the emoji model, after its adapter was unloaded
    again = DiTPipeline.from_pretrained(folder / "out" / "photos-2" / "pipeline")
    assert list(again.labels) == ["cat", "coffee", "rocket"]


@pytest.mark.slow
def test_page_runs_as_printed_but_for_fewer_steps(hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check(tmp_path, run_page(tmp_path, monkeypatch, FEW), hub)


@pytest.mark.long
def test_page_runs_as_printed_and_the_classes_are_learned(hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    namespace = run_page(tmp_path, monkeypatch, [])
    check(tmp_path, namespace, hub)
    images = namespace["elsewhere"](["cat", "coffee", "rocket"], output_type="np").images  # (3, 64, 64, 3)
    colours = images.mean((1, 2)) * 255
    photographs = np.array([(170, 120, 80), (220, 60, 40), (30, 40, 110)])  # their mean colours
    distances = np.linalg.norm(colours[:, None] - photographs[None], axis=-1)  # (3, 3)
    assert distances.argmin(1).tolist() == [0, 1, 2]
