"""The documents say what is: symbols of the paper-to-code map exist, links lead somewhere, nothing private is named."""

import ast
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

from dit_hf import cli
from dit_hf.extras import PACKAGES

ROOT = Path(__file__).parents[1]
MAPS = [ROOT / "docs" / "paper_to_code.md", ROOT / "docs" / "layout.md"]

NOT_OURS = {
    "build",
    "dist",
    "out",
    "demo",
    "shared",
    "__pycache__",
    "reference",
}  # folders that git ignores or that are no part
# Paths of a developer's machine, and registries. Written in pieces, since this file is held to the rule too.
PRIVATE = ["/" + "work/", "/" + "root/", "/" + "tmp/wt", "shared/" + "FACTS", "shared/" + "HOUSE"]
REGISTRIES = [name + ".org" for name in ("pypi", "pythonhosted", "npmjs", "debian")]

ISSUE_NUMBER = re.compile(r"\b[Ii]ssue #?\d{1,2}\b")  # of this project; other projects' have more digits

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ROW = re.compile(r"^\|.*\]\((?P<file>[^)]+\.py)\) \| (?P<symbols>\[?`.*) \|$", re.MULTILINE)


def public_files(suffix: str = "") -> Iterator[Path]:
    """Files of the repository whose name ends with a suffix."""
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder)
        folders[:] = [
            name
            for name in folders
            if name not in NOT_OURS and not name.endswith(".egg-info") and not re.match(r"\.(?!ci$|github$)", name)
        ]
        yield from (here / name for name in names if name.endswith(suffix) and name != ".git")  # a file in a worktree


def assigned_names(node: ast.stmt) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        if isinstance(target, ast.Name):
            yield target.id
        elif isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self":
            yield target.attr


def symbols_of(text: str) -> set[str]:
    """Functions, classes and assigned names of a module; members of classes, self's too, as "Class.member"."""
    found: set[str] = set()
    for node in ast.parse(text).body:
        found.update(assigned_names(node))
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [member for member in node.body if isinstance(member, ast.FunctionDef)]
            statements = [*node.body, *(inner for method in methods for inner in ast.walk(method))]
            members = {method.name for method in methods}.union(*(assigned_names(inner) for inner in statements))
            found.update(f"{node.name}.{member}" for member in members)
    return found


def missing_symbols(page: Path) -> list[str]:
    """The symbols that a page's tables give to a file which lacks them."""
    return [
        f"{row['file']}: {symbol}"
        for row in ROW.finditer(page.read_text(encoding="utf-8"))
        for existing in [symbols_of((page.parent / row["file"]).read_text(encoding="utf-8"))]
        for symbol in re.findall(r"`([^`]+)`", row["symbols"])
        if symbol not in existing
    ]


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    targets = (link.split("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8")))
    return [target for target in targets if target and "://" not in target and not (page.parent / target).exists()]


def private_words(path: Path) -> list[str]:
    content = path.read_bytes()
    text = "" if b"\0" in content else content.decode()  # images, weights and arrays hold zeros
    return [word for word in [*PRIVATE, *REGISTRIES] if word in text] + ISSUE_NUMBER.findall(text)


@pytest.mark.parametrize("page", MAPS, ids=lambda page: page.name)
def test_every_symbol_of_a_map_exists(page: Path):
    assert missing_symbols(page) == []


@pytest.mark.parametrize("page", MAPS, ids=lambda page: page.name)
def test_every_row_of_a_map_is_read(page: Path):
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|") and ".py)" in line]
    assert len(rows) == len(ROW.findall(page.read_text(encoding="utf-8"))) > 20


