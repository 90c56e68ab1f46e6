"""Figures that are maps: effects over layers and matrices, over positions and components, and between components."""

from collections.abc import Sequence
from typing import Literal

import plotly.graph_objects as go

from analyses.attribution.effects import Effects
from analyses.attribution.shapley import Interactions
from analyses.patching.patched import Patching
from analyses.plots.effects import components
from analyses.plots.style import figure, heading, heat_map, label
from hooks import Site
from hooks.sites import MATRICES

_CELLS_WITH_TEXT = 120


def attribution_map(effects: Effects, *, total: Literal["absolute", "signed"] = "absolute") -> go.Figure:
    """Where in the model effects are: for each layer and matrix (or head of one) the sum over its components.

    Of their absolute values, or signed. Effects of single components need not add up to that of the whole matrix;
    shares (`by_path`, `by_shapley`) do.
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
    few = len(layers) * len(columns) <= _CELLS_WITH_TEXT and len(columns) <= 12
    text = [["" if value is None else f"{value:.2g}" for value in row] for row in z] if few else None
    what = "sum of effects" if signed else "sum of |effects|"
    drawn = figure(
        f"Effects on {measure.name} by layer and matrix",
        f"{effects.method}, {len(measure.baseline)} examples",
        height=max(300, min(900, 140 + 28 * len(layers))),
    )
    colours = label(what, measure.unit)
    drawn.add_trace(heat_map(z, columns, list(map(str, layers)), colours=colours, signed=signed, text=text))
    drawn.update_xaxes(title_text="matrix", showgrid=False, type="category")
    return drawn.update_yaxes(title_text="layer", showgrid=False, type="category")


def interactions(result: Interactions) -> go.Figure:
    """How far removing two components together departs from the sum of removing each, with their single effects.

    The diagonal, which has no interaction, is left uncoloured and shows the effects of single components in writing.
    """
    measure, n = result.measure, len(result.labels)
    labels = [_short(one) for one in result.labels]
    matrix = result.matrix.tolist()
    z = [[None if i == j else matrix[i][j] for j in range(n)] for i in range(n)]
    text = None
    if n <= 12:
        text = [["" if i == j else f"{matrix[i][j]:.2g}" for j in range(n)] for i in range(n)]
    drawn = figure(
        f"Interactions on {measure.name}",
        f"effect of both − sum of single effects; diagonal: single effects; {len(measure.baseline)} examples",
        height=min(760, 260 + 26 * n),
    )
    colours = label("interaction", measure.unit)
    drawn.add_trace(heat_map(z, labels, labels, colours=colours, signed=True, text=text))
    if n <= 25:
        drawn.add_scatter(
            x=labels, y=labels, mode="text", text=[f"<i>{matrix[i][i]:.2g}</i>" for i in range(n)],
            textfont={"size": 11 if n <= 12 else 9}, name="single effects", showlegend=False, hoverinfo="skip",
        )  # fmt: skip
    drawn.update_xaxes(type="category", tickangle=-45, showgrid=False)
    return drawn.update_yaxes(type="category", autorange="reversed", showgrid=False)


def patching(result: Patching, site: str | None = None, *, labels: Sequence[str] | None = None) -> go.Figure:
    """What patching each component of one matrix did: bars, or a map of positions and components.

    Without a site, of the matrix that has the largest single effect. `labels` are the texts of the patched positions,
    for instance the tokens of a clean example.

    Raises:
        ValueError: if the site was not patched, or there is not one label for each patched position.
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
        drawn = components(result.effects, site)
        return drawn.update_layout(title={"text": heading(title, subtitle)})
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
    drawn = figure(title, subtitle, height=max(300, min(900, 160 + 22 * len(names))))
    columns = [str(i) for i in patched]
    drawn.add_trace(heat_map(z, columns, names, colours=label("effect", measure.unit), signed=True))
    drawn.update_xaxes(title_text="component", type="category", showgrid=False, nticks=20)
    return drawn.update_yaxes(title_text="position", type="category", autorange="reversed", showgrid=False)


def _column_order(column: str) -> tuple[int, int]:
    matrix, _, head = column.rstrip("]").partition("[")
    return [str(m) for m in MATRICES].index(matrix), int(head or -1)


def _short(name: str) -> str:
    """`blocks.1.mlp.W_out 3` as `1 W_out 3`: layer, matrix, component."""
    address, _, unit = name.partition(" ")
    site = Site.parse(address)
    head = "" if site.head is None else f"[{site.head}]"
    return f"{site.layer} {site.matrix}{head} {unit}"
