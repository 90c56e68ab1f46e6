"""Specs as JSON documents: a schema with a version, a fingerprint of the weights, and nothing that is ever executed."""

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

from torch import nn

from hooks import host_of
from hooks.editor import editor_of
from hooks.fingerprints import fingerprint
from surgery import controls, cuts, edits
from surgery.arguments import shown
from surgery.bases import decode_basis
from surgery.errors import SpecFileError
from surgery.files import whole_file
from surgery.json_values import TAG, build, encode
from surgery.specs import Spec, check_spec, resolve

T = TypeVar("T")
_FORMAT, VERSION = "model-surgery spec", 1

_EDITS: dict[str, type[edits.Edit]] = {
    cls.__name__: cls
    for cls in (
        cuts.KeepTop, cuts.KeepBottom, cuts.DropTop, cuts.DropBottom, edits.Keep, edits.Drop, edits.Scale, edits.Zero,
        edits.Compensated, controls.RandomComponents, controls.RandomBasis,
    )
}  # fmt: skip
_INDEX = re.compile(r"0|-?[1-9][0-9]{0,17}")
_HEX = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_SCHEMA = {
    "type": "object",
    "required": ["format", "version", "weight_state", "edits", "fingerprints"],
    "additionalProperties": False,
    "properties": {
        "format": {"const": _FORMAT},
        "version": {"const": VERSION},
        "weight_state": {"type": ["string", "null"]},
        "edits": {"type": "object", "additionalProperties": {"type": "object", "required": [TAG]}},
        "fingerprints": {"type": "object", "additionalProperties": _HEX},
    },
}


def save(spec: Spec, path: str | Path, *, model: nn.Module | None = None) -> None:
    """Write a spec as JSON, with a fingerprint of the model's unedited weights at every matrix it names.

    Without a model the file holds no fingerprints, and `load` cannot tell which weights the spec was made for.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "edit.json"
    ...     surgery.save({"blocks.0.mlp.W_out": surgery.KeepTop(rank=3)}, path, model=model)
    ...     surgery.load(path, model=model)
    {'blocks.0.mlp.W_out': KeepTop(rank=3)}

    Raises:
        SiteError: if the spec does not fit the model.
        ValueError: if it holds an edit or a basis of somebody's own making, which `load` could not make again.
        TypeError: if the spec is not a mapping of patterns to edits.
    """
    check_spec(spec)
    document = {
        "format": _FORMAT,
        "version": VERSION,
        "weight_state": None if model is None else host_of(model).weight_state(),
        "edits": {pattern: _encoded(edit, pattern) for pattern, edit in spec.items()},
        "fingerprints": {} if model is None else _fingerprints(model, spec),
    }
    with whole_file(path) as file:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def load(path: str | Path, *, model: nn.Module | None = None) -> dict[str, edits.Edit]:
    """The spec that `save` wrote; with `model`, only if the model holds the weights that the spec was made for.

    A file that was saved without a model fits any weights; a warning says so if a model is given. See `save`.

    Raises:
        SpecFileError: if the file is damaged, of another format or version, or made for other weights.
        SiteError: if the model has no such matrices.

    >>> surgery.save({"blocks.0.mlp.W_out": surgery.KeepTop(rank=2)}, "spec.json")
    >>> surgery.load("spec.json")
    {'blocks.0.mlp.W_out': KeepTop(rank=2)}
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
    gain = values.get("gain")
    if isinstance(gain, Mapping):
        values["gain"] = _unique((_component(index), value) for index, value in gain.items())
    return build(values, _EDITS, "edit")


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{shown(value)} stands where an object with a {TAG!r} belongs")
    return value


def _component(index: str) -> int:
    if not _INDEX.fullmatch(index):
        raise ValueError(f"{shown(index)} stands where a component belongs, a whole number such as 3 or -1")
    return int(index)


def _unique(pairs: Iterable[tuple[T, object]]) -> dict[T, object]:
    """The pairs as a dictionary; JSON itself would let the last of several with one name win."""
    unique: dict[T, object] = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"it names {shown(name)} twice")
        unique[name] = value
    return unique


def _encoded(edit: edits.Edit, pattern: str) -> dict[str, object]:
    try:
        document = encode(edit)
        decode_edit(document)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"spec[{pattern!r}] is {shown(edit)}, which cannot be saved ({error}): build it from the edits and bases "
            "of this package, Scale for instance."
        ) from None
    return document


def _read(path: Path) -> dict:
    if path.is_dir():
        raise SpecFileError(f"{path} is a folder, not a spec: give the name of the file that surgery.save wrote.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
        document = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise SpecFileError(f"{path} is not a spec: it is not readable JSON ({error}). Save the spec again.") from None
    _check_version(document, path)
    # Imported here: beside Jupyter, jsonschema builds grammars for a second, and few sessions read a spec.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(_SCHEMA).iter_errors(document))
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the top level"
        raise SpecFileError(f"{path} is not a spec: at {where}, {error.message[:200]}. Save the spec again.")
    return document


def _check_version(document: object, path: Path) -> None:
    """Refuse another version before the schema is checked, by which such a file is merely invalid."""
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        return
    version = document.get("version")
    if isinstance(version, int) and version != VERSION:
        raise SpecFileError(
            f"{path} has schema version {shown(version)}; this release reads version {VERSION}. "
            "Install the release that wrote it, or save the spec again."
        )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it contains {name}, which JSON does not know")


def _decoded(entry: Mapping[str, object], path: str | Path, pattern: str) -> edits.Edit:
    try:
        return decode_edit(entry)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise SpecFileError(
            f"{path}, edit of {shown(pattern)}: {str(error).rstrip('.')}. Save the spec again."
        ) from None


def _fingerprints(model: nn.Module, spec: Spec) -> dict[str, str]:
    editor = editor_of(model)
    return {str(place.site): fingerprint(editor.original(place)) for place, _ in resolve(model, spec)}


def _check_fits(document: dict, marks: dict[str, str], path: str | Path, model: nn.Module) -> None:
    state = host_of(model).weight_state()
    if document["weight_state"] is None and not document["fingerprints"]:
        warnings.warn(
            f"{path} was saved without a model, so nothing tells whether it was made for the weights of this one. Save "
            "it with surgery.save(spec, path, model=model) to have that checked.",
            stacklevel=3,
        )
        return
    if document["weight_state"] != state:
        raise SpecFileError(
            f"{path} was made for weights that were {shown(document['weight_state'])}; this model's are {state!r}, so "
            "the same edit would be another one. Load the model in the state the spec was made for."
        )
    wrong = [site for site, mark in marks.items() if document["fingerprints"].get(site) != mark]
    wrong += [site for site in document["fingerprints"] if site not in marks]
    if wrong:
        raise SpecFileError(
            f"{path} was made for other weights: this model's {_listed(wrong)} (another checkpoint, dtype, or trained "
            "since). Load that model, or load(path) without a model to skip the check."
        )


def _listed(sites: list[str]) -> str:
    others = {1: "", 2: " and one other matrix"}.get(len(sites), f" and {len(sites) - 1} other matrices")
    return f"{shown(sites[0])}{others} {'differs' if len(sites) == 1 else 'differ'}"
