"""Figures of effects on a metric: of the components of one matrix, by two methods, and beside controls."""

from collections.abc import Iterator, Sequence
from math import asinh, ceil, floor, isfinite, isnan, log10
from statistics import median

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.attribution.effects import Effects
from analyses.controls.removals import Removals
from analyses.plots._style import BLUE, COLOURS, GREY, LIGHT, MATRIX_COLOURS, VERMILION, figure, label, number
from analyses.statistics import mean_and_stderr
from hooks import Site

_ENOUGH_TO_RANK = 10


def components(effects: Effects, site: str | None = None) -> go.Figure:
    """The effect of each component of one matrix against its index, with standard errors, and its strength behind it.

    Where the metric has a direction, effects that improve it (of a removal: of harmful components) and effects that
    worsen it differ in colour. Blocks of equal singular values, inside which single components are not defined, are
    shaded.

    Args:
        effects: by any method.
        site: the matrix; by default the one that has the largest single effect.

    Raises:
        ValueError: if the site was not attributed.

    >>> metric = metrics.logit_difference([3, 7, 9], [1, 2, 5])
    >>> effects = attribution.by_gradient(model, tokens, metric, "*.W_out", progress=False)
    >>> plots.components(effects, "blocks.0.mlp.W_out").layout.xaxis.title.text
    'component'
    """
    site = next(iter(effects.top(1))) if site is None else site
    if site not in effects.sites:
        raise ValueError(f"'{site}' was not attributed: there are {', '.join(effects.sites)}. Choose one of these.")
    values, errors, measure = effects[site], effects.stderr(site), effects.measure
    blocks = effects.degenerate().get(site, ())
    now = number(float(measure.baseline.mean()), measure.unit)
    chart = figure(
        f"Components of {site}",
        f"{effects.method}, {len(measure.baseline)} examples, {measure.name} now {now}",
    )
    chart.add_scatter(
        y=effects.strengths[site].tolist(), yaxis="y2", mode="lines", name="strength s", opacity=0.7,
        line={"color": GREY, "width": 1.5}, hovertemplate="component %{x}: s = %{y:.4g}<extra></extra>",
    )  # fmt: skip
    for name, colour, members in _roles(values, measure.higher_is_better):
        at = members.nonzero().flatten()
        chart.add_bar(
            x=at.tolist(),
            y=values[at].tolist(),
            name=name,
            marker={"color": colour, "line": {"width": 0}},
            error_y={"array": errors[at].tolist(), "color": "#444444", "thickness": 0.8, "width": 0},
            hovertemplate="component %{x}: %{y:.3g} ± %{error_y.array:.2g}<extra></extra>",
        )
    for n, block in enumerate(blocks):
        chart.add_vrect(
            x0=min(block) - 0.5, x1=max(block) + 0.5, fillcolor=LIGHT, line_width=0, layer="below",
            name="equal strengths", legendgroup="equal strengths", showlegend=n == 0,
        )  # fmt: skip
    chart.update_xaxes(title_text="component", showgrid=False)
    chart.update_yaxes(title_text=label(f"effect on {measure.name}", measure.unit))
    strengths = {"text": "strength s (singular value)", "font": {"size": 13}}
    chart.update_layout(
        yaxis2={
            "title": strengths, "overlaying": "y", "side": "right", "color": GREY, "showgrid": False, "zeroline": False,
            "rangemode": "tozero", "tickmode": "auto",
        },
        margin={"r": 80},
        barmode="overlay",
    )  # fmt: skip
    return chart


def agreement(approximate: Effects, exact: Effects) -> go.Figure:
    """The effects by one method against those by another, a point for each component that both attributed.

    The title gives Spearman's rank correlation over all points, and its median over the matrices of which ten points
    or more are there. On the dashed line both are equal. A few effects are often a hundred times as large as the rest,
    so the axes are linear near zero and logarithmic beyond: a value stands at asinh(value / c), with c the median size.

    Raises:
        ValueError: if no component was attributed by both.

    >>> metric = metrics.logit_difference([3, 7, 9], [1, 2, 5])
    >>> fast = attribution.by_gradient(model, tokens, metric, "blocks.0.mlp.W_out", progress=False)
    >>> exact = attribution.by_ablation(model, tokens, metric, fast.top(5), progress=False)
    >>> plots.agreement(fast, exact).layout.title.text.endswith("beyond</span>")
    True
    """
    shared = {site: _both(approximate, exact, site) for site in exact.sites if site in approximate.sites}
    points = [point for pairs in shared.values() for point in pairs]
    if not points:
        raise ValueError(
            f"no component was attributed both by {approximate.method} and by {exact.method}: there is nothing to "
            "compare. Attribute the same sites."
        )
    title = f"Spearman {_spearman(points):.3f} over {len(points)} components"
    by_matrix = [_spearman(pairs) for pairs in shared.values() if len(pairs) >= _ENOUGH_TO_RANK]
    by_matrix = [correlation for correlation in by_matrix if isfinite(correlation)]
    if len(shared) > 1 and by_matrix:
        title += f", median over {len(by_matrix)} matrices {median(by_matrix):.3f}"
    methods = [f"{effects.method} ({effects.passes:.3g} forward passes)" for effects in (approximate, exact)]
    values = [value for _, *pair in points for value in pair]
    c = median([abs(value) for value in values if value] or [1.0])
    axes = f"axes linear to about ±{c:.1g}, logarithmic beyond"
    chart = figure(title, f"{' against '.join(methods)}; {axes}", height=540)
    ends = [asinh(min(values) / c), asinh(max(values) / c)]
    dashed = {"color": GREY, "width": 1, "dash": "dash"}
    chart.add_scatter(x=ends, y=ends, mode="lines", line=dashed, name="equal", hoverinfo="skip")
    for matrix, colour in MATRIX_COLOURS.items():
        rows = [(site, *point) for site in shared if Site.parse(site).matrix == matrix for point in shared[site]]
        if rows:
            chart.add_scatter(
                x=[asinh(exactly / c) for _, _, exactly, _ in rows],
                y=[asinh(roughly / c) for _, _, _, roughly in rows],
                customdata=[(exactly, roughly) for _, _, exactly, roughly in rows],
                mode="markers",
                name=matrix,
                marker={"size": 5, "opacity": 0.65, "color": colour},
                text=[f"{site} {i}" for site, i, _, _ in rows],
                hovertemplate="%{text}: %{customdata[1]:.3g} for %{customdata[0]:.3g}<extra></extra>",
            )
    # The axes hold asinh(value / c), so their ticks are put there and written as values.
    at, texts = _ticks(max(map(abs, values)), c)
    chart.update_xaxes(tickvals=at, ticktext=texts).update_yaxes(tickvals=at, ticktext=texts)
    chart.update_xaxes(title_text=label(f"effect on {exact.measure.name}, {exact.method}", exact.measure.unit))
    return chart.update_yaxes(title_text=label(f"effect, {approximate.method}", exact.measure.unit))


