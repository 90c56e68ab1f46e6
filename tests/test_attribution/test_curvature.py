from itertools import product

import by_hand
import models
import pytest
import removal
import torch

import surgery
from analyses import attribution, metrics
from analyses.attribution import Selection
from analyses.attribution._curvature import LOCAL_SHARE, _diagonals
from surgery import Drop

CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])
OUT, IN = "blocks.1.mlp.W_out", "blocks.0.mlp.W_in"


def difference() -> metrics.Metric:
    return metrics.logit_difference(CORRECT, WRONG)


def labelled(tokens: torch.Tensor) -> metrics.Metric:
    return metrics.loss(metrics.next_token_labels(tokens))


def second_order(
    model: torch.nn.Module, site: str, members: list[int], value: object, *, h: float = 0.1
) -> torch.Tensor:
    """`−∂m/∂γ + ½ ∂²m/∂γ²` of a gain that these components share, by central differences."""
    up = removal.regained_effect(model, {site: dict.fromkeys(members, 1 + h)}, value).double()
    down = removal.regained_effect(model, {site: dict.fromkeys(members, 1 - h)}, value).double()
    return (-(up - down) / (2 * h) + 0.5 * (up + down) / h**2).float()


@pytest.mark.parametrize("kind", models.SOME_KINDS)
def test_exact_curvature_is_the_second_difference_of_a_gain(kind: str):
    tokens = models.tokens(3)
    units = [0, 3, (1, 2)]
    sites = [OUT, IN, "blocks.0.attn.W_Q", "blocks.0.attn.W_K[1]", "blocks.1.attn.W_V", "blocks.0.attn.W_O[1]"]
    with models.borrowed(kind) as model:
        for metric in (difference(), labelled(tokens)):
            chosen = Selection(dict.fromkeys(sites, units))
            effects = attribution.by_exact_curvature(model, tokens, metric, chosen, progress=False)
            slopes = attribution.by_gradient(model, tokens, metric, chosen, progress=False)
            curved = 0
            for site in sites:
                for column, unit in enumerate(effects.units[site]):
                    expected = second_order(model, site, list(unit), lambda m=metric: m(model(tokens)))
                    found = effects.examples[site][:, column]
                    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-2)
                    curved += bool(((found - slopes.examples[site][:, column]).abs() > 0.005).any())
            assert curved > 0  # so that a forgotten second order fails


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_probes_are_exact_where_there_are_no_more_gains_than_probes(kind: str):
    tokens, metric = models.tokens(3), difference()
    chosen = Selection({OUT: [0, (1, 4), 2], IN: [5], "blocks.0.attn.W_Q[2]": [0, (1, 2)]})
    with models.borrowed(kind) as model:
        exact = attribution.by_exact_curvature(model, tokens, metric, chosen, progress=False)
        for share, passes in (("matrix", 4 + 2 * 6), ("type", 4 + 2 * 6), ("all", 4 + 2 * 6)):
            found = attribution.by_curvature(
                model, tokens, metric, chosen, draws=6, share=share, batch_size=2, progress=False
            )
            for site in found.sites:
                torch.testing.assert_close(found.examples[site], exact.examples[site], atol=1e-5, rtol=1e-3)
            assert found.passes == passes
            assert found.noise == {}


