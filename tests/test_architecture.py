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
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "dit_hf"

# The ground floor: facts that several rooms share. Every room may import it.
GROUND = {
    "betas", "class_names", "distributed", "extras", "files", "flags", "image_folder", "images", "network", "places",
    "precision", "provenance", "redaction", "shipped", "synonyms", "vae", "weight_files",
}  # fmt: skip

MODEL = {"configuration_dit", "layers", "embeddings", "blocks", "pretrained"}  # parts of modeling_dit

ROOMS = GROUND | MODEL | {
    "modeling_dit", "pipeline_dit", "lora_pipeline", "image_pipelines", "saved_code", "sampling", "caches", "diffusion",
    "data", "extraction",
    "generation", "evaluation", "evaluation.sources", "evaluation.run", "analysis", "conversion", "finetuning",
    "training", "training.run", "training.origin", "training.settings", "training.start", "training.batches",
    "training.finish", "cards",
    "hub", "runtime", "study", "demo", "modular",
}  # fmt: skip

# Room -> rooms of dit_hf it may import. A file inside a room may have a row of its own. Nobody has cli in their row.
ALLOWED: dict[str, set[str]] = {
    **{room: set() for room in GROUND},  # each room may import the ground floor, beside its own row
    "configuration_dit": set(),
    "pretrained": {"configuration_dit"},
    "layers": {"configuration_dit"},
    "embeddings": {"configuration_dit", "layers"},
    "blocks": {"configuration_dit", "layers"},
    "modeling_dit": MODEL,
    "sampling": set(),
    "saved_code": {"hub"},
    # sampling and the ground floor travel with the pipelines; doors lead to the other rooms
    "pipeline_dit": {
        "sampling",
        "saved_code",
        "lora_pipeline",
        "modeling_dit",
        "conversion",
        "caches",
        "hub",
        "runtime",
    },
    "lora_pipeline": {"saved_code", "finetuning"},
    "image_pipelines": {"pipeline_dit", "sampling"},
    "modular": {"modeling_dit", "pipeline_dit", "sampling", "saved_code", "hub"},
    "caches": set(),
    "diffusion": set(),
    "data": set(),
    "generation": {"sampling"},
    "extraction": {"data", "cards", "hub"},
    "evaluation": set(),
    "evaluation.sources": {"data"},
    "evaluation.run": ROOMS | {PACKAGE},
    "analysis": {"configuration_dit", "layers", "blocks"},
    "conversion": {"configuration_dit", "modeling_dit", "cards", "sampling"},
    "finetuning": {"configuration_dit", "modeling_dit", "sampling", "conversion", "cards"},
    "training": {"diffusion"},
    "training.origin": {"diffusion", "configuration_dit", "modeling_dit", "pipeline_dit", "conversion"},
    "training.settings": {"diffusion", "configuration_dit"},
    "training.start": {"diffusion", "configuration_dit", "modeling_dit", "finetuning"},
    "training.batches": {"data"},
    "training.finish": {"finetuning", "pipeline_dit", "cards", "hub"},
    "training.run": ROOMS | {PACKAGE},
    "cards": {"configuration_dit", "analysis"},
    "hub": {"cards"},
    "runtime": {"configuration_dit", "embeddings", "modeling_dit", "cards", PACKAGE},
    "study": {
        "configuration_dit",
        "modeling_dit",
        "pipeline_dit",
        "diffusion",
        "data",
        "training",
        "training.settings",
        "evaluation",
        "evaluation.run",
        "analysis",
        PACKAGE,
    },
    "demo": {"pipeline_dit", "image_pipelines", "sampling", "conversion", "generation", "hub", PACKAGE},
    "cli": ROOMS | {PACKAGE},
    PACKAGE: ROOMS,  # __init__.py: the public names
}

# Room -> third-party packages it may import; a room without a row may import whatever setup.py declares.
PACKAGES_ALLOWED: dict[str, set[str]] = {
    "configuration_dit": {"transformers"},
    **dict.fromkeys(MODEL - {"configuration_dit"} | {"modeling_dit"}, {"torch", "transformers", "safetensors"}),
    "pretrained": {"torch", "transformers", "safetensors", "huggingface_hub"},
    "diffusion": {"torch"},
    "data": {"torch", "numpy", "datasets", "PIL", "pyarrow", "fsspec", "diffusers", "huggingface_hub", "accelerate"},
    "generation": {"torch", "numpy", "PIL", "accelerate", "tqdm"},
    "evaluation": {"torch", "numpy", "PIL", "accelerate", "tqdm", "transformers"},  # transformers: DINOv2
}

