"""What happens in a worker: a job comes in, the model is loaded once, and an answer goes out."""

import pickle
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from os import getpid
from threading import Lock
from typing import final
from uuid import uuid4

from torch import nn

from analyses.engines.identity import marks_of
from analyses.engines.loaders import WorkerError

PROCESS = uuid4().hex
"""Drawn when this module is imported: a process that was forked has its parent's."""
_at_work = Lock()
_models: dict[bytes, tuple[nn.Module, dict[str, str]]] = {}
"""The last model that was loaded, with its marks once they were asked for, by its loader."""
_prepared: dict[tuple[bytes, bytes], Callable[..., Iterable[object]]] = {}
"""The last work that was prepared, by its loader and what it is."""


@final
@dataclass(frozen=True, slots=True)
class Job:
    """What one call of `submit` sends: everything but the model, pickled once for all jobs where it is the same."""

    loader: bytes
    marks: Mapping[str, str] | None
    work: bytes
    piece: bytes
    sender: tuple[str, int]


@final
@dataclass(frozen=True, slots=True)
class Done:
    """What a piece of work has found, pickled: tensors would else lie in memory that dies with the worker."""

    found: bytes


@final
@dataclass(frozen=True, slots=True)
class Refused:
    """No other try would do better."""

    why: str


@final
@dataclass(frozen=True, slots=True)
class Failed:
    """An exception, as the text of its traceback."""

    trace: str


def answer(job: Job) -> Done | Refused | Failed:
    """What a worker returns: exceptions too, since not every engine brings them back."""
    token, process = job.sender
    if token == PROCESS:
        return Refused(_SAME_PROCESS if process == getpid() else _FORKED)
    if not _at_work.acquire(blocking=False):
        return Refused(_TWO_AT_A_TIME)
    try:
        function = _function_of(job)
        return Done(pickle.dumps(tuple(function(pickle.loads(job.piece)))))
    except WorkerError as refusal:
        return Refused(str(refusal))
    except Exception:
        _prepared.clear()
        return Failed(traceback.format_exc())
    finally:
        _at_work.release()


def _function_of(job: Job) -> Callable[..., Iterable[object]]:
    """The work, prepared for the model; both are kept until others are wanted."""
    key = job.loader, blake2b(job.work).digest()
    model = _model_of(job)
    if key not in _prepared:
        _prepared.clear()
        _prepared[key] = pickle.loads(job.work).on(model)
    return _prepared[key]


def _model_of(job: Job) -> nn.Module:
    """The worker's own model.

    Raises:
        WorkerError: if it is not the caller's.
    """
    if job.loader not in _models:
        _prepared.clear()
        _models.clear()
        _models[job.loader] = pickle.loads(job.loader)(), {}
    model, marks = _models[job.loader]
    if job.marks is None:
        return model
    if not marks:
        marks.update(marks_of(model))
    differing = [name for name, mark in job.marks.items() if marks.get(name) != mark]
    if differing:
        raise WorkerError(
            f"the model that {pickle.loads(job.loader)!r} loads in a worker is not the caller's: it differs in "
            f"{', '.join(differing)}. Load the same checkpoint, dtype and mode on both sides, with the same edits."
        )
    return model


class _Pickler(pickle.Pickler):
    """Pickles what may be sent: no model, and no parameter of one."""

    def persistent_id(self, obj: object) -> None:
        if isinstance(obj, nn.Module | nn.Parameter):
            raise ValueError(f"it holds a {type(obj).__name__}, and models are not sent")


def packed(value: object, what: str) -> bytes:
    """The value as bytes.

    Raises:
        ValueError: if it holds a model, or something that cannot be imported elsewhere.
    """
    buffer = BytesIO()
    try:
        _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{what} cannot be sent to workers: {error}. Give functions and classes that stand in an importable module "
            "(a metric of a function, not of a lambda), or leave out executor=."
        ) from None
    return buffer.getvalue()


_SAME_PROCESS = (
    "a piece was handed to a thread of this process: threads would edit one and the same model at the same time. Give "
    "processes, such as ProcessPoolExecutor(2, mp_context=get_context('spawn'))."
)
_FORKED = (
    "a worker was forked from this process, in which torch may have started threads and may hang: start workers with "
    "ProcessPoolExecutor(2, mp_context=get_context('spawn')), or 'forkserver'."
)
_TWO_AT_A_TIME = (
    "a worker was given two pieces at a time, which would edit one and the same model: give every worker one thread, "
    "such as LocalCluster(threads_per_worker=1) in Dask."
)