@pytest.mark.parametrize(
    ("kind", "share"),
    [("bridge gpt2", "matrix"), ("bridge gpt2", "all"), pytest.param("hooked ln", "type", marks=pytest.mark.hooked)],
)
def test_estimates_are_unbiased_and_know_their_noise(kind: str, share: str):
    tokens, metric = models.tokens(3), difference()
    sites = Selection({OUT: range(12), "blocks.0.mlp.W_out": range(12), "blocks.0.attn.W_V": range(12)})
    with models.borrowed(kind) as model:
        exact = attribution.by_exact_curvature(model, tokens, metric, sites, progress=False)
        found = [
            attribution.by_curvature(model, tokens, metric, sites, draws=6, seed=seed, share=share, progress=False)
            for seed in range(12)
        ]
    for site in exact.sites:
        draws, truth = torch.stack([one[site] for one in found])[:, :12], exact[site][:12]
        assert float(draws.std(0).max()) > 1e-6
        stderr = draws.std(0) / len(found) ** 0.5
        z = (draws.mean(0) - truth) / stderr.clamp_min(1e-6)
        assert float(z.abs().max()) < 6
        assert float(z.square().mean()) < 3
        claimed = torch.stack([one.noise[site] for one in found]).square().mean().sqrt()
        assert 0.4 < float(claimed / draws.var(0).mean().sqrt()) < 2.5


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_more_probes_come_closer_and_say_so(kind: str):
    tokens, metric = models.tokens(3), difference()
    sites = ["blocks.0.attn.W_O", "blocks.0.mlp.W_in"]
    with models.borrowed(kind) as model:
        exact = attribution.by_exact_curvature(model, tokens, metric, sites, progress=False)
        by_probes = {
            n: attribution.by_curvature(model, tokens, metric, sites, draws=n, share="matrix", progress=False)
            for n in (4, 24)
        }
        full = attribution.by_curvature(model, tokens, metric, sites, draws=32, share="matrix", progress=False)
    for site in sites:
        error = {n: float((found.examples[site] - exact.examples[site]).norm()) for n, found in by_probes.items()}
        assert error[24] < 0.6 * error[4]
        assert float(by_probes[24].noise[site].mean()) < 0.6 * float(by_probes[4].noise[site].mean())
        torch.testing.assert_close(full.examples[site], exact.examples[site], atol=1e-5, rtol=1e-3)
    assert by_probes[4].passes == 4 + 2 * 4 * 2


def test_sharing_covers_one_matrix_one_type_or_all():
    tokens, sites = models.tokens(2), ["*.W_in", "*.W_out"]
    with models.borrowed("bridge gpt2") as model:
        passes = {
            share: attribution.by_curvature(
                model, tokens, metrics.logit(3), sites, draws=2, share=share, progress=False
            ).passes
            for share in ("matrix", "type", "all")
        }
    assert passes == {"matrix": 4 + 4 * 4, "type": 4 + 4 * 2, "all": 4 + 4}


@pytest.mark.parametrize("rank", [0, 2, 12])
def test_diagonals_of_a_known_matrix(rank: int):
    """Of rank below the number of vectors it is exact; of any rank each estimate is right on the average."""
    generator = torch.Generator().manual_seed(0)
    B = torch.randn(2, 12, max(rank, 1), generator=generator)
    H = (B @ torch.diag(torch.linspace(-1, 2, max(rank, 1))) @ B.mT) * (rank > 0)

    def times(z: torch.Tensor) -> torch.Tensor:
        return (H @ z.to(H).unsqueeze(-1)).squeeze(-1)

    draws = [
        _diagonals(times, (2, 12), 4, torch.Generator().manual_seed(seed)) for seed in range(200 if rank > 3 else 3)
    ]
    truth = H.diagonal(dim1=1, dim2=2)
    if rank < 4:
        for drawn in draws:
            torch.testing.assert_close(drawn, truth.expand(4, -1, -1), atol=1e-4, rtol=1e-3)
    means = torch.stack([drawn.mean(0) for drawn in draws])
    if rank > 3:
        z = (means.mean(0) - truth) / (means.std(0) / len(draws) ** 0.5)
        assert float(z.abs().max()) < 4
    assert draws[0].shape == (4, 2, 12)


@pytest.mark.hooked
def test_of_a_quadratic_read_out_second_order_is_exact():
    model = models.hooked("no-norm", n_layers=1)
    model.blocks[0].mlp.act_fn = lambda x: x
    tokens, sites = models.tokens(3), ["blocks.0.mlp.W_in", "blocks.0.mlp.W_out"]
    metric = metrics.custom(
        lambda x: x[:, -1, :4].square().sum(1), name="square", unit="logits²", higher_is_better=None
    )
    found = attribution.by_exact_curvature(model, tokens, metric, sites, progress=False)
    slopes = attribution.by_gradient(model, tokens, metric, sites, progress=False)
    for site in sites:
        for component in (0, 7, 31):
            expected = removal.effect(model, site, [component], lambda: metric(model(tokens)))
            torch.testing.assert_close(found.examples[site][:, component], expected, atol=1e-4, rtol=1e-3)
        assert float((found.examples[site] - slopes.examples[site]).abs().max()) > 1e-3


