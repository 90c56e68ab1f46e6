"""What every public name owes its reader, and what no module of ours may contain, read from the source."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for package in ("hooks", "surgery", "analyses") for path in (ROOT / package).rglob("*.py"))

Classes = dict[str, ast.ClassDef]
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

NUMBERED = re.compile(
    r"\b(?i:sec\.|sections?|figures?|fig\.|eqs?\.|equations?|tables?|algorithms?|app\.|appendix|theorem) +(\d|[A-D]\b)"
)
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
EFFECTS = {
    "print": "prints",
    "torch.manual_seed": "sets a global seed",
    "torch.random.manual_seed": "sets a global seed",
    "torch.cuda.manual_seed": "sets a global seed",
    "torch.cuda.manual_seed_all": "sets a global seed",
    "torch.set_default_dtype": "changes the default dtype",
    "torch.set_default_device": "changes the default device",
    "torch.set_grad_enabled": "changes the grad mode",
    "torch.set_num_threads": "changes the number of threads",
    "random.seed": "sets a global seed",
    "np.random.seed": "sets a global seed",
    "numpy.random.seed": "sets a global seed",
}


def undocumented(node: Documented, name: str, classes: Classes) -> Iterator[str]:
    """Public classes, functions and methods below `node` without a docstring, and `node` itself."""
    if ast.get_docstring(node) is None:
        yield name
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    inherited = documented_above(node, classes) if isinstance(node, ast.ClassDef) else set()
    for child in node.body:
        if not isinstance(child, Documented) or child.name.startswith("_") or is_overload(child):
            continue
        if child.name not in inherited:
            yield from undocumented(child, f"{name}.{child.name}", classes)


def classes_in(trees: list[ast.Module]) -> Classes:
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def documented_above(node: ast.ClassDef, classes: Classes) -> set[str]:
    """Names of methods that a base class of ours documents: what overrides them need not say it again."""
    names = set()
    for base in (classes[ast.unparse(b)] for b in node.bases if ast.unparse(b) in classes):
        names |= {f.name for f in base.body if isinstance(f, ast.FunctionDef) and ast.get_docstring(f)}
        names |= documented_above(base, classes)
    return names


def is_overload(node: ast.AST) -> bool:
    return any(ast.unparse(decorator).endswith("overload") for decorator in getattr(node, "decorator_list", ()))


def effects(tree: ast.Module) -> Iterator[str]:
    """Calls whose effect outlives them and that are the user's to make."""
    for node in ast.walk(tree):
        match node:
            case ast.With(items=items):
                # `with torch.set_grad_enabled(...)` undoes itself.
                for item in items:
                    if isinstance(item.context_expr, ast.Call):
                        item.context_expr.func = ast.Name("scoped")
            case ast.Call(func=ast.Attribute(attr="show"), args=[]):
                yield f"line {node.lineno} shows a figure"
            case ast.Call(func=function) if ast.unparse(function) in EFFECTS:
                yield f"line {node.lineno} {EFFECTS[ast.unparse(function)]}"


@cache
def all_classes() -> Classes:
    return classes_in([tree_of(file) for file in FILES])


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=place)
def test_public_names_have_a_docstring(path: Path) -> None:
    assert list(undocumented(tree_of(path), place(path), all_classes())) == []


@pytest.mark.parametrize("path", FILES, ids=place)
def test_nothing_is_left_unfinished(path: Path) -> None:
    assert UNFINISHED.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=place)
def test_the_library_neither_prints_nor_seeds_nor_shows(path: Path) -> None:
    assert list(effects(tree_of(path))) == []


@pytest.mark.parametrize("path", FILES, ids=place)
def test_no_paper_is_cited_by_a_number_that_nobody_looked_up(path: Path) -> None:
    assert [line for line in path.read_text(encoding="utf-8").splitlines() if NUMBERED.search(line)] == []


def test_the_readers_see_what_they_look_for() -> None:
    assert all(map(NUMBERED.search, ("section 3", "sec. 3.3", "figures 2 and 3", "appendix D", "(app. A)")))
    assert not any(map(NUMBERED.search, ("a table of values", "in figure.py", "the section", "table(2)")))
    source = '''
"""A module."""
from typing import overload
class A:
    def f(self): ...
    def _g(self): ...
    def __len__(self): ...
    class B:
        """An inner class."""
        async def h(self): ...
class C(A.B):
    """Has a base that is not found by its name alone."""
    def f(self): ...
class D(C):
    """Adds a method."""
    def g(self):
        """Documented."""
class E(D):
    """Overrides it."""
    def g(self): ...
@overload
def i(x: int): ...
def i(x):
    """Documented."""
    def inner(): ...
'''
    tree = ast.parse(source)
    expected = ["m.A", "m.A.f", "m.A.B.h", "m.C.f"]
    assert list(undocumented(tree, "m", classes_in([tree]))) == expected
    assert list(undocumented(ast.parse("x = 1"), "m", {})) == ["m"]
    assert UNFINISHED.findall("# TODO\nraise NotImplementedError") == ["TODO", "NotImplementedError"]
    calls = [
        "print(1)",
        "torch.manual_seed(0)",
        "generator.manual_seed(0)",
        "figure.show()",
        "slot.show(weight)",
        "with torch.set_grad_enabled(True): pass",
    ]
    expected = ["line 1 prints", "line 2 sets a global seed", "line 4 shows a figure"]
    assert list(effects(ast.parse("\n".join(calls)))) == expected
