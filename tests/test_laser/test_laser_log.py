"""The file that a search goes on from: nothing finished is lost, and nothing is taken from another search."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from asked_models import borrowed
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build
from test_laser import QUIET, made, parts_of

import surgery
from analyses import laser, tasks
from analyses.laser._resume import Log, LogError, line_of, model_fingerprint, packed, unpacked
from analyses.laser._trials import Bench
from analyses.laser.candidates import Family
from analyses.scoring import Outcome, Readings
from surgery import KeepTop

RHOS = (0.8, 0.3, 0.1)
PROGRAM = """
    import sys, time
    sys.path[:0] = {paths!r}
    import torch
    import models
    from test_laser import made, parts_of
    from analyses import laser
    from analyses.laser._trials import Bench

    said = Bench.said
    def slow(self, *arguments):
        time.sleep(0.2)
        return said(self, *arguments)
    Bench.said = slow
    laser.search(models.build("bridge gpt2"), parts_of(made()), rhos={rhos!r}, log=sys.argv[1], progress=False)
"""


def search(log: Path | None, **changed: object) -> laser.SearchResult:
    with borrowed("bridge gpt2") as model:
        return laser.search(model, parts_of(made()), **{"rhos": RHOS, "log": log, **QUIET, **changed})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Where each run started, one entry a run."""
    ran, said = [], Bench.said

    def counting(self: Bench, first: object = None) -> Outcome:
        ran.append(first)
        return said(self, first)

    monkeypatch.setattr(Bench, "said", counting)
    return ran


def test_a_search_killed_in_the_middle_goes_on_and_finds_the_same(tmp_path: Path, counted: list[object]) -> None:
    log = tmp_path / "search.jsonl"
    paths = [str(folder) for folder in list(Path(__file__).parents)[:3]]
    program = textwrap.dedent(PROGRAM).format(paths=paths, rhos=RHOS)
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program, str(log)])
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_bytes().count(b"\n") < 6:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {json.loads(line)["key"] for line in log.read_text().splitlines()[1:]}
    assert len(finished) >= 5
    resumed = search(log)
    assert len(counted) == 12 + 1 - len([key for key in finished if key.startswith("validation [")])
    whole = search(None)
    pd.testing.assert_frame_equal(resumed.to_dataframe(), whole.to_dataframe())
    counted.clear()
    again = search(log)
    assert counted == []
    assert repr(again) == repr(whole)


def test_a_screened_search_and_a_composition_go_on_too(tmp_path: Path, counted: list[object]) -> None:
    with borrowed("bridge gpt2") as model:
        for name, run in {"screened": laser.search, "composed": laser.compose}.items():
            options = {"strategy": "screened"} if name == "screened" else {}
            log = tmp_path / f"{name}.jsonl"
            first = run(model, parts_of(made()), rhos=RHOS, log=log, **options, **QUIET)
            lines = log.read_bytes().splitlines(keepends=True)
            counted.clear()
            assert repr(run(model, parts_of(made()), rhos=RHOS, log=log, **options, **QUIET)) == repr(first)
            assert counted == []
            log.write_bytes(b"".join(lines[:-3]))
            assert repr(run(model, parts_of(made()), rhos=RHOS, log=log, **options, **QUIET)) == repr(first)
            assert 0 < len(counted) <= 3
            assert [json.loads(line)["key"] for line in log.read_bytes().splitlines()[1:]] == [
                json.loads(line)["key"] for line in lines[1:]
            ]


@settings(max_examples=20)
@given(st.integers(1, 400))
def test_a_last_line_that_was_cut_short_is_dropped(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        log = Log(path, {"task": "a"})
        for key in ("one", "two"):
            readings = Readings(torch.rand(30).double(), torch.arange(30), torch.arange(30))
            log.put(key, {"said": packed(Outcome(readings))})
        data = path.read_bytes()
        last = data[:-1].rfind(b"\n") + 1
        path.write_bytes(data[: max(last, len(data) - cut)])
        again = Log(path, {"task": "a"})
        assert len(again) == 1 and "one" in again
        again.put("three", {"numbers": {"x": 1.0}})
        assert [json.loads(line).get("key") for line in path.read_bytes().splitlines()] == [None, "one", "three"]


@settings(max_examples=30)
@given(
    st.lists(st.floats(allow_nan=False, width=32), min_size=0, max_size=9),
    st.lists(st.lists(st.integers(0, 99999), max_size=4).map(tuple), max_size=3),
)
def test_an_outcome_comes_back_from_its_line_to_the_last_bit(values: list[float], said: list[tuple[int, ...]]) -> None:
    numbers = torch.tensor(values, dtype=torch.double)
    whole = torch.arange(len(values)) * 7919
    line = packed(Outcome(Readings(numbers, whole, whole + 1), tuple(said), numbers / 2))
    again = unpacked(json.loads(json.dumps(line)))
    back, generated = again.readings, again.generated
    assert torch.equal(again.measured, numbers / 2)
    assert torch.equal(back.log_prob, numbers) and torch.equal(back.rank, whole)
    assert torch.equal(back.top, whole + 1) and generated == tuple(said)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"rhos": (0.8, 0.3)}, "candidates"),
        ({"strategy": "screened"}, "strategy, seed"),
        ({"prepend_bos": False}, "prepend_bos"),
    ],
)
def test_the_log_of_another_search_is_refused(tmp_path: Path, changed: dict, what: str) -> None:
    log = tmp_path / "log"
    search(log)
    before = log.read_bytes()
    with pytest.raises(LogError, match=f"is the log of another search, which differs in {what}: only the same search"):
        search(log, **changed)
    assert log.read_bytes() == before


