"""What a score shows beyond its controls, scores by any attribution, answers of several tokens, an epoch of tuning."""

from collections.abc import Sequence
from dataclasses import replace
from math import comb

import pytest
import torch
from torch import Tensor, nn

import surgery
from analyses import arithmetic, attribution, eigenpruning, metrics, plots, scoring, tasks
from analyses.eigenpruning._finetuning import fine_tuned
from analyses.eigenpruning._verdict import Verdict, decided
from analyses.eigenpruning.examples import rows_of
from analyses.statistics import bounded_interval

SITES = ["blocks.0.mlp.W_out", "blocks.1.attn.W_K[1]"]
TOY = arithmetic.ArithmeticTask("x", limit=5)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return arithmetic.bridge(TOY, d_model=8, n_heads=2)


def task_of(n: int, *, answer: int = 1, cluster: int = 1, seed: int = 0) -> tasks.Task:
    """Random prompts of three tokens with answers of so many; so many neighbours each form a group."""
    rows = torch.randint(0, TOY.d_vocab, (n, 3 + answer), generator=torch.Generator().manual_seed(seed)).tolist()
    made = (
        tasks.AnswerItem(tuple(row[:3]), (tuple(row[3:]),), groups=(f"group {k // cluster}",))
        for k, row in enumerate(rows)
    )
    return tasks.Task("random", tuple(made))


def answered(model: nn.Module, right: dict[str, Sequence[bool]], *, cluster: int = 1) -> dict[str, scoring.Scores]:
    """Scores in which each variant is right on the items that are said."""
    n = len(next(iter(right.values())))
    scores = scoring.score(model, task_of(n, cluster=cluster))
    return {name: replace(scores, correct=torch.tensor(list(items))) for name, items in right.items()}


def verdict(model: nn.Module, right: dict[str, Sequence[bool]], *, cluster: int = 1) -> Verdict:
    scores = answered(model, right, cluster=cluster)
    return decided("pruned", scores.pop("pruned"), scores)


def first(n: int, of: int) -> list[bool]:
    return [k < n for k in range(of)]


def test_a_score_that_is_clearly_better_is_beyond_its_controls(model: nn.Module) -> None:
    found = verdict(model, {"pruned": first(55, 60), "smallest s": first(30, 60), "sign flipped": first(10, 60)})
    assert (found.outcome, found.control) == ("beyond", "smallest s")
    assert found.lead.difference == pytest.approx(25 / 60)
    assert found.lead.low > 0
    assert "chooses better than every control; the strongest is 'smallest s'" in str(found)


def test_a_control_that_is_as_good_leaves_nothing_to_show(model: nn.Module) -> None:
    right = {"pruned": first(150, 200), "random 1": first(40, 200), "smallest s": first(151, 200)}
    found = verdict(model, right)
    assert (found.outcome, found.control) == ("as good", "smallest s")
    assert found.lead.high <= found.margin
    assert "the score shows nothing beyond 'smallest s', which does as well" in str(found)


def test_a_control_that_is_better_is_said_to_be(model: nn.Module) -> None:
    found = verdict(model, {"pruned": first(20, 60), "random 1": first(5, 60), "sign flipped": first(50, 60)})
    assert (found.outcome, found.control) == ("behind", "sign flipped")
    assert found.lead.high < 0
    assert "the score shows nothing beyond 'sign flipped', which does better" in str(found)


@pytest.mark.parametrize(("n", "lead"), [(8, 0), (8, 2), (4, 4), (1, 1)])
def test_few_items_decide_nothing(model: nn.Module, n: int, lead: int) -> None:
    found = verdict(model, {"pruned": first(n, n), "smallest s": first(n - lead, n)})
    assert found.outcome == "undecided"
    words = "nothing beyond 'smallest s' here; too few items" if not lead else "undecided whether the score shows"
    assert words in str(found)
    assert f"{n} item" in str(found)


def test_better_than_all_controls_but_one_is_not_beyond(model: nn.Module) -> None:
    right = {"pruned": first(50, 60), "random 1": first(5, 60), "smallest s": first(48, 60)}
    assert verdict(model, {name: right[name] for name in ("pruned", "random 1")}).outcome == "beyond"
    assert verdict(model, right).outcome == "undecided"


