"""Flattening against what Python itself makes of the same files, and against the readers that it is for."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from diffusers.utils import dynamic_modules_utils as diffusers_reader
from transformers import dynamic_module_utils as transformers_reader

import dit_hf
from dit_hf.hub.flatten import flatten

PACKAGE = Path(dit_hf.__file__).parent
PARTS = {
    "__init__.py": "",
    "top.py": '"""The module\nthat travels."""\n\nimport math\nfrom math import floor\n'
    "from .middle import middle\nfrom .room.low import LOW, low\n\n# why\nTOP = 1\n\n\n"
    "def top():\n    return TOP, middle(), low(LOW), floor(math.pi), __doc__\n",
    "middle.py": "import os.path\n\nfrom .room.low import (\n    low,  # used twice\n)\n\nMIDDLE = 2\n\n\n"
    "def middle():\n    return low(MIDDLE), os.path.sep\n",
    "room/__init__.py": "",
    "room/low.py": '"""Low."""\nfrom math import sqrt as root\nfrom ..ground import GROUND\n\nLOW = 16\n\n\n'
    "def low(value):\n    # fmt: off\n    return   root(value) + GROUND\n",
    "ground.py": "GROUND = 0.5\n",
}


def write(folder: Path, **changes: str) -> Path:
    parts = PARTS | {name.replace("__", "/") + ".py": text for name, text in changes.items()}
    for name, text in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "top.py"


def test_flat_module_does_what_the_package_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = flatten(write(tmp_path / "kitchen"))
    (tmp_path / "flat_kitchen.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    results = [importlib.import_module(name).top() for name in ("kitchen.top", "flat_kitchen")]
    assert results[0][:-1] == results[1][:-1] == (1, (2**0.5 + 0.5, "/"), 4.5, 3)
    bodies = ["# why\nTOP = 1", "    # fmt: off\n    return   root(value) + GROUND"]
    assert all(body in source for body in bodies)  # comments and layout stay


def test_flat_module_has_each_part_once_after_what_it_imports(tmp_path: Path):
    source = flatten(write(tmp_path))
    assert re.findall(r"^# --- (\S+) ---", source, re.M) == ["ground.py", "room/low.py", "middle.py", "top.py"]
    head = source.split("# ---")[0].splitlines()
    assert [line for line in head if line and not line.startswith("#")] == [
        "import math",
        "from math import floor, sqrt as root",
        "import os.path",
    ]
    assert "# --- top.py ---\n# The module\n# that travels.\n" in source


REFUSED = {
    "a module renamed": ({"top": "from .middle import middle as other\n"}, "top.py:1.*write `from .module import"),
    "all names": ({"top": "from .middle import *\n"}, "top.py:1"),
    "a module by its name": ({"top": "from . import middle\n"}, "top.py:1"),
    "a folder": ({"top": "from .room import low\n"}, "top.py:1"),
    "an import within a function": (
        {"top": "def f():\n    from .middle import middle\n"},
        "from .middle import middle",
    ),
    "an import for types only": (
        {"top": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .middle import middle\n"},
        "from .middle import middle",
    ),
    "an import by the package's name": ({"top": "from dit_hf.middle import middle\n"}, "dit_hf"),
    "an import in a docstring": (
        {"ground": 'def f():\n    """F.\n\n    >>> from dit_hf import DiTModel\n    """\n'},
        "dit_hf",
    ),
    "an import in a comment": ({"ground": "GROUND = 1\n# from .middle import middle\n"}, "middle"),
    "an import in a module's docstring": ({"ground": '"""G.\n\nimport dit_hf\n"""\nGROUND = 1\n'}, "import dit_hf"),
    "a circle": ({"ground": "from .middle import MIDDLE\nGROUND = 1\n"}, "move what both need to a third file"),
    "a name defined twice": ({"ground": "GROUND = 1\n\n\ndef middle():\n    pass\n"}, "middle has another meaning in"),
    "a name imported and defined": ({"ground": "GROUND = 1\nfloor = 2\n"}, "floor has another meaning"),
    "a name imported twice": ({"ground": "from numpy import floor\nGROUND = 1\n"}, "floor has another meaning"),
    "a name of Python's": ({"ground": "GROUND = 1\n\n\ndef round(x):\n    pass\n"}, "round has another meaning"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_one_file_cannot_say_is_refused(changes: dict[str, str], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        flatten(write(tmp_path, **changes))


@pytest.mark.parametrize("name", ["modeling_dit.py", "image_pipelines.py"])
def test_readers_of_single_files_find_other_packages_only(name: str, tmp_path: Path):
    file = tmp_path / name
    file.write_text(flatten(PACKAGE / name))
    assert transformers_reader.get_relative_imports(file) == []
    assert diffusers_reader.get_relative_imports(file) == []
    installed = {"torch", "transformers", "diffusers", "safetensors", "numpy", "PIL", "huggingface_hub"}
    assert set(transformers_reader.get_imports(file)) - sys.stdlib_module_names <= installed