def test_a_race_in_another_order_is_another_search(tmp_path: Path) -> None:
    log, parts = tmp_path / "log", parts_of(made())
    with borrowed("bridge gpt2") as model:
        first = laser.search(model, parts, rhos=RHOS, strategy="screened", seed=0, log=log, **QUIET)
        again = laser.search(model, parts, rhos=RHOS, strategy="screened", seed=0, log=log, **QUIET)
        assert again.to_dataframe().equals(first.to_dataframe())
        with pytest.raises(LogError, match="which differs in seed"):
            laser.search(model, parts, rhos=RHOS, strategy="screened", seed=1, log=log, **QUIET)
        exhaustive = [laser.search(model, parts, rhos=RHOS, seed=n, log=tmp_path / "other", **QUIET) for n in (0, 1)]
    assert exhaustive[0].spec == exhaustive[1].spec


class Halved(Family):
    """A family of a user's own, with no hash."""

    __hash__ = None  # type: ignore[assignment]

    def edit(self, rho: float, shape: tuple[int, int]) -> KeepTop:
        return KeepTop(rho=rho / 2)


@pytest.mark.parametrize("strategy", ["exhaustive", "screened"])
def test_a_family_need_not_be_hashable(strategy: str) -> None:
    with borrowed("bridge gpt2") as model:
        parts = parts_of(made())
        found = laser.search(model, parts, rhos=(0.2, 0.8), edits=[Halved()], strategy=strategy, **QUIET)
    assert {one.candidate.edit.rho for one in found.trials} <= {0.1, 0.4}


def test_another_task_or_another_model_is_another_search(tmp_path: Path) -> None:
    log = tmp_path / "log"
    search(log)
    with borrowed("bridge gpt2") as model:
        with pytest.raises(LogError, match=r"which differs in task: .* Give the path of a new file"):
            laser.search(model, parts_of(made(seed=1)), rhos=RHOS, log=log, **QUIET)
        mark = model_fingerprint(model)
        with surgery.apply(model, {"blocks.0.mlp.W_in": KeepTop(rho=0.5)}, progress=False):
            assert model_fingerprint(model) != mark
            with pytest.raises(LogError, match="which differs in model"):
                laser.search(model, parts_of(made()), rhos=RHOS, log=log, **QUIET)
        bias = model.ln_final.original_component.bias
        was = bias[0].item()
        with torch.no_grad():
            bias[0] += 1
            assert model_fingerprint(model) != mark
            bias[0] = was
        assert model_fingerprint(model) == mark


def test_what_the_model_does_with_hooks_or_without_bos_is_another_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, log, hooked = build("bridge gpt2"), tmp_path / "log", tmp_path / "hooked"
    asked = partial(laser.rank_curve, model, made(), "blocks.1.mlp.W_out", rhos=(0.5,), **QUIET)
    asked(log=log)
    model.blocks[0].hook_out.add_hook(lambda activation, hook: activation / 2)
    asked(log=hooked)
    with pytest.raises(LogError, match="which differs in model: only"):
        asked(log=log)
    model.reset_hooks()
    with pytest.raises(LogError, match="which differs in model: only"):
        asked(log=hooked)
    monkeypatch.setattr(model.cfg, "default_prepend_bos", False)
    with pytest.raises(LogError, match="which differs in prepend_bos: only"):
        asked(log=log)
    asked(log=log, prepend_bos=True)  # which is what the first one did


def test_files_that_are_no_logs_are_refused_and_left_alone(tmp_path: Path) -> None:
    for content, message in {
        b"a,b\n1,2\n": r"does not begin as a search log of version 2: .* Give the path of a new file",
        b'{"format": "else"}\n': r"does not begin as a search log of version 2: nothing was written",
        b"\xff\xfe\n": "does not begin as a search log",
        b"[1]\n": "does not begin as a search log",
        b"no newline": "does not begin as a search log",
    }.items():
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(LogError, match=message):
            search(path)
        assert path.read_bytes() == content


