"""Fine-tuning on the items that components are scored on, which the published script does before it prunes."""

from copy import deepcopy
from dataclasses import dataclass
from typing import final

import torch
from torch import nn
from tqdm.auto import tqdm

from analyses import metrics
from analyses.eigenpruning.examples import rows_of
from analyses.tasks.task import Task
from hooks.inputs import Inputs
from hooks.running import autograd, run
from surgery import active
from surgery.arguments import number, positive, whole
from surgery.arguments import seed as checked_seed


@final
@dataclass(frozen=True, slots=True)
class FineTuning:
    """AdamW on the answers' cross-entropy (nats): `steps` batches of `batch_size` items, drawn with `seed`.

    >>> eigenpruning.FineTuning(steps=10).lr
    0.0001
    """

    steps: int = 100
    lr: float = 1e-4
    batch_size: int = 16
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            whole(getattr(self, name), f"FineTuning was given {name}", least=1)
        checked_seed(self.seed)
        positive(self.lr, "lr")
        number(self.weight_decay, "weight_decay", least=0)


def fine_tuned(
    model: nn.Module, task: Task, how: FineTuning, *, prepend_bos: bool | None = None, progress: bool = True
) -> nn.Module:
    """A copy of the model, all of its trainable parameters fine-tuned on the task; the model is left as it is.

    Raises:
        ValueError: if an edit is in force, nothing is trainable, or the loss diverges.
        UnscorableItems: if there are items that this model cannot be asked.
    """
    if active(model):
        raise ValueError(
            "an edit is in force on this model, and fine-tuning would not see it: undo it first "
            "(surgery.undo_all(model)), or commit it."
        )
    rows, copy = rows_of(model, task, prepend_bos), deepcopy(model)
    trained = [p for p in copy.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            "no parameter of this model has requires_grad, so nothing can be fine-tuned: set it, or leave out "
            "finetune=."
        )
    loss, device = metrics.loss(rows.labels), trained[0].device
    optimizer = torch.optim.AdamW(trained, lr=how.lr, weight_decay=how.weight_decay)
    generator = torch.Generator().manual_seed(how.seed)
    with autograd(True):
        for step in tqdm(range(how.steps), desc="fine-tuning", delay=1, disable=not progress):
            batch = torch.randperm(len(rows.tokens), generator=generator)[: how.batch_size]
            metric = loss.select(batch)
            inputs = Inputs(rows.tokens[batch].to(device), rows.mask[batch].to(device))
            reads = metric.reads(len(inputs), inputs.n_pos)
            value = metric.checked(run(copy, inputs.read_at(reads)), len(inputs), inputs.n_pos).mean()
            if not bool(torch.isfinite(value)):
                raise ValueError(
                    f"the loss is {value.item()} at step {step}: fine-tuning diverged. Lower lr ({how.lr})."
                )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    optimizer.zero_grad()
    return copy
