"""Figures of Eigenpruning: which components were removed, what that changed, and how the fraction was chosen."""

import plotly.graph_objects as go

from analyses.eigenpruning import Pruning
from analyses.eigenpruning.scores import ComponentScores
from analyses.plots.style import BLUE, GREY, INK, VERMILION, figure, panels


def scores(result: Pruning | ComponentScores) -> go.Figure:
    """Every component's score (nats) against its singular value; of a pruning, those removed in another colour.

    >>> task = tasks.Task("count", tuple(tasks.AnswerItem((n,), ((n + 1,),)) for n in range(12)))
    >>> scores = eigenpruning.attribute(model, task, "blocks.0.mlp.W_out", progress=False)
    >>> len(plots.eigenpruning.scores(scores).data[0].x)
    16
    """
    scored, selection = (result.attribution, result.chosen) if isinstance(result, Pruning) else (result, {})
    gone = {(site, i) for site, units in selection.items() for unit in units for i in unit}
    frame = scored.to_dataframe()
    removed = [key in gone for key in zip(frame["site"], frame["component"], strict=True)]
    chart = figure(f"Eigenpruning scores of {scored.n_components} components", f"{scored.n_examples} items")
    for name, colour, flag in (("kept", BLUE, False), ("removed", VERMILION, True)):
        rows = frame[[is_gone == flag for is_gone in removed]]
        labels = [f"{site}, component {i}" for site, i in zip(rows["site"], rows["component"], strict=True)]
        chart.add_scatter(
            x=rows["strength"],
            y=rows["score"],
            mode="markers",
            name=name,
            text=labels,
            marker={"color": colour, "size": 5},
        )
    chart.update_xaxes(title_text="singular value s_i")
    return chart.update_yaxes(title_text=f"score, {scored.reduce} over examples and positions (nats)")


def report(result: Pruning) -> go.Figure:
    """The accuracy of every variant on the held-out items, and beside it the change from "base" with its interval."""
    frame = result.to_dataframe()
    removed, n_items = f"{result.chosen.n_components} of {result.attribution.n_components}", frame["n_items"].iloc[0]
    titles = ("accuracy (fraction)", "change from base, 95 % interval")
    chart = panels(f"{removed} components removed", f"{n_items} held-out items", titles=titles)
    colours = [BLUE if name == "pruned" else GREY for name in frame["variant"]]
    chart.add_bar(
        x=frame["accuracy"], y=frame["variant"], orientation="h", marker_color=colours, name="accuracy", row=1, col=1,
        text=frame["accuracy"].map("{:.2f}".format), textposition="outside", cliponaxis=False,
    )  # fmt: skip
    changed = frame.iloc[1:]
    interval = {
        "symmetric": False,
        "array": changed["accuracy_high"] - changed["accuracy_change"],
        "arrayminus": changed["accuracy_change"] - changed["accuracy_low"],
        "color": INK,
    }
    chart.add_scatter(
        x=changed["accuracy_change"], y=changed["variant"], error_x=interval, mode="markers",
        marker={"color": colours[1:], "size": 8}, name="change", row=1, col=2,
    )  # fmt: skip
    chart.add_vline(x=0, line={"dash": "dot"}, row=1, col=2)  # type: ignore[arg-type]
    chart.update_xaxes(range=[0, 1.12], col=1).update_yaxes(autorange="reversed", showgrid=False)
    return chart.update_layout(showlegend=False)


def validation(result: Pruning) -> go.Figure:
    """Accuracy and log-loss on the validation part against the fraction removed.

    Raises:
        ValueError: if the fraction was given, not chosen.
    """
    if result.validation is None:
        raise ValueError(
            "the fraction was given, not chosen, so nothing was validated: prune with fraction='validation'."
        )
    chart = figure("Choosing the fraction", "on the validation part; dotted: chosen")
    for column, name, axis, colour in (
        ("accuracy", "accuracy (fraction)", "y", BLUE),
        ("log_loss", "log-loss (nats per token)", "y2", VERMILION),
    ):
        chart.add_scatter(
            x=result.validation["fraction"], y=result.validation[column], mode="lines+markers", name=name, yaxis=axis,
            line={"color": colour},
        )  # fmt: skip
    chart.add_vline(x=result.fraction, line={"dash": "dot"})
    return chart.update_layout(
        xaxis_title="fraction of components removed",
        yaxis_title="accuracy (fraction)",
        yaxis2={
            "title": "log-loss (nats per token)", "overlaying": "y", "side": "right", "showgrid": False,
            "tickmode": "auto",
        },
    )  # fmt: skip
