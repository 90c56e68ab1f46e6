"""`by_readout` against removal itself where the blocks are linear, and against second derivatives elsewhere."""

from collections.abc import Callable

import asked_models
import models
import numpy as np
import pytest
import torch
from torch import Tensor

import surgery
from analyses import attribution, metrics, tasks
from analyses.attribution import Effects, Selection
from analyses.attribution._readout_curvature import LogitCurvature, norm_pair
from analyses.attribution._readout_position import Ray
from hooks.inputs import Inputs, Reads
from hooks.readout import Norm, read_out
from hooks.running import autograd
from surgery import Scale

OUT = "blocks.1.mlp.W_out"
CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])
NORMS = [("LN", 3), ("LNPre", 3), ("RMS", 2), ("RMSPre", 2), (None, 2)]
"""So narrow that the residual and the direction of a logit span everything: nothing is left to chance."""


def narrow(norm: str | None, d_model: int, **settings: object) -> torch.nn.Module:
    shape = {"d_model": d_model, "n_heads": 1, "d_head": 2, "normalization_type": norm, "act_fn": "gelu"}
    return models.hooked(**{**shape, **settings})


def asked(model: torch.nn.Module, metric: metrics.Metric, sites: object, tokens: Tensor, **options: object) -> Effects:
    return attribution.by_readout(model, tokens, metric, sites, progress=False, **options)


@pytest.mark.hooked
@pytest.mark.parametrize(("norm", "d_model"), NORMS)
def test_a_logit_is_exact_where_what_follows_a_matrix_is_linear(norm: str | None, d_model: int):
    model, tokens = narrow(norm, d_model), models.tokens(3)
    model_of_attention = narrow(norm, d_model, attn_only=True, n_layers=1)
    for metric in (metrics.logit(CORRECT), metrics.logit_difference(CORRECT, WRONG, position=torch.tensor([3, 6, 5]))):
        for one, where in ((model, [OUT]), (model_of_attention, ["blocks.0.attn.W_V", "blocks.0.attn.W_O"])):
            exact = attribution.by_ablation(one, tokens, metric, where, progress=False)
            first = attribution.by_gradient(one, tokens, metric, where, progress=False)
            found = asked(one, metric, where, tokens, draws=1)
            for site in where:
                torch.testing.assert_close(found.examples[site], exact.examples[site], atol=2e-6, rtol=1e-4)
                bent = (first.examples[site] - exact.examples[site]).abs().max()
                assert norm is None or float(bent) > 1e-3  # so that first order fails


