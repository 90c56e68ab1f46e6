"""A task in the place of tokens: every analysis reads its prompts, and a metric without answers takes its answers."""

import models
import pytest
import torch
from asked_models import borrowed
from models import ONE_OF_EACH
from torch import Tensor, nn

import surgery
from analyses import attribution, laser, metrics, patching, prompts, scoring
from analyses.tasks import AnswerItem, ChoiceItem, MinimalPair, Task
from surgery import Drop, KeepTop

OUT = "blocks.1.mlp.W_out"
SOME = {OUT: [0, 1, 2], "blocks.0.attn.W_Q": [0]}
RAGGED = [
    AnswerItem((1, 2, 3), ((4,),), ((5,),)),
    AnswerItem((6, 7), ((8, 9), (3,)), ((10, 11, 12),)),
    AnswerItem((9, 8, 7, 6), ((4, 4),), ((4, 5), (2,))),
]
CHOICES = [ChoiceItem((1, 2), ((3,), (4, 5), (6,)), (1,)), ChoiceItem((7, 8, 9), ((1,), (2,)), (0,))]
PAIRS = [MinimalPair((1, 2, 3, 4), (1, 2, 5, 4)), MinimalPair((1, 7, 8), (1, 9, 8, 3))]


@torch.no_grad()
def log_p(model: nn.Module, context: tuple[int, ...], ids: tuple[int, ...]) -> Tensor:
    """The log-probability of a continuation, by one plain pass over one row."""
    logits = model(torch.tensor([context + ids]))[0].log_softmax(-1)
    return torch.stack([logits[len(context) - 1 + n, token] for n, token in enumerate(ids)]).sum()


def sides(model: nn.Module, item: AnswerItem | ChoiceItem | MinimalPair) -> tuple[Tensor, Tensor]:
    """The log-probabilities of the right and of the wrong continuations of an item."""
    if isinstance(item, MinimalPair):
        return tuple(log_p(model, text[:1], text[1:])[None] for text in (item.good, item.bad))  # type: ignore[return-value]
    context = item.context
    return tuple(torch.stack([log_p(model, context, ids) for ids in side]) for side in (item.right, item.wrong))  # type: ignore[return-value]


