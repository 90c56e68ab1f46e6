"""Files that are written whole, or not at all."""

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from models import borrowed

import surgery
from surgery import Decompositions, Zero
from surgery.files import whole_file


def test_an_interrupted_save_does_not_destroy_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write_text("half of the n")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["edit.json"]


def test_a_save_through_a_link_keeps_the_link_and_the_permissions(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "edit.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    with whole_file(link) as file:
        file.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_link_to_a_file_that_is_not_there_yet_makes_that_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with whole_file(tmp_path / "link") as file:
        file.write_text("new")
    assert (tmp_path / "new").read_text() == (tmp_path / "link").read_text() == "new"


def test_a_device_is_written_to_and_not_replaced() -> None:
    with whole_file(os.devnull) as file:
        file.write_text("gone")
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize("save", [lambda p: surgery.save({"*": Zero()}, p), lambda p: Decompositions().save(p)])
def test_where_nothing_can_be_written_is_said_in_a_sentence(save: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        save(tmp_path / "missing" / "file")
    assert str(error.value) == (
        f"'{tmp_path / 'missing' / 'file'}' cannot be written, since there is no folder '{tmp_path / 'missing'}': make "
        "it first."
    )
    with pytest.raises(IsADirectoryError) as error:
        save(tmp_path)
    assert str(error.value) == f"'{tmp_path}' is a folder: give the name of a file in it."


def test_decompositions_are_written_beside_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "svds.safetensors"
    with borrowed("bridge gpt2") as model:
        svds = surgery.decompose(model, "blocks.0.mlp.W_out", progress=False)
        svds.save(path)
        old = path.read_bytes()

        def interrupted(tensors: dict[str, torch.Tensor], file: str, **settings: object) -> None:
            Path(file).write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr("surgery._decomposition_files.save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            svds.save(path)
        assert path.read_bytes() == old
        assert os.listdir(tmp_path) == [path.name]
        assert safetensors.torch.load_file(path).keys()
        surgery.forget(model)


def direct_writes(tree: ast.AST) -> list[int]:
    """Lines that write a file of a finished name, and not one of `whole_file`'s."""
    within = {
        id(call)
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and any("whole_file(" in ast.unparse(item) for item in block.items)
        for call in ast.walk(block)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in within]
    return [
        call.lineno for call in calls if re.search(r"\b(save_file|write_text|write_bytes)$", ast.unparse(call.func))
    ]


@pytest.mark.parametrize("package", ["hooks", "surgery", "analyses"])
def test_no_file_is_written_in_place(package: str) -> None:
    root = Path(__file__).resolve().parents[2]
    found = {path: direct_writes(ast.parse(path.read_text())) for path in (root / package).rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_write_in_place_would_be_seen() -> None:
    code = "path.write_text('a')\nsave_file(t, path)\nwith whole_file(path) as file:\n    file.write_text('a')\n"
    assert direct_writes(ast.parse(code)) == [1, 2]
