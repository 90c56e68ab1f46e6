"""What a recall model gets right, what noise it predicts, and where its heads look."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from analyses.statistics import mean_and_stderr
from analyses.toys.recall_task import RecallBatch, RecallTask
from hooks import host_of
from surgery.arguments import whole
from surgery.progress import progress_bar

_UNITS = {
    "p_correct": "probability", "p_noise": "probability", "accuracy": "fraction", "accuracy_without_noise": "fraction",
    "margin": "logits",
}  # fmt: skip
_MASSES = ("previous_token", "previous_token_after_trigger", "answer", "noise", "answer_share", "noise_share")


@final
@dataclass(frozen=True, slots=True, repr=False)
class RecallScores:
    """Means over all scored positions: probability of the answer ȳ and of the noise token, how often ȳ is the argmax.

    `accuracy_without_noise` takes the argmax over all other tokens, `margin` is logit(ȳ) − logit(noise). `stderr` has
    each one's standard error over sequences, NaN for one sequence.
    """

    p_correct: float
    p_noise: float
    accuracy: float
    accuracy_without_noise: float
    margin: float
    stderr: dict[str, float]
    alpha: float
    sequences: int
    positions: int

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each metric: metric, value, stderr, unit."""
        rows = [(name, getattr(self, name), self.stderr[name], unit) for name, unit in _UNITS.items()]
        return pd.DataFrame(rows, columns=["metric", "value", "stderr", "unit"])

    def __repr__(self) -> str:
        about = f"recall on {self.sequences} sequences, alpha {self.alpha:g}, {self.positions} positions"
        rows = [f"  {name:<22} {getattr(self, name):.3f} ± {self.stderr[name]:.3f} {_UNITS[name]}" for name in _UNITS]
        return "\n".join([f"{about}; ± standard error", *rows])


@final
@dataclass(frozen=True, slots=True)
class AttentionProbes:
    """Where the two heads look, as attention mass (fractions of 1).

    Block 0 on the previous token: over all positions but the first, and over those that follow a trigger. Block 1 at
    the scored positions: on `answer`, the answers ȳ that followed the same trigger, and on `noise`, the noise tokens.
    `answer_share` and `noise_share` are what a head with equal weights would put there. `stderr` has each one's
    standard error over sequences.
    """

    previous_token: float
    previous_token_after_trigger: float
    answer: float
    noise: float
    answer_share: float
    noise_share: float
    stderr: dict[str, float]
    alpha: float
    sequences: int

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each probe: probe, mass, stderr."""
        rows = [(name, getattr(self, name), self.stderr[name]) for name in _MASSES]
        return pd.DataFrame(rows, columns=["probe", "mass", "stderr"])


class Sums(NamedTuple):
    """For every sequence, the sum of each quantity over its positions, and the number of these positions."""

    sums: Float[Tensor, "sequence quantity"]
    counts: Float[Tensor, "sequence quantity"]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: RecallTask,
    *,
    sequences: int = 512,
    seed: int = 0,
    alpha: float = 0.0,
    batch_size: int = 128,
    progress: bool = True,
) -> RecallScores:
    """How well the model recalls on fresh sequences, clean ones unless `alpha` is given; under an edit as without.

    >>> from analyses import recall
    >>> task = recall.RecallTask.synthetic()
    >>> scores = recall.evaluate(recall.bridge(task, d_model=8), task, sequences=4)
    >>> 0 < scores.p_correct < 1, scores.sequences
    (True, 4)

    The same seed gives the same sequences to every model, so differences between edits are paired.

    Raises:
        ValueError: if no trigger occurs twice in any sequence, or a number is out of its range.
    """
    batches = fresh_batches(model, task, sequences=sequences, seed=seed, alpha=alpha, batch_size=batch_size)
    sums = [
        sums_of_metrics(model(batch.tokens, return_type="logits")[batch.scored], batch, task.noise_token)
        for batch in progress_bar("evaluate", batches, progress=progress, leave=False)
    ]
    return scores_from(sums, alpha)


@torch.no_grad()
def attention_probes(
    model: nn.Module,
    task: RecallTask,
    *,
    sequences: int = 512,
    seed: int = 0,
    alpha: float | None = None,
    batch_size: int = 128,
    progress: bool = True,
) -> AttentionProbes:
    """The attention masses that show the induction circuit, on fresh sequences with the task's own α by default.

    >>> from analyses import recall
    >>> task = recall.RecallTask.synthetic()
    >>> recall.attention_probes(recall.bridge(task, d_model=8), task, sequences=4).to_dataframe().shape
    (6, 3)

    Raises:
        ValueError: if no trigger occurs twice in any sequence, or a number is out of its range.
    """
    alpha = task.alpha if alpha is None else alpha
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)]
    batches = fresh_batches(model, task, sequences=sequences, seed=seed, alpha=alpha, batch_size=batch_size)
    sums = []
    for batch in progress_bar("attention probes", batches, progress=progress, leave=False):
        _, cache = model.run_with_cache(batch.tokens, names_filter=names)  # type: ignore[operator]
        sums.append(_sums_of_masses(cache[names[0]][:, 0], cache[names[1]][:, 0], batch, task.noise_token))
    means, stderr = _ratio(_MASSES, sums)
    return AttentionProbes(**means, stderr=stderr, alpha=alpha, sequences=sequences)


def fresh_batches(
    model: nn.Module, task: RecallTask, *, sequences: int, seed: int, alpha: float, batch_size: int
) -> list[RecallBatch]:
    """New sequences on the model's device, `batch_size` at a time.

    Raises:
        ValueError: if no trigger occurs twice in any sequence, or a number is out of its range.
    """
    whole(sequences, "sequences", least=1)
    whole(batch_size, "batch_size", least=1)
    fresh = task.sample(sequences, seed=seed, alpha=alpha).to(host_of(model).device)
    if not bool(fresh.scored.any()):
        raise ValueError(
            f"no trigger occurs twice in any of the {sequences} sequences of {task!r}: nothing can be scored. Ask "
            f"for more sequences, longer ones (n_ctx), or more frequent triggers."
        )
    return [fresh[start : start + batch_size] for start in range(0, sequences, batch_size)]


def sums_of_metrics(logits: Float[Tensor, "scored d_vocab"], batch: RecallBatch, noise_token: int) -> Sums:
    """The metrics of `RecallScores`, from the logits at the batch's scored positions in row order."""
    logits, answers = logits.float(), batch.answers[batch.scored]
    p, noiseless = logits.softmax(-1), logits.clone()
    noiseless[:, noise_token] = -torch.inf
    own = logits.gather(1, answers[:, None])[:, 0]
    values = torch.stack([
        p.gather(1, answers[:, None])[:, 0],
        p[:, noise_token],
        (logits.argmax(-1) == answers).float(),
        (noiseless.argmax(-1) == answers).float(),
        own - logits[:, noise_token],
    ], 1)  # fmt: skip
    row = batch.scored.nonzero()[:, 0].cpu()
    sums = torch.zeros(len(batch), len(_UNITS), dtype=torch.float64).index_add_(0, row, values.double().cpu())
    counts = torch.bincount(row, minlength=len(batch)).double()
    return Sums(sums, counts[:, None].expand_as(sums))


