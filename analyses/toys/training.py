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

from analyses.store import Store
from surgery import active
from surgery.progress import progress_bar

EVERY = 100
"""So many steps at most are lost by an interrupt, if there is a store."""


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """The trained weights, the optimiser's state (none before the first step) and the losses so far, in nats.

    `tensors` are what a file holds: `weight|NAME`, `state|QUANTITY|NAME` with the optimiser's name of the quantity, and
    `losses`.
    """

    tensors: dict[str, Tensor]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights by name."""
        of_weights = (key for key in self.tensors if key.startswith("weight|"))
        return {key.removeprefix("weight|"): self.tensors[key] for key in of_weights}

    @property
    def losses(self) -> Float[Tensor, " step"]:
        """The loss of every step so far."""
        return self.tensors["losses"]


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
    for step in progress_bar("train", range(done + 1, last + 1), progress=progress, initial=done, total=last):
        losses.append(_step(loss, step, optimizer, schedule))
        if step not in wanted and (store is None or step % EVERY):
            continue
        snapshot = _snapshot(weights, optimizer, losses)
        if step in wanted:
            snapshots[step] = snapshot
        if store is not None:
            store.write(_piece(step), snapshot.tensors)
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
    tensors = {f"weight|{name}": weight.detach().clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        state = optimizer.state.get(weight, {}).items()
        tensors |= {f"state|{quantity}|{name}": t.clone() for quantity, t in state if isinstance(t, Tensor)}
    return Snapshot({**tensors, "losses": torch.tensor(losses)})


@torch.no_grad()
def _go_on_from(
    snapshot: Snapshot, done: int, weights: Mapping[str, Tensor], optimizer: Optimizer, schedule: LRScheduler | None
) -> None:
    """Put weights, optimiser and schedule into the state that they had after the snapshot's step."""
    for key, tensor in snapshot.tensors.items():
        match key.split("|"):
            case ["weight", name]:
                weights[name].copy_(tensor)
            case ["state", quantity, name]:
                # Adam's count of steps is a scalar, which torch keeps on the CPU whatever the weight's device.
                device = weights[name].device if tensor.ndim else "cpu"
                optimizer.state[weights[name]][quantity] = tensor.to(device).clone()
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
    return {step: Snapshot(tensors) for step in steps if (tensors := store.read(_piece(step))) is not None}


def _piece(step: int) -> str:
    return f"step{step:06d}"