@pytest.mark.hooked
@pytest.mark.parametrize("make", [metrics.log_prob, metrics.prob])
def test_a_probability_among_two_tokens_is_exact(make: Callable[..., metrics.Metric]):
    model, tokens = narrow("LN", 3, d_vocab=2), models.tokens(3) % 2
    metric = make(torch.tensor([0, 1, 1]))
    exact = attribution.by_ablation(model, tokens, metric, OUT, progress=False)
    found = asked(model, metric, OUT, tokens, draws=1)
    torch.testing.assert_close(found.examples[OUT], exact.examples[OUT], atol=2e-6, rtol=1e-4)
    labels = torch.full_like(tokens, metrics.IGNORED)
    labels[:, -1] = torch.tensor([0, 1, 1])
    loss = asked(model, metrics.loss(labels), OUT, tokens, draws=1)
    of_log = asked(model, metrics.log_prob(labels[:, -1]), OUT, tokens, draws=1)
    torch.testing.assert_close(loss.examples[OUT], -of_log.examples[OUT], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", models.SOME_KINDS)
def test_a_logit_is_right_on_average_and_knows_its_noise(kind: str):
    tokens, metric = models.tokens(3), metrics.logit(CORRECT)
    with models.borrowed(kind) as model:
        exact = attribution.by_ablation(model, tokens, metric, OUT, progress=False)[OUT]
        found = [asked(model, metric, OUT, tokens, draws=6, seed=seed) for seed in range(16)]
    assert found[0].passes == 9
    draws = torch.stack([one[OUT] for one in found])
    spread = draws.std(0)
    z = (draws.mean(0) - exact) / (spread / 4).clamp_min(1e-6)
    assert float(z.abs().max()) < 6 and float(z.square().mean()) < 3
    claimed = torch.stack([one.noise[OUT] for one in found]).square().mean().sqrt()
    assert 0.5 < float(claimed / spread.square().mean().sqrt()) < 2


@pytest.fixture(scope="module", params=[-1.0, 1.5], ids=["plain logits", "capped logits"])
def model_with_small_components(request: pytest.FixtureRequest) -> torch.nn.Module:
    """A model whose last matrix has components so small that removing one is a matter of two orders."""
    if not models.has_hooked_transformer():
        pytest.skip("needs HookedTransformer, which transformer-lens 4 no longer has")
    model = models.hooked("ln", output_logits_soft_cap=request.param)
    surgery.commit(model, {OUT: Scale(0.2)})
    return model


def of_squares(logits: Tensor) -> Tensor:
    return logits.square().mean((1, 2))


METRICS = {
    "loss": lambda tokens: metrics.loss(metrics.next_token_labels(tokens)),
    "one's own": lambda tokens: metrics.custom(of_squares, name="squares", unit="", higher_is_better=None),
    "divergence at one position": lambda tokens: metrics.kl_from(torch.randn(3, 7, models.D_VOCAB)),
}


@pytest.mark.parametrize("name", METRICS)
def test_the_second_order_is_that_of_the_second_derivatives(model_with_small_components: torch.nn.Module, name: str):
    model, tokens = model_with_small_components, models.tokens(3)
    metric = METRICS[name](tokens)
    sites = Selection({OUT: range(12)})  # the strongest, whose second order is above the noise
    first = attribution.by_gradient(model, tokens, metric, sites, progress=False)[OUT][:12]
    both = attribution.by_exact_curvature(model, tokens, metric, sites, progress=False)[OUT][:12]
    found = asked(model, metric, sites, tokens, draws=200)
    noise = found.noise[OUT].clamp_min(1e-3 * float((both - first).abs().max()))
    z, forgotten = (found[OUT][:12] - both) / noise, (both - first) / noise
    assert float(z.abs().max()) < 5 and float(z.square().mean()) < 2.5
    assert float(forgotten.square().mean()) > 3  # so that what is forgotten shows


def test_the_ray_is_the_readout_at_other_lengths():
    metric = metrics.log_prob(CORRECT)
    with models.borrowed("bridge gemma2") as model, autograd(True):
        tokens = models.tokens(3)
        readout = read_out(model, Inputs(tokens, reads=Reads(torch.arange(3), torch.full((3,), 6))))
        v = readout.stages(readout.at_reads).normalised.detach()
        h = lambda logits: metric.checked(logits.double(), 3, 7)  # noqa: E731
        ray = Ray.run(readout, torch.zeros_like(v), v, h, -0.8, 1.1)
        t = torch.linspace(-0.8, 1.1, 7).double()
        expected = torch.stack([h(readout.of_normalised(float(x.exp()) * v).logits) for x in t], 1)
        expected = expected - h(readout.of_normalised(v).logits).unsqueeze(1)
    torch.testing.assert_close(ray.change(t.expand(3, -1)), expected.detach(), atol=1e-5, rtol=1e-4)
    tiny = ray.change(torch.full((3, 1), 1e-7).double())
    torch.testing.assert_close(tiny * 1e4, ray.change(torch.full((3, 1), 1e-3).double()), atol=1e-7, rtol=2e-3)


def signs(*shape: int) -> Tensor:
    return 2.0 * torch.randint(2, shape).double() - 1


@pytest.mark.parametrize("centred", [True, False])
def test_random_pairs_of_a_norm_have_its_second_derivative(centred: bool):
    norm, x = Norm(centred, 0.01), torch.randn(1, 5).double()
    G = norm.centre(torch.randn(1, 5).double())
    function = lambda y: ((G * norm.centre(y)).sum(-1) / norm.scale(y).squeeze(-1)).sum()  # noqa: E731
    H = torch.autograd.functional.hessian(function, x).reshape(5, 5)
    plus, minus = norm_pair(norm, x.expand(20000, -1), G.expand(20000, -1), signs(20000, 7))
    torch.testing.assert_close((plus.mT @ plus - minus.mT @ minus) / 20000, H, atol=0.03 * float(H.abs().max()), rtol=0)


def test_random_pairs_of_logits_have_the_second_derivative_and_are_one_vector_where_they_can():
    logits = torch.randn(2, 6).double().requires_grad_()
    functions = {
        "one": lambda x: x.log_softmax(-1)[:, 1].mean(),
        "shifted": lambda x: (2 * (x / 2).tanh()).log_softmax(-1)[:, 1].mean(),
        "mixed": lambda x: x.log_softmax(-1)[:, 1].sum().exp(),
        "no softmax": lambda x: x.square().sum(),
    }
    for name, function in functions.items():
        H = torch.autograd.functional.hessian(function, logits).reshape(12, 12)
        (slope,) = torch.autograd.grad(function(logits), logits, create_graph=True)
        curvature = LogitCurvature.of(slope, logits, logits.softmax(-1), signs(2, 6))
        assert curvature is not None
        pairs = [[part.flatten() for part in curvature.draw(signs(2, 7))] for _ in range(1000)]
        plus, minus = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        found = (plus.mT @ plus - minus.mT @ minus) / 1000
        torch.testing.assert_close(found, H, atol=0.25 * float(H.abs().max()), rtol=0)
        assert (float(plus.abs().max()) < 1e-6) == (name == "one")


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_batches_and_padding_change_nothing(kind: str):
    tokens, mask = models.tokens(3), torch.ones(3, 7, dtype=torch.long)
    mask[0, 4:] = 0
    sites = [OUT, "blocks.0.attn.W_Q[1]", "blocks.0.mlp.W_in"]
    for metric in (metrics.log_prob(CORRECT), metrics.loss(metrics.next_token_labels(tokens, mask))):
        with asked_models.borrowed(kind) as model:
            together = asked(model, metric, sites, tokens, attention_mask=mask)
            apart = asked(model, metric, sites, tokens, attention_mask=mask, batch_size=1)
            alone = metric.select([0])
            if metric.name == "loss":
                alone = metrics.loss(metrics.next_token_labels(tokens[:1, :4]))
            short = asked(model, alone, sites, tokens[:1, :4])
        for site in sites:
            torch.testing.assert_close(apart.examples[site], together.examples[site], atol=1e-6, rtol=1e-3)
            torch.testing.assert_close(short.examples[site], together.examples[site][:1], atol=1e-6, rtol=1e-3)
            torch.testing.assert_close(apart.noise[site], together.noise[site], atol=1e-6, rtol=1e-2)
        assert apart.passes == together.passes


@pytest.mark.hooked
def test_both_hosts_find_the_same():
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    bridge = models.build("bridge gpt2")
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=32, n_heads=4, d_head=8, n_ctx=64, d_vocab=50, act_fn="gelu_new", normalization_type="LN",
        device="cpu",
    )  # fmt: skip
    hooked = HookedTransformer(cfg).eval()
    hooked.load_state_dict(convert_gpt2_weights(models.hugging_face("gpt2"), cfg), strict=False)
    tokens = models.tokens(3)
    torch.testing.assert_close(hooked(tokens), bridge(tokens), atol=1e-4, rtol=1e-4)
    for metric in (metrics.logit_difference(CORRECT, WRONG), metrics.loss(metrics.next_token_labels(tokens))):
        one, other = (asked(model, metric, ["*.W_out", "*.W_Q"], tokens) for model in (hooked, bridge))
        for site in one.sites:
            torch.testing.assert_close(one.examples[site], other.examples[site], atol=1e-5, rtol=2e-2)


