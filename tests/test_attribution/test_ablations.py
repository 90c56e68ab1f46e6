import models
import pytest
import removal
import torch

import surgery
from analyses import attribution, metrics
from analyses.attribution import Selection
from surgery import Drop, KeepTop

CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])
HEADS = ["*.W_Q[1]", "*.W_K[1]", "*.W_V[1]", "*.W_O[1]"]


def difference() -> metrics.Metric:
    return metrics.logit_difference(CORRECT, WRONG)


def labelled(tokens: torch.Tensor) -> metrics.Metric:
    return metrics.loss(metrics.next_token_labels(tokens))


@pytest.mark.parametrize("kind", models.EVERY_KIND)
def test_ablation_is_overwriting_the_weight_and_running_the_whole_model(kind: str):
    tokens = models.tokens(3)
    with models.borrowed(kind) as model:
        for metric, every in ((difference(), 1), (labelled(tokens), 5)):
            chosen = Selection({site: [0, 5] for site in surgery.sites(model, ["*", *HEADS])[::every]})
            effects = attribution.by_ablation(model, tokens, metric, chosen, progress=False)
            for site in effects.sites:
                for column, component in enumerate((0, 5)):
                    expected = removal.effect(model, site, [component], lambda m=metric: m(model(tokens)))
                    torch.testing.assert_close(effects.examples[site][:, column], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", models.SOME_KINDS)
def test_units_go_out_together(kind: str):
    tokens, metric = models.tokens(3), difference()
    site = "blocks.1.attn.W_V[0]"
    with models.borrowed(kind) as model:
        effects = attribution.by_ablation(model, tokens, metric, Selection({site: [(0, 3), 1]}), progress=False)
        expected = removal.effect(model, site, [0, 3], lambda: metric(model(tokens)))
    torch.testing.assert_close(effects.examples[site][:, 0], expected, atol=1e-5, rtol=1e-5)
    assert effects[site][0] == effects[site][3]
    assert effects[site][2].isnan()


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
@pytest.mark.parametrize("site", ["blocks.0.attn.W_K", "blocks.0.mlp.W_in", "blocks.1.mlp.W_out"])
@pytest.mark.parametrize("replacement", ["mean", "resample"])
def test_another_coordinate_takes_its_place(kind: str, site: str, replacement: str):
    tokens, metric, component = models.tokens(3), difference(), 1
    hooks = {"W_K": "attn.hook_k", "W_in": "mlp.hook_pre", "W_out": "hook_mlp_out"}
    hook = f"{site[:8]}.{hooks[site.rpartition('.')[2]]}"
    with models.borrowed(kind) as model, torch.no_grad():
        part = surgery.decompose(model, site, progress=False)[site]
        other = tokens.flip(0) if replacement == "resample" else None
        exact = attribution.by_ablation(
            model, tokens, metric, Selection({site: [component]}),
            replacement=replacement, corrupted=other, progress=False,
        )  # fmt: skip
        seen: list[torch.Tensor] = []
        model.run_with_hooks(tokens, fwd_hooks=[(hook, lambda a, hook: seen.append(a.clone()))])
        along = seen[0].flatten(2) @ part.Vh[component]  # s (x·u), and the same constant from the bias everywhere
        target = along.mean().expand_as(along) if replacement == "mean" else along.flip(0)
        moved = ((target - along).unsqueeze(-1) * part.Vh[component]).view_as(seen[0])
        changed = metric(model.run_with_hooks(tokens, fwd_hooks=[(hook, lambda a, hook: a + moved)]))
        expected = (changed - metric(model(tokens))).float()
    torch.testing.assert_close(exact.examples[site][:, 0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_equal_inputs_score_zero(kind: str):
    tokens = models.tokens(1).expand(3, -1).contiguous()
    with models.borrowed(kind) as model:
        effects = attribution.by_ablation(model, tokens, difference(), "*", replacement="resample", progress=False)
    assert max(float(effects.examples[site].abs().max()) for site in effects.sites) < 1e-5


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_it_composes_with_hooks_that_know_their_batch(kind: str):
    tokens, metric = models.tokens(3), difference()
    name = "blocks.1.hook_resid_pre"
    with models.borrowed(kind) as model:
        _, cache = model.run_with_cache(tokens.flip(0))

        def patch(activation: torch.Tensor, hook: object) -> torch.Tensor:
            activation[:, 2] = cache[name][:, 2]
            return activation

        chosen = Selection({"blocks.0.mlp.W_in": [0, 1], "blocks.1.mlp.W_out": [2], "blocks.1.attn.W_Q[0]": [0]})
        with model.hooks(fwd_hooks=[(name, patch)]):
            effects = attribution.by_ablation(model, tokens, metric, chosen, progress=False)
            for site, units in chosen.items():
                for column, (component,) in enumerate(units):
                    expected = removal.effect(model, site, [component], lambda: metric(model(tokens)))
                    torch.testing.assert_close(effects.examples[site][:, column], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_under_an_operation_it_removes_what_is_left(kind: str):
    tokens, metric, site = models.tokens(3), difference(), "blocks.0.mlp.W_out"
    with models.borrowed(kind) as model:
        with surgery.apply(model, {site: KeepTop(rank=3)}, progress=False):
            effects = attribution.by_ablation(model, tokens, metric, site, progress=False)
            before = metric(model(tokens))
        with surgery.apply(model, {site: surgery.Keep([0, 2])}, progress=False):
            after = metric(model(tokens))
    torch.testing.assert_close(effects.examples[site][:, 1], (after - before).detach().float(), atol=1e-5, rtol=1e-4)
    assert float(effects.examples[site][:, 3:].abs().max()) < 1e-6  # rows of a larger batch round differently


def test_an_operation_in_another_basis_is_refused():
    tokens, site = models.tokens(3), "blocks.0.mlp.W_out"
    with (
        models.borrowed("bridge gpt2") as model,
        surgery.apply(model, {site: surgery.RandomBasis(0)}, progress=False),
        pytest.raises(ValueError, match="two bases at once"),
    ):
        attribution.by_ablation(model, tokens, difference(), site, progress=False)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_budget_changes_nothing(kind: str, batch_size: int):
    tokens, metric = models.tokens(3), difference()
    chosen = Selection({"blocks.0.attn.W_O": range(5), "blocks.1.mlp.W_in": range(5)})
    with models.borrowed(kind) as model:
        whole = attribution.by_ablation(model, tokens, metric, chosen, progress=False)
        parts = attribution.by_ablation(model, tokens, metric, chosen, batch_size=batch_size, progress=False)
    for site in whole.sites:
        torch.testing.assert_close(whole.examples[site], parts.examples[site], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_padding_on_the_right_changes_nothing(kind: str):
    tokens = models.tokens(3)
    mask = torch.ones_like(tokens)
    padded = torch.cat([tokens, tokens[:, :2]], 1)
    masked = torch.cat([mask, torch.zeros_like(mask[:, :2])], 1)
    chosen = Selection({"blocks.0.attn.W_Q": [0], "blocks.1.mlp.W_out": [0, 1], "blocks.1.attn.W_O": [0]})
    model = models.build(kind)  # a bridge remembers that it was given a mask
    plain = attribution.by_ablation(model, tokens, difference(), chosen, progress=False)
    metric = metrics.logit_difference(CORRECT, WRONG, attention_mask=masked)
    longer = attribution.by_ablation(model, padded, metric, chosen, attention_mask=masked, progress=False)
    for site in plain.sites:
        torch.testing.assert_close(plain.examples[site], longer.examples[site], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_metrics_without_a_gradient_and_an_outer_no_grad_are_fine(kind: str):
    tokens, chosen = models.tokens(3), Selection({"blocks.1.mlp.W_out": [0]})
    with models.borrowed(kind) as model, torch.inference_mode():
        effects = attribution.by_ablation(model, tokens, metrics.rank(CORRECT), chosen, progress=False)
        expected = removal.effect(model, "blocks.1.mlp.W_out", [0], lambda: metrics.rank(CORRECT)(model(tokens)))
    assert torch.equal(effects.examples["blocks.1.mlp.W_out"][:, 0], expected)


def test_bad_input_is_refused():
    tokens, site = models.tokens(3), "blocks.0.mlp.W_out"
    with models.borrowed("bridge gpt2") as model:
        with pytest.raises(ValueError, match=r"one example cannot be resampled from another"):
            attribution.by_ablation(model, tokens[:1], difference().select([0]), site, replacement="resample")
        with pytest.raises(ValueError, match=r"component 32 of 'blocks.0.mlp.W_out' was selected, but it has 32"):
            attribution.by_ablation(model, tokens, difference(), Selection({site: [32]}), progress=False)
        with pytest.raises(ValueError, match=r"corrupted examples go with replacement=\"resample\""):
            attribution.by_ablation(model, tokens, difference(), site, corrupted=tokens, progress=False)
        with pytest.raises(ValueError):
            attribution.by_ablation(model, tokens, lambda logits: logits[:, -1, 0] * torch.nan, site, progress=False)


def test_an_error_midway_leaves_no_hook_behind():
    calls = []

    def third_time(logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("stop")
        return logits[:, -1, 0]

    with models.borrowed("bridge gpt2") as model, pytest.raises(RuntimeError, match="stop"):
        attribution.by_ablation(model, models.tokens(3), third_time, "*", batch_size=3, progress=False)
    with models.borrowed("bridge gpt2") as model, surgery.apply(model, {"*": Drop([0])}, progress=False):
        pass


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_bf16_is_fp32_up_to_rounding(kind: str):
    tokens, metric, site = models.tokens(3), difference(), "blocks.1.mlp.W_out"
    half = attribution.by_ablation(models.build(kind, dtype=torch.bfloat16), tokens, metric, site, progress=False)
    exact = attribution.by_ablation(models.build(kind), tokens, metric, site, progress=False)
    # bf16 rounds the logits, here to some percent of what a component does.
    assert torch.corrcoef(torch.stack([exact[site], half[site]]))[0, 1] > 0.9