@pytest.mark.parametrize("level", [-0.5, 0.0, 1.0])
def test_an_impossible_level_is_refused_whatever_the_number_of_controls(model: nn.Module, level: float) -> None:
    scores = answered(model, {name: first(4, 8) for name in ("pruned", "random 1", "random 2", "smallest s")})
    with pytest.raises(ValueError, match=f"level={level}: a confidence level lies between 0 and 1"):
        decided("pruned", scores.pop("pruned"), scores, level=level)


def test_items_of_one_cluster_count_once(model: nn.Module) -> None:
    right = {"pruned": first(40, 40), "smallest s": first(20, 40)}
    assert verdict(model, right).outcome == "beyond"
    together = verdict(model, right, cluster=10)
    assert (together.outcome, together.n_clusters, together.n_items) == ("undecided", 4, 40)


def test_pruning_carries_its_verdict_into_report_and_table(model: nn.Module) -> None:
    result = eigenpruning.prune(model, task_of(40), SITES, fraction=0.3, progress=False)
    found = result.verdict()
    frame = result.to_dataframe().set_index("variant")
    assert set(found.leads) == {"random 1", "random 2", "random 3", "smallest s", "sign flipped"}
    for name, lead in found.leads.items():
        by_hand = result.scores["pruned"].correct.double() - result.scores[name].correct.double()
        assert lead.difference == pytest.approx(by_hand.mean().item())
        assert frame.loc[name, ["lead", "lead_low", "lead_high"]].tolist() == [lead.difference, lead.low, lead.high]
    assert frame.loc[["base", "pruned"], "lead"].isna().all()
    assert str(found) in repr(result)
    untouched = eigenpruning.prune(model, task_of(40), SITES, fraction=0, progress=False)
    assert "nothing was removed, so there is nothing to hold against controls" in repr(untouched)
    with pytest.raises(KeyError, match="'base' is held against no control; there are pruned"):
        result.verdict("base")
    with pytest.raises(ValueError, match=r"margin=2\.0: give a fraction"):
        result.verdict(margin=2.0)
    with pytest.raises(ValueError, match="'pruned' has no control to be held against"):
        decided("pruned", result.scores["pruned"], {})