def test_an_item_with_an_answer_is_asked_as_the_answer_is():
    rows = models.tokens(3)
    items = [
        tasks.AnswerItem(tuple(row.tolist()), ((int(right),),), ((int(wrong),),))
        for row, right, wrong in zip(rows, CORRECT, WRONG, strict=True)
    ]
    with models.borrowed("bridge llama") as model:
        for of_task, of_ids in (
            (metrics.log_prob(), metrics.log_prob(CORRECT)),
            (metrics.prob(), metrics.prob(CORRECT)),
            (metrics.logit_difference(), metrics.logit_difference(CORRECT, WRONG)),
        ):
            one, other = (asked(model, of_task, OUT, items), asked(model, of_ids, OUT, rows))
            torch.testing.assert_close(one.examples[OUT], other.examples[OUT], atol=1e-5, rtol=1e-2)


def test_the_same_seed_gives_the_same_and_another_another():
    tokens, metric = models.tokens(3), metrics.logit(3)
    with models.borrowed("bridge gpt2") as model:
        one, same, other = (asked(model, metric, OUT, tokens, seed=seed).examples[OUT] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.dtype == torch.float32 and np.isfinite(one.numpy()).all()


def test_what_cannot_be_followed_is_refused():
    tokens = models.tokens(3)
    with models.borrowed("bridge gpt2") as model:
        with pytest.raises(ValueError, match=r"may mix examples.*metrics.custom"):
            asked(model, lambda logits: logits.mean((1, 2)), OUT, tokens)
        with pytest.raises(ValueError, match=r"not differentiable.*by_ablation"):
            asked(model, metrics.accuracy(3), OUT, tokens)
        with pytest.raises(ValueError, match="draws=0"):
            asked(model, metrics.logit(3), OUT, tokens, draws=0)
        with pytest.raises(ValueError, match="through anything differentiable"):
            constant = metrics.custom(lambda x: x.detach()[:, 0, 0], name="c", unit="", higher_is_better=None)
            asked(model, constant, OUT, tokens)
