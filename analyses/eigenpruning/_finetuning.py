"""Fine-tuning on the items that components are scored on, which the published script does before it prunes."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Literal, final, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn

from analyses import metrics
from analyses.eigenpruning.examples import Per, rows_of
from analyses.tasks.task import Task
from hooks.inputs import Inputs
from hooks.running import autograd, run
from surgery import active
from surgery.arguments import number, one_of, positive, whole
from surgery.arguments import seed as checked_seed
from surgery.progress import progress_bar

Optimizer = Literal["adamw", "sgd"]


@final
@dataclass(frozen=True, slots=True)
class FineTuning:
    """Steps on the answers' cross-entropy (nats), by AdamW or SGD, a batch of items each.

    Items come in a random order, and when all have been seen in another one. `steps="epoch"` sees every item once, as
    `FineTuning("epoch", lr=0.01, batch_size=5, optimizer="sgd")` does after the paper.

    >>> eigenpruning.FineTuning(steps=10).lr
    0.0001
    """

    steps: int | Literal["epoch"] = 100
    lr: float = 1e-4
    batch_size: int = 16
    weight_decay: float = 0.0
    seed: int = 0
    optimizer: Optimizer = "adamw"

    def __post_init__(self) -> None:
        whole(self.batch_size, "FineTuning was given batch_size", least=1)
        if self.steps != "epoch":
            whole(self.steps, "FineTuning was given steps", least=1)
        one_of(self.optimizer, "FineTuning was given optimizer", get_args(Optimizer))
        checked_seed(self.seed)
        positive(self.lr, "lr")
        number(self.weight_decay, "weight_decay", least=0)

    def batches(self, n_items: int) -> list[Int[Tensor, " item"]]:
        """The items of every step.

        >>> [len(batch) for batch in eigenpruning.FineTuning("epoch", batch_size=4).batches(10)]
        [4, 4, 2]
        """
        generator = torch.Generator().manual_seed(self.seed)

        def endless() -> Iterator[Int[Tensor, " item"]]:
            while True:
                yield from torch.randperm(n_items, generator=generator).split(self.batch_size)

        n_steps = -(-n_items // self.batch_size) if self.steps == "epoch" else self.steps
        return list(islice(endless(), n_steps))

    def of(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        made = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[self.optimizer]
        return made(parameters, lr=self.lr, weight_decay=self.weight_decay)


def fine_tuned(
    model: nn.Module,
    task: Task,
    how: FineTuning,
    *,
    per: Per = "token",
    prepend_bos: bool | None = None,
    progress: bool = True,
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
    rows, copy = rows_of(model, task, prepend_bos, per), deepcopy(model)
    trained = [p for p in copy.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            "no parameter of this model has requires_grad, so nothing can be fine-tuned: set it, or leave out "
            "finetune=."
        )
    loss, weights, device = metrics.loss(rows.labels), rows.weights(per), trained[0].device
    optimizer, batches = how.of(trained), how.batches(len(rows.tokens))
    with autograd(True):
        for step, batch in enumerate(progress_bar("fine-tuning", batches, progress=progress)):
            metric = loss.select(batch)
            inputs = Inputs(rows.tokens[batch].to(device), rows.mask[batch].to(device))
            reads = metric.reads(len(inputs), inputs.n_pos)
            values = metric.checked(run(copy, inputs.read_at(reads)), len(inputs), inputs.n_pos)
            value = (values * weights[batch].to(values)).mean()
            if not bool(torch.isfinite(value)):
                raise ValueError(
                    f"the loss is {value.item()} at step {step}: fine-tuning diverged. Lower lr ({how.lr})."
                )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    optimizer.zero_grad()
    return copy
