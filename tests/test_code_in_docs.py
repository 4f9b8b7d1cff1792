"""The code in README and the pages of docs: Python runs as printed, commands have the options that they name."""

import ast
import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dit_hf import DiTPipeline, cli
from dit_hf.cli.entry import Command
from dit_hf.extraction import ExtractSettings
from dit_hf.finetuning import add_lora, save_lora
from dit_hf.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
PROGRAMS = tuple(f"{name} " for name in ("dit-hf", "torchrun", "accelerate", "python", "srun", "OMP_NUM_THREADS=1"))
OURS = r"dit-hf|\.py|dit_hf"
TESTED_ELSEWHERE = {"publish.md", "your_images.md", "first_model.md"}  # tests/hub, on a local Hub


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code of a page, in order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [code for name, code in fenced if name == language]


def make_adapter(folder: Path) -> None:
    """The adapter that the command above the block trains, untrained."""
    model = DiTPipeline.from_pretrained(ROOT / "examples" / "assets" / "dit-emoji").transformer
    add_lora(model, 2)
    names = {class_id: "blue heart" if class_id == 0 else str(class_id) for class_id in range(model.config.num_classes)}
    save_lora(model, folder / "out" / "finetuned-emoji" / "adapter", names, None)


def leave_killed_run(folder: Path) -> None:
    """What a run leaves that is killed."""
    (folder / "out" / "dit").mkdir(parents=True)
    (folder / "out" / "dit" / "status.json").write_text('{"state": "running", "pid": 1, "host": "here", "step": 0}')


# What the page has made by then.
PREPARE: dict[str, Callable[[Path], None]] = {"finetuning.md": make_adapter, "training_design.md": leave_killed_run}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in WITH_PYTHON if page.name not in TESTED_ELSEWHERE],
    ids=lambda page: page.name,
)
def test_python_of_a_page_runs_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    PREPARE.get(page.name, lambda folder: None)(tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in blocks(page, "python"):
        if not block.startswith("# needs "):  # and says what, which is not here
            exec(compile(block, str(page), "exec"), namespace)
    if page.name == "README.md":
        assert (tmp_path / "frog.png").is_file()
        assert namespace["output"].sample.shape == torch.Size([2, 8, 32, 32])


def test_pages_with_python_were_found():
    assert {"README.md", "sampling.md", "finetuning.md", "generate.md", *TESTED_ELSEWHERE} <= {
        page.name for page in WITH_PYTHON
    }


def commands(page: Path) -> list[list[str]]:
    """The words of each command of a page that runs this package, from the program on."""
    text = "\n".join(blocks(page, "bash") + blocks(page, "")).replace("\\\n", " ")
    of_programs = [line for line in text.splitlines() if line.startswith(PROGRAMS) and re.search(OURS, line)]
    lines = [shlex.split(line, comments=True) for line in of_programs]
    found = []
    for words in lines:
        starts = [
            k for k, word in enumerate(words) if word in ("dit-hf", "dit_hf.training.run") or word.endswith(".py")
        ]
        if starts:
            found.append(words[starts[0] :])
    return found


def options_of(program: str) -> set[str]:
    """The options of an example, a benchmark or the trainer, read from the code that declares them."""
    trainer = {field.name for field in dataclasses.fields(TrainSettings)} | {"config", "allow_config_change"}
    if program == "dit_hf.training.run":
        return trainer
    text = (ROOT / program).read_text(encoding="utf-8")
    declared = set(re.findall(r'add_argument\(\s*"--(\w+)"', text))
    for node in ast.walk(ast.parse(text)):  # the fields of a dataclass of settings
        if isinstance(node, ast.ClassDef):
            declared |= {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}
    if "dit_hf.extraction" in text:
        declared |= {field.name for field in dataclasses.fields(ExtractSettings)}
    return declared | (trainer if "dit_hf.training" in text else set())


def wrong_options(words: list[str]) -> list[str]:
    """What a command says that its program does not understand."""
    program, *arguments = words
    if program == "dit-hf":
        result = CliRunner().invoke(cli.app, arguments)
        return [result.output] if result.exit_code == 2 else []  # 1: a file that is not here
    given = {word.removeprefix("--").partition("=")[0] for word in arguments if word.startswith("--")}
    return [f"{program} has no --{name}" for name in sorted(given - options_of(program) - {"help"})]


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch):
    """Let commands parse their arguments and do nothing."""
    monkeypatch.setattr(Command, "invoke", lambda self, context: None)


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_name_options_that_exist(page: Path):
    assert [fault for words in commands(page) for fault in wrong_options(words)] == []


@pytest.mark.usefixtures("only_parsed")
def test_commands_are_found_and_wrong_ones_are_refused():
    assert len([words for page in PAGES for words in commands(page)]) > 30
    for command, fault in (
        ("dit-hf generate MODEL --num-picture 3", "No such option: --num-picture"),
        ("dit-hf paint MODEL", "No such command 'paint'"),
        ("dit-hf generate MODEL --num-images 0", "Invalid value for '--num-images'"),
        ("examples/train_dit.py FILE.yaml --learning_rat 1", "examples/train_dit.py has no --learning_rat"),
        ("examples/sample_dit.py --images 3", "examples/sample_dit.py has no --images"),
    ):
        assert fault in "".join(wrong_options(shlex.split(command)))
