"""Figures of searches: layer by ρ, rank curves, corrected against broken items, layer by task."""

from collections.abc import Sequence
from itertools import cycle
from math import isnan

import pandas as pd
import plotly.graph_objects as go

from analyses.laser.compose import Composition
from analyses.laser.curves import RankCurve
from analyses.laser.search import SearchResult
from analyses.plots._style import BLUE, COLOURS, DIVERGING, VERMILION, colour_bar, figure, panels, reaching
from analyses.scoring import Comparison
from surgery.arguments import one_of

_LESS_IS_BLUE = [[1 - at, colour] for at, colour in reversed(DIVERGING)]
_LABELS = {
    "accuracy": ("validation accuracy", "fraction of items"),
    "log_loss": ("validation log-loss", "nats per token"),
}


def laser_heatmap(result: SearchResult, *, value: str = "accuracy", change: bool = True) -> go.Figure:
    """Layer by ρ, a panel for each matrix and edit: the accuracy (or `value="log_loss"`) of every single reduction.

    With `change`, the difference to the unedited model, on the items that a candidate has seen; blue is better. Edits
    without a ρ stand in a column of their own. Cells of candidates that a screened search gave up on rest on fewer
    items, which the hover text tells.

    Raises:
        ValueError: if `value` is neither of the two.

    Source: arXiv:2312.13558.
    """
    one_of(value, "value", _LABELS)
    frame = _trials(result, value, change)
    places = list(dict.fromkeys(zip(frame["matrix"], frame["panel"], strict=True)))
    what, unit = _LABELS[value]
    against = "against the unedited model" if change else "of every single reduction"
    titles = [f"{matrix} {panel}" for matrix, panel in places]
    drawn = panels(f"{result.task}: {what}", against, titles=titles)
    for column, (matrix, panel) in enumerate(places, start=1):
        part = frame.loc[(frame["matrix"] == matrix) & (frame["panel"] == panel)]
        drawn.add_trace(_heat(part, value), row=1, col=column)
        drawn.update_xaxes(title_text="ρ, fraction of the rank", type="category", row=1, col=column)
    drawn.update_yaxes(title_text="layer", dtick=1, col=1)
    scale = _LESS_IS_BLUE if value == "log_loss" else DIVERGING
    label = f"change of {unit}" if change else unit
    return drawn.update_layout(coloraxis=_axis(scale, label, signed=change))


def rank_curve(curve: RankCurve) -> go.Figure:
    """Change of accuracy, log-loss, corrected and broken items against ρ, a line for each edit; dashed is unedited."""
    frame = curve.to_dataframe()
    accuracy = float(frame["unedited_accuracy"].to_numpy(float)[0])
    titles = ("change of accuracy, with its 95 % interval", "log-loss", "corrected (up) and broken (down)")
    drawn = panels(
        f"{curve.site} on {curve.unedited.scores.task.name}", f"dashed: unedited, accuracy {accuracy:.3f}",
        rows=3, titles=titles, height=820,
    )  # fmt: skip
    colours = dict(zip(dict.fromkeys(frame["edit"].tolist()), cycle(COLOURS), strict=False))
    for edit, part in frame.sort_values("rho").groupby("edit", sort=False):
        name, colour = str(edit), colours[str(edit)]
        kept = zip(part["accuracy"], part["kept"], strict=True)
        texts = [f"accuracy {accuracy:.3f}, {n} components kept" for accuracy, n in kept]
        bars = reaching(*(pd.Series(part[name]) for name in ("low", "change", "high")))
        for row, values, about in (
            (1, part["change"], {"error_y": bars, "text": texts}),
            (2, part["log_loss"], {}),
            (3, part["corrected"], {}),
            (3, -part["broken"], {}),
        ):
            drawn.add_scatter(
                x=part["rho"], y=values, mode="lines+markers", line_color=colour, name=name, legendgroup=name,
                showlegend=row == 1, row=row, col=1, **about,
            )  # fmt: skip
    log_loss = float(frame["unedited_log_loss"].to_numpy(float)[0])
    for row, value in ((1, 0.0), (2, log_loss)):
        drawn.add_hline(y=value, line_dash="dash", row=row, col=1)  # type: ignore[arg-type]
    for row, unit in ((1, "fraction of items"), (2, "nats per token"), (3, "items")):
        drawn.update_yaxes(title_text=unit, row=row, col=1)
    return drawn.update_xaxes(title_text="ρ, fraction of the rank", row=3, col=1)


