"""Pictures of the truncation study: probabilities against ρ and against training, with the spread over seeds."""

from itertools import cycle, product
from typing import Literal

import pandas as pd
import plotly.graph_objects as go

from analyses.plots._style import COLOURS, DIVERGING, SEQUENTIAL, colour_bar, figure, panels, reaching
from analyses.truncation import TrainingStudy
from analyses.truncation.curves import Curve
from analyses.truncation.results import Study, Sweep

_PROMPT_UNITS = {
    "p": "probability",
    "log_p": "nats",
    "rank": "rank, 1 is the likeliest",
    "margin": "logits",
    "likeliest": "fraction of prompts",
}
_UNITS = {"margin": "logits", "p_correct": "probability", "p_noise": "probability"}


def curve(result: Curve, *, site: str | None = None) -> go.Figure:
    """Probability of each tracked token against ρ: the top ρ kept (solid) or dropped (dashed), and uncut (dotted).

    Raises:
        KeyError: if there is no such site.
    """
    sites = [site] if site is not None else list(dict.fromkeys(result.of()["site"]))
    title = "Truncation, by the fraction of the rank"
    drawn = panels(title, f"{result.n_prompts} prompts; dotted: uncut; bars: standard error", titles=sites, height=460)
    for column, matrix in enumerate(sites, 1):
        for name, colour in zip(result.frame["name"].unique(), cycle(COLOURS), strict=False):
            for end, dash in (("keep top", "solid"), ("drop top", "dash")):
                rows = result.of(name, end=end, site=matrix)  # type: ignore[arg-type]
                line = {"color": colour, "dash": dash}
                drawn.add_scatter(
                    x=rows["rho"], y=rows["p"], error_y={"array": rows["p_stderr"]}, mode="lines+markers", line=line,
                    name=f"p({name}), {end}", legendgroup=f"{name} {end}", showlegend=column == 1, row=1, col=column,
                )  # fmt: skip
            full = float(result.of(name, end="full")["p"].iloc[0])
            drawn.add_hline(y=full, line={"color": colour, "dash": "dot", "width": 1}, row=1, col=column)  # type: ignore[arg-type]
    drawn.update_xaxes(title_text="ρ (fraction of the rank)", range=[-0.02, 1.02])
    return drawn.update_yaxes(title_text="probability", range=[0, 1], col=1)


def training(
    result: Study | Sweep, metric: str = "p_noise", *, cuts: list[tuple[str, str, float | None]] | None = None
) -> go.Figure:
    """A metric against the training step, a line for each cut `(end, site, rho)`.

    For a study, the mean over seeds with their range. By default: uncut, each MLP dropped, and each matrix without its
    top component.

    Raises:
        KeyError: if there is no such curve.
    """
    sweeps = list(result.sweeps.values()) if isinstance(result, Study) else [result]
    cuts = cuts if cuts is not None else _default_cuts(sweeps[0].frame)
    spread = f"mean and range over {len(sweeps)} seeds" if len(sweeps) > 1 else "one seed"
    drawn = figure(f"{metric} over training", spread, height=460)
    for (end, site, rho), colour in zip(cuts, cycle(COLOURS), strict=False):
        values = pd.concat([sweep.of(metric, end=end, site=site, rho=rho) for sweep in sweeps], axis=1)
        name = " ".join([end, site] if rho is None else [end, site, f"ρ={rho:g}"]).strip()
        mean = values.mean(axis=1)
        bars = {**reaching(values.min(axis=1), mean, values.max(axis=1)), "width": 2}
        drawn.add_scatter(x=mean.index, y=mean, error_y=bars, mode="lines+markers", line={"color": colour}, name=name)
    drawn.update_xaxes(title_text="training step")
    unit = _UNITS.get(metric) or _PROMPT_UNITS.get(metric.partition("(")[0], "fraction")
    return drawn.update_yaxes(title_text=f"{metric} ({unit})")