def test_symbols_of_the_paper_link_to_the_lines_that_define_them():
    """Reads the text of each line; the program that writes the links reads the syntax tree."""
    links = re.findall(r"\[`([\w.]+)`\]\(([^)#]+)#L(\d+)\)", MAPS[0].read_text(encoding="utf-8"))
    assert len(links) > 90
    wrong = []
    for symbol, file, number in links:
        line = (MAPS[0].parent / file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        name = symbol.rpartition(".")[2]
        indent = "    " if "." in symbol else ""
        if not re.match(rf"{indent}(?:(?:def|class) {name}\b|(?: +self\.)?{name}(?:: .*)? = )", line):
            wrong.append(f"{symbol} is not at {file}:{number}")
    assert wrong == [], "run `make format`, or python docs/link_symbols.py"


def floors(page: Path) -> dict[str, int]:
    """The floor of each room in the picture of the layout."""
    picture = re.search(r"^floor  rooms.*?^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[
        0
    ].splitlines()
    width, floor, found = picture[0].index("what they do"), 0, {}
    for line in picture[2:-1]:
        number, *names = line[:width].split() or [""]
        if number.isdecimal():
            floor = int(number)
        else:
            names.insert(0, number)
        found |= dict.fromkeys(filter(None, names), floor)
    return found


def floor_of(module: tuple[str, ...], known: dict[str, int]) -> int | None:
    """The floor of a module, as a tuple of its parts, by its most precise name in the picture."""
    names = (".".join(module[1:length]) for length in range(len(module), 1, -1))
    return next((known[name] for name in names if name in known), None)


def test_picture_of_the_layout_holds_every_part_and_no_import_goes_up():
    known, law = floors(MAPS[1]), load_architecture()
    assert {room.partition(".")[0] for room in law.ROOMS | {"cli"}} == {name.partition(".")[0] for name in known}
    upward = [
        f"{source.path} (floor {floor}) imports {'.'.join(module)} (floor {other})"
        for source in law.read(ROOT / "src")
        for module in law.imported(source)
        for floor, other in [(floor_of(source.dotted, known), floor_of(module, known))]
        if module[0] == "dit_hf" and floor is not None and other is not None and other > floor
    ]
    assert upward == []


def load_architecture() -> ModuleType:
    specification = importlib.util.spec_from_file_location("architecture", ROOT / "tests" / "test_architecture.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["architecture"] = module  # its dataclass looks its module up
    specification.loader.exec_module(module)
    return module


def test_tree_of_the_readme_names_every_part_of_the_package():
    tree = re.search(r"^src/dit_hf/\n(.*?)^examples/", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[1]
    lines = re.findall(r"^  (\S.*?)(?:   |$)", tree, re.MULTILINE)  # names, before the description
    named = {name for line in lines for name in line.split()}
    present = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "src" / "dit_hf").iterdir()
        if path.name not in ("__init__.py", "__pycache__", "py.typed")
    }
    assert named == present


def test_relative_links_lead_somewhere():
    broken = {str(page.relative_to(ROOT)): broken_links(page) for page in public_files(".md")}
    assert {page: links for page, links in broken.items() if links} == {}


def figures_without_caption(page: Path) -> list[str]:
    """The pictures of a page, on a line of their own, below which no line in italics says what they show."""
    pictures = re.finditer(r"^!\[[^\]]*\]\(([^)]+)\)\n\n?(.*)", page.read_text(encoding="utf-8") + "\n\n", re.MULTILINE)
    return [picture[1] for picture in pictures if not re.match(r"\*[^*]", picture[2])]


def test_every_figure_has_a_caption():
    pages = [path for path in public_files(".md") if "assets" not in path.parts]  # model cards have headings instead
    found = {str(page.relative_to(ROOT)): figures_without_caption(page) for page in pages}
    assert {page: figures for page, figures in found.items() if figures} == {}


def test_every_page_is_listed_in_the_index():
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= set(LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8")))


def test_list_for_assistants_names_every_page_and_leads_somewhere():
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} - {"docs/index.md"} <= set(LINK.findall(text))
    assert broken_links(ROOT / "llms.txt") == []
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert (
        set(re.findall(r"`(?:dit-hf )?([\w-]+)`", text.partition("The commands are")[2].partition(";")[0])) == commands
    )


def test_forms_of_issues_are_sound():
    """The fields of GitHub's issue forms: https://docs.github.com/communities (syntax for issue forms)."""
    forms = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github").rglob("*.yml")]
    forms = [form for form in forms if "contact_links" not in form]
    assert len(forms) == 2
    for form in forms:
        assert {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels"}
        for part in form["body"]:
            assert part["type"] in {"textarea", "input"}
            assert part["attributes"]["label"]


def test_page_of_installation_names_every_extra():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    (extras,) = re.findall(r"^EXTRAS = (\{.*?^\})", setup, re.MULTILINE | re.DOTALL)
    commands = re.findall(r'pip install "\.\[(\w+)\]"', (ROOT / "docs" / "install.md").read_text(encoding="utf-8"))
    assert set(commands) == set(ast.literal_eval(extras)) - {"dev"}  # which `make install` installs


def test_errors_that_say_what_to_install_name_packages_that_setup_declares():
    """A command such as `pip install 'dit-hf[lora]'` would not work in a checkout, and ".[lora]" nowhere else."""
    declared = set(re.findall(r'^ +"([\w-]+)[>=]', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE))
    declared |= set(re.findall(r'\["([\w-]+)>=', (ROOT / "setup.py").read_text(encoding="utf-8")))
    assert set(PACKAGES.values()) <= declared
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")}
    by_hand = {name for name, text in texts.items() if "pip install" in text}
    # the package itself, for code on the Hub that runs without it; and cards of exported pipelines
    assert by_hand == {"extras.py", "saved_code.py", "exported.py"}


def named_classes(text: str) -> set[str]:
    """Names of classes in calls and commands, written for the shipped model."""
    lists = re.findall(r"(?:class_labels=|\bpipe(?:line)?\(|nargs=2, default=)\[([^\]{]*)\]", text)
    quoted = {name for part in lists for name in re.findall(r'"([^"]*)"', part)}
    in_commands = (label.strip() for each in re.findall(r'--class-labels "([^"]*)"', text) for label in each.split(","))
    return quoted | {label for label in in_commands if not label.isdecimal()}


def test_classes_that_examples_name_are_those_of_the_shipped_model():
    index = json.loads((ROOT / "examples" / "assets" / "dit-emoji" / "model_index.json").read_text(encoding="utf-8"))
    known = {name.strip() for label in index["id2label"].values() for name in label.split(",")}
    pages = [
        ROOT / "README.md",
        ROOT / "src" / "dit_hf" / "cli" / "generate.py",
        ROOT / "examples" / "interpolate_dit.py",
    ]
    named = {page.name: named_classes(page.read_text(encoding="utf-8")) for page in [*pages, ROOT / "docs/sampling.md"]}
    assert all(named.values())
    assert {page: names - known for page, names in named.items() if names - known} == {}


def test_no_public_file_names_what_is_private():
    found = {str(path.relative_to(ROOT)): private_words(path) for path in public_files()}
    assert {path: words for path, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ("| a | [m.py](m.py) | `f`, `C`, `C.g`, `C.x`, `C.K`, `TABLE` |", []),
        ("| a | [m.py](m.py) | `f`, `h` |", ["m.py: h"]),
        ("| a | [m.py](m.py) | `C.f`, `g` |", ["m.py: C.f", "m.py: g"]),
    ],
)
def test_checker_of_symbols_finds_what_is_missing(tmp_path: Path, row: str, missing: list[str]):
    code = "TABLE: dict = {}\ndef f(): ...\nclass C:\n    K = 1\n    def g(self):\n        self.x = 1\n"
    (tmp_path / "m.py").write_text(code)
    (tmp_path / "map.md").write_text(row)
    assert missing_symbols(tmp_path / "map.md") == missing


def test_checker_of_links_finds_the_broken_one(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#top) [b](gone.md) [c](https://example.com/x) [d](#here)")
    assert broken_links(page) == ["gone.md"]


def test_checker_of_captions_finds_a_figure_without(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("![a](a.png)\n\n*A.*\n\n![b](b.png)\n\nText.\n\n![c](c.png)\n*C.*\n\n![d](d.png)")
    assert figures_without_caption(page) == ["b.png", "d.png"]


def test_checker_of_words_finds_a_private_path(tmp_path: Path):
    (tmp_path / "a.md").write_text("see /" + "work/main and files.pythonhosted" + ".org")
    assert private_words(tmp_path / "a.md") == [PRIVATE[0], REGISTRIES[1]]
    (tmp_path / "a.csv").write_text("path\n/" + "root/images\n")
    assert private_words(tmp_path / "a.csv") == [PRIVATE[1]]
    (tmp_path / "a.npz").write_bytes(b"\0\xff/" + b"root/images")
    assert private_words(tmp_path / "a.npz") == []


def test_pieces_of_a_photograph_are_squares_of_it(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("crop_photographs", ROOT / "docs" / "crop_photographs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    y, x = np.mgrid[:50, :80].astype(np.uint8)  # each pixel says where it is
    photograph = Image.fromarray(np.stack([x, y, 0 * x], axis=-1))
    module.crop(photograph, tmp_path / "cat", np.random.default_rng(0))
    pieces = [np.array(Image.open(path)) for path in (tmp_path / "cat").iterdir()]
    assert len(pieces) == 20
    for piece in pieces:
        side = len(piece)
        assert 30 <= side <= 50
        left, top, _ = piece[0, 0]
        np.testing.assert_array_equal(piece, np.array(photograph)[top : top + side, left : left + side])
        assert piece.shape == (side, side, 3)
    assert len({piece.tobytes() for piece in pieces}) == 20
