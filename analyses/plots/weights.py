"""Figures of weights: spectra, and what an operation leaves of each matrix."""

from collections.abc import Sequence

import plotly.graph_objects as go

from analyses.plots.style import BLUE, COLOURS, MATRIX_COLOURS, figure
from hooks import Site
from surgery import SVD, Decomposition, Decompositions, Operation
from surgery.ranks import noise_edge


def spectrum(decompositions: Decompositions | Decomposition) -> go.Figure:
    """The singular values of one or more matrices, strongest first, and where noise alone would end.

    The dashed line is `surgery.ranks.noise_edge`, shown for up to eight matrices in the basis SVD(); `components` of
    more matrices are told apart by shade, first to last.

    Raises:
        ValueError: if there is nothing to show.
    """
    entries = [decompositions] if isinstance(decompositions, Decomposition) else list(decompositions.values())
    if not entries:
        raise ValueError(
            "no matrix has been decomposed: there is nothing to show. Call surgery.decompose(model, pattern)."
        )
    states = ", ".join(dict.fromkeys(entry.weight_state for entry in entries))
    if len(entries) > len(COLOURS):
        drawn = _by_kind(entries, f"weights {states}; the fainter, the earlier the layer")
    else:
        what = entries[0].site if len(entries) == 1 else f"{len(entries)} matrices"
        drawn = figure(f"Singular values of {what}", f"weights {states}; dashed: noise edge", height=440)
        for entry, colour in zip(entries, COLOURS, strict=False):
            drawn.add_trace(_line(entry).update(name=entry.site, line={"color": colour, "width": 2}))
            if entry.basis == SVD():
                drawn.add_scatter(
                    x=[0, entry.n_components - 1],
                    y=2 * [noise_edge(entry.S, *entry.shape)],
                    mode="lines",
                    name=f"{entry.site}: noise edge",
                    legendgroup=entry.site,
                    showlegend=False,
                    line={"color": colour, "width": 1, "dash": "dash"},
                    hovertemplate="noise edge %{y:.4g}<extra></extra>",
                )
        drawn.update_layout(showlegend=len(entries) > 1)
    drawn.update_xaxes(title_text="component")
    return drawn.update_yaxes(title_text="strength s (singular value)", rangemode="tozero")


def _by_kind(entries: Sequence[Decomposition], subtitle: str) -> go.Figure:
    """Many spectra: a colour for each kind of matrix."""
    drawn = figure(f"Singular values of {len(entries)} matrices", subtitle, height=440)
    sites, seen = [Site.parse(entry.site) for entry in entries], set[str]()
    last = max(site.layer for site in sites)
    for site, entry in reversed(list(zip(sites, entries, strict=True))):  # the legend shows what is added first
        line = _line(entry).update(
            name=site.matrix,
            legendgroup=site.matrix,
            showlegend=site.matrix not in seen,
            line={"color": MATRIX_COLOURS[site.matrix], "width": 1.5},
            opacity=0.3 + 0.7 * (site.layer + 1) / (last + 1),
        )
        drawn.add_trace(line)
        seen.add(site.matrix)
    return drawn.update_layout(legend={"traceorder": "reversed"})


def _line(entry: Decomposition) -> go.Scatter:
    hover = f"{entry.site} %{{x}}: %{{y:.4g}}<extra></extra>"
    return go.Scatter(y=entry.S.tolist(), mode="lines", legendgroup=entry.site, hovertemplate=hover)


def operation(operation: Operation) -> go.Figure:
    """The share of the energy, the squared Frobenius norm, that an operation leaves each matrix; components kept.

    Gains above 1 can leave more than there was.
    """
    frame = operation.to_dataframe()
    names = [f"{site}  {_short(edit)}" for site, edit in zip(frame["site"], frame["edit"], strict=True)]
    drawn = figure(
        f"Energy kept in {len(frame)} matrices",
        "share of the squared Frobenius norm; on the bars: components kept, of how many",
        height=max(220, 130 + 24 * len(frame)),
    )
    percent = [100 * energy for energy in frame["energy"].tolist()]
    drawn.add_bar(
        x=percent,
        y=names,
        orientation="h",
        name="energy kept",
        marker={"color": BLUE, "line": {"width": 0}},
        text=[f"{kept} of {of}" for kept, of in zip(frame["kept"], frame["of"], strict=True)],
        textposition="auto",
        customdata=frame["relative_error"].tolist(),
        hovertemplate="%{y}: %{x:.1f} % of the energy, relative error %{customdata:.3f}<extra></extra>",
    )
    drawn.update_xaxes(title_text="energy kept (%)", range=[0, max(100, *percent)])
    return drawn.update_yaxes(type="category", autorange="reversed", showgrid=False, tickfont={"size": 11})


def _short(edit: str) -> str:
    return edit if len(edit) <= 32 else f"{edit[:30]}…"
