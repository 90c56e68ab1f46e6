"""Pictures of the truncation study: probabilities against ρ and against training, with the spread over seeds."""

from itertools import cycle

import pandas as pd
import plotly.graph_objects as go

from analyses.plots._style import COLOURS, figure, panels, reaching
from analyses.truncation.curves import Curve
from analyses.truncation.results import Study, Sweep

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
    return drawn.update_yaxes(title_text=f"{metric} ({_UNITS.get(metric, 'fraction')})")


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
