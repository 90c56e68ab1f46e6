"""Specs as JSON documents: a schema with a version, a fingerprint of the weights, and nothing that is ever executed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import jsonschema
from torch import nn

from hooks import host_of
from hooks.editor import editor_of
from hooks.fingerprints import fingerprint
from surgery import controls, cuts, edits
from surgery.bases import decode_basis
from surgery.codec import TAG, build, encode
from surgery.specs import Spec, resolve

_FORMAT, VERSION = "model-surgery spec", 1

_EDITS: dict[str, type[edits.Edit]] = {
    cls.__name__: cls
    for cls in (
        cuts.KeepTop, cuts.KeepBottom, cuts.DropTop, cuts.DropBottom, edits.Keep, edits.Drop, edits.Scale, edits.Zero,
        edits.Compensated, controls.RandomComponents, controls.RandomBasis,
    )
}  # fmt: skip
_HEX = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_SCHEMA = {
    "type": "object",
    "required": ["format", "version", "weight_state", "edits", "fingerprints"],
    "additionalProperties": False,
    "properties": {
        "format": {"const": _FORMAT},
        "version": {"type": "integer"},
        "weight_state": {"type": "string"},
        "edits": {"type": "object", "additionalProperties": {"type": "object", "required": [TAG]}},
        "fingerprints": {"type": "object", "additionalProperties": _HEX},
    },
}


class SpecFileError(ValueError):
    """A file that does not hold a spec, or holds one for other weights."""


def save(spec: Spec, path: str | Path, *, model: nn.Module) -> None:
    """Write a spec as JSON, with a fingerprint of the model's unedited weights at every matrix it names.

    Raises:
        SiteError: if the spec does not fit the model.
    """
    marks = _fingerprints(model, spec)
    document = {
        "format": _FORMAT,
        "version": VERSION,
        "weight_state": host_of(model).weight_state(),
        "edits": {pattern: encode(edit) for pattern, edit in spec.items()},
        "fingerprints": marks,
    }
    Path(path).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load(path: str | Path, *, model: nn.Module | None = None) -> dict[str, edits.Edit]:
    """The spec that `save` wrote, after checking that `model` holds the weights it was made for (None: unchecked).

    Raises:
        SpecFileError: if the file is damaged, of another format or version, or made for other weights.
        SiteError: if the model has no such matrices.
    """
    document = _read(Path(path))
    spec = {pattern: _decoded(entry, path, pattern) for pattern, entry in document["edits"].items()}
    if model is not None:
        _check_fits(document, _fingerprints(model, spec), path, model)
    return spec


def decode_edit(document: Mapping[str, object]) -> edits.Edit:
    """The edit that `encode` wrote.

    Raises:
        ValueError: if the document names no edit, or gives it what it does not take.
    """
    values = dict(document)
    if "edit" in values:
        values["edit"] = decode_edit(_mapping(values["edit"]))
    if "basis" in values:
        values["basis"] = decode_basis(_mapping(values["basis"]))
    if isinstance(values.get("gain"), Mapping):
        values["gain"] = {int(index): gain for index, gain in values["gain"].items()}  # type: ignore[union-attr]
    return build(values, _EDITS, "edit")


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} stands where an object with a {TAG!r} belongs")
    return value


def _read(path: Path) -> dict:
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        jsonschema.validate(document, _SCHEMA)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as error:
        raise SpecFileError(f"{path} is not a spec: it is not readable JSON ({error}). Save the spec again.") from None
    except jsonschema.ValidationError as error:
        where = "/".join(map(str, error.absolute_path)) or "the top level"
        raise SpecFileError(f"{path} is not a spec: at {where}, {error.message[:200]}. Save the spec again.") from None
    if document["version"] != VERSION:
        raise SpecFileError(
            f"{path} has schema version {document['version']}; this release reads version {VERSION}. "
            "Install the release that wrote it, or save the spec again."
        )
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it contains {name}, which JSON does not know")


def _decoded(entry: Mapping[str, object], path: str | Path, pattern: str) -> edits.Edit:
    try:
        return decode_edit(entry)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise SpecFileError(f"{path}, edit of {pattern!r}: {error}.") from None


def _fingerprints(model: nn.Module, spec: Spec) -> dict[str, str]:
    host, editor = host_of(model), editor_of(model)
    return {str(site): fingerprint(editor.original(host.place(site))) for site, _ in resolve(model, spec)}


def _check_fits(document: dict, marks: dict[str, str], path: str | Path, model: nn.Module) -> None:
    state = host_of(model).weight_state()
    if document["weight_state"] != state:
        raise SpecFileError(
            f"{path} was made for weights that were {document['weight_state']}; this model's are {state}, so the same edit "
            "would be another one. Load the model in the state the spec was made for."
        )
    wrong = [site for site, mark in marks.items() if document["fingerprints"].get(site) != mark]
    wrong += [site for site in document["fingerprints"] if site not in marks]
    if wrong:
        raise SpecFileError(
            f"{path} was made for other weights: '{wrong[0]}' and {len(wrong) - 1} more of {len(marks)} matrices differ from this "
            "model's (another checkpoint, dtype, or trained since). Load that model, or load(path) without a model to skip the check."
        )
