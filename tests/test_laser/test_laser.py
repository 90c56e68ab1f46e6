"""Searching and composing reductions: against loops written by hand, planted answers and pure noise."""

import copy
import json
from itertools import pairwise

import models
import pandas as pd
import pytest
import torch
from asked_models import borrowed
from hypothesis import given, settings
from hypothesis import strategies as st
from models import EVERY_KIND, ONE_OF_EACH, kinds
from planted import planted
from torch import nn

import surgery
from analyses import laser, scoring
from analyses.laser._promises import Promise, promises
from analyses.laser._race import POOL, _entrants, _neighbours, _rounds
from analyses.laser._standings import at_stake, in_order, undecided_half, weights_of
from analyses.laser._trials import Bench, Objective, Setup
from analyses.laser.candidates import _family, candidates
from analyses.laser.search import _settings
from analyses.scoring import Outcome
from analyses.tasks import AnswerItem, ChoiceItem, MinimalPair, Splits, Task
from hooks import place_of
from surgery import Drop, DropTop, KeepBottom, KeepTop, RowBlocks, Scale, Zero

MLP = "blocks.*.mlp.W_{in,out}"
QUIET = {"progress": False}


def made(n: int = 24, *, seed: int = 0, longest: int = 8) -> Task:
    """Prompts of different lengths with random answers of one or two tokens: noise."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high + 1, (), generator=generator))
        return tuple(torch.randint(models.D_VOCAB, (length,), generator=generator).tolist())

    return Task("noise", tuple(AnswerItem(ids(2, longest), (ids(1, 2),)) for _ in range(n)))


def parts_of(task: Task) -> Splits:
    return task.split(screen=0.25, validation=0.5, test=0.25, seed=1)


@torch.no_grad()
def by_hand(model: nn.Module, task: Task) -> tuple[float, float]:
    """Accuracy and log-loss, an item at a time: right if all tokens of the answer are the likeliest."""
    right, loss = [], []
    for item in task.items:
        (answer,) = item.right
        logits = model(torch.tensor([[*item.context, *answer]]), return_type="logits")[0].double()
        said = logits[len(item.context) - 1 : -1]
        right.append(said.argmax(-1).tolist() == list(answer))
        loss.append(-said.log_softmax(-1)[range(len(answer)), list(answer)].mean().item())
    return sum(right) / len(right), sum(loss) / len(loss)


def truncated(model: nn.Module, site: str, rank: int, *, top: bool) -> nn.Module:
    """A copy of the model whose stored matrix is multiplied out from LAPACK's singular vectors."""
    other = copy.deepcopy(model)
    place = place_of(other, site)
    U, S, Vh = torch.linalg.svd(place.matrix().double(), full_matrices=False)
    kept = slice(0, rank) if top else slice(rank, None)
    place.slots[0].registered().data.copy_(place.stored(((U[:, kept] * S[kept]) @ Vh[kept]).float()))
    return other


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_every_row_is_what_a_loop_over_edited_copies_finds(kind: str) -> None:
    with borrowed(kind) as model:
        parts = parts_of(made())
        frame = laser.search(model, parts, rhos=(0.6, 0.1), edits=(KeepTop, DropTop), **QUIET).to_dataframe()
        tried = frame[(frame["split"] == "validation") & (frame["site"] != "")]
        assert len(tried) == 4 * 2 * 2
        for row in tried.itertuples():
            rank = {0.6: 19, 0.1: 3}[row.rho]
            edited = truncated(model, row.site, rank, top=row.edit == "KeepTop")
            accuracy, log_loss = by_hand(edited, parts.validation)
            assert row.accuracy == accuracy, row
            assert row.log_loss == pytest.approx(log_loss, abs=2e-5), row
        for split, part in {"validation": parts.validation, "test": parts.test}.items():
            row = frame[(frame["split"] == split) & (frame["site"] == "")].iloc[0]
            assert (row.accuracy, row.log_loss) == pytest.approx(by_hand(model, part), abs=2e-5)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_search_scores_as_plain_scoring_does_on_every_kind_of_model(kind: str) -> None:
    with borrowed(kind) as model:
        parts = parts_of(made(8, longest=6))
        sites = ["blocks.0.attn.W_K", "blocks.1.attn.W_Q[1]", "blocks.*.*.W_{O,out}"]
        result = laser.search(model, parts, sites, rhos=(0.3,), **QUIET)
        assert {str(one.candidate.site) for one in result.trials} == {*surgery.sites(model, sites)}
        for one in result.trials:
            with surgery.apply(model, one.candidate.spec, progress=False):
                plain = scoring.score(model, parts.validation, batch_size=3)
            torch.testing.assert_close(one.scores.log_probs, plain.log_probs, atol=1e-5, rtol=0)
            assert torch.equal(one.scores.correct, plain.correct)
        torch.testing.assert_close(
            result.unedited.scores.log_probs, scoring.score(model, parts.validation).log_probs, atol=1e-5, rtol=0
        )


