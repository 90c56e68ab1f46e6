"""How long a function and a module may be, so that each can be read at once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for package in ("hooks", "surgery", "analyses") for path in (ROOT / package).rglob("*.py"))
FUNCTION, MODULE = 60, 400


def too_long(source: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    found = [f"{name} has {n} lines" for name, n in lengths.items() if n > FUNCTION]
    return found + (["the module is too long"] if len(source.splitlines()) > MODULE else [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_and_modules_can_be_read_at_once(path: Path) -> None:
    assert too_long(path.read_text(encoding="utf-8")) == []


def test_the_reader_sees_what_is_too_long() -> None:
    long = "def f():\n" + "    x = 1\n" * FUNCTION
    assert too_long(long) == ["f has 61 lines"] and too_long(long[: -len("    x = 1\n")]) == []
    assert too_long("x = 1\n" * (MODULE + 1)) == ["the module is too long"]
