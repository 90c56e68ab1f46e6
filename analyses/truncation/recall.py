"""The noisy recall experiment under truncation and under single gradient steps, from its weights alone.

The model is two blocks without normalisation. A cut is made in the matrix by the gains that `surgery.apply` would use,
and only what comes after it is computed again, at the scored positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import final

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, relu

from analyses import recall
from analyses.recall.task import RecallBatch, RecallTask
from analyses.recall.training import scored_logits
from analyses.recall.transformer import EMBED, MLPS, POSITIONS, TRAINED, UNEMBED
from analyses.truncation.curves import Cut, cuts_of
from hooks import Site
from hooks.fingerprints import fingerprint
from surgery import SVD, Decomposition, svd
from surgery import sites as sites_of
from surgery.arguments import counted, number, whole
from surgery.arguments import seed as checked_seed
from surgery.specs import recompose

Weights = Mapping[str, Float[Tensor, "row column"]]

METRICS = ("p_correct", "p_noise", "accuracy", "accuracy_without_noise", "margin")
"""As in `recall.evaluate`: probabilities, fractions, and logit(ȳ) − logit(noise)."""
PROBES = ("previous_token", "previous_token_after_trigger", "answer", "noise", "answer_share", "noise_share")
"""As in `recall.attention_probes`, attention mass; here each with the word `attention_` before it."""


def swept(
    weights: Weights,
    task: RecallTask,
    patterns: Sequence[str],
    rhos: Sequence[float | int],
    *,
    sequences: int,
    seed: int,
    batch_size: int,
) -> pd.DataFrame:
    """A row for each cut and metric: end, site, rho, metric, value, stderr (over sequences).

    The attention probes are there for the uncut model only.

    Raises:
        ValueError: if the weights are not those of the task's model, or W_Q is to be cut, which is the identity here.
    """
    model = _model(weights, task)
    sites = [str(Site.parse(site).joint) for site in sites_of(model, patterns)]
    if any(site.endswith("W_Q") for site in sites):
        raise ValueError(
            f"{next(s for s in sites if s.endswith('W_Q'))} is the identity in this experiment, and is not cut: "
            "choose among W_K, W_V, W_O, W_in and W_out."
        )
    clean = task.sample(sequences, seed=seed, alpha=0.0).to(weights[EMBED].device)
    stages = _Stages(dict(weights), clean)
    decompositions = {site: _decomposition(weights[site], site) for site in sites}
    rows = []
    for cut in cuts_of(sites, rhos):
        values = _metrics(stages.logits(_edited(weights, cut, decompositions)), clean, task.noise_token)
        rows += [(cut.end, cut.site, cut.rho, name, *pair) for name, pair in zip(METRICS, values, strict=True)]
    probes = recall.attention_probes(model, task, sequences=sequences, seed=seed, batch_size=batch_size)
    rows += [("full", "", 1.0, f"attention_{name}", getattr(probes, name), probes.stderr[name]) for name in PROBES]
    return pd.DataFrame(rows, columns=["end", "site", "rho", "metric", "value", "stderr"])


def gradient_steps(
    checkpoints: Mapping[int, Weights],
    task: RecallTask,
    *,
    lr: float = 0.03,
    batch: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """What one gradient step on the feed-forward or on the attention matrices alone teaches, from each checkpoint.

    The gradient of the training loss (noisy sequences) is taken once; a step of `lr` then changes one half of the
    model, and fresh noisy sequences tell what it learned. Columns: step, part, gradient_norm, and the changes of
    noise_logit and answer_logit (logits over the mean logit), p_noise and p_correct, means over the scored positions.

    Source: the comparison of first gradient steps in arXiv:2406.03068, here with all matrices of both
    halves.

    Raises:
        ValueError: if there are no checkpoints, or a number is out of its range.
    """
    checked_seed(seed)
    if not checkpoints or not 0 < number(lr, "lr") < inf or whole(batch, "batch") < 1:
        raise ValueError(
            f"{counted(len(checkpoints), 'checkpoint')}, lr={lr!r}, batch={batch!r}: give one or more, a learning "
            "rate above 0 and a batch of 1 or more; take 0.03 and 256."
        )
    rows: list[tuple] = []
    for step in sorted(checkpoints):
        rows += _one_step(step, checkpoints[step], task, lr, batch, seed)
    columns = ["step", "part", "gradient_norm", "noise_logit", "answer_logit", "p_noise", "p_correct"]
    return pd.DataFrame(rows, columns=columns)


def _one_step(step: int, weights: Weights, task: RecallTask, lr: float, batch: int, seed: int) -> list[tuple]:
    on = [names for names in MLPS if any(bool(weights[name].any()) for name in names)]
    parts = {"feed-forward": [name for names in on for name in names], "attention": list(TRAINED)}
    device = weights[EMBED].device
    with torch.inference_mode(False), torch.enable_grad():
        moving = {name for names in parts.values() for name in names}
        W = {name: weight.detach().clone().requires_grad_(name in moving) for name, weight in weights.items()}
        noisy = task.sample(batch, seed=seed).to(device)
        cross_entropy(scored_logits(W, noisy.tokens, noisy.scored), noisy.targets[noisy.scored]).backward()
    fresh = task.sample(batch, seed=seed + 1).to(device)
    before = _learned(weights, fresh, task.noise_token)
    found = []
    for part, names in parts.items():
        if not names:
            continue
        gradients = {name: gradient for name in names if (gradient := W[name].grad) is not None}
        norm = float(sum(g.double().square().sum() for g in gradients.values()) ** 0.5)
        moved = {**weights, **{name: weights[name] - lr * gradient for name, gradient in gradients.items()}}
        found.append((step, part, norm, *(_learned(moved, fresh, task.noise_token) - before).tolist()))
    return found


@torch.no_grad()
def _learned(weights: Weights, batch: RecallBatch, noise_token: int) -> Float[Tensor, " quantity"]:
    """The noise's and the answer's logit over the mean logit, and their probabilities, at the scored positions."""
    logits = scored_logits(dict(weights), batch.tokens, batch.scored).double()
    answers = batch.answers[batch.scored][:, None]
    above, p = logits - logits.mean(1, keepdim=True), logits.softmax(1)
    quantities = [above[:, noise_token], above.gather(1, answers)[:, 0], p[:, noise_token], p.gather(1, answers)[:, 0]]
    return torch.stack([quantity.mean() for quantity in quantities])


def _model(weights: Weights, task: RecallTask) -> nn.Module:
    """A model that holds the weights."""
    if EMBED not in weights:
        raise ValueError(
            f"the weights hold no {EMBED}: give those of recall.weights(model) or recall.train(..., checkpoints=...)."
        )
    return recall.load(recall.bridge(task, d_model=weights[EMBED].shape[1]), weights)


def _decomposition(W: Float[Tensor, "d_in d_out"], site: str) -> Decomposition:
    return Decomposition(site, *svd.exact(W), SVD(), fingerprint(W), "raw")


def _edited(weights: Weights, cut: Cut, decompositions: Mapping[str, Decomposition]) -> tuple[str, dict[str, Tensor]]:
    """The name of the matrix that is cut ("" for none), and all weights with it."""
    if cut.edit is None:
        return "", dict(weights)
    decomposition = decompositions.get(cut.site) or _decomposition(weights[cut.site], cut.site)
    return cut.site, {**weights, cut.site: recompose(weights[cut.site], decomposition, cut.edit.gains(decomposition))}


@final
@dataclass(slots=True)
class _Stages:
    """The model in stages, of which the ones before a cut are computed once."""

    W: dict[str, Tensor]
    batch: RecallBatch
    _after_block_0: Tensor | None = None
    _mixed: Tensor | None = None
    _mid: Tensor | None = None

    @torch.no_grad()
    def logits(self, edited: tuple[str, dict[str, Tensor]]) -> Float[Tensor, "scored d_vocab"]:
        """The logits at the scored positions, in row order, with one matrix edited."""
        site, W = edited
        resid, mixed, mid = self._before(site, W)
        scored = resid[self.batch.scored]
        if mid is None:
            mid = scored + mixed @ W["blocks.1.attn.W_V"] @ W["blocks.1.attn.W_O"]
        if site == "":
            self._after_block_0, self._mixed, self._mid = resid, mixed, mid
        return (mid + _mlp(W, mid, 1)) @ W[UNEMBED]

    def _before(self, site: str, W: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The stream after block 0, what block 1 attends to, and the stream before its MLP where it is known."""
        known = self._after_block_0 is not None
        if known and site.startswith("blocks.1.mlp"):
            return self._after_block_0, self._mixed, self._mid  # type: ignore[return-value]
        if known and site in ("blocks.1.attn.W_V", "blocks.1.attn.W_O"):
            return self._after_block_0, self._mixed, None  # type: ignore[return-value]
        resid = self._after_block_0 if known and site.startswith("blocks.1") else self._block_0(W)
        assert resid is not None
        return resid, (_pattern(resid, resid @ W["blocks.1.attn.W_K"]) @ resid)[self.batch.scored], None

    def _block_0(self, W: dict[str, Tensor]) -> Float[Tensor, "batch pos d_model"]:
        tokens = self.batch.tokens
        resid = embedding(tokens, W[EMBED]) + W[POSITIONS][: tokens.shape[1]]
        attended = _pattern(resid, resid @ W["blocks.0.attn.W_K"]) @ resid
        resid = resid + attended @ W["blocks.0.attn.W_V"] @ W["blocks.0.attn.W_O"]
        return resid + _mlp(W, resid, 0)


