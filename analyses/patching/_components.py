"""Patching each component's coordinate from one run into another, one component at a time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from analyses.attribution.ablations import Resampled
from analyses.attribution.question import ask, counterparts
from analyses.attribution.selections import Sites
from analyses.attribution.single_removals import measure_each
from analyses.metrics import Metric
from analyses.metrics.positions import Mask
from analyses.patching.patched import Direction, Patching
from analyses.prompts import Tokens
from surgery import Basis, Decompositions
from surgery.arguments import one_of, several


def by_component(
    model: nn.Module,
    clean_tokens: Tokens,
    corrupted_tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    sites: Sites = "*",
    *,
    direction: Direction = "denoising",
    positions: Literal["all", "each"] | Sequence[int] = "all",
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Patching:
    """The exact effect of patching each component by itself, between a clean and a corrupted run of the same length.

    At all positions together, at each position by itself (``"each"``), or at each of some columns by itself (a list).
    The metric is asked about the clean examples' answers in both directions. Noising at all positions is
    `by_ablation(..., replacement="resample", corrupted=corrupted_tokens)`.

    Rows of a forward pass hold one example under one patch, `batch_size` of them at a time, and only what comes after
    the matrix runs. `attention_mask` holds for both runs. Under hooks of your own, which act in both runs, patches run
    one at a time on the whole batch.

    Raises:
        ValueError: if clean and corrupted differ in number or length, `direction` or `positions` is something else, the
            metric gives the wrong shape or NaN, or as `ask`.
        SiteError: if a pattern names no editable matrix.

    >>> patched = patching.by_component(model, tokens, tokens.flip(0), metrics.logit(3), "W_out", progress=False)
    >>> patched["blocks.0.mlp.W_out"].shape
    torch.Size([16])
    """
    one_of(direction, "direction", get_args(Direction))
    question = ask(
        model, clean_tokens, metric, sites,
        basis=basis, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    other = counterparts(question, corrupted_tokens)
    columns = _columns(positions, question.examples.inputs.n_pos)
    if direction == "denoising":  # the corrupted rows run, and take the clean ones' coordinates
        question, other = question.on(other), question.examples.inputs.tokens
    source = Resampled(question, other)
    patched = measure_each(question, source, positions=columns, work="patching", progress=progress)
    measure = question.measure(patched.baseline)
    parts = tuple(
        question.effects(
            f"patching ({direction})",
            [patched.baseline],
            {site: [rows[:, n]] for site, rows in patched.effects.items()},
            passes=patched.passes + 1,
            intervention=f"patching, {'corrupted to clean' if direction == 'denoising' else 'clean to corrupted'}",
        )
        for n in range(1 if columns is None else len(columns))
    )
    if direction == "denoising":  # where a clean coordinate helps, a component is not harmful, nor helpful
        parts = tuple(replace(part, measure=replace(measure, higher_is_better=None)) for part in parts)
    reference = question.pooled(torch.cat(source.values)).detach().float().cpu()
    return Patching(direction, measure, reference, parts, columns)


def _columns(given: str | Sequence[int], n_pos: int) -> tuple[int, ...] | None:
    """The positions to patch one at a time, None for all at once."""
    if isinstance(given, str) and given in ("all", "each"):
        return None if given == "all" else tuple(range(n_pos))
    if isinstance(given, str):
        one_of(given, "positions", ("all", "each"))
    columns = several(given, "positions", least=-n_pos, most=n_pos - 1)
    return tuple(dict.fromkeys(at % n_pos for at in columns))
