import json
import math
from pathlib import Path

import models
import numpy as np
import pytest
import removal
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import surgery
from analyses import attribution, controls, metrics, patching
from analyses.attribution import Effects, Measure, Selection, Shares
from surgery import Drop, Keep

OUT, HEAD = "blocks.0.mlp.W_out", "blocks.1.attn.W_Q[2]"
CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])


def made(
    rows: dict[str, torch.Tensor],
    *,
    higher_is_better: bool | None = True,
    strengths: dict | None = None,
    **parts: object,
) -> Effects:
    """Effects of every component of some matrices."""
    n = len(next(iter(rows.values())))
    measure = Measure("score", "points", higher_is_better, torch.arange(float(n)))
    units = {site: tuple((i,) for i in range(x.shape[1])) for site, x in rows.items()}
    strengths = strengths or {site: torch.arange(float(x.shape[1]), 0, -1) for site, x in rows.items()}
    return Effects("test", measure, units, rows, strengths, "raw", 3.0, **parts)


def two() -> Effects:
    return made({OUT: torch.tensor([[1.0, -4, 0], [3, -6, 1]]), HEAD: torch.tensor([[0.25, 3], [0.25, 4]])})


def test_top_goes_by_size_over_all_matrices():
    effects = two()  # means 2, -5, .5 and .25, 3.5
    assert dict(effects.top(0)) == {}
    assert dict(effects.top(2)) == {OUT: ((1,),), HEAD: ((1,),)}
    assert dict(effects.top(4)) == {OUT: ((1,), (0,), (2,)), HEAD: ((1,),)}
    assert effects.top(99).n_components == 5
    assert effects.drop(3) == {OUT: Drop([0, 1]), HEAD: Drop([1])}
    assert effects.keep(1) == {OUT: Keep([1]), HEAD: Keep([])}


def test_most_harmful_follows_the_direction_and_stops_where_nothing_improves():
    rows = two().examples
    higher, lower = made(rows), made(rows, higher_is_better=False)
    assert dict(higher.most_harmful(2)) == {OUT: ((0,),), HEAD: ((1,),)}
    assert higher.most_harmful(99).n_components == 4
    assert lower.drop_most_harmful(99) == {OUT: Drop([1])}
    assert made({OUT: torch.zeros(2, 3)}).drop_most_harmful(5) == {}


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=12, unique=True), st.integers(0, 12), st.booleans())
def test_most_harmful_is_the_best_of_all_sets(means: list[int], k: int, higher: bool):
    effects = made({OUT: torch.tensor([means], dtype=torch.float32)}, higher_is_better=higher)
    gain = sorted((m if higher else -m for m in means), reverse=True)
    chosen = [i for (i,) in effects.most_harmful(k).get(OUT, ())]
    assert sum(means[i] if higher else -means[i] for i in chosen) == sum(g for g in gain[:k] if g > 0)


WHAT_WAS_DONE = {
    "gradient": ({}, "removal"),
    "gradient, corrupted": ({"corrupted": models.tokens(3)}, "patching, clean to corrupted"),
    "ablation": ({"replacement": "zero"}, "removal"),
    "ablation, mean": ({"replacement": "mean"}, "replacement by the mean"),
    "ablation, resample": ({"replacement": "resample"}, "replacement by another example's"),
}


@pytest.mark.parametrize("name", WHAT_WAS_DONE)
def test_effects_of_something_else_are_not_turned_into_removals(name: str, tmp_path: Path):
    settings, intervention = WHAT_WAS_DONE[name]
    run = attribution.by_gradient if "gradient" in name else attribution.by_ablation
    with models.borrowed("bridge gpt2") as model:
        tokens, metric = models.tokens(3), metrics.logit_difference(CORRECT, WRONG)
        effects = run(model, tokens, metric, {OUT: range(4)}, progress=False, **settings)
        compared = controls.compare(model, tokens, metric, effects, ks=[1], draws=1, progress=False)
    effects.save(tmp_path / "effects.safetensors")
    for one in (effects, Effects.load(tmp_path / "effects.safetensors")):
        assert one.intervention == intervention
        assert repr(one).startswith(f"effect of {intervention} on logit difference [logits], by ")
        if intervention == "removal":
            assert set(one.drop_most_harmful(4)) <= {OUT}
        else:
            with pytest.raises(ValueError, match=rf"these are effects of {intervention}, not of removal"):
                one.drop_most_harmful(4)
    notes = [] if intervention == "removal" else [f"the effects are of {intervention}, not of removal: the largest "]
    assert [note[: len(text)] for note, text in zip(compared.notes, notes, strict=False)] == notes
    assert ("most harmful" if intervention == "removal" else "largest effect") in compared.values