def _pattern(
    queries: Float[Tensor, "batch pos d"], keys: Float[Tensor, "batch pos d"]
) -> Float[Tensor, "batch pos pos"]:
    scores = queries @ keys.mT / queries.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def _mlp(W: dict[str, Tensor], resid: Tensor, layer: int) -> Tensor:
    W_in, W_out = (W[name] for name in MLPS[layer])
    return relu(resid @ W_in) @ W_out if bool(W_out.any()) else torch.zeros_like(resid)


def _metrics(
    logits: Float[Tensor, "scored d_vocab"], batch: RecallBatch, noise_token: int
) -> list[tuple[float, float]]:
    """Mean over all scored positions, and its standard error over sequences, of each metric."""
    answers = batch.answers[batch.scored][:, None]
    own, noise, p = logits.gather(1, answers)[:, 0], logits[:, noise_token], logits.softmax(1)
    noiseless = logits.clone()
    noiseless[:, noise_token] = -torch.inf
    values = torch.stack([
        p.gather(1, answers)[:, 0],
        p[:, noise_token],
        (logits.argmax(1) == answers[:, 0]).to(p),
        (noiseless.argmax(1) == answers[:, 0]).to(p),
        own - noise,
    ]).double()  # fmt: skip
    return _by_sequence(values.cpu(), batch.scored.nonzero()[:, 0].cpu(), len(batch))


def _by_sequence(
    values: Float[Tensor, "metric scored"], sequence: Int[Tensor, " scored"], n: int
) -> list[tuple[float, float]]:
    """Means and their standard errors: a ratio estimator whose units are the sequences."""
    sums = torch.zeros(len(values), n, dtype=torch.float64).index_add_(1, sequence, values)
    counts = torch.bincount(sequence, minlength=n).double()
    means = sums.sum(1) / counts.sum()
    residual = sums - means[:, None] * counts
    stderr = (residual.square().sum(1) * n / max(n - 1, 1)).sqrt() / counts.sum()
    return list(zip(means.tolist(), stderr.tolist(), strict=True))
