"""Every notebook runs from top to bottom, in a folder of its own, without a hub, and is stored with its outputs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
SECONDS_A_CELL = 180

pytestmark = pytest.mark.notebook
Execute = Callable[..., NotebookNode]


@pytest.fixture
def execute(tmp_path: Path) -> Execute:
    """Runs a notebook in an empty folder with this interpreter, whichever kernels are installed on the machine."""
    spec = tmp_path / "kernels" / "this" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "this", "language": "python"}))
    folder = tmp_path / "folder"
    folder.mkdir()

    def run(notebook: NotebookNode, *, timeout: float = SECONDS_A_CELL) -> NotebookNode:
        specs = KernelSpecManager(kernel_dirs=[str(tmp_path / "kernels")], ensure_native_kernel=False)
        manager = AsyncKernelManager(kernel_name="this", kernel_spec_manager=specs)
        resources = {"metadata": {"path": str(folder)}}
        return NotebookClient(notebook, km=manager, kernel_name="this", timeout=timeout, resources=resources).execute()

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path: Path, execute: Execute, tmp_path: Path, trained: Path) -> None:
    (tmp_path / "folder" / ".surgery-cache").symlink_to(trained)
    execute(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_stored_with_the_outputs_of_one_run(path: Path) -> None:
    """Readers of the file see figures and numbers: pictures that any viewer shows, and no warning."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "widgets" not in notebook.metadata
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert kinds <= {"image/png", "text/html", "text/plain"}
    assert "cdn." not in path.read_text(encoding="utf-8")


def test_stored_outputs_are_small() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 3_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_asks_for_a_network_or_prints_a_warning_first(path: Path) -> None:
    first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code").source
    assert "notebook_connected" not in path.read_text(encoding="utf-8")
    assert first.index('filterwarnings("ignore", "IProgress not found")') < first.index("from analyses")


def test_a_notebook_runs_this_interpreter_in_an_empty_folder_without_a_hub(execute: Execute) -> None:
    code = "import os, sys; print(sys.executable, os.listdir(), os.environ['HF_HUB_OFFLINE'])"
    (cell,) = execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])).cells
    assert cell.outputs[0].text == f"{sys.executable} [] 1\n"


def test_a_failing_or_endless_cell_fails(execute: Execute) -> None:
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]))
    with pytest.raises(CellTimeoutError):
        execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("while True: pass")]), timeout=3)
