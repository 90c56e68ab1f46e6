from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses import recall
from examples.demo import __main__ as command
from examples.demo.experiment import GAINS, W_IN, W_OUT, Check, Demo, run
from examples.demo.page import METRICS, figures, page, row_name

WITHOUT, ONLY, CUT = "W_out: without its top component", "W_out: only its top component", "W_in at ρ = .05"
SEQUENCES = 128


@pytest.fixture(scope="module")
def shown(trained: Path) -> Demo:
    return run(sequences=SEQUENCES, draws=2, cache=trained, progress=False)


@pytest.fixture(scope="module")
def weights(shown: Demo, trained: Path) -> dict[str, np.ndarray]:
    """The trained matrices."""
    model = recall.bridge(shown.task, seed=0)
    recall.train(model, shown.task, seed=0, cache=trained, progress=False)
    return {name: matrix.numpy().astype(np.float64) for name, matrix in recall.weights(model).items()}


def probabilities(W: dict[str, np.ndarray], task: recall.RecallTask, sequences: int) -> tuple[float, float]:
    """p(correct) and p(noise) by a forward pass written out in numpy, one sequence at a time."""
    batch = task.sample(sequences, seed=0, alpha=0.0)
    correct, noise = [], []
    for tokens, answers, scored in zip(batch.tokens, batch.answers, batch.scored, strict=True):
        x = W["embed.W_E"][tokens.numpy()] + W["pos_embed.W_pos"][: len(tokens)]
        for layer in (0, 1):
            q, k, v = (x @ W[f"blocks.{layer}.attn.W_{m}"] for m in "QKV")
            scores = np.where(np.tri(len(x)) > 0, q @ k.T / np.sqrt(x.shape[1]), -np.inf)
            pattern = np.exp(scores - scores.max(1, keepdims=True))
            x = x + pattern / pattern.sum(1, keepdims=True) @ v @ W[f"blocks.{layer}.attn.W_O"]
            x = x + np.maximum(x @ W[f"blocks.{layer}.mlp.W_in"], 0) @ W[f"blocks.{layer}.mlp.W_out"]
        p = np.exp(x @ W["unembed.W_U"])
        p /= p.sum(1, keepdims=True)
        at = np.flatnonzero(scored.numpy())
        correct += p[at, answers.numpy()[at]].tolist()
        noise += p[at, task.noise_token].tolist()
    return float(np.mean(correct)), float(np.mean(noise))


def cut(W: np.ndarray, kept: slice, gain: float = 1.0) -> np.ndarray:
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    return gain * (U[:, kept] * S[kept]) @ Vh[kept]


