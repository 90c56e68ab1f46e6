"""The training loop of the toy models: the same bits every time, cached, and resumable where it was interrupted."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from analyses.store import Store
from surgery import active

EVERY = 100
"""So many steps at most are lost by an interrupt, if there is a store."""


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """The trained weights, the optimiser's state (none before the first step) and the losses so far, in nats.

    A key of `state` is the optimiser's name of the quantity, a bar, and the weight's name.
    """

    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    losses: Float[Tensor, " step"]


def refuse_edited(model: nn.Module) -> None:
    """Refuse to train a model that is under an edit.

    Raises:
        ValueError: if one is in force.
    """
    if active(model):
        raise ValueError(
            "an edit is in force on this model, and training would not see it: undo it first (operation.undo() or "
            "surgery.undo_all(model)), or commit it."
        )


@torch.inference_mode(False)
@torch.enable_grad()
def trained(
    weights: Mapping[str, Tensor],
    loss: Callable[[int], Tensor],
    optimizer: Optimizer,
    *,
    schedule: LRScheduler | None = None,
    wanted: Sequence[int],
    store: Store | None = None,
    progress: bool = True,
) -> dict[int, Snapshot]:
    """Train the weights in place up to the last wanted step; the snapshots at all wanted steps.

    `loss(step)` is the loss of a step, counted from 1, and depends on nothing but the weights and the step, so that a
    run that goes on from a stored snapshot gives the same bits as one that was never interrupted.

    Raises:
        ValueError: if the loss diverges, or a file of the store is damaged.
    """
    snapshots = {0: _snapshot(weights, optimizer, [])} | ({} if store is None else _stored(store, wanted))
    done, last = max(snapshots), max(wanted)
    _go_on_from(snapshots[done], done, weights, optimizer, schedule)
    losses, passing = snapshots[done].losses.tolist(), None
    for step in tqdm(range(done + 1, last + 1), desc="train", initial=done, total=last, disable=not progress):
        losses.append(_step(loss, step, optimizer, schedule))
        if step not in wanted and (store is None or step % EVERY):
            continue
        snapshot = _snapshot(weights, optimizer, losses)
        if step in wanted:
            snapshots[step] = snapshot
        if store is not None:
            store.write(_piece(step), _tensors(snapshot))
            if passing is not None:  # only the newest of the snapshots that nobody asked for is kept
                store.remove(_piece(passing))
            passing = None if step in wanted else step
    optimizer.zero_grad()
    return snapshots


def _step(loss: Callable[[int], Tensor], step: int, optimizer: Optimizer, schedule: LRScheduler | None) -> float:
    value = loss(step)
    if not isfinite(value.item()):
        raise ValueError(
            f"the loss is {value.item()} at step {step}: training diverged. Lower lr, or the scale of the initial "
            "weights."
        )
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    if schedule is not None:
        schedule.step()
    return value.item()


def _snapshot(weights: Mapping[str, Tensor], optimizer: Optimizer, losses: list[float]) -> Snapshot:
    state = {
        f"{quantity}|{name}": tensor.clone()
        for name, weight in weights.items()
        for quantity, tensor in optimizer.state.get(weight, {}).items()
        if isinstance(tensor, Tensor)
    }
    return Snapshot({name: weight.detach().clone() for name, weight in weights.items()}, state, torch.tensor(losses))


@torch.no_grad()
def _go_on_from(
    snapshot: Snapshot, done: int, weights: Mapping[str, Tensor], optimizer: Optimizer, schedule: LRScheduler | None
) -> None:
    """Put weights, optimiser and schedule into the state that they had after the snapshot's step."""
    for name, weight in weights.items():
        weight.copy_(snapshot.weights[name])
    for key, tensor in snapshot.state.items():
        quantity, _, name = key.partition("|")
        # Adam's count of steps is a scalar, which torch keeps on the CPU whatever the weight's device.
        optimizer.state[weights[name]][quantity] = tensor.to(weights[name].device if tensor.ndim else "cpu").clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of", UserWarning)  # of the schedule before the optimiser
        for _ in range(done if schedule is not None else 0):
            schedule.step()  # type: ignore[union-attr]


def _stored(store: Store, wanted: Sequence[int]) -> dict[int, Snapshot]:
    """Every stored wanted snapshot up to the last step that the run can go on from, and that step's."""
    there = {int(piece.removeprefix("step")) for piece in store.pieces()}
    # A step is of use only if no wanted snapshot before it is missing: training runs forwards.
    usable = [s for s in there if s <= max(wanted) and there.issuperset(w for w in wanted if 0 < w <= s)]
    last = max(usable, default=0)
    steps = [step for step in sorted(there & {*wanted, last}) if step <= last]
    return {step: _of(tensors) for step in steps if (tensors := store.read(_piece(step))) is not None}


def _piece(step: int) -> str:
    return f"step{step:06d}"


def _tensors(snapshot: Snapshot) -> dict[str, Tensor]:
    weights = {f"weight|{name}": tensor for name, tensor in snapshot.weights.items()}
    return {**weights, **{f"state|{key}": tensor for key, tensor in snapshot.state.items()}, "losses": snapshot.losses}


def _of(tensors: Mapping[str, Tensor]) -> Snapshot:
    groups: dict[str, dict[str, Tensor]] = {"weight": {}, "state": {}, "losses": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition("|")
        groups[group][name] = tensor
    return Snapshot(groups["weight"], groups["state"], tensors["losses"])
