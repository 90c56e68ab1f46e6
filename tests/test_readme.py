"""What the README shows runs, and does what it says."""

import re
from pathlib import Path

import pytest

from surgery import Drop

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.hooked
def test_the_first_lines_run_and_attribution_names_the_component(tmp_path, trained, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".surgery-cache").symlink_to(trained)
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
    assert (tmp_path / "edit.json").exists()
    exec(BLOCKS[1], names)
    assert names["spec"] == {"blocks.1.mlp.W_out": Drop([0])}
    assert names["surgery"].active(names["model"]) == ()  # type: ignore[attr-defined]
    assert "operation applied to HookedTransformer" in capsys.readouterr().out


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_python(block: str) -> None:
    compile(block, "README.md", "exec")


def test_every_file_and_command_that_is_named_exists() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert {"docs/figures/demo.png", "notebooks/surgery.ipynb", "CITATION.cff"} <= set(targets)
    assert [target for target in targets if not (ROOT / target).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"make ([a-z-]+)", README)
    assert [name for name in commands if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)] == []
    assert [name for name in re.findall(r"python (benchmarks/\S+\.py)", README) if not (ROOT / name).exists()] == []


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs" / "figures" / "demo.png").stat().st_size < 200_000
