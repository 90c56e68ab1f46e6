"""The demo as a page: its table, its figures and what to make of them."""

from html import escape

import pandas as pd
import plotly.graph_objects as go

from analyses import plots
from examples.demo.experiment import GAINS, W_OUT, Demo, Row

ANSWER, NOISE, QUIET = plots.TEMPLATE.to_plotly_json()["layout"]["colorway"][:3]
WIDTH = 900
METRICS = {
    "p_correct": "p(correct)", "p_noise": "p(noise)", "accuracy": "accuracy",
    "accuracy_without_noise": "acc. without noise",
}  # fmt: skip


def figures(demo: Demo) -> dict[str, go.Figure]:
    """The figures by name, in the page's order."""
    made = {
        "probabilities": probabilities(demo),
        "spectrum": plots.spectrum(demo.decomposition),
        "found": plots.agreement(demo.estimated, demo.exact),
        "components": plots.components(demo.exact, W_OUT),
        "dial": dial(demo),
    }
    return {name: figure.update_layout(width=WIDTH) for name, figure in made.items()}


def row_name(row: Row) -> str:
    """What a line of the table or a bar is called; a control stands under its edit."""
    match row.control:
        case None:
            return row.label
        case "same spectrum":
            return "control: W_out random, same spectrum"
        case control:
            return f"control: random components, {control}"


def table(demo: Demo) -> pd.DataFrame:
    """The scores on clean sequences, as text: a row for each edit and, under it, for each of its controls."""
    columns = {"removed": [row.removed for row in demo.rows]}
    columns |= {name: [_cell(row.values(metric)) for row in demo.rows] for metric, name in METRICS.items()}
    names = [f"  {row_name(row)}" if row.control else row_name(row) for row in demo.rows]
    return pd.DataFrame(columns, index=pd.Index(names))


def probabilities(demo: Demo) -> go.Figure:
    """p(correct) and p(noise) on clean sequences, for every edit and, paler, its controls with their range."""
    title = "Removing one singular component removes the noise"
    subtitle = f"pale: controls drawn at random, mean and range over {len(demo.rows[-1].scores)} draws"
    figure = go.Figure(layout={"template": plots.TEMPLATE, "title": f"<b>{title}</b><br>{subtitle}"})
    for metric, colour in (("p_correct", ANSWER), ("p_noise", NOISE)):
        means = [row.mean(metric) for row in demo.rows]
        figure.add_bar(
            x=means, y=list(range(len(means))), name=METRICS[metric], orientation="h",
            marker={"color": colour, "opacity": [0.4 if row.control else 1 for row in demo.rows]},
            error_x={
                "type": "data", "symmetric": False, "thickness": 1.6, "width": 0,
                "array": [max(row.values(metric)) - mean for row, mean in zip(demo.rows, means, strict=True)],
                "arrayminus": [mean - min(row.values(metric)) for row, mean in zip(demo.rows, means, strict=True)],
            },
            text=["" if row.control else f"{mean:.3f}" for row, mean in zip(demo.rows, means, strict=True)],
            textposition="outside", cliponaxis=False,
        )  # fmt: skip
    names = [row_name(row) if row.control else f"<b>{row_name(row)}</b>" for row in demo.rows]
    figure.update_layout(height=150 + 52 * len(names), barmode="group", bargap=0.2)
    figure.update_xaxes(title="probability, mean over scored positions of clean sequences", range=[0, 1.06])
    return figure.update_yaxes(
        autorange="reversed", tickvals=list(range(len(names))), ticktext=names, ticklabelstandoff=8, showgrid=False
    )


def dial(demo: Demo) -> go.Figure:
    """The probabilities against the gain of W_out's top component."""
    title = "<b>One dial: the gain of W_out's top component</b><br>0 removes it, 1 leaves the model as trained"
    figure = go.Figure(layout={"template": plots.TEMPLATE, "title": title})
    for metric, colour in (("p_correct", ANSWER), ("p_noise", NOISE), ("accuracy_without_noise", QUIET)):
        values = [getattr(scores, metric) for scores in demo.dial]
        figure.add_scatter(x=GAINS, y=values, mode="lines+markers", name=METRICS[metric], line={"color": colour})
    figure.update_xaxes(title="gain of component 0")
    return figure.update_yaxes(title="probability or fraction", range=[-0.03, 1.05])