def edited_by_hand(W: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    return {
        "full model": W,
        "second MLP removed": {**W, W_IN: 0 * W[W_IN], W_OUT: 0 * W[W_OUT]},
        CUT: {**W, W_IN: cut(W[W_IN], slice(6))},
        ONLY: {**W, W_OUT: cut(W[W_OUT], slice(1))},
        WITHOUT: {**W, W_OUT: cut(W[W_OUT], slice(1, None))},
    }


def test_every_line_of_the_table_is_what_weights_edited_by_hand_give(shown: Demo, weights) -> None:
    for label, W in edited_by_hand(weights).items():
        row = shown.row(label)
        expected = probabilities(W, shown.task, SEQUENCES)
        assert (row.mean("p_correct"), row.mean("p_noise")) == pytest.approx(expected, abs=1e-4), label


def test_the_dial_is_what_weights_scaled_by_hand_give(shown: Demo, weights) -> None:
    for gain in (0.0, 0.5, 2.0):
        W = {**weights, W_OUT: cut(weights[W_OUT], slice(1, None)) + cut(weights[W_OUT], slice(1), gain)}
        scores = shown.dial[GAINS.index(gain)]
        assert (scores.p_correct, scores.p_noise) == pytest.approx(
            probabilities(W, shown.task, SEQUENCES // 2), abs=1e-4
        )


def test_the_spectrum_is_that_of_the_weights(shown: Demo, weights) -> None:
    np.testing.assert_allclose(
        shown.decomposition.S.numpy(), np.linalg.svd(weights[W_OUT], compute_uv=False), rtol=1e-4
    )


def test_everything_claimed_holds(shown: Demo) -> None:
    assert [check for check in shown.checks if not check.holds] == []
    assert len(shown.checks) == 14


def test_edits_and_controls_remove_as_many_components(shown: Demo) -> None:
    assert {(row.label, row.control): row.removed for row in shown.rows if row.control != "same energy"} == {
        ("full model", None): "nothing",
        ("second MLP removed", None): "256 of 256",
        ("second MLP removed", "same spectrum"): "random vectors",
        (CUT, None): "122 of 128",
        (CUT, "same count"): "122 of 128",
        (ONLY, None): "127 of 128",
        (ONLY, "same count"): "127 of 128",
        (WITHOUT, None): "1 of 128",
        (WITHOUT, "same count"): "1 of 128",
    }
    assert {len(row.scores) for row in shown.rows if row.control} == {2}


def test_components_of_the_same_energy_are_more_than_one(shown: Demo) -> None:
    """The top component holds as much as several of the others; a draw that happens to hold it may need fewer."""
    assert int(shown.row(WITHOUT, "same energy").removed.split()[0].split("-")[-1]) > 3


def test_attribution_looks_at_every_component_that_training_changed(shown: Demo) -> None:
    assert sum(len(units) for units in shown.estimated.units.values()) == 8 * 128
    assert dict(shown.exact.most_harmful(1)) == {W_OUT: ((0,),)}
    assert dict(shown.estimated.most_harmful(1)) == {W_OUT: ((0,),)}


def test_attribution_and_scores_use_other_sequences(shown: Demo) -> None:
    seen = {tuple(row) for row in shown.task.sample(32, seed=1, alpha=0.0).tokens.tolist()}
    assert seen.isdisjoint(tuple(row) for row in shown.task.sample(512, seed=0, alpha=0.0).tokens.tolist())


def test_the_figures_show_the_results(shown: Demo) -> None:
    made = figures(shown)
    bars = {trace.name: trace for trace in made["probabilities"].data}
    for name, metric in (("p(correct)", "p_correct"), ("p(noise)", "p_noise")):
        assert list(bars[name].x) == [row.mean(metric) for row in shown.rows]
        low = [x - e for x, e in zip(bars[name].x, bars[name].error_x.arrayminus, strict=True)]
        assert low == pytest.approx([min(row.values(metric)) for row in shown.rows])
    assert len(made["probabilities"].layout.yaxis.ticktext) == len(shown.rows)
    assert list(made["spectrum"].data[0].y) == shown.decomposition.S.tolist()
    lines = {trace.name: list(trace.y) for trace in made["dial"].data}
    assert lines["p(noise)"] == [scores.p_noise for scores in shown.dial]
    exact = {
        text: pair[0]
        for trace in made["found"].data[1:]
        for text, pair in zip(trace.text, trace.customdata, strict=True)
    }
    assert exact[f"{W_OUT} 0"] == pytest.approx(float(shown.exact[W_OUT][0]))
    assert len(exact) == 64
    bars = {x: y for trace in made["components"].data[1:] for x, y in zip(trace.x, trace.y, strict=True)}
    assert bars[0] == pytest.approx(float(shown.exact[W_OUT][0]))


def test_labels_of_the_bars_do_not_touch_the_axis(shown: Demo) -> None:
    assert figures(shown)["probabilities"].layout.yaxis.ticklabelstandoff > 0


@pytest.mark.parametrize("name", ["probabilities", "spectrum", "found", "components", "dial"])
def test_every_figure_names_its_axes(shown: Demo, name: str) -> None:
    layout = figures(shown)[name].layout
    assert layout.title.text
    assert layout.xaxis.title.text
    assert layout.yaxis.title.text or layout.yaxis.ticktext


def test_the_page_needs_nothing_else_and_says_everything(shown: Demo) -> None:
    text = page(shown)
    assert "<script src=" not in text
    assert 'rel="stylesheet"' not in text
    assert text.count("Plotly.newPlot(") >= 5
    for row in shown.rows:
        assert row_name(row) in text
        assert f"{row.mean('p_correct'):.3f}" in text
    for check in shown.checks:
        assert f"✓ {check.claim}" in unescape(text)
    assert shown.operation in unescape(text)


def test_the_command_prints_the_table_and_writes_the_page(shown: Demo, tmp_path, monkeypatch, capsys) -> None:
    asked = {}
    monkeypatch.setattr(command, "run", lambda **given: asked.update(given) or shown)
    out = tmp_path / "page.html"
    assert command.main(["--out", str(out), "--seed", "3", "--cache", str(tmp_path), "--quiet"]) == 0
    assert asked == {"seed": 3, "cache": tmp_path, "progress": False}
    assert out.read_text(encoding="utf-8") == page(shown)
    printed = capsys.readouterr()
    assert printed.err == ""
    for row in shown.rows:
        lines = [line for line in printed.out.splitlines() if line.strip().startswith(row_name(row))]
        means = [f"  {row.mean(metric):.3f}" for metric in METRICS]
        assert any(all(mean in line for mean in means) and row.removed in line for line in lines), row_name(row)
    assert "FAIL" not in printed.out
    assert str(out) in printed.out


def test_a_claim_that_fails_is_said_and_fails_the_command(shown: Demo, tmp_path, monkeypatch, capsys) -> None:
    broken = replace(shown, checks=(*shown.checks, Check("pigs fly", False, "0 < 1 & so on")))
    monkeypatch.setattr(command, "run", lambda **given: broken)
    assert command.main(["--out", str(tmp_path / "p.html"), "--no-cache", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert "FAIL pigs fly (0 < 1 & so on)" in printed.out
    assert printed.err == "1 of 15 claims do not hold for seed 0, see FAIL above.\n"
    assert "✗ pigs fly <small>(0 &lt; 1 &amp; so on)</small>" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_an_untrained_model_bears_out_none_of_the_claims_about_noise() -> None:
    untrained = run(steps=1, sequences=8, draws=1, cache=None, progress=False)
    failed = {check.claim for check in untrained.checks if not check.holds}
    assert "without W_out's top component p(correct) > .95" in failed
    assert "the full model splits its probability: p(correct) near .5" in failed
    assert not [claim for claim in failed if "TransformerBridge" in claim or "as before" in claim]


@pytest.mark.parametrize(("given", "least"), [({"draws": 0}, 1), ({"sequences": 1}, 2)])
def test_numbers_out_of_range_are_refused(given: dict[str, int], least: int) -> None:
    with pytest.raises(ValueError, match=rf"give a whole number, {least} or more\."):
        run(cache=None, progress=False, **given)


def test_global_randomness_is_left_alone() -> None:
    before = torch.get_rng_state()
    run(steps=1, sequences=4, draws=1, cache=None, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
