"""Training the noisy-recall model: SGD on the scored positions only, cached, resumable, the same bits every time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, relu

from analyses.store import Store, digest
from analyses.toys.recall_model import MLPS, QUERIES, TRAINED, load, weights
from analyses.toys.recall_task import RecallBatch, RecallTask
from analyses.toys.training import refuse_edited, trained
from hooks.weights import EMBED, POSITIONS, UNEMBED, parameters
from surgery.arguments import number, positive, whole

AFTER_ATTENDING = ("blocks.1.attn.W_V", "blocks.1.attn.W_O", *MLPS[1], UNEMBED)
"""The matrices that `logits_after` reads and `attended` does not."""


@final
@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What training left behind: the loss of every step (nats) and the weights at the steps asked for.

    `checkpoints[step]` are the weights after that many steps, as `recall.load(model, ...)` takes them; the last is the
    result.
    """

    task: RecallTask
    losses: Float[Tensor, " step"]
    checkpoints: dict[int, dict[str, Float[Tensor, "row column"]]]

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each step, counted from 1: step, loss (nats)."""
        return pd.DataFrame({"step": range(1, len(self.losses) + 1), "loss": self.losses.tolist()})


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    model: nn.Module,
    task: RecallTask,
    *,
    steps: int = 400,
    batch_size: int = 64,
    lr: float = 0.03,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    seed: int = 0,
    checkpoints: Iterable[int] = (),
    cache: str | Path | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Train the model in place, by SGD on the cross-entropy (nats) of what follows the scored positions.

    >>> from analyses import recall
    >>> task = recall.RecallTask.synthetic(d_vocab=9, n_ctx=16)
    >>> run = recall.train(recall.bridge(task, d_model=8), task, steps=3, checkpoints=(0,), progress=False)
    >>> len(run.losses), list(run.checkpoints)
    (3, [0, 3])

    The defaults are a setting for one core; every step takes `batch_size` fresh sequences, which follow from `seed` and
    its number alone. `checkpoints` are steps whose weights are kept too (0: before training). `cache` is a folder:
    weights and momenta go there every 100 steps, at checkpoints and at the end, under a hash of all settings and
    initial weights. The same call then ends at once, a longer or interrupted one goes on where it stopped, and the
    weights are the same to the bit (on one kind of device). The model changes only at the end.

    Raises:
        ValueError: if a number is out of its range, the model is not one of `recall.model` and `recall.bridge`, it has
            nothing to train or more than this trains, an edit is in force, a file of the cache is damaged, or the loss
            diverges.
    """
    whole(steps, "steps", least=1)
    wanted = sorted({*(whole(step, "a checkpoint", most=steps) for step in checkpoints), steps})
    whole(batch_size, "batch_size", least=1)
    positive(lr, "lr")
    if not number(momentum, "momentum", least=0) < 1:
        raise ValueError(f"momentum={momentum!r}: give a number from 0 to below 1, such as 0.9.")
    number(weight_decay, "weight_decay", least=0)
    initial, names = _startable(model, task)
    settings = {"batch": batch_size, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "seed": seed}
    settings |= {"task": task.fingerprint, "trained": names}
    store = None if cache is None else Store.of(cache, "recall", settings=settings, tensors=initial)
    leaves = {name: initial[name].clone().requires_grad_() for name in names}
    optimizer = torch.optim.SGD(leaves.values(), lr=lr, momentum=momentum, weight_decay=weight_decay)

    def loss(step: int) -> Tensor:
        batch = task.sample(batch_size, seed=_seed_of(seed, step)).to(initial[EMBED].device)
        return training_loss({**initial, **leaves}, batch, f"step {step}")

    snapshots = trained(leaves, loss, optimizer, wanted=wanted, store=store, progress=progress)
    device = initial[EMBED].device
    results = {step: {name: W.to(device) for name, W in snapshots[step].weights.items()} for step in wanted}
    load(model, {**initial, **results[steps]})
    return TrainingRun(task, snapshots[steps].losses, {step: {**initial, **W} for step, W in results.items()})


def training_loss(W: Mapping[str, Float[Tensor, "row column"]], batch: RecallBatch, when: str) -> Float[Tensor, ""]:
    """The mean cross-entropy (nats) of what follows the scored positions, noise token or answer.

    Raises:
        ValueError: if no position is scored; `when` says of which sequences.
    """
    if not bool(batch.scored.any()):
        raise ValueError(
            f"no trigger occurs twice in any of the {len(batch)} sequences of {when}: nothing can be scored. Take more "
            "frequent triggers, longer sequences (n_ctx) or larger batches."
        )
    return cross_entropy(scored_logits(W, batch), batch.targets[batch.scored])


