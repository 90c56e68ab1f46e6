import models
import pytest
import removal
import torch
from models import borrowed, build, tokens

import surgery
from analyses import attribution, metrics
from surgery import Drop, Scale

CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])
HEADS = ["*.W_Q[*]", "*.W_K[*]", "*.W_V[*]", "*.W_O[*]"]


def difference() -> metrics.Metric:
    return metrics.logit_difference(CORRECT, WRONG)


@pytest.mark.parametrize("kind", models.EVERY_KIND)
def test_gradient_is_the_central_difference_of_a_gain(kind: str):
    tokens, metric = models.tokens(3), difference()
    with models.borrowed(kind) as model:
        effects = attribution.by_gradient(model, tokens, metric, ["*", *HEADS], progress=False)
        for site in effects.sites[::7]:
            for component in (0, effects.strengths[site].shape[0] // 2):
                expected = removal.slope(model, site, component, lambda: metric(model(tokens)))
                torch.testing.assert_close(-effects.examples[site][:, component], expected, atol=3e-3, rtol=3e-3)


@pytest.mark.parametrize("kind", models.SOME_KINDS)
def test_gradient_of_every_component_is_autograd_through_an_edit(kind: str):
    tokens = models.tokens(3)
    metric = metrics.loss(metrics.next_token_labels(tokens))
    with models.borrowed(kind) as model:
        effects = attribution.by_gradient(model, tokens, metric, ["*", *HEADS], progress=False)
        for site in effects.sites:
            gains = torch.ones(len(effects.strengths[site]), requires_grad=True)
            with surgery.apply(model, {site: Scale(gains)}, progress=False):
                (slope,) = torch.autograd.grad(metric(model(tokens)).mean(), gains)
            torch.testing.assert_close(effects[site], -slope, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_clean_to_corrupted_is_the_slope_along_the_other_example(kind: str):
    clean, corrupted, metric = models.tokens(3), models.tokens(3).flip(1), difference()
    site, component = "blocks.0.mlp.W_in", 2
    with models.borrowed(kind) as model:
        effects = attribution.by_gradient(model, clean, metric, site, corrupted=corrupted, progress=False)
        exact = attribution.by_ablation(
            model, clean, metric, attribution.Selection({site: [component]}),
            replacement="resample", corrupted=corrupted, progress=False,
        )  # fmt: skip
        same = attribution.by_gradient(model, clean, metric, "*", corrupted=clean, progress=False)
    gap = (effects.examples[site][:, component] - exact.examples[site][:, 0]).norm() / exact.examples[site].norm()
    assert gap < 0.5  # a first-order estimate of a finite change
    assert all(float(same[site].abs().max()) == 0 for site in same.sites)


@pytest.mark.hooked
def test_on_a_linear_model_single_effects_sum_to_the_total():
    model = models.hooked("no-norm", attn_only=False, n_layers=1)
    model.blocks[0].mlp.act_fn = lambda x: x
    tokens, metric = models.tokens(3), difference()
    effects = attribution.by_gradient(model, tokens, metric, "blocks.0.mlp.W_out", progress=False)
    total = removal.effect(model, "blocks.0.mlp.W_out", range(32), lambda: metric(model(tokens)))
    torch.testing.assert_close(effects.examples["blocks.0.mlp.W_out"].sum(1), total, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_batches_of_examples_change_nothing(kind: str):
    tokens, metric = models.tokens(3), difference()
    with models.borrowed(kind) as model:
        whole = attribution.by_gradient(model, tokens, metric, "*", progress=False)
        parts = attribution.by_gradient(model, tokens, metric, "*", batch_size=1, progress=False)
    for site in whole.sites:
        torch.testing.assert_close(whole.examples[site], parts.examples[site], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_positions_sum_to_the_effect_and_say_where_it_acts(kind: str):
    tokens, site = models.tokens(3), "blocks.1.mlp.W_out"  # after it nothing mixes positions
    with models.borrowed(kind) as model:
        effects = attribution.by_gradient(
            model, tokens, difference(), [site, "blocks.0.attn.W_Q[1]"], keep_positions=True
        )
    for address, terms in effects.positions.items():
        torch.testing.assert_close(terms.sum(1), effects.examples[address], atol=1e-6, rtol=1e-4)
    assert float(effects.positions[site][:, :-1].abs().max()) == 0


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_gradient_sees_active_hooks_and_edits(kind: str):
    tokens, metric, site = models.tokens(3), difference(), "blocks.1.mlp.W_out"
    name = "blocks.0.hook_resid_post" if "hooked" in kind else "blocks.0.hook_out"

    def halve(activation: torch.Tensor, hook: object) -> torch.Tensor:
        return activation * 0.5

    with models.borrowed(kind) as model:
        with model.hooks(fwd_hooks=[(name, halve)]), surgery.apply(model, {site: Drop([0])}, progress=False):
            effects = attribution.by_gradient(model, tokens, metric, site, progress=False)
            gains = torch.ones(len(effects.strengths[site]), requires_grad=True)
            with surgery.apply(model, {site: Scale(gains)}, progress=False):
                (slope,) = torch.autograd.grad(metric(model(tokens)).mean(), gains)
        assert effects.strengths[site][0] == 0
        torch.testing.assert_close(effects[site], -slope, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_padding_and_frozen_parameters_change_nothing(kind: str):
    tokens, metric = models.tokens(3), difference()
    mask = torch.ones_like(tokens)
    model = models.build(kind)  # a bridge remembers that it was given a mask
    plain = attribution.by_gradient(model, tokens, metric, "*", progress=False)
    padded = torch.cat([tokens, tokens[:, :2]], dim=1)
    masked = torch.cat([mask, torch.zeros_like(mask[:, :2])], dim=1)
    behind = metrics.logit_difference(CORRECT, WRONG, attention_mask=masked)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    longer = attribution.by_gradient(model, padded, behind, "*", attention_mask=masked, progress=False)
    for site in plain.sites:
        torch.testing.assert_close(plain.examples[site], longer.examples[site], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_bf16_is_fp32_up_to_rounding(kind: str):
    tokens, metric, site = models.tokens(3), difference(), "blocks.1.mlp.W_out"
    exact = attribution.by_gradient(models.build(kind), tokens, metric, site, progress=False)
    half = attribution.by_gradient(models.build(kind, dtype=torch.bfloat16), tokens, metric, site, progress=False)
    correlation = torch.corrcoef(torch.stack([exact[site], half[site]]))[0, 1]
    assert correlation > 0.95


def test_bad_input_is_refused_and_leaves_the_model_alone():
    tokens = models.tokens(3)
    with models.borrowed("bridge gpt2") as model:
        with pytest.raises(ValueError, match=r"'accuracy' is not differentiable.*by_ablation"):
            attribution.by_gradient(model, tokens, metrics.accuracy(CORRECT), "*", progress=False)
        with pytest.raises(ValueError, match=r"does not depend on the attributed matrices through anything"):
            attribution.by_gradient(model, tokens, lambda logits: logits[:, -1, 0].detach(), "*", progress=False)
        with pytest.raises(ValueError, match=r"corrupted tokens have shape \(3, 5\), the clean ones \(3, 7\)"):
            attribution.by_gradient(model, tokens, difference(), "*", corrupted=tokens[:, :5], progress=False)
        with pytest.raises(surgery.SiteError, match=r"no matrix is named 'blocks.9.mlp.W_out'"):
            attribution.by_gradient(model, tokens, difference(), "blocks.9.mlp.W_out", progress=False)
        with pytest.raises(ValueError, match=r"give token ids \[example pos\]"):
            attribution.by_gradient(model, tokens[0], difference(), "*", progress=False)
        with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 5\), the tokens \(3, 7\)"):
            attribution.by_gradient(model, tokens, difference(), "*", attention_mask=tokens[:, :5], progress=False)
        with pytest.raises(ValueError, match=r"metric was made for 3 examples, the tokens are 2"):
            attribution.by_gradient(model, tokens[:2], difference(), "*", progress=False)
        with pytest.raises(ValueError, match=r"batch_size=0"):
            attribution.by_gradient(model, tokens, difference(), "*", batch_size=0, progress=False)
        with pytest.raises(ValueError):
            attribution.by_gradient(model, tokens, lambda logits: logits[:, -1], "*", progress=False)


def test_train_mode_with_dropout_is_refused():
    model = models.build("bridge gpt2")
    model.train()
    with pytest.raises(ValueError, match=r"train mode and has dropout.*model.eval\(\)"):
        attribution.by_gradient(model, models.tokens(3), difference(), "*", progress=False)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_logits_are_computed_only_where_the_metric_reads_them(kind: str):
    tokens, unembedded = models.tokens(3), []
    with models.borrowed(kind) as model:
        watch = model.unembed.register_forward_hook(
            lambda _module, _args, logits: unembedded.append(logits.shape[:2].numel())
        )
        attribution.by_gradient(model, tokens, difference(), "*", progress=False)
        attribution.by_curvature(model, tokens, difference(), "blocks.1.*", draws=2, progress=False)
        attribution.by_ablation(model, tokens, difference(), "blocks.0.mlp.W_out", progress=False)
        watch.remove()
    assert set(unembedded) == {3, 3 * 32}  # a read an example, and for ablation one an example and component


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_are_computed_whatever_the_caller_s_mode(around) -> None:
    with borrowed("bridge gpt2") as model:
        labels = metrics.next_token_labels(tokens())
        asked = (model, tokens(), metrics.loss(labels), "blocks.0.mlp.W_out")
        methods = (attribution.by_gradient, attribution.by_fisher, attribution.by_curvature)
        plain = [method(*asked, progress=False)[asked[3]] for method in methods]
        with around():
            here = [method(*asked, progress=False)[asked[3]] for method in methods]
            path = attribution.by_path(*asked[:3], {asked[3]: Drop([0])}, progress=False)
        for one, other in zip(plain, here, strict=True):
            torch.testing.assert_close(one, other)
        assert path.residual < 0.1
        assert torch.is_grad_enabled()


def test_parameters_made_in_inference_mode_are_refused_in_words() -> None:
    with torch.inference_mode():
        model = build("bridge gpt2")
    with pytest.raises(ValueError, match="made in inference mode, where torch computes no gradients: use by_ablation"):
        attribution.by_gradient(model, tokens(), metrics.logit(3), "blocks.0.mlp.W_out", progress=False)


def test_the_fisher_diagonal_of_what_is_no_loss_is_refused_in_words() -> None:
    with (
        borrowed("bridge gpt2") as model,
        pytest.raises(ValueError, match="the Fisher diagonal is that of a loss"),
    ):
        attribution.by_fisher(model, tokens(), metrics.logit(3), "blocks.0.mlp.W_out")