def test_the_choice_is_the_most_accurate_and_among_equals_the_one_of_least_log_loss() -> None:
    with borrowed("bridge gpt2") as model:
        result = laser.search(model, parts_of(made(40)), rhos=(0.9, 0.5, 0.1), **QUIET)
    frame = result.to_dataframe()
    frame = frame[frame["split"] == "validation"]
    ranked = frame.sort_values(["accuracy", "log_loss"], ascending=[False, True], kind="stable")
    assert frame[frame["chosen"]].index.tolist() == [ranked.index[0]]


def test_the_test_items_are_those_of_the_split_and_compared_pairwise() -> None:
    with borrowed("bridge gpt2") as model:
        parts = parts_of(made(40))
        result = laser.search(model, parts, rhos=(0.1,), **QUIET)
        with surgery.apply(model, result.spec, progress=False):
            after = scoring.score(model, parts.test)
        before = scoring.score(model, parts.test)
    wanted = scoring.compare(before, after, seed=0)
    assert result.test.corrected == wanted.corrected and result.test.broken == wanted.broken
    assert result.test.accuracy == wanted.accuracy and result.test.p_value == wanted.p_value


def test_a_candidate_that_changes_nothing_scores_as_the_unedited_model_to_the_last_bit() -> None:
    with borrowed("bridge gpt2") as model:
        result = laser.search(model, parts_of(made()), rhos=(1.0, 0.5), **QUIET)
    whole = [one for one in result.trials if one.candidate.rho == 1]
    assert len(whole) == 4
    for one in whole:
        assert torch.equal(one.outcome.readings.log_prob, result.unedited.outcome.readings.log_prob)


def test_where_nothing_helps_nothing_is_chosen() -> None:
    with borrowed("bridge gpt2") as model:
        result = laser.search(model, parts_of(made()), rhos=(1.0,), **QUIET)
    assert (result.chosen, result.spec) == (None, {})
    assert "nothing, no candidate was better" in repr(result)
    assert result.to_dataframe().loc[lambda frame: frame["chosen"], "site"].unique().tolist() == [""]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("strategy", ["exhaustive", "screened", laser.Screened(items=8, at_least=2, first_round=8)])
def test_a_search_finds_what_was_planted(kind: str, strategy: str | laser.Screened) -> None:
    found = planted(kind)
    assert scoring.score(found.model, found.task).accuracy == 0
    result = laser.search(found.model, found.task, edits=(KeepTop, DropTop), strategy=strategy, **QUIET)
    assert result.spec == {"blocks.1.mlp.W_out": DropTop(rho=0.05)}
    assert result.test.after.accuracy == 1
    assert result.test.accuracy.low > 0
    assert "verdict: a gain on unseen items" in repr(result)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_composition_finds_both_of_two_planted_components(kind: str) -> None:
    found = planted(kind, layers=(0, 1))
    edits = (DropTop(rank=1), KeepTop(rho=0.2), KeepTop(rho=0.01))
    result = laser.compose(found.model, found.task, edits=edits, **QUIET)
    assert result.spec == {"blocks.0.mlp.W_out": DropTop(rank=1), "blocks.1.mlp.W_out": DropTop(rank=1)}
    assert result.test.after.accuracy == 1
    alone = laser.search(found.model, found.task, edits=edits, **QUIET)
    assert alone.test.after.accuracy < 0.2