def test_a_folder_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=rf"log='{tmp_path}' is a folder: a search log is one file\. Give the path"):
        search(tmp_path)


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory: pytest.TempPathFactory) -> tuple[laser.SearchResult, list[bytes]]:
    """What a search found, and the lines of its log."""
    log = tmp_path_factory.mktemp("search") / "log"
    return search(log), log.read_bytes().splitlines(keepends=True)


def other_column(line: bytes) -> bytes:
    """The line with other log-probabilities of the same length."""
    entry = json.loads(line)
    column = unpacked(entry["said"]).readings
    said = packed(Outcome(Readings(column.log_prob + 1, column.rank, column.top)))
    return json.dumps({**entry, "said": {**entry["said"], "log_prob": said["log_prob"]}}).encode() + b"\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: b"\n" + line,
        lambda line: b"\0" * 40 + b"\n",
        lambda line: b"\0" * 40 + line,
        lambda line: line[:50] + b"\n",
        lambda line: b'{"key": "x"}\n',
        lambda line: line.replace(b'"items": ', b'"items": 1'),
        other_column,
    ],
)
def test_a_damaged_line_costs_what_it_held_and_no_more(
    tmp_path: Path, counted: list[object], whole_log: tuple[laser.SearchResult, list[bytes]], damage: object
) -> None:
    first, lines = whole_log
    log = tmp_path / "log"
    log.write_bytes(b"".join([*lines[:3], damage(lines[3]), *lines[4:]]))
    with pytest.warns(UserWarning, match=rf"{log}: damaged and passed over: 4 \(numbers of lines\)"):
        again = search(log)
    pd.testing.assert_frame_equal(again.to_dataframe(), first.to_dataframe())
    assert len(counted) == (0 if damage(lines[3]).endswith(b"\n" + lines[3]) else 1)
    counted.clear()
    with pytest.warns(UserWarning, match="damaged and passed over"):
        search(log)
    assert counted == []


def test_a_column_of_another_length_is_refused(
    tmp_path: Path, whole_log: tuple[laser.SearchResult, list[bytes]]
) -> None:
    _, lines = whole_log
    entry = json.loads(lines[3])
    entry.pop("check")
    column = unpacked(entry["said"]).readings
    short = packed(Outcome(Readings(column.log_prob[1:], column.rank[1:], column.top[1:])))
    log = tmp_path / "log"
    log.write_bytes(b"".join([*lines[:3], line_of({**entry, "said": short}).encode(), *lines[4:]]))
    with pytest.raises(LogError, match=r"its columns have \[\d+, \d+, \d+, 0, 0\] entries, and this search reads"):
        search(log)


def test_a_line_can_be_read_by_a_person(tmp_path: Path) -> None:
    log = tmp_path / "folder" / "log"
    result = search(log)
    entries = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    by_edit = {json.dumps(entry["edit"]): entry for entry in entries if entry["part"] == "validation"}
    for one in result.trials:
        entry = by_edit[json.dumps({str(one.candidate.site): repr(one.candidate.edit)})]
        assert (entry["accuracy"], entry["log_loss"]) == (one.summary.accuracy, one.summary.log_loss)


def test_controls_and_curves_go_on_from_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, spec = build("bridge gpt2"), {"blocks.1.mlp.W_out": surgery.KeepTop(rank=2)}
    task = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(12)]
    asked = {"seed": 0, "progress": False}
    first = laser.random_controls(model, task, spec, draws=1, log=tmp_path / "log", **asked)
    curve = laser.rank_curve(model, task, "blocks.1.mlp.W_out", rhos=(0.5,), log=tmp_path / "curve", **asked)

    def no_pass(*_: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr("analyses.laser._trials.record", no_pass)
    monkeypatch.setattr("analyses.laser._trials.run", no_pass)
    monkeypatch.setattr("analyses.laser._trials.rerun", no_pass)
    again = laser.random_controls(model, task, spec, draws=1, log=tmp_path / "log", **asked)
    pd.testing.assert_frame_equal(again.to_dataframe(), first.to_dataframe())
    again = laser.rank_curve(model, task, "blocks.1.mlp.W_out", rhos=(0.5,), log=tmp_path / "curve", **asked)
    pd.testing.assert_frame_equal(again.to_dataframe(), curve.to_dataframe())
    with pytest.raises(laser.LogError, match="differs in candidates"):
        laser.random_controls(model, task, spec, draws=2, log=tmp_path / "log", **asked)
