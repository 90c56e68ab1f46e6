"""The noisy recall model over its training, under every cut: when it learns the noise, and what takes it out.

Chen, Bruna, Bietti (arXiv:2406.03068).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import surgery
from analyses import recall
from analyses.toys.recall_model import Weights
from analyses.toys.recall_scores import fresh_batches, scores_from, sums_of_metrics
from analyses.toys.recall_task import RecallBatch, RecallTask
from analyses.toys.recall_training import AFTER_ATTENDING, attended, logits_after
from analyses.truncation._checkpoints import Checkpoint, Checkpoints, Shapes, by_step, model_of, refuse_other_shapes
from analyses.truncation._cuts import RHOS, cuts_of
from analyses.truncation.results import Study, Sweep
from hooks import Site
from hooks.weights import EMBED
from surgery.progress import progress_bar

RECALL_SITES = (
    "blocks.0.attn.W_V", "blocks.0.attn.W_O", "blocks.1.attn.W_V", "blocks.1.attn.W_O", "blocks.1.mlp.W_in",
    "blocks.1.mlp.W_out",
)  # fmt: skip
RECALL_STEPS = (0, 25, 50, 100, 150, 200, 250, 300, 400)


def recall_sweep(
    checkpoints: Checkpoints,
    task: RecallTask,
    sites: str | Iterable[str] = RECALL_SITES,
    *,
    rhos: Sequence[float | int] = RHOS,
    sequences: int = 128,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Sweep:
    """The scores of `recall.evaluate` at every checkpoint under every cut, and the attention probes without one.

    >>> from analyses import recall, truncation
    >>> task = recall.RecallTask.synthetic(d_vocab=9, n_ctx=16)
    >>> small = recall.bridge(task, d_model=8)
    >>> sweep = truncation.recall_sweep({0: small}, task, "blocks.1.mlp.W_out", rhos=(0.5,), sequences=8)
    >>> sweep.of("p_noise", end="MLP dropped").index.tolist()
    [0]

    The sequences are clean (α = 0) and follow from `seed`, the same for all, so that differences are paired. The
    checkpoints are weights as `recall.train(..., checkpoints=...)` keeps them, or models of `recall.model`.

    Raises:
        ValueError: if there are no checkpoints, they have other shapes than the first, the weights are not those of the
            task's model, W_Q is to be cut, which is the identity here, or a number is out of its range.
        SiteError: if a pattern names no editable matrix.
    """
    patterns = [sites] if isinstance(sites, str) else list(sites)
    settings = {"sequences": sequences, "seed": seed, "batch_size": batch_size}
    model, first, frames = None, None, {}
    for step, checkpoint in progress_bar("checkpoints", by_step(checkpoints).items(), progress=progress):
        weights = _weights(checkpoint)
        shapes: Shapes = {name: tuple(matrix.shape) for name, matrix in weights.items()}
        first = first or (step, shapes)
        refuse_other_shapes(first, step, shapes)
        model = recall.load(model or _empty(weights, task), weights)
        frames[step] = pd.concat([
            _under_cuts(model, task, _sites(model, patterns), rhos, fresh_batches(model, task, alpha=0.0, **settings)),
            _probes(recall.attention_probes(model, task, progress=False, **settings)),
        ])  # fmt: skip
    return Sweep.joined(frames)


def study(
    task: RecallTask,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    mlps: tuple[bool, bool] = (False, True),
    d_model: int = 128,
    steps: int = 400,
    checkpoints: Iterable[int] = RECALL_STEPS,
    batch_size: int = 64,
    sites: str | Iterable[str] | None = None,
    rhos: Sequence[float | int] = (0.01, 0.05, 0.2),
    sequences: int = 128,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Study:
    """The noisy recall experiment from the start, once for every seed: train with checkpoints, then sweep.

    >>> from analyses import recall, truncation
    >>> small = recall.RecallTask.synthetic(d_vocab=9, n_ctx=16)
    >>> settings = {"d_model": 8, "steps": 2, "sequences": 8, "sites": "blocks.1.mlp.W_out", "progress": False}
    >>> sorted(truncation.study(small, seeds=(0, 1), **settings).at("p_noise", 2))
    [0, 1]

    A seed draws the initial weights and the training sequences, of which each step takes `batch_size`; the task is the
    same for all. `mlps` says which blocks have an MLP, none for the control. Training is cached and resumable, as in
    `recall.train`.

    Raises:
        ValueError: if there are no seeds, or as `recall.train` and `recall_sweep`.
    """
    if isinstance(seeds, int | str) or not seeds:
        raise ValueError(f"seeds={seeds!r}: give one or more in a list, for instance (0, 1, 2).")
    wanted = sorted({step for step in checkpoints if step <= steps} | {steps})
    if sites is None:
        sites = [site for site in RECALL_SITES if any(mlps) or ".mlp." not in site]
    training = {"steps": steps, "batch_size": batch_size, "checkpoints": wanted, "cache": cache}
    sweeps, losses = {}, {}
    for seed in seeds:
        model = recall.bridge(task, d_model=d_model, mlps=mlps, seed=seed)
        run = recall.train(model, task, seed=seed, progress=progress, **training)
        sweeps[seed] = recall_sweep(run, task, sites, rhos=rhos, sequences=sequences, progress=progress)
        losses[seed] = run.losses
    return Study(sweeps, losses)


@torch.no_grad()
def _under_cuts(
    model: nn.Module, task: RecallTask, sites: Sequence[str], rhos: Sequence[float | int], batches: list[RecallBatch]
) -> pd.DataFrame:
    """The scores under every cut, computed from the cut matrix and the model's other ones."""
    weights, svds = recall.weights(model), surgery.decompose(model, sites, progress=False)
    before = [attended(weights, batch) for batch in batches]
    frames = []
    for cut in cuts_of(sites, rhos):
        with surgery.apply(model, cut.spec, svds=svds, progress=False) as operation:
            W = {**weights, cut.site: operation.weight(cut.site)} if cut.site else weights
        # The training's forward pass from the matrices: at the scored positions alone, so faster than the model's own,
        # and from block 1's values on where the cut leaves what is before them as it was.
        states = before if cut.site in ("", *AFTER_ATTENDING) else [attended(W, batch) for batch in batches]
        logits = (logits_after(W, *state) for state in states)
        sums = [sums_of_metrics(each, batch, task.noise_token) for each, batch in zip(logits, batches, strict=True)]
        frames.append(scores_from(sums, 0.0).to_dataframe().assign(end=cut.end, site=cut.site, rho=cut.rho))
    return pd.concat(frames)