@pytest.mark.hooked
def test_where_the_metric_is_linear_second_order_is_first_order():
    model = models.hooked("no-norm", n_layers=1)
    tokens, site = models.tokens(3), "blocks.0.mlp.W_out"
    slopes = attribution.by_gradient(model, tokens, difference(), site, progress=False)
    for attribute in (attribution.by_curvature, attribution.by_exact_curvature):
        found = attribute(model, tokens, difference(), site, progress=False)
        torch.testing.assert_close(found.examples[site], slopes.examples[site], atol=1e-6, rtol=1e-4)
    mixed = attribution.by_curvature(model, tokens, difference(), ["*.W_in", "*.W_out"], share="all", progress=False)
    assert mixed.sites == ("blocks.0.mlp.W_in", site)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_fisher_is_the_expectation_over_all_labels(kind: str):
    """`−∂m/∂γ + ½ n Σ_t E (s (x_t·u) (g_t·v))²`, the expectation over every pair of labels, x and g read from hooks."""
    tokens, component = models.tokens(2, 4), 1
    labels = torch.full((2, 4), metrics.IGNORED)
    labels[0, 1], labels[0, 3], labels[1, 2] = 4, 7, 9  # two labels, and one
    read, write = "blocks.0.mlp.hook_post", "blocks.0.hook_mlp_out"
    site = "blocks.0.mlp.W_out"
    with models.borrowed(kind) as model:
        W = by_hand.read(model, site).double()
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        held: dict[str, torch.Tensor] = {}

        def keep_input(a: torch.Tensor, hook: object) -> None:
            held["x"] = a.detach()

        def keep_output(a: torch.Tensor, hook: object) -> torch.Tensor:
            held["y"] = a.detach().requires_grad_()
            return held["y"]

        logits = model.run_with_hooks(tokens, fwd_hooks=[(read, keep_input), (write, keep_output)])
        logp = logits.log_softmax(-1)
        d_vocab = logp.shape[-1]
        x = held["x"].double() @ U[:, component] * S[component]

        def slope_of(position: int, row: int) -> torch.Tensor:
            """∂ log p / ∂ y · v of every label there, `[label pos]`."""
            eye = torch.eye(d_vocab)
            grads = torch.autograd.grad(
                logp[row, position], held["y"], grad_outputs=eye, is_grads_batched=True, retain_graph=True
            )[0]
            return x[row] * (-grads[:, row].double() @ Vh[component])

        p = logp.detach().double().exp()
        pairs = list(product(range(d_vocab), repeat=2))
        a, b = slope_of(1, 0), slope_of(3, 0)
        first = sum(
            p[0, 1, i] * p[0, 3, j] * ((a[i] + b[j]) / 2).square().sum() for i, j in pairs
        )  # loss is the mean over labels
        second = (p[1, 2].unsqueeze(1) * slope_of(2, 1).square()).sum()
        slope = torch.stack([((a[4] + b[7]) / 2).sum(), slope_of(2, 1)[9].sum()])
        expected = (-slope + 0.5 * torch.stack([2 * first, second])).float()
        found = [
            attribution.by_fisher(
                model, tokens, labels, Selection({site: [component]}), draws=30, seed=s, progress=False
            )
            for s in range(6)
        ]
    draws = torch.stack([one.examples[site][:, 0] for one in found])
    stderr = draws.std(0) / 6**0.5
    assert bool(((draws.mean(0) - expected.detach()).abs() < 5 * stderr + 1e-6).all())
    curvature = (expected + slope.float()).detach()
    assert bool((stderr < 0.25 * curvature).all())  # so that the comparison means something
    assert found[0].passes == 2 * 31


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_one_row_of_labels_serves_every_example(kind: str):
    tokens = models.tokens(3)
    labels = metrics.next_token_labels(tokens[:1])
    with models.borrowed(kind) as model:
        one = attribution.by_fisher(model, tokens, labels, OUT, draws=2, progress=False)
        three = attribution.by_fisher(model, tokens, labels.expand(3, -1), OUT, draws=2, progress=False)
    torch.testing.assert_close(one.examples[OUT], three.examples[OUT])


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_for_a_loss_the_estimate_lies_between_the_fisher_and_its_own(kind: str):
    tokens = models.tokens(3)
    labels, site = metrics.next_token_labels(tokens), "blocks.0.mlp.W_out"
    plain = metrics.custom(metrics.loss(labels), name="loss", unit="nats", higher_is_better=False)
    with models.borrowed(kind) as model:
        found = attribution.by_curvature(model, tokens, metrics.loss(labels), site, draws=8, seed=2, progress=False)
        own = attribution.by_curvature(model, tokens, plain, site, draws=8, seed=2, progress=False)
        exact = attribution.by_curvature(model, tokens, metrics.loss(labels), site, draws=32, seed=2, progress=False)
        whole = attribution.by_exact_curvature(model, tokens, plain, site, progress=False)
        fisher = attribution.by_fisher(model, tokens, labels, site, draws=4, seed=2, progress=False)
    drawn = own.examples[site] - fisher.examples[site]
    weight = float(((found.examples[site] - fisher.examples[site]) / drawn).median())
    assert 0 <= weight <= LOCAL_SHARE
    torch.testing.assert_close(found.examples[site], fisher.examples[site] + weight * drawn, atol=1e-5, rtol=1e-3)
    halfway = (whole.examples[site] + fisher.examples[site]) / 2  # without noise, half of the way
    torch.testing.assert_close(exact.examples[site], halfway, atol=1e-5, rtol=1e-3)
    assert found.passes == 4 + 2 * 8 + 2 * 5
    assert "drawn towards the Fisher (4 draws)" in found.method


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_curvature_sees_active_hooks_and_edits(kind: str):
    tokens, metric, site = models.tokens(3), difference(), "blocks.1.mlp.W_out"
    name = "blocks.0.hook_resid_post" if "hooked" in kind else "blocks.0.hook_out"

    def halve(activation: torch.Tensor, hook: object) -> torch.Tensor:
        return activation * 0.5

    chosen = Selection({site: [0, 1, 3]})
    with models.borrowed(kind) as model:
        with model.hooks(fwd_hooks=[(name, halve)]), surgery.apply(model, {site: Drop([0])}, progress=False):
            found = attribution.by_curvature(model, tokens, metric, chosen, draws=4, progress=False)
        W = by_hand.read(model, site)
        U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
        by_hand.write(model, site, (W - S[0] * torch.outer(U[:, 0], Vh[0])).float())
        try:
            with model.hooks(fwd_hooks=[(name, halve)]):
                for column, now in ((1, 0), (2, 2)):  # one place up: the first is gone
                    expected = second_order(model, site, [now], lambda: metric(model(tokens)))
                    torch.testing.assert_close(found.examples[site][:, column], expected, atol=2e-3, rtol=2e-2)
        finally:
            by_hand.write(model, site, W)
    assert float(found.examples[site][:, 0].abs().max()) < 1e-6