def test_shares_of_another_edit_than_a_removal_are_not_turned_into_one():
    with models.borrowed("bridge gpt2") as model:
        tokens, metric = models.tokens(3), metrics.logit_difference(CORRECT, WRONG)
        for edit, removes in ((Drop([0, 1]), True), (surgery.KeepTop(rank=30), True), (surgery.Scale({0: 2.0}), False)):
            shares = attribution.by_shapley(model, tokens, metric, {OUT: edit}, draws=2, progress=False)
            assert shares.intervention == ("removal" if removes else "the edit")


def test_a_metric_without_a_unit_has_no_empty_brackets():
    def mine(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 0]

    with models.borrowed("bridge gpt2") as model:
        effects = attribution.by_gradient(model, models.tokens(1), mine, OUT, progress=False)
        patched = patching.by_component(model, models.tokens(1), models.tokens(1), mine, {OUT: [0]}, progress=False)
        compared = controls.compare(model, models.tokens(1), mine, effects, ks=[1], draws=1, progress=False)
    assert repr(effects).startswith("effect of removal on mine, by gradient: 32 components of 1 matrix, 1 example, ")
    assert repr(patched).startswith(
        "patching (denoising) of 1 component of 1 matrix at all positions, 1 example\nmine: "
    )
    assert repr(compared).startswith("mine, no direction, 1 example: ")
    assert repr(Selection({OUT: [3]})) == f"Selection of 1 component\n  {OUT}: 3"


def test_choices_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"'score' has no direction.*higher_is_better=True or False.*top\(k\)"):
        made({OUT: torch.ones(2, 3)}, higher_is_better=None).drop_most_harmful(1)
    with pytest.raises(ValueError, match=r"k=-1: give a whole number, 0 or more"):
        two().top(-1)
    with pytest.raises(KeyError, match=r"'blocks.3.mlp.W_in' was not attributed; there are blocks.0.*effects.sites"):
        two()["blocks.3.mlp.W_in"]
    with pytest.raises(KeyError, match="'nothing' was not attributed"):
        two().interval("nothing")
    with pytest.raises(ValueError, match=r"level=95.0: a confidence level lies between 0 and 1, such as 0.95"):
        two().interval(OUT, level=95.0)
    for chosen in ([1, 1], [(0, 1), 1], [-1]):
        with pytest.raises(ValueError, match=r"selection of 'x' .* name each component once, counting from 0"):
            Selection({"x": chosen})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_effects_that_are_no_numbers_are_refused(bad: float):
    with pytest.raises(ValueError, match=r"2 effects on 'blocks.0.mlp.W_out' are not finite.*'score'.*Check metric"):
        made({OUT: torch.tensor([[1.0, bad], [bad, 2.0]])})


def test_a_row_of_the_table_for_each_component():
    frame = two().to_dataframe()
    assert list(frame.columns) == [
        "site", "layer", "matrix", "head", "component", "strength", "effect", "stderr", "degenerate",
    ]  # fmt: skip
    assert frame["component"].tolist() == [0, 1, 2, 0, 1]
    assert frame["site"].tolist() == [OUT] * 3 + [HEAD] * 2
    assert frame["layer"].tolist() == [0, 0, 0, 1, 1]
    assert frame["matrix"].tolist() == ["W_out"] * 3 + ["W_Q"] * 2
    assert frame["head"].isna().tolist() == [True] * 3 + [False] * 2
    assert frame["head"][3] == 2
    assert frame["effect"].tolist() == [2, -5, 0.5, 0.25, 3.5]
    assert frame["strength"].tolist() == [3, 2, 1, 2, 1]
    assert frame["degenerate"].isna().all()
    assert Effects("none", two().measure, {}, {}, {}, "raw", 0.0).to_dataframe().empty


