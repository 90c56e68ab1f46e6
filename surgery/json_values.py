"""Edits and bases as JSON objects: the name of a type and whatever differs from its defaults."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TypeVar

from torch import Tensor

from surgery.arguments import shown

__all__ = ["encode"]

TAG = "type"
T = TypeVar("T")


def encode(value: object) -> dict[str, object]:
    """An edit or a basis as a JSON object, of which `build` makes it again if it knows the type."""
    document: dict[str, object] = {TAG: type(value).__name__}
    for field in fields(value):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        if isinstance(item, Tensor) or item != field.default:
            document[field.name] = _plain(item)
    return document


def build(document: Mapping[str, object], known: Mapping[str, type[T]], what: str) -> T:
    """An instance of the type that the document names, from its fields.

    Raises:
        ValueError: if the type is not known or takes no such fields.
    """
    values = dict(document)
    name = values.pop(TAG, None)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{shown(name)} is no {what}: known are {', '.join(known)}")
    allowed = {field.name for field in fields(known[name])}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - allowed):
        raise ValueError(f"{name} takes {', '.join(sorted(allowed)) or 'nothing'}, not {shown(', '.join(unknown))}")
    return known[name](**values)


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if is_dataclass(value):
        return encode(value)
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
