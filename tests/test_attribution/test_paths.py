import models
import pytest
import removal
import torch

import surgery
from analyses import attribution, metrics
from hooks.records import record_of
from surgery import Compensated, Drop, KeepTop, RandomBasis, Scale
from surgery.decompositions import Remembered

CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])
OUT = "blocks.1.mlp.W_out"


def difference() -> metrics.Metric:
    return metrics.logit_difference(CORRECT, WRONG)


def total(effects: attribution.Effects) -> torch.Tensor:
    """The sum of all shares, for each example."""
    return torch.stack([effects.examples[site].sum(1) for site in effects.sites]).sum(0)


@pytest.mark.parametrize("kind", models.SOME_KINDS)
def test_shares_sum_to_the_change_of_the_model_itself(kind: str):
    tokens, metric = models.tokens(3), metrics.loss(metrics.next_token_labels(models.tokens(3)))
    spec = {"blocks.*.mlp.W_out": KeepTop(rank=8), "blocks.0.attn.W_Q[1]": Drop([0]), "blocks.1.attn.W_O": Drop([0, 3])}
    with models.borrowed(kind) as model:
        effects = attribution.by_path(model, tokens, metric, spec, progress=False)
        now = metric(model(tokens)).detach()
        with surgery.apply(model, spec, progress=False):
            change = metric(model(tokens)).detach() - now
    torch.testing.assert_close(effects.change, change, atol=1e-5, rtol=1e-4)
    assert effects.residual <= 0.01
    torch.testing.assert_close(total(effects).mean(), change.mean(), rtol=0.011, atol=0)
    torch.testing.assert_close(total(effects), change, rtol=0, atol=0.02 * float(change.abs().max()))
    assert "certificate: the change is" in repr(effects)
    assert "8 steps" in effects.method
    assert effects.units["blocks.1.attn.W_O"] == ((0,), (3,))


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_shares_are_the_integral_of_the_slopes_by_hand(kind: str):
    tokens, metric = models.tokens(3), difference()
    gains = {OUT: {0: 0.0, 4: 2.0}, "blocks.0.attn.W_K[1]": {1: 0.0}}
    spec = {site: Scale(chosen) for site, chosen in gains.items()}
    with models.borrowed(kind) as model:
        effects = attribution.by_path(model, tokens, metric, spec, progress=False)
        times, h = torch.arange(0.1, 1, 0.2).tolist(), 1e-2  # midpoints
        for site, chosen in gains.items():
            for column, (i, gain) in enumerate(chosen.items()):
                share = torch.zeros(3)
                for t in times:
                    ends = []
                    for step in (h, -h):
                        here = {s: {j: 1 + t * (g - 1) for j, g in some.items()} for s, some in gains.items()}
                        here[site][i] += step
                        ends.append(removal.regained_effect(model, here, lambda: metric(model(tokens))))
                    share += (gain - 1) * (ends[0] - ends[1]) / (2 * h) / len(times)
                atol = 2e-3 * float(effects.change.abs().max())
                torch.testing.assert_close(effects.examples[site][:, column], share, rtol=5e-3, atol=max(atol, 1e-4))


