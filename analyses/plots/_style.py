"""One look for every figure: readable at the width of a notebook, and to readers who do not tell red from green."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hooks.sites import Matrix

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
BLACK, BROWN, GREY, LIGHT, INK = "#000000", "#8C6D31", "#7F7F7F", "#E6E6E6", "#222222"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, BROWN)
"""Okabe and Ito's, without the yellow that is too light for lines; one for each series."""
MATRIX_COLOURS: dict[Matrix, str] = {
    "W_Q": BLUE, "W_K": SKY, "W_V": GREEN, "W_O": PURPLE, "W_in": BLACK, "W_gate": ORANGE, "W_out": VERMILION,
}  # fmt: skip

DIVERGING = [[0.0, "#B2182B"], [0.25, "#F4A582"], [0.5, "#F7F7F7"], [0.75, "#92C5DE"], [1.0, "#2166AC"]]
"""Red to blue through white: for signed values, centred on zero; blue is above it, as in TransformerLens."""
SEQUENTIAL = [[0.0, "#F7FBFF"], [0.25, "#C6DBEF"], [0.5, "#6BAED6"], [0.75, "#2171B5"], [1.0, "#08306B"]]
"""White to dark blue: for sizes."""

_AXIS = {
    "showline": True,
    "linecolor": GREY,
    "ticks": "outside",
    "tickcolor": GREY,
    "gridcolor": LIGHT,
    "zerolinecolor": GREY,
    "zerolinewidth": 1,
    "automargin": True,
    "title": {"standoff": 8, "font": {"size": 13}},
}

TEMPLATE = go.layout.Template(
    layout={
        "width": 700,
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        "title": {"x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 36, "l": 12}, "font": {"size": 15}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": COLOURS,
        "colorscale": {"diverging": DIVERGING, "sequential": SEQUENTIAL},
        "margin": {"l": 70, "r": 36, "t": 88, "b": 60},
        # Beneath the axes, where any number of rows pushes the axes up and covers neither title nor subtitle.
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "font": {"size": 12},
        },
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "bargap": 0.15,
        "hoverlabel": {"font": {"size": 12}},
    }
)
"""What every figure of `analyses.plots` is drawn with; `figure.update_layout(template=...)` changes one of them."""


def figure(title: str, subtitle: str, *, height: int = 440) -> go.Figure:
    """An empty figure with a title and, in smaller letters, what it was measured on."""
    return go.Figure(layout={"template": TEMPLATE, "title": {"text": heading(title, subtitle)}, "height": height})


def panels(title: str, subtitle: str, *, rows: int = 1, titles: Sequence[str], height: int = 440) -> go.Figure:
    """An empty figure of as many panels as there are titles."""
    grid = make_subplots(
        rows=rows, cols=len(titles) // rows, subplot_titles=titles, shared_yaxes=rows == 1, shared_xaxes=rows > 1,
        vertical_spacing=0.08,
    )  # fmt: skip
    layout = {"title": {"text": heading(title, subtitle)}, "height": height, "margin": {"t": 104}}
    return grid.update_layout(template=TEMPLATE, **layout).update_annotations(font_size=13)


def heading(title: str, subtitle: str) -> str:
    """A title in bold over a smaller line."""
    return f'<b>{title}</b><br><span style="font-size:12px">{subtitle}</span>'


def reaching(low: pd.Series, middle: pd.Series, high: pd.Series) -> dict[str, object]:
    """Error bars from the lower to the upper end of an interval around each value."""
    return {"symmetric": False, "array": high - middle, "arrayminus": middle - low}


def label(name: str, unit: str) -> str:
    """An axis title with its unit in brackets, if there is one."""
    return f"{name} ({unit})" if unit else name


def number(value: float, unit: str) -> str:
    """A value with its unit, in writing."""
    return f"{value:.4g} {unit}".strip()


def colour_bar(title: str) -> dict[str, object]:
    """The scale beside a heat map, with its title and unit along it."""
    return {
        # The empty line keeps the title off the tick labels, which it would touch (plotly 7.1).
        "title": {"text": f"<br>{title}", "side": "right", "font": {"size": 12}},
        "thickness": 14,
        "ticks": "outside",
        "ticklen": 4,
        "tickfont": {"size": 11},
        "outlinewidth": 0,
    }


def heat_map(
    z: Sequence[Sequence[float | None]],
    x: Sequence[str],
    y: Sequence[str],
    *,
    colours: str,
    signed: bool,
    text: Sequence[Sequence[str]] | None = None,
) -> go.Heatmap:
    """A heat map whose scale is centred on zero if signed; `colours` names it, with its unit."""
    return go.Heatmap(
        z=z,
        x=list(x),
        y=list(y),
        text=text,
        texttemplate=None if text is None else "%{text}",
        textfont={"size": 11},
        hovertemplate="%{y}, %{x}: %{z:.3g}<extra></extra>",
        hoverongaps=False,
        colorscale=DIVERGING if signed else SEQUENTIAL,
        zmid=0 if signed else None,
        zmin=None if signed else 0,
        colorbar=colour_bar(colours),
    )
