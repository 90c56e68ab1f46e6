"""How a data set becomes items: the settings of a recipe, each of which is one of its options."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from analyses.tasks._json_csv import Record
from analyses.tasks.items import Item
from analyses.tasks.rules import NamedRule
from surgery.arguments import seed

Parts = Mapping[str, Sequence[Record]]
"""The records of each split; of data without splits, all of them under the empty name."""


class LeftOut(Exception):
    """A record that the published experiment leaves out; the text is the reason, by which such records are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form(ABC):
    """What the items of a recipe are like. Its fields are the recipe's options.

    Args:
        prompt: the prompt's template, with the texts of an item in braces.
        separator: what goes between a prompt and a text that continues it, unless one of them brings white space.
    """

    prompt: str
    separator: str = " "

    @property
    @abstractmethod
    def rule(self) -> NamedRule:
        """What counts as right."""

    def note(self, items: Sequence[Item]) -> str:
        """What of the published form could not be done, or is not as one expects; empty for nothing."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made(Form):
    """Items that are made here."""

    @abstractmethod
    def made(self) -> tuple[Item, ...]:
        """The items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FromRecords(Form):
    """Items from the records of a data set.

    Args:
        splits: the splits of the data set that are taken, in this order; () for all that are given.
        shuffle_seed: shuffles the records of all splits before anything else; None keeps the published order.
    """

    splits: tuple[str, ...] = ()
    shuffle_seed: int | None = None

    @abstractmethod
    def items(self, record: Record) -> list[Item]:
        """The items that the record makes.

        Raises:
            LeftOut: if the published experiment leaves the record out.
            ItemError: if it makes none: a column is missing, or holds what this data set does not have.
        """

    @property
    def read_splits(self) -> tuple[str, ...]:
        """The splits that have to be read."""
        return self.splits

    def chosen(self, parts: Parts) -> list[Record]:
        """The records that are asked about, in their order."""
        asked = [records for split, records in parts.items() if not self.splits or split in ("", *self.splits)]
        return list(chain.from_iterable(asked))

    def reader(self, parts: Parts) -> Callable[[Record], list[Item]]:
        """What makes the items of each record, where that takes a look at the others."""
        return self.items

    def ordered(self, parts: Parts) -> list[Record]:
        """The records that are asked about, shuffled if that was asked for."""
        records = self.chosen(parts)
        if self.shuffle_seed is not None:
            random.Random(seed(self.shuffle_seed, "shuffle_seed")).shuffle(records)
        return records
