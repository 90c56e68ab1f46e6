from dataclasses import replace

import by_hand
import models
import pytest
import removal
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from analyses import attribution, controls, metrics
from analyses.attribution import Effects, Measure, Selection
from analyses.controls._draws import twice
from hooks.records import record_of
from surgery.decompositions import Remembered

CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])
TOKENS = models.tokens(3, 6)
SITES = ["blocks.0.attn.W_V[1]", "blocks.0.mlp.W_in", "blocks.1.mlp.W_out"]


def difference(higher_is_better: bool | None = True) -> metrics.Metric:
    return metrics.logit_difference(CORRECT, WRONG, higher_is_better=higher_is_better)


def attributed(model: nn.Module, higher_is_better: bool | None = True, sites: list[str] | None = None) -> Effects:
    return attribution.by_ablation(model, TOKENS, difference(higher_is_better), sites or SITES, progress=False)


def invented(strengths: dict[str, list[float]], effects: dict[str, list[float]] | None = None) -> Effects:
    """Effects of no model: one example, every component a unit."""
    S = {site: torch.tensor(values, dtype=torch.float32) for site, values in strengths.items()}
    rows = {site: torch.tensor([effects[site]]) if effects else torch.zeros(1, len(s)) for site, s in S.items()}
    units = {site: tuple((i,) for i in range(len(s))) for site, s in S.items()}
    return Effects("none", Measure("m", "units", True, torch.zeros(1)), units, rows, S, "raw", 0.0)


spectra = st.lists(st.floats(0.01, 10), min_size=2, max_size=12).map(lambda values: sorted(values, reverse=True))


def test_by_strength_takes_the_strongest_of_all_matrices():
    effects = invented({"blocks.0.mlp.W_in": [5, 3, 1], "blocks.1.mlp.W_in": [4, 3, 2]})
    chosen = controls.by_strength(effects, 3)
    assert dict(chosen) == {"blocks.0.mlp.W_in": ((0,), (1,)), "blocks.1.mlp.W_in": ((0,),)}
    assert len(controls.by_strength(effects, 0)) == 0
    for k, text in {
        -1: "k=-1: give a whole number, from 0 to 6.",
        7: "k=7: give a whole number, from 0 to 6.",
    }.items():
        with pytest.raises(ValueError) as caught:
            controls.by_strength(effects, k)
        assert str(caught.value) == text


@given(S=spectra, data=st.data())
def test_a_random_selection_has_as_many_components_of_each_matrix(S: list[float], data: st.DataObject):
    site, n = "blocks.0.mlp.W_out", len(S)
    members = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    seed = data.draw(st.integers(0, 100))
    effects, chosen = invented({site: S, "blocks.1.mlp.W_out": [1.0]}), Selection({site: members})
    drawn = controls.random_selection(effects, chosen, seed=seed)
    assert list(drawn) == [site]
    assert drawn.n_components == len(members)
    assert dict(drawn) == dict(controls.random_selection(effects, chosen, seed=seed))
    if 2 * len(members) <= n:
        assert not {i for (i,) in drawn[site]} & set(members)


def test_every_other_component_is_drawn_equally_often():
    effects, chosen = invented({"blocks.0.mlp.W_out": [6.0, 5, 4, 3, 2, 1, 0]}), Selection({"blocks.0.mlp.W_out": [1]})
    drawn = [controls.random_selection(effects, chosen, seed=seed)["blocks.0.mlp.W_out"] for seed in range(500)]
    counts = [sum(one == ((i,),) for one in drawn) for i in range(7)]
    assert counts[1] == counts[6] == 0  # the chosen one, and one without strength
    # 100 are expected of each, with a standard deviation of 9.
    assert all(65 < counts[i] < 135 for i in (0, 2, 3, 4, 5))