def test_a_composition_is_judged_with_the_earlier_edits_in_place() -> None:
    found = planted("bridge gpt2", layers=(0, 1))
    parts = found.task.split(seed=0)
    sites, edits = "blocks.*.W_{V,in,out}", (KeepTop, DropTop)
    result = laser.compose(found.model, parts, sites, rhos=(0.3, 0.1), edits=edits, **QUIET)
    spec: dict[str, surgery.Edit] = {}
    best = scoring.score(found.model, parts.validation)
    merit = best.accuracy, -best.log_loss.mean().item()
    assert sum(step.accepted for step in result.steps) >= 3
    assert any(step.edit is None for step in result.steps)
    for step in result.steps:
        site = str(step.candidate.site)
        tried = {**spec, site: step.edit} if step.edit else {k: v for k, v in spec.items() if k != site}
        with surgery.apply(found.model, tried, progress=False):
            scores = scoring.score(found.model, parts.validation)
        torch.testing.assert_close(step.trial.scores.log_probs, scores.log_probs, atol=1e-5, rtol=0)
        now = scores.accuracy, -scores.log_loss.mean().item()
        assert step.accepted == (now >= merit if step.edit is None else now > merit)
        if step.accepted:
            spec, merit = tried, now
    assert result.spec == spec


def test_a_composition_goes_from_the_last_layer_and_the_smallest_rho() -> None:
    with borrowed("bridge gpt2") as model:
        result = laser.compose(model, parts_of(made()), rhos=(0.9, 0.1), **QUIET)
    walked = [(one.candidate.site.layer, one.candidate.rho) for one in result.steps if one.edit is not None]
    assert walked == [(1, 0.1), (1, 0.1), (1, 0.9), (1, 0.9), (0, 0.1), (0, 0.1), (0, 0.9), (0, 0.9)]


def test_heads_and_single_components_compose() -> None:
    with borrowed("bridge gpt2") as model:
        parts = parts_of(made(40))
        heads = laser.compose(model, parts, "blocks.1.attn.W_O[*]", edits=(Zero(),), **QUIET)
        single = laser.compose(model, parts, "blocks.1.mlp.W_in", edits=[Drop([i]) for i in range(6)], **QUIET)
        assert {step.candidate.site.head for step in heads.steps} == {0, 1, 2, 3}
        for result in (heads, single):
            with surgery.apply(model, result.spec, progress=False):
                scores = scoring.score(model, parts.validation)
            last = result.accepted[-1].trial if result.accepted else result.unedited
            torch.testing.assert_close(last.scores.log_probs, scores.log_probs, atol=1e-5, rtol=0)
    dropped = single.spec["blocks.1.mlp.W_in"].components
    kept = [step for step in single.accepted if step.edit is not None]
    assert len(dropped) == len(kept) >= 2


def test_a_composition_among_a_searchs_finds_tries_what_helped_alone() -> None:
    found = planted("bridge gpt2", layers=(0, 1))
    searched = laser.search(found.model, found.task, edits=(KeepTop, DropTop), rhos=(0.5, 0.05), **QUIET)
    result = laser.compose(found.model, found.task, among=searched, **QUIET)
    before = searched.unedited.merit
    helpful = {one.candidate for one in searched.trials if one.merit > before}
    assert 0 < len(helpful) < len(searched.trials)
    assert {step.candidate for step in result.steps} == helpful
    with borrowed("bridge gpt2") as model:
        nothing = laser.search(model, parts_of(made()), rhos=(1.0,), **QUIET)
        with pytest.raises(ValueError, match=r"none of its candidates was better .* Compose other candidates"):
            laser.compose(model, parts_of(made()), among=nothing, **QUIET)


