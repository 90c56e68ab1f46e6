"""Which items choose and which report, as the papers divide them."""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from analyses.tasks.task import Splits, Task
from surgery.arguments import seed as checked_seed


class Division(ABC):
    """A paper's way to divide a task."""

    __slots__ = ()

    @abstractmethod
    def parts(self, task: Task, *, seed: int) -> Splits:
        """The parts of the task.

        Raises:
            ValueError: if one that is needed would have no items.
        """


@final
@dataclass(frozen=True, slots=True)
class InOrder(Division):
    """The first items choose, the others report, in the order of the task.

    Args:
        validation: the fraction that chooses.
    """

    validation: float = 0.2

    def parts(self, task: Task, *, seed: int) -> Splits:
        """The first items, rounded down, as `validation`, the others as `test`; `screen` has none."""
        n = int(self.validation * len(task))
        if n == 0:
            raise ValueError(
                f"the first {self.validation:.0%} of the {len(task)} items of task {task.name!r} are none: it takes "
                f"{int(1 / self.validation)} items for one that chooses. Give more items."
            )
        return Splits(task[:0], task[:n], task[n:])


@final
@dataclass(frozen=True, slots=True)
class AtRandom(Division):
    """A random part reports, the others are for choosing: each item is drawn for itself.

    Args:
        test: the fraction that reports.
    """

    test: float = 0.2

    def parts(self, task: Task, *, seed: int) -> Splits:
        """A random part as `test`, the others as `screen`; `validation` has none."""
        order = list(range(len(task)))
        random.Random(checked_seed(seed)).shuffle(order)
        n = round(self.test * len(task))
        if not 0 < n < len(task):
            raise ValueError(
                f"{self.test:.0%} of the {len(task)} items of task {task.name!r} are {n}: both parts need an item. "
                "Give more items."
            )
        return Splits(task.take(order[n:]), task[:0], task.take(order[:n]))


@final
@dataclass(frozen=True, slots=True)
class BySplit(Division):
    """The data set's own splits: one is for choosing, another reports.

    Args:
        screen: the split for choosing.
        test: the split that reports.
    """

    screen: str = "train"
    test: str = "validation"

    def parts(self, task: Task, *, seed: int) -> Splits:
        """One split as `screen`, another as `test`; `validation` has none."""
        chosen = [task.filter(lambda item, name=name: item.metadata.get("split") == name) for name in self._names]
        empty = next((name for name, part in zip(self._names, chosen, strict=True) if not len(part)), None)
        if empty is not None:
            there = sorted({str(item.metadata.get("split") or "none") for item in task})
            raise ValueError(
                f"no item of task {task.name!r} is of the split {empty!r}: theirs are {', '.join(there)}. Read both "
                f"splits, as in recipe.task({{{self.screen!r}: file, {self.test!r}: file}})."
            )
        return Splits(chosen[0], task[:0], chosen[1])

    @property
    def _names(self) -> tuple[str, str]:
        return self.screen, self.test


@final
@dataclass(frozen=True, slots=True)
class Undivided(Division):
    """All items report: nothing is chosen."""

    def parts(self, task: Task, *, seed: int) -> Splits:
        """All items as `test`; the other parts have none."""
        return Splits(task[:0], task[:0], task)
