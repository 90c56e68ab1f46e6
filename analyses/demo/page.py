"""The demo as a page: its table, its figures and what to make of them."""

from collections.abc import Callable
from html import escape

import plotly.graph_objects as go

from analyses.demo.experiment import GAINS, W_OUT, Demo, Row

ANSWER, NOISE, QUIET, HIGHLIGHT = "#1f77b4", "#d62728", "#b5b5b5", "#d62728"
METRICS = {
    "p_correct": "p(correct)", "p_noise": "p(noise)", "accuracy": "accuracy",
    "accuracy_without_noise": "acc. without noise",
}  # fmt: skip
_LAYOUT = {"template": "plotly_white", "font": {"size": 13}, "margin": {"l": 70, "r": 30, "t": 60, "b": 60}}


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
    figure = go.Figure()
    places = _places(demo)
    for metric, colour in (("p_correct", ANSWER), ("p_noise", NOISE)):
        means = [row.mean(metric) for row in demo.rows]
        figure.add_bar(
            x=means, y=places, name=METRICS[metric], orientation="h",
            marker={"color": colour, "opacity": [0.4 if row.control else 1 for row in demo.rows]},
            error_x={
                "type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": "#333",
                "array": [max(row.values(metric)) - mean for row, mean in zip(demo.rows, means, strict=True)],
                "arrayminus": [mean - min(row.values(metric)) for row, mean in zip(demo.rows, means, strict=True)],
            },
            text=["" if row.control else f"{mean:.3f}" for row, mean in zip(demo.rows, means, strict=True)],
            textposition="outside", textfont_size=11, cliponaxis=False,
            hovertemplate="%{y}<br>%{x:.3f}<extra>" + METRICS[metric] + "</extra>",
        )  # fmt: skip
    names = [("    " if row.control else "<b>") + row_name(row) + ("" if row.control else "</b>") for row in demo.rows]
    figure.update_layout(
        **_LAYOUT, title="Removing one singular component removes the noise", barmode="group", bargap=0.2,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right", "traceorder": "normal"},
    )  # fmt: skip
    figure.update_layout(margin_l=290, height=110 + 52 * len(places))
    figure.update_xaxes(title="probability, mean over scored positions of clean sequences", range=[0, 1.06])
    figure.update_yaxes(autorange="reversed", tickvals=places, ticktext=names)
    return figure


def spectrum(demo: Demo) -> go.Figure:
    """The singular values of W_out, the top one marked."""
    strengths = demo.spectrum.tolist()
    colours = [HIGHLIGHT] + [QUIET] * (len(strengths) - 1)
    figure = go.Figure(
        go.Bar(x=list(range(len(strengths))), y=strengths, marker={"color": colours, "line_width": 0}, showlegend=False)
    )
    share = strengths[0] ** 2 / sum(s**2 for s in strengths)
    figure.add_annotation(
        x=0, y=strengths[0], text=f"component 0: {share:.1%} of the energy", showarrow=True, ax=120, ay=22
    )
    figure.update_layout(**_LAYOUT, title=f"Singular values of {W_OUT}", height=340, bargap=0.15)
    figure.update_xaxes(title="component")
    figure.update_yaxes(title="singular value")
    return figure


def found(demo: Demo) -> go.Figure:
    """The exact effect on p(noise) of removing single components, against their strength."""
    frame = demo.exact.to_dataframe().dropna(subset="effect")
    figure = go.Figure()
    for site, part in frame.groupby("site", sort=False):
        figure.add_scatter(
            x=part["strength"], y=part["effect"], mode="markers", name=str(site), customdata=part["component"],
            error_y={"type": "data", "array": part["stderr"], "thickness": 1, "width": 0},
            marker={"size": 9},
            hovertemplate="component %{customdata}<br>s = %{x:.3f}<br>%{y:.4f}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    best = frame.loc[frame["effect"].idxmin()]
    name = f"<b>{best['site']}, component {best['component']}</b>"
    figure.add_annotation(x=best["strength"], y=best["effect"], text=name, ax=-130, ay=-28)
    count = sum(len(units) for units in demo.estimated.units.values())
    title = f"Attribution finds it: {len(frame)} of {count} components,<br>those that one gradient ranks first, exactly"
    figure.update_layout(
        **_LAYOUT, height=430, title=title,
        legend={"title": "", "font_size": 11},
    )  # fmt: skip
    figure.update_xaxes(title="singular value")
    figure.update_yaxes(title="effect of removal on p(noise)")
    figure.add_hline(y=0, line_width=1, line_color="#999")
    return figure


def dial(demo: Demo) -> go.Figure:
    """The probabilities against the gain of W_out's top component."""
    figure = go.Figure()
    for metric, colour in (("p_correct", ANSWER), ("p_noise", NOISE), ("accuracy_without_noise", QUIET)):
        figure.add_scatter(
            x=GAINS, y=[getattr(scores, metric) for scores in demo.dial], mode="lines+markers", name=METRICS[metric],
            line={"color": colour, "dash": "dot" if colour == QUIET else "solid"},
        )  # fmt: skip
    figure.add_vline(
        x=1, line_width=1, line_dash="dash", line_color="#999", annotation_text="as trained",
        annotation_position="bottom right",
    )  # fmt: skip
    figure.update_layout(**_LAYOUT, title="One dial: the gain of W_out's top component", height=360)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"})
    figure.update_xaxes(title="gain of component 0 (0 removes it, 1 leaves it)")
    figure.update_yaxes(title="probability or fraction", range=[-0.03, 1.05])
    return figure


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
    same_w_in = demo.row("W_in at ρ = .05", "same count").mean("p_correct")
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
<p><b>What to read off.</b> It matters <em>which</em> component: as many random ones, or random ones of the same
energy, change next to nothing unless a draw happens to hold that very one. It matters <em>which end</em> of the
spectrum: the usual low-rank approximation, which keeps the top, keeps exactly the noise (p(noise)
{only.mean("p_noise"):.2f}). In W_in, in contrast, it does not matter which components stay: as many random ones do as
well ({same_w_in:.2f}), so there truncation only weakens the MLP. And the last column is the control on the claim: with
the noise token left out of the choice, the full model already answers right. Surgery removes noise; it adds no
ability.</p>
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