def page(demo: Demo) -> str:
    """The whole page, in one file that needs nothing else."""
    config = {"displayModeBar": False, "responsive": True}
    parts = {
        name: figure.to_html(full_html=False, include_plotlyjs=index == 0, config=config, div_id=name)
        for index, (name, figure) in enumerate(figures(demo).items())
    }
    without = demo.row("W_out: without its top component").mean("p_correct")
    full, only = demo.row("full model"), demo.row("W_out: only its top component")
    same_w_in, same_only = (
        demo.row(label, "same count").mean("p_correct") for label in ("W_in at ρ = .05", only.label)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>model-surgery: one component, one mistake</title>
<style>{_STYLE}</style></head><body>
<h1>One component, one mistake</h1>
<p>A two-block transformer was trained to recall: after a trigger token comes the answer that the same text gave before,
or, half of the time, always the same <em>noise token</em>. On clean text, where only the answer is right, it hedges:
p(correct) {full.mean("p_correct"):.2f}, p(noise) {full.mean("p_noise"):.2f}. Take the top singular component out of one
matrix, <code>{W_OUT}</code>, and p(correct) is {without:.2f}. Task and finding are those of
<a href="https://arxiv.org/abs/2406.03068">Chen, Bruna and Bietti</a>.</p>
{parts["probabilities"]}
<p class="note">Bars: means over {demo.row("full model").scores[0].positions:,} scored positions of
{demo.row("full model").scores[0].sequences} clean sequences; for controls, means over
{len(demo.rows[-1].scores)} random draws on {demo.rows[-1].scores[0].sequences} sequences, with the range from the
lowest to the highest draw.</p>
{table(demo).to_html(border=0)}
<p><b>What to read off.</b> It matters <em>which</em> component goes: taking out another one, or several of the same
energy, changes little, unless a draw happens to hold that very one. It matters <em>which end</em> of the spectrum
stays: the usual low-rank approximation keeps the top and so keeps the noise (p(noise) {only.mean("p_noise"):.2f}).
Where nearly all of a matrix goes, the choice matters less: in W_in, random components do as well ({same_w_in:.2f}), and
one random component of W_out leaves about what removing the whole MLP leaves ({same_only:.2f}); there truncation only
switches the MLP off. The last column is the control on the claim: with the noise token left out of the choice, the full
model already answers right. Surgery removes noise; it adds no ability.</p>
{parts["spectrum"]}
{parts["found"]}
<p class="note">Each point is one singular component of a trained matrix: its effect on p(noise) as one gradient
estimates it, against the effect of removing that component alone, on {len(demo.exact.measure.baseline)} clean sequences
that no number above was taken from. No one told the method where to look.</p>
{parts["components"]}
{parts["dial"]}
<h2>What was checked</h2>
<ul class="checks">{"".join(_check(check.holds, check.claim, check.evidence) for check in demo.checks)}</ul>
<h2>What an edit says of itself</h2>
<pre>{escape(demo.operation)}</pre>
<p class="note">Run on {escape(demo.host)}, seed {demo.seed}. Made by <code>python -m examples.demo</code>.</p>
</body></html>
"""


def _cell(values: list[float]) -> str:
    """The mean, and of several draws the range."""
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


def _check(holds: bool, claim: str, evidence: str) -> str:
    mark = "✓" if holds else "✗"
    return f'<li class="{"good" if holds else "bad"}">{mark} {escape(claim)} <small>({escape(evidence)})</small></li>'


_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1.2em; color: #222; }
h1 { font-size: 1.7em; margin-bottom: .2em; } h2 { font-size: 1.2em; margin-top: 1.6em; }
table { border-collapse: collapse; width: 100%; font-size: .86em; margin: 1em 0; }
th, td { padding: .3em .6em; text-align: right; border-bottom: 1px solid #e4e4e4; vertical-align: baseline; }
tbody th { text-align: left; white-space: pre; }
.note { color: #666; font-size: .86em; } pre { background: #f6f6f6; padding: .8em; overflow-x: auto; font-size: .78em; }
.checks { list-style: none; padding: 0; } .checks small { color: #666; } .bad { color: #c00; font-weight: 600; }
"""
