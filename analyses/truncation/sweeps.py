"""Truncation over training: which matrices hold the noise, from which step on, and what takes it out.

Chen, Bruna, Bietti (arXiv:2406.03068). `sweep` crosses checkpoints with matrices and fractions ρ, on the noisy recall
experiment or on prompts and any TransformerLens models; `study` repeats the recall experiment over seeds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from analyses import recall
from analyses.recall.task import RecallTask
from analyses.recall.training import TrainingRun
from analyses.truncation.curves import RHOS, Curve, Source, curve
from analyses.truncation.prompts import Tracked
from analyses.truncation.recall import swept
from hooks import place_of
from surgery import sites as sites_of
from surgery.arguments import shown

Weights: TypeAlias = Mapping[str, Float[Tensor, "row column"]]
Checkpoints: TypeAlias = TrainingRun | Mapping[int, Weights | nn.Module | Callable[[], nn.Module]]
"""Training steps and what the model was then: weights as `recall.train` keeps them, a model, or a function that loads
one."""

RECALL_SITES = (
    "blocks.0.attn.W_V", "blocks.0.attn.W_O", "blocks.1.attn.W_V", "blocks.1.attn.W_O", "blocks.1.mlp.W_in",
    "blocks.1.mlp.W_out",
)  # fmt: skip
RECALL_STEPS = (0, 25, 50, 100, 150, 200, 250, 300, 400)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Sweep:
    """Values over training steps and cuts, one row for each metric.

    Columns of `frame`: step, end (what was cut, see `truncation.curves.End`), site, rho, metric, value, stderr. On the
    recall experiment the metrics are those of `recall.evaluate` and, uncut, the attention probes; on prompts they are
    `p(name)`, `margin(name)` (logits of "correct" over the name) and `likeliest(name)`.
    """

    frame: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.frame.copy()

    @property
    def steps(self) -> tuple[int, ...]:
        """The training steps, rising."""
        return tuple(sorted(map(int, self.frame["step"].unique())))

    def of(self, metric: str, *, end: str = "full", site: str = "", rho: float | None = None) -> pd.Series:
        """A metric over training steps, under one cut.

        Raises:
            KeyError: if there is none.
        """
        frame = self.frame
        chosen = (frame["metric"] == metric) & (frame["end"] == end) & frame["site"].str.startswith(site)
        rows = frame.loc[chosen if rho is None else chosen & (frame["rho"] == rho)]
        if rows.empty or rows["step"].duplicated().any():
            found = "none" if rows.empty else f"{len(rows.groupby(['site', 'rho']))}"
            raise KeyError(
                f"metric={metric!r}, end={end!r}, site={site!r}, rho={rho!r} names {found} of the curves: metrics are "
                f"{', '.join(frame['metric'].unique())}; ends {', '.join(frame['end'].unique())}; name a site and a "
                "rho where there are several."
            )
        return rows.set_index("step")["value"].sort_index()

    def first_step(self, metric: str, above: float, *, end: str = "full", site: str = "") -> int | None:
        """The first step at which the metric reaches a value, None if it never does."""
        values = self.of(metric, end=end, site=site)
        return next((step for step in self.steps if values.loc[step] >= above), None)

    def __repr__(self) -> str:
        last = self.frame[self.frame["step"] == self.steps[-1]]
        shown = last.pivot_table(index=["site", "end", "rho"], columns="metric", values="value", sort=False)
        table = shown.to_string(float_format="{:.3f}".format)
        return f"truncation at steps {', '.join(map(str, self.steps))}; at the last:\n{table}"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Study:
    """The same sweep for several seeds, and how far the seeds spread."""

    sweeps: dict[int, Sweep]
    losses: dict[int, Float[Tensor, " step"]]

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each step, cut and metric: mean, lowest and highest over seeds."""
        frames = [sweep.frame.assign(seed=seed) for seed, sweep in self.sweeps.items()]
        by = ["step", "end", "site", "rho", "metric"]
        values = pd.concat(frames).groupby(by, sort=False)["value"]
        return values.agg(["mean", "min", "max"]).reset_index()

    def at(
        self, metric: str, step: int, *, end: str = "full", site: str = "", rho: float | None = None
    ) -> dict[int, float]:
        """A metric's value at one step, by seed."""
        cut = {"end": end, "site": site, "rho": rho}
        return {seed: sweep.of(metric, **cut).to_dict()[step] for seed, sweep in self.sweeps.items()}

    def __repr__(self) -> str:
        frame = self.to_dataframe()
        last = frame[frame["step"] == frame["step"].max()]
        triples = zip(last["mean"], last["min"], last["max"], strict=True)
        wide = last.assign(value=[f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in triples])
        index = ["site", "end", "rho"]
        shown = wide.pivot_table(index=index, columns="metric", values="value", aggfunc="first", sort=False).fillna("")
        seeds = ", ".join(map(str, self.sweeps))
        return f"mean and range over seeds {seeds} at step {frame['step'].max()}\n{shown.to_string()}"


