"""Pictures of Eigenpruning: what was removed and why, what it did, and how the fraction was chosen."""

import pandas as pd
import plotly.graph_objects as go

from analyses.eigenpruning import Pruning
from analyses.eigenpruning.scores import ComponentScores
from analyses.plots._style import BLUE, GREY, INK, VERMILION, figure, panels, reaching


def scores(result: Pruning | ComponentScores) -> go.Figure:
    """Every component's score against its singular value; of a pruning, those removed in another colour.

    >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(6)]
    >>> figure = plots.eigenpruning.scores(eigenpruning.attribute(model, items, progress=False))
    >>> [(trace.name, len(trace.x)) for trace in figure.data]
    [('kept', 32), ('removed', 0)]
    """
    attribution = result.attribution if isinstance(result, Pruning) else result
    chosen = result.chosen if isinstance(result, Pruning) else {}
    gone = {(site, i) for site, units in chosen.items() for unit in units for i in unit}
    frame = attribution.to_dataframe()
    removed = pd.Series([key in gone for key in zip(frame["site"], frame["component"], strict=True)])
    picture = figure(f"Eigenpruning scores of {attribution.n_components} components", f"{attribution.n_examples} items")
    for name, colour, rows in (("kept", BLUE, frame[~removed]), ("removed", VERMILION, frame[removed])):
        picture.add_scatter(
            x=rows["strength"], y=rows["score"], mode="markers", name=name, marker={"color": colour, "size": 5},
            text=[f"{site}, component {i}" for site, i in zip(rows["site"], rows["component"], strict=True)],
        )  # fmt: skip
    picture.update_xaxes(title_text="singular value s_i")
    score = f"score, {attribution.reduce} over {attribution.over}"
    return picture.update_yaxes(title_text=f"{score} ({attribution.effects.measure.unit})")


def report(result: Pruning) -> go.Figure:
    """The accuracy of every variant on the held-out items, and beside it the change from "base" with its interval.

    >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(20)]
    >>> figure = plots.eigenpruning.report(eigenpruning.prune(model, items, progress=False))
    >>> list(figure.data[0].y)[:2]
    ['base', 'pruned']
    """
    frame = result.to_dataframe()
    removed, n_items = f"{result.chosen.n_components} of {result.attribution.n_components}", frame["n_items"].iloc[0]
    titles = ("accuracy (fraction)", "change from base, 95 % interval")
    picture = panels(f"{removed} components removed", f"{n_items} held-out items", titles=titles)
    colours = [BLUE if name == "pruned" else GREY for name in frame["variant"]]
    picture.add_bar(
        x=frame["accuracy"], y=frame["variant"], orientation="h", marker_color=colours, name="accuracy", row=1, col=1,
        text=frame["accuracy"].map("{:.2f}".format), textposition="outside", cliponaxis=False,
    )  # fmt: skip
    changed = frame.iloc[1:]
    low, change, high = (changed[f"accuracy_{name}"] for name in ("low", "change", "high"))
    picture.add_scatter(
        x=change, y=changed["variant"], error_x={**reaching(low, change, high), "color": INK}, mode="markers",
        marker={"color": colours[1:], "size": 8}, name="change", row=1, col=2,
    )  # fmt: skip
    picture.add_vline(x=0, line={"dash": "dot"}, row=1, col=2)  # type: ignore[arg-type]
    picture.update_xaxes(range=[0, 1.12], col=1).update_yaxes(autorange="reversed", showgrid=False)
    return picture.update_layout(showlegend=False)


def validation(result: Pruning) -> go.Figure:
    """Accuracy and log-loss on the validation part against the fraction removed.

    Raises:
        ValueError: if the fraction was given, not chosen.

    >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(20)]
    >>> result = eigenpruning.prune(model, items, fraction=eigenpruning.Best((0, 0.2)), progress=False)
    >>> plots.eigenpruning.validation(result).data[0].x.tolist()
    [0.0, 0.2]
    """
    if result.validation is None:
        raise ValueError(
            "the fraction was given, not chosen, so nothing was validated: prune with fraction='validation'."
        )
    picture = figure("Choosing the fraction", "on the validation part; dotted: chosen")
    for column, name, axis, colour in (
        ("accuracy", "accuracy (fraction)", "y", BLUE),
        ("log_loss", "log-loss (nats per token)", "y2", VERMILION),
    ):
        picture.add_scatter(
            x=result.validation["fraction"], y=result.validation[column], mode="lines+markers", name=name, yaxis=axis,
            line={"color": colour},
        )  # fmt: skip
    picture.add_vline(x=result.fraction, line={"dash": "dot"})
    return picture.update_layout(
        xaxis_title="fraction of components removed",
        yaxis_title="accuracy (fraction)",
        yaxis2={
            "title": "log-loss (nats per token)", "overlaying": "y", "side": "right", "showgrid": False,
            "tickmode": "auto",
        },
    )  # fmt: skip
