"""What the three commands share: a run, and a method that estimates and makes it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from torch import nn

from analyses.papers._estimates import Estimate
from analyses.papers._folders import RunFolder
from analyses.papers._items import Items
from analyses.papers._reports import Section
from analyses.papers._settings import Settings
from analyses.tasks import Task


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A model and the items that it is asked, with the settings."""

    model: nn.Module
    items: Items
    settings: Settings

    @property
    def task(self) -> Task:
        """The items."""
        return self.items.task

    @property
    def progress(self) -> bool:
        """Whether progress bars are shown."""
        return not self.settings.quiet


@final
@dataclass(frozen=True, slots=True)
class Findings:
    """What a method found: sentences for the top of the page, sections, and how the items were divided."""

    summary: Sequence[str]
    sections: Sequence[Section]
    split: str


class Method(ABC):
    """A paper's experiment with its settings, which are the fields."""

    __slots__ = ()
    name: ClassVar[str]
    paper: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    title: ClassVar[str]

    @abstractmethod
    def estimate(self, asked: Asked) -> Estimate:
        """How long it will take and how much memory; nothing of the run is done or kept.

        Raises:
            ValueError: if anything of what was asked is impossible, so that no long run fails at its end.
        """

    @abstractmethod
    def find(self, asked: Asked, folder: RunFolder) -> Findings:
        """Run the experiment, going on from what the folder holds, and write tables and figures there."""


def page(folder: RunFolder) -> Path:
    """Where the report is."""
    return folder.path / "report.md"