@pytest.mark.parametrize("n", [1, 5, 30])
def test_an_interval_of_values_that_agree_has_the_width_of_what_was_imagined(n: int) -> None:
    """All 0: the mean of n + 2 draws is (a − b)/(n + 2), a and b the numbers of draws of the imagined 1 and −1."""
    k = n + 2
    chance = {
        (a - b) / k: 0.0 for a in range(k + 1) for b in range(k + 1 - a)
    }  # fmt: skip
    for a in range(k + 1):
        for b in range(k + 1 - a):
            chance[(a - b) / k] += comb(k, a) * comb(k - a, b) * n ** (k - a - b) / k**k
    assert sum(chance.values()) == pytest.approx(1)
    upper = next(x for x in sorted(chance) if sum(p for y, p in chance.items() if y <= x) >= 0.975)
    low, high = bounded_interval(torch.zeros(n, 1)).flatten().tolist()
    assert high == pytest.approx(upper, abs=1e-9)
    assert low == pytest.approx(-upper, abs=1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says_where_items_are_few() -> None:
    generator = torch.Generator().manual_seed(0)
    for better, worse in ((0.9, 0.02), (0.2, 0.05), (0.02, 0.02)):
        drawn = torch.rand(10, 300, generator=generator)
        low, high = bounded_interval((drawn < better).double() - (drawn > 1 - worse).double(), resamples=500)
        truth = better - worse
        assert ((low <= truth) & (truth <= high)).double().mean() >= 0.95
    with pytest.raises(ValueError, match="a value is 3 in size: these are from -1 to 1"):
        bounded_interval(torch.full((4, 1), 3.0))
    with pytest.raises(ValueError, match="no values to draw from"):
        bounded_interval(torch.zeros(0, 1))


def loss_by_hand(model: nn.Module, task: tasks.Task) -> Tensor:
    rows = torch.tensor([item.prompt for item in task.items])
    answers = torch.tensor([item.right[0][0] for item in task.items])
    with torch.no_grad():
        log_p = model(rows, return_type="logits")[:, -1].double().log_softmax(-1)
    return -log_p[torch.arange(len(rows)), answers]


def removals_by_hand(model: nn.Module, task: tasks.Task) -> dict[tuple[str, int], Tensor]:
    """The loss of every example with one component removed less that with none, by one edit after another."""
    before, effects = loss_by_hand(model, task), {}
    for site in SITES:
        for i in range(surgery.decompose(model, [site])[site].n_components):
            with surgery.apply(model, {site: surgery.Drop([i])}, progress=False):
                effects[site, i] = loss_by_hand(model, task) - before
    return effects


def removed(result: eigenpruning.Pruning) -> set[tuple[str, int]]:
    return {(site, i) for site, units in result.chosen.items() for (i,) in units}


def test_exact_effects_remove_what_loops_over_edits_say(model: nn.Module) -> None:
    parts = task_of(24).split(screen=0.5, validation=0.0, test=0.5)
    by_hand = removals_by_hand(model, parts.screen)
    for reduce, one_number in (("mean", Tensor.mean), ("max", Tensor.max)):
        method = eigenpruning.Method(reduce=reduce, score=attribution.by_ablation)
        result = eigenpruning.prune(model, parts, SITES, fraction=0.5, method=method, progress=False)
        order = sorted(by_hand, key=lambda key: float(one_number(by_hand[key])))
        assert removed(result) == set(order[: len(order) // 2])
        assert "by ablation (zero)," in repr(result)
        flipped = result.attribution.lowest(0.25, by="flipped")
        opposite = sorted(by_hand, key=lambda key: float(one_number(-by_hand[key])))
        assert {(site, i) for site in flipped for (i,) in flipped[site]} == set(opposite[: len(order) // 4])


def test_the_mean_put_back_does_not_depend_on_the_score(model: nn.Module) -> None:
    first_order = eigenpruning.attribute(model, task_of(12), SITES, progress=False)
    exact = eigenpruning.attribute(model, task_of(12), SITES, score=attribution.by_ablation, progress=False)
    for site in SITES:
        torch.testing.assert_close(exact.constants[site], first_order.constants[site])


def by_probability(
    model: nn.Module, tokens: Tensor, metric: metrics.Metric, sites: list, **rest
) -> attribution.Effects:
    labels = metric.labels.max(1).values  # type: ignore[attr-defined]
    return attribution.by_ablation(model, tokens, metrics.log_prob(labels), sites, **rest)


def test_effects_on_what_should_be_high_count_the_other_way_round(model: nn.Module) -> None:
    low, high = (
        eigenpruning.attribute(model, task_of(12), SITES, reduce="max", score=score, progress=False)
        for score in (attribution.by_ablation, by_probability)
    )
    assert high.effects.measure.higher_is_better is False
    assert high.effects.measure.name.startswith("-")
    for site in SITES:
        torch.testing.assert_close(high[site], low[site], atol=1e-5, rtol=1e-3)
    assert dict(high.lowest(0.3)) == dict(low.lowest(0.3))


def test_effects_found_before_are_taken_as_they_are(model: nn.Module) -> None:
    parts = task_of(24).split(screen=0.5, validation=0.0, test=0.5)
    rows = rows_of(model, parts.screen)
    effects = attribution.by_ablation(model, rows.tokens, metrics.loss(rows.labels), SITES, progress=False)
    given, asked = (
        eigenpruning.prune(model, parts, SITES, method=eigenpruning.Method(score=score, reduce="mean"), progress=False)
        for score in (effects, attribution.by_ablation)
    )
    assert removed(given) == removed(asked) != set()
    assert repr(eigenpruning.Method(score=effects)) == repr(eigenpruning.Method())


def test_what_other_scores_are_is_said_in_their_own_words(model: nn.Module) -> None:
    parts = task_of(24).split(screen=0.5, validation=0.0, test=0.5)
    effects = attribution.by_ablation(model, parts.screen, metrics.logit_difference(3, 5), SITES, progress=False)
    result = eigenpruning.prune(model, parts, SITES, method=eigenpruning.Method(score=effects), progress=False)
    assert "max over examples; asked: -logit difference [logits]" in repr(result)
    assert "max over 12 examples, weights" in repr(result.attribution)
    assert plots.eigenpruning.scores(result).layout.yaxis.title.text == "score, max over examples (logits)"


def test_shares_and_units_of_several_components_are_scores_too(model: nn.Module) -> None:
    def joint(model, tokens, metric, sites, *, basis, **rest):
        return attribution.by_path(model, tokens, metric, {site: surgery.Zero() for site in sites}, **rest)

    def in_pairs(model, tokens, metric, sites, **rest):
        units = {"blocks.0.mlp.W_out": [(0, 1), 2, (3, 4, 5), 6, 7], "blocks.1.attn.W_K[1]": [(0, 1), (2, 3)]}
        return attribution.by_ablation(model, tokens, metric, units, **rest)

    shares = eigenpruning.attribute(model, task_of(12), SITES, score=joint, reduce="mean", progress=False)
    assert shares.effects.method.startswith("path")
    assert shares.n_components == 12
    pairs = eigenpruning.attribute(model, task_of(12), SITES, score=in_pairs, progress=False)
    together = pairs["blocks.0.mlp.W_out"]
    assert together[0] == together[1] != together[2]
    assert together[3] == together[4] == together[5]


def refused() -> dict[str, tuple[object, str]]:
    def elsewhere(model, tokens, metric, sites, **rest):
        return attribution.by_gradient(model, tokens, metric, ["blocks.0.mlp.W_in"], **rest)

    def some(model, tokens, metric, sites, **rest):
        return attribution.by_gradient(model, tokens, metric, {SITES[0]: [0, 1], SITES[1]: [0, 1, 2, 3]}, **rest)

    def aimless(model, tokens, metric, sites, **rest):
        return attribution.by_ablation(model, tokens, lambda logits: logits[:, -1, 0], sites, **rest)

    def of_another(model, tokens, metric, sites, **rest):
        other = arithmetic.bridge(TOY, d_model=8, n_heads=2, seed=5)
        return attribution.by_gradient(other, tokens, metric, sites, **rest)

    return {
        "sites": (elsewhere, "the effects are of 'blocks.0.mlp.W_in', and 2 matrices .* Give sites=effects.sites"),
        "some": (some, "of some components of 'blocks.0.mlp.W_out' only"),
        "aimless": (aimless, "which has no direction, so that no component is the least needed"),
        "weights": (of_another, "have other strengths now than when the effects were found"),
        "nothing": (lambda *_, **__: None, "score gave None: it gives Effects"),
    }


@pytest.mark.parametrize("case", refused())
def test_what_is_no_score_of_these_components_is_refused(model: nn.Module, case: str) -> None:
    score, message = refused()[case]
    with pytest.raises((ValueError, TypeError), match=message):
        eigenpruning.attribute(model, task_of(12), SITES, score=score, progress=False)  # type: ignore[arg-type]


def test_effects_whose_items_are_unknown_and_settings_without_effect_are_refused(model: nn.Module) -> None:
    task = task_of(12)
    rows = rows_of(model, task)
    effects = attribution.by_gradient(model, rows.tokens, metrics.loss(rows.labels), SITES, progress=False)
    found = eigenpruning.Method(score=effects)
    with pytest.raises(ValueError, match=r"may be among those that the effects were found on\. Split first"):
        eigenpruning.prune(model, task, SITES, method=found, progress=False)
    parts = task.split(screen=0.5, validation=0.0, test=0.5)
    tuned = eigenpruning.Report(finetune=eigenpruning.FineTuning(steps=1))
    with pytest.raises(ValueError, match=r"a fine-tuned copy has others\. Give the attribution itself"):
        eigenpruning.prune(model, parts, SITES, method=found, report=tuned, progress=False)
    with pytest.raises(ValueError, match="corrupt='previous' with a score of your own"):
        eigenpruning.Method(score=attribution.by_gradient, corrupt="previous")
    with pytest.raises(ValueError, match=r"leave basis= out"):
        eigenpruning.attribute(model, task, SITES, score=effects, basis=surgery.RowBlocks(2), progress=False)


def test_an_answer_is_asked_by_its_mean_its_sum_or_its_first_token(model: nn.Module) -> None:
    long = task_of(8, answer=3)
    short = tasks.Task("cut", tuple(replace(item, answers=(item.answers[0][:1],)) for item in long.items))
    for score in (None, attribution.by_gradient):
        found = {
            per: eigenpruning.attribute(model, long, SITES, per=per, score=score, corrupt="shuffle", progress=False)
            for per in ("token", "sequence", "first")
        }
        cut = eigenpruning.attribute(model, short, SITES, score=score, progress=False)
        for site in SITES:
            torch.testing.assert_close(found["sequence"][site], 3 * found["token"][site])
            torch.testing.assert_close(found["first"][site], cut[site])
            assert not torch.allclose(found["first"][site], found["token"][site])


def test_a_sum_weighs_long_answers_more(model: nn.Module) -> None:
    one, three = task_of(1, answer=1), task_of(1, answer=3, seed=1)
    both = tasks.Task("both", (*one.items, *three.items))
    settings = {"reduce": "mean", "score": attribution.by_gradient, "progress": False}
    apart = [eigenpruning.attribute(model, task, SITES, **settings) for task in (one, three)]
    summed = eigenpruning.attribute(model, both, SITES, per="sequence", **settings)
    for site in SITES:
        torch.testing.assert_close(summed[site], (apart[0][site] + 3 * apart[1][site]) / 2)


def test_the_first_token_is_right_where_it_is_the_likeliest_of_the_whole_vocabulary(model: nn.Module) -> None:
    prompts = torch.tensor([item.prompt for item in task_of(30).items])
    with torch.no_grad():
        likeliest = model(prompts, return_type="logits")[:, -1].argmax(-1).tolist()
    first = [token if k % 3 else (token + 1) % TOY.d_vocab for k, token in enumerate(likeliest)]
    task = tasks.Task(
        "two tokens",
        tuple(
            tasks.AnswerItem(tuple(prompt), ((token, 0), (token, 1, 2)))
            for prompt, token in zip(prompts.tolist(), first, strict=True)
        ),
    )
    scores = scoring.score(model, task, rule=scoring.StartsWith(per="first"))
    assert scores.correct.tolist() == [bool(k % 3) for k in range(30)]
    whole = scoring.score(model, task)
    assert whole.encoded.rule == scoring.StartsWith(per="sequence")
    assert whole.correct.sum() < scores.correct.sum()


def test_an_epoch_sees_every_item_once_and_sgd_takes_the_step_of_the_gradient(model: nn.Module) -> None:
    seen = torch.cat(eigenpruning.FineTuning("epoch", batch_size=4).batches(10))
    assert sorted(seen.tolist()) == list(range(10))
    twice = torch.cat(eigenpruning.FineTuning(5, batch_size=4).batches(10))
    assert sorted(twice[:10].tolist()) == list(range(10))
    assert len(twice) == 4 + 4 + 2 + 4 + 4
    task = task_of(6)
    how = eigenpruning.FineTuning("epoch", lr=0.05, batch_size=6, optimizer="sgd")
    copy = fine_tuned(model, task, how, progress=False)
    rows, answers = (torch.tensor([getattr(i, name) for i in task.items]) for name in ("prompt", "answers"))
    for parameter in model.parameters():
        parameter.grad = None
    nn.functional.cross_entropy(model(rows, return_type="logits")[:, -1], answers[:, 0, 0]).backward()
    for (name, before), (_, after) in zip(model.named_parameters(), copy.named_parameters(), strict=True):
        wanted = before if before.grad is None else before - 0.05 * before.grad
        torch.testing.assert_close(after, wanted, msg=name)
        before.grad = None


def test_the_published_pipeline_is_one_call(model: nn.Module) -> None:
    task = tasks.multiplication(5)
    ids = tasks.Task("ids", tuple(
        tasks.AnswerItem(tuple(prompt), ((answer,),), groups=item.groups)
        for prompt, answer, item in zip(TOY.prompts.tolist(), TOY.answers.tolist(), task.items, strict=True)
    ))  # fmt: skip
    result = eigenpruning.published(model, ids, progress=False)
    scored, reported = result.attribution.n_examples, len(result.scores["base"])
    assert scored + reported == 25
    assert 3 <= reported <= 7
    assert (result.method.per, result.method.corrupt, result.method.reduce) == ("first", "previous", "max")
    assert result.chosen.n_components == int(0.2 * result.attribution.n_components)
    assert all(".attn.W_K[" in site for site in result.attribution.sites)
    text = repr(result)
    for said in (
        "asked: the cross-entropy of an answer's first token",
        "split with seed 0, groups whole; BOS as the model has it",
        "right by StartsWith(per='first')",
        "fine-tuned + pruned: ",
    ):
        assert said in text, said
    assert max(map(len, text.splitlines())) < 110
    parts = ids.split(screen=0.6, validation=0.0, test=0.4)
    assert "(in given parts; BOS" in repr(eigenpruning.prune(model, parts, progress=False))


def test_a_part_of_ones_choice_is_reported_on(model: nn.Module) -> None:
    result = eigenpruning.prune(model, task_of(50), SITES, report=eigenpruning.Report(test=0.2), progress=False)
    assert (result.attribution.n_examples, len(result.scores["base"])) == (40, 10)
    chosen = eigenpruning.prune(
        model, task_of(50), SITES, fraction=eigenpruning.Best((0.0, 0.2)), report=eigenpruning.Report(test=0.2),
        progress=False,
    )  # fmt: skip
    assert (chosen.attribution.n_examples, len(chosen.scores["base"])) == (32, 8)
