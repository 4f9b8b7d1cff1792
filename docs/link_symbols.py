"""Link each symbol in the tables of docs/paper_to_code.md to the line that defines it; `make format` runs this file.

python docs/link_symbols.py
"""

import ast
import re
from pathlib import Path

PAGE = Path(__file__).parent / "paper_to_code.md"
ROW = re.compile(r"^(?P<before>\|.*\]\((?P<file>[^)]+\.py)\) \| )(?P<symbols>\[?`.*) \|$", re.MULTILINE)


def lines_of(text: str) -> dict[str, int]:
    """Return the line of each function, class and table of a module.

    Members of a class, and what its methods assign to `self`, are named "Class.member".
    """
    found: dict[str, int] = {}
    for node in ast.parse(text).body:
        found |= _named(node)
        if isinstance(node, ast.ClassDef):
            for member in _members(node):
                for name, line in _named(member).items():
                    found.setdefault(f"{node.name}.{name}", line)
    return found


def _members(node: ast.ClassDef) -> list[ast.stmt]:
    methods = [member for member in node.body if isinstance(member, ast.FunctionDef)]
    assigned = [each for method in methods for each in ast.walk(method) if isinstance(each, ast.Assign | ast.AnnAssign)]
    return [*node.body, *(each for each in assigned if "self." in ast.unparse(each).partition("=")[0])]


def _named(node: ast.stmt) -> dict[str, int]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name: node.lineno}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [getattr(target, "id", None) or getattr(target, "attr", None) for target in targets]
    return {name: node.lineno for name in names if name}


def with_links(page: str, folder: Path) -> str:
    """Return the text of a page whose rows link each symbol to its line.

    Raises:
        ValueError: If a file does not define a symbol that its row names.
    """

    def link(row: re.Match[str]) -> str:
        lines = lines_of((folder / row["file"]).read_text(encoding="utf-8"))
        symbols = re.findall(r"`([^`]+)`", row["symbols"])
        unknown = [symbol for symbol in symbols if symbol not in lines]
        if unknown:
            raise ValueError(f"{row['file']} does not define {', '.join(unknown)}: correct the row of {PAGE.name}")
        return row["before"] + ", ".join(f"[`{name}`]({row['file']}#L{lines[name]})" for name in symbols) + " |"

    return ROW.sub(link, page)


if __name__ == "__main__":
    PAGE.write_text(with_links(PAGE.read_text(encoding="utf-8"), PAGE.parent), encoding="utf-8")
