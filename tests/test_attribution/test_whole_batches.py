"""A plain function that knows its examples by heart, as TransformerLens's notebooks have, against the metric it is."""

from collections.abc import Callable

import models
import pytest
import torch
from torch import Tensor, nn

from analyses import attribution, controls, metrics, patching
from analyses.attribution import Effects, Selection
from surgery import Drop

CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])
TOKENS = models.tokens(3, 6)
CORRUPTED = (TOKENS + 17) % models.D_VOCAB
SITES = ["blocks.0.attn.W_V[1]", "blocks.1.mlp.W_in"]
SPEC = {"blocks.0.mlp.W_out": Drop([0, 2]), "blocks.1.mlp.W_in": Drop([1])}
ABOUT: dict = {"progress": False}


def by_heart(logits: Tensor) -> Tensor:
    assert len(logits) == 3
    rows = torch.arange(3)
    return logits[rows, -1, CORRECT] - logits[rows, -1, WRONG]


def mean_of_all(logits: Tensor) -> Tensor:
    return by_heart(logits).mean()


def spelled() -> metrics.Metric:
    return metrics.logit_difference(CORRECT, WRONG)


ANALYSES: dict[str, Callable[..., Effects]] = {
    "gradient": lambda m, f, **more: attribution.by_gradient(m, TOKENS, f, SITES, **more),
    "corrupted": lambda m, f, **more: attribution.by_gradient(m, TOKENS, f, SITES, corrupted=CORRUPTED, **more),
    "ablation": lambda m, f, **more: attribution.by_ablation(m, TOKENS, f, SITES, **more),
    "mean": lambda m, f, **more: attribution.by_ablation(m, TOKENS, f, SITES, replacement="mean", **more),
    "resample": lambda m, f, **more: attribution.by_ablation(m, TOKENS, f, SITES, replacement="resample", **more),
    "curvature": lambda m, f, **more: attribution.by_curvature(m, TOKENS, f, SITES, draws=4, **more),
    "exact curvature": lambda m, f, **more: attribution.by_exact_curvature(
        m, TOKENS, f, Selection({site: [0, 3] for site in SITES}), **more
    ),
    "path": lambda m, f, **more: attribution.by_path(m, TOKENS, f, SPEC, **more),
    "shapley": lambda m, f, **more: attribution.by_shapley(m, TOKENS, f, SPEC, draws=4, **more),
    "screen": lambda m, f, **more: (
        attribution.screen(m, TOKENS, f, SITES, candidates=5, choose=2, draws=0, **more).exact
    ),
    "patching": lambda m, f, **more: patching.by_component(m, TOKENS, CORRUPTED, f, SITES, **more).effects,
}
SPLIT_OR_NOT = [None, 1, 2, 7]
LARGEST = 5e-5


def undirected() -> metrics.Metric:
    """The same metric without a direction, as a function has none."""
    return metrics.logit_difference(CORRECT, WRONG, higher_is_better=None)


@pytest.mark.parametrize("batch_size", SPLIT_OR_NOT)
@pytest.mark.parametrize("analysis", ANALYSES)
def test_a_function_over_its_own_batch_is_never_given_another(analysis: str, batch_size: int | None) -> None:
    run = ANALYSES[analysis]
    with models.borrowed("bridge gpt2") as model:
        # Random probes are drawn batch by batch: the same ones where no batch is split.
        other = None if analysis == "curvature" else batch_size
        expected = run(model, undirected(), batch_size=other, **ABOUT)
        found = run(model, by_heart, batch_size=batch_size, **ABOUT)
    torch.testing.assert_close(found.measure.baseline, expected.measure.baseline, atol=1e-5, rtol=1e-5)
    assert found.sites == expected.sites
    for site in expected.sites:
        assert found.examples[site].shape == expected.examples[site].shape
        torch.testing.assert_close(found.examples[site], expected.examples[site], atol=LARGEST, rtol=1e-3)


@pytest.mark.parametrize("analysis", [name for name in ANALYSES if "curvature" not in name])
def test_a_mean_over_examples_has_the_mean_effects_and_no_standard_errors(analysis: str) -> None:
    run = ANALYSES[analysis]
    with models.borrowed("bridge gpt2") as model:
        expected, found = run(model, undirected(), **ABOUT), run(model, mean_of_all, **ABOUT)
    assert len(found.measure.baseline) == 1
    assert found.sites == expected.sites
    for site in expected.sites:
        assert len(found.examples[site]) == 1
        torch.testing.assert_close(found[site], expected[site], atol=LARGEST, rtol=1e-3, equal_nan=True)
        assert not bool(found.stderr(site).isfinite().any())


