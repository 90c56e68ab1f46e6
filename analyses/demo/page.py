"""The demo as a page: its table, its figures and what to make of them."""

from collections.abc import Callable
from html import escape

import plotly.graph_objects as go

from analyses.demo.experiment import GAINS, W_OUT, Demo, Row
from analyses.plots.style import BLUE, COLOURS, GREY, VERMILION, figure

ANSWER, NOISE, QUIET = BLUE, VERMILION, "#b5b5b5"
WIDTH = 900
METRICS = {
    "p_correct": "p(correct)", "p_noise": "p(noise)", "accuracy": "accuracy",
    "accuracy_without_noise": "acc. without noise",
}  # fmt: skip


def figures(demo: Demo) -> dict[str, go.Figure]:
    """The figures by name, in the page's order."""
    made: dict[str, Callable[[Demo], go.Figure]] = {
        "probabilities": probabilities, "spectrum": spectrum, "found": found, "dial": dial,
    }  # fmt: skip
    return {name: make(demo) for name, make in made.items()}


def row_name(row: Row) -> str:
    """What a line of the table or a bar is called; a control stands under its edit."""
    match row.control:
        case None:
            return row.label
        case "same spectrum":
            return "control: W_out random, same spectrum"
        case control:
            return f"control: random components, {control}"


def probabilities(demo: Demo) -> go.Figure:
    """p(correct) and p(noise) on clean sequences, for every edit and, paler, its controls with their range."""
    places, draws = _places(demo), len(demo.rows[-1].scores)
    drawn = figure(
        "Removing one singular component removes the noise",
        f"pale: controls drawn at random, mean and range over {draws} draws",
        height=150 + 52 * len(places),
    )
    for metric, colour in (("p_correct", ANSWER), ("p_noise", NOISE)):
        means = [row.mean(metric) for row in demo.rows]
        drawn.add_bar(
            x=means, y=places, name=METRICS[metric], orientation="h",
            marker={"color": colour, "opacity": [0.4 if row.control else 1 for row in demo.rows]},
            error_x={
                "type": "data", "symmetric": False, "thickness": 1.6, "width": 0, "color": "#333",
                "array": [max(row.values(metric)) - mean for row, mean in zip(demo.rows, means, strict=True)],
                "arrayminus": [mean - min(row.values(metric)) for row, mean in zip(demo.rows, means, strict=True)],
            },
            text=["" if row.control else f"{mean:.3f}" for row, mean in zip(demo.rows, means, strict=True)],
            textposition="outside", textfont_size=11, cliponaxis=False,
            hovertemplate="%{y}<br>%{x:.3f}<extra>" + METRICS[metric] + "</extra>",
        )  # fmt: skip
    names = [row_name(row) if row.control else f"<b>{row_name(row)}</b>" for row in demo.rows]
    drawn.update_layout(width=WIDTH, barmode="group", bargap=0.2, legend_traceorder="normal")
    drawn.update_xaxes(title="probability, mean over scored positions of clean sequences", range=[0, 1.06])
    return drawn.update_yaxes(
        autorange="reversed", tickvals=places, ticktext=names, ticks="", ticklabelstandoff=8, showgrid=False
    )


def spectrum(demo: Demo) -> go.Figure:
    """The singular values of W_out, the top one marked."""
    strengths = demo.spectrum.tolist()
    share = strengths[0] ** 2 / sum(s**2 for s in strengths)
    drawn = figure(f"Singular values of {W_OUT}", f"component 0 has {share:.1%} of the energy, Σ s²", height=340)
    colours = [NOISE] + [QUIET] * (len(strengths) - 1)
    drawn.add_bar(
        x=list(range(len(strengths))), y=strengths, marker={"color": colours, "line_width": 0}, showlegend=False
    )
    drawn.update_layout(width=WIDTH).update_xaxes(title="component", showgrid=False)
    return drawn.update_yaxes(title="singular value")


