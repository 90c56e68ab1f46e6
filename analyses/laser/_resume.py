"""A file of what a search has finished, a line each, from which the same search goes on after it was stopped."""

import base64
import json
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from analyses.engines import digest, model_fingerprint
from analyses.metrics import Metric
from analyses.scoring import Outcome, Readings, Rule
from analyses.tasks.task import Task
from hooks.recording import has_hooks
from hooks.vocabulary import prepends_bos
from surgery.files import whole_file

_FORMAT = {"format": "model-surgery search log", "version": 2}
_COLUMNS = {"log_prob": "<f8", "rank": "<i8", "top": "<i8"}
"""The columns of `Readings`, and how their numbers are stored."""


class LogError(ValueError):
    """A file that is no search log, belongs to another search, or holds what this search cannot have found."""


@final
class Log:
    """Finished pieces of work by key, each a JSON object; with a path, also in that file.

    The header is the file's first line. It says which work this is: a mapping from what the work depends on, such as
    the model and the task, to a fingerprint. Every further line is one finished piece with a checksum. A last line
    without its end was cut short by a kill and is dropped, since its piece was not finished. Any other damaged line is
    skipped with a warning, and its piece is done again.

    Raises:
        LogError: if the path is a folder, or the file is no log or has another header.
    """

    def __init__(self, path: str | Path | None = None, header: Mapping[str, str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._pieces = {} if self.path is None else _opened(self.path, header or {})

    def __contains__(self, key: str) -> bool:
        return key in self._pieces

    def __len__(self) -> int:
        return len(self._pieces)

    def get(self, key: str) -> dict | None:
        """The piece of this key, or None if it is not finished."""
        return self._pieces.get(key)

    def put(self, key: str, piece: Mapping[str, object]) -> None:
        """Keep a finished piece; it is on the disk when this returns."""
        self._pieces[key] = {"key": key, **piece}
        if self.path is not None:
            # One write of a whole line: a kill leaves the line, a beginning of it, or nothing.
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line_of(self._pieces[key]))
                file.flush()
                os.fsync(file.fileno())


def join_logs(logs: Iterable[str | Path], *, into: str | Path) -> Path:
    """One log of everything that several logs of the same search hold, such as those of its parts; its path.

    `into` may be there already, as a log of the same search. Where two logs hold the same piece, the first one counts.

    Raises:
        LogError: if there are no logs, or one is of another search than the first.
        FileNotFoundError: if there is no such file.

    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> result = laser.search(model, items, rhos=(0.5,), log="one.jsonl", progress=False)
    >>> laser.join_logs(["one.jsonl"], into="all.jsonl").name
    'all.jsonl'
    """
    into, paths = Path(into), [logs] if isinstance(logs, str | Path) else [*logs]
    if not paths:
        raise LogError("no logs were given: name the logs of a search, such as Path('parts').glob('*.jsonl').")
    every = [*([into] if into.exists() else []), *map(Path, paths)]
    headers = {path: _header_of(path) for path in every}
    pieces: dict[str, dict] = {}
    for path in every:
        for key, piece in _read(path, headers[every[0]])[0].items():
            pieces.setdefault(key, piece)
    into.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(into) as file:
        first = json.dumps({**_FORMAT, **headers[every[0]]}) + "\n"
        file.write_text(first + "".join(map(line_of, pieces.values())), encoding="utf-8")
    return into


def line_of(piece: Mapping[str, object]) -> str:
    """A piece as a line of the file, with its checksum."""
    return json.dumps({**piece, "check": digest(json.dumps(piece))}) + "\n"


def search_header(
    model: nn.Module, parts: Mapping[str, Task], settings: Mapping[str, object], candidates: list[str]
) -> dict[str, str]:
    """Fingerprints of everything that a search's numbers depend on, by name."""
    items = {
        name: [(item.kind, item.context, item.right, item.wrong, item.groups) for item in part.items]
        for name, part in parts.items()
    }
    rules = {name: repr(part.rule) for name, part in parts.items() if part.rule is not None}
    weights = model_fingerprint(model)
    # What hooks do has no fingerprint: a model with some is another model than one with none.
    named = {"model": digest(f"{weights}, with hooks") if has_hooks(model) else weights}
    named |= {"task": digest(repr((items, rules) if rules else items)), "candidates": digest(repr(candidates))}
    named |= {name: _named(value) for name, value in settings.items()}
    if settings.get("prepend_bos", False) is None:
        named["prepend_bos"] = repr(prepends_bos(model))
    return named


def _named(setting: object) -> str:
    # A metric is known by its kind and name: what else it holds has no text of its own.
    if isinstance(setting, Metric) and not isinstance(setting, Rule):
        return f"{type(setting).__name__}({setting.name!r})"
    return repr(setting)


def packed(said: Outcome) -> dict[str, object]:
    """What a model said, bit for bit, as JSON can hold it."""
    columns = {name: _text(getattr(said.readings, name), dtype) for name, dtype in _COLUMNS.items()}
    if said.measured is not None:
        columns["measured"] = _text(said.measured, "<f8")
    return {**columns, "generated": [list(ids) for ids in said.generated]}


def unpacked(said: Mapping) -> Outcome:
    """What `packed` was given."""
    columns = {name: _tensor(said[name], dtype) for name, dtype in _COLUMNS.items()}
    measured = _tensor(said["measured"], "<f8") if "measured" in said else None
    return Outcome(Readings(**columns), tuple(tuple(ids) for ids in said["generated"]), measured)


def lengths(said: Outcome) -> list[int]:
    """How many entries each column of what a model said has; 0 of one that is not there."""
    columns = [getattr(said.readings, name) for name in _COLUMNS]
    return [*map(len, columns), len(said.generated), 0 if said.measured is None else len(said.measured)]


def _text(column: Tensor, dtype: str) -> str:
    data = column.cpu().numpy().astype(dtype).tobytes()
    return base64.b64encode(zlib.compress(data, 1)).decode("ascii")


def _tensor(text: str, dtype: str) -> Tensor:
    column = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype)
    return torch.from_numpy(column.astype(column.dtype.newbyteorder("="), copy=True))


