"""Rank curves, controls, the paper's other analyses and their figures, against counts by hand."""

import math

import models
import pytest
import scipy.linalg
import torch
from asked_models import borrowed
from planted import planted
from test_laser import QUIET, made, parts_of

import surgery
from analyses import laser, plots, scoring
from analyses.tasks import AnswerItem, Task
from hooks import place_of
from surgery import DropTop, KeepBottom, KeepTop, RowBlocks

SITE = "blocks.1.mlp.W_out"


@pytest.fixture(scope="module")
def found() -> tuple:
    """A model with a planted wrong answer, its task, and a search of it."""
    one = planted("bridge gpt2")
    return one.model, one.task, laser.search(one.model, one.task, edits=(KeepTop, DropTop), rhos=(0.5, 0.05), **QUIET)


def test_a_rank_curve_is_the_task_scored_at_every_rank_from_both_ends(found: tuple) -> None:
    model, task, _ = found
    curve = laser.rank_curve(model, task, SITE, rhos=(1.0, 0.5, 0.05, 0.0), **QUIET)
    frame = curve.to_dataframe()
    assert len(frame) == 8
    before = scoring.score(model, task).correct
    for row in frame.itertuples():
        rank = math.floor(row.rho * models.D_MODEL + 1e-9)
        assert row.kept == rank
        edit = {"KeepTop": KeepTop, "KeepBottom": KeepBottom}[row.edit](rank=rank)
        with surgery.apply(model, {SITE: edit}, progress=False):
            after = scoring.score(model, task)
        assert row.accuracy == after.accuracy
        assert row.log_loss == pytest.approx(after.log_loss.mean().item(), abs=1e-5)
        assert row.corrected == int((~before & after.correct).sum())
        assert row.broken == int((before & ~after.correct).sum())
        assert row.change == pytest.approx(after.accuracy - before.double().mean().item())
        assert row.low <= row.change <= row.high
    assert "rank curve of blocks.1.mlp.W_out on 100 items" in repr(curve)


def test_a_rank_curve_tells_what_the_minor_components_say(found: tuple) -> None:
    model, task, _ = found
    curve = laser.rank_curve(model, task, SITE, rhos=(0.5, 0.05), **QUIET)
    frame = curve.predictions(0.05)
    assert set(frame["unedited"]) == {"7"} and not frame["unedited_correct"].any()
    with surgery.apply(model, {SITE: KeepTop(rho=0.05)}, progress=False):
        assert frame["KeepTop"].tolist() == list(scoring.score(model, task).predictions)
    with pytest.raises(ValueError, match=r"rho=0.3 is not on this curve, which has \[0.5, 0.05\]: give one"):
        curve.predictions(0.3)
    with pytest.raises(ValueError, match=r"names 2 matrices: a rank curve is of one\. Name 'blocks.0.mlp.W_out', say"):
        laser.rank_curve(model, task, "blocks.*.mlp.W_out", **QUIET)


def test_controls_remove_as_much_and_do_not_help(found: tuple) -> None:
    model, task, result = found
    controls = laser.random_controls(model, task, result.spec, draws=3, **QUIET)
    assert controls.edit.summary.accuracy == 1 and controls.beaten == 1
    frame = controls.to_dataframe()
    assert frame["control"].value_counts().to_dict() == {
        "the edit itself": 1,
        "as many random components": 3,
        "random components of the same energy": 3,
        "the same singular values on random vectors": 3,
    }
    parts = surgery.decompose(model, SITE, progress=False)[SITE]
    for one in controls.controls:
        with surgery.apply(model, one.candidate.spec, progress=False) as operation:
            assert scoring.score(model, task).accuracy == one.summary.accuracy
            removed = parts.n_components - operation.to_dataframe()["kept"].item()
        if repr(one.candidate.edit).endswith("count=1)"):
            assert removed == 1
    assert "better than 100% of the controls" in repr(controls)
    with pytest.raises(ValueError, match=r"2 matrices edited, draws=5: .* one entry of the spec at a time"):
        laser.random_controls(model, task, {"blocks.*.mlp.W_out": DropTop(rank=1)}, **QUIET)


def comparison() -> scoring.Comparison:
    """Facts in two wordings each; a search's test comparison on them is not needed to count."""
    base = made(12)
    items = [
        AnswerItem((*item.context[:1], wording, *item.context[1:]), item.right, groups=(f"fact {number}",))
        for number, item in enumerate(base.items)
        for wording in (1, 2)
    ]
    task = Task("facts", tuple(items))
    with borrowed("bridge gpt2") as model:
        before = scoring.score(model, task)
        with surgery.apply(model, {"blocks.0.mlp.W_in": KeepTop(rho=0.1)}, progress=False):
            after = scoring.score(model, task)
    return scoring.compare(_with(before, [1, 1, 1, 0, 0, 0] * 4), _with(after, [1, 1, 0, 0, 1, 1] * 4))


