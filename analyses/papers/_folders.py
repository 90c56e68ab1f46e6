"""The folder of a run: which run it belongs to, and where its files go."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pandas as pd

from analyses.laser import Log
from surgery.arguments import shown
from surgery.files import whole_file

_FORMAT = {"format": "model-surgery run", "version": 1}
_RUN, _PIECES = "run.json", "finished.jsonl"


class FolderError(ValueError):
    """A folder that cannot take this run: it is a file, holds other files, or belongs to another run."""


@final
@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run. `identity` says which run it is: everything that its numbers depend on, by name."""

    path: Path
    identity: Mapping[str, str]

    @classmethod
    def opened(cls, path: Path, identity: Mapping[str, str]) -> "RunFolder":
        """The folder, made if it is not there; nothing is written into one that is refused.

        Raises:
            FolderError: if it belongs to another run, or is no folder for one.
        """
        check(path, identity)
        path.mkdir(parents=True, exist_ok=True)
        if not (path / _RUN).exists():
            with whole_file(path / _RUN) as file:
                file.write_text(json.dumps({**_FORMAT, "run": dict(identity)}, indent=1) + "\n", encoding="utf-8")
        return cls(path, identity)

    def log(self, name: str) -> Path:
        """Where the log of a part of the run is, or is going to be."""
        return self.path / f"{name}.jsonl"

    def piece(self, key: str, make: Callable[[], dict]) -> dict:
        """A finished piece of the run, read from the folder, or made now and kept there; it has to fit into JSON."""
        log = Log(self.path / _PIECES, dict(self.identity))
        if key not in log:
            log.put(key, make())
        return {name: value for name, value in (log.get(key) or {}).items() if name != "key"}

    def table(self, name: str, frame: pd.DataFrame) -> str:
        """Write a table as CSV; its file name."""
        with whole_file(self.path / f"{name}.csv") as file:
            frame.to_csv(file, index=False)
        return f"{name}.csv"

    def text(self, name: str, text: str) -> Path:
        """Write a text file; its path."""
        with whole_file(self.path / name) as file:
            file.write_text(text, encoding="utf-8")
        return self.path / name


def check(path: Path, identity: Mapping[str, str]) -> None:
    """Refuse a folder that cannot take the run; of the identity only what is given here is compared.

    Raises:
        FolderError: if it belongs to another run, or is no folder for one.
    """
    if path.exists() and not path.is_dir():
        raise FolderError(f"'{path}' is a file: give a folder, new or of the same run.")
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / _RUN).exists():
        raise FolderError(
            f"the folder '{path}' holds files and no {_RUN}, so it is not of a run: give a new or an empty folder."
        )
    there = _read(path / _RUN)
    differing = [name for name in identity if there.get(name) != identity[name]]
    if differing:
        told = "; ".join(f"{name} is {shown(there.get(name))} there and {shown(identity[name])} here"
                         for name in differing)  # fmt: skip
        raise FolderError(
            f"the folder '{path}' holds another run: {told}. Repeat that run's command to go on with it, or give "
            "another folder."
        )


def _read(path: Path) -> dict[str, str]:
    """The identity of the run that the folder belongs to.

    Raises:
        FolderError: if the file is damaged or another one.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if all(document.get(name) == value for name, value in _FORMAT.items()):
            return {str(name): str(value) for name, value in document["run"].items()}
    except (ValueError, KeyError, AttributeError):
        pass
    raise FolderError(f"'{path}' is damaged, or not one that this release wrote: give another folder.")
