import inspect
from dataclasses import replace

import models
import plotly.graph_objects as go
import pytest
import torch
from scipy.stats import spearmanr

import surgery
from analyses import attribution, controls, metrics, patching, plots
from analyses.attribution import Effects, Interactions, Measure
from analyses.patching import Patching
from surgery import ranks

SITE, HEAD = "blocks.1.mlp.W_out", "blocks.0.attn.W_Q[1]"


def effects(sites: dict[str, int] | None = None, *, higher_is_better: bool | None = False, seed: int = 0) -> Effects:
    """Random effects of five examples, with strengths that fall from n to 1."""
    generator = torch.Generator().manual_seed(seed)
    sites = sites or {SITE: 6, HEAD: 4, "blocks.0.mlp.W_in": 6}
    return Effects(
        "ablation (zero)",
        Measure("loss", "nats", higher_is_better, torch.rand(5, generator=generator)),
        {site: tuple((i,) for i in range(n)) for site, n in sites.items()},
        {site: torch.randn(5, n, generator=generator) for site, n in sites.items()},
        {site: torch.arange(n, 0, -1).float() for site, n in sites.items()},
        "raw",
        12.0,
    )


def named(drawn: go.Figure, name: str) -> go.Scatter:
    """The one trace of this name."""
    (trace,) = (trace for trace in drawn.data if trace.name == name)
    return trace


def matrix(trace: go.Heatmap) -> torch.Tensor:
    return torch.tensor([[torch.nan if value is None else value for value in row] for row in trace.z])


def same(actual: object, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(list(actual)), expected, equal_nan=True)  # type: ignore[call-overload]


def patched(positions: tuple[int, ...] | None) -> Patching:
    parts = tuple(effects({SITE: 4, "blocks.0.mlp.W_in": 4}, seed=n) for n in range(len(positions or (0,))))
    return Patching("denoising", parts[0].measure, torch.ones(5), parts, positions)


def comparison(higher_is_better: bool | None = False, ks: tuple[int, ...] = (1, 5, 20)) -> controls.Removals:
    generator = torch.Generator().manual_seed(3)
    draws = {"most harmful": 1, "strongest": 1, "random, same count": 3, "random, same energy": 3, "rotated": 3}
    return controls.Removals(
        Measure("loss", "nats", higher_is_better, torch.rand(7, generator=generator)),
        ks,
        tuple(attribution.Selection({}) for _ in ks),
        {name: torch.rand(len(ks), n, 7, generator=generator) for name, n in draws.items()},
        {name: torch.ones(len(ks), n, dtype=torch.long) for name, n in draws.items()},
        {name: torch.ones(len(ks), n) for name, n in draws.items()},
        ("only 4 components are harmful",),
    )


def interacting(n: int) -> Interactions:
    square = torch.randn(n, n, generator=torch.Generator().manual_seed(n))
    labels = (*(f"blocks.{i % 2}.mlp.W_out {i}" for i in range(n - 1)), "blocks.0.attn.W_V[3] 1+2")
    return Interactions(
        labels, (square + square.mT) / 2, torch.zeros(n, n), Measure("m", "logits", True, torch.zeros(4))
    )


def test_components_are_bars_with_errors_over_their_strengths():
    given = effects()
    drawn = plots.components(given, SITE)
    values, errors = given[SITE], given.stderr(SITE)
    worse, better = named(drawn, "the metric worsens"), named(drawn, "the metric improves")
    for trace, chosen in ((worse, values > 0), (better, values < 0)):  # a loss: lower is better
        assert list(trace.x) == chosen.nonzero().flatten().tolist()
        same(trace.y, values[chosen])
        same(trace.error_y.array, errors[chosen])
    strengths = named(drawn, "strength s")
    assert list(strengths.y) == [6, 5, 4, 3, 2, 1]
    assert strengths.yaxis == "y2"
    assert drawn.layout.yaxis.title.text == "effect on loss (nats)"
    assert drawn.layout.yaxis2.title.text == "strength s (singular value)"
    assert drawn.layout.xaxis.title.text == "component"
    assert SITE in drawn.layout.title.text
    assert "ablation (zero), 5 examples" in drawn.layout.title.text