ORACLES = {
    "log-odds": (metrics.logit_difference, lambda right, wrong: right.logsumexp(0) - wrong.logsumexp(0)),
    "log-probability": (metrics.log_prob, lambda right, wrong: right.logsumexp(0)),
    "probability": (metrics.prob, lambda right, wrong: right.exp().sum()),
}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("items", [RAGGED, CHOICES, PAIRS], ids=["answers", "choices", "pairs"])
@pytest.mark.parametrize("name", ORACLES)
def test_a_metric_without_answers_measures_each_item_of_a_task(kind: str, items: list, name: str) -> None:
    make, oracle = ORACLES[name]
    with borrowed(kind) as model:

        def measured() -> Tensor:
            return torch.stack([oracle(*sides(model, item)) for item in items])

        effects = attribution.by_ablation(model, items, make(), SOME, progress=False)
        before = measured()
        torch.testing.assert_close(effects.measure.baseline, before, atol=1e-5, rtol=1e-5)
        for site, units in effects.units.items():
            for column, (component,) in enumerate(units):
                with surgery.apply(model, {site: Drop([component])}, progress=False):
                    expected = measured() - before
                torch.testing.assert_close(effects.examples[site][:, column], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_every_method_sums_the_rows_of_an_item(kind: str) -> None:
    """Pairs are read in two rows each; to first and second order, an item's effect is that of a small removal."""
    with borrowed(kind) as model:
        metric, small = metrics.logit_difference(), 1e-2

        def at(gain: float) -> Tensor:
            with surgery.apply(model, {OUT: surgery.Scale([gain] + [1.0] * 31)}, progress=False):
                return torch.stack([s[0].logsumexp(0) - s[1].logsumexp(0) for s in (sides(model, p) for p in PAIRS)])

        slope = (at(1 + small) - at(1 - small)) / (2 * small)
        curvature = (at(1 + small) - 2 * at(1.0) + at(1 - small)) / small**2
        first = attribution.by_gradient(model, PAIRS, metric, {OUT: [0]}, progress=False)
        second = attribution.by_curvature(model, PAIRS, metric, {OUT: [0]}, progress=False)
        torch.testing.assert_close(first.examples[OUT][:, 0], -slope, atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(second.examples[OUT][:, 0], -slope + curvature / 2, atol=2e-2, rtol=5e-2)
        path = attribution.by_path(model, PAIRS, metric, {OUT: Drop([0, 1])}, progress=False)
        shapley = attribution.by_shapley(model, PAIRS, metric, {OUT: Drop([0, 1])}, draws=2, progress=False)
        assert path.residual < 0.01 and shapley.residual < 1e-4
        torch.testing.assert_close(path.change, shapley.change)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_batches_do_not_matter(kind: str) -> None:
    with borrowed(kind) as model:
        for items in (RAGGED, PAIRS):
            whole, cut = (
                attribution.by_ablation(model, items, metrics.log_prob(), SOME, batch_size=size, progress=False)
                for size in (None, 2)
            )
            for site in whole.sites:
                torch.testing.assert_close(whole.examples[site], cut.examples[site], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_the_loss_of_a_task_is_its_log_loss(kind: str) -> None:
    one_each = [AnswerItem(item.prompt, item.answers[:1]) for item in RAGGED]
    with borrowed(kind) as model:
        for items in (one_each, RAGGED):
            scores = scoring.score(model, items)
            effects = attribution.by_gradient(model, items, metrics.loss(), OUT, progress=False)
            torch.testing.assert_close(effects.measure.baseline.double(), scores.log_loss, atol=1e-5, rtol=1e-5)
        fisher = attribution.by_fisher(model, one_each, metrics.loss(), OUT, progress=False)
        assert fisher.sites == (OUT,)
        with pytest.raises(ValueError, match=r"some items accept several answers.*Keep the first of each"):
            attribution.by_fisher(model, RAGGED, metrics.loss(), OUT, progress=False)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_given_answers_are_read_at_the_end_of_each_prompt(kind: str) -> None:
    with borrowed(kind) as model, torch.no_grad():
        effects = attribution.by_ablation(model, RAGGED, metrics.logit(5), {OUT: [0]}, progress=False)
        expected = torch.stack([model(torch.tensor([item.prompt]))[0, -1, 5] for item in RAGGED])
    torch.testing.assert_close(effects.measure.baseline, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize(("items", "rule"), [(RAGGED, scoring.StartsWith()), (PAIRS, scoring.Likeliest("token"))])
def test_a_rule_is_a_metric(kind: str, items: list, rule: scoring.Rule) -> None:
    with borrowed(kind) as model:
        effects = attribution.by_ablation(model, items, rule, SOME, progress=False)
        before = scoring.score(model, items, rule=rule).correct.float()
        assert torch.equal(effects.measure.baseline, before)
        with surgery.apply(model, {OUT: Drop([0])}, progress=False):
            after = scoring.score(model, items, rule=rule).correct.float()
        assert torch.equal(effects.examples[OUT][:, 0], after - before)
        with pytest.raises(ValueError, match="is not differentiable"):
            attribution.by_gradient(model, items, rule, SOME, progress=False)


METRICS = {
    "logit difference": lambda: metrics.logit_difference(),
    "KL divergence": lambda: metrics.kl_from_run(),
    "loss": lambda: metrics.loss(),
    "logit": lambda: metrics.logit(5, higher_is_better=True),
}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_a_rule(kind: str, name: str) -> None:
    with borrowed(kind) as model:
        before = attribution.by_ablation(model, RAGGED, METRICS[name](), {OUT: [0]}, progress=False)
        encoded = scoring.encode(model, RAGGED, rule=METRICS[name]())
        from hooks.running import run

        scores = scoring.score_encoded(encoded, lambda inputs: run(model, inputs))
        assert scores.values is not None
        torch.testing.assert_close(scores.values.float(), before.measure.baseline, atol=1e-5, rtol=1e-5)
        with surgery.apply(model, {OUT: Drop([0])}, progress=False):
            after = scoring.score_encoded(encoded, lambda inputs: run(model, inputs))
        change = (after.values - scores.values).float()
        torch.testing.assert_close(change, before.examples[OUT][:, 0], atol=2e-5, rtol=1e-4)
        compared = scoring.compare(scores, after, resamples=50)
        assert compared.metric is not None and compared.metric.difference == pytest.approx(
            float(change.mean()), abs=1e-6
        )
        assert "value" in scores.to_dataframe() and name in repr(compared)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("strategy", ["exhaustive", "screened"])
def test_a_search_chooses_by_any_metric(name: str, strategy: str, tmp_path) -> None:
    task = Task("sums", tuple(AnswerItem((n, n + 1, n + 2), ((n + 3,),), ((n + 5,),)) for n in range(40)))
    with borrowed("bridge gpt2") as model:
        settings = dict(rhos=(0.5, 0.1), rule=METRICS[name](), strategy=strategy, progress=False)
        result = laser.search(model, task, "*.W_{in,out}", log=tmp_path / "log.jsonl", **settings)
        sign = 1 if METRICS[name]().higher_is_better else -1
        validation = task.split().validation
        n = len(validation)
        means = {trial.candidate: sign * trial.summary.value for trial in result.trials if len(trial.scores) == n}
        unedited = sign * result.unedited.summary.value
        best = max(means.values(), default=unedited)
        if best <= unedited:
            assert result.spec == {}
        else:
            assert result.chosen is not None and means[result.chosen.candidate] == best
        again = laser.search(model, task, "*.W_{in,out}", log=tmp_path / "log.jsonl", **settings)
        assert [t.summary for t in again.trials] == [t.summary for t in result.trials]
        with surgery.apply(model, result.spec or {OUT: KeepTop(rho=1.0)}, progress=False):
            pass


def test_patching_takes_a_task_for_either_run() -> None:
    clean = [AnswerItem((1, 2, 3), ((4,),), ((5,),)), AnswerItem((6, 7), ((8,),), ((3,),))]
    corrupted = [AnswerItem((1, 9, 3), ((4,),), ((5,),)), AnswerItem((2, 7), ((8,),), ((3,),))]
    with borrowed("bridge gpt2") as model:
        patched = patching.by_component(model, clean, corrupted, metrics.logit_difference(), SOME, progress=False)
        ids = [prompts.read(model, task) for task in (clean, corrupted)]
        metric = metrics.logit_difference([4, 8], [5, 3])
        expected = patching.by_component(
            model, ids[0].tokens, ids[1].tokens, metric, SOME, attention_mask=ids[0].mask, progress=False
        )
        for site in SOME:
            torch.testing.assert_close(patched[site], expected[site], atol=1e-5, rtol=1e-5, equal_nan=True)


def test_what_a_task_cannot_be_asked_is_refused() -> None:
    with borrowed("bridge gpt2") as model:

        def ask(tokens: object, metric: object, **more: object) -> None:
            attribution.by_ablation(model, tokens, metric, SOME, progress=False, **more)  # type: ignore[arg-type]

        with pytest.raises(
            ValueError, match=r"log-probability was made without answers|made without answers, and these"
        ):
            ask(models.tokens(), metrics.log_prob())
        with pytest.raises(ValueError, match=r"give the correct and the wrong answer, or neither and a task"):
            metrics.logit_difference(3)
        with pytest.raises(ValueError, match=r"accuracy was asked of a task whose items are of kind 'pair'"):
            ask(PAIRS, metrics.accuracy())
        with pytest.raises(ValueError, match=r"Likeliest.* was asked of a task whose items are of kind 'answer'"):
            ask(RAGGED, scoring.Likeliest())
        with pytest.raises(ValueError, match=r"has the model generate 3 tokens"):
            ask(RAGGED, scoring.Contains(3))
        with pytest.raises(ValueError, match=r"an attention_mask was given beside task .* leave it out"):
            ask(RAGGED, metrics.log_prob(), attention_mask=torch.ones(3, 4))
        with pytest.raises(
            ValueError, match="is not finite for items 1: an item has no answer on one of the two sides"
        ):
            ask([RAGGED[0], AnswerItem((1, 2), ((3,),))], metrics.logit_difference())
        with pytest.raises(ValueError, match=r"no position|was given a position or an attention_mask and no answer"):
            metrics.log_prob(position=3)
        with pytest.raises(ValueError, match="reads other positions than the last of each prompt"):
            scoring.score(model, RAGGED, rule=metrics.logit(3, position=0))
        with pytest.raises(ValueError, match="keep_positions=True with items that are read in several rows"):
            attribution.by_gradient(model, PAIRS, metrics.log_prob(), OUT, keep_positions=True, progress=False)
        with pytest.raises(ValueError, match="the metric 'logit' has no direction"):
            laser.search(model, [*RAGGED] * 10, rule=metrics.logit(3), progress=False)