def _probes(probes: recall.AttentionProbes) -> pd.DataFrame:
    """The attention probes as metrics of the uncut model, each with the word `attention_` before its name."""
    frame = probes.to_dataframe()
    named = frame.assign(metric="attention_" + frame["probe"], value=frame["mass"])
    return named.assign(end="full", site="", rho=1.0)


def _sites(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The matrices to cut, each over all of its one head."""
    sites = [str(Site.parse(site).joint) for site in surgery.sites(model, patterns)]
    queries = next((site for site in sites if site.endswith("W_Q")), None)
    if queries is not None:
        raise ValueError(
            f"{queries} is the identity in this experiment, and is not cut: choose among W_K, W_V, W_O, W_in and W_out."
        )
    return sites


def _weights(checkpoint: Checkpoint) -> Weights:
    return checkpoint if isinstance(checkpoint, Mapping) else recall.weights(model_of(checkpoint))


def _empty(weights: Weights, task: RecallTask) -> nn.Module:
    """A model of the task that the weights fit into, if they are the task's."""
    if EMBED not in weights:
        raise ValueError(
            f"the weights hold no {EMBED}: give those of recall.weights(model) or recall.train(..., checkpoints=...)."
        )
    return recall.bridge(task, d_model=weights[EMBED].shape[1], device=weights[EMBED].device)