def test_what_is_harmful_follows_the_direction_of_the_metric():
    given = effects(higher_is_better=True)
    improves = named(plots.components(given, SITE), "the metric improves")
    assert min(improves.y) > 0
    drawn = plots.components(effects(higher_is_better=None), SITE)
    assert len(named(drawn, "effect").x) == 6
    assert len(drawn.data) == 2


def test_without_a_site_the_largest_effect_chooses_it():
    given = effects()
    given = replace(given, examples={**given.examples, HEAD: 100 * given.examples[HEAD]})
    assert f"Components of {HEAD}" in plots.components(given).layout.title.text
    with pytest.raises(ValueError) as caught:
        plots.components(given, "blocks.5.mlp.W_in")
    assert str(caught.value) == (
        f"'blocks.5.mlp.W_in' was not attributed: there are {SITE}, {HEAD}, blocks.0.mlp.W_in. Choose one of these."
    )


def test_components_that_were_not_attributed_have_no_bar():
    given = effects({SITE: 6})
    some = replace(given, units={SITE: ((4,), (0, 1))}, examples={SITE: given.examples[SITE][:, :2]})
    bars = [trace for trace in plots.components(some, SITE).data if trace.type == "bar"]
    assert sorted(x for trace in bars for x in trace.x) == [0, 1, 4]


def test_blocks_of_equal_strengths_are_shaded():
    given = effects({SITE: 6})
    equal = replace(given, strengths={SITE: torch.tensor([5.0, 3, 3, 3, 1, 1])})
    shapes = plots.components(equal, SITE).layout.shapes
    assert [(shape.x0, shape.x1) for shape in shapes] == [(0.5, 3.5), (3.5, 5.5)]
    assert [bool(shape.showlegend) for shape in shapes] == [True, False]
    assert len(plots.components(given, SITE).layout.shapes) == 0


@pytest.mark.parametrize("total", ["absolute", "signed"])
def test_the_map_sums_over_the_components_of_each_matrix(total: str):
    given = effects()
    drawn = plots.attribution_map(given, total=total)
    (trace,) = drawn.data
    assert list(trace.x) == ["W_Q[1]", "W_in", "W_out"]
    assert list(trace.y) == ["0", "1"]
    sums = {site: (given[site].abs() if total == "absolute" else given[site]).sum() for site in given.sites}
    nothing = torch.tensor(torch.nan)
    expected = torch.stack([
        torch.stack([sums[HEAD], sums["blocks.0.mlp.W_in"], nothing]), torch.stack([nothing, nothing, sums[SITE]]),
    ])  # fmt: skip
    torch.testing.assert_close(matrix(trace), expected, equal_nan=True)
    name = "sum of |effects| (nats)" if total == "absolute" else "sum of effects (nats)"
    assert trace.colorbar.title.text == f"<br>{name}"
    assert (trace.zmid, trace.zmin) == ((None, 0) if total == "absolute" else (0, None))
    assert drawn.layout.yaxis.title.text == "layer"


def test_the_map_counts_a_block_of_components_once():
    given = effects({SITE: 6})
    block = replace(given, units={SITE: ((0, 1, 2),)}, examples={SITE: torch.full((5, 1), 2.0)})
    assert matrix(plots.attribution_map(block, total="signed").data[0])[1, 0] == 2


def test_layers_come_in_order_with_gaps_and_many_cells_have_no_text():
    given = effects({f"blocks.{layer}.attn.W_V[{head}]": 2 for layer in (11, 2) for head in range(12)})
    (trace,) = plots.attribution_map(given).data
    assert list(trace.y) == [str(layer) for layer in range(12)]
    assert list(trace.x) == [f"W_V[{head}]" for head in range(12)]
    assert bool(matrix(trace)[3].isnan().all())
    assert trace.text is None
    assert plots.attribution_map(effects()).data[0].text[1][2] != ""