@pytest.mark.hooked
def test_on_a_linear_model_shares_are_single_ablations():
    model = models.hooked("no-norm", n_layers=1)
    model.blocks[0].mlp.act_fn = lambda x: x
    tokens, metric, site = models.tokens(3), difference(), "blocks.0.mlp.W_out"
    effects = attribution.by_path(model, tokens, metric, {site: Drop([0, 3, 9])}, steps=1, progress=False)
    single = attribution.by_ablation(model, tokens, metric, attribution.Selection({site: [0, 3, 9]}), progress=False)
    torch.testing.assert_close(effects.examples[site], single.examples[site], atol=1e-5, rtol=1e-4)
    for column, component in enumerate((0, 3, 9)):
        expected = removal.effect(model, site, [component], lambda: metric(model(tokens)))
        torch.testing.assert_close(effects.examples[site][:, column], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_constants_have_their_share(kind: str):
    tokens, metric = models.tokens(3), difference()
    with models.borrowed(kind) as model:
        n = surgery.decompose(model, OUT, progress=False)[OUT].n_components
        constants = torch.linspace(2, -1, n)
        spec = {OUT: Compensated(Drop([0, 1]), constants)}
        effects = attribution.by_path(model, tokens, metric, spec, progress=False)
        plain = attribution.by_path(model, tokens, metric, {OUT: Drop([0, 1])}, progress=False)
        now = metric(model(tokens)).detach()
        with surgery.apply(model, spec, progress=False):
            change = metric(model(tokens)).detach() - now
    torch.testing.assert_close(total(effects), change, rtol=0, atol=0.01 * float(change.abs().max()))
    assert float((total(effects) - total(plain)).abs().max()) > 0.1 * float(change.abs().max())


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_steps_are_doubled_until_the_tolerance_is_met(kind: str):
    tokens, metric = models.tokens(3), metrics.loss(metrics.next_token_labels(models.tokens(3)))
    spec = {"blocks.*.mlp.W_*": KeepTop(rank=2)}
    with models.borrowed(kind) as model:
        rough = attribution.by_path(model, tokens, metric, spec, steps=1, tolerance=10.0, progress=False)
        fine = attribution.by_path(model, tokens, metric, spec, steps=1, tolerance=1e-3, progress=False)
        stopped = attribution.by_path(model, tokens, metric, spec, steps=1, max_steps=3, tolerance=1e-9, progress=False)
    assert rough.method == "path (1 steps)"
    assert rough.passes == 2 + 2
    assert fine.residual <= 1e-3 < rough.residual
    steps = int(fine.method.split("(")[1].split()[0])
    assert steps in (2, 4, 8, 16, 32, 64, 128)
    assert fine.passes == 2 + 2 * (2 * steps - 1)
    assert stopped.method == "path (2 steps)"
    assert any("NOT within the tolerance" in note and "max_steps" in note for note in stopped.notes)
    assert not any("NOT within" in note for note in fine.notes)
    shown = abs(float(total(fine).mean()) - float(fine.change.mean())) / abs(float(fine.change.mean()))
    assert fine.residual == pytest.approx(shown, abs=5e-6)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_under_an_operation_with_hooks_and_in_batches(kind: str):
    tokens, metric, name = models.tokens(3), difference(), "blocks.1.hook_resid_pre"
    spec = {OUT: Drop([0, 2]), "blocks.0.mlp.W_in": Drop([1])}
    with models.borrowed(kind) as model:

        def halve(activation: torch.Tensor, hook: object) -> torch.Tensor:
            return activation * 0.5

        with surgery.apply(model, {OUT: KeepTop(rank=6)}, progress=False):
            parts = attribution.by_path(model, tokens, metric, spec, batch_size=1, progress=False)
            whole = attribution.by_path(model, tokens, metric, spec, progress=False)
            with model.hooks(fwd_hooks=[(name, halve)]):
                effects = attribution.by_path(model, tokens, metric, spec, progress=False)
                now = metric(model(tokens)).detach()
                with surgery.apply(model, spec, progress=False):
                    change = metric(model(tokens)).detach() - now
    torch.testing.assert_close(total(effects), change, rtol=0, atol=0.01 * float(change.abs().max()))
    for site in whole.sites:
        torch.testing.assert_close(whole.examples[site], parts.examples[site], atol=1e-5, rtol=1e-3)
    assert float((total(whole) - total(effects)).abs().max()) > 1e-3


def test_the_given_decomposition_is_the_one_integrated():
    tokens, metric = models.tokens(3), difference()
    with models.borrowed("bridge gpt2") as model:
        svds = surgery.decompose(model, OUT, progress=False)
        own = surgery.Decompositions(svds.values())
        surgery.forget(model)
        attribution.by_path(model, tokens, metric, {OUT: Drop([0])}, svds=own, progress=False)
        assert not record_of(model).of(Remembered)


def test_bad_input_is_refused():
    tokens, spec = models.tokens(3), {OUT: Drop([0])}
    with models.borrowed("bridge gpt2") as model:

        def ask(metric: metrics.Metric = difference(), spec: dict = spec, **more: object) -> None:  # noqa: B008
            attribution.by_path(model, tokens, metric, spec, progress=False, **more)

        for steps, most, tolerance in ((0, 8, 0.01), (9, 8, 0.01), (8, 8, 0.0), (8, 8, float("nan"))):
            with pytest.raises(ValueError, match=r"(steps=|tolerance=).*: give a (whole|positive|finite) number"):
                ask(steps=steps, max_steps=most, tolerance=tolerance)
        with pytest.raises(ValueError, match=r"'accuracy' is not differentiable.*by_ablation or by_shapley"):
            ask(metrics.accuracy(CORRECT))
        with pytest.raises(ValueError, match=r"the spec changes no component"):
            ask(spec={OUT: Scale({0: 1.0})})
        with pytest.raises(ValueError, match=r"is edited in HaarBasis"):
            ask(spec={OUT: RandomBasis(0)})
        with pytest.raises(ValueError, match=r"does not depend on the attributed matrices"):
            ask(
                metrics.custom(
                    lambda logits: logits[:, -1, 0].detach(), name="cut", unit="logits", higher_is_better=None
                )
            )
