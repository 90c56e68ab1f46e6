"""A file of what a search has finished, a line each, from which the same search goes on after it was stopped."""

import base64
import json
import os
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from analyses.laser.evaluation import Outcome
from analyses.scoring import EncodedTask, Readings
from analyses.tasks.task import Task
from hooks.fingerprints import fingerprint
from surgery import active
from surgery.files import whole_file
from surgery.json_values import encode

_FORMAT, _VERSION = "model-surgery search log", 2


class LogError(ValueError):
    """A file that is no search log, belongs to another search, or holds what this search cannot have found."""


@final
@dataclass(slots=True)
class Log:
    """What has been finished, by key; with a path, also in that file.

    The first line says which search it is: a mapping of what the search depends on, such as the model and the task, to
    a fingerprint of it. Every further line is one finished piece with a checksum. A last line that was cut short is
    dropped, since its piece was not finished; any other line that is damaged is passed over with a warning, and what it
    held is found out again.
    """

    path: Path | None = None
    header: Mapping[str, str] = field(default_factory=dict)
    _pieces: dict[str, dict] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.path is not None:
            self._open(self.path)

    def __contains__(self, key: str) -> bool:
        return key in self._pieces

    def __len__(self) -> int:
        return len(self._pieces)

    def outcome(self, key: str, encoded: EncodedTask) -> Outcome | None:
        """What a model said on these items, if that has been found out.

        Raises:
            LogError: if it was said on another number of items.
        """
        piece = self._pieces.get(key)
        if piece is None:
            return None
        said = _unpacked(piece["said"])
        columns = [len(said.readings.log_prob), len(said.readings.rank), len(said.readings.top), len(said.generated)]
        n = encoded.n_targets
        wanted = [n, n, n, len(encoded.task) if encoded.rule.new_tokens else 0]
        if columns != wanted:
            raise LogError(
                f"{self.path}, the line of {key!r}: its columns have {columns} entries, and this search reads "
                f"{wanted}. Delete the line, or the file, and search again."
            )
        return said

    def numbers(self, key: str) -> dict[str, float] | None:
        """Named numbers, if they have been found out."""
        piece = self._pieces.get(key)
        return None if piece is None else piece["numbers"]

    def put_outcome(self, key: str, outcome: Outcome, shown: Mapping[str, object]) -> None:
        """Keep what a model said; `shown` is for people who read the file."""
        self._put(key, {**shown, "said": _packed(outcome)})

    def put_numbers(self, key: str, numbers: Mapping[str, float]) -> None:
        """Keep named numbers."""
        self._put(key, {"numbers": dict(numbers)})

    def _put(self, key: str, piece: dict) -> None:
        self._pieces[key] = piece
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line({"key": key, **piece}))
                file.flush()
                os.fsync(file.fileno())

    def _open(self, path: Path) -> None:
        if not path.exists() or path.stat().st_size == 0:
            _replace(path, json.dumps({"format": _FORMAT, "version": _VERSION, **self.header}) + "\n")
            return
        header, lines = _lines(path)
        _check_header(path, header, self.header)
        self._pieces = {line["key"]: line for line in lines}


def search_header(
    model: nn.Module, parts: Mapping[str, Task], settings: Mapping[str, object], candidates: list[str]
) -> dict[str, str]:
    """Fingerprints of everything that a search's numbers depend on, by name."""
    items = {
        name: [(item.kind, item.context, item.right, item.wrong, item.groups) for item in part.items]
        for name, part in parts.items()
    }
    return {
        "model": model_fingerprint(model),
        "task": _digest(repr(items)),
        "candidates": _digest(repr(candidates)),
        **{name: repr(value) for name, value in settings.items()},
    }


def model_fingerprint(model: nn.Module) -> str:
    """32 hexadecimal digits for the weights as they are, and the edits in force on them."""
    held = {id(parameter): parameter for parameter in model.parameters()}
    marks = [
        fingerprint(parameter.detach().reshape(1, -1))
        for parameter in held.values()
        if parameter.is_floating_point() and parameter.numel()
    ]
    edits = [(str(change.site), encode(change.edit)) for operation in active(model) for change in operation.changes]
    return _digest(repr((marks, edits)))


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def _line(piece: dict) -> str:
    return json.dumps({**piece, "check": _digest(json.dumps(piece))}) + "\n"


def _lines(path: Path) -> tuple[dict, list[dict]]:
    """The header of a log and its whole lines; a last one without its end is taken off the file."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    first, *rest = whole.split(b"\n")[:-1] or [b"{}"]
    header = _header(path, first)
    found, damaged = [], []
    for number, line in enumerate(rest, start=2):
        try:
            found.append(_entry(line))
        except (ValueError, KeyError, TypeError, zlib.error):
            damaged.append(number)
    if damaged:
        numbers = ", ".join(map(str, damaged[:10])) + (" and more" if len(damaged) > 10 else "")
        warnings.warn(
            f"{path}: damaged and passed over: {numbers} (numbers of lines). What they held is found out again.",
            stacklevel=2,
        )
    if header.get("format") == _FORMAT and len(whole) < len(data):
        os.truncate(path, len(whole))
    return header, found


def _header(path: Path, line: bytes) -> dict:
    try:
        held = json.loads(line)
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise LogError(
            f"{path}, line 1 cannot be read: a search log begins with a JSON object that says which search it is. "
            "Give the path of a new file."
        )
    return held


def _entry(line: bytes) -> dict:
    held = json.loads(line)
    if not isinstance(held, dict) or held.pop("check", None) != _digest(json.dumps(held)):
        raise ValueError("it is not an entry, or not as it was written")
    if not isinstance(held["key"], str):
        raise ValueError("it has no key")
    if "numbers" not in held:
        _unpacked(held["said"])
    return held


def _check_header(path: Path, held: Mapping[str, object], header: Mapping[str, str]) -> None:
    if held.get("format") != _FORMAT or held.get("version") != _VERSION:
        raise LogError(
            f"{path} does not begin as a search log of version {_VERSION}: nothing was written to it. Give the path of "
            "a new file, or of a log that this release wrote."
        )
    differing = [name for name in header if held.get(name) != header[name]]
    if differing:
        raise LogError(
            f"{path} is the log of another search, which differs in {', '.join(differing)}: only the same search "
            "goes on from a log, and one with more or other candidates begins anew. Give the path of a new file, or "
            "repeat the search that this one belongs to."
        )


def _packed(outcome: Outcome) -> dict[str, object]:
    readings = outcome.readings
    columns = {"log_prob": readings.log_prob.double(), "rank": readings.rank.long(), "top": readings.top.long()}
    return {
        **{name: _text(column) for name, column in columns.items()},
        "generated": [list(ids) for ids in outcome.generated],
    }


def _unpacked(said: Mapping) -> Outcome:
    readings = Readings(_tensor(said["log_prob"], "<f8"), _tensor(said["rank"], "<i8"), _tensor(said["top"], "<i8"))
    return Outcome(readings, tuple(tuple(ids) for ids in said["generated"]))


def _text(column: Tensor) -> str:
    little = column.cpu().numpy().astype(column.cpu().numpy().dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(little.tobytes(), 1)).decode("ascii")


def _tensor(text: str, dtype: str) -> Tensor:
    column = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype)
    return torch.from_numpy(column.astype(column.dtype.newbyteorder("="), copy=True))