# These modules are copied beside the weights, each with all that it imports of this package, as one file: see
# hub/flatten.py, which says what such a module may not do.
TRAVELLING = ("modeling_dit.py", "image_pipelines.py")

# Module -> the distribution that setup.py must name, where the two differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "huggingface_hub": "huggingface-hub",
    "packaging": "transformers",
    "pyarrow": "datasets",
    "fsspec": "datasets",
    "starlette": "gradio",
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
    yield from doors(source)


DOOR = re.compile(rf"{PACKAGE}(\.\w+)+")


def doors(source: Source) -> Iterator[tuple[str, ...]]:
    """Every module that a literal names, to be imported when a function is called; names of loggers are none."""
    loggers = {
        argument
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger")
        for argument in node.args
    }
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in loggers:
            if DOOR.fullmatch(node.value):
                yield tuple(node.value.split("."))


def unreadable_doors(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        is_part = isinstance(node, ast.JoinedStr) and ast.unparse(node)[2:].startswith(f"{PACKAGE}.")
        is_call = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
        is_relative = is_call and str(getattr(node.args[0], "value", "")).startswith(".")
        if is_part or is_relative:
            yield f"{source.path}:{node.lineno}: {ast.unparse(node)}: write the module's full name as a literal"


def circles(sources: list[Source]) -> Iterator[str]:
    """Files that import each other, by statements or by doors."""
    files = {source.dotted: source for source in sources}

    def file_of(module: tuple[str, ...]) -> tuple[str, ...] | None:
        return next((module[:length] for length in range(len(module), 0, -1) if module[:length] in files), None)

    # every import of a part runs the package's own __init__, which says nothing of who needs whom
    arrows = {name: {file_of(module) for module in imported(files[name])} - {None, name, (PACKAGE,)} for name in files}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        yield " imports ".join(".".join(name) for name in reversed(error.args[1])) + ": a circle"


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
    if num_lines > (650 if source.path.name == "modeling_dit.py" else MAX_FILE_LINES):
        yield f"{source.path}: {num_lines} lines, over {MAX_FILE_LINES}"
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


# Words that stand for a sentence that only its author knows.
SHORTHAND = re.compile(
    r"\blikewise\b|unless given|\b(?:is|are|was|were) told\b|for want of|\bso often\b|\btold of\b|\btells of\b"
    r"|\bas said\b|\bwhat is (?:said|told)\b",
    re.IGNORECASE,
)
ENTRY = re.compile(r" {4}(?P<name>\*{0,2}\w[\w, .*]*): (?P<text>.+)")  # a line of Args, Raises or Attributes
CAPITAL = re.compile(r"[A-Z`\"'(\d]")


def docstring_entries(docstring: str) -> Iterator[tuple[str, str]]:
    """Name and text of each line under `Args:`, `Raises:` and `Attributes:` that begins an entry."""
    section = ""
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            section = line
        entry = ENTRY.match(line)
        if entry and section in ("Args:", "Raises:", "Attributes:"):
            yield entry["name"], entry["text"]


def unclear_prose(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        if match := SHORTHAND.search(line):
            yield f"{source.path}:{number}: {match[0]!r} is shorthand: write the sentence that it stands for"
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring, where = ast.get_docstring(node), f"{source.path}:{getattr(node, 'lineno', 1)}"
        if docstring is None:
            continue
        if not docstring.splitlines()[0].endswith((".", ":", '"')):
            yield f"{where}: the first line of a docstring ends with a period"
        for name, text in docstring_entries(docstring):
            if not CAPITAL.match(text):
                yield f"{where}: the entry of {name} begins with a capital: {text!r}"


def violations(src: Path, setup: Path) -> list[str]:
    declared = declared_distributions(setup)
    sources = read(src)
    found = [*bound_travellers(src / PACKAGE), *circles(sources)]
    for source in sources:
        for rule in (wrong_directions, unreadable_doors, too_long, forbidden_names, dangerous_calls):
            found += rule(source)
        found += undeclared_packages(source, declared)
        found += unclear_prose(source)
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
    ("image_pipelines.py", "def f():\n    from .sampling.guidance import guide", "image_pipelines.py cannot travel"),
    ("modeling_dit.py", '"""\n>>> import dit_hf\n"""', "modeling_dit.py cannot travel"),
    ("modeling_dit.py", "# from dit_hf import DiTConfig", "modeling_dit.py cannot travel"),
    ("analysis/macs.py", "x = 1\n" * 451, "451 lines, over 450"),
    ("pipeline_dit.py", "x = 1\n" * 451, "451 lines, over 450"),
    ("sampling/latents.py", "from ..pipeline_dit import DiTPipeline", "sampling may not import pipeline_dit"),
    ("sampling/lora.py", 'importlib.import_module("dit_hf.finetuning")', "sampling may not import finetuning"),
    ("pipeline_dit.py", 'import_for("generate", "dit_hf.generation")', "pipeline_dit may not import generation"),
    ("hub/load.py", 'importlib.import_module(f"dit_hf.{name}")', "write the module's full name as a literal"),
    ("hub/loads.py", 'import_module(".push", __name__)', "write the module's full name as a literal"),
    ("analysis/plots.py", "def f():\n" + "    x = 1\n" * 80, "f has 81 lines, over 80"),
    ("conversion/utils.py", "", "'utils' is none"),
    ("conversion/read.py", "import pickle\npickle.load(file)", "pickle.load(file) may run what a file says"),
    ("data/read.py", "eval(text)", "eval(text) may run what a file says"),
    ("hub/load.py", "load(name, trust_remote_code=True)", "trust_remote_code=True) may run what a file says"),
    ("training/read.py", "import torch\ntorch.load(path)", "torch.load needs weights_only=True"),
    ("training/reads.py", "import torch\ntorch.load(path, weights_only=False)", "may run what a file says"),
    ("data/datasets/images.py", "", "folder named 'datasets'"),
    ("cli/help.py", 'HELP = "Seed, unless given by the recipe."', "cli/help.py:1: 'unless given' is shorthand"),
    ("cli/said.py", "# Likewise for the other options.", "cli/said.py:1: 'Likewise' is shorthand"),
    ("cli/first.py", '"""The commands, and"""', "cli/first.py:1: the first line of a docstring ends with a period"),
    ("cli/args.py", 'def f():\n    """One.\n\n    Args:\n        a: of b.\n    """', "the entry of a begins with a"),
    (
        "cli/raises.py",
        'class A:\n    """One.\n\n    Raises:\n        ValueError: if so.\n    """',
        "entry of ValueError",
    ),
]

GOOD_TREE = {
    "__init__.py": "from .modeling_dit import DiTModel",
    "modeling_dit.py": "import torch\nfrom .configuration_dit import DiTConfig",
    "configuration_dit.py": "DiTConfig = None",
    "pipeline_dit.py": 'from .saved_code import import_for\nimport_for("push_to_hub", "dit_hf.hub.push")',
    "saved_code.py": "import importlib\ndef import_for(purpose, module):\n    return importlib.import_module(module)",
    "hub/push.py": "from .errors import HubError",
    "hub/errors.py": "HubError = OSError",
    "diffusion/objectives.py": "import torch\nfrom .schedule import Schedule\nfrom dit_hf.diffusion import schedule",
    "training/loop.py": "import accelerate\nfrom ..diffusion import HybridLoss\nfrom .ema import EMA",
    "training/run.py": "from dit_hf import DiTModel\nfrom ..data import images\nfrom .loop import train",
    "cards/pipeline.py": "import yaml\nfrom dit_hf.analysis import macs",
    "cli.py": "import typer\nimport dit_hf.hub",
    "cli/help.py": '"""One.\n\nArgs:\n    a: A of\n        b: c.\n\nNote:\n    d: e.\n"""',
    "analysis/macs.py": "x = 1\n" * 450,
    "analysis/plots.py": 'def f():\n    """One.\n\n    two.\n    """\n' + "    x = 1\n" * 79,
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


def test_checker_refuses_a_circle_through_a_door(tmp_path: Path):
    door = 'import_for("push_to_hub", "dit_hf.hub.push")'
    files = {"pipeline_dit.py": door, "hub/push.py": "from .card import make_card"}
    tree = write_tree(tmp_path, {**files, "hub/card.py": "from ..pipeline_dit import DiTPipeline"})
    [complaint] = [line for line in violations(tree, ROOT / "setup.py") if "circle" in line]
    assert all(name in complaint for name in ("dit_hf.pipeline_dit", "dit_hf.hub.push", "dit_hf.hub.card"))
    (tree / PACKAGE / "hub" / "card.py").write_text("make_card = None\n", encoding="utf-8")
    assert violations(tree, ROOT / "setup.py") == []


def test_checker_accepts_a_good_tree(tmp_path: Path):
    assert violations(write_tree(tmp_path, GOOD_TREE), ROOT / "setup.py") == []
