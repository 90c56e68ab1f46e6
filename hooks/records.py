"""What is remembered about a model for as long as it lives: one record a model, shared by every package."""

from collections.abc import Callable
from threading import RLock
from typing import TypeVar, cast, final
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["Record", "of_every_model", "record_of"]

T = TypeVar("T")


@final
class Record:
    """The one place for what packages remember about a model: an object of each type that was asked for.

    Nothing in it may hold the model itself, which would then never be freed: hold it by `weakref.ref(model)`.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        """Held by whoever changes the model, so that threads do so one after the other."""
        self._remembered: dict[type, object] = {}

    def of(self, kind: type[T], make: Callable[[], T] | None = None) -> T:
        """The model's object of this type, made by `make()` (or by `kind()`) when it is first asked for."""
        if kind not in self._remembered:
            self._remembered.setdefault(kind, (make or kind)())
        return cast(T, self._remembered[kind])

    def has(self, kind: type) -> bool:
        """Whether an object of this type has been asked for."""
        return kind in self._remembered


_records: WeakKeyDictionary[nn.Module, Record] = WeakKeyDictionary()


def record_of(model: nn.Module) -> Record:
    """The record of this model, the same one every time."""
    return _records.get(model) or _records.setdefault(model, Record())


def of_every_model(kind: type[T]) -> list[T]:
    """The objects of this type in the records of all models."""
    return [record.of(kind) for record in list(_records.values()) if record.has(kind)]
