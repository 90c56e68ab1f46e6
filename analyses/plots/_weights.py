"""Figures of weights: spectra, and what an operation leaves of each matrix."""

from collections.abc import Sequence

import plotly.graph_objects as go
from torch import nn

from analyses.plots._style import BLUE, COLOURS, MATRIX_COLOURS, figure
from hooks import Site
from surgery import SVD, Decomposition, Decompositions, Operation, decompose
from surgery.ranks import noise_edge


def spectrum(source: Decompositions | Decomposition | nn.Module, sites: str | Sequence[str] | None = None) -> go.Figure:
    """The singular values of one or more matrices, strongest first, and where noise alone would end.

    The dashed line is `surgery.ranks.noise_edge`, shown for up to eight matrices in the basis SVD(); more matrices
    have a colour for each kind, fainter in earlier layers.

    Args:
        source: decompositions, or a model, whose matrices are decomposed (or looked up, if they were before).
        sites: of a model: a pattern of matrices, or several; all matrices by default.

    Raises:
        ValueError: if there is nothing to show, or `sites` are given with decompositions.

    >>> figure = plots.spectrum(model, "blocks.0.mlp.W_out")
    >>> [trace.name for trace in figure.data]
    ['blocks.0.mlp.W_out', 'blocks.0.mlp.W_out: noise edge']
    """
    if sites is not None and not isinstance(source, nn.Module):
        raise ValueError(
            f"sites={sites!r} with {type(source).__name__}: sites choose matrices of a model. Leave them out, or give "
            "the model."
        )
    match source:
        case Decomposition():
            entries = [source]
        case Decompositions():
            entries = list(source.values())
        case _:
            entries = list(decompose(source, "*" if sites is None else sites, progress=False).values())
    if not entries:
        raise ValueError(
            "no matrix has been decomposed: there is nothing to show. Call surgery.decompose(model, pattern)."
        )
    states = ", ".join(dict.fromkeys(entry.weight_state for entry in entries))
    if len(entries) > len(COLOURS):
        chart = _by_kind(entries, f"weights {states}; the fainter, the earlier the layer")
    else:
        chart = _by_matrix(entries, f"weights {states}; dashed: noise edge")
    chart.update_xaxes(title_text="component")
    return chart.update_yaxes(title_text="strength s (singular value)", rangemode="tozero")


def _by_matrix(entries: Sequence[Decomposition], subtitle: str) -> go.Figure:
    """Few spectra: a colour for each matrix, and the edge of the noise."""
    what = entries[0].site if len(entries) == 1 else f"{len(entries)} matrices"
    chart = figure(f"Singular values of {what}", subtitle, height=440)
    for entry, colour in zip(entries, COLOURS, strict=False):
        chart.add_trace(_line(entry).update(name=entry.site, line={"color": colour, "width": 2}))
        if entry.basis == SVD():
            chart.add_scatter(
                x=[0, entry.n_components - 1],
                y=2 * [noise_edge(entry.S, *entry.shape)],
                mode="lines",
                name=f"{entry.site}: noise edge",
                legendgroup=entry.site,
                showlegend=False,
                line={"color": colour, "width": 1, "dash": "dash"},
                hovertemplate="noise edge %{y:.4g}<extra></extra>",
            )
    return chart.update_layout(showlegend=len(entries) > 1)


def _by_kind(entries: Sequence[Decomposition], subtitle: str) -> go.Figure:
    """Many spectra: a colour for each kind of matrix."""
    chart = figure(f"Singular values of {len(entries)} matrices", subtitle, height=440)
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
        chart.add_trace(line)
        seen.add(site.matrix)
    return chart.update_layout(legend={"traceorder": "reversed"})


def _line(entry: Decomposition) -> go.Scatter:
    hover = f"{entry.site} %{{x}}: %{{y:.4g}}<extra></extra>"
    return go.Scatter(y=entry.S.tolist(), mode="lines", legendgroup=entry.site, hovertemplate=hover)


def operation(operation: Operation) -> go.Figure:
    """The share of the energy, the squared Frobenius norm, that an operation leaves each matrix; components kept.

    Gains above 1 can leave more than there was.

    >>> with surgery.apply(model, {"*.W_out": surgery.KeepTop(rank=4)}, progress=False) as operation:
    ...     list(plots.operation(operation).data[0].text)
    ['4 of 16', '4 of 16']
    """
    frame = operation.to_dataframe()
    names = [f"{site}  {_short(edit)}" for site, edit in zip(frame["site"], frame["edit"], strict=True)]
    chart = figure(
        f"Energy kept in {len(frame)} matrices",
        "share of the squared Frobenius norm; on the bars: components kept, of how many",
        height=max(220, 130 + 24 * len(frame)),
    )
    percent = [100 * energy for energy in frame["energy"].tolist()]
    chart.add_bar(
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
    chart.update_xaxes(title_text="energy kept (%)", range=[0, max(100, *percent)])
    return chart.update_yaxes(type="category", autorange="reversed", showgrid=False, tickfont={"size": 11})


def _short(edit: str) -> str:
    return edit if len(edit) <= 32 else f"{edit[:30]}…"
