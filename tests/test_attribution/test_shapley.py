from itertools import permutations

import by_hand
import models
import pytest
import removal
import torch

import surgery
from analyses import attribution, metrics
from analyses.attribution import Selection
from surgery import Drop, KeepTop, RandomBasis, Scale

CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])
OUT, QUERY = "blocks.1.mlp.W_out", "blocks.0.attn.W_Q[1]"
PLAYERS = [(QUERY, 0, 0.0), ("blocks.0.attn.W_V", 2, 0.5), (OUT, 0, 0.0), (OUT, 3, 4.0)]
SPEC = {QUERY: Drop([0]), "blocks.0.attn.W_V": Scale({2: 0.5}), OUT: Scale({0: 0.0, 3: 4.0})}


def difference() -> metrics.Metric:
    return metrics.logit_difference(CORRECT, WRONG)


def stacked(effects: attribution.Effects) -> torch.Tensor:
    """Every share, [example player], in the order of PLAYERS."""
    return torch.cat([effects.examples[site] for site in effects.sites], 1)


def by_hand_values(
    model: torch.nn.Module, metric: metrics.Metric, tokens: torch.Tensor
) -> dict[frozenset, torch.Tensor]:
    """The change of the metric under every coalition of PLAYERS, weights overwritten."""
    found = {}
    for number in range(2 ** len(PLAYERS)):
        inside = [n for n in range(len(PLAYERS)) if number >> n & 1]
        gains: dict[str, dict[int, float]] = {}
        for n in inside:
            site, i, gain = PLAYERS[n]
            gains.setdefault(site, {})[i] = gain
        found[frozenset(inside)] = removal.regained_effect(model, gains, lambda: metric(model(tokens)))
    return found


def all_orders(values: dict[frozenset, torch.Tensor]) -> torch.Tensor:
    """The exact shares: the mean over every order of entry, [example player]."""
    orders = list(permutations(range(len(PLAYERS))))
    shares = torch.zeros(len(next(iter(values.values()))), len(PLAYERS))
    for order in orders:
        for k, player in enumerate(order):
            shares[:, player] += values[frozenset(order[: k + 1])] - values[frozenset(order[:k])]
    return shares / len(orders)