def scored_logits(W: Mapping[str, Float[Tensor, "row column"]], batch: RecallBatch) -> Float[Tensor, "scored d_vocab"]:
    """The model's logits at the scored positions, in row order, from its matrices alone (W_Q = I, no biases).

    The same function as the model's forward pass, in under half the time of training through it: block 0 multiplies
    the tables of embeddings and positions, whose sums are its inputs, and block 1 is computed where it is scored.
    """
    return logits_after(W, *attended(W, batch))


def attended(
    W: Mapping[str, Float[Tensor, "row column"]], batch: RecallBatch
) -> tuple[Float[Tensor, "scored d_model"], Float[Tensor, "scored d_model"]]:
    """The residual stream before block 1 at the scored positions, and its mean over what block 1 attends to there."""
    tokens, pos, d_model = batch.tokens, batch.tokens.shape[1], W[EMBED].shape[1]
    E, P = W[EMBED], W[POSITIONS][:pos]
    later = torch.full((pos, pos), -torch.inf, device=E.device, dtype=E.dtype).triu(1).expand(len(tokens), -1, -1)

    def pattern(resid: Tensor, keys: Tensor) -> Tensor:
        return torch.baddbmm(later, resid, keys.mT, alpha=d_model**-0.5).softmax(-1)

    def of_input(matrix: Tensor) -> Tensor:
        # (E + P) @ M, gathered from the products with the tables, which have far fewer rows than the batch has tokens.
        return embedding(tokens, E @ matrix) + P @ matrix

    resid = embedding(tokens, E) + P
    OV = W["blocks.0.attn.W_V"] @ W["blocks.0.attn.W_O"]
    resid = _with_mlp(W, resid + pattern(resid, of_input(W["blocks.0.attn.W_K"])) @ of_input(OV), 0)
    mixed = (pattern(resid, resid @ W["blocks.1.attn.W_K"]) @ resid)[batch.scored]
    return resid[batch.scored], mixed


def logits_after(
    W: Mapping[str, Float[Tensor, "row column"]],
    resid: Float[Tensor, "scored d_model"],
    mixed: Float[Tensor, "scored d_model"],
) -> Float[Tensor, "scored d_vocab"]:
    """The logits that follow from what `attended` gives."""
    return _with_mlp(W, resid + mixed @ W["blocks.1.attn.W_V"] @ W["blocks.1.attn.W_O"], 1) @ W[UNEMBED]


def _with_mlp(
    W: Mapping[str, Tensor], resid: Float[Tensor, "*row d_model"], layer: int
) -> Float[Tensor, "*row d_model"]:
    W_in, W_out = (W[name] for name in MLPS[layer])
    is_on = any(matrix.requires_grad or bool(matrix.any()) for matrix in (W_in, W_out))
    return resid + relu(resid @ W_in) @ W_out if is_on else resid


def _seed_of(seed: int, step: int) -> int:
    """A seed of its own for every step of every run, so that two runs share no sequences."""
    return int(digest({}, {"seed": seed, "step": step})[:15], 16)


def _startable(model: nn.Module, task: RecallTask) -> tuple[dict[str, Tensor], list[str]]:
    """The model's weights and the names of those to train."""
    initial = weights(model)
    refuse_edited(model)
    sizes = len(initial[EMBED]), len(initial[POSITIONS])
    if sizes != (task.d_vocab, task.n_ctx):
        raise ValueError(
            f"the model has {sizes[0]} tokens and {sizes[1]} positions, the task {task.d_vocab} and {task.n_ctx}: make "
            "the model with recall.model(task) or recall.bridge(task) for this task."
        )
    possible = {id(p): name for name, p in parameters(model, (*TRAINED, *MLPS[0], *MLPS[1])).items()}
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    others = [name for key, name in trainable.items() if key not in possible]
    if others or not trainable:
        what = f"{', '.join(others[:3])} would be trained" if others else "nothing would be trained"
        raise ValueError(
            f"{what}, by requires_grad: this trains W_K, W_V, W_O, W_in and W_out, or some of them. Set "
            f"requires_grad_(True) on these and requires_grad_(False) on all else."
        )
    biases = [name for name, p in model.named_parameters() if name.rpartition(".")[2].startswith("b") and bool(p.any())]
    eye = torch.eye(initial[EMBED].shape[1], device=initial[EMBED].device)
    if biases or not all(torch.equal(initial[name].float(), eye) for name in QUERIES):
        raise ValueError(
            f"{biases[0] if biases else 'a W_Q'} is not what this trains around: biases are zero and W_Q is the "
            f"identity here. Make the model with recall.model(task) or recall.bridge(task)."
        )
    return initial, [name for key, name in possible.items() if key in trainable]
