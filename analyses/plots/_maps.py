"""Figures that are maps: effects over layers and matrices, over positions and components, and between components."""

from collections.abc import Sequence
from typing import Literal

import plotly.graph_objects as go

from analyses.attribution.effects import Effects
from analyses.attribution.shapley import Interactions
from analyses.patching.patched import Patching
from analyses.plots._effects import components
from analyses.plots._style import figure, heading, heat_map, label
from hooks import Site
from hooks.sites import MATRICES

_CELLS_WITH_TEXT = 120


def attribution_map(effects: Effects, *, total: Literal["absolute", "signed"] = "absolute") -> go.Figure:
    """Where in the model effects are: for each layer and matrix (or head of one) the sum over its components.

    Effects of single components need not add up to that of the whole matrix; shares (`by_path`, `by_shapley`) do.

    Args:
        effects: by any method.
        total: whether the absolute values or the signed effects are summed.

    >>> metric = metrics.logit_difference([3, 7, 9], [1, 2, 5])
    >>> effects = attribution.by_gradient(model, tokens, metric, "*", progress=False)
    >>> list(plots.attribution_map(effects).data[0].x)
    ['W_Q', 'W_K', 'W_V', 'W_O', 'W_in', 'W_out']
    """
    measure, signed = effects.measure, total == "signed"
    cells: dict[tuple[int, str], float] = {}
    for site, rows in effects.examples.items():
        at, means = Site.parse(site), rows.mean(0)
        name = at.matrix if at.head is None else f"{at.matrix}[{at.head}]"
        cells[at.layer, name] = float((means if signed else means.abs()).sum())
    columns = sorted({name for _, name in cells}, key=_column_order)
    layers = list(range(max(layer for layer, _ in cells) + 1))
    z = [[cells.get((layer, name)) for name in columns] for layer in layers]
    # Numbers in the cells of a larger map could not be read.
    few = len(layers) * len(columns) <= _CELLS_WITH_TEXT and len(columns) <= 12
    text = [["" if value is None else f"{value:.2g}" for value in row] for row in z] if few else None
    what = "sum of effects" if signed else "sum of |effects|"
    chart = figure(
        f"Effects on {measure.name} by layer and matrix",
        f"{effects.method}, {len(measure.baseline)} examples",
        height=max(300, min(900, 140 + 28 * len(layers))),
    )
    colours = label(what, measure.unit)
    chart.add_trace(heat_map(z, columns, list(map(str, layers)), colours=colours, signed=signed, text=text))
    chart.update_xaxes(title_text="matrix", showgrid=False, type="category")
    return chart.update_yaxes(title_text="layer", showgrid=False, type="category")


def interactions(result: Interactions) -> go.Figure:
    """How far removing two components together departs from the sum of removing each, with their single effects.

    The diagonal, which has no interaction, is left uncoloured and shows the effects of single components in writing.

    >>> metric = metrics.logit_difference([3, 7, 9], [1, 2, 5])
    >>> effects = attribution.by_ablation(model, tokens, metric, "blocks.1.mlp.W_out", progress=False)
    >>> pairs = attribution.interactions(model, tokens, metric, effects.top(3), progress=False)
    >>> len(plots.interactions(pairs).data[0].x)
    3
    """
    measure, n = result.measure, len(result.labels)
    labels = [_short(unit) for unit in result.labels]
    matrix = result.matrix.tolist()
    z = [[None if i == j else matrix[i][j] for j in range(n)] for i in range(n)]
    text = None
    if n <= 12:
        text = [["" if i == j else f"{matrix[i][j]:.2g}" for j in range(n)] for i in range(n)]
    chart = figure(
        f"Interactions on {measure.name}",
        f"effect of both − sum of single effects; diagonal: single effects; {len(measure.baseline)} examples",
        height=min(760, 260 + 26 * n),
    )
    colours = label("interaction", measure.unit)
    chart.add_trace(heat_map(z, labels, labels, colours=colours, signed=True, text=text))
    if n <= 25:
        chart.add_scatter(
            x=labels, y=labels, mode="text", text=[f"<i>{matrix[i][i]:.2g}</i>" for i in range(n)],
            textfont={"size": 11 if n <= 12 else 9}, name="single effects", showlegend=False, hoverinfo="skip",
        )  # fmt: skip
    chart.update_xaxes(type="category", tickangle=-45, showgrid=False)
    return chart.update_yaxes(type="category", autorange="reversed", showgrid=False)


def patching(result: Patching, site: str | None = None, *, labels: Sequence[str] | None = None) -> go.Figure:
    """The effect of patching each component of one matrix: bars, or a map of positions and components.

    Args:
        result: of `patching.by_component`.
        site: the matrix; by default the one that has the largest single effect.
        labels: texts of the patched positions, for instance the tokens of a clean example.

    Raises:
        ValueError: if the site was not patched, or there is not one label for each patched position.

    >>> metric, site = metrics.logit_difference([3, 7, 9], [1, 2, 5]), "blocks.1.mlp.W_out"
    >>> result = patching.by_component(model, tokens, tokens.flip(0), metric, site, positions=[4, 5], progress=False)
    >>> list(plots.patching(result, site).data[0].y)
    ['4', '5']
    """
    measure = result.measure
    site = next(iter(result.top(1))) if site is None else site
    if site not in result.sites:
        raise ValueError(f"'{site}' was not patched: there are {', '.join(result.sites)}. Choose one of these.")
    runs = {"denoising": ("corrupted", "clean"), "noising": ("clean", "corrupted")}[result.direction]
    ends = [
        f"{run} {float(values.mean()):.3g}" for run, values in zip(runs, (measure.baseline, result.source), strict=True)
    ]
    subtitle = f"{result.direction}, {len(result.source)} examples: {measure.name} {ends[0]}, {ends[1]} {measure.unit}"
    title = f"Patching components of {site}"
    if result.positions is None:
        chart = components(result.effects, site)
        return chart.update_layout(title={"text": heading(title, subtitle)})
    names = [str(at) for at in result.positions]
    if labels is not None:
        if len(labels) != len(names):
            raise ValueError(
                f"{len(labels)} labels for {len(names)} patched positions ({', '.join(names)}): give one for each of "
                "them."
            )
        names = [f"{at} {text}" for at, text in zip(names, labels, strict=True)]
    patched = (~result[site].isnan().any(0)).nonzero().flatten().tolist()
    z = result[site][:, patched].tolist()
    chart = figure(title, subtitle, height=max(300, min(900, 160 + 22 * len(names))))
    columns = [str(i) for i in patched]
    chart.add_trace(heat_map(z, columns, names, colours=label("effect", measure.unit), signed=True))
    chart.update_xaxes(title_text="component", type="category", showgrid=False, nticks=20)
    return chart.update_yaxes(title_text="position", type="category", autorange="reversed", showgrid=False)


def _column_order(column: str) -> tuple[int, int]:
    matrix, _, head = column.rstrip("]").partition("[")
    return [str(m) for m in MATRICES].index(matrix), int(head or -1)


def _short(name: str) -> str:
    """`blocks.1.mlp.W_out 3` as `1 W_out 3`: layer, matrix, component."""
    address, _, unit = name.partition(" ")
    site = Site.parse(address)
    head = "" if site.head is None else f"[{site.head}]"
    return f"{site.layer} {site.matrix}{head} {unit}"