def test_agreement_is_a_point_for_each_shared_component_and_their_rank_correlation():
    exact, rough = effects(), effects({SITE: 6, HEAD: 4, "blocks.3.mlp.W_in": 2}, seed=1)
    rough = replace(rough, method="gradient", passes=2.0)
    drawn = plots.agreement(rough, exact)
    both = [torch.cat([of[SITE], of[HEAD]]) for of in (exact, rough)]
    c = torch.cat(both).abs().quantile(0.5)
    for name, site in (("W_out", SITE), ("W_Q", HEAD)):
        points = named(drawn, name)
        same(points.x, (exact[site] / c).asinh())
        same(points.y, (rough[site] / c).asinh())
        same(points.customdata, torch.stack([exact[site], rough[site]], 1))
        assert list(points.text) == [f"{site} {i}" for i in range(len(exact[site]))]
    assert f"Spearman {spearmanr(*both).statistic:.3f} over 10 components<" in drawn.layout.title.text
    assert "gradient (2 forward passes) against ablation (zero) (12 forward passes)" in drawn.layout.title.text
    equal = named(drawn, "equal")
    same(equal.x, torch.stack([torch.cat(both).min(), torch.cat(both).max()]).div(c).asinh())
    assert list(equal.x) == list(equal.y)
    assert drawn.layout.xaxis.title.text == "effect on loss, ablation (zero) (nats)"
    assert drawn.layout.yaxis.title.text == "effect, gradient (nats)"


def test_the_median_of_rank_correlations_leaves_out_matrices_of_a_few_points():
    sizes = {SITE: 12, HEAD: 11, "blocks.0.mlp.W_in": 2, "blocks.0.mlp.W_out": 9}
    exact, rough = effects(sizes), effects(sizes, seed=1)
    each = [spearmanr(exact[site], rough[site]).statistic for site in (SITE, HEAD)]
    title = plots.agreement(rough, exact).layout.title.text
    assert f"over 34 components, median over 2 matrices {sum(each) / 2:.3f}<" in title


def test_one_outlier_does_not_press_all_other_points_of_an_agreement_together():
    exact = effects({SITE: 40})
    large = replace(exact, examples={SITE: exact.examples[SITE].clone()})
    large.examples[SITE][:, 0] = -1000
    drawn = plots.agreement(large, exact)
    others = list(named(drawn, "W_out").y)[1:]
    axis = drawn.layout.yaxis
    assert max(others) - min(others) > 0.2 * (max(others) - named(drawn, "W_out").y[0])
    assert axis.ticktext[0] == "−1000"
    c = torch.cat([exact[SITE], large[SITE]]).abs().quantile(0.5)
    same(axis.tickvals, (torch.tensor([float(text.replace("−", "-")) for text in axis.ticktext]) / c).asinh())


def test_agreement_of_effects_that_are_all_zero_has_axes():
    nothing = replace(effects({SITE: 6}), examples={SITE: torch.zeros(5, 6)})
    assert list(plots.agreement(nothing, nothing).layout.xaxis.ticktext) == ["−1", "0", "1"]


def test_a_legend_of_many_rows_covers_neither_title_nor_subtitle():
    legend = plots.TEMPLATE.layout.legend
    assert (legend.yref, legend.y, legend.yanchor) == ("container", 0, "bottom")
    assert plots.removal_curve(comparison()).layout.legend.y is None


def test_a_title_starts_below_the_tool_bar():
    assert plots.TEMPLATE.layout.title.pad.t >= 32


def test_blue_is_above_zero_in_every_map():
    maps = [plots.patching(patched((0, 1))), plots.attribution_map(effects(), total="signed")]
    assert all(drawn.data[0].colorscale[-1][1] == "#2166AC" for drawn in maps)


