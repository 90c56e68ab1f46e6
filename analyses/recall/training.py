"""Training the noisy-recall model: SGD on the scored positions only, cached, resumable, the same bits every time."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, relu
from tqdm.auto import tqdm

from analyses.recall.cache import Snapshot, SnapshotCache, digest
from analyses.recall.task import RecallTask
from analyses.recall.transformer import EMBED, MLPS, POSITIONS, QUERIES, TRAINED, UNEMBED, load, parameter, weights
from surgery import active


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


@final
@dataclass(frozen=True, slots=True)
class _Settings:
    """What the weights after a given number of steps depend on, besides the weights at the start."""

    task: str
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    seed: int
    trained: tuple[str, ...]


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    model: nn.Module,
    task: RecallTask,
    *,
    steps: int = 400,
    batch: int = 64,
    lr: float = 0.03,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    seed: int = 0,
    checkpoints: Iterable[int] = (),
    cache: str | Path | None = None,
    progress: bool = True,
) -> TrainingRun:
    """Train the model in place, by SGD on the cross-entropy (nats) of what follows the scored positions.

    The defaults are a setting for one core; every step takes fresh sequences, which follow from `seed` and its number
    alone. `checkpoints` are steps whose weights are kept too (0: before training). `cache` is a folder: weights and
    momenta go there every 100 steps, at checkpoints and at the end, under a hash of all settings and initial weights.
    The same call then ends at once, a longer or interrupted one goes on where it stopped, and the weights are the same
    to the bit (on one kind of device). The model changes only at the end.

    Raises:
        ValueError: if a number is out of its range, the model is not one of `recall.model` and `recall.bridge`, it has
            nothing to train or more than this trains, an edit is in force, a file of the cache is damaged, or the loss
            diverges.
    """
    wanted = sorted({*checkpoints, steps})
    _check_numbers(wanted, steps, batch, lr, momentum, weight_decay)
    held, trained = _startable(model)
    if (len(held[EMBED]), len(held[POSITIONS])) != (task.d_vocab, task.n_ctx):
        raise ValueError(
            f"the model has {len(held[EMBED])} tokens and {len(held[POSITIONS])} positions, the task {task.d_vocab} "
            f"and {task.n_ctx}: make the model with recall.model(task) or recall.bridge(task) for this task."
        )
    settings = _Settings(task.fingerprint, batch, lr, momentum, weight_decay, seed, trained)
    store = None if cache is None else SnapshotCache(Path(cache), digest(held, asdict(settings)), asdict(settings))
    snapshots = _run(held, task, settings, wanted, store, progress)
    device = held[EMBED].device
    kept = {step: {**held, **{n: W.to(device) for n, W in snapshots[step].weights.items()}} for step in wanted}
    load(model, kept[steps])
    return TrainingRun(task, snapshots[steps].losses, kept)


def scored_logits(
    W: dict[str, Float[Tensor, "row column"]], tokens: Int[Tensor, "batch pos"], scored: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "scored d_vocab"]:
    """The model's logits at the scored positions, in row order, from its matrices alone (W_Q = I, no biases).

    The same function as the model's forward pass in under half the time: block 0 multiplies the tables of embeddings
    and positions, whose sums are its inputs, and block 1 is computed where it is scored.
    """
    pos, d_model = tokens.shape[1], W[EMBED].shape[1]
    E, P = W[EMBED], W[POSITIONS][:pos]
    later = torch.full((pos, pos), -torch.inf, device=E.device, dtype=E.dtype).triu(1).expand(len(tokens), -1, -1)

    def pattern(resid: Tensor, keys: Tensor) -> Tensor:
        return torch.baddbmm(later, resid, keys.mT, alpha=d_model**-0.5).softmax(-1)

    def of_input(matrix: Tensor) -> Tensor:
        return embedding(tokens, E @ matrix) + P @ matrix

    def mlp(resid: Tensor, layer: int) -> Tensor:
        W_in, W_out = (W[name] for name in MLPS[layer])
        return relu(resid @ W_in) @ W_out

    resid = embedding(tokens, E) + P
    resid = resid + pattern(resid, of_input(W["blocks.0.attn.W_K"])) @ of_input(
        W["blocks.0.attn.W_V"] @ W["blocks.0.attn.W_O"]
    )
    if _is_on(W, 0):
        resid = resid + mlp(resid, 0)
    mixed = (pattern(resid, resid @ W["blocks.1.attn.W_K"]) @ resid)[scored]
    resid = resid[scored] + mixed @ W["blocks.1.attn.W_V"] @ W["blocks.1.attn.W_O"]
    if _is_on(W, 1):
        resid = resid + mlp(resid, 1)
    return resid @ W[UNEMBED]


def _is_on(W: dict[str, Tensor], layer: int) -> bool:
    return any(W[name].requires_grad or bool(W[name].any()) for name in MLPS[layer])


def _run(
    held: dict[str, Tensor],
    task: RecallTask,
    settings: _Settings,
    wanted: list[int],
    store: SnapshotCache | None,
    progress: bool,
) -> dict[int, Snapshot]:
    """The snapshots at the wanted steps, from the cache as far as it goes."""
    nothing_yet = Snapshot({name: held[name] for name in settings.trained}, {}, torch.empty(0))
    snapshots = {0: nothing_yet} | (store.read(wanted) if store else {})
    done = max(snapshots)
    W, optimizer = _resume(held, snapshots[done], settings)
    losses, saved = snapshots[done].losses.tolist(), None
    device = held[EMBED].device
    for step in tqdm(
        range(done + 1, wanted[-1] + 1), desc="train", disable=not progress, initial=done, total=wanted[-1]
    ):
        batch = task.sample(settings.batch, seed=_seed_of(settings.seed, step)).to(device)
        losses.append(_step(W, optimizer, batch.tokens, batch.targets, batch.scored, step))
        due = step in wanted
        if due or (store and step % store.every == 0):
            now = _snapshot(W, optimizer, settings.trained, losses)
            if due:
                snapshots[step] = now
            if store:
                store.write(step, now)
                saved = store.replace(saved, None if due else step)
    return snapshots


def _step(
    W: dict[str, Tensor], optimizer: torch.optim.SGD, tokens: Tensor, targets: Tensor, scored: Tensor, step: int
) -> float:
    if not bool(scored.any()):
        raise ValueError(
            f"no trigger occurs twice in any of the {len(tokens)} sequences of step {step}: nothing can be scored. "
            f"Take more frequent triggers, longer sequences (n_ctx) or larger batches."
        )
    loss = cross_entropy(scored_logits(W, tokens, scored), targets[scored])
    value = loss.item()
    if value != value or value == torch.inf:
        raise ValueError(f"the loss is {value} at step {step}: training diverged. Lower lr or unembed_scale.")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return value


def _resume(
    held: dict[str, Tensor], snapshot: Snapshot, settings: _Settings
) -> tuple[dict[str, Tensor], torch.optim.SGD]:
    """Leaves to train and the optimiser as they were after the snapshot's step."""
    device = held[EMBED].device
    leaves = {name: t.to(device).clone().requires_grad_() for name, t in snapshot.weights.items()}
    optimizer = torch.optim.SGD(
        leaves.values(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    for name, momentum in snapshot.momenta.items():
        optimizer.state[leaves[name]]["momentum_buffer"] = momentum.to(device).clone()
    return {**held, **leaves}, optimizer


def _snapshot(
    W: dict[str, Tensor], optimizer: torch.optim.SGD, trained: tuple[str, ...], losses: list[float]
) -> Snapshot:
    buffers = {name: optimizer.state[W[name]].get("momentum_buffer") for name in trained}
    momenta = {name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}
    return Snapshot({name: W[name].detach().clone() for name in trained}, momenta, torch.tensor(losses))


def _seed_of(seed: int, step: int) -> int:
    """A seed of its own for every step of every run, so that two runs share no sequences."""
    return int(digest({}, {"seed": seed, "step": step})[:15], 16)


def _startable(model: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The model's weights and the names of those to train."""
    held = weights(model)
    if active(model):
        raise ValueError(
            "an edit is in force on this model, and training would not see it: undo it first (operation.undo() or "
            "surgery.undo_all(model)), or commit it."
        )
    possible = {id(parameter(model, name)): name for name in (*TRAINED, *MLPS[0], *MLPS[1])}
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    others = [name for name, p in trainable if id(p) not in possible]
    if others or not trainable:
        what = f"{', '.join(others[:3])} would be trained" if others else "nothing would be trained"
        raise ValueError(
            f"{what}, by requires_grad: this trains W_K, W_V, W_O, W_in and W_out, or some of them. Set "
            f"requires_grad_(True) on these and requires_grad_(False) on all else."
        )
    biases = [name for name, p in model.named_parameters() if name.rpartition(".")[2].startswith("b") and bool(p.any())]
    eye = torch.eye(held[EMBED].shape[1], device=held[EMBED].device)
    if biases or not all(torch.equal(held[name].float(), eye) for name in QUERIES):
        raise ValueError(
            f"{biases[0] if biases else 'a W_Q'} is not what this trains around: biases are zero and W_Q is the "
            f"identity here. Make the model with recall.model(task) or recall.bridge(task)."
        )
    return held, tuple(name for key, name in possible.items() if any(key == id(p) for _, p in trainable))


def _check_numbers(wanted: list[int], steps: int, batch: int, lr: float, momentum: float, weight_decay: float) -> None:
    if wanted[0] < 0 or wanted[-1] > steps or steps < 1:
        raise ValueError(
            f"steps={steps!r} with checkpoints {wanted[:-1]!r}: train 1 step or more, checkpoints from 0 to steps."
        )
    if batch < 1 or not lr > 0 or not 0 <= momentum < 1 or not weight_decay >= 0:
        raise ValueError(
            f"batch={batch!r}, lr={lr!r}, momentum={momentum!r}, weight_decay={weight_decay!r}: batch is 1 or more, "
            f"lr above 0, momentum from 0 to below 1, weight_decay 0 or more; the defaults are 64, 0.03, 0.9, 0.0001."
        )
