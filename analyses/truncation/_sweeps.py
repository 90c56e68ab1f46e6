"""Truncation over training: which matrices hold an association, from which step on, and what takes it out.

Chen, Bruna, Bietti (arXiv:2406.03068). A sweep crosses checkpoints with matrices and fractions ρ.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import pandas as pd
import torch
from torch import nn

import surgery
from analyses.engines import Loader, Work, Workers, carry_out
from analyses.toys.recall_task import RecallTask
from analyses.truncation._checkpoints import Checkpoint, Checkpoints, Shapes, by_step, model_of, refuse_other_shapes
from analyses.truncation._cuts import RHOS
from analyses.truncation._prompts import Tracked
from analyses.truncation._recall_sweeps import RECALL_SITES, recall_sweep
from analyses.truncation.curves import QUANTITIES, Curve, Source, curve
from analyses.truncation.results import Sweep
from hooks import place_of
from surgery.progress import progress_bar


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
    executor: Workers | None = None,
    progress: bool = True,
) -> Sweep:
    """Every checkpoint under every cut: nothing, an MLP dropped, each matrix at each ρ, its top component dropped.

    >>> from analyses import truncation
    >>> asked = {"track": {"correct": 1}, "rhos": (0.5,), "progress": False}
    >>> truncation.sweep({0: model, 10: model}, tokens, "blocks.1.mlp.W_in", **asked).steps
    (0, 10)

    With a `RecallTask` this is `recall_sweep`; `sequences` and `seed` are its arguments. On prompts, the checkpoints
    are models, or functions that load them, one at a time; `over_training` does so by name, and keeps what is finished.

    With `executor`, `analyses.engines.Workers(pool)`, checkpoints are worked on elsewhere, with the same results: each
    is then a loader, as in `{512: engines.Loader(load, "pythia-70m", checkpoint_value=512)}`, and no model is here.

    Args:
        checkpoints: by training step.
        task: the recall experiment, or prompts, texts, token ids or a task as `truncation.curve` takes them.
        sites: a pattern of matrices, or several; they are cut one at a time.
        rhos: fractions of the full rank, 0 to 1.
        track: names and tokens tracked after prompts.
        generic: short for `track={"generic": ...}`.
        prepend_bos: of prompts; overrides `model.cfg.default_prepend_bos`.

    Raises:
        ValueError: if there are no checkpoints, they have other shapes than the first, weights come with prompts, there
            are workers for what they cannot load, or as `truncation.curve`.
        WorkerError: if workers fail.
        SiteError: if a pattern names no editable matrix.
    """
    settings = {"rhos": rhos, "batch_size": batch_size, "progress": progress}
    if not isinstance(task, RecallTask):
        asked = {"track": track, "generic": generic, "prepend_bos": prepend_bos}
        return _prompt_sweep(checkpoints, task, sites, asked=asked, executor=executor, **settings)
    if track or generic is not None or prepend_bos is not None:
        raise ValueError(
            "track, generic and prepend_bos are given with a RecallTask, which says by itself what is tracked: they go "
            "with prompts. Leave them out."
        )
    if executor is not None:
        raise ValueError("executor= goes with prompts: a RecallTask's checkpoints are weights, which are not sent.")
    return recall_sweep(checkpoints, task, sites, sequences=sequences, seed=seed, **settings)


def _prompt_sweep(
    checkpoints: Checkpoints,
    source: Source,
    sites: str | Iterable[str],
    *,
    asked: Mapping,
    rhos: Sequence[float | int],
    batch_size: int,
    executor: Workers | None,
    progress: bool,
) -> Sweep:
    """A curve after the same prompts at every checkpoint."""
    by = _loadable(by_step(checkpoints), executor)
    patterns = sites if isinstance(sites, str | Mapping) or not isinstance(sites, Iterable) else list(sites)
    work = Sweeping(source, patterns, {**asked, "rhos": rhos, "batch_size": batch_size})
    frames: dict[int, pd.DataFrame] = {}
    shapes: dict[int, Shapes] = {}
    with progress_bar("checkpoints", progress=progress, total=len(by)) as bar:

        def keep(found: Seen) -> None:
            step, what = found
            if isinstance(what, pd.DataFrame):
                frames[step] = what
                bar.update()
            else:
                shapes[step] = what
                refuse_other_shapes(next(iter(shapes.items())), step, what)

        loaders = {step: one for step, one in by.items() if isinstance(one, Loader)}
        pieces = {step: step for step in by}
        carry_out(
            work, pieces, keep, here=lambda step: work.on(model_of(by[step]))(step), executor=executor, model=loaders
        )
    return Sweep.joined({step: frames[step] for step in by})


Seen: TypeAlias = tuple[int, Shapes | pd.DataFrame]
"""A step, and the shapes of its matrices or what is to be said of it."""


@final
@dataclass(frozen=True, slots=True)
class Sweeping(Work[int, Seen]):
    """What is asked of a checkpoint."""

    source: Source
    sites: str | Mapping | list
    asked: Mapping[str, object]

    def on(self, model: nn.Module) -> Callable[[int], Iterator[Seen]]:
        """As `Work.on`; shapes come first, so that they can be refused before anything is run."""

        def seen(step: int) -> Iterator[Seen]:
            yield step, shapes_of(model, self.sites)
            yield step, long_form(curve(model, self.source, self.sites, progress=False, **self.asked))  # type: ignore[arg-type]

        return seen


def _loadable(
    checkpoints: Mapping[int, Checkpoint], executor: Workers | None
) -> dict[int, nn.Module | Callable[[], nn.Module]]:
    """The checkpoints, if each is a model that can be run, or for workers a loader."""
    by: dict[int, nn.Module | Callable[[], nn.Module]] = {}
    for step, checkpoint in checkpoints.items():
        if isinstance(checkpoint, Mapping):
            raise ValueError(
                f"checkpoint {step} holds weights, and prompts need a model to run: give a model or a function that "
                "loads one, or a RecallTask in place of the prompts."
            )
        if executor is not None and not isinstance(checkpoint, Loader):
            raise ValueError(
                f"checkpoint {step} is a {type(checkpoint).__name__}, which is not sent to workers: give "
                "engines.Loader(function, arguments), of a function that they can import."
            )
        by[step] = checkpoint
    return by


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
