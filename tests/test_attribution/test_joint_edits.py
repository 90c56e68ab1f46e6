import models
import pytest
import removal
import torch

import surgery
from analyses import metrics
from analyses.attribution import Selection
from analyses.attribution._joint_edits import joint_edit
from surgery import Compensated, Drop, KeepTop, RandomBasis, RowBlocks, Scale

CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])
OUT, QUERY, KEY = "blocks.1.mlp.W_out", "blocks.0.attn.W_Q[1]", "blocks.0.attn.W_K"


def difference() -> metrics.Metric:
    return metrics.logit_difference(CORRECT, WRONG)


def every(n: int) -> torch.Tensor:
    """All coalitions of n players."""
    return torch.tensor([[bool(number >> i & 1) for i in range(n)] for number in range(2**n)])


@pytest.mark.parametrize("kind", models.SOME_KINDS)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_coalition_is_its_weights_overwritten(kind: str, batch_size: int | None):
    tokens, metric = models.tokens(3), difference()
    spec = {QUERY: Drop([0, 3]), KEY: Scale({1: 0.5}), OUT: Scale({0: 0.0, 2: 3.0})}
    gains = [(QUERY, 0, 0.0), (QUERY, 3, 0.0), (KEY, 1, 0.5), (OUT, 0, 0.0), (OUT, 2, 3.0)]
    coalitions = every(5)[::3]
    with models.borrowed(kind) as model:
        game = joint_edit(model, tokens, metric, spec, batch_size=batch_size, progress=False)
        players = [(str(site), unit) for site, unit in game.players]
        assert sorted(players) == sorted((site, (i,)) for site, i, _ in gains)
        values = game.values(coalitions)
        now = metric(model(tokens)).detach().float()
        for members, found in zip(coalitions.tolist(), values, strict=True):
            chosen: dict[str, dict[int, float]] = {}
            for site, i, gain in gains:
                if members[players.index((site, (i,)))]:
                    chosen.setdefault(site, {})[i] = gain
            expected = now + removal.regained_effect(model, chosen, lambda: metric(model(tokens)))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", models.SOME_KINDS)
def test_everybody_together_is_the_spec_with_its_constants(kind: str):
    tokens, metric = models.tokens(3), metrics.loss(metrics.next_token_labels(models.tokens(3)))
    with models.borrowed(kind) as model:
        n = surgery.decompose(model, OUT, progress=False)[OUT].n_components
        spec = {OUT: Compensated(Drop([0, 1, 4]), torch.linspace(-1, 1, n)), "blocks.0.attn.W_V[*]": Drop([1])}
        game = joint_edit(model, tokens, metric, spec, progress=False)
        values = game.values(torch.tensor([[False] * len(game.players), [True] * len(game.players)]))
        now = metric(model(tokens)).detach()
        with surgery.apply(model, spec, progress=False):
            then = metric(model(tokens)).detach()
    torch.testing.assert_close(values, torch.stack([now, then]), atol=1e-5, rtol=1e-5)
    assert float((then - now).abs().min()) > 1e-4


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_under_an_operation_and_with_hooks_of_the_user(kind: str):
    tokens, metric, name = models.tokens(3), difference(), "blocks.1.hook_resid_pre"
    with models.borrowed(kind) as model:
        _, cache = model.run_with_cache(tokens.flip(0))

        def patch(activation: torch.Tensor, hook: object) -> torch.Tensor:
            activation[:, 2] = cache[name][:, 2]
            return activation

        spec = {OUT: Drop([0, 3]), KEY: Drop([2])}
        with (
            surgery.apply(model, {OUT: KeepTop(rank=5), KEY: Scale({2: 2.0})}, progress=False),
            model.hooks(fwd_hooks=[(name, patch)]),
        ):
            game = joint_edit(model, tokens, metric, spec, progress=False)
            found = game.values(every(3))
            for members, values in zip(every(3).tolist(), found, strict=True):
                chosen = {}
                for (site, (i,)), inside in zip(game.players, members, strict=True):
                    if inside:
                        chosen.setdefault(str(site), []).append(i)
                with surgery.apply(model, {site: Drop(some) for site, some in chosen.items()}, progress=False):
                    expected = metric(model(tokens)).detach()
                torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)


def test_players_may_be_units_and_patterns():
    tokens, spec = models.tokens(3), {"blocks.*.mlp.W_out": Drop([0, 1, 5])}
    with models.borrowed("bridge gpt2") as model:
        game = joint_edit(model, tokens, difference(), spec, players=Selection({"*.W_out": [(0, 5)]}), progress=False)
        assert [(str(site), unit) for site, unit in game.players] == [
            ("blocks.0.mlp.W_out", (0, 5)),
            ("blocks.1.mlp.W_out", (0, 5)),
        ]
        values = game.values(torch.tensor([[False, False], [False, True]]))
        expected = removal.effect(model, OUT, [0, 5], lambda: difference()(model(tokens)))
    torch.testing.assert_close(values[1] - values[0], expected, atol=1e-5, rtol=1e-5)


def test_bad_input_is_refused():
    tokens = models.tokens(3)
    with models.borrowed("bridge gpt2") as model:

        def ask(spec: dict, **more: object) -> None:
            joint_edit(model, tokens, difference(), spec, progress=False, **more)

        with pytest.raises(ValueError, match=r"the spec changes no component \(every gain is 1\)"):
            ask({OUT: Scale({0: 1.0})})
        with pytest.raises(ValueError, match=r"the spec changes no component"):
            ask({})
        with pytest.raises(ValueError, match=r"W_out' is edited in HaarBasis.*, whose components do not sum to it"):
            ask({OUT: RandomBasis(0)})
        with pytest.raises(ValueError, match=r"is edited in RowBlocks.*, another matrix in SVD\(\): shares are those"):
            ask({KEY: Drop([0]), OUT: Drop([0], basis=RowBlocks(4))})
        with pytest.raises(ValueError, match=r"players names component 2 of 'blocks.1.mlp.W_out'.*does not change"):
            ask({OUT: Drop([0])}, players=Selection({OUT: [0, 2]}))
        with pytest.raises(ValueError, match=r"players names component 0 of 'blocks.0.attn.W_K'"):
            ask({OUT: Drop([0])}, players=Selection({KEY: [0]}))
        with pytest.raises(ValueError, match=r"overlap: one edits the matrix joint over heads"):
            ask({"blocks.0.attn.W_K": Drop([0]), "blocks.0.attn.W_K[0]": Drop([0])})
        with pytest.raises(surgery.SiteError, match=r"no matrix is named 'blocks.7.mlp.W_out'"):
            ask({"blocks.7.mlp.W_out": Drop([0])})