@pytest.mark.parametrize("seed", range(3))
def test_on_noise_the_interval_covers_0_and_the_report_says_so(seed: int) -> None:
    with borrowed("bridge gpt2") as model:
        result = laser.search(model, made(150, seed=seed), edits=(KeepTop, DropTop), rhos=(0.6, 0.2, 0.05), **QUIET)
    assert result.chosen is not None
    assert result.test.accuracy.covers_zero
    assert "verdict: no evidence of a gain: the interval of the test gain covers 0" in repr(result)


def test_the_majority_baseline_speaks_up_where_an_edit_does_not_exceed_it() -> None:
    constant = Task("constant", tuple(AnswerItem(item.context, ((3,),)) for item in made(40).items))
    with borrowed("bridge gpt2") as model:
        report = repr(laser.search(model, constant, rhos=(0.5,), **QUIET))
    assert "always giving the most frequent answer: accuracy 1.000, which the edited model does not exceed" in report


@pytest.mark.parametrize("strategy", ["exhaustive", "screened"])
def test_a_search_is_the_same_every_time_and_whatever_the_batches(strategy: str) -> None:
    task = made(60)
    with borrowed("bridge gpt2") as model:
        searches = [
            laser.search(
                model, task, seed=4, strategy=strategy, rhos=(0.5, 0.1), batch_size=size, memory=memory, **QUIET
            )
            for size, memory in ((None, 2**30), (None, 2**30), (5, 2**30), (5, 20_000), (7, 1))
        ]
    frames = [one.to_dataframe() for one in searches]
    pd.testing.assert_frame_equal(frames[0], frames[1])
    for frame in frames[2:]:
        pd.testing.assert_frame_equal(frames[0], frame, rtol=1e-4)
    assert [repr(one.spec) for one in searches] == [repr(searches[0].spec)] * 5


def test_another_seed_splits_otherwise() -> None:
    with borrowed("bridge gpt2") as model:
        one, other = (laser.search(model, made(60), seed=seed, rhos=(0.1,), **QUIET) for seed in (0, 1))
    assert one.unedited.scores.task.items != other.unedited.scores.task.items


def test_the_model_is_left_alone_by_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    said, left = Bench.said, iter(range(3))

    def interrupted(self: Bench, *arguments: object) -> Outcome:
        outcome = said(self, *arguments)
        if next(left, None) is None:
            raise KeyboardInterrupt
        return outcome

    monkeypatch.setattr(Bench, "said", interrupted)
    with borrowed("bridge gpt2") as model:  # checks that the model is as it was
        with pytest.raises(KeyboardInterrupt):
            laser.search(model, parts_of(made()), rhos=(0.1, 0.3), **QUIET)
        assert surgery.active(model) == ()


def test_a_search_works_on_top_of_an_edit_in_force() -> None:
    with borrowed("bridge gpt2") as model:
        parts = parts_of(made())
        with surgery.apply(model, {"blocks.0.mlp.W_in": KeepTop(rho=0.5)}, progress=False):
            result = laser.search(model, parts, "blocks.*.mlp.W_out", rhos=(0.2,), **QUIET)
            for one in result.trials:
                with surgery.apply(model, one.candidate.spec, progress=False):
                    plain = scoring.score(model, parts.validation)
                torch.testing.assert_close(one.scores.log_probs, plain.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["choice", "pair", "contains"])
