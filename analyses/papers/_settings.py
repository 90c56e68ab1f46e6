"""What every command is told, whichever paper it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

from hooks.loading import HostName

Split = Literal["published", "random"]
"""How items are divided: as the paper's code does, or in clusters at random, so that paraphrases stay together."""

_NOT_OF_THE_RESULT = ("model", "revision", "task", "data", "device", "batch_size", "output", "dry_run", "quiet")
"""Settings that a run may be taken up again with another value of: the weights and the items are compared themselves,
and the others change no number by more than rounding."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every command takes; the options of the command line have the same names."""

    model: str
    task: str
    output: Path
    data: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    revision: str | None = None
    host: HostName = "bridge"
    dtype: str = "float32"
    device: str | None = None
    prepend_bos: bool | None = None
    split: Split = "published"
    limit: int | None = None
    leave_out: bool = False
    draws: int = 5
    seed: int = 0
    batch_size: int | None = None
    steps: tuple[int, ...] | None = None
    """Of a training, whose checkpoints `model` names together; () for all of a folder, None for one model."""
    dry_run: bool = False
    quiet: bool = False

    def identity(self) -> dict[str, str]:
        """The settings that the numbers depend on, as text; weights and items are not among them."""
        named = {name: getattr(self, name) for name in self.__slots__ if name not in _NOT_OF_THE_RESULT}
        return {name: repr(dict(value) if isinstance(value, Mapping) else value) for name, value in named.items()}