def _header_of(path: Path) -> dict[str, str]:
    """What a log says of its search.

    Raises:
        LogError: if the file is no log.
    """
    if path.is_dir():
        raise LogError(f"'{path}' is a folder: name the logs in it.")
    with path.open("rb") as file:
        line = file.readline()
    _check_header(path, line, {})
    return {name: value for name, value in json.loads(line).items() if name not in _FORMAT}


def _opened(path: Path, header: Mapping[str, str]) -> dict[str, dict]:
    """The finished pieces of a log; a new file where there is none."""
    if path.is_dir():
        raise LogError(f"log='{path}' is a folder: a search log is one file. Give the path of a file, new or old.")
    if not path.exists() or path.stat().st_size == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write_text(json.dumps({**_FORMAT, **header}) + "\n", encoding="utf-8")
        return {}
    pieces, end = _read(path, header)
    if end < path.stat().st_size:
        os.truncate(path, end)
    return pieces


def _read(path: Path, header: Mapping[str, str]) -> tuple[dict[str, dict], int]:
    """The finished pieces in a log, and where its last whole line ends."""
    data = path.read_bytes()
    finished = data[: data.rfind(b"\n") + 1]
    first, *lines = finished.split(b"\n")[:-1] or [b"{}"]
    _check_header(path, first, header)
    pieces, damaged = {}, []
    for number, line in enumerate(lines, start=2):
        try:
            piece = _piece(line)
            pieces[piece["key"]] = piece
        except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, no object, or another one
            damaged.append(number)
    if damaged:
        numbers = ", ".join(map(str, damaged[:10])) + (" and more" if len(damaged) > 10 else "")
        warnings.warn(
            f"{path}: damaged and passed over: {numbers} (numbers of lines). What they held is found out again.",
            stacklevel=2,
        )
    return pieces, len(finished)


def _piece(line: bytes) -> dict:
    piece = json.loads(line)
    if piece.pop("check") != digest(json.dumps(piece)):
        raise ValueError("not as it was written")
    return piece


def _check_header(path: Path, line: bytes, wanted: Mapping[str, str]) -> None:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or any(header.get(name) != value for name, value in _FORMAT.items()):
        raise LogError(
            f"{path} does not begin as a search log of version {_FORMAT['version']}: nothing was written to it. Give "
            "the path of a new file, or of a log that this release wrote."
        )
    differing = [name for name in wanted if header.get(name) != wanted[name]]
    if differing:
        raise LogError(
            f"{path} is the log of another search, which differs in {', '.join(differing)}: only the same search "
            "goes on from a log, and one with more or other candidates begins anew. Give the path of a new file, or "
            "repeat the search that this one belongs to."
        )
