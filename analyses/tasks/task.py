"""A task: items of one kind, and how they are divided into screen, validation and test items."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, combinations, pairwise
from typing import overload

import numpy as np
import pandas as pd
from torch import Tensor

from analyses.tasks.items import Item, Kind, Unscorable
from analyses.tasks.rules import NamedRule
from surgery.arguments import counted, number, shown, whole
from surgery.arguments import seed as checked_seed


@dataclass(frozen=True, slots=True)
class Task:
    """Named items of one kind, in a fixed order.

    Args:
        name: the name in tables and plots.
        items: all of one kind.
        metadata: facts about the task as a whole, such as the file it came from.
        unscorable: items that were left out because they cannot be scored, each with its source and reason; every part
            of the task keeps them.
        rule: what counts as right where scoring is given no rule; None for scoring's own choice by kind.

    >>> task = tasks.Task("facts", (tasks.AnswerItem("The capital of Peru is", (" Lima",)),))
    >>> task
    Task('facts', 1 item of kind 'answer')
    >>> task.to_dataframe()["reference"].tolist()
    [' Lima']
    """

    name: str
    items: tuple[Item, ...]
    metadata: Mapping[str, object] = field(default_factory=dict, hash=False)
    unscorable: tuple[Unscorable, ...] = ()
    rule: NamedRule | None = None

    def __post_init__(self) -> None:
        items: object = self.items
        rule: object = self.rule
        if rule is not None and not isinstance(rule, NamedRule):
            raise TypeError(
                f"task {self.name!r} is given rule={shown(rule)}: a task names its rule, as in "
                "tasks.NamedRule('Contains', {'n_tokens': 10}). A rule itself is given to scoring.score(rule=)."
            )
        if not isinstance(items, tuple) or not all(isinstance(item, Item) for item in items):
            raise TypeError(
                f"task {self.name!r} is given items={shown(items)}: they are a tuple of AnswerItem, ChoiceItem or "
                "MinimalPair. Read others with tasks.from_records."
            )
        kinds = sorted({item.kind for item in self.items})
        if len(kinds) > 1:
            raise ValueError(
                f"task {self.name!r} holds items of the kinds {', '.join(kinds)}: a task has one kind, so that its "
                "accuracy means one thing. Make a task of each."
            )

    @property
    def kind(self) -> Kind:
        """The kind of the items.

        Raises:
            ValueError: if there are none.
        """
        if not self.items:
            raise ValueError(
                f"task {self.name!r} has no items: only a task with items has a kind and a score. "
                "Look at what was read, filtered or split."
            )
        return self.items[0].kind

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __repr__(self) -> str:
        kind = f" of kind {self.kind!r}" if self.items else ""
        left_out = f", {len(self.unscorable)} unscorable left out" if self.unscorable else ""
        rule = f", by {self.rule}" if self.rule is not None else ""
        return f"Task({self.name!r}, {counted(len(self.items), 'item')}{kind}{left_out}{rule})"

    def __add__(self, other: object) -> "Task":
        """The items of both, in order, under this task's name and metadata; both have the same rule.

        Raises:
            ValueError: if their rules differ.
        """
        if not isinstance(other, Task):
            return NotImplemented
        if self.rule != other.rule:
            raise ValueError(
                f"task {self.name!r} is scored by {self.rule}, and task {other.name!r} by {other.rule}: the items of "
                "one task have one rule. Give one of them the other's with dataclasses.replace(task, rule=...)."
            )
        return replace(self, items=self.items + other.items, unscorable=self.unscorable + other.unscorable)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "Task": ...
    def __getitem__(self, index: int | slice) -> "Item | Task":
        if isinstance(index, slice):
            return replace(self, items=self.items[index])
        return self.items[index]

    def take(self, indices: Iterable[int]) -> "Task":
        """The items at these positions, in this order.

        Raises:
            ValueError: if one is not a whole number, as in a mask of True and False, or there is no such item.
        """
        plain = indices.tolist() if isinstance(indices, np.ndarray | Tensor) else indices
        at = [whole(index, "a position to take", most=len(self) - 1) for index in plain]
        return replace(self, items=tuple(self.items[index] for index in at))

    def filter(self, keep: Callable[[Item], bool]) -> "Task":
        """The items for which `keep` is true."""
        return replace(self, items=tuple(item for item in self.items if keep(item)))

    def where(self, index: int) -> str:
        """The source of the item at this position: its file and line, or its position in the task."""
        return self.items[index].source or f"{self.name}, item {index}"

    def clusters(self) -> tuple[tuple[int, ...], ...]:
        """The positions of the items that belong together, in order of their first item.

        Items belong together if they share a group, have the same text as prompt (spaces around it do not count), are
        pairs that share a sentence, or are linked through others that do.
        """
        # Union-find: each item points towards the first of its cluster, whose own parent it is itself.
        first_with: dict[object, int] = {}
        parent = list(range(len(self.items)))

        def root(index: int) -> int:
            while parent[index] != index:
                parent[index] = index = parent[parent[index]]  # halving the path keeps it short
            return index

        for index, item in enumerate(self.items):
            keys = [("group", group) for group in item.groups] + [("text", text) for text in item.identity]
            for key in keys:
                low, high = sorted((root(first_with.setdefault(key, index)), root(index)))
                parent[high] = low
        members: dict[int, list[int]] = {}
        for index in range(len(self.items)):
            members.setdefault(root(index), []).append(index)
        return tuple(tuple(indices) for indices in members.values())

    def split(self, *, screen: float = 0.1, validation: float = 0.2, test: float = 0.7, seed: int = 0) -> "Splits":
        """Three disjoint, shuffled parts of the task, which together are the whole of it.

        Clusters stay whole, so that neither a paraphrase nor the mirror image of a test item is ever selected on. A
        part misses its fraction by the largest cluster at most. The items of each part are shuffled too: its first
        items are a random sample of it.

        Args:
            screen: fraction of the items to look for promising candidates with.
            validation: fraction to choose among candidates with.
            test: fraction to report on, once.
            seed: the same seed gives the same parts on every machine.

        Raises:
            ValueError: if the fractions do not sum to 1, or one above 0 would get no items, or the seed is none.

        >>> parts = tasks.multiplication(10).split(seed=0)
        >>> len(parts.screen) + len(parts.validation) + len(parts.test)
        100
        """
        fractions = {"screen": screen, "validation": validation, "test": test}
        fractions = {name: number(value, name) for name, value in fractions.items()}
        if not min(fractions.values()) >= 0 or not abs(sum(fractions.values()) - 1) <= 1e-9:
            raise ValueError(
                f"the fractions screen={screen}, validation={validation}, test={test} sum to "
                f"{sum(fractions.values()):g}: they are 0 or more and sum to 1. Change one of them."
            )
        clusters = list(self.clusters())
        random.Random(checked_seed(seed)).shuffle(clusters)
        parts = _cut(clusters, list(fractions.values()))
        empty = [
            f"{name}={fractions[name]}"
            for name, part in zip(fractions, parts, strict=True)
            if fractions[name] and not part
        ]
        if empty:
            raise ValueError(
                f"{empty[0]} of the {len(self)} items of task {self.name!r}, in {len(clusters)} clusters that stay "
                "whole, are none: every part with a fraction above 0 needs an item. "
                "Give more items, or 0 for a part that is not needed."
            )
        return Splits(*(self.take(part) for part in parts))

    def to_dataframe(self) -> pd.DataFrame:
        """One row an item: kind, context, right and wrong continuations, groups, source, and `meta_` columns."""
        return pd.DataFrame(
            [
                {
                    "task": self.name,
                    "kind": item.kind,
                    "context": item.context,
                    "reference": item.right[0],
                    "right": item.right,
                    "wrong": item.wrong,
                    "groups": item.groups,
                    "source": item.source,
                    **{f"meta_{key}": value for key, value in item.metadata.items()},
                }
                for item in self.items
            ]
        )


@dataclass(frozen=True, slots=True)
class Splits:
    """Three disjoint parts of a task: to screen candidates, to choose among them, to report on.

    >>> tasks.addition(10).split(seed=0).test.name
    'addition'
    """

    screen: Task
    validation: Task
    test: Task

    def __post_init__(self) -> None:
        for name in ("screen", "validation", "test"):
            part: object = getattr(self, name)
            if not isinstance(part, Task):
                raise TypeError(f"{name}={shown(part)}: each part is a Task. Split one with task.split(seed=0).")
        texts = {name: _texts(getattr(self, name)) for name in ("screen", "validation", "test")}
        for name, other in combinations(texts, 2):
            both = texts[name] & texts[other]
            if both:
                raise ValueError(
                    f"{counted(len(both), 'item')} of {name} are in {other} too, such as {shown(min(both, key=repr))}: "
                    "an item that something was chosen on does not test it. Split with task.split(seed=0)."
                )


def _texts(part: Task) -> set[Item]:
    """The items that are text; items of ids are left out, since equal ones may be asked on purpose."""
    return {item for item in part.items if item.identity}


def as_task(given: object, *, allowed: str = "a Task") -> Task:
    """The task, also where it is given as a list of items; `allowed` is what else the caller takes, in words.

    Raises:
        TypeError: if it is neither.
    """
    match given:
        case Task():
            return given
        case list() | tuple() if given and all(isinstance(item, Item) for item in given):
            return Task("items", tuple(given))
        case Splits():
            remedy = "Choose one of its parts, such as parts.test"
        case _:
            remedy = "Read a file with tasks.from_jsonl or tasks.from_csv, or records with tasks.from_records"
    raise TypeError(f"task={shown(given)}: give {allowed} or a list of items. {remedy}.")


def as_splits(
    given: object,
    *,
    needed: Iterable[str] = ("screen", "validation", "test"),
    screen: float = 0.1,
    validation: float = 0.2,
    test: float = 0.7,
    seed: int,
) -> Splits:
    """The parts of a task as they are given, or split here; those that are `needed` have items.

    Raises:
        TypeError: if it is neither a task nor its parts.
        ValueError: if a part that is needed has no items, or as `Task.split`.
    """
    parts = given
    if not isinstance(parts, Splits):
        task = as_task(given, allowed="a Task, Splits,")
        parts = task.split(screen=screen, validation=validation, test=test, seed=seed)
    empty = next((name for name in needed if not len(getattr(parts, name))), None)
    if empty is not None:
        raise ValueError(
            f"the part {empty!r} of the task has no items: one looks for candidates in screen, chooses in validation "
            "and reports on test. Split the task with a fraction above 0 for it."
        )
    return parts


def _cut(clusters: list[tuple[int, ...]], fractions: list[float]) -> list[list[int]]:
    """The clusters in a row, cut where the number of items passed is nearest to the fractions asked for."""
    passed = np.cumsum([0, *map(len, clusters)])
    cuts = [0]
    for fraction in accumulate(fractions[:-1]):
        gaps = np.abs(passed - fraction * passed[-1])
        nearest = int(np.flatnonzero(gaps == gaps.min())[-1])  # of two equally near, the later
        cuts.append(max(cuts[-1], nearest))
    return [[i for cluster in clusters[a:b] for i in cluster] for a, b in pairwise([*cuts, len(clusters)])]
