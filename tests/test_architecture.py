"""The law of the tree: who may import whom, how large a file and a function may be, which names are not used.

The rules are the tables below; `violations(src, setup)` holds any tree against them by reading its syntax, without
importing it. CONTRIBUTING.md explains the directions.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "dit_hf"

GROUND = {
    "betas",
    "files",
    "image_folder",
    "images",
    "provenance",
    "vae",
}  # the ground floor: facts that several rooms share

ROOMS = GROUND | {
    "configuration_dit", "modeling_dit", "pipeline_dit", "caches", "diffusion", "data", "generation", "evaluation",
    "evaluation.run", "analysis", "conversion", "finetuning", "training", "training.run", "training.origin",
    "training.start", "training.batches", "training.finish", "cards",
    "hub", "study",
}  # fmt: skip

# Room -> rooms of dit_hf it may import. A file inside a room may have a row of its own. Nobody has cli in their row.
ALLOWED: dict[str, set[str]] = {
    **{room: set() for room in GROUND},  # each room may import the ground floor, beside its own row
    "configuration_dit": set(),
    "modeling_dit": {"configuration_dit"},
    "pipeline_dit": set(),
    "caches": set(),
    "diffusion": set(),
    "data": set(),
    "generation": {"evaluation"},
    "evaluation": {"generation"},
    "evaluation.run": ROOMS | {PACKAGE},
    "analysis": {"configuration_dit"},
    "conversion": {"configuration_dit", "modeling_dit"},
    "finetuning": {"configuration_dit", "modeling_dit", "pipeline_dit", "conversion"},
    "training": {"diffusion"},
    "training.origin": {"diffusion", "configuration_dit", "modeling_dit", "pipeline_dit", "conversion"},
    "training.start": {"diffusion", "configuration_dit", "modeling_dit", "finetuning"},
    "training.batches": {"data"},
    "training.finish": {"finetuning", "pipeline_dit", "cards", "hub"},
    "training.run": ROOMS | {PACKAGE},
    "cards": {"configuration_dit", "pipeline_dit", "analysis", "hub"},
    "hub": {"configuration_dit", "modeling_dit", "pipeline_dit", "conversion", "cards", "files"},
    "study": {
        "configuration_dit",
        "modeling_dit",
        "pipeline_dit",
        "diffusion",
        "data",
        "training",
        "evaluation",
        "analysis",
        PACKAGE,
    },
    "cli": ROOMS | {PACKAGE},
    PACKAGE: ROOMS,  # __init__.py: the public names
}

# Room -> third-party packages it may import; a room without a row may import whatever setup.py declares.
PACKAGES_ALLOWED: dict[str, set[str]] = {
    "configuration_dit": {"transformers"},
    "modeling_dit": {"torch", "transformers", "safetensors"},
    "diffusion": {"torch"},
    "data": {"torch", "numpy", "datasets", "PIL", "pyarrow", "fsspec", "diffusers", "huggingface_hub", "accelerate"},
    "evaluation": {"torch", "numpy", "PIL", "accelerate", "tqdm", "transformers"},  # transformers: DINOv2
}

# These modules are copied beside the weights, each with all that it imports of this package, as one file: see
# hub/flatten.py, which says what such a module may not do.
TRAVELLING = ("modeling_dit.py", "pipeline_dit.py")

# Module -> the distribution that setup.py must name, where the two differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "huggingface_hub": "huggingface-hub",
    "pyarrow": "datasets",
    "fsspec": "datasets",
}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80  # without its docstring
FORBIDDEN_FILES = {"utils", "helpers", "common"}
FORBIDDEN_FOLDERS = {"dit", "datasets", "transformers", "diffusers", "accelerate"}  # diffusers resolves names by folder


@dataclass
class Source:
    """One file of the package, parsed."""

    path: Path  # relative to the folder that holds the package
    text: str
    tree: ast.Module

    @property
    def dotted(self) -> tuple[str, ...]:
        parts = self.path.with_suffix("").parts
        return parts[:-1] if parts[-1] == "__init__" else parts


def read(src: Path) -> list[Source]:
    paths = sorted(path for path in (src / PACKAGE).rglob("*.py") if "__pycache__" not in path.parts)
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return [Source(path.relative_to(src), text, ast.parse(text)) for path, text in zip(paths, texts, strict=True)]


def room_of(dotted: tuple[str, ...]) -> str:
    """The most precise row of ALLOWED for a module: ("dit_hf", "training", "run") -> "training.run"."""
    inner = dotted[1:]
    rows = (".".join(inner[:length]) for length in range(len(inner), 0, -1))
    return next((row for row in rows if row in ALLOWED), inner[0] if inner else PACKAGE)


def imported(source: Source) -> Iterator[tuple[str, ...]]:
    """Every module named by an import statement at any depth, absolute, as a tuple of its parts."""
    anchor = source.path.parts[:-1]  # the package that relative imports start from
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = anchor[: len(anchor) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            # `from .training import run` may name a module: its parent's row is found when it does not.
            yield from ((*module, alias.name) for alias in node.names)


def wrong_directions(source: Source) -> Iterator[str]:
    room = room_of(source.dotted)
    if room not in ALLOWED:
        yield f"{source.path}: room {room!r} has no row in ALLOWED: decide what it may import"
        return
    for module in imported(source):
        if module[0] != PACKAGE:
            continue
        target = room_of(module)
        if target not in ALLOWED:  # `from dit_hf import DiTModel`: a name of the package, not a room
            target = PACKAGE
        if target.split(".")[0] != room.split(".")[0] and target not in ALLOWED[room] | GROUND:
            yield f"{source.path}: {room} may not import {target} ({'.'.join(module)})"


def undeclared_packages(source: Source, declared: set[str]) -> Iterator[str]:
    room = room_of(source.dotted)
    for name in sorted({module[0] for module in imported(source)} - {PACKAGE} - sys.stdlib_module_names):
        if DISTRIBUTIONS.get(name, name) not in declared:
            yield f"{source.path}: imports {name}, which setup.py does not declare"
        if name not in PACKAGES_ALLOWED.get(room, {name}):
            yield f"{source.path}: {room} may not import {name}"


def load_flatten() -> Callable[[Path], str]:
    """The function of hub/flatten.py, without the imports that come with the package."""
    spec = importlib.util.spec_from_file_location("flatten", ROOT / "src" / PACKAGE / "hub" / "flatten.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.flatten


def bound_travellers(package: Path) -> Iterator[str]:
    flatten = load_flatten()
    for name in TRAVELLING:
        try:
            if (package / name).exists():
                flatten(package / name)
        except ValueError as error:
            yield f"{name} cannot travel: {error}"


def too_long(source: Source) -> Iterator[str]:
    num_lines = len(source.text.splitlines())
    limit = 1050 if source.path.name in ("pipeline_dit.py", "modeling_dit.py") else MAX_FILE_LINES
    if num_lines > limit:
        yield f"{source.path}: {num_lines} lines, over {limit}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            length = node.end_lineno - node.lineno + 1 - docstring
            if length > MAX_FUNCTION_LINES:
                yield f"{source.path}:{node.lineno}: {node.name} has {length} lines, over {MAX_FUNCTION_LINES}"


def forbidden_names(source: Source) -> Iterator[str]:
    if source.path.stem in FORBIDDEN_FILES:
        yield f"{source.path}: a file is one idea, and {source.path.stem!r} is none"
    for folder in FORBIDDEN_FOLDERS.intersection(source.path.parts[:-1]):
        yield f"{source.path}: a folder named {folder!r} is taken for somebody else's"


def declared_distributions(setup: Path) -> set[str]:
    """The distributions in the literals REQUIRES and EXTRAS of a setup.py, lower case."""
    assigned = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(setup.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in {"REQUIRES", "EXTRAS"}
    }
    ranges = [*assigned["REQUIRES"], *(name for extra in assigned["EXTRAS"].values() for name in extra)]
    return {re.match(r"[\w-]+", name)[0].lower() for name in ranges}


# What runs the code of a file, or trusts one that nobody vouches for.
DANGEROUS_CALLS = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "os.system", "subprocess.Popen"}
DANGEROUS_ARGUMENTS = {("trust_remote_code", True), ("weights_only", False), ("allow_pickle", True), ("shell", True)}


def dangerous_calls(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        arguments = {(word.arg, getattr(word.value, "value", None)) for word in node.keywords}
        if name in DANGEROUS_CALLS or DANGEROUS_ARGUMENTS & arguments:
            yield f"{source.path}:{node.lineno}: {ast.unparse(node)} may run what a file says"
        if name == "torch.load" and ("weights_only", True) not in arguments:
            yield f"{source.path}:{node.lineno}: torch.load needs weights_only=True, written out"


def violations(src: Path, setup: Path) -> list[str]:
    declared = declared_distributions(setup)
    found = [*bound_travellers(src / PACKAGE)]
    for source in read(src):
        for rule in (wrong_directions, too_long, forbidden_names, dangerous_calls):
            found += rule(source)
        found += undeclared_packages(source, declared)
    return found


def test_tree_keeps_its_law():
    assert violations(ROOT / "src", ROOT / "setup.py") == []


def test_every_room_has_a_row_and_nobody_may_import_cli():
    assert set(ALLOWED) - {"cli", PACKAGE} == ROOMS
    assert not [room for room, allowed in ALLOWED.items() if "cli" in allowed]


# Row: file of a bad tree, its text, what the checker must say. GOOD_TREE below goes up to the same limits.
BAD_TREE = [
    ("diffusion/objectives.py", "from dit_hf.modeling_dit import DiTModel", "diffusion may not import modeling_dit"),
    ("diffusion/schedule.py", "from ..data import images", "diffusion may not import data"),
    ("diffusion/noise.py", "from .. import training", "diffusion may not import training"),
    ("data/stream.py", "def f():\n    import dit_hf.hub", "data may not import hub"),
    ("evaluation/metrics.py", "from dit_hf import DiTModel", "evaluation may not import dit_hf"),
    ("training/loop.py", "from dit_hf.pipeline_dit import DiTPipeline", "training may not import pipeline_dit"),
    ("hub/card.py", "from ..cli import app", "hub may not import cli"),
    ("training/run.py", "from dit_hf import cli", "training.run may not import cli"),
    ("kitchen/soup.py", "import math", "room 'kitchen' has no row in ALLOWED"),
    ("hub/push.py", "import boto3", "imports boto3, which setup.py does not declare"),
    ("diffusion/flow.py", "import numpy", "diffusion may not import numpy"),
    ("pipeline_dit.py", "def f():\n    from .sampling import guide", "pipeline_dit.py cannot travel"),
    ("modeling_dit.py", '"""\n>>> import dit_hf\n"""', "modeling_dit.py cannot travel"),
    ("modeling_dit.py", "# from dit_hf import DiTConfig", "modeling_dit.py cannot travel"),
    ("analysis/macs.py", "x = 1\n" * 451, "451 lines, over 450"),
    ("pipeline_dit.py", "x = 1\n" * 1051, "1051 lines, over 1050"),
    ("analysis/plots.py", "def f():\n" + "    x = 1\n" * 80, "f has 81 lines, over 80"),
    ("conversion/utils.py", "", "'utils' is none"),
    ("conversion/read.py", "import pickle\npickle.load(file)", "pickle.load(file) may run what a file says"),
    ("data/read.py", "eval(text)", "eval(text) may run what a file says"),
    ("hub/load.py", "load(name, trust_remote_code=True)", "trust_remote_code=True) may run what a file says"),
    ("training/read.py", "import torch\ntorch.load(path)", "torch.load needs weights_only=True"),
    ("training/reads.py", "import torch\ntorch.load(path, weights_only=False)", "may run what a file says"),
    ("data/datasets/images.py", "", "folder named 'datasets'"),
]

GOOD_TREE = {
    "__init__.py": "from .modeling_dit import DiTModel",
    "modeling_dit.py": "import torch\nfrom .configuration_dit import DiTConfig",
    "configuration_dit.py": "DiTConfig = None",
    "pipeline_dit.py": 'import importlib\nimportlib.import_module("dit_hf.hub")',
    "diffusion/objectives.py": "import torch\nfrom .schedule import Schedule\nfrom dit_hf.diffusion import schedule",
    "training/loop.py": "import accelerate\nfrom ..diffusion import HybridLoss\nfrom .ema import EMA",
    "training/run.py": "from dit_hf import DiTModel\nfrom ..data import images\nfrom .loop import train",
    "cards/pipeline.py": "import yaml\nfrom dit_hf.analysis import macs",
    "cli.py": "import typer\nimport dit_hf.hub",
    "analysis/macs.py": "x = 1\n" * 450,
    "analysis/plots.py": 'def f():\n    """One\n\n    two.\n    """\n' + "    x = 1\n" * 79,
}


def write_tree(src: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = src / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return src


@pytest.mark.parametrize(("name", "text", "complaint"), BAD_TREE, ids=[row[2] for row in BAD_TREE])
def test_checker_refuses_a_bad_file(tmp_path: Path, name: str, text: str, complaint: str):
    found = violations(write_tree(tmp_path, {name: text}), ROOT / "setup.py")
    assert any(complaint in line for line in found), found


def test_checker_accepts_a_good_tree(tmp_path: Path):
    assert violations(write_tree(tmp_path, GOOD_TREE), ROOT / "setup.py") == []
