"""The line between `hooks`, which knows how models are made, and everything above it, which asks `hooks`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Whoever trains a model needs its parameters; what they are called and how they lie in it, `hooks.weights` says.
TRAINS = {"analyses/toys", "analyses/eigenpruning/_finetuning.py"}
OF_TRAINING = {"parameters", "train", "eval", "zero_grad", "named_parameters"}
# Running a model is anybody's.
ANYBODYS = {"run_with_cache"}
MODELS = {"model", "copy", "trained"}


def is_model(node: ast.expr) -> bool:
    """Whether the expression is a model, to go by its name: `model`, `question.model`, `self.setup.model` …"""
    match node:
        case ast.Name(id=name):
            return name in MODELS
        case ast.Attribute(attr="model"):
            return True
    return False


def readings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every attribute that is read from a model, with its line."""
    modules = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name) if is_model(value) and ast.unparse(value) not in modules:
                yield node.lineno, name
            case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[value, name, *_]) if is_model(
                value
            ):
                yield node.lineno, ast.unparse(name)
            case ast.Attribute(attr="_parameters" | "original_component" | "_modules" as name):
                yield node.lineno, name


def crossings(path: Path) -> list[str]:
    relative = path.relative_to(ROOT).as_posix()
    allowed = ANYBODYS | (OF_TRAINING if any(relative.startswith(place) for place in TRAINS) else set())
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [f"{relative}:{line} reads {name}" for line, name in readings(tree) if name not in allowed]


FILES = sorted(path for package in ("surgery", "analyses") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_hooks_reads_what_a_model_is_made_of(path: Path) -> None:
    assert crossings(path) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("model.cfg.d_model", ["cfg"]),
        ("next(self.model.parameters())", ["parameters"]),
        ("getattr(question.model, 'tokenizer', None)", ["'tokenizer'"]),
        ("module._parameters['weight']", ["_parameters"]),
        ("from x import model\nmodel.train", []),
        ("model(tokens)", []),
    ],
)
def test_the_reader_sees_what_is_read(code: str, found: list[str]) -> None:
    assert [name for _, name in readings(ast.parse(code))] == found
