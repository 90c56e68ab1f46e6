"""What the pages in docs/ say is true: their lines run, their links lead to files, their walks are the code's."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import models
import pytest
from torch import nn

import surgery
from analyses import arithmetic, attribution, eigenpruning, laser, metrics, tasks
from surgery import Drop

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
NAME = re.compile(r"`([\w.]+)`")


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGES[page], flags=re.DOTALL)


def test_an_edit_a_basis_and_a_metric_of_ones_own_run() -> None:
    names: dict[str, object] = {}
    for block in blocks("extending"):
        exec(compile(block, "extending.md", "exec"), names)
    assert isinstance(names["result"], laser.SearchResult)


@pytest.mark.parametrize(
    ("face", "name"), [(surgery.Edit, "Fade"), (surgery.Basis, "Columns"), (metrics.Metric, "Entropy")]
)
def test_the_page_shows_the_examples_of_the_docstrings_whole(face: type, name: str) -> None:
    shown = "".join(blocks("extending"))
    lines = [line.strip()[4:].strip() for line in str(face.__doc__).splitlines() if line.strip().startswith("... ")]
    assert f"class {name}" in str(face.__doc__)
    body = [line for line in lines if line.startswith(("def ", "return ", "S, order", "steps", "name, unit"))]
    assert len(body) >= 3
    assert [line for line in body if line not in shown] == []


def test_the_calls_on_the_page_of_eigenpruning_run() -> None:
    task = arithmetic.ArithmeticTask("x", limit=5)
    names: dict[str, object] = {"model": arithmetic.bridge(task, d_model=8, n_heads=2), "task": task.items()}
    published, written_out = [], []
    for block in blocks("eigenpruning"):
        exec(compile(block.replace("draws=3", "draws=1"), "eigenpruning.md", "exec"), names)
        result = names["result"]
        assert isinstance(result, eigenpruning.Pruning)
        if "published" in block:
            published.append(repr(result))
        if "FineTuning" in block:
            written_out.append(repr(result))
    assert len(blocks("eigenpruning")) == 4
    assert published == written_out != []


def test_the_calls_on_the_page_of_large_models_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with models.borrowed("bridge gpt2") as model:
        names: dict[str, object] = {"model": model, "tokens": models.tokens()}
        (block,) = blocks("large_models")
        exec(compile(block.replace("rank=50", "rank=9"), "large_models.md", "exec"), names)
        assert isinstance(names["effects"], attribution.Effects)
        assert names["again"].nbytes == 0 and len(list(tmp_path.glob("svds/*.safetensors"))) == 4
        surgery.forget(model)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if "://" not in link]
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_every_file_and_folder_that_the_architecture_names_exists() -> None:
    named = set(
        re.findall(r"`((?:hooks|surgery|analyses|tests|examples|benchmarks)/[\w/]*(?:\.py)?)`", PAGES["architecture"])
    )
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_room_is_in_the_picture() -> None:
    picture = PAGES["architecture"].split("```mermaid")[1].split("```")[0]
    rooms = {
        path.stem for path in (ROOT / "analyses").iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"
    }
    assert {room for room in rooms if not room.startswith("_")} - set(re.findall(r"\w+", picture)) == set()


@pytest.mark.parametrize(
    "word",
    re.findall(r"\| `((?:hooks|surgery|analyses|tasks|metrics|scoring|attribution|laser)\.[\w.]+)`", PAGES["glossary"]),
)
def test_the_glossary_names_what_exists(word: str) -> None:
    package, _, rest = word.partition(".")
    owner = importlib.import_module(package if package in ("hooks", "surgery", "analyses") else f"analyses.{package}")
    for part in rest.split("."):
        owner = getattr(owner, part, None) or importlib.import_module(f"{owner.__name__}.{part}")


Call = tuple[str, str]
"""A file and the qualified name of a function in it."""


def calls_of(function: Callable[[], object]) -> list[Call]:
    """Every call of a function of ours, in order."""
    calls: list[Call] = []

    def note(frame, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            path = Path(frame.f_code.co_filename).relative_to(ROOT).as_posix()
            calls.append((path, frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def hops_of(title: str) -> list[Call]:
    """The hops of a walk as the page lists them: functions (not classes) in the file that is named before them."""
    section = PAGES["architecture"].split(f"### `{title}")[1].split("\n### ")[0].split("\nThe words are")[0]
    hops: list[Call] = []
    file = ""
    for line in section.splitlines()[1:]:
        hop = re.match(r"(?: *\d+\. )?(?:↑ )?(?:`(?P<file>\w+/[\w/]+(?:\.py)?)`[^:]*: )?(?P<names>`.*?) — ", line)
        if hop is None:
            continue
        file = hop["file"] or file
        hops += [(file, name) for name in NAME.findall(hop["names"]) if not name.split(".")[-1][0].isupper()]
    return hops


def missed(hops: list[Call], calls: list[Call]) -> list[Call]:
    """The hops that are not found among the calls, each after the one before it."""
    at, lost = 0, []
    for file, name in hops:
        last = name.split(".")[-1]
        later = (
            n for n in range(at, len(calls)) if calls[n][0].startswith(file) and calls[n][1].split(".")[-1] == last
        )
        found = next(later, None)
        if found is None:
            lost.append((file, name))
        else:
            at = found + 1
    return lost


def items() -> list[tasks.AnswerItem]:
    return [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]


def by_ablation(model: nn.Module) -> object:
    tokens = models.tokens(2, 6)
    return attribution.by_ablation(model, tokens, metrics.logit(3), {"blocks.1.mlp.W_out": [0, 1]}, progress=False)


WALKS: dict[str, tuple[int, Callable[[nn.Module], object]]] = {
    "surgery.apply": (13, lambda model: surgery.apply(model, {"blocks.0.mlp.W_out": Drop([0])}, progress=False)),
    "attribution.by_ablation": (13, by_ablation),
    "laser.search": (14, lambda model: laser.search(model, items(), rhos=(0.5, 0.1), progress=False)),
    "eigenpruning.prune": (14, lambda model: eigenpruning.prune(model, items(), progress=False)),
}


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_goes_where_the_page_says_in_this_order(title: str) -> None:
    n_hops, walk = WALKS[title]
    hops = hops_of(title)
    assert len(hops) >= n_hops
    model = models.build("bridge gpt2")
    assert missed(hops, calls_of(lambda: walk(model))) == []


def test_a_hop_that_is_not_taken_would_be_seen() -> None:
    calls = [("a.py", "f"), ("b.py", "C.g"), ("a.py", "h")]
    assert missed([("a.py", "f"), ("b.py", "g"), ("a.py", "h")], calls) == []
    assert missed([("b.py", "g"), ("a.py", "f")], calls) == [("a.py", "f")]
    assert missed([("b.py", "h")], calls) == [("b.py", "h")]