def test_agreement_of_nothing_in_common_is_refused():
    with pytest.raises(ValueError) as caught:
        plots.agreement(effects({HEAD: 4}), effects({SITE: 6}))
    assert str(caught.value) == (
        "no component was attributed both by ablation (zero) and by ablation (zero): there is nothing to compare. "
        "Attribute the same sites."
    )


def test_agreement_leaves_out_what_only_one_has_and_one_matrix_has_no_median():
    exact = effects({SITE: 6})
    some = replace(exact, units={SITE: ((4,), (0,), (2,))}, examples={SITE: exact.examples[SITE][:, :3]})
    drawn = plots.agreement(some, exact)
    assert list(named(drawn, "W_out").text) == [f"{SITE} {i}" for i in (0, 2, 4)]
    assert "median" not in drawn.layout.title.text


def test_the_removal_curve_shows_the_controls_as_bands():
    given = comparison()
    drawn = plots.removal_curve(given)
    for name, values in given.values.items():
        line = named(drawn, name)
        assert list(line.x) == [1, 5, 20]
        same(line.y, values.mean((1, 2)))
        draws = values.mean(2)
        if values.shape[1] == 1:
            assert not [trace for trace in drawn.data if trace.name == f"{name}: range"]
        else:
            band = named(drawn, f"{name}: range")
            assert list(band.x) == [1, 5, 20, 20, 5, 1]
            same(band.y, torch.cat([draws.amax(1), draws.amin(1).flip(0)]))
            assert band.fill == "toself"
    same(named(drawn, "most harmful").error_y.array, given.values["most harmful"][:, 0].std(1) / 7**0.5)
    assert named(drawn, "rotated").error_y.array is None
    assert list(named(drawn, "nothing removed").y) == [pytest.approx(float(given.measure.baseline.mean()))] * 2
    assert drawn.layout.yaxis.title.text == "loss (nats)"
    assert drawn.layout.xaxis.title.text == "components removed, k"
    assert (drawn.layout.xaxis.type, list(drawn.layout.xaxis.ticktext)) == ("log", ["1", "5", "20"])
    assert "7 examples, lower is better; only 4 components are harmful" in drawn.layout.title.text
    assert plots.removal_curve(comparison(ks=(1, 2))).layout.xaxis.type == "linear"
    assert "better" not in plots.removal_curve(comparison(None)).layout.title.text


def test_interactions_are_a_map_without_its_diagonal():
    given = interacting(5)
    drawn = plots.interactions(given)
    cells, diagonal = drawn.data
    off = given.matrix.clone().fill_diagonal_(torch.nan)
    torch.testing.assert_close(matrix(cells), off, equal_nan=True)
    assert cells.zmid == 0
    assert list(cells.x) == list(cells.y) == ["0 W_out 0", "1 W_out 1", "0 W_out 2", "1 W_out 3", "0 W_V[3] 1+2"]
    assert list(diagonal.text) == [f"<i>{given.matrix[i, i]:.2g}</i>" for i in range(5)]
    assert cells.text[0][1] == f"{given.matrix[0, 1]:.2g}"
    assert cells.colorbar.title.text == "<br>interaction (logits)"
    assert drawn.layout.yaxis.autorange == "reversed"
    many = plots.interactions(interacting(30))
    assert len(many.data) == 1
    assert many.data[0].text is None


def test_patching_by_position_is_a_map():
    given = patched((2, 5, 7))
    drawn = plots.patching(given, SITE, labels=["the", "cat", "sat"])
    (cells,) = drawn.data
    torch.testing.assert_close(matrix(cells), given[SITE])
    assert list(cells.y) == ["2 the", "5 cat", "7 sat"]
    assert list(cells.x) == ["0", "1", "2", "3"]
    assert (cells.zmid, cells.colorbar.title.text) == (0, "<br>effect (nats)")
    assert drawn.layout.yaxis.title.text == "position"
    text = drawn.layout.title.text
    assert f"Patching components of {SITE}" in text
    assert f"denoising, 5 examples: loss corrupted {given.measure.baseline.mean():.3g}, clean 1 nats" in text
    assert list(plots.patching(given, SITE).data[0].y) == ["2", "5", "7"]
    assert f"components of {next(iter(given.top(1)))}<" in plots.patching(given).layout.title.text


