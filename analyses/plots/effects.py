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
from analyses.plots.style import BLUE, COLOURS, GREY, LIGHT, MATRIX_COLOURS, VERMILION, figure, label, number
from hooks import Site

_ENOUGH_TO_RANK = 10


def components(effects: Effects, site: str | None = None) -> go.Figure:
    """The effect of each component of one matrix against its index, with standard errors, and its strength behind it.

    Without a site, of the matrix that has the largest single effect. Where the metric has a direction, effects that
    improve it (of a removal: of harmful components) and effects that worsen it differ in colour. Blocks of equal
    singular values, inside which single components are not defined, are shaded.

    Raises:
        ValueError: if the site was not attributed.
    """
    site = next(iter(effects.top(1))) if site is None else site
    if site not in effects.sites:
        raise ValueError(f"'{site}' was not attributed: there are {', '.join(effects.sites)}. Choose one of these.")
    values, errors, measure = effects[site], effects.stderr(site), effects.measure
    blocks = effects.degenerate().get(site, ())
    now = number(float(measure.baseline.mean()), measure.unit)
    drawn = figure(
        f"Components of {site}",
        f"{effects.method}, {len(measure.baseline)} examples, {measure.name} now {now}",
    )
    drawn.add_scatter(
        y=effects.strengths[site].tolist(), yaxis="y2", mode="lines", name="strength s", opacity=0.7,
        line={"color": GREY, "width": 1.5}, hovertemplate="component %{x}: s = %{y:.4g}<extra></extra>",
    )  # fmt: skip
    for name, colour, some in _roles(values, measure.higher_is_better):
        at = some.nonzero().flatten()
        drawn.add_bar(
            x=at.tolist(),
            y=values[at].tolist(),
            name=name,
            marker={"color": colour, "line": {"width": 0}},
            error_y={"array": errors[at].tolist(), "color": "#444444", "thickness": 0.8, "width": 0},
            hovertemplate="component %{x}: %{y:.3g} ± %{error_y.array:.2g}<extra></extra>",
        )
    for n, block in enumerate(blocks):
        drawn.add_vrect(
            x0=min(block) - 0.5, x1=max(block) + 0.5, fillcolor=LIGHT, line_width=0, layer="below",
            name="equal strengths", legendgroup="equal strengths", showlegend=n == 0,
        )  # fmt: skip
    drawn.update_xaxes(title_text="component", showgrid=False)
    drawn.update_yaxes(title_text=label(f"effect on {measure.name}", measure.unit))
    strengths = {"text": "strength s (singular value)", "font": {"size": 13}}
    drawn.update_layout(
        yaxis2={
            "title": strengths, "overlaying": "y", "side": "right", "color": GREY, "showgrid": False, "zeroline": False,
            "rangemode": "tozero", "tickmode": "auto",
        },
        margin={"r": 80},
        barmode="overlay",
    )  # fmt: skip
    return drawn


