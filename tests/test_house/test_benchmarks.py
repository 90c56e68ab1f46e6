"""That the benchmarks run and say what they should; never how fast anything is."""

import importlib
import re
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from pretend_cuda import pretend_cuda
from scipy.stats import spearmanr

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ["--layers", "2", "--d-model", "16", "--heads", "2", "--d-mlp", "64", "--vocab", "50", "--positions", "8"]

pytestmark = pytest.mark.hooked


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A script as a module, imported as Python would when it runs the script; what it keeps goes elsewhere."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("SURGERY_STORY_MODEL", raising=False)

    def load(name: str) -> ModuleType:
        module = importlib.import_module(name)
        if hasattr(module, "CACHE"):
            monkeypatch.setattr(module, "CACHE", tmp_path)
        return module

    return load


@pytest.fixture
def figures(benchmark, tmp_path: Path):
    """What a script records with these flags: its figures by section and name."""

    def run(name: str, *flags: str) -> dict:
        benchmark(name).main([*flags, "--json", str(tmp_path / "figures.json")])
        (run,) = benchmark("table").read(tmp_path / "figures.json")
        assert (run.script, run.failed) == (name, "")
        return {(figure.section, figure.what): figure for figure in run.figures}

    return run


ON = pytest.mark.parametrize(
    ("context", "device"), [(nullcontext, "cpu"), (pretend_cuda, "cuda")], ids=["cpu", "pretended cuda"]
)


@pytest.mark.long
@ON
def test_foundation_records_its_ratios(figures, context, device: str) -> None:
    with context():
        found = figures("foundation", *TINY, "--rounds", "1", "--large", "16x64", "--device", device)
    sections = {"Forward pass", "Apply and undo", "Decomposing", "Decomposing a large matrix"}
    assert {section for section, _ in found} == sections
    assert {what: figure.aim.bound for (_, what), figure in found.items() if figure.aim} == {
        "mlp.W_in and mlp.W_out": 1.3, "4 MLP matrices edited": 1.02, "stored either way, both together": 2,
    }  # fmt: skip
    heads = found["Decomposing", "attn.W_Q[*], 2 heads, 16 x 8"]
    assert heads.ratio.value == pytest.approx(heads.against.value / heads.value)


@pytest.mark.long
@ON
def test_attribution_speed_records_its_ratios_and_agrees_with_its_loops(figures, context, device: str, capsys) -> None:
    with context():
        found = figures("attribution_speed", *TINY, "--rounds", "1", "--every", "1", "--device", device)
    printed = capsys.readouterr().out
    assert "by_gradient (192 components of 12 matrices, 8 tokens" in printed
    assert sorted(figure.aim.bound for figure in found.values() if figure.aim) == [1.4, 1.4, 2, 2, 50, 100]
    agreement = [float(x) for x in re.findall(r"agrees? to ([^;\n]+)", printed)]
    assert len(agreement) == 3
    assert max(agreement) < 1e-4


@pytest.mark.parametrize("flags", [[], ["--leading", "3", "--dtype", "bfloat16"]])
def test_large_model_measures_every_step(benchmark, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    benchmark("large_model").main([*TINY, *flags])
    printed = capsys.readouterr().out
    for step in (
        "apply, which decomposes",
        "apply, components from",
        "undo",
        "by_gradient",
        "ten exact",
        "one candidate",
    ):
        assert re.search(rf"^  {step}.* +\d+\.\d\d s", printed, re.MULTILINE), step
    assert len(re.findall(r"(met|MISSED) \(aim <= (0.02|2)\)", printed)) == 2
    assert len(re.findall(r"leading \d+ of one matrix", printed)) == 4


@pytest.mark.long
def test_attribution_accuracy_records_every_method_and_keeps_the_exact_effects(figures, tmp_path: Path) -> None:
    flags = ["--quick", "--steps", "2", "--positions", "6", "--probes", "2", "--exact-curvature", "2"]
    first = figures("attribution_accuracy", *flags)
    assert {what for section, what in first if section == "character model, loss"} >= {
        "gradient", "readout, 4 draws", "readout, 8 draws", "Fisher, 4 draws", "curvature, 2 by type",
        "curvature, 2 for all", "s_i alone (sizes)",
    }  # fmt: skip
    assert sum(figure.aim is not None for figure in first.values()) == 2 * 2 + 3 * 2
    assert first["character model, loss, passes", "gradient"].value == 2
    assert len(list(tmp_path.glob("leave-one-out-*"))) == 3
    again = figures("attribution_accuracy", *flags)
    assert {key: str(figure) for key, figure in again.items()} == {key: str(figure) for key, figure in first.items()}
    with pretend_cuda():
        there = figures("attribution_accuracy", *flags, "--device", "cuda")
    assert there.keys() == first.keys()
    for key, figure in first.items():
        assert there[key].value == pytest.approx(figure.value, abs=1e-2), key


SMALL = ["--layers", "2", "--d-model", "16", "--d-vocab", "50", "--items", "8", "--sample", "1", "--batch-size", "4"]


@pytest.mark.long
@ON
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("laser", ["--test-items", "4", "--screen-items", "8"]),
        ("generation", ["--only", "random", "--new-tokens", "2"]),
    ],
)
def test_a_search_is_set_against_its_loop(figures, name: str, flags: list[str], context, device: str) -> None:
    with context():
        found = figures(name, *SMALL, *flags, "--device", device)
    assert sum(figure.aim is not None for figure in found.values()) == 2
    compared = [figure for figure in found.values() if figure.ratio]
    assert len(compared) == (2 if (name, device) == ("laser", "cuda") else 4)
    assert all(figure.ratio.value == pytest.approx(figure.against.value / figure.value) for figure in compared)