@given(S=spectra, data=st.data())
def test_a_random_selection_has_about_the_same_energy(S: list[float], data: st.DataObject):
    site, n = "blocks.0.mlp.W_out", len(S)
    members = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n // 2, unique=True))
    effects = invented({site: S})
    drawn = controls.random_selection(
        effects, Selection({site: members}), match="energy", seed=data.draw(st.integers(0, 100))
    )
    taken = {i for (i,) in drawn.get(site, ())}
    others = set(range(n)) - set(members)
    assert taken <= others
    squares = effects.strengths[site].double().square().tolist()
    target, total = (sum(squares[i] for i in some) for some in (members, taken))
    if total < target:  # nothing that was left out would have brought it nearer
        assert all(squares[i] >= 2 * (target - total) * (1 - 1e-9) for i in others - taken)
    else:  # it went past the target by less than it was short of it before its last component
        assert min(total - squares[i] for i in taken) < target
        assert total - target < max(target, max(squares[i] for i in taken) / 2) * (1 + 1e-9)


def test_controls_of_what_was_not_attributed_are_refused():
    effects = invented({"blocks.0.mlp.W_out": [2.0, 1.0]})
    with pytest.raises(ValueError) as caught:
        controls.random_selection(effects, Selection({"blocks.1.mlp.W_out": [0]}), seed=0)
    assert str(caught.value) == (
        "'blocks.1.mlp.W_out' was not attributed: there are blocks.0.mlp.W_out. Choose among these."
    )


@pytest.mark.parametrize("kind", models.SOME_KINDS)
@pytest.mark.parametrize("site", ["blocks.0.attn.W_K[1]", "blocks.1.attn.W_O", "blocks.0.mlp.W_in"])
def test_rotated_directions_are_projected_out_of_the_span(kind: str, site: str):
    chosen, among = Selection({site: [0, 2]}), Selection({site: [0, 2, 3, 5]})
    with models.borrowed(kind) as model:
        W = by_hand.read(model, site).double()
        span = torch.linalg.svd(W, full_matrices=False).Vh[[0, 2, 3, 5]]
        spec = controls.rotated(model, chosen, among, seed=4, progress=False)
        with surgery.apply(model, spec, progress=False) as operation:
            removed = W - operation.weight(site).double()
            assert f"{spec[site]!r}" in repr(operation)
    assert torch.linalg.matrix_rank(removed, rtol=1e-4) == 2
    torch.testing.assert_close(removed @ span.mT @ span, removed, atol=1e-5, rtol=1e-4)  # inside the span
    rows = torch.linalg.svd(removed).Vh[:2]
    torch.testing.assert_close(removed, W @ rows.mT @ rows, atol=1e-5, rtol=1e-4)  # and a projection of W


def test_rotating_inside_exactly_what_is_removed_removes_the_same():
    site = "blocks.0.mlp.W_out"
    chosen = Selection({site: [(1, 2), 7]})
    with models.borrowed("bridge gpt2") as model, torch.no_grad():
        with surgery.apply(model, controls.rotated(model, chosen, chosen, seed=0, progress=False), progress=False):
            rotated = model(TOKENS)
        with surgery.apply(model, chosen.drop(), progress=False):
            torch.testing.assert_close(rotated, model(TOKENS), atol=1e-5, rtol=1e-4)
        assert float((rotated - model(TOKENS)).abs().max()) > 1e-3


def test_among_twice_as_many_half_of_each_component_goes_on_average():
    site = "blocks.0.mlp.W_out"
    among = Selection({site: [0, 1, 2, 3]})
    with models.borrowed("bridge gpt2") as model:
        W = by_hand.read(model, site)
        parts = surgery.decompose(model, site, progress=False)[site]
        gone = []
        for seed in range(100):
            spec = controls.rotated(model, Selection({site: [0, 1]}), among, seed=seed, progress=False)
            directions = spec[site].basis.directions
            removed = W @ directions.mT @ directions
            gone.append((parts.U.mT @ removed @ parts.Vh.mT).diagonal() / parts.S)
    share = torch.stack(gone).mean(0)
    torch.testing.assert_close(share[:4], torch.full((4,), 0.5), atol=0.1, rtol=0)
    assert float(share[4:].abs().max()) < 1e-4