def agreement(approximate: Effects, exact: Effects) -> go.Figure:
    """The effects by one method against those by another, a point for each component that both attributed.

    The title gives Spearman's rank correlation over all points, and its median over the matrices of which ten points
    or more are there. On the dashed line both are equal. A few effects are often a hundred times as large as the rest,
    so the axes are linear near zero and logarithmic beyond: a value stands at asinh(value / c), with c the median size.

    Raises:
        ValueError: if no component was attributed by both.
    """
    shared = {site: _both(approximate, exact, site) for site in exact.sites if site in approximate.sites}
    points = [point for some in shared.values() for point in some]
    if not points:
        raise ValueError(
            f"no component was attributed both by {approximate.method} and by {exact.method}: there is nothing to "
            "compare. Attribute the same sites."
        )
    title = f"Spearman {_spearman(points):.3f} over {len(points)} components"
    enough = [some for some in shared.values() if len(some) >= _ENOUGH_TO_RANK]
    ranks = [rank for some in enough if isfinite(rank := _spearman(some))]
    if len(shared) > 1 and ranks:
        title += f", median over {len(ranks)} matrices {median(ranks):.3f}"
    methods = [f"{effects.method} ({effects.passes:.3g} forward passes)" for effects in (approximate, exact)]
    values = [value for _, *pair in points for value in pair]
    c = median([abs(value) for value in values if value] or [1.0])
    axes = f"axes linear to about ±{c:.1g}, logarithmic beyond"
    drawn = figure(title, f"{' against '.join(methods)}; {axes}", height=540)
    ends = [asinh(min(values) / c), asinh(max(values) / c)]
    dashed = {"color": GREY, "width": 1, "dash": "dash"}
    drawn.add_scatter(x=ends, y=ends, mode="lines", line=dashed, name="equal", hoverinfo="skip")
    for matrix, colour in MATRIX_COLOURS.items():
        some = [(site, *point) for site in shared if Site.parse(site).matrix == matrix for point in shared[site]]
        if some:
            drawn.add_scatter(
                x=[asinh(exactly / c) for _, _, exactly, _ in some],
                y=[asinh(roughly / c) for _, _, _, roughly in some],
                customdata=[(exactly, roughly) for _, _, exactly, roughly in some],
                mode="markers",
                name=matrix,
                marker={"size": 5, "opacity": 0.65, "color": colour},
                text=[f"{site} {i}" for site, i, _, _ in some],
                hovertemplate="%{text}: %{customdata[1]:.3g} for %{customdata[0]:.3g}<extra></extra>",
            )
    at, texts = _ticks(max(map(abs, values)), c)
    drawn.update_xaxes(tickvals=at, ticktext=texts).update_yaxes(tickvals=at, ticktext=texts)
    drawn.update_xaxes(title_text=label(f"effect on {exact.measure.name}, {exact.method}", exact.measure.unit))
    return drawn.update_yaxes(title_text=label(f"effect, {approximate.method}", exact.measure.unit))


def removal_curve(comparison: Removals) -> go.Figure:
    """The metric after removing k components: those that an attribution names, with standard errors, and the controls.

    Controls that are drawn at random are shown by their mean, with a band from the least to the most over draws.
    """
    measure, ks = comparison.measure, comparison.ks
    better = {None: "", True: ", higher is better", False: ", lower is better"}[measure.higher_is_better]
    subtitle = "; ".join([f"{len(measure.baseline)} examples{better}", *comparison.notes])
    drawn = figure(f"{measure.name} after removing components", subtitle, height=460)
    for (removal, values), colour in zip(comparison.values.items(), (VERMILION, BLUE, *COLOURS[2:]), strict=False):
        named, draws = removal == next(iter(comparison.values)), values.mean(2)
        if draws.shape[1] > 1:
            around = [*draws.amax(1).tolist(), *draws.amin(1).tolist()[::-1]]
            drawn.add_scatter(
                x=[*ks, *ks[::-1]], y=around, fill="toself", fillcolor=colour, opacity=0.18, line={"width": 0},
                mode="lines", name=f"{removal}: range", legendgroup=removal, showlegend=False, hoverinfo="skip",
            )  # fmt: skip
        errors = (values[:, 0].std(1) / values.shape[2] ** 0.5).tolist()
        drawn.add_scatter(
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
    drawn.add_scatter(x=[ks[0], ks[-1]], y=[now, now], mode="lines", line=dashed, name="nothing removed")
    scale = "log" if ks[-1] >= 10 * ks[0] else "linear"
    drawn.update_xaxes(title_text="components removed, k", type=scale, tickvals=ks, ticktext=[str(k) for k in ks])
    return drawn.update_yaxes(title_text=label(measure.name, measure.unit))


def _roles(
    values: Float[Tensor, " component"], higher_is_better: bool | None
) -> Iterator[tuple[str, str, Bool[Tensor, " component"]]]:
    """Harmful and helpful components apart, or all together where the metric has no direction."""
    known = ~values.isnan()
    if higher_is_better is None:
        yield "effect", BLUE, known
        return
    improves = (values > 0) == higher_is_better
    for name, colour, some in (
        ("the metric improves", VERMILION, improves & known),
        ("the metric worsens", BLUE, ~improves & known),
    ):
        if bool(some.any()):
            yield name, colour, some


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