def over_training(
    result: TrainingStudy,
    name: str = "generic",
    *,
    quantity: Literal["p", "log_p", "rank", "margin", "likeliest"] = "log_p",
    end: Literal["keep top", "drop top"] = "keep top",
    change: bool = True,
) -> go.Figure:
    """Layer by training step, a panel for each matrix and ρ: what cutting it does to a tracked word; blue is more.

    With `change`, the difference to the uncut model at the same step, else the value itself.

    Raises:
        KeyError: if the word is not tracked, or there is no such quantity or end.
    """
    frame = result.to_dataframe()
    about = frame.loc[(frame["name"] == name) & (frame["quantity"] == quantity)]
    rows = about.loc[about["end"] == end]
    if rows.empty:
        raise KeyError(
            f"there is no {quantity!r} of {name!r} under {end!r}: names are {', '.join(frame['name'].unique())}, "
            f"quantities {', '.join(frame['quantity'].unique())}, ends {', '.join(frame['end'].unique())}."
        )
    uncut = about.loc[about["end"] == "full"].set_index("step")["value"]
    rows = rows.assign(shown=rows["value"] - rows["step"].map(uncut) if change else rows["value"])
    matrices, rhos = list(dict.fromkeys(rows["matrix"])), sorted(rows["rho"].unique())
    steps, layers = [str(step) for step in result.sweep.steps], sorted(map(int, rows["layer"].unique()))
    titles = [f"{matrix}, ρ = {rho:g}" for rho in rhos for matrix in matrices]
    subtitle = f"{end} ρ of one matrix; {result.n_prompts} prompts{'; against the uncut model' if change else ''}"
    height = 150 + len(rhos) * max(110, 40 + 16 * len(layers))
    unit = _PROMPT_UNITS[quantity]
    drawn = panels(f"{quantity}({name}), {result.source}", subtitle, rows=len(rhos), titles=titles, height=height)
    for at, (rho, matrix) in enumerate(product(rhos, matrices)):
        part = rows.loc[(rows["rho"] == rho) & (rows["matrix"] == matrix)]
        cells = part.pivot(index="layer", columns="step", values="shown").reindex(index=layers)
        row, column = divmod(at, len(matrices))
        heat = go.Heatmap(
            x=steps, y=layers, z=cells.to_numpy(float), coloraxis="coloraxis",
            hovertemplate="layer %{y}, step %{x}: %{z:.4g}<extra></extra>",
        )  # fmt: skip
        drawn.add_trace(heat, row=row + 1, col=column + 1)
    drawn.update_xaxes(type="category", showgrid=False).update_xaxes(title_text="training step", row=len(rhos))
    drawn.update_yaxes(showgrid=False, dtick=max(1, len(layers) // 6)).update_yaxes(title_text="layer", col=1)
    scale = {"colorscale": DIVERGING, "cmid": 0} if change else {"colorscale": SEQUENTIAL}
    title = f"change ({unit})" if change else f"{quantity} ({unit})"
    return drawn.update_layout(coloraxis={**scale, "colorbar": colour_bar(title)})


def dynamics(result: Study | Sweep) -> go.Figure:
    """What is learned when: the noise, the answer, and the attention that finds it; a line a seed."""
    sweeps = list(result.sweeps.values()) if isinstance(result, Study) else [result]
    seeds = "one seed" if len(sweeps) == 1 else f"a line for each of {len(sweeps)} seeds"
    drawn = figure("The uncut model over training", f"probabilities and attention, {seeds}")
    metrics = ("p_noise", "p_correct", "accuracy_without_noise", "attention_answer", "attention_previous_token")
    for metric, colour in zip(metrics, COLOURS, strict=False):
        for number, sweep in enumerate(sweeps):
            values = sweep.of(metric)
            drawn.add_scatter(
                x=values.index, y=values, mode="lines+markers", line={"color": colour}, name=metric, legendgroup=metric,
                showlegend=number == 0,
            )  # fmt: skip
    drawn.update_xaxes(title_text="training step")
    return drawn.update_yaxes(title_text="probability, fraction, attention mass", range=[0, 1.02])


def gradient_steps(frame: pd.DataFrame) -> go.Figure:
    """What one gradient step on each half of the model does to the noise's and the answer's logit, by training step."""
    subtitle = "what it does to the logits of noise and answer"
    drawn = panels("One gradient step on one half of the model", subtitle, titles=["noise", "answer"])
    for column, quantity in enumerate(("noise_logit", "answer_logit"), 1):
        for (part, rows), colour in zip(frame.groupby("part", sort=False), cycle(COLOURS), strict=False):
            drawn.add_scatter(
                x=rows["step"], y=rows[quantity], mode="lines+markers", line={"color": colour}, name=str(part),
                legendgroup=str(part), showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    drawn.update_xaxes(title_text="training step")
    return drawn.update_yaxes(title_text="change of logit over the mean logit", col=1)


def _default_cuts(frame: pd.DataFrame) -> list[tuple[str, str, float | None]]:
    rows = frame.loc[frame["end"].isin(["full", "MLP dropped", "top component dropped"]), ["end", "site"]]
    return [(end, site, None) for end, site in dict.fromkeys(rows.itertuples(index=False, name=None))]
