"""The arrows between packages, read from the source, and what an import must not do."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {"hooks": set(), "surgery": {"hooks"}, "analyses": {"hooks", "surgery"}}


def name_of(path: Path, root: Path) -> str:
    """`surgery.spec` for `surgery/spec.py`, `surgery` for `surgery/__init__.py`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: str, root: Path = ROOT) -> dict[str, Path]:
    return {name_of(path, root): path for path in sorted((root / package).rglob("*.py"))}


def imported_names(path: Path, module: str) -> Iterator[str]:
    """Every dotted name the file imports, at any depth of the code; `from a import b` gives `a.b`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=origin, names=names, level=level):
                above = package.split(".")[: len(package.split(".")) + 1 - level] if level else []
                base = ".".join([*above, *([origin] if origin else [])])
                yield from (f"{base}.{alias.name}" for alias in names)


def wrong_arrows(root: Path) -> list[str]:
    ours = set(MAY_IMPORT)
    return [
        f"{module} imports {name}"
        for package, allowed in MAY_IMPORT.items()
        for module, path in sources(package, root).items()
        for name in imported_names(path, module)
        if name.split(".")[0] in ours - allowed - {package}
    ]


def cycle(package: str, root: Path) -> list[str]:
    """Modules of the package that import each other in a ring, lazily or not; empty if there is none."""
    paths = sources(package, root)

    def module_behind(name: str) -> str:
        return name if name in paths else name.rpartition(".")[0]

    graph = {
        module: {module_behind(name) for name in imported_names(path, module)} & set(paths) - {module}
        for module, path in paths.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def declared(path: Path) -> set[str]:
    """The names in a module's `__all__`, and those that it hands on with `import name as name`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                names |= set(ast.literal_eval(value))
            case ast.ImportFrom(names=aliases):
                names |= {alias.name for alias in aliases if alias.asname == alias.name}
    return names


def undeclared(root: Path) -> list[str]:
    """Names that one of our packages imports from another which does not declare them."""
    paths = {module: path for package in MAY_IMPORT for module, path in sources(package, root).items()}
    names = {module: declared(path) for module, path in paths.items()}
    found = []
    for module, path in paths.items():
        for name in imported_names(path, module):
            package, owner, last = name.split(".")[0], name.rpartition(".")[0], name.rpartition(".")[2]
            if package not in MAY_IMPORT or package == module.split(".")[0]:
                continue
            hidden = any(part.startswith("_") for part in name.split("."))
            if hidden or (name not in paths and last not in names.get(owner, set())):
                found.append(f"{module} imports {name}")
    return found


def third_party(root: Path) -> set[str]:
    files = {module: path for package in MAY_IMPORT for module, path in sources(package, root).items()}
    tops = {name.split(".")[0] for module, path in files.items() for name in imported_names(path, module)}
    return tops - set(MAY_IMPORT) - set(sys.stdlib_module_names)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_no_arrow_points_the_wrong_way() -> None:
    assert all(sources(package) for package in MAY_IMPORT)
    assert wrong_arrows(ROOT) == []


def test_a_package_imports_only_what_another_declares() -> None:
    assert undeclared(ROOT) == []


def test_the_small_faces_are_small() -> None:
    import hooks
    import surgery

    assert len(hooks.__all__) <= 12
    assert len(surgery.__all__) <= 25
    assert dir(surgery) == sorted(surgery.__all__)
    for name in ("HaarBasis", "RandomizedSVD", "RandomComponents", "RandomBasis", "StaleDecompositionError", "forget"):
        assert hasattr(surgery, name)


FACES = (
    "surgery", "hooks", "analyses.attribution", "analyses.controls", "analyses.patching", "analyses.laser",
    "analyses.eigenpruning", "analyses.truncation", "analyses.recall", "analyses.arithmetic",
    "analyses.associative_memory", "analyses.tasks", "analyses.scoring", "analyses.metrics", "analyses.plots",
    "analyses.prompts", "analyses.papers", "analyses.engines",
)  # fmt: skip