def test_more_directions_than_their_span_holds_are_refused():
    site = "blocks.0.mlp.W_out"
    with models.borrowed("bridge gpt2") as model, pytest.raises(ValueError) as caught:
        controls.rotated(model, Selection({site: [0, 1]}), Selection({site: [0]}), seed=0, progress=False)
    assert str(caught.value) == (
        "2 directions of 'blocks.0.mlp.W_out' were asked for among the span of 1 component: a span holds no more "
        "directions than components. Choose among more components."
    )


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_every_value_is_that_of_the_whole_model_under_the_removal(kind: str):
    with models.borrowed(kind) as model, torch.no_grad():
        effects, metric = attributed(model), difference()
        found = controls.compare(model, TOKENS, metric, effects, ks=(2, 5), draws=2, seed=7, progress=False)
        baseline = metric(model(TOKENS)).float()
        torch.testing.assert_close(found.measure.baseline, baseline)

        def by_weight(chosen: Selection) -> Tensor:
            gains = {site: {i: 0.0 for (i,) in units} for site, units in chosen.items()}
            return baseline + removal.regained_effect(model, gains, lambda: metric(model(TOKENS)))

        for at, k in enumerate((2, 5)):
            chosen = effects.most_harmful(k)
            assert dict(found.chosen[at]) == dict(chosen)
            for name, control in {"most harmful": chosen, "strongest": controls.by_strength(effects, k)}.items():
                torch.testing.assert_close(found.values[name][at, 0], by_weight(control), atol=1e-5, rtol=1e-4)
            for draw, seed in enumerate((7, 8)):
                for match in ("count", "energy"):
                    control = controls.random_selection(effects, chosen, match=match, seed=seed)
                    actual = found.values[f"random, same {match}"][at, draw]
                    torch.testing.assert_close(actual, by_weight(control), atol=1e-5, rtol=1e-4)
                    assert found.components[f"random, same {match}"][at, draw] == control.n_components


def test_rotations_take_the_chosen_components_and_as_many_of_the_next():
    site = "blocks.0.mlp.W_out"
    with models.borrowed("bridge gpt2") as model, torch.no_grad():
        effects = attributed(model, sites=[site])
        found = controls.compare(model, TOKENS, difference(), effects, ks=[2], draws=1, seed=3, progress=False)
        order = effects[site].argsort(descending=True).tolist()
        among = Selection({site: order[:4]})
        spec = controls.rotated(model, effects.most_harmful(2), among, seed=3, progress=False)
        W = by_hand.read(model, site)
        with surgery.apply(model, spec, progress=False) as operation:
            expected = difference()(model(TOKENS)).float()
            energy = float((W - operation.weight(site)).square().sum() / W.square().sum())
    torch.testing.assert_close(found.values["rotated"][0, 0], expected, atol=1e-5, rtol=1e-4)
    assert float(found.energies["rotated"][0, 0]) == pytest.approx(energy, rel=1e-4)


def test_where_few_components_were_attributed_the_strongest_others_fill_the_span():
    site = "blocks.0.mlp.W_out"
    effects = invented({site: [4.0, 3.0, 2.0, 1.0, 0.0]}, {site: [0.1, 0.2, 0.5, 0.3, 0.0]})
    known = replace(effects, units={site: ((2,), (3,))}, examples={site: torch.tensor([[0.5, 0.3]])})
    assert twice(known, Selection({site: [2]}))[site] == ((2,), (3,))
    assert twice(known, Selection({site: [2, 3]}))[site] == ((2,), (3,), (0,), (1,))
    assert twice(known, Selection({site: [2, 3, 0]}))[site] == ((2,), (3,), (0,), (1,))
    assert twice(effects, Selection({site: [2]}))[site] == ((2,), (3,))