@pytest.mark.long
def test_attribution_accuracy_counts_what_a_screening_finds(benchmark, capsys) -> None:
    accuracy = benchmark("attribution_accuracy")
    accuracy.main(["--quick", "--steps", "2", "--positions", "6", "--screen"])
    printed = capsys.readouterr().out
    found = [int(n) for n in re.findall(r"seed \d: (\d+);", printed)]
    assert len(found) == 9
    assert max(found) <= accuracy.STRONGEST
    assert len(re.findall(r"(met|MISSED) \(aim >= 19\)", printed)) == 3


def test_its_spearman_is_the_usual_one(benchmark) -> None:
    a, b = np.random.default_rng(0).integers(0, 6, (2, 40))
    ours = benchmark("attribution_accuracy").spearman(torch.tensor(a), torch.tensor(b))
    assert ours == pytest.approx(spearmanr(a, b).statistic)


def test_calls_take_turns_in_alternating_order_and_the_first_round_does_not_count(benchmark) -> None:
    ran: list[str] = []

    @contextmanager
    def around():
        ran.append("in")
        yield
        ran.append("out")

    calls = {"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}
    took = benchmark("timing").in_turns(calls, rounds=2, device="cpu", around={"b": around})
    assert ran == ["in", "b", "out", "a", "a", "in", "b", "out", "in", "b", "out", "a"]
    assert {name: len(seconds) for name, seconds in took.seconds.items()} == {"a": 2, "b": 2}


def test_ratios_are_taken_within_a_round(benchmark) -> None:
    took = benchmark("timing").Timings({"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 2.0]})
    assert (took.ratio("a", "b"), took.median("a"), took.spread("a", "b")) == (1.5, 3.0, "1.00-2.00")


def test_peak_memory_sees_what_was_freed_again(benchmark) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell a process its memory")

    def call() -> None:
        for _ in range(20):
            torch.ones(2**24)

    peak = benchmark("timing").peak_memory(call, device="cpu")
    assert 60 < peak < 200


@pytest.mark.parametrize(
    ("value", "aim", "at_most", "text"),
    [
        (1.3, 1.4, True, "met (aim <= 1.4)"),
        (1.5, 1.4, True, "MISSED (aim <= 1.4)"),
        (1.5, 2, False, "MISSED (aim >= 2)"),
    ],
)
def test_verdicts(benchmark, value: float, aim: float, at_most: bool, text: str) -> None:
    assert benchmark("timing").verdict(value, aim, at_most=at_most) == text


def test_the_soak_counts_what_it_tried_and_stops_at_what_is_wrong(
    benchmark, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    soak = benchmark("soak")
    soak.main(["--minutes", "0.01"])
    printed = capsys.readouterr().out
    for kind in ("operations", "edits from threads", "blocks under fire", "interrupts"):
        assert re.search(rf"^  {kind} +[1-9]\d* times$", printed, re.MULTILINE), kind
    monkeypatch.setattr(soak.surgery, "undo_all", lambda model: None)
    with pytest.raises(soak.Wrong):
        soak.soak(0.01, 0, "bridge")


def test_reference_numbers_name_everything_that_is_not_the_same(benchmark) -> None:
    before = {"same": [1.0, 2e6], "changed": [1.0, 2.0], "gone": [0.0], "longer": [1.0], "not a number": [1.0]}
    now = {"same": [1 + 5e-7, 2e6 + 1], "changed": [1.0, 2.00001], "longer": [1.0, 1.0], "not a number": [float("nan")]}
    assert benchmark("reference_numbers").differences({**now, "added": [1.0]}, before) == [
        "changed: differs by up to 5e-06",
        "longer: 2 numbers instead of 1",
        "missing: gone",
        "new: added",
        "not a number: differs by up to nan",
    ]


@pytest.mark.long
def test_scores_of_eigenpruning_are_compared_at_one_budget(benchmark, capsys) -> None:
    scores = benchmark("eigenpruning_scores")
    task = scores.arithmetic.ArithmeticTask("x", limit=5)
    items = task.items()
    pairs = {item.prompt: (*item.prompt[:-1], task.d_vocab - 2) for item in items.items}
    subjects = [
        scores.Subject("x", scores.arithmetic.bridge(task, d_model=8, n_heads=2, seed=seed), items, pairs)
        for seed in (0, 1)
    ]
    frame = scores.results(subjects, scores.OUTPUTS, 1)
    assert list(frame.index)[:2] == [scores.PAPER, "control: its sign flipped"]
    assert {"Fisher", "curvature", "exact, one at a time", "joint, path to all removed"} < set(frame.index)
    assert frame.loc[scores.PAPER, "ahead, behind"] == ""
    assert all(re.fullmatch(r"[012], [012]", shown) for shown in frame["ahead, behind"][1:])
    scores.record(frame)
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if " ahead in " in line]) == len(frame) - 1


def test_a_score_is_ahead_where_its_accuracy_is_higher(benchmark) -> None:
    scores = benchmark("eigenpruning_scores")
    ours, paper = ([scores.Cell(a, 0.5, 1.0, "beyond") for a in of] for of in ((0.9, 0.5, 0.7), (0.8, 0.6, 0.7)))
    assert scores.ahead(ours, paper) == "1, 1"
    assert scores.interval([0.25, 0.25], torch.arange(2)) == "+0.25 [+0.25, +0.25]"
