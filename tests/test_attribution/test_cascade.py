import by_hand
import models
import pytest
import removal
import torch

import surgery
from analyses import attribution, metrics
from analyses.attribution import Selection, _rounds
from analyses.attribution.question import ask

CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 1, 1])
PLANTED = "blocks.1.mlp.W_out"


def planted(kind: str) -> torch.nn.Module:
    """A model whose strongest component of one matrix, and of no other, writes the wrong answer."""
    model = models.build(kind)
    W = by_hand.read(model, PLANTED).double()
    direction = wrong_direction(model).double()
    with torch.no_grad():
        _, cache = model.run_with_cache(models.tokens(3))
    read = cache["blocks.1.mlp.hook_post"].double().mean((0, 1))
    by_hand.write(model, PLANTED, (W + 20 * torch.outer(read / read.norm(), direction / direction.norm())).float())
    return model


def wrong_direction(model: torch.nn.Module) -> torch.Tensor:
    return model.W_U[:, 1].detach() - model.W_U.detach().mean(1)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
@pytest.mark.parametrize("probes", [None, 4])
def test_a_planted_component_is_found_among_all(kind: str, probes: int | None):
    tokens, metric = models.tokens(3), metrics.logit_difference(CORRECT, WRONG)
    model = planted(kind)
    found = attribution.screen(model, tokens, metric, "*.W_*", candidates=20, choose=3, draws=probes, progress=False)
    assert dict(found.exact.most_harmful(1)) == {PLANTED: ((0,),)}
    assert 0 in found.spec[PLANTED].components
    removed = removal.effect(model, PLANTED, [0], lambda: metric(model(tokens)))
    torch.testing.assert_close(found.exact[PLANTED][0], removed.mean(), atol=1e-4, rtol=1e-4)
    now = metric(model(tokens)).detach().mean()
    with surgery.apply(model, found.spec, progress=False):
        then = metric(model(tokens)).detach().mean()
    assert float(then - now) > 0.5 * float(removed.mean()) > 0.3
    assert found.certified is not None
    assert found.certified.residual <= 0.01
    torch.testing.assert_close(found.certified.change.mean(), then - now, atol=1e-4, rtol=1e-4)
    assert sum(len(found.certified.units[site]) for site in found.certified.sites) == 3


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_each_stage_says_what_it_cost(kind: str):
    tokens = models.tokens(3)
    loss = metrics.loss(metrics.next_token_labels(tokens))
    with models.borrowed(kind) as model:
        found = attribution.screen(model, tokens, loss, "*.mlp.W_out", candidates=20, choose=2, progress=False)
        logit = attribution.screen(
            model, tokens, metrics.logit(3), "*.mlp.W_out", candidates=20, choose=2, progress=False
        )
    costs = found.costs()
    assert list(costs.columns) == ["method", "components", "passes", "seconds"]
    assert costs["components"].tolist() == [64, 20, 2]
    assert costs["method"][0] == "readout (8 draws)"
    assert costs["method"][2].startswith("path (")
    assert costs["passes"][0] == 2 + 2 * 8
    assert 1 < costs["passes"][1] <= 1 + 20
    assert (costs["seconds"] > 0).all()
    assert "screening" in repr(found)
    assert "certificate: the change is" in repr(found)
    assert logit.estimated.method == "readout (4 draws)"
    assert logit.spec == logit.exact.drop(2)  # a metric without a direction: the largest


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_only_what_improves_is_chosen_and_blocks_stay_whole(kind: str):
    tokens, metric = models.tokens(3), metrics.logit_difference(CORRECT, WRONG)
    chosen = Selection({PLANTED: [(0, 1, 2), (3, 4), 5, 6]})
    with models.borrowed(kind) as model:
        found = attribution.screen(model, tokens, metric, chosen, candidates=4, choose=1, progress=False)
        single = attribution.by_ablation(model, tokens, metric, chosen, progress=False)
        nothing = attribution.screen(model, tokens, metric, chosen, candidates=4, choose=0, progress=False)
    ((best,),) = [units for units in single.most_harmful(1).values()]
    assert found.spec == {PLANTED: surgery.Drop(best)}
    assert found.certified.units == {PLANTED: tuple((i,) for i in best)}
    assert nothing.spec == {}
    assert nothing.certified is None
    assert "nothing was chosen" in repr(nothing)
    assert len(nothing.costs()) == 2


