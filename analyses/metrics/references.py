"""Metrics that hold the output against a reference: labels, or the distribution of another run."""

# What is the same for all metrics of a kind is a class variable, and what others keep a property.
# pyright: reportIncompatibleVariableOverride=false, reportAssignmentType=false

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.metrics._metric import IGNORED, Metric, Unbound
from analyses.metrics.positions import Chosen, Indices, Mask, Positions, kept, numbers, rows_in, rows_of, widened
from analyses.prompts import ItemRows, Prompts, mask_of
from hooks.inputs import Inputs, Reads
from hooks.running import arithmetic, run

_ROWS = 64
"""So many rows go through the model at a time where a reference is made and no batch size was given."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Loss(Metric):
    """The mean cross-entropy of each example over its labels, in nats; see `loss`."""

    labels: Int[Tensor, "rows pos"]
    name: str = "loss"
    unit: str = "nats"
    higher_is_better: bool | None = False
    differentiable: bool = True
    of_probability: Literal["-log p"] = "-log p"
    rows: ItemRows | None = None

    def __post_init__(self) -> None:
        labelled = self.labels != IGNORED
        if not bool(labelled.any(1).all()):
            raise ValueError(
                f"{self.name}: examples {numbers(~labelled.any(1))} have no label that is not {IGNORED} (ignored): "
                "each needs one or more for a mean. Leave these examples out."
            )
        if bool((self.labels[labelled] < 0).any()):
            raise ValueError(
                f"{self.name}: label {int(self.labels[labelled].min())}: labels are token ids, or {IGNORED} where "
                f"none is scored. Use {IGNORED}."
            )

    def bound(self, model: nn.Module, prompts: Prompts | None) -> "Loss":
        """The metric itself, if no label is on padding, or predicts it, or is the token at its own position."""
        if prompts is None or prompts.tokens.shape[1] != self.labels.shape[1]:
            return self  # refused elsewhere
        if len(self.labels) not in (1, len(prompts)):
            return self
        tokens, attention_mask = prompts.tokens.to(self.labels.device), prompts.mask
        labels, after = self.labels.expand_as(tokens), tokens.roll(-1, 1)
        scored = labels != IGNORED
        if attention_mask is not None:
            real = attention_mask.to(labels.device)
            ends = real & ~torch.cat([real[:, 1:], real[:, -1:]], 1)  # padding comes next
            every = (scored | ~real).all(1, keepdim=True)  # as labels that were made from all tokens
            wrong = (scored & (~real | (every & ends & (labels == after)))).any(1)
            if bool(wrong.any()):
                raise ValueError(
                    f"{self.name}: examples {numbers(wrong)} have labels on padding or for it: only real tokens are "
                    f"predicted. Set these to {IGNORED}; metrics.next_token_labels(tokens, attention_mask) does."
                )
        own, next_ = ((labels == x)[scored].all() for x in (tokens, after))
        if bool(own) and not bool(next_) and bool((scored.sum(1) > 1).all()):
            raise ValueError(
                f"{self.name}: each label is the token at its own position, which the model has already read: labels "
                "are aligned to logits, the token after. Pass metrics.next_token_labels(tokens)."
            )
        return self

    @property
    def n_examples(self) -> int | None:
        """The number of rows of labels, None if one serves all."""
        return rows_in("the labels", self.labels)

    def reads(self, n_rows: int, n_pos: int) -> Reads:
        """The positions with a label."""
        row, pos = (self._labels(n_rows, n_pos) != IGNORED).nonzero(as_tuple=True)
        return Reads(row, pos)

    def values(self, logits: Float[Tensor, "read d_vocab"], n_rows: int, n_pos: int) -> Tensor:
        """−log p of the labels, averaged over those of each example."""
        labels = self._labels(n_rows, n_pos).to(logits.device)
        if int(labels.max()) >= logits.shape[-1]:
            raise ValueError(
                f"{self.name}: label {int(labels.max())} is outside the vocabulary of these logits, 0 to "
                f"{logits.shape[-1] - 1}: pass token ids of the same tokenizer."
            )
        log_probs = -F.cross_entropy(widened(logits), labels[labels != IGNORED], reduction="none")
        return self.of_log_probs(log_probs, n_rows, n_pos)

    def scored(self, n_rows: int, n_pos: int) -> Int[Tensor, " read"]:
        """The labels."""
        labels = self._labels(n_rows, n_pos)
        return labels[labels != IGNORED]

    def of_log_probs(self, log_probs: Float[Tensor, " read"], n_rows: int, n_pos: int) -> Tensor:
        """Their negative mean in each example."""
        scored = (self._labels(n_rows, n_pos) != IGNORED).to(log_probs.device)
        row = scored.nonzero(as_tuple=True)[0]
        return log_probs.new_zeros(n_rows).index_add(0, row, -log_probs) / scored.sum(1)

    def select(self, indices: Indices) -> "Loss":
        """The same metric for the chosen examples."""
        return replace(self, labels=rows_of(self.labels, indices))

    @torch.inference_mode(False)
    def _labels(self, n_rows: int, n_pos: int) -> Int[Tensor, "row pos"]:
        if self.labels.shape[1] != n_pos:
            raise ValueError(
                f"{self.name}: labels {list(self.labels.shape)} for logits of {n_pos} positions: one label for each "
                f"position, {IGNORED} where none is scored. Align them (metrics.next_token_labels(tokens) does)."
            )
        return self.labels.expand(n_rows, -1)


def next_token_labels(tokens: Int[Tensor, "batch pos"], attention_mask: Mask = None) -> Int[Tensor, "batch pos"]:
    """Labels for `loss`: each position's is the token after it; -100 at the last one and on either side of padding.

    Raises:
        ValueError: if the mask is not one of 0 and 1 for these tokens.

    >>> metrics.next_token_labels(torch.tensor([[1, 2, 3]])).tolist()
    [[2, 3, -100]]
    """
    labels = torch.full_like(tokens, IGNORED, dtype=torch.long)
    labels[:, :-1] = tokens[:, 1:]
    if attention_mask is not None:
        real = mask_of(attention_mask, tokens.shape).to(tokens.device)
        labels[:, :-1][~(real[:, 1:] & real[:, :-1])] = IGNORED
    return labels


@final
@dataclass(frozen=True, slots=True, eq=False)
class KLDivergence(Metric):
    """KL(reference ‖ model) in nats, averaged over positions; see `kl_from`. `reference` holds log-probabilities."""

    reference: Float[Tensor, "rows chosen d_vocab"]
    positions: Chosen
    name: str = "KL divergence"
    unit: str = "nats"
    higher_is_better: bool | None = False
    differentiable: bool = True
    attention_mask: Bool[Tensor, "rows pos"] | None = None

    def bound(self, model: nn.Module, prompts: Prompts | None) -> "KLDivergence":
        """The metric itself, if the reference was read at real tokens."""
        attention_mask = None if prompts is None else prompts.mask
        if attention_mask is not None:
            chosen = self.positions.resolve(attention_mask.shape[1])
            mask = attention_mask.to(chosen.index.device)
            index, weight = (x.expand(len(mask), -1) for x in (chosen.index, chosen.weight))
            wrong = (weight & ~mask.gather(1, index)).any(1)
            # Padding before a text changes its logits, where nothing told the model of it.
            if self.attention_mask is None:
                wrong |= ~mask[:, 0]
            if bool(wrong.any()):
                raise ValueError(
                    f"{self.name}: the reference of examples {numbers(wrong)} was read at padding, or computed without "
                    "the mask of the padding before them. Make it with the attention_mask, "
                    "metrics.kl_from_run(model, tokens, attention_mask=...)."
                )
        return self

    @property
    def n_examples(self) -> int | None:
        """The number of examples of the reference, None if one serves all."""
        return rows_in("the reference and the positions", self.reference, rows=self.positions.n_examples)

    def reads(self, n_rows: int, n_pos: int) -> Reads:
        """The positions at which the reference was read."""
        return self.positions.resolve(n_pos).reads(n_rows)

    def values(self, logits: Float[Tensor, "read d_vocab"], n_rows: int, n_pos: int) -> Tensor:
        """`Σ p (ln p − ln q)`, averaged over the positions read."""
        if logits.shape[-1] != self.reference.shape[2]:
            raise ValueError(
                f"{self.name}: logits over {logits.shape[-1]} tokens, while the reference has "
                f"{self.reference.shape[2]}: they have to agree. Use logits of the same model."
            )
        log_q = self.positions.resolve(n_pos).by_row(logits).log_softmax(-1)
        log_p = self.reference.to(log_q)
        p = log_p.exp()
        return self.positions.mean(torch.where(p > 0, p * (log_p - log_q), 0).sum(-1))

    def select(self, indices: Indices) -> "KLDivergence":
        """The same metric for the chosen examples."""
        mask = None if self.attention_mask is None else rows_of(self.attention_mask, indices)
        reference, here = rows_of(self.reference, indices), self.positions.select(indices)
        return replace(self, reference=reference, positions=here, attention_mask=mask)


@final
@dataclass(frozen=True, slots=True, eq=False)
class KLFromNow(Unbound):
    """KL(what the model computes when it is bound ‖ model), at given positions."""

    positions: Positions
    batch_size: int | None
    name: str = "KL divergence"
    unit: str = "nats"
    higher_is_better: bool | None = False
    differentiable: bool = True

    def bound(self, model: nn.Module, prompts: Prompts | None) -> Metric:
        """The divergence from what the model computes on these prompts now."""
        if prompts is None:
            return self
        where = self.positions if prompts.mask is None else self.positions.masked(prompts.mask)
        inputs, chosen = Inputs(prompts.tokens, prompts.mask), where.resolve(prompts.tokens.shape[1])
        parts = []
        with arithmetic(False):
            for at in torch.arange(len(prompts)).split(self.batch_size or _ROWS):
                here = chosen.select(at)
                logits = run(model, inputs.take(at).read_at(here.reads(len(at))))
                parts.append(_log_probs(here.by_row(logits)))
        mask = None if prompts.mask is None else prompts.mask.cpu()
        return KLDivergence(torch.cat(parts), chosen, attention_mask=mask)

    def missing(self) -> str:
        """The reference."""
        return (
            "was made without a reference, which an analysis computes before it changes anything: give it to an "
            "analysis, or make it with metrics.kl_from_run(model, tokens)."
        )


def reference_of(
    model: Callable[..., Tensor],
    tokens: Int[Tensor, "example pos"],
    mask: Bool[Tensor, "example pos"] | None,
    positions: Positions,
    batch_size: int | None,
) -> KLDivergence:
    """The divergence from what a model computes on these tokens now."""
    parts = []
    with torch.inference_mode(False), torch.no_grad():
        chosen = positions.resolve(tokens.shape[1])
        rows_in("the tokens and the positions", tokens, rows=chosen.n_examples)
        for at in torch.arange(len(tokens)).split(batch_size or len(tokens)):
            here = at.to(tokens.device)
            masked = {} if mask is None else {"attention_mask": mask[here].long()}
            parts.append(log_probs_at(model(tokens[here], **masked), chosen.select(at)))
    return KLDivergence(torch.cat(parts), chosen, attention_mask=None if mask is None else mask.cpu())


def log_probs_at(logits: Float[Tensor, "row pos d_vocab"], chosen: Chosen) -> Float[Tensor, "row chosen d_vocab"]:
    """The log-probabilities at the chosen positions.

    Raises:
        ValueError: if one is NaN.
    """
    return _log_probs(chosen.by_row(chosen.reads(len(logits)).of(kept(logits))))


def _log_probs(logits: Float[Tensor, "row chosen d_vocab"]) -> Float[Tensor, "row chosen d_vocab"]:
    reference = logits.log_softmax(-1)
    nan = reference.isnan().flatten(1).any(1)
    if bool(nan.any()):
        raise ValueError(
            f"the reference is NaN for examples {numbers(nan)}: its logits are numbers wherever they are read. Look "
            "for NaN or infinite logits, or leave these examples out."
        )
    return reference
