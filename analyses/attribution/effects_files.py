"""Effects in a file: everything in one safetensors file, with what is no tensor as JSON in its header."""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from analyses.attribution.effects import REMOVAL, Effects, Measure, Shares
from surgery import SVD
from surgery.bases import decode_basis
from surgery.files import read_tensors, whole_file
from surgery.json_values import encode

_FORMAT, _VERSION = "model-surgery effects", "1"
_BY_SITE = ("examples", "strengths", "noise", "positions")


def save(effects: Effects, path: str | Path) -> None:
    """Write the effects to one safetensors file."""
    tensors = {
        f"{site}|{name}": rows.contiguous() for name in _BY_SITE for site, rows in getattr(effects, name).items()
    }
    measure = effects.measure
    tensors["baseline"] = measure.baseline.contiguous()
    about = {
        "method": effects.method, "units": effects.units, "weight_state": effects.weight_state,
        "passes": effects.passes, "name": measure.name, "unit": measure.unit,
        "higher_is_better": measure.higher_is_better, "basis": encode(effects.basis),
        "intervention": effects.intervention,
    }  # fmt: skip
    if isinstance(effects, Shares):
        tensors["change"] = effects.change.contiguous()
        about["notes"] = effects.notes
    metadata = {"format": _FORMAT, "version": _VERSION, "about": json.dumps(about)}
    with whole_file(path) as file:
        save_file(tensors, str(file), metadata=metadata)


def load(path: str | Path) -> Effects:
    """What `save` wrote.

    Raises:
        ValueError: if the file is damaged or not one of ours.
    """
    with read_tensors(path, (_FORMAT, _VERSION), "effects") as (metadata, tensors):
        return _read(json.loads(metadata["about"]), tensors)


def _read(about: dict, tensors: dict[str, Tensor]) -> Effects:
    units = {site: tuple(tuple(unit) for unit in chosen) for site, chosen in about["units"].items()}
    by_site = {
        name: {site: tensors[f"{site}|{name}"] for site in units if f"{site}|{name}" in tensors} for name in _BY_SITE
    }
    for site, chosen in units.items():
        if by_site["examples"][site].shape[1:] != (len(chosen),) or by_site["strengths"][site].ndim != 1:
            raise ValueError(f"the parts of {site} do not fit together")
    fields = {
        "method": about["method"],
        "measure": Measure(about["name"], about["unit"], about["higher_is_better"], tensors["baseline"]),
        "units": units,
        "weight_state": about["weight_state"],
        "passes": about["passes"],
        "basis": decode_basis(about["basis"]) if "basis" in about else SVD(),
        "intervention": about.get("intervention", _intervention_by(about["method"])),
        **by_site,
    }
    if "change" in tensors:
        return Shares(**fields, change=tensors["change"], notes=tuple(about["notes"]))
    return Effects(**fields)


def _intervention_by(method: str) -> str:
    """What files say that were written before they named it."""
    patched = method.startswith("patching") or "clean to corrupted" in method or "(resample)" in method
    return "patching" if patched else "replacement by the mean" if "(mean)" in method else REMOVAL