def test_bf16_is_fp32_up_to_rounding():
    tokens, metric, site = models.tokens(3), difference(), OUT
    exact = attribution.by_curvature(models.build("bridge gpt2"), tokens, metric, site, draws=32, progress=False)
    half = models.build("bridge gpt2", dtype=torch.bfloat16)
    rough = attribution.by_curvature(half, tokens, metric, site, draws=32, progress=False)
    assert torch.corrcoef(torch.stack([exact[site], rough[site]]))[0, 1] > 0.95


def test_bad_input_is_refused():
    tokens = models.tokens(3)
    with models.borrowed("bridge gpt2") as model:
        for probes in (0, 1, 3):
            with pytest.raises(
                ValueError,
                match=rf"draws={probes}: (give a whole number, 2 or more|.* Give an even)",
            ):
                attribution.by_curvature(model, tokens, difference(), OUT, draws=probes, progress=False)
        with pytest.raises(ValueError, match=r"draws=0: give a whole number, 1 or more"):
            attribution.by_fisher(model, tokens, metrics.next_token_labels(tokens), OUT, draws=0, progress=False)
        for attribute in (attribution.by_curvature, attribution.by_exact_curvature):
            with pytest.raises(ValueError, match=r"'rank' is not differentiable.*by_ablation"):
                attribute(model, tokens, metrics.rank(CORRECT), OUT, progress=False)
            with pytest.raises(ValueError, match=r"does not depend on the attributed matrices"):
                attribute(model, tokens, lambda logits: logits[:, -1, 0].detach(), OUT, progress=False)
        with pytest.raises(ValueError, match=r"labels .* for logits of 7 positions"):
            attribution.by_fisher(model, tokens, tokens[:, :5], OUT, progress=False)