def _with(scores: scoring.Scores, correct: list[int]) -> scoring.Scores:
    from dataclasses import replace

    return replace(scores, correct=torch.tensor(correct, dtype=torch.bool))


def test_robustness_counts_facts_that_are_right_in_every_wording() -> None:
    # Three facts, four times: right-right then right-right; right-wrong then wrong-wrong; wrong-wrong then right-right.
    robustness = laser.paraphrase_robustness(comparison())
    assert robustness.groups == 12
    assert robustness.before == pytest.approx((1 / 3, 2 / 3)) and robustness.after == pytest.approx((2 / 3, 1))
    assert robustness.all_right.difference == pytest.approx(1 / 3)
    assert robustness.all_right.low < 1 / 3 < robustness.all_right.high
    assert "12 groups of paraphrases: all right 0.333 → 0.667" in repr(robustness)
    with borrowed("bridge gpt2") as model:
        scores = scoring.score(model, made())
    with pytest.raises(ValueError, match=r"no two items of .* belong together: paraphrases share a group"):
        laser.paraphrase_robustness(scoring.compare(scores, scores))


def test_frequencies_sort_the_items_into_equally_full_ranges() -> None:
    change = comparison()
    numbers = [float(i % 6) for i in range(24)]
    frame = laser.by_frequency(change, numbers, bins=3)
    assert frame["items"].tolist() == [8, 8, 8]
    assert frame[["from", "to"]].to_numpy().tolist() == [[0, 1], [2, 3], [4, 5]]
    assert frame["accuracy_before"].tolist() == [1, 0.5, 0] and frame["accuracy_after"].tolist() == [1, 0, 1]
    assert frame["corrected"].tolist() == [0, 0, 8] and frame["broken"].tolist() == [0, 4, 0]
    assert frame["corrected_fraction"].tolist() == [0, 0, 1] and frame["broken_fraction"].tolist() == [0, 1, 0]
    by_item = laser.by_frequency(change, lambda item: float(len(item.context)), bins=2)
    assert by_item["items"].sum() == 24
    answers = {item.right[0]: 1.0 for item in change.before.task.items}
    assert laser.by_frequency(change, answers)["items"].tolist() == [24]
    with pytest.raises(ValueError, match="3 frequencies for 24 items: every item needs one"):
        laser.by_frequency(change, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"the frequency of .* is not given: .* Add it"):
        laser.by_frequency(change, {"Paris": 1.0})
    with pytest.raises(ValueError, match="bins=0: give a whole number, 1 or more"):
        laser.by_frequency(change, numbers, bins=0)


def test_effective_ranks_are_the_exponential_of_the_entropy() -> None:
    with borrowed("bridge gpt2") as model:
        frame = laser.effective_ranks(model, "blocks.*.mlp.W_in", progress=False)
        for row in frame.itertuples():
            s = scipy.linalg.svdvals(place_of(model, row.site).matrix().double().numpy())
            p = s / s.sum()
            assert row.effective_rank == pytest.approx(math.exp(-(p * [math.log(x) for x in p]).sum()), rel=1e-4)
            assert row.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-4)
            assert (row.rank, row.fraction) == (32, pytest.approx(row.effective_rank / 32))


def test_the_published_estimator_is_close_to_the_truncated_svd_but_not_it() -> None:
    with borrowed("bridge gpt2") as model:
        frame = laser.published_distance(model, "blocks.0.mlp.W_in", rhos=(1.0, 0.5, 0.1, 0.0), progress=False)
        W = place_of(model, "blocks.0.mlp.W_in").matrix()
        U, S, Vh = scipy.linalg.svd(W.double().numpy(), full_matrices=False)
        again = laser.published_distance(model, "blocks.0.mlp.W_in", rhos=(1.0, 0.5, 0.1, 0.0), progress=False)
        assert frame.equals(again)
        for rho, rank in ((0.5, 16), (0.1, 3)):
            spec = {"blocks.0.mlp.W_in": laser.Published(0).edit(rho, (32, 128))}
            with surgery.apply(model, spec, progress=False) as operation:
                edited = operation.weight("blocks.0.mlp.W_in").double().numpy()
            exact = (U[:, :rank] * S[:rank]) @ Vh[:rank]
            row = frame[frame["rho"] == rho].iloc[0]
            norm = scipy.linalg.norm
            assert row["distance"] == pytest.approx(norm(edited - exact) / norm(exact), rel=1e-3)
            assert row["exact_error"] == pytest.approx(norm(S[rank:]) / norm(S), rel=1e-4)
            assert 0.01 < row["distance"] < 1.5 and row["between_seeds"] > 0.01 and row["error"] > row["exact_error"]
    assert frame["distance"].iloc[0] < 1e-5 and frame["distance"].iloc[3] == 0