def found(demo: Demo) -> go.Figure:
    """The exact effect on p(noise) of removing single components, against their strength."""
    frame = demo.exact.to_dataframe().dropna(subset="effect")
    count = sum(len(units) for units in demo.estimated.units.values())
    title = f"The {len(frame)} of {count} components that one gradient ranks first"
    drawn = figure(title, "each removed by itself, exactly; bars: standard error over sequences", height=460)
    for (site, part), colour in zip(frame.groupby("site", sort=False), COLOURS, strict=False):
        drawn.add_scatter(
            x=part["strength"], y=part["effect"], mode="markers", name=str(site), customdata=part["component"],
            error_y={"type": "data", "array": part["stderr"], "thickness": 1, "width": 0},
            marker={"size": 9, "color": colour},
            hovertemplate="component %{customdata}<br>s = %{x:.3f}<br>%{y:.4f}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    best = frame.loc[frame["effect"].idxmin()]
    name = f"<b>{best['site']}, component {best['component']}</b>"
    drawn.add_annotation(x=best["strength"], y=best["effect"], text=name, ax=-130, ay=-28)
    drawn.update_layout(width=WIDTH).update_xaxes(title="singular value")
    return drawn.update_yaxes(title="effect of removal on p(noise)")


def dial(demo: Demo) -> go.Figure:
    """The probabilities against the gain of W_out's top component."""
    drawn = figure("One dial: the gain of W_out's top component", "0 removes it, 1 leaves the model as trained")
    for metric, colour in (("p_correct", ANSWER), ("p_noise", NOISE), ("accuracy_without_noise", GREY)):
        drawn.add_scatter(
            x=GAINS, y=[getattr(scores, metric) for scores in demo.dial], mode="lines+markers", name=METRICS[metric],
            line={"color": colour, "dash": "dot" if colour == GREY else "solid"},
        )  # fmt: skip
    drawn.add_vline(x=1, line_width=1, line_dash="dash", line_color="#999")
    drawn.update_layout(width=WIDTH).update_xaxes(title="gain of component 0")
    return drawn.update_yaxes(title="probability or fraction", range=[-0.03, 1.05])


def page(demo: Demo) -> str:
    """The whole page, in one file that needs nothing else."""
    shown = figures(demo)
    config = {"displayModeBar": False, "responsive": True}
    parts = {
        name: figure.to_html(full_html=False, include_plotlyjs=index == 0, config=config, div_id=name)
        for index, (name, figure) in enumerate(shown.items())
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
{_table(demo)}
<p><b>What to read off.</b> It matters <em>which</em> component goes: taking out another one, or several of the same
energy, changes little, unless a draw happens to hold that very one. It matters <em>which end</em> of the spectrum
stays: the usual low-rank approximation keeps the top and so keeps the noise (p(noise) {only.mean("p_noise"):.2f}).
Where nearly all of a matrix goes, the choice matters less: in W_in, random components do as well ({same_w_in:.2f}), and
one random component of W_out leaves about what removing the whole MLP leaves ({same_only:.2f}); there truncation only
switches the MLP off. The last column is the control on the claim: with the noise token left out of the choice, the full
model already answers right. Surgery removes noise; it adds no ability.</p>
{parts["spectrum"]}
{parts["found"]}
<p class="note">Each point is one singular component, removed by itself. The metric is p(noise) on
{len(demo.exact.measure.baseline)} clean sequences that no number above was taken from; bars are standard errors over
sequences. No one told the method where to look.</p>
{parts["dial"]}
<h2>What was checked</h2>
<ul class="checks">{"".join(_check(check.holds, check.claim, check.evidence) for check in demo.checks)}</ul>
<h2>What an edit says of itself</h2>
<pre>{escape(demo.operation)}</pre>
<p class="note">Run on {escape(demo.host)}, seed {demo.seed}. Made by <code>python -m analyses.demo</code>.</p>
</body></html>
"""


def _places(demo: Demo) -> list[float]:
    """Where each row's bars stand: a gap before every edit."""
    places, at = [], 0.0
    for row in demo.rows:
        at += 1.0 if row.control else 1.35
        places.append(round(at, 2))
    return places


def _table(demo: Demo) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("", "components removed", *METRICS.values()))
    return f"<table><tr>{head}</tr>{''.join(map(_table_row, demo.rows))}</table>"


def _table_row(row: Row) -> str:
    cells = "".join(f"<td>{_cell(row, metric)}</td>" for metric in METRICS)
    kind = ' class="control"' if row.control else ""
    return f"<tr{kind}><th>{escape(row_name(row))}</th><td>{row.removed}</td>{cells}</tr>"


def _cell(row: Row, metric: str) -> str:
    values = row.values(metric)
    spread = f" <small>{min(values):.3f}–{max(values):.3f}</small>" if len(values) > 1 else ""
    return f"{row.mean(metric):.3f}{spread}"


def _check(holds: bool, claim: str, evidence: str) -> str:
    mark = "✓" if holds else "✗"
    return f'<li class="{"good" if holds else "bad"}">{mark} {escape(claim)} <small>({escape(evidence)})</small></li>'


_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1.2em; color: #222; }
h1 { font-size: 1.7em; margin-bottom: .2em; } h2 { font-size: 1.2em; margin-top: 1.6em; }
table { border-collapse: collapse; width: 100%; font-size: .86em; margin: 1em 0; }
th, td { padding: .3em .6em; text-align: right; border-bottom: 1px solid #e4e4e4; vertical-align: baseline; }
th:first-child { text-align: left; font-weight: 600; }
.control th:first-child { font-weight: 400; padding-left: 1.6em; } .control { color: #666; }
td small { display: block; color: #999; white-space: nowrap; }
.note { color: #666; font-size: .86em; } pre { background: #f6f6f6; padding: .8em; overflow-x: auto; font-size: .78em; }
.checks { list-style: none; padding: 0; } .checks small { color: #666; } .bad { color: #c00; font-weight: 600; }
"""