@pytest.mark.parametrize("analysis", ["curvature", "exact curvature"])
@pytest.mark.parametrize("mixing", [mean_of_all, lambda logits: by_heart(logits) / by_heart(logits).mean()])
def test_curvature_refuses_a_function_that_mixes_examples(analysis: str, mixing: Callable[[Tensor], Tensor]) -> None:
    with (
        models.borrowed("bridge gpt2") as model,
        pytest.raises(ValueError, match=r"depends on other examples, as a mean over them does.* Return each example's"),
    ):
        ANALYSES[analysis](model, mixing, **ABOUT)


@pytest.mark.parametrize("batch_size", SPLIT_OR_NOT)
def test_interactions_and_controls_show_a_function_its_own_batch(batch_size: int | None) -> None:
    some = Selection({"blocks.0.mlp.W_out": [0, 2], "blocks.1.mlp.W_in": [1]})
    with models.borrowed("bridge gpt2") as model:
        effects = attribution.by_gradient(model, TOKENS, spelled(), SITES, **ABOUT)
        pairs, compared = [], []
        for metric in (undirected(), by_heart, mean_of_all):
            more = {"batch_size": batch_size, **ABOUT}
            pairs.append(attribution.interactions(model, TOKENS, metric, some, **more))
            compared.append(controls.compare(model, TOKENS, metric, effects, ks=[2], draws=1, **more))
    for one in pairs[1:]:
        torch.testing.assert_close(one.matrix, pairs[0].matrix, atol=LARGEST, rtol=1e-3)
    assert bool(pairs[2].stderr.isnan().all())
    for removal, values in compared[0].values.items():
        torch.testing.assert_close(compared[1].values[removal], values, atol=LARGEST, rtol=1e-3)
        pooled = compared[2].values[removal]
        torch.testing.assert_close(pooled, values.mean(2, keepdim=True), atol=LARGEST, rtol=1e-3)


@pytest.mark.hooked
def test_hooked_transformer_shows_a_function_its_own_batch(hooked_transformer: type) -> None:
    with models.borrowed("hooked ln") as model:
        for analysis in ("gradient", "ablation", "shapley", "patching"):
            expected = ANALYSES[analysis](model, undirected(), **ABOUT)
            found = ANALYSES[analysis](model, by_heart, batch_size=2, **ABOUT)
            for site in expected.sites:
                torch.testing.assert_close(found.examples[site], expected.examples[site], atol=LARGEST, rtol=1e-3)


def one_prompt(model: nn.Module, metric: object) -> Effects:
    return attribution.by_ablation(model, TOKENS[:1], metric, SITES, **ABOUT)


def test_a_function_of_one_prompt_may_name_its_row_or_return_a_number() -> None:
    with models.borrowed("bridge gpt2") as model:
        expected = one_prompt(model, metrics.logit(3))
        for function in (lambda logits: logits[0, -1, 3], lambda logits: logits[:, -1, 3]):
            found = one_prompt(model, function)
            for site in SITES:
                torch.testing.assert_close(found.examples[site], expected.examples[site], atol=1e-5, rtol=1e-4)


def test_a_part_of_a_plain_functions_examples_is_refused() -> None:
    metric = metrics.as_metric(by_heart)
    bound = metric.bind(nn.Module(), TOKENS)
    logits = torch.randn(3, 2, 11)
    torch.testing.assert_close(bound.select([0, 1, 2, 0, 1, 2])(logits.repeat(2, 1, 1)), by_heart(logits).repeat(2))
    for rows in ([0, 1], [1, 0, 2], [0, 0, 0]):
        with pytest.raises(
            ValueError, match=r"^by_heart is a plain function, which has to see its whole batch in order"
        ):
            bound.select(rows)
    with pytest.raises(ValueError, match=r"^by_heart: logits of 6 examples, while the metric was made for 3"):
        bound(logits.repeat(2, 1, 1))


def test_a_factory_is_not_taken_for_a_metric() -> None:
    with pytest.raises(TypeError, match=r"is no metric: a metric is made by one of logit"):
        metrics.as_metric(metrics.loss)