def test_the_map_has_the_best_of_each_matrix_for_each_task(found: tuple) -> None:
    model, _, first = found
    second = laser.search(model, Task("other", made(40).items), rhos=(0.5, 0.05), **QUIET)
    frame = laser.layer_task_map([first, second])
    assert frame["task"].tolist() == ["planted"] * 4 + ["other"] * 4
    rows = first.to_dataframe()
    rows = rows[rows["split"] == "validation"]
    before = rows["accuracy"].iloc[0]
    for row in frame[frame["task"] == "planted"].itertuples():
        assert row.gain == pytest.approx(rows.loc[rows["site"] == row.site, "accuracy"].max() - before)
    with pytest.raises(ValueError, match="two results are named 'planted': a map has a column for each task"):
        laser.layer_task_map([first, first])
    figure = plots.layer_task(frame)
    assert figure.data[0].z.shape == (4, 2) and figure.data[0].z[3, 0] == 1


def test_the_heat_map_shows_every_candidate_in_its_cell(found: tuple) -> None:
    _, _, result = found
    frame = result.to_dataframe()
    frame = frame[(frame["split"] == "validation") & (frame["site"] != "")]
    for change in (True, False):
        figure = plots.laser_heatmap(result, value="log_loss", change=change)
        titles = [note.text for note in figure.layout.annotations]
        assert titles == ["W_in KeepTop", "W_in DropTop", "W_out KeepTop", "W_out DropTop"]
        shift = result.unedited.summary.log_loss if change else 0
        for title, panel in zip(titles, figure.data, strict=True):
            matrix, edit = title.split()
            for j, rho in enumerate(panel.x):
                for i, layer in enumerate(panel.y):
                    cell = (frame["matrix"] == matrix) & (frame["edit"] == edit) & (frame["layer"] == layer)
                    row = frame[cell & (frame["rho"] == float(rho))].iloc[0]
                    assert panel.z[i][j] == pytest.approx(row["log_loss"] - shift)
                    assert panel.text[i][j].endswith("on 20 items")
    assert figure.layout.coloraxis.colorbar.title.text.endswith("nats per token")
    assert figure.layout.yaxis.title.text == "layer"
    with pytest.raises(ValueError, match="value='f1': it is one of 'accuracy', 'log_loss'"):
        plots.laser_heatmap(result, value="f1")


def test_other_bases_and_single_edits_have_panels_of_their_own() -> None:
    edits = (KeepTop, laser.ByRho(KeepTop, RowBlocks(2)), DropTop(rank=1))
    with borrowed("bridge gpt2") as model:
        result = laser.search(model, parts_of(made()), "blocks.*.mlp.W_out", edits=edits, rhos=(0.5,), **QUIET)
    figure = plots.laser_heatmap(result)
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["W_out KeepTop", "W_out other bases", "W_out other edits"]
    assert figure.data[2].x == ("DropTop(rank=1)",)


def test_the_curve_and_the_bars_show_the_numbers(found: tuple) -> None:
    model, task, result = found
    curve = laser.rank_curve(model, task, SITE, rhos=(1.0, 0.5, 0.0), **QUIET)
    figure = plots.rank_curve(curve)
    frame = curve.to_dataframe().sort_values("rho")
    for k, edit in enumerate(dict.fromkeys(frame["edit"])):
        part = frame[frame["edit"] == edit]
        for j, name in enumerate(("change", "log_loss", "corrected")):
            assert list(figure.data[4 * k + j].y) == part[name].tolist()
        assert list(figure.data[4 * k + 3].y) == (-part["broken"]).tolist()
        changes = figure.data[4 * k]  # the interval of a change is not drawn on an accuracy
        ends = [y + e for y, e in zip(changes.y, changes.error_y.array, strict=True)]
        assert ends == pytest.approx(part["high"].tolist())
        shown = [f"accuracy {accuracy:.3f}, " for accuracy in part["accuracy"]]
        assert all(map(str.startswith, changes.text, shown))
    assert figure.layout.yaxis2.title.text == "nats per token"
    bars = plots.corrected_broken([result])
    assert (list(bars.data[0].y), list(bars.data[1].y)) == ([70], [0])
    assert list(plots.corrected_broken(result.test).data[0].y) == [70]
    assert bars.data[0].width == 0.2  # one result is no slab, and a broken one that is not there is said
    assert ", 70 items<br>70 corrected, 0 broken, p = " in bars.data[0].x[0]