def test_choices_pairs_and_generated_answers_are_searched_alike(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(models.D_VOCAB, (16, 9), generator=generator).tolist()
    rule = scoring.Contains(n_tokens=3) if kind == "contains" else None
    build = {
        "choice": lambda x: ChoiceItem(tuple(x[:4]), (tuple(x[4:6]), tuple(x[6:9]), (x[0],)), (0,)),
        "pair": lambda x: MinimalPair(tuple(x[:5]), tuple(x[4:])),
        "contains": lambda x: AnswerItem(tuple(x[:4]), ((x[4],), (x[5], x[6]))),
    }[kind]
    parts = parts_of(Task(kind, tuple(build(x) for x in ids)))
    with borrowed("bridge gpt2") as model:
        for strategy in ("exhaustive", "screened"):
            result = laser.search(model, parts, rhos=(0.3,), strategy=strategy, rule=rule, **QUIET)
            whole = [one for one in result.trials if len(one.scores) == len(parts.validation)]
            assert whole
            for one in whole:
                with surgery.apply(model, one.candidate.spec, progress=False):
                    plain = scoring.score(model, one.scores.task, rule=rule)
                torch.testing.assert_close(one.scores.log_probs, plain.log_probs, atol=1e-5, rtol=0)
                assert torch.equal(one.scores.correct, plain.correct)
                assert one.scores.prediction_ids == plain.prediction_ids


def test_the_cost_on_a_plain_text_is_reported() -> None:
    text = models.tokens(3, 20)
    found = planted("bridge gpt2")
    result = laser.search(found.model, found.task, edits=(DropTop,), rhos=(0.05,), text=text, **QUIET)
    before = scoring.text_loss(found.model, text)
    with surgery.apply(found.model, result.spec, progress=False):
        after = scoring.text_loss(found.model, text)
    assert (result.text.before, result.text.after) == pytest.approx((before, after), abs=1e-5)
    assert f"loss on the plain text: {before:.4f} → {after:.4f}" in repr(result)


def test_row_blocks_and_the_published_estimator_are_edits_like_others() -> None:
    edits = (laser.ByRho(KeepTop, RowBlocks(2)), laser.Published(seed=3), KeepBottom, DropTop(rank=2))
    with borrowed("bridge gpt2") as model:
        parts = parts_of(made())
        result = laser.search(model, parts, "blocks.0.mlp.W_out", rhos=(0.5, 0.1), edits=edits, **QUIET)
        assert len(result.trials) == 7
        for one in result.trials:
            with surgery.apply(model, one.candidate.spec, progress=False):
                plain = scoring.score(model, parts.validation)
            torch.testing.assert_close(one.scores.log_probs, plain.log_probs, atol=1e-5, rtol=0)
    frame = result.to_dataframe()
    assert frame.loc[frame["edit"] == "DropTop(rank=2)", "rho"].isna().all()


@pytest.mark.parametrize("kind", kinds("hooked rms-folded-grouped-rotary", "bridge llama compatible"))
@pytest.mark.parametrize("form", ["answers", "choices"])
def test_promises_are_the_slopes_of_the_loss_by_central_differences(kind: str, form: str) -> None:
    tasks = {
        "answers": Task("a", (*made(6).items, AnswerItem((1, 2, 3), ((4,), (5, 6))))),
        "choices": Task("c", tuple(ChoiceItem(i.context, (i.right[0], (1, 2), (3,)), (0,)) for i in made(6).items)),
    }
    task, step = tasks[form], 1e-2
    with borrowed(kind) as model:
        sites = ["blocks.1.mlp.W_in", "blocks.0.attn.W_V", "blocks.1.attn.W_O[2]"]
        wanted = candidates(model, sites, (0.5,), (Zero(),))
        found = promises(Setup(model, batch_size=3, progress=False).bench("screen", task), wanted)
        for one in wanted:
            rank = surgery.decompose(model, str(one.site), progress=False)[str(one.site)].n_components
            slopes = []
            for i in range(rank):
                up, down = (_loss(model, task, {str(one.site): Scale({i: 1 + s})}) for s in (step, -step))
                slopes.append((up - down) / (2 * step))
            assert found[one].most == pytest.approx(sum(max(0.0, slope) for slope in slopes), rel=0.03, abs=2e-3), one
            assert found[one].net == pytest.approx(sum(slopes), rel=0.03, abs=2e-3), one


def _loss(model: nn.Module, task: Task, spec: surgery.Spec) -> float:
    with surgery.apply(model, spec, progress=False):
        scores = scoring.score(model, task)
    return (scores.log_loss if task.kind == "answer" else -scores.p_correct.log()).mean().item()


def test_promises_leave_no_gradient_behind() -> None:
    with borrowed("bridge gpt2") as model:
        laser.search(model, made(60), strategy="screened", rhos=(0.1,), **QUIET)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_screened_search_runs_fewer_items_and_confirms_its_finalists_in_full() -> None:
    found = planted("bridge gpt2", items=400)
    settings = laser.Screened(items=20, keep=0.5, at_least=1, first_round=16, tolerance=0.01, survive=0.3, finalists=2)
    options = {"sites": "blocks.*.mlp.W_out", "edits": (KeepTop, DropTop), **QUIET}
    exhaustive = laser.search(found.model, found.task, **options)
    screened = laser.search(found.model, found.task, strategy=settings, **options)
    assert screened.items_run < exhaustive.items_run / 3
    assert screened.spec == exhaustive.spec
    assert screened.chosen.merit == pytest.approx(exhaustive.chosen.merit, abs=1e-5)
    seen = sorted(one.summary.n_items for one in screened.trials)
    assert seen[0] == 16 and seen[-2:] == [80, 80]
    by_name = {str(one.candidate): one for one in exhaustive.trials}
    items = list(exhaustive.unedited.scores.task.items)
    for one in [screened.unedited, *screened.trials]:
        whole = by_name.get(str(one.candidate), exhaustive.unedited).scores
        there = [items.index(item) for item in one.scores.task.items]
        assert len(set(there)) == len(there)
        torch.testing.assert_close(one.scores.log_loss, whole.log_loss[there], atol=1e-5, rtol=0)


def test_a_race_hardly_costs_more_where_there_are_many_items() -> None:
    """Beyond `POOL` items the first ones are drawn from a part of them; only the finalists run on all."""
    found = planted("bridge gpt2", items=1120)
    parts = found.task.split(screen=0.03, validation=0.94, test=0.03, seed=0)
    options = {"sites": "blocks.*.mlp.W_out", "strategy": "screened", "rhos": (0.8, 0.2, 0.05, 0.01), **QUIET}
    raced = {}
    for n in (150, len(parts.validation)):
        result = laser.search(found.model, Splits(parts.screen, parts.validation[:n], parts.test), **options)
        assert set(result.unedited.scores.task.items) == set(parts.validation.items[:n])
        in_full = [one for one in result.trials if len(one.scores) == n]
        raced[n] = sum(len(one.scores) for one in result.trials if len(one.scores) < n)
        assert laser.Screened().finalists <= len(in_full) < len(result.trials)
        assert result.items_run == raced[n] + n * (len(in_full) + 1) + min(n, POOL)
    assert n > POOL and raced[n] < 2 * raced[150] < n
    with surgery.apply(found.model, result.spec, progress=False):
        plain = scoring.score(found.model, result.chosen.scores.task)
    assert torch.equal(result.chosen.scores.correct, plain.correct)


def test_entrants_are_every_third_rho_of_promising_matrices_and_neighbours_join() -> None:
    with borrowed("bridge gpt2") as model:
        wanted = candidates(model, "blocks.*.mlp.W_out", laser.PAPER_RHOS, (KeepTop, DropTop(rank=1)))
    last = max(one.site for one in wanted)
    promised = {one: Promise(float(one.site == last), 0.0) for one in wanted}
    entrants = _entrants(wanted, promised, laser.Screened(keep=0.01, at_least=1))
    assert [(one.site == last, one.rho) for one in entrants if one.family] == [(False, 0.1), (True, 0.8), (True, 0.1)]
    assert sum(one.edit == DropTop(rank=1) for one in entrants) == 2
    joining = {one: _neighbours(wanted, [one], dict.fromkeys(entrants)) for one in entrants if one.site == last}
    assert {one.rho: {other.rho for other in those} for one, those in joining.items()} == {
        0.8: {0.9, 0.6, 0.2},
        0.1: {0.2, 0.6, 0.05, 0.01},
        None: set(),
    }


@given(st.lists(st.booleans(), min_size=1, max_size=120), st.integers(0, 5))
def test_the_items_of_a_race_are_all_of_them_and_more_of_the_undecided_first(kinds: list[bool], seed: int) -> None:
    n, undecided = len(kinds), torch.tensor(kinds)
    order = in_order(undecided, seed)
    assert sorted(order.tolist()) == list(range(n))
    for k in range(1, n + 1):
        close = int(undecided[order[:k]].sum())
        left = undecided[order[k:]]
        if left.any() and not left.all():
            assert abs(close - 0.6 * k) <= 1


def test_a_race_weighs_items_by_how_many_they_stand_for() -> None:
    """However unequal the shares, the weighted accuracy of a part is the mean of the accuracies of its two halves."""
    with borrowed("bridge gpt2") as model:
        task = parts_of(made(48)).validation
        setup = Setup(model, progress=False)
        one = setup.bench("all", task).unedited()
        undecided = undecided_half(Objective(one.scores).decidedness())
        p = one.scores.p_correct
        assert int(undecided.sum()) == len(task) // 2
        nearness = (p / (1 - p)).log().abs()
        assert nearness[undecided].max() <= nearness[~undecided].min()
        order = in_order(undecided, 0)
        part = setup.bench("part", task.take(order.tolist())[:10]).unedited()
        weights, points = weights_of(undecided[order], 10), Objective(part.scores).points()
        right, those, kind = one.scores.correct.double()[order][:10], p[order][:10], undecided[order][:10]
        of_halves = [(right[half].mean() + those[half].mean()).item() / 2 for half in (kind, ~kind)]
        assert float(weights @ points) == pytest.approx(sum(of_halves) / 2, rel=1e-4)


def test_what_is_at_stake_is_what_sampling_the_lead_gives() -> None:
    """The mean over draws of a normal lead, cut off below 0, in which each half counts by its size."""
    generator = torch.Generator().manual_seed(0)
    undecided = torch.arange(100) % 2 == 0
    leads = torch.randint(-1, 2, (3, 40), generator=generator).double() - torch.tensor([[0.0], [0.2], [-0.3]])
    mean, variance = torch.zeros(3).double(), torch.zeros(3).double()
    for half in (undecided[:40], ~undecided[:40]):
        those = leads[:, half]
        mean += those.mean(1) / 2
        # With one imagined item on which the two differ, and 30 of the 50 items of the half still to come.
        variance += (those.var(1, correction=0) + 1 / 20) / 20 / 4 * (30 / 50)
    draws = mean + variance.sqrt() * torch.randn(400_000, 3, generator=generator).double()
    torch.testing.assert_close(at_stake(leads, undecided, n_items=100), draws.clamp_min(0).mean(0), atol=3e-4, rtol=0)
    in_cents = at_stake(100 * leads, undecided, n_items=100, unit=100.0)
    torch.testing.assert_close(in_cents, 100 * at_stake(leads, undecided, n_items=100))


@given(st.integers(2, 60), st.integers(0, 9))
def test_nothing_is_at_stake_but_the_lead_itself_once_all_items_were_asked(n: int, seed: int) -> None:
    leads = torch.randn(4, n, generator=torch.Generator().manual_seed(seed)).double()
    undecided = undecided_half(torch.rand(n, generator=torch.Generator().manual_seed(seed)))
    torch.testing.assert_close(at_stake(leads, undecided, n_items=n), leads.mean(1).clamp_min(0))


def test_one_who_agrees_with_the_leader_drops_out_only_after_many_items() -> None:
    undecided = torch.arange(10_000) % 2 == 0

    def stakes(n: int, differing: int) -> list[float]:
        leads = torch.zeros(2, n, dtype=torch.double)
        leads[1, :differing] = 1 - 2 * (torch.arange(differing) % 4 > 1).double()
        return at_stake(leads, undecided, n_items=10_000).tolist()

    tolerance = laser.Screened().tolerance
    agreeing = [stakes(n, n // 4)[0] for n in (20, 80, 400)]
    assert agreeing == sorted(agreeing, reverse=True) and agreeing[0] > tolerance > agreeing[-1] > 0
    # Where nobody differs, edits do little: there is nothing to wait for.
    assert max(stakes(20, 0)) < tolerance


@settings(max_examples=50)
@given(st.integers(1, 10_000), st.integers(1, 500))
def test_rounds_grow_to_the_whole(n: int, first: int) -> None:
    ends = _rounds(n, first)
    assert ends[-1] == n and ends == sorted(set(ends)) and ends[0] <= max(first, 1)
    assert all(later <= 3 * earlier + 1 for earlier, later in pairwise(ends))


def test_the_table_has_the_columns_that_are_asked_for() -> None:
    with borrowed("bridge gpt2") as model:
        frame = laser.search(model, parts_of(made()), rhos=(0.1,), **QUIET).to_dataframe()
    wanted = {"site", "rho", "split", "accuracy", "log_loss", "top5", "majority_accuracy", "f1", "corrected", "broken"}
    assert wanted <= set(frame.columns)
    json.loads(frame.to_json())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rhos": ()}, r"give no candidate: a search needs one or more\. Give at least one site"),
        ({"memory": 0}, r"memory=0: give a whole number, 1 or more"),
        ({"batch_size": 0}, r"batch_size=0: give a whole number, 1 or more"),
        ({"seed": -1}, r"seed=-1: give a whole number, from 0 to"),
        ({"rhos": (0.5, 1.5)}, r"rho=1\.5: give a fraction, from 0 to 1"),
        ({"sites": "blocks.9.mlp.W_in"}, r"no matrix is named 'blocks.9.mlp.W_in': this model has 2 layers"),
    ],
)
def test_what_cannot_be_searched_is_refused(wrong: dict, message: str) -> None:
    with borrowed("bridge gpt2") as model, pytest.raises((ValueError, TypeError), match=message):
        laser.search(model, parts_of(made()), **wrong, **QUIET)


def test_a_list_of_items_is_searched_as_a_task() -> None:
    task = made(40)
    with borrowed("bridge gpt2") as model:
        found, again = (laser.search(model, given, rhos=(0.1,), **QUIET) for given in (task, list(task.items)))
    assert again.trials[0].summary.accuracy == found.trials[0].summary.accuracy
    assert again.test.before.task.items == found.test.before.task.items


def test_one_of_a_thing_is_not_called_several() -> None:
    with borrowed("bridge gpt2") as model:
        found = laser.search(model, parts_of(made()), "blocks.0.mlp.W_in", rhos=(0.1,), **QUIET)
    assert "exhaustive: 1 candidate tried, 1 of them on all " in repr(found)


def test_an_edit_of_more_components_than_there_are_is_refused_before_anything_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Bench, "said", lambda *_: pytest.fail("something was run"))
    with borrowed("bridge gpt2") as model, pytest.raises(ValueError, match=r"asks for more components than 'blocks\.0"):
        laser.search(model, parts_of(made()), rhos=(0.5,), edits=(KeepTop, DropTop(rank=10_000)), **QUIET)


def test_an_empty_part_a_mixed_composition_and_impossible_settings_are_refused() -> None:
    empty = made().split(screen=0.0, validation=0.5, test=0.5, seed=0)
    with borrowed("bridge gpt2") as model:
        with pytest.raises(ValueError, match=r"the part 'screen' of the task has no items: .* Split the task"):
            laser.search(model, empty, strategy="screened", **QUIET)
        with pytest.raises(ValueError, match=r"'blocks.0.attn.W_Q' is to be edited both whole and by its heads"):
            laser.compose(model, empty, ["blocks.0.attn.W_Q", "blocks.0.attn.W_Q[1]"], **QUIET)
    with pytest.raises(ValueError, match=r"strategy='greedy': give 'exhaustive', 'screened', or laser.Screened"):
        _settings("greedy")
    with pytest.raises(TypeError, match=r"'top' is no edit: give cuts such as KeepTop"):
        _family("top")
    with pytest.raises(ValueError, match=r"the fractions are above 0 and at most 1\. Start from Screened"):
        laser.Screened(keep=0.0)