def removal_curve(comparison: Removals) -> go.Figure:
    """The metric after removing k components: those that an attribution names, with standard errors, and the controls.

    A control that was drawn at random is shown by its mean, with a band from its least to its largest draw.

    >>> metric = metrics.logit_difference([3, 7, 9], [1, 2, 5])
    >>> effects = attribution.by_ablation(model, tokens, metric, "blocks.1.mlp.W_out", progress=False)
    >>> comparison = controls.compare(model, tokens, metric, effects, ks=[1, 2], progress=False)
    >>> list(plots.removal_curve(comparison).layout.xaxis.ticktext)
    ['1', '2']
    """
    measure, ks = comparison.measure, comparison.ks
    better = {None: "", True: ", higher is better", False: ", lower is better"}[measure.higher_is_better]
    subtitle = "; ".join([f"{len(measure.baseline)} examples{better}", *comparison.notes])
    chart = figure(f"{measure.name} after removing components", subtitle, height=460)
    for (removal, values), colour in zip(comparison.values.items(), (VERMILION, BLUE, *COLOURS[2:]), strict=False):
        named, draws = removal == next(iter(comparison.values)), values.mean(2)
        if draws.shape[1] > 1:
            # There along the upper edge, back along the lower one: plotly fills what the line surrounds.
            around = [*draws.amax(1).tolist(), *draws.amin(1).tolist()[::-1]]
            chart.add_scatter(
                x=[*ks, *ks[::-1]], y=around, fill="toself", fillcolor=colour, opacity=0.18, line={"width": 0},
                mode="lines", name=f"{removal}: range", legendgroup=removal, showlegend=False, hoverinfo="skip",
            )  # fmt: skip
        errors = mean_and_stderr(values[:, 0].T)[1].tolist()
        chart.add_scatter(
            x=ks,
            y=draws.mean(1).tolist(),
            mode="lines+markers",
            name=removal,
            legendgroup=removal,
            line={"color": colour, "width": 3 if named else 1.5},
            error_y={"array": errors, "thickness": 1.2, "width": 3} if named else None,
            hovertemplate=f"{removal}, k = %{{x}}: %{{y:.4g}}<extra></extra>",
        )
    now = float(measure.baseline.mean())
    dashed = {"color": GREY, "width": 1.5, "dash": "dash"}
    chart.add_scatter(x=[ks[0], ks[-1]], y=[now, now], mode="lines", line=dashed, name="nothing removed")
    scale = "log" if ks[-1] >= 10 * ks[0] else "linear"
    chart.update_xaxes(title_text="components removed, k", type=scale, tickvals=ks, ticktext=[str(k) for k in ks])
    return chart.update_yaxes(title_text=label(measure.name, measure.unit))


def _roles(
    values: Float[Tensor, " component"], higher_is_better: bool | None
) -> Iterator[tuple[str, str, Bool[Tensor, " component"]]]:
    """Harmful and helpful components apart, or all together where the metric has no direction."""
    known = ~values.isnan()
    if higher_is_better is None:
        yield "effect", BLUE, known
        return
    improves = (values > 0) == higher_is_better
    for name, colour, members in (
        ("the metric improves", VERMILION, improves & known),
        ("the metric worsens", BLUE, ~improves & known),
    ):
        if bool(members.any()):
            yield name, colour, members


def _both(approximate: Effects, exact: Effects, site: str) -> list[tuple[int, float, float]]:
    """Component, exact and approximate effect, of every component that has both."""
    rows = zip(exact[site].tolist(), approximate[site].tolist(), strict=True)
    return [(i, *pair) for i, pair in enumerate(rows) if not any(map(isnan, pair))]


def _ticks(largest: float, c: float) -> tuple[list[float], list[str]]:
    """Zero and the powers of ten from c to the largest size: where asinh(value / c) puts them, and as texts."""
    exponents = range(ceil(log10(c)), floor(log10(max(largest, c))) + 1)
    sizes = [10.0**k for k in exponents] or [float(f"{largest:.1g}")]
    at = [*(-size for size in reversed(sizes)), 0.0, *sizes]
    texts = [f"{value:g}".replace("-", "−") for value in at]
    return [asinh(value / c) for value in at], texts


def _spearman(points: Sequence[tuple[int, float, float]]) -> float:
    """Spearman's rank correlation, NaN where one side does not vary."""
    return float(pd.DataFrame([point[1:] for point in points]).corr(method="spearman").to_numpy()[0, -1])