def test_a_planted_component_stands_out_from_every_control():
    site, model = "blocks.1.mlp.W_out", models.build("bridge gpt2")
    W = by_hand.read(model, site)
    harm = (model.W_U[:, WRONG] - model.W_U[:, CORRECT]).sum(1).detach()
    with torch.no_grad():
        x = model.run_with_cache(TOKENS)[1]["blocks.1.mlp.out.hook_in"][:, -1]
        reads = torch.nn.functional.normalize(x.mean(0), dim=0)
        by_hand.write(model, site, W + 4 * torch.outer(reads, harm / harm.norm()))
    effects = attributed(model, sites=["blocks.*.mlp.W_out"])
    found = controls.compare(model, TOKENS, difference(), effects, ks=[1], draws=8, progress=False)
    means = {name: values.mean(2)[0] for name, values in found.values.items()}
    best = float(means.pop("most harmful"))
    strongest = float(means.pop("strongest"))
    assert list(found.chosen[0]) == [site]
    assert best == pytest.approx(strongest)  # it is the strongest as well: `s_i` alone finds it, chance does not
    now = float(found.measure.baseline.mean())
    assert best - now > 0.1
    for values in (means["random, same count"], means["random, same energy"]):
        assert float(values.max()) - now < 0.2 * (best - now)
    assert float(means["rotated"].mean()) < best


def test_without_a_direction_the_largest_are_removed():
    with models.borrowed("bridge gpt2") as model:
        effects = attributed(model, higher_is_better=None)
        found = controls.compare(model, TOKENS, difference(None), effects, ks=[3], draws=1, progress=False)
    assert next(iter(found.values)) == "largest effect"
    assert dict(found.chosen[0]) == dict(effects.top(3))
    assert "no direction" in repr(found)


def test_where_fewer_are_harmful_these_are_removed_and_the_result_says_so():
    site = "blocks.0.mlp.W_out"
    with models.borrowed("bridge gpt2") as model:
        effects = attributed(model, sites=[site])
        rows = -effects.examples[site].abs()
        rows[:, 4] = 1.0
        found = controls.compare(
            model, TOKENS, difference(), replace(effects, examples={site: rows}), ks=[1, 3], draws=1, progress=False
        )
        none = controls.compare(
            model, TOKENS, difference(), replace(effects, examples={site: -rows.abs()}), ks=[1], draws=1, progress=False
        )
    assert dict(found.chosen[1]) == {site: ((4,),)}
    assert found.components["most harmful"].tolist() == [[1], [1]]
    assert found.notes == ("only 1 component is harmful",)
    assert all(torch.equal(values[0, 0], none.measure.baseline) for values in none.values.values())
    assert none.spec(1) == {}


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_under_an_operation_and_under_hooks(kind: str):
    site, other, name = "blocks.1.mlp.W_in", "blocks.0.mlp.W_in", "blocks.0.hook_resid_pre"

    def damp(activation: Tensor, hook: object) -> Tensor:
        return activation * torch.linspace(0.5, 1, len(activation)).view(-1, 1, 1)

    with models.borrowed(kind) as model, torch.no_grad(), model.hooks(fwd_hooks=[(name, damp)]):
        for edited, note in ((other, ()), (site, ("no directions were rotated: ",))):
            with surgery.apply(model, {edited: surgery.KeepTop(rank=8)}, progress=False):
                effects = attributed(model, sites=[site])
                found = controls.compare(model, TOKENS, difference(), effects, ks=[2], draws=1, progress=False)
                with surgery.apply(model, effects.drop_most_harmful(2), progress=False):
                    expected = difference()(model(TOKENS)).float()
            torch.testing.assert_close(found.values["most harmful"][0, 0], expected, atol=1e-5, rtol=1e-4)
            assert [text[: len(start)] for text, start in zip(found.notes, note, strict=True)] == list(note)
            assert ("rotated" in found.values) == (edited == other)