def corrected_broken(
    results: SearchResult | Composition | Comparison | Sequence[SearchResult | Composition],
) -> go.Figure:
    """A bar up for the test items that an edit corrected and one down for those that it broke, for each result."""
    given = [results] if isinstance(results, SearchResult | Composition | Comparison) else list(results)
    tests = [(one.before.task.name, one) if isinstance(one, Comparison) else (one.task, one.test) for one in given]
    corrected, broken = [len(test.corrected) for _, test in tests], [len(test.broken) for _, test in tests]
    names = [
        f"{name}, {len(test.before)} items<br>{up} corrected, {down} broken, p = {test.p_value:.2g}"
        for (name, test), up, down in zip(tests, corrected, broken, strict=True)
    ]
    drawn = figure("Test items corrected and broken", "p of McNemar's test")
    width = min(0.8, 0.2 * len(names))  # one result alone would be a slab
    drawn.add_bar(x=names, y=corrected, name="corrected", marker_color=BLUE, width=width)
    drawn.add_bar(x=names, y=[-n for n in broken], name="broken", marker_color=VERMILION, width=width)
    return drawn.update_yaxes(title_text="test items").update_layout(barmode="relative")


def frequency(table: pd.DataFrame) -> go.Figure:
    """Accuracy before and after an edit in each range of training frequency, from `laser.by_frequency`."""
    bounds = zip(table["from"], table["to"], table["items"], strict=True)
    ranges = [f"{low:g}{f' to {high:g}' if high > low else ''}<br>{n} items" for low, high, n in bounds]
    drawn = figure("Accuracy by training frequency", "bars: confidence interval over items")
    for name, colour in (("before", BLUE), ("after", VERMILION)):
        value = f"accuracy_{name}"
        # The interval of one cluster alone is everything: no bar is drawn that has no end.
        low, high = (pd.Series(table[f"{value}_{end}"]).clip(0, 1) for end in ("low", "high"))
        bars = reaching(low, pd.Series(table[value]), high)
        drawn.add_scatter(
            x=ranges, y=table[value], error_y=bars, mode="lines+markers", line_color=colour, name=name
        )  # fmt: skip
    drawn.update_xaxes(title_text="frequency of the fact", type="category")
    return drawn.update_yaxes(title_text="accuracy (fraction of items)", range=[-0.02, 1.02])


def layer_task(frame: pd.DataFrame) -> go.Figure:
    """Matrix by task: the best change of validation accuracy, from `laser.layer_task_map`."""
    sites, tasks = list(dict.fromkeys(frame["site"])), list(dict.fromkeys(frame["task"]))
    wide = frame.pivot(index="site", columns="task", values="gain").reindex(index=sites, columns=tasks)
    heat = go.Heatmap(x=tasks, y=sites, z=wide.to_numpy(float), coloraxis="coloraxis")
    axis = _axis(DIVERGING, "change of fraction of items", signed=True)
    drawn = figure("Best change of validation accuracy", "by one reduction of each matrix")
    drawn.add_trace(heat).update_layout(coloraxis=axis)
    return drawn.update_xaxes(title_text="task").update_yaxes(title_text="matrix")


def _trials(result: SearchResult, value: str, change: bool) -> pd.DataFrame:
    frame = result.to_dataframe()
    frame = frame.loc[(frame["split"] == "validation") & (frame["site"] != "")].copy()
    kinds = zip(frame["rho"].tolist(), frame["basis"].tolist(), frame["edit"].tolist(), strict=True)
    named = [(_panel(rho, basis, edit), edit if isnan(rho) else f"{rho:g}") for rho, basis, edit in kinds]
    frame["panel"], frame["column"] = [panel for panel, _ in named], [column for _, column in named]
    frame["shown"] = frame[value].astype(float)
    if change:
        scores = result.unedited.scores
        each = scores.correct.double() if value == "accuracy" else scores.log_loss
        frame["shown"] -= [each[:n].mean().item() for n in frame["n_items"]]
    return frame


def _panel(rho: float, basis: str, edit: str) -> str:
    if isnan(rho):
        return "other edits"
    return edit if basis == "SVD()" else "other bases"


def _heat(part: pd.DataFrame, value: str) -> go.Heatmap:
    columns = list(dict.fromkeys(part["column"]))
    layers = sorted(set(part["layer"]))
    best = part.sort_values("accuracy").drop_duplicates(["layer", "column"], keep="last")
    wide = {name: best.pivot(index="layer", columns="column", values=name).reindex(index=layers, columns=columns)
            for name in ("shown", value, "n_items", "edit")}  # fmt: skip
    texts = [
        [f"{edit}: {score:.3f} on {n} items" for edit, score, n in zip(*row, strict=True)]
        for row in zip(*(wide[name].to_numpy().tolist() for name in ("edit", value, "n_items")), strict=True)
    ]
    return go.Heatmap(
        x=columns, y=[int(layer) for layer in layers], z=wide["shown"].to_numpy(float), text=texts, hoverinfo="text",
        coloraxis="coloraxis",
    )  # fmt: skip


def _axis(scale: list[list[float | str]], label: str, *, signed: bool) -> dict[str, object]:
    return {"colorscale": scale, "colorbar": colour_bar(label), **({"cmid": 0} if signed else {})}
