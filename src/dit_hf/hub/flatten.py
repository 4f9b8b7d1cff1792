"""Make one self-contained source file of a module and of everything that it imports from this package.

A saved pipeline carries its code, so that it loads without the package. transformers and diffusers fetch single files
of code, and find their imports by regular expressions that match docstrings too: only a file without any import of the
package is safe. Example: `modeling_dit.py` imports `configuration_dit.py`; the flat file holds the imports of both,
then the code of the configuration, then the code of the model.
"""

import ast
import builtins
import functools
import re
import symtable
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

PACKAGE = "dit_hf"
PACKAGE_IMPORT = re.compile(rf"^[ \t>#]*(?:from|import)[ \t]+(?:\.|{PACKAGE}\b).*", re.MULTILINE)
MAX_COLUMNS = 120


class External(NamedTuple):
    """A name that an import statement brings from another package."""

    module: str
    name: str | None  # `name` of `from module import name`; None for `import module`
    alias: str | None

    @property
    def bound(self) -> str:
        """The name that the importing file uses."""
        return self.alias or self.name or self.module

    @property
    def written(self) -> str:
        """The name in an import statement."""
        return f"{self.name or self.module} as {self.alias}" if self.alias else self.name or self.module

    @property
    def origin(self) -> str:
        """What the name stands for."""
        return f"{self.module}, {self.name}" if self.name else self.module


class Part(NamedTuple):
    """A file of the package, taken apart."""

    file: Path
    docstring: str  # without indentation
    dependencies: list[Path]  # files of the package that it imports
    externals: list[External]
    statements: list[ast.stmt]  # the rest
    body: str  # the text of the rest, comments included


@functools.cache
def flatten(file: Path) -> str:
    """Return the source of a module together with the modules that it imports by relative imports.

    Every relative import must stand at the top level of its file and have the form `from .module import names`,
    `from ..module import names` or `from .folder.module import names`, without `as` and without `*`.

    A process makes the source of a file once: code that somebody edits while a training runs is not what the training
    runs, so all that it saves carries the same code.

    Args:
        file: File of the module. The code of what it imports comes before its own.

    Raises:
        ValueError: If a relative import has another form, imports form a circle, a top-level name is defined by two
            parts or is one of Python's builtins, or the result still names an import of the package, be it in a
            docstring or a comment. The message names the file.
    """
    parts = _read_all(file)
    externals = _merge_names(parts)
    blocks = [f"# Made of {', '.join(part.file.name for part in parts)}.", _render_imports(externals)]
    for part in parts:
        comment = [f"--- {part.file.relative_to(file.parent).as_posix()} ---", *part.docstring.splitlines()]
        blocks += ["\n".join(f"# {line}".rstrip() for line in comment), part.body]
    source = "\n\n".join(block for block in blocks if block) + "\n"
    _check(source, parts)
    return source


def _read_all(file: Path) -> list[Part]:
    """Read a file and all that it imports of the package, dependencies first."""
    parts: dict[Path, Part] = {}
    unread = [file]
    while unread:
        path = unread.pop()
        parts[path] = _read(path)
        unread += [dependency for dependency in parts[path].dependencies if dependency not in parts]
    try:
        order = list(TopologicalSorter({path: parts[path].dependencies for path in sorted(parts)}).static_order())
    except CycleError as error:
        circle = " imports ".join(path.name for path in reversed(error.args[1]))
        raise ValueError(f"{file}: {circle}: move what both need to a third file") from error
    return [parts[path] for path in order]


def _read(file: Path) -> Part:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.split("\n")
    dependencies: list[Path] = []
    externals: list[External] = []
    statements: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            dependencies.append(_dependency(file, node))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            for alias in node.names:
                externals.append(External(module or alias.name, alias.name if module else None, alias.asname))
        elif node is not tree.body[0] or not ast.get_docstring(tree):
            statements.append(node)
            continue
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    body = re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip("\n")
    return Part(file, ast.get_docstring(tree) or "", dependencies, externals, statements, body)


def _dependency(file: Path, node: ast.ImportFrom) -> Path:
    folder = file.parents[node.level - 1]
    path = folder.joinpath(*(node.module or "").split(".")).with_suffix(".py")
    if not node.module or not path.is_file() or any(alias.asname or alias.name == "*" for alias in node.names):
        raise ValueError(f"{file}:{node.lineno}: {ast.unparse(node)}: write `from .module import names` of a file")
    return path


def _merge_names(parts: list[Part]) -> list[External]:
    """Check that every name of the flat file has one meaning, and return what it imports."""
    owners = dict.fromkeys(dir(builtins), "Python's builtins")
    externals: set[External] = set()
    for part in parts:
        definitions = symtable.symtable(part.body, str(part.file), "exec").get_symbols()
        meanings = [(symbol.get_name(), part.file.name) for symbol in definitions if symbol.is_assigned()]
        meanings += [(external.bound, external.origin) for external in part.externals]
        for name, owner in meanings:
            if owners.setdefault(name, owner) != owner:
                raise ValueError(f"{part.file}: {name} has another meaning in {owners[name]}: choose another name")
        externals.update(part.externals)
    return sorted(externals, key=lambda external: (external.module, external.name or "", external.alias or ""))


def _render_imports(externals: list[External]) -> str:
    """Write import statements, those of the standard library first."""
    statements: dict[bool, list[str]] = {True: [], False: []}
    for module in dict.fromkeys(external.module for external in externals):
        group = statements[module.split(".")[0] in sys.stdlib_module_names]
        of_module = [external for external in externals if external.module == module]
        group += [f"import {external.written}" for external in of_module if external.name is None]
        names = [external.written for external in of_module if external.name is not None]
        if names:
            line = f"from {module} import {', '.join(names)}"
            block = "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])
            group.append(line if len(line) <= MAX_COLUMNS else block)
    return "\n\n".join("\n".join(group) for group in statements.values() if group)


def _check(source: str, parts: list[Part]) -> None:
    """Refuse a flat file that names an import of the package, or that is not exactly the code of its parts."""
    if match := PACKAGE_IMPORT.search(source):
        files = ", ".join(part.file.name for part in parts)
        raise ValueError(f"one of {files} says {match[0].strip()!r}: readers of single files would follow this import")
    expected = [ast.dump(node) for part in parts for node in part.statements]
    found = [ast.dump(node) for node in ast.parse(source).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    assert found == expected, "each line of an import holds nothing else"