def test_a_patching_map_shows_only_what_was_patched():
    given = patched((0, 1))
    parts = [
        replace(part, units={SITE: ((3,), (1,))}, examples={SITE: part.examples[SITE][:, :2]}) for part in given.parts
    ]
    (cells,) = plots.patching(replace(given, parts=tuple(parts))).data
    assert list(cells.x) == ["1", "3"]


def test_patching_at_all_positions_is_bars():
    given = patched(None)
    given = replace(
        given, parts=tuple(replace(p, measure=replace(p.measure, higher_is_better=None)) for p in given.parts)
    )
    drawn = plots.patching(given, SITE)
    same(named(drawn, "effect").y, given[SITE])
    assert "Patching components of" in drawn.layout.title.text
    assert "corrupted" in drawn.layout.title.text


def test_patching_plots_of_nothing_are_refused():
    with pytest.raises(ValueError) as caught:
        plots.patching(patched(None), HEAD)
    assert str(caught.value) == f"'{HEAD}' was not patched: there are {SITE}, blocks.0.mlp.W_in. Choose one of these."
    with pytest.raises(ValueError) as caught:
        plots.patching(patched((2, 5)), SITE, labels=["the"])
    assert str(caught.value) == "1 labels for 2 patched positions (2, 5): give one for each of them."


def test_a_spectrum_shows_where_noise_would_end():
    with models.borrowed("bridge gpt2") as model:
        one = surgery.decompose(model, SITE, progress=False)[SITE]
        two = surgery.decompose(model, ["*.W_out"], progress=False)
        every = surgery.decompose(model, "*", progress=False)
        blocks = surgery.decompose(model, SITE, basis=surgery.RowBlocks(2), progress=False)[SITE]
    drawn = plots.spectrum(one)
    same(named(drawn, SITE).y, one.S)
    edge = named(drawn, f"{SITE}: noise edge")
    assert list(edge.y) == [ranks.noise_edge(one.S, *one.shape)] * 2
    assert list(edge.x) == [0, 31]
    assert edge.line.dash == "dash"
    assert drawn.layout.title.text.startswith(f"<b>Singular values of {SITE}</b>")
    assert len(plots.spectrum(blocks).data) == 1
    assert [trace.name for trace in plots.spectrum(two).data if trace.showlegend is not False] == list(two)
    many = plots.spectrum(every)
    assert len(many.data) == len(every) == 12
    assert sum(trace.showlegend for trace in many.data) == 6
    assert {trace.name for trace in many.data} == {"W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"}
    assert len({trace.line.color for trace in many.data}) == 6
    with pytest.raises(ValueError) as caught:
        plots.spectrum(surgery.Decompositions())
    assert str(caught.value) == (
        "no matrix has been decomposed: there is nothing to show. Call surgery.decompose(model, pattern)."
    )


def test_an_operation_is_bars_of_the_energy_it_leaves():
    spec = {"*.W_out": surgery.KeepTop(rank=4), "blocks.0.attn.W_Q": surgery.Drop(list(range(20)))}
    with models.borrowed("bridge gpt2") as model, surgery.apply(model, spec, progress=False) as operation:
        drawn = plots.operation(operation)
        S = torch.linalg.svdvals(surgery.decompose(model, SITE, progress=False)[SITE].S.diag())
    (bars,) = drawn.data
    assert len(bars.x) == 3
    row = next(n for n, name in enumerate(bars.y) if name.startswith(SITE))
    assert bars.x[row] == pytest.approx(100 * float(S[:4].square().sum() / S.square().sum()), rel=1e-5)
    assert bars.text[row] == "4 of 32"
    assert bars.customdata[row] == pytest.approx(float((S[4:].square().sum() / S.square().sum()).sqrt()), rel=1e-4)
    assert any(name.endswith("…") for name in bars.y)
    assert drawn.layout.xaxis.title.text == "energy kept (%)"
    assert list(drawn.layout.xaxis.range) == [0, 100]


