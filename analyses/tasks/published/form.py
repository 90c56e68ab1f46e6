"""How the records of a data set become items: the settings of a recipe, each of which is one of its options."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from analyses.tasks._json_csv import Record
from analyses.tasks.items import Item
from analyses.tasks.rules import NamedRule
from surgery.arguments import seed


class LeftOut(Exception):
    """A record that the published experiment leaves out; the text is the reason, by which such records are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form(ABC):
    """A way from records to items. Its fields are the options of a recipe.

    Args:
        prompt: the prompt's template, with the record's texts in braces.
        splits: the splits of the data set that are taken, in this order; none where the items are made.
        shuffle_seed: shuffles the records before anything else; None keeps the published order.
        separator: what goes between a prompt and a text that continues it, unless one of them brings white space.
    """

    prompt: str
    splits: tuple[str, ...] = ()
    shuffle_seed: int | None = None
    separator: str = " "

    @property
    @abstractmethod
    def rule(self) -> NamedRule:
        """What counts as right."""

    @abstractmethod
    def items(self, record: Record) -> list[Item]:
        """The items that the record makes.

        Raises:
            LeftOut: if the published experiment leaves the record out.
            ItemError: if it makes none: a column is missing, or holds what this data set does not have.
        """

    def chosen(self, parts: Mapping[str, Sequence[Record]]) -> list[Record]:
        """The records that are read, in their order, of those of each split."""
        return list(chain.from_iterable(parts.values()))

    def reader(self, records: Sequence[Record]) -> Callable[[Record], list[Item]]:
        """What makes the items of each of these records, where that takes a look at the others."""
        return self.items

    def note(self, items: Sequence[Item]) -> str:
        """What of the published filter could not be done; empty where all was."""
        return ""

    def ordered(self, parts: Mapping[str, Sequence[Record]]) -> list[Record]:
        """The records that are read, shuffled if that was asked for."""
        records = self.chosen(parts)
        if self.shuffle_seed is not None:
            random.Random(seed(self.shuffle_seed, "shuffle_seed")).shuffle(records)
        return records