def sweep(
    checkpoints: Checkpoints,
    task: RecallTask | Source,
    sites: str | Iterable[str] = RECALL_SITES,
    rhos: Sequence[float | int] = RHOS,
    *,
    track: Mapping[str, Tracked] | None = None,
    generic: str | int | None = None,
    prepend_bos: bool | None = None,
    sequences: int = 128,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Sweep:
    """Every checkpoint under every cut: nothing, an MLP dropped, each matrix at each ρ, its top component dropped.

    On a `RecallTask`, clean sequences (α = 0) made from `seed`, the same for all, so that differences are paired; the
    checkpoints are weights as `recall.train(..., checkpoints=...)` keeps them, or models of `recall.model`. On
    prompts, the checkpoints are models, or functions that load them, one at a time:

        load = HookedTransformer.from_pretrained_no_processing
        checkpoints = {step: partial(load, "pythia-70m", checkpoint_value=step) for step in (512, 8000, 143000)}

    Args:
        checkpoints: by training step.
        task: the recall experiment, or prompts, texts, token ids or a task as `truncation.curve` takes them.
        sites: matrices to cut, one at a time.
        rhos: fractions of the full rank, 0 to 1.
        track: what is tracked after prompts.
        generic: short for `track={"generic": ...}`.
        prepend_bos: of prompts; overrides `model.cfg.default_prepend_bos`.
        sequences: of the recall experiment.

    Raises:
        ValueError: if there are no checkpoints, they have other shapes than the first, weights come with prompts, or as
            `truncation.curve`.
        SiteError: if a pattern names no editable matrix.
    """
    held = dict(checkpoints.checkpoints if isinstance(checkpoints, TrainingRun) else checkpoints)
    if not held:
        raise ValueError(
            "there are no checkpoints: give {training step: weights or model}, or train with checkpoints=(0, 50, ...)."
        )
    if isinstance(task, RecallTask) and (track or generic is not None or prepend_bos is not None):
        raise ValueError(
            "track, generic and prepend_bos are given with a RecallTask, which says by itself what is tracked: they go "
            "with prompts. Leave them out."
        )
    if isinstance(sites, Mapping) or not isinstance(sites, Iterable):
        raise TypeError(f"sites={shown(sites)}: give a pattern of matrices, or a list of patterns.")
    patterns = [sites] if isinstance(sites, str) else list(sites)
    shapes: dict[int, dict[str, tuple[int, int]]] = {}
    frames = []
    for step in tqdm(sorted(held), desc="checkpoints", delay=1, disable=not progress):
        if isinstance(task, RecallTask):
            weights = _weights(held[step])
            _same_shapes(shapes, step, {name: (W.shape[0], W.shape[1]) for name, W in weights.items()})
            frame = swept(weights, task, patterns, rhos, sequences=sequences, seed=seed, batch_size=batch_size)
        else:
            model = _model(held[step], step)
            places = {site: place_of(model, site) for site in sites_of(model, patterns)}
            _same_shapes(shapes, step, {site: (place.d_in, place.d_out) for site, place in places.items()})
            settings = {"track": track, "generic": generic, "prepend_bos": prepend_bos}
            frame = _long(curve(model, task, patterns, rhos=rhos, batch_size=batch_size, progress=False, **settings))
        frames.append(frame.assign(step=step))
    columns = ["step", "end", "site", "rho", "metric", "value", "stderr"]
    return Sweep(pd.DataFrame(pd.concat(frames, ignore_index=True), columns=columns))


def study(
    task: RecallTask,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    mlps: tuple[bool, bool] = (False, True),
    d_model: int = 128,
    steps: int = 400,
    checkpoints: Iterable[int] = RECALL_STEPS,
    batch: int = 64,
    sites: str | Iterable[str] | None = None,
    rhos: Sequence[float | int] = (0.01, 0.05, 0.2),
    sequences: int = 128,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Study:
    """The noisy recall experiment from the start, once for every seed: train with checkpoints, then sweep.

    A seed draws the initial weights and the training sequences; the task is the same for all. `mlps` says which blocks
    have an MLP, none for the control. Training is cached and resumable, as in `recall.train`.

    Raises:
        ValueError: if there are no seeds, or as `recall.train` and `sweep`.
    """
    if isinstance(seeds, int | str) or not seeds:
        raise ValueError(f"seeds={seeds!r}: give one or more in a list, for instance (0, 1, 2).")
    wanted = sorted({step for step in checkpoints if step <= steps} | {steps})
    chosen = sites if sites is not None else [s for s in RECALL_SITES if any(mlps) or ".mlp." not in s]
    sweeps, losses = {}, {}
    for seed in seeds:
        made = recall.bridge(task, d_model=d_model, mlps=mlps, seed=seed)
        run = recall.train(
            made, task, steps=steps, batch=batch, seed=seed, checkpoints=wanted, cache=cache, progress=progress
        )
        sweeps[seed] = sweep(run, task, chosen, rhos, sequences=sequences, progress=progress)
        losses[seed] = run.losses
    return Study(sweeps, losses)


def _weights(held: Weights | nn.Module | Callable[[], nn.Module]) -> dict[str, Tensor]:
    if isinstance(held, Mapping):
        return dict(held)
    return recall.weights(held if isinstance(held, nn.Module) else held())


def _model(held: Weights | nn.Module | Callable[[], nn.Module], step: int) -> nn.Module:
    if isinstance(held, Mapping):
        raise ValueError(
            f"checkpoint {step} holds weights, and prompts need a model to run: give a model or a function that loads "
            "one, or a RecallTask in place of the prompts."
        )
    return held if isinstance(held, nn.Module) else held()


def _same_shapes(seen: dict[int, dict[str, tuple[int, int]]], step: int, shapes: dict[str, tuple[int, int]]) -> None:
    """Remember the first checkpoint's shapes, and refuse another's that differ from them."""
    first = next(iter(seen), None)
    if first is None:
        seen[step] = shapes
        return
    other = next((name for name in {**seen[first], **shapes} if seen[first].get(name) != shapes.get(name)), None)
    if other is not None:
        raise ValueError(
            f"checkpoint {step} has {other} of shape {shapes.get(other)}, checkpoint {first} "
            f"{seen[first].get(other)}: the "
            "checkpoints of a sweep are one model at several steps. Sweep other models by themselves."
        )


def _long(found: Curve) -> pd.DataFrame:
    """A curve as rows of metric, value and stderr."""
    frames = [
        found.frame.assign(
            metric=[f"{metric}({name})" for name in found.frame["name"]],
            value=found.frame[metric],
            stderr=found.frame.get(f"{metric}_stderr", torch.nan),
        )
        for metric in ("p", "margin", "likeliest")
    ]
    rows = pd.concat(frames)
    return rows.loc[rows["metric"] != "margin(correct)"]