def test_every_figure_has_one_look():
    figures = [
        plots.components(effects()),
        plots.attribution_map(effects()),
        plots.agreement(effects(), effects(seed=1)),
        plots.removal_curve(comparison()),
        plots.interactions(interacting(4)),
        plots.patching(patched((0, 1))),
        plots.patching(patched(None)),
    ]
    for drawn in figures:
        assert drawn.layout.template.layout.width == plots.TEMPLATE.layout.width == 700
        assert drawn.layout.template.layout.colorway == plots.TEMPLATE.layout.colorway
        assert 200 <= drawn.layout.height <= 900
        assert drawn.layout.title.text.startswith("<b>")
        go.Figure(drawn.to_dict())  # valid, and can be serialised
        assert len(drawn.to_json()) > 100


def test_results_of_a_model_can_be_drawn():
    tokens, metric = models.tokens(3, 6), metrics.logit_difference(torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5]))
    with models.borrowed("bridge gpt2") as model:
        found = attribution.by_ablation(model, tokens, metric, "*.W_out", progress=False)
        first = attribution.by_gradient(model, tokens, metric, "*", progress=False)
        pairs = attribution.interactions(model, tokens, metric, found.top(3), progress=False)
        moved = patching.by_component(model, tokens, tokens.flip(0), metric, SITE, positions=[4, 5], progress=False)
        held = controls.compare(model, tokens, metric, found, ks=[2], draws=2, progress=False)
    assert len(plots.components(found, SITE).data) >= 2
    assert len(plots.attribution_map(first).data[0].x) == 6
    assert len(named(plots.agreement(first, found), "W_out").x) == 64
    assert len(plots.interactions(pairs).data[0].x) == 3
    assert len(plots.patching(moved).data[0].y) == 2
    assert list(named(plots.removal_curve(held), "rotated").x) == [2]


def test_every_plot_is_listed_and_returns_a_figure():
    assert len(plots.__all__) <= 14
    listed = {name: getattr(plots, name) for name in plots.__all__ if name != "TEMPLATE"}
    modules = {name: module for name, module in listed.items() if inspect.ismodule(module)}
    assert list(modules) == ["eigenpruning", "laser", "truncation"]
    for name, module in modules.items():
        own = {f.__name__: f for f in vars(module).values() if getattr(f, "__module__", "") == module.__name__}
        own = {called: f for called, f in own.items() if inspect.isfunction(f) and not called.startswith("_")}
        assert len(own) >= 3
        row = next(line for line in plots.__doc__.splitlines() if line.startswith(f"| `{name}."))
        assert all(f".{called}`" in plots.__doc__ for called in own), row
        listed |= own
    functions = {name: f for name, f in listed.items() if name not in modules}
    assert all(inspect.signature(function).return_annotation is go.Figure for function in functions.values())
    assert all(f"{name}`" in plots.__doc__ for name in functions)


def test_figures_of_laser_are_found_by_their_short_names_too():
    for name in ("corrected_broken", "laser_heatmap", "layer_task", "rank_curve"):
        assert getattr(plots, name) is getattr(plots.laser, name)


def test_a_spectrum_of_a_model_is_that_of_its_decompositions():
    with models.borrowed("bridge gpt2") as model:
        apart = surgery.decompose(model, ["*.W_out", "*.W_in"], progress=False)
        drawn = plots.spectrum(model, ["*.W_out", "*.W_in"])
        every = plots.spectrum(model)
    assert drawn == plots.spectrum(apart)
    assert len(every.data) == 12
    with pytest.raises(ValueError) as caught:
        plots.spectrum(apart, SITE)
    assert str(caught.value) == (
        f"sites='{SITE}' with Decompositions: sites choose matrices of a model. Leave them out, or give the model."
    )
