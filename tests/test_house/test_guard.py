"""A stranger's package that hides one of ours is named, and never run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STRANGER = "print('the stranger ran')\n"


def run(code: str, folder: Path, *extra_path: Path) -> subprocess.CompletedProcess[str]:
    """Runs `code` as a notebook kernel in `folder` would: with that folder first on the import path."""
    path = os.pathsep.join(map(str, [folder, *extra_path, ROOT]))
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return result.stderr.strip().splitlines()[-1]


def sentence(place: Path, package: str = "hooks") -> str:
    return (
        f"'{place}' hides the package '{package}' of model-surgery, '{ROOT / package}': rename it, or move your "
        "notebook or script to another folder. If pip put it there (the package index has unrelated packages called "
        "surgery and hooks), uninstall it and reinstall model-surgery. Then restart Python."
    )


@pytest.mark.parametrize(("file", "place"), [("hooks.py", "hooks.py"), ("hooks/__init__.py", "hooks")])
@pytest.mark.parametrize("package", ["surgery", "analyses"])
def test_a_strangers_hooks_is_named_and_not_run(tmp_path: Path, file: str, place: str, package: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(STRANGER)
    result = run(f"import {package}", tmp_path)
    assert result.returncode == 1
    assert last_line(result) == "ImportError: " + sentence(tmp_path / place)
    assert "the stranger ran" not in result.stdout


@pytest.mark.parametrize(("file", "place"), [("surgery.py", "surgery.py"), ("surgery/__init__.py", "surgery")])
def test_a_strangers_surgery_is_named_and_not_run_by_analyses(tmp_path: Path, file: str, place: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(STRANGER)
    result = run("from analyses import laser", tmp_path)
    assert last_line(result) == "ImportError: " + sentence(tmp_path / place, "surgery")
    assert "the stranger ran" not in result.stdout


def test_a_strangers_surgery_installed_over_ours_is_named(tmp_path: Path) -> None:
    for package in ("hooks", "surgery", "analyses"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "surgery" / "__init__.py").write_text(STRANGER)
    result = run("import analyses", tmp_path)
    assert last_line(result) == (
        f"ImportError: '{tmp_path / 'surgery'}' is not the package 'surgery' of model-surgery: an unrelated one of "
        "that name was installed over it. Uninstall that and reinstall model-surgery, then restart Python."
    )


def test_surgery_warns_of_a_strangers_analyses_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "analyses.py").write_text(STRANGER)
    result = run("import surgery; print(surgery.undo_all.__name__)", tmp_path)
    assert (result.returncode, result.stdout) == (0, "undo_all\n")
    assert sentence(tmp_path / "analyses.py", "analyses") in result.stderr
    assert run("import analyses, surgery", tmp_path).stderr == ""  # whoever imports it first knows what it is


def test_a_strangers_hooks_that_was_imported_before_is_named(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(STRANGER)
    result = run("import hooks, surgery", tmp_path)
    assert last_line(result) == "ImportError: " + sentence(tmp_path / "hooks.py")


def test_a_folder_without_init_does_not_hide_ours(tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    result = run("import surgery, hooks; print(hooks.__file__)", tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, str(ROOT / "hooks" / "__init__.py"))


def test_ours_passes_in_any_order_and_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ROOT, target_is_directory=True)
    for code in ("import surgery", "import hooks, surgery", "import surgery, hooks, analyses"):
        result = run(code, tmp_path, tmp_path / "link")
        assert result.stderr == ""
        assert result.returncode == 0


def test_a_missing_hooks_is_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "surgery").mkdir()
    (tmp_path / "surgery" / "_guard.py").write_text((ROOT / "surgery" / "_guard.py").read_text())
    code = "import sys; sys.path[:] = [p for p in sys.path if 'python3' in p and 'site-packages' not in p]; "
    code += f"sys.path.insert(0, {str(tmp_path)!r}); import surgery._guard as guard; guard.check_package('hooks')"
    result = run(code, tmp_path)
    assert last_line(result) == (
        f"ImportError: the package 'hooks' is missing from '{tmp_path}': reinstall model-surgery."
    )