def test_stderr_over_examples_is_that_of_numpy_and_adds_the_noise_of_the_method():
    rows = torch.randn(20, 4)
    noise = torch.tensor([0.0, 0.1, 0.2, 0.3])
    plain, noisy = made({OUT: rows}), made({OUT: rows}, noise={OUT: noise})
    expected = np.std(rows.numpy(), axis=0, ddof=1) / np.sqrt(20)
    np.testing.assert_allclose(plain.stderr(OUT).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(noisy.stderr(OUT).numpy(), np.hypot(expected, noise.numpy()), rtol=1e-5)
    np.testing.assert_allclose(noisy.to_dataframe()["stderr"], np.hypot(expected, noise.numpy()), rtol=1e-5)
    assert made({OUT: rows[:1]}).stderr(OUT).isnan().all()


def test_interval_is_the_bootstrap_of_scipy():
    rows = torch.randn(40, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 3.0, -1.0])
    found = made({OUT: rows}).interval(OUT, level=0.9, resamples=20000, seed=1)
    expected = scipy.stats.bootstrap(
        (rows.numpy(),), np.mean, axis=0, confidence_level=0.9, n_resamples=20000, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    width = torch.from_numpy(np.asarray(expected.high - expected.low))
    for bound, other in zip(found, expected, strict=True):
        assert float(((bound - torch.from_numpy(np.asarray(other))).abs() / width).max()) < 0.03
    again = made({OUT: rows}).interval(OUT, level=0.9, resamples=20000, seed=1)
    assert torch.equal(found, again)


def test_interval_of_a_wide_matrix():
    rows = torch.randn(3, 2000)
    found = made({OUT: rows}).interval(OUT, resamples=9000)  # more numbers than torch.quantile takes
    assert bool((found[0] <= rows.mean(0)).all() & (rows.mean(0) <= found[1]).all())
    assert bool((found[0] >= rows.amin(0) - 1e-6).all() & (found[1] <= rows.amax(0) + 1e-6).all())


def test_units_show_their_effect_on_every_member_and_nothing_elsewhere():
    units = {OUT: ((0, 2), (3,))}
    rows = torch.tensor([[1.0, 5.0], [2.0, 7.0]])
    effects = Effects("test", two().measure, units, {OUT: rows}, {OUT: torch.tensor([4.0, 3, 2, 1])}, "raw", 1.0)
    torch.testing.assert_close(effects[OUT], torch.tensor([1.5, math.nan, 1.5, 6.0]), equal_nan=True)
    torch.testing.assert_close(effects.stderr(OUT), torch.tensor([0.5, math.nan, 0.5, 1.0]), equal_nan=True)
    assert effects.interval(OUT).isnan().any(0).tolist() == [False, True, False, False]
    assert dict(effects.top(1)) == {OUT: ((3,),)}
    assert effects.drop(2) == {OUT: Drop([0, 2, 3])}
    assert repr(effects.top(2)) == f"Selection of 3 components\n  {OUT}: 3, 0+2"
    assert "2 components of 1 matrix, 2 examples, 1 forward pass, " in repr(effects)


def test_heads_come_first_each_in_its_row():
    heads = {f"blocks.1.attn.W_Q[{h}]": torch.full((2, 3), float(h)) for h in (10, 2, 0)}
    effects = made({**heads, OUT: torch.ones(2, 3)})
    table = effects["blocks.1.attn.W_Q[*]"]
    assert table.shape == (11, 3)
    assert table[[0, 2, 10]].tolist() == [[0] * 3, [2] * 3, [10] * 3]
    assert table[[1, 3, 9]].isnan().all()
    assert effects.stderr("blocks.1.attn.W_Q[*]")[10].tolist() == [0, 0, 0]
    with pytest.raises(KeyError, match=r"'blocks.0.attn.W_Q\[\*\]' was not attributed"):
        effects["blocks.0.attn.W_Q[*]"]


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_saved_and_loaded_it_is_the_same(kind: str, tmp_path: Path):
    tokens, metric = models.tokens(3), metrics.logit_difference(CORRECT, WRONG)
    with models.borrowed(kind) as model:
        found = [
            attribution.by_gradient(model, tokens, metric, ["*", "*.W_V[*]"], keep_positions=True, progress=False),
            attribution.by_curvature(model, tokens, metric, "blocks.0.attn.W_O[*]", draws=2, progress=False),
            attribution.by_shapley(model, tokens, metric, {OUT: Drop([0, 3])}, draws=2, progress=False),
            attribution.by_ablation(model, tokens, lambda x: x[:, 0, 0], Selection({OUT: [(0, 1)]}), progress=False),
        ]
    for effects in found:
        effects.save(tmp_path / "effects.safetensors")
        loaded = Effects.load(tmp_path / "effects.safetensors")
        assert repr(loaded) == repr(effects)
        assert type(loaded) is type(effects)
        assert (loaded.units, loaded.sites) == (effects.units, effects.sites)
        assert loaded.measure.higher_is_better == effects.measure.higher_is_better
        assert torch.equal(loaded.measure.baseline, effects.measure.baseline)
        if isinstance(effects, Shares):
            assert torch.equal(loaded.change, effects.change) and loaded.notes == effects.notes
        for name in ("examples", "strengths", "noise", "positions"):
            mine, theirs = getattr(effects, name), getattr(loaded, name)
            assert list(mine) == list(theirs)
            for site in mine:
                torch.testing.assert_close(mine[site], theirs[site], rtol=0, atol=0, equal_nan=True)
        assert loaded.to_dataframe().equals(effects.to_dataframe())


def test_damaged_and_foreign_files_are_refused(tmp_path: Path):
    path = tmp_path / "effects.safetensors"
    two().save(path)
    whole = path.read_bytes()
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(str(path))
    foreign = {**metadata, "format": "something else"}
    nameless = {**metadata, "about": json.dumps({"method": "x"})}
    not_json = {**metadata, "about": "{"}
    a_list = {**metadata, "about": "[1]"}
    torn = {**tensors, f"{OUT}|examples": torch.zeros(2, 2)}
    missing = {name: tensor for name, tensor in tensors.items() if name != "baseline"}
    cases = [(tensors, foreign), (tensors, nameless), (tensors, not_json), (tensors, a_list), (torn, metadata),
             (missing, metadata)]  # fmt: skip
    for held, about in cases:
        save_file(held, str(path), metadata=about)
        with pytest.raises(ValueError, match=r"(?s)is damaged or not a file of effects \(.*make them anew and save"):
            Effects.load(path)
    for content in (whole[: len(whole) // 2], b"", b"nothing like it" * 10):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged or not a file of effects"):
            Effects.load(path)
    with pytest.raises(FileNotFoundError):
        Effects.load(tmp_path / "none")


def test_equal_strengths_are_flagged_in_whatever_order_gains_left_them():
    strengths = torch.tensor([5.0, 3, 3, 2, 1, 1, 1])
    effects = made({OUT: torch.ones(1, 7)}, strengths={OUT: strengths})
    assert dict(effects.degenerate()) == {OUT: ((1, 2), (4, 5, 6))}
    assert effects.to_dataframe()["degenerate"].fillna(-1).tolist() == [-1, 0, 0, -1, 1, 1, 1]
    assert dict(effects.degenerate(rtol=0.25)) == {OUT: (tuple(range(1, 7)),)}
    reordered = made({OUT: torch.ones(1, 5)}, strengths={OUT: torch.tensor([0.0, 5, 4, 9, 5])})
    assert dict(reordered.degenerate()) == {OUT: ((1, 4),)}
    assert dict(two().degenerate()) == {}


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
@pytest.mark.parametrize("method", ["by_ablation", "by_exact_curvature", "by_gradient", "by_fisher"])
def test_a_degenerate_block_attributed_as_one_does_not_depend_on_its_basis(kind: str, method: str):
    import by_hand

    tokens = models.tokens(3)
    labels = metrics.next_token_labels(tokens)
    asked = labels if method == "by_fisher" else metrics.loss(labels)
    model = models.build(kind)
    U, S, Vh = torch.linalg.svd(by_hand.read(model, OUT).double(), full_matrices=False)
    S[2:5] = S[3]
    by_hand.write(model, OUT, ((U * S) @ Vh).float())
    attribute = getattr(attribution, method)
    whole = attribute(model, tokens, asked, Selection({OUT: range(6)}), progress=False)
    block = whole.degenerate()
    assert dict(block) == {OUT: ((2, 3, 4),)}
    effects = attribute(model, tokens, asked, block, progress=False)
    svds = surgery.decompose(model, OUT, progress=False)
    turned = _rotated(svds, OUT, slice(2, 5))
    torch.testing.assert_close(turned.U * turned.S @ turned.Vh, svds[OUT].U * svds[OUT].S @ svds[OUT].Vh)
    other = surgery.Decompositions([turned])
    again = attribute(model, tokens, asked, block, svds=other, progress=False)
    singles = attribute(model, tokens, asked, Selection({OUT: range(6)}), svds=other, progress=False)
    torch.testing.assert_close(effects.examples[OUT], again.examples[OUT], atol=2e-6, rtol=1e-3)
    moved = (singles.examples[OUT] - whole.examples[OUT])[:, 2:5].abs().amax()
    assert float(moved) > 20 * float((effects.examples[OUT] - again.examples[OUT]).abs().max())
    if method == "by_ablation":
        expected = removal.effect(model, OUT, [2, 3, 4], lambda: metrics.loss(labels)(model(tokens)))
        torch.testing.assert_close(effects.examples[OUT][:, 0], expected, atol=1e-5, rtol=1e-4)


def _rotated(svds: surgery.Decompositions, site: str, block: slice) -> surgery.Decomposition:
    from dataclasses import replace

    held = svds[site]
    Q, _ = torch.linalg.qr(torch.randn(block.stop - block.start, block.stop - block.start))
    U, Vh = held.U.clone(), held.Vh.clone()
    U[:, block], Vh[block] = U[:, block] @ Q, Q.T @ Vh[block]
    return replace(held, U=U, Vh=Vh)