@pytest.mark.parametrize("kind", models.SOME_KINDS)
def test_shares_are_those_of_all_orders_and_sum_to_the_change(kind: str):
    tokens, metric = models.tokens(3), difference()
    with models.borrowed(kind) as model:
        values = by_hand_values(model, metric, tokens)
        few = attribution.by_shapley(model, tokens, metric, SPEC, draws=2, progress=False)
        many = attribution.by_shapley(model, tokens, metric, SPEC, draws=60, seed=3, progress=False)
    assert [(s, i) for s in many.sites for (i,) in many.units[s]] == [(s, i) for s, i, _ in PLAYERS]
    change = values[frozenset(range(4))]
    for effects in (few, many):
        torch.testing.assert_close(stacked(effects).sum(1), change, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(effects.change, change, atol=1e-5, rtol=1e-5)
        assert effects.residual < 1e-4
    exact = all_orders(values)
    spread = torch.cat([many.noise[site] for site in many.sites])
    assert bool(((stacked(many).mean(0) - exact.mean(0)).abs() <= 4 * spread + 1e-5).all())
    assert float((stacked(many) - exact).abs().max()) < 0.3 * float(exact.abs().max())
    assert many.passes == 2 + 60 * 3


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_one_pair_is_an_order_and_its_reverse(kind: str):
    tokens, metric = models.tokens(3), difference()
    with models.borrowed(kind) as model:
        values = by_hand_values(model, metric, tokens)
        found = stacked(attribution.by_shapley(model, tokens, metric, SPEC, draws=2, seed=5, progress=False))

    def marginals(order: tuple[int, ...]) -> torch.Tensor:
        shares = torch.zeros(3, 4)
        for k, player in enumerate(order):
            shares[:, player] = values[frozenset(order[: k + 1])] - values[frozenset(order[:k])]
        return shares

    pairs = [(marginals(order) + marginals(order[::-1])) / 2 for order in permutations(range(4))]
    nearest = min(float((pair - found).abs().max()) for pair in pairs)
    assert nearest < 1e-5


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_with_two_players_one_pair_is_exact(kind: str):
    tokens, metric, spec = models.tokens(3), difference(), {QUERY: Drop([1]), OUT: Drop([0])}
    with models.borrowed(kind) as model:
        effects = attribution.by_shapley(model, tokens, metric, spec, draws=4, progress=False)
        alone = [removal.effect(model, s, [i], lambda: metric(model(tokens))) for s, i in ((QUERY, 1), (OUT, 0))]
        both = removal.regained_effect(model, {QUERY: {1: 0.0}, OUT: {0: 0.0}}, lambda: metric(model(tokens)))
    expected = torch.stack([(alone[0] + both - alone[1]) / 2, (alone[1] + both - alone[0]) / 2], 1)
    torch.testing.assert_close(stacked(effects), expected, atol=1e-5, rtol=1e-5)
    assert all(float(noise.max()) < 1e-6 for noise in effects.noise.values())


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_a_single_player_has_the_whole_change_and_one_pair_tells_no_noise(kind: str):
    tokens, metric = models.tokens(3), difference()
    with models.borrowed(kind) as model:
        effects = attribution.by_shapley(model, tokens, metric, {OUT: Drop([2])}, draws=2, progress=False)
        expected = removal.effect(model, OUT, [2], lambda: metric(model(tokens)))
    torch.testing.assert_close(effects.examples[OUT][:, 0], expected, atol=1e-5, rtol=1e-5)
    assert effects.noise[OUT].isnan().all()
    assert effects.stderr(OUT).isnan().all()


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_symmetric_players_get_equal_shares(kind: str):
    """Two heads with the same weights, and a metric that squares: over an order and its reverse they are alike."""
    tokens = models.tokens(3)
    model = models.build(kind)
    for matrix in by_hand.ATTENTION:
        by_hand.write(model, f"blocks.0.attn.{matrix}[2]", by_hand.read(model, f"blocks.0.attn.{matrix}[0]"))
    for name, parameter in model.blocks[0].attn.named_parameters():
        if name in ("b_Q", "b_K", "b_V"):
            parameter.data[2] = parameter.data[0]
        elif "bias" in name:
            parameter.data.zero_()
    metric = metrics.custom(lambda x: x[:, -1, 0].square(), name="square", unit="logits²", higher_is_better=None)
    twins = ["blocks.0.attn.W_O[0]", "blocks.0.attn.W_O[2]"]
    spec = {**dict.fromkeys(twins, Drop([0])), OUT: Drop([1])}
    effects = attribution.by_shapley(model, tokens, metric, spec, draws=2, progress=False)
    alone = [attribution.by_ablation(model, tokens, metric, Selection({t: [0]}), progress=False)[t][0] for t in twins]
    assert float(alone[0]) == pytest.approx(float(alone[1]), rel=1e-4)
    many = attribution.by_shapley(model, tokens, metric, spec, draws=60, progress=False)
    first, second = (many.examples[twin][:, 0] for twin in twins)
    largest = float(stacked(many).abs().max())
    assert float((first - second).abs().max()) < 0.1 * largest
    pair = torch.stack([effects.examples[twin][:, 0] for twin in twins]).sum(0)
    torch.testing.assert_close(first + second, pair, rtol=0.1, atol=0.1 * largest)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_seeds_units_operations_and_metrics_without_a_gradient(kind: str):
    tokens, metric, spec = models.tokens(3), metrics.rank(CORRECT), {OUT: Drop(range(6)), QUERY: KeepTop(rank=4)}
    players = Selection({OUT: [(0, 1, 2), (3, 5)], "blocks.0.attn.W_Q[1]": [(4, 5, 6, 7)]})
    with models.borrowed(kind) as model, surgery.apply(model, {OUT: KeepTop(rank=5)}, progress=False):

        def shares(seed: int, **more: object) -> attribution.Effects:
            return attribution.by_shapley(
                model, tokens, metric, spec, players=players, draws=6, seed=seed, progress=False, **more
            )

        one, again, parts = shares(0), shares(0), shares(0, batch_size=1)
        now = metric(model(tokens)).detach()
        with surgery.apply(model, {OUT: Drop([0, 1, 2, 3, 5]), QUERY: Drop([4, 5, 6, 7])}, progress=False):
            change = metric(model(tokens)).detach() - now
    assert torch.equal(stacked(one), stacked(again))
    torch.testing.assert_close(stacked(one), stacked(parts))
    torch.testing.assert_close(stacked(one).sum(1), change)
    assert one.units == {QUERY: ((4, 5, 6, 7),), OUT: ((0, 1, 2), (3, 5))}


@pytest.mark.parametrize("kind", models.SOME_KINDS)
def test_interactions_are_pair_removals_by_hand(kind: str):
    tokens, metric = models.tokens(3), difference()
    units = [(QUERY, (0,)), ("blocks.1.attn.W_O", (2,)), (OUT, (0, 4)), (OUT, (1,))]
    chosen = Selection({QUERY: [0], "blocks.1.attn.W_O": [2], OUT: [(0, 4), 1]})
    with models.borrowed(kind) as model:
        found = attribution.interactions(model, tokens, metric, chosen, progress=False)

        def without(*numbers: int) -> torch.Tensor:
            gains: dict[str, dict[int, float]] = {}
            for n in numbers:
                gains.setdefault(units[n][0], {}).update(dict.fromkeys(units[n][1], 0.0))
            return removal.regained_effect(model, gains, lambda: metric(model(tokens)))

        rows = torch.zeros(4, 4, 3)
        for a in range(4):
            rows[a, a] = without(a)
            for b in range(a):
                rows[a, b] = rows[b, a] = without(a, b) - without(a) - without(b)
    torch.testing.assert_close(found.matrix, rows.mean(-1), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.stderr, rows.std(-1) / 3**0.5, atol=2e-5, rtol=1e-3)
    assert found.labels == (f"{QUERY} 0", "blocks.1.attn.W_O 2", f"{OUT} 0+4", f"{OUT} 1")
    frame = found.to_dataframe()
    assert list(frame.columns) == list(frame.index) == list(found.labels)
    assert frame.loc[f"{OUT} 1", f"{QUERY} 0"] == pytest.approx(float(found.matrix[0, 3]))
    assert found.measure.unit == "logits"


@pytest.mark.hooked
def test_on_a_linear_model_nothing_interacts():
    model = models.hooked("no-norm", n_layers=1)
    model.blocks[0].mlp.act_fn = lambda x: x
    chosen = Selection({"blocks.0.mlp.W_out": [0, 1, (2, 3)]})
    found = attribution.interactions(model, models.tokens(3), difference(), chosen, progress=False)
    singles = found.matrix.diagonal()
    assert float((found.matrix - singles.diag()).abs().max()) < 1e-5 < float(singles.abs().min())


def test_one_example_has_no_standard_error():
    tokens = models.tokens(1)
    with models.borrowed("bridge gpt2") as model:
        found = attribution.interactions(model, tokens, metrics.logit(4), Selection({OUT: [0, 1]}), progress=False)
    assert found.matrix.isfinite().all()
    assert found.stderr.isnan().all()


def test_bad_input_is_refused():
    tokens = models.tokens(3)
    with models.borrowed("bridge gpt2") as model:
        for samples in (0, 1, 3):
            with pytest.raises(
                ValueError,
                match=rf"draws={samples}: (give a whole number, 2 or more|.* Give an even)",
            ):
                attribution.by_shapley(model, tokens, difference(), SPEC, draws=samples, progress=False)
        with pytest.raises(ValueError, match=r"the spec changes no component"):
            attribution.by_shapley(model, tokens, difference(), {OUT: Scale({0: 1.0})}, progress=False)
        with pytest.raises(ValueError, match=r"is edited in HaarBasis"):
            attribution.by_shapley(model, tokens, difference(), {OUT: RandomBasis(0)}, progress=False)
        with pytest.raises(ValueError, match=r"players names component 9 of 'blocks.1.mlp.W_out'"):
            attribution.by_shapley(model, tokens, difference(), SPEC, players=Selection({OUT: [9]}), progress=False)
        with pytest.raises(ValueError, match=r"the selection holds 1 unit: two or more are needed"):
            attribution.interactions(model, tokens, difference(), Selection({OUT: [(0, 1)]}), progress=False)
        with pytest.raises(ValueError, match=r"changes no component"):
            attribution.interactions(model, tokens, difference(), Selection({}), progress=False)
