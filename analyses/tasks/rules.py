"""The rule that goes with a task, as a name and settings; the rules themselves are in `scoring`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, final

from surgery.arguments import shown

Setting: TypeAlias = str | int | float | bool | tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, repr=False)
class NamedRule:
    """The rule by which a task is scored where none is given, such as `Contains(n_tokens=15)`.

    Args:
        name: the class of the rule in `scoring`.
        settings: its arguments.

    >>> tasks.NamedRule("Contains", {"n_tokens": 15})
    Contains(n_tokens=15)
    """

    name: str
    settings: Mapping[str, Setting] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"name={shown(name)}: give the name of a rule of scoring, such as 'Contains'.")

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"
