"""Truncation over training: which matrices hold an association, from which step on, and what takes it out.

Chen, Bruna, Bietti (arXiv:2406.03068). A sweep crosses checkpoints with matrices and fractions ρ.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

import surgery
from analyses.toys.recall_task import RecallTask
from analyses.truncation._checkpoints import Checkpoints, Shapes, by_step, model_of, refuse_other_shapes
from analyses.truncation._cuts import RHOS
from analyses.truncation._prompts import Tracked
from analyses.truncation._recall_sweeps import RECALL_SITES, recall_sweep
from analyses.truncation.curves import QUANTITIES, Curve, Source, curve
from analyses.truncation.results import Sweep
from hooks import place_of


def sweep(
    checkpoints: Checkpoints,
    task: RecallTask | Source,
    sites: str | Iterable[str] = RECALL_SITES,
    *,
    rhos: Sequence[float | int] = RHOS,
    track: Mapping[str, Tracked] | None = None,
    generic: str | int | None = None,
    prepend_bos: bool | None = None,
    sequences: int = 128,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Sweep:
    """Every checkpoint under every cut: nothing, an MLP dropped, each matrix at each ρ, its top component dropped.

    >>> from analyses import truncation
    >>> asked = {"track": {"correct": 1}, "rhos": (0.5,), "progress": False}
    >>> truncation.sweep({0: model, 10: model}, tokens, "blocks.1.mlp.W_in", **asked).steps
    (0, 10)

    With a `RecallTask` this is `recall_sweep`; `sequences` and `seed` are its arguments. On prompts, the checkpoints
    are models, or functions that load them, one at a time; `over_training` does so by name, and keeps what is finished.

    Args:
        checkpoints: by training step.
        task: the recall experiment, or prompts, texts, token ids or a task as `truncation.curve` takes them.
        sites: a pattern of matrices, or several; they are cut one at a time.
        rhos: fractions of the full rank, 0 to 1.
        track: names and tokens tracked after prompts.
        generic: short for `track={"generic": ...}`.
        prepend_bos: of prompts; overrides `model.cfg.default_prepend_bos`.

    Raises:
        ValueError: if there are no checkpoints, they have other shapes than the first, weights come with prompts, or as
            `truncation.curve`.
        SiteError: if a pattern names no editable matrix.
    """
    settings = {"rhos": rhos, "batch_size": batch_size, "progress": progress}
    if not isinstance(task, RecallTask):
        asked = {"track": track, "generic": generic, "prepend_bos": prepend_bos}
        return _prompt_sweep(checkpoints, task, sites, asked=asked, **settings)
    if track or generic is not None or prepend_bos is not None:
        raise ValueError(
            "track, generic and prepend_bos are given with a RecallTask, which says by itself what is tracked: they go "
            "with prompts. Leave them out."
        )
    return recall_sweep(checkpoints, task, sites, sequences=sequences, seed=seed, **settings)


def _prompt_sweep(
    checkpoints: Checkpoints,
    source: Source,
    sites: str | Iterable[str],
    *,
    asked: Mapping,
    rhos: Sequence[float | int],
    batch_size: int,
    progress: bool,
) -> Sweep:
    """A curve after the same prompts at every checkpoint."""
    frames, first = {}, None
    patterns = sites if isinstance(sites, str | Mapping) or not isinstance(sites, Iterable) else list(sites)
    for step, checkpoint in tqdm(by_step(checkpoints).items(), desc="checkpoints", delay=1, disable=not progress):
        if isinstance(checkpoint, Mapping):
            raise ValueError(
                f"checkpoint {step} holds weights, and prompts need a model to run: give a model or a function that "
                "loads one, or a RecallTask in place of the prompts."
            )
        # Within one call, so that a model is gone before the next one is loaded.
        shapes, frames[step] = _at(checkpoint, source, patterns, asked, rhos, batch_size)
        first = first or (step, shapes)
        refuse_other_shapes(first, step, shapes)
    return Sweep.joined(frames)


def _at(
    checkpoint: nn.Module | Callable[[], nn.Module],
    source: Source,
    patterns: str | Iterable[str],
    asked: Mapping,
    rhos: Sequence[float | int],
    batch_size: int,
) -> tuple[Shapes, pd.DataFrame]:
    """The shapes of a checkpoint's matrices, and its curve as rows of metric, value and stderr."""
    model = model_of(checkpoint)
    result = curve(model, source, patterns, rhos=rhos, batch_size=batch_size, progress=False, **asked)
    return shapes_of(model, patterns), long_form(result)


def shapes_of(model: nn.Module, patterns: str | Iterable[str]) -> Shapes:
    """The shape of every matrix that the patterns name."""
    places = [place_of(model, site) for site in surgery.sites(model, patterns)]
    return {str(place.site): (place.d_in, place.d_out) for place in places}


def long_form(result: Curve) -> pd.DataFrame:
    """A curve as rows of metric, value and stderr."""
    frames = [
        result.frame.assign(
            metric=[f"{metric}({name})" for name in result.frame["name"]],
            value=result.frame[metric],
            stderr=result.frame.get(f"{metric}_stderr", torch.nan),
        )
        for metric in (*QUANTITIES, "likeliest")
    ]
    rows = pd.concat(frames)
    return rows.loc[rows["metric"] != "margin(correct)"]  # of "correct" over itself
