"""Figures of searches: layer by ρ, rank curves, corrected against broken items, layer by task."""

from collections.abc import Sequence
from math import isnan

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.laser.composition import Composition
from analyses.laser.curves import RankCurve
from analyses.laser.results import SearchResult
from analyses.scoring import Comparison

_SCALE = "RdBu"
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

    Source: arXiv:2312.13558, figure 5.
    """
    if value not in _LABELS:
        raise ValueError(f"value={value!r}: a heat map shows one of {', '.join(_LABELS)}. Give one of them.")
    frame = _trials(result, value, change)
    panels = list(dict.fromkeys(zip(frame["matrix"], frame["panel"], strict=True)))
    titles = [f"{matrix} {panel}" for matrix, panel in panels]
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=titles, shared_yaxes=True)
    for column, (matrix, panel) in enumerate(panels, start=1):
        part = frame.loc[(frame["matrix"] == matrix) & (frame["panel"] == panel)]
        figure.add_trace(_heat(part, value), row=1, col=column)
        figure.update_xaxes(title_text="ρ, fraction of the rank", type="category", row=1, col=column)
    figure.update_yaxes(title_text="layer", dtick=1, col=1)
    what, unit = _LABELS[value]
    label = f"change of {unit}" if change else unit
    better = -1 if value == "log_loss" else 1
    axis: dict[str, object] = {"colorscale": _SCALE if better > 0 else f"{_SCALE}_r", "colorbar": {"title": label}}
    if change:
        axis["cmid"] = 0
    title = f"{what}{' against the unedited model' if change else ''}: {result.task}"
    return figure.update_layout(title=title, coloraxis=axis)


def rank_curve(curve: RankCurve) -> go.Figure:
    """Accuracy, log-loss, corrected and broken items against ρ, a line for each edit; dashed is the unedited model."""
    frame = curve.to_dataframe()
    titles = ("accuracy", "log-loss", "corrected (up) and broken (down)")
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.08)
    colours = _colours(frame["edit"].tolist())
    for edit, part in frame.sort_values("rho").groupby("edit", sort=False):
        name, colour = str(edit), colours[str(edit)]
        interval = {
            "type": "data",
            "array": part["high"] - part["change"],
            "arrayminus": part["change"] - part["low"],
            "symmetric": False,
        }
        shared = {"x": part["rho"], "mode": "lines+markers", "name": name, "legendgroup": name}
        kept = part["kept"].map("{} components kept".format)
        figure.add_trace(
            go.Scatter(y=part["accuracy"], error_y=interval, text=kept, line_color=colour, **shared), row=1, col=1
        )
        shared["showlegend"] = False
        figure.add_trace(go.Scatter(y=part["log_loss"], line_color=colour, **shared), row=2, col=1)
        figure.add_trace(go.Scatter(y=part["corrected"], line_color=colour, **shared), row=3, col=1)
        figure.add_trace(go.Scatter(y=-part["broken"], line_color=colour, **shared), row=3, col=1)
    for row, value in ((1, "unedited_accuracy"), (2, "unedited_log_loss")):
        figure.add_hline(y=float(frame[value].to_numpy(float)[0]), line_dash="dash", row=row, col=1)  # type: ignore[arg-type]
    for row, unit in ((1, "fraction of items"), (2, "nats per token"), (3, "items")):
        figure.update_yaxes(title_text=unit, row=row, col=1)
    figure.update_xaxes(title_text="ρ, fraction of the rank", row=3, col=1)
    return figure.update_layout(title=f"{curve.site} on {curve.unedited.encoded.task.name}", height=800)


def corrected_broken(
    results: SearchResult | Composition | Comparison | Sequence[SearchResult | Composition],
) -> go.Figure:
    """A bar up for the test items that an edit corrected and one down for those that it broke, for each result."""
    given = [results] if isinstance(results, SearchResult | Composition | Comparison) else list(results)
    tests = [(one.before.task.name, one) if isinstance(one, Comparison) else (one.task, one.test) for one in given]
    names = [f"{name}, {len(test.before)} items, p = {test.p_value:.2g}" for name, test in tests]
    corrected, broken = [len(test.corrected) for _, test in tests], [-len(test.broken) for _, test in tests]
    figure = go.Figure()
    figure.add_bar(x=names, y=corrected, name="corrected", marker_color="#2166ac")
    figure.add_bar(x=names, y=broken, name="broken", marker_color="#b2182b")
    figure.update_yaxes(title_text="test items")
    return figure.update_layout(title="test items corrected and broken", barmode="relative")


def layer_task(frame: pd.DataFrame) -> go.Figure:
    """Matrix by task: the best change of validation accuracy, from `laser.layer_task_map`."""
    sites, tasks = list(dict.fromkeys(frame["site"])), list(dict.fromkeys(frame["task"]))
    wide = frame.pivot(index="site", columns="task", values="gain").reindex(index=sites, columns=tasks)
    heat = go.Heatmap(x=tasks, y=sites, z=wide.to_numpy(float), coloraxis="coloraxis")
    axis = {"colorscale": _SCALE, "cmid": 0, "colorbar": {"title": "change of fraction of items"}}
    figure = go.Figure(heat).update_layout(title="best change of validation accuracy by one reduction", coloraxis=axis)
    return figure.update_xaxes(title_text="task").update_yaxes(title_text="matrix")


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


def _colours(names: Sequence[str]) -> dict[str, str]:
    palette = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")
    return {name: palette[i % len(palette)] for i, name in enumerate(dict.fromkeys(names))}