def test_bad_input_is_refused():
    tokens = models.tokens(3)
    with models.borrowed("bridge gpt2") as model:

        def ask(metric: metrics.Metric, **more: object) -> None:
            attribution.screen(model, tokens, metric, PLANTED, progress=False, **more)

        with pytest.raises(ValueError, match=r"'accuracy' is not differentiable"):
            ask(metrics.accuracy(CORRECT))
        for few in (-1, 0):
            with pytest.raises(ValueError, match=rf"candidates={few}: give a whole number, 1 or more"):
                ask(metrics.logit(3), candidates=few)
        with pytest.raises(ValueError, match=r"draws=3: these come in pairs. Give an even number"):
            ask(metrics.logit(3), draws=3)


def test_what_the_front_door_offers():
    for name in attribution.__all__:
        assert getattr(attribution, name).__doc__
        assert name in attribution.__doc__ or name[0].isupper()


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_a_budget_is_kept_and_what_it_finds_is_exact(kind: str):
    tokens = models.tokens(8)
    loss = metrics.loss(metrics.next_token_labels(tokens))
    sites = ["*.W_out", "*.W_V"]
    with models.borrowed(kind) as model:
        found = attribution.screen(model, tokens, loss, sites, budget=0.45, choose=2, progress=False)
        everything = attribution.by_ablation(model, tokens, loss, sites, progress=False)
    first, second = found.rounds
    assert (first.examples, second.examples) == (2, 6)
    assert first.units > second.units == sum(map(len, found.exact.units.values())) > 2
    spent = found.estimated.passes + first.passes + second.passes
    assert spent == pytest.approx(found.estimated.passes + found.exact.passes)
    assert 0.4 * everything.passes < spent <= 0.45 * everything.passes
    assert found.costs()["passes"][:3].sum() == pytest.approx(spent)
    assert found.costs()["method"][1] == "ablation (zero), 2 examples"
    torch.testing.assert_close(found.exact.measure.baseline, everything.measure.baseline)
    for site, units in found.exact.units.items():
        columns = [everything.units[site].index(unit) for unit in units]
        torch.testing.assert_close(
            found.exact.examples[site], everything.examples[site][:, columns], atol=1e-6, rtol=1e-4
        )
    assert found.exact.top(2) == everything.top(2)


def test_an_estimate_is_doubted_as_far_as_the_component_is_what_its_matrix_writes():
    tokens, site = models.tokens(4), "blocks.1.mlp.W_out"
    mask = torch.ones_like(tokens)
    mask[0, -3:] = 0
    model = models.build("bridge gpt2")
    question = ask(model, tokens, metrics.logit(3), Selection({site: [0, (1, 4)]}), attention_mask=mask)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, attention_mask=mask)
    x, W = cache["blocks.1.mlp.hook_post"][[0, 2]][mask[[0, 2]].bool()].double(), by_hand.read(model, site).double()
    estimates = torch.tensor([[1.0, 3.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, 3.0]], dtype=torch.float64)
    found = _rounds._possible(question, estimates, torch.tensor([2, 0]))
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    written = [float((x @ (U[:, unit] * S[unit]) @ Vh[unit]).square().sum()) for unit in ([0], [1, 4])]
    shares = (torch.tensor(written, dtype=torch.float64) / (x @ W).square().sum()).sqrt()
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0]) + 3 * shares * torch.tensor([1.0, 5.0**0.5]))


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_what_sees_all_examples_together_is_ablated_in_one_round(kind: str):
    tokens = models.tokens(8)

    def function(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 3] * torch.arange(len(logits))

    with models.borrowed(kind) as model:
        found = attribution.screen(model, tokens, function, "*.W_out", draws=0, budget=0.5, choose=1, progress=False)
        everything = attribution.by_ablation(model, tokens, function, "*.W_out", progress=False)
    assert [one.examples for one in found.rounds] == [8]
    for site, units in found.exact.units.items():
        columns = [everything.units[site].index(unit) for unit in units]
        torch.testing.assert_close(found.exact.examples[site], everything.examples[site][:, columns])


def test_a_budget_is_a_fraction_and_stands_alone():
    tokens, metric = models.tokens(3), metrics.logit(3)
    with models.borrowed("bridge gpt2") as model:
        with pytest.raises(ValueError, match=r"candidates=5 and budget=0.1: both say how much.*Give one of them"):
            attribution.screen(model, tokens, metric, PLANTED, candidates=5, budget=0.1, progress=False)
        with pytest.raises(ValueError, match=r"budget=5: give a fraction, from 0 to 1"):
            attribution.screen(model, tokens, metric, PLANTED, budget=5, progress=False)
        found = attribution.screen(model, tokens, metric, PLANTED, budget=0, choose=2, progress=False)
    assert found.rounds[-1].units == 2  # what was to be chosen, whatever it takes