def test_what_users_need_is_at_most_161_names() -> None:
    faces = {name: importlib.import_module(name).__all__ for name in FACES}
    assert sum(map(len, faces.values())) <= 161
    for module, names in faces.items():
        assert all(hasattr(importlib.import_module(module), name) for name in names)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_modules_import_each_other_in_a_ring(package: str) -> None:
    assert cycle(package, ROOT) == []


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [project["optional-dependencies"][extra] for extra in ("png",)]
    declared = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in sum(optional, project["dependencies"])}
    assert third_party(ROOT) - declared == set()


def test_the_reader_sees_wrong_arrows(tmp_path: Path) -> None:
    files = {
        "hooks/__init__.py": "",
        "hooks/sites.py": "def f():\n    import surgery.spec\n",
        "surgery/__init__.py": "from surgery.spec import a\n",
        "surgery/spec.py": "import numpy\nfrom hooks import sites\nif True:\n    from analyses import laser\n",
        "analyses/laser/__init__.py": "from surgery import spec\nimport hooks\n",
    }
    root = write(tmp_path, files)
    assert wrong_arrows(root) == ["hooks.sites imports surgery.spec", "surgery.spec imports analyses.laser"]
    assert third_party(root) == {"numpy"}


def test_the_reader_sees_what_is_not_declared(tmp_path: Path) -> None:
    files = {
        "hooks/__init__.py": "from hooks._inner import x as x\n__all__ = ['a']",
        "hooks/sites.py": "__all__ = ['Site']",
        "hooks/_inner.py": "__all__ = ['x']",
        "surgery/__init__.py": "from hooks import a, b, sites, x\nfrom hooks.sites import Site, Matrix",
        "surgery/spec.py": "from hooks._inner import x\nfrom surgery import y",
    }
    assert undeclared(write(tmp_path, files)) == [
        "surgery imports hooks.b",
        "surgery imports hooks.sites.Matrix",
        "surgery.spec imports hooks._inner.x",
    ]


@pytest.mark.parametrize(
    ("files", "ring"),
    [
        ({"__init__.py": "from . import a", "a.py": "from surgery.b import x", "b.py": "import torch"}, set()),
        ({"__init__.py": "", "a.py": "from surgery.b import x", "b.py": "def f():\n  from . import a"}, {"a", "b"}),
        ({"__init__.py": "from .a import x", "a.py": "from surgery import y"}, {"", "a"}),
        ({"a.py": "from .sub.b import x", "sub/b.py": "from ..a import y"}, {"a", "sub.b"}),
    ],
)
def test_the_reader_sees_rings(tmp_path: Path, files: dict[str, str], ring: set[str]) -> None:
    root = write(tmp_path, {f"surgery/{name}": text for name, text in files.items()})
    assert set(cycle("surgery", root)) == {f"surgery.{name}".rstrip(".") for name in ring}


STATE = """
import os, random, sys, warnings
import numpy, torch

def state():
    return {
        "random": random.getstate(),
        "numpy's random state": str(numpy.random.get_state()),
        "torch's random state": torch.get_rng_state().tolist(),
        "torch's initial seed": torch.initial_seed(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
    }

before = state()
"""
DIFFERENCE = """
after = state()
assert before == after, [name for name in before if before[name] != after[name]]
assert "transformer_lens" not in sys.modules, "transformer_lens was imported: seconds that not every user needs"
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STATE + code + DIFFERENCE]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_an_import_does_nothing(package: str) -> None:
    result = run(f"import {', '.join(sources(package))}")
    assert result.stderr == ""
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(
    ("effect", "complaint"),
    [
        ("torch.manual_seed(3)", "torch's initial seed"),
        ("torch.set_default_dtype(torch.float64)", "default dtype"),
        ("torch.set_grad_enabled(False)", "grad mode"),
        ("random.random()", "['random']"),
        ("os.environ['X'] = '1'", "environment"),
        ("sys.modules['transformer_lens'] = sys", "transformer_lens was imported"),
    ],
)
def test_an_effect_would_be_seen(effect: str, complaint: str) -> None:
    result = run(effect)
    assert result.returncode == 1
    assert complaint in result.stderr