def test_the_batch_budget_changes_nothing():
    with models.borrowed("bridge gpt2") as model:
        effects = attributed(model)
        together, *in_batches = [
            controls.compare(model, TOKENS, difference(), effects, ks=[3], draws=1, batch_size=n, progress=False)
            for n in (None, 1, 2)
        ]
    for name, values in together.values.items():
        for other in in_batches:
            torch.testing.assert_close(values, other.values[name], atol=1e-5, rtol=1e-4)


def test_random_directions_are_not_remembered():
    with models.borrowed("bridge gpt2") as model:
        effects = attributed(model)
        before = set(record_of(model).of(Remembered))
        controls.compare(model, TOKENS, difference(), effects, ks=[2], draws=2, progress=False)
        assert set(record_of(model).of(Remembered)) == before


def test_other_examples_and_another_metric_may_be_measured():
    held_out = models.tokens(2, 5).flip(0)
    with models.borrowed("bridge gpt2") as model, torch.no_grad():
        effects = attributed(model)
        metric = metrics.accuracy(torch.tensor([4, 8]))
        found = controls.compare(model, held_out, metric, effects, ks=[4], draws=1, progress=False)
        with surgery.apply(model, found.spec(4), progress=False):
            expected = metric(model(held_out)).float()
    assert torch.equal(found.values["most harmful"][0, 0], expected)
    assert found.measure.name == "accuracy"


def test_a_comparison_reads_as_a_table():
    with models.borrowed("bridge gpt2") as model:
        found = controls.compare(model, TOKENS, difference(), attributed(model), ks=[5, 2, 2], draws=3, progress=False)
    frame = found.to_dataframe()
    assert found.ks == (2, 5)
    assert list(frame.columns) == [
        "removal", "k", "draw", "components", "energy", "value", "value_stderr", "effect", "effect_stderr",
    ]  # fmt: skip
    assert frame.groupby("removal", sort=False)["draw"].count().to_dict() == {
        "most harmful": 2, "strongest": 2, "random, same count": 6, "random, same energy": 6, "rotated": 6,
    }  # fmt: skip
    row = frame[(frame["removal"] == "rotated") & (frame["k"] == 5) & (frame["draw"] == 1)].iloc[0]
    values = found.values["rotated"][1, 1]
    change = values - found.measure.baseline
    assert row["value"] == pytest.approx(float(values.mean()))
    assert row["value_stderr"] == pytest.approx(float(values.std() / 3**0.5))
    assert row["effect"] == pytest.approx(float(change.mean()), abs=1e-6)
    assert row["effect_stderr"] == pytest.approx(float(change.std() / 3**0.5))
    assert row["energy"] == pytest.approx(float(found.energies["rotated"][1, 1]))
    text = repr(found)
    assert text.startswith("logit difference [logits], higher is better, 3 examples: ")
    assert all(name in text for name in found.values)


def test_bad_comparisons_are_refused():
    with models.borrowed("bridge gpt2") as model:
        effects = attributed(model)
        for settings, text in (
            ({"ks": []}, r"ks=\[\]: give one or more whole numbers in a list"),
            ({"ks": [0, 1]}, r"ks\[0\]=0: give a whole number, 1 or more"),
            ({"draws": 0}, "draws=0: give a whole number, 1 or more"),
        ):
            with pytest.raises(ValueError, match=text):
                controls.compare(model, TOKENS, difference(), effects, progress=False, **settings)
        with pytest.raises(ValueError, match=r"k=3 was not compared: there are 1, 2. Choose one of these."):
            controls.compare(model, TOKENS, difference(), effects, ks=[1, 2], draws=1, progress=False).spec(3)
        with (
            surgery.apply(model, {"blocks.0.mlp.W_in": surgery.DropTop(rank=1)}, progress=False),
            pytest.raises(ValueError) as caught,
        ):
            controls.compare(model, TOKENS, difference(), effects, progress=False)
        assert str(caught.value) == (
            "the components of 'blocks.0.mlp.W_in' have other strengths now than when the effects were found (other "
            "weights, or another operation in force): something else would be removed. Attribute this model as it is "
            "now."
        )