def scores_from(sums: Sequence[Sums], alpha: float) -> RecallScores:
    """The scores of all batches together."""
    means, stderr = _ratio(_UNITS, sums)
    counts = torch.cat([batch.counts[:, 0] for batch in sums])
    return RecallScores(**means, stderr=stderr, alpha=alpha, sequences=len(counts), positions=int(counts.sum()))


def _sums_of_masses(
    first: Float[Tensor, "batch query key"],
    second: Float[Tensor, "batch query key"],
    batch: RecallBatch,
    noise_token: int,
) -> Sums:
    """The masses of `AttentionProbes`, from the attention patterns of block 0 and block 1."""
    tokens, scored = batch.tokens, batch.scored
    previous = first.diagonal(-1, dim1=1, dim2=2)
    after_trigger = batch.answers[:, :-1] >= 0
    visible = torch.ones_like(second[0], dtype=torch.bool).tril()
    before = torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], 1)
    # A key holds an answer for a query if the query's own token stands before it: the induction pattern.
    is_answer = (before[:, None] == tokens[..., None]) & (tokens[:, None] == batch.answers[..., None]) & visible
    is_noise = (tokens == noise_token)[:, None] & visible
    masses = [
        (previous, torch.ones_like(after_trigger)),
        (previous, after_trigger),
        ((second * is_answer).sum(-1), scored),
        ((second * is_noise).sum(-1), scored),
        (is_answer.sum(-1) / visible.sum(-1), scored),
        (is_noise.sum(-1) / visible.sum(-1), scored),
    ]
    sums = torch.stack([(mass.double() * where).sum(1) for mass, where in masses], 1)
    return Sums(sums.cpu(), torch.stack([where.sum(1).double() for _, where in masses], 1).cpu())


def _ratio(names: Iterable[str], several: Sequence[Sums]) -> tuple[dict[str, float], dict[str, float]]:
    """Means over all positions, and their standard errors: a ratio estimator whose units are the sequences."""
    sums, counts = (torch.cat(parts) for parts in zip(*several, strict=True))
    totals = counts.sum(0)
    means = sums.sum(0) / totals
    # The residuals sum to 0, so that their spread is all that the ratio's error comes from.
    stderr = mean_and_stderr(sums - means * counts)[1] * len(sums) / totals
    return dict(zip(names, means.tolist(), strict=True)), dict(zip(names, stderr.tolist(), strict=True))
