"""The project's own settings do what they claim."""

import importlib
import os
import re
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]


def warn_from(module: str) -> None:
    """A warning whose blame lies with `module`."""
    warnings.warn_explicit("look out", UserWarning, filename=f"{module}.py", lineno=1, module=module)


@pytest.mark.parametrize("module", ["hooks", "hooks.sites", "surgery.svd", "analyses.laser.search"])
def test_a_warning_from_our_packages_is_an_error(module: str) -> None:
    with pytest.raises(UserWarning, match="look out"):
        warn_from(module)


@pytest.mark.parametrize("module", ["numpy", "hooks_of_others", "my.surgery"])
def test_a_warning_from_others_is_not(module: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warn_from(module)
    assert [str(warning.message) for warning in caught] == ["look out"]


checking = pytest.mark.skipif("SURGERY_CHECK_SHAPES" not in os.environ, reason="only make test-shapes checks shapes")


@checking
def test_our_annotations_are_checked_at_run_time() -> None:
    import torch
    from beartype.roar import BeartypeException
    from jaxtyping import TypeCheckError

    from hooks.fingerprints import fingerprint
    from surgery.ranks import stable_rank

    for function, given in ((fingerprint, "weights"), (stable_rank, torch.zeros(2, 2, dtype=torch.int32))):
        with pytest.raises((TypeCheckError, BeartypeException)):
            function(given)


@checking
def test_every_module_that_speaks_of_shapes_is_checked_at_run_time() -> None:
    for package in ("hooks", "surgery", "analyses"):
        for path in (ROOT / package).rglob("*.py"):
            if "jaxtyping" in path.read_text(encoding="utf-8"):
                module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
                assert type(module.__loader__).__name__ == "_JaxtypingLoader", module.__name__


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-4.txt"])
def test_every_dependency_is_pinned_within_its_bounds(file: str) -> None:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    for requirement in map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]):
        assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert not any(re.search(r"[+@/]|nvidia", line) for line in lines)


def test_the_suite_runs_on_a_tested_version_of_the_host() -> None:
    host = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "transformer-lens")
    assert version("transformer-lens") in host.specifier
    assert [v for v in ("3.8.1", "4.0.0", "4.1.0", "4.2.0", "5.0.0") if v in host.specifier] == []


def test_the_wheel_holds_the_library_and_one_program() -> None:
    wheel = SETTINGS["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["surgery", "hooks", "analyses"]}
    programs = [path for package in wheel["packages"] for path in (ROOT / package).rglob("__main__.py")]
    assert programs == [ROOT / "analyses" / "papers" / "__main__.py"]
    assert (ROOT / "examples" / "demo" / "__main__.py").exists()


def test_the_source_distribution_holds_every_file_that_the_readme_links_to() -> None:
    included = SETTINGS["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in link]
    assert "docs/eigenpruning.md" in links
    assert [link for link in links if not any(f"/{link}".startswith(prefix) for prefix in included)] == []


def test_the_text_on_a_packages_page_links_to_no_file_of_the_repository() -> None:
    assert re.findall(r"\]\((?!https?://)", PROJECT["readme"]["text"]) == []
    assert "`model-surgery`" in PROJECT["readme"]["text"]


def test_the_citation_names_this_version() -> None:
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
