"""The site of the documents: `make docs` builds it with Sphinx, from the pages of docs/ and the docstrings.

The source folder is the whole repository, so that links between pages, code and pictures work as they do on GitHub.
Two things are made while building: the navigation, from the lists of docs/index.md, and the API reference.
"""

import importlib
import inspect
import logging
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import typer
from typer.cli import get_docs_for_click

import dit_hf
from dit_hf import cli

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"  # written at each build; git ignores it

# Modules that have no `__all__` and are meant for users: their public functions, classes and tables are documented.
# Every module that has an `__all__` is found by itself.
MODULES_FOR_USERS = (
    "dit_hf.caches",
    "dit_hf.hub.errors",
    "dit_hf.hub.load",
    "dit_hf.hub.push",
    "dit_hf.hub.verify",
    "dit_hf.sampling.class_names",
    "dit_hf.sampling.guidance",
    "dit_hf.sampling.schedulers",
    "dit_hf.training.ema",
    "dit_hf.training.loop",
    "dit_hf.training.run",
    "dit_hf.training.techniques.technique",
)

project = "dit-hf"
author = "the authors of dit-hf"
release = version = dit_hf.__version__
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
include_patterns = ["*.md", "docs/*.md", "docs/reference/*.md", "examples/assets/emoji/LICENSE.md", "runs/**/README.md"]
exclude_patterns = ["AGENTS.md", ".*", "build", "demo", "dist", "out", "src", "tests"]
myst_heading_anchors = 4
default_role = "py:obj"  # docstrings write `name`, which links to the name if it has an entry
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
suppress_warnings = ["ref.python"]  # a name such as `evaluate` may mean a function and a module
html_theme = "furo"
html_title = f"dit-hf {version}"
html_copy_source = False


def public_names() -> dict[str, list[str]]:
    """Return the public names of each module that has an `__all__`, or that MODULES_FOR_USERS lists.

    A name that a package and a module below it make public belongs to the package alone.
    """
    found: dict[str, list[str]] = {}
    for each in [dit_hf.__name__, *(info.name for info in pkgutil.walk_packages(dit_hf.__path__, "dit_hf."))]:
        module = importlib.import_module(each)
        if each in MODULES_FOR_USERS:
            found[each] = [name for name in vars(module) if _is_defined_in(module, name)]
        elif hasattr(module, "__all__") and each != "dit_hf.cli":
            found[each] = [name for name in module.__all__ if not _is_public_above(each, name)]
    return {each: names for each, names in sorted(found.items()) if names}


def _is_public_above(module: str, name: str) -> bool:
    """Whether a package that holds a module makes the same object public by the same name."""
    value = getattr(importlib.import_module(module), name)
    above = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
    packages = (importlib.import_module(each) for each in above)
    return any(name in getattr(each, "__all__", ()) and getattr(each, name) is value for each in packages)


def _is_defined_in(module: ModuleType, name: str) -> bool:
    """Whether a public name of a module was made there and not imported: for data, whether the text assigns it."""
    value = getattr(module, name)
    if name.startswith("_") or isinstance(value, ModuleType | logging.Logger):
        return False
    if inspect.isclass(value) or inspect.isfunction(value):
        return value.__module__ == module.__name__
    return re.search(rf"^{name}\b.*=", inspect.getsource(module), re.MULTILINE) is not None


def write_reference(app: object = None) -> None:
    """Write a page for each public module, and a page that lists them."""
    modules = public_names()
    pages = {module: _page(module, names) for module, names in modules.items()}
    lines = [f"- [{module}]({module}.md): {_first_line(module)}" for module in modules]
    lines.append("- [dit-hf](commands.md): the commands, with all options")
    pages["commands"] = _commands()
    tree = "```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"
    pages["index"] = "\n".join(["# API reference\n", *lines, "", tree])
    REFERENCE.mkdir(exist_ok=True)
    for old in {path.stem for path in REFERENCE.iterdir()} - pages.keys():
        (REFERENCE / f"{old}.md").unlink()
    for name, text in pages.items():
        path = REFERENCE / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # Sphinx reads changed pages only
            path.write_text(text, encoding="utf-8")


def _first_line(module: str) -> str:
    return (importlib.import_module(module).__doc__ or "").partition("\n")[0]


def _commands() -> str:
    """Return the help of each command as Markdown."""
    command = typer.main.get_command(cli.app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="dit-hf").replace("# `dit-hf`", "# dit-hf")


def _page(module: str, names: list[str]) -> str:
    entries = [_entry(module, name) for name in names]
    return f"# {module}\n\n{_first_line(module)}\n\n```{{eval-rst}}\n" + "\n".join(entries) + "\n```\n"


def _entry(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        return f".. autoclass:: {module}.{name}\n   :members:\n   :special-members: __call__\n   :show-inheritance:\n"
    if callable(value):
        return f".. autofunction:: {module}.{name}\n"
    keys = ", ".join(f"``{key}``" for key in value) if isinstance(value, dict | list | tuple) else f"``{value}``"
    return (
        f".. py:data:: {module}.{name}\n\n   {'Table with the keys' if isinstance(value, dict) else 'Value:'} {keys}\n"
    )


def add_navigation(app: object, name: str, source: list[str]) -> None:
    """Make the navigation of the lists in docs/index.md: a section becomes a caption, a link to a page an entry."""
    if name != root_doc:
        return
    sections = re.findall(r"^(\w[^\n]*):\n\n((?:- .*\n)+)", source[0], re.MULTILINE)
    entries = [(title, re.findall(r"^- \[.*?\]\(([\w./]+)\.md\)", text, re.MULTILINE)) for title, text in sections]
    for title, pages in [*entries, ("Look up", ["reference/index"])]:
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```\n"


def open_at_the_index(app, error) -> None:
    """Let the folder of the site open at docs/index.html."""
    if error is None and app.builder.name == "html":
        page = '<!doctype html><title>dit-hf</title><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app) -> None:
    """Connect the functions above with Sphinx."""
    app.connect("builder-inited", write_reference)
    app.connect("source-read", add_navigation)
    app.connect("build-finished", open_at_the_index)
