"""Edit the singular components of a TransformerLens model's weight matrices: exactly, reversibly, by name.

    with surgery.apply(model, {"blocks.*.mlp.W_out": KeepTop(rho=0.05)}) as operation:
        logits = model(tokens)

A spec maps patterns to edits; `apply` shows the edited weights until it is undone.
"""

from surgery._guard import check_package, warn_if_hidden

check_package("hooks")
warn_if_hidden("analyses")

from collections.abc import Iterable

from torch import nn

from hooks import EditedModelError, SiteError, match_each
from surgery.as_hooks import fwd_hooks
from surgery.bases import SVD, Basis, HaarBasis, RandomizedSVD, RowBlocks
from surgery.controls import RandomBasis, RandomComponents
from surgery.cuts import DropBottom, DropTop, KeepBottom, KeepTop
from surgery.decompositions import Decomposition, Decompositions, StaleDecompositionError, decompose, forget
from surgery.edits import Compensated, Drop, Edit, Gains, Keep, Scale, Zero
from surgery.operations import Operation, active, apply, commit, undo_all
from surgery.spec_files import SpecFileError, load, save
from surgery.specs import Spec

__all__ = [
    "SVD", "Basis", "Compensated", "Decomposition", "Decompositions", "Drop", "DropBottom", "DropTop", "Edit",
    "EditedModelError", "Gains", "HaarBasis", "Keep", "KeepBottom", "KeepTop", "Operation", "RandomBasis",
    "RandomComponents", "RandomizedSVD", "RowBlocks", "Scale", "SiteError", "Spec", "SpecFileError",
    "StaleDecompositionError", "Zero", "active", "apply", "commit", "decompose", "forget", "fwd_hooks", "load", "save",
    "sites", "undo_all",
]  # fmt: skip


def sites(model: nn.Module, sites: str | Iterable[str] = "*") -> list[str]:
    """The addresses of every editable matrix that a pattern (or several) names, in the order of the forward pass.

    `*` matches anything, dots included, `[QK]` a class of characters, `{in,out}` alternatives. Layers are numbers,
    `blocks.-1`, `blocks.[10-12]` (with 12), `blocks.[3:6]` (without 6) or `blocks.[0,4]`; without one, `W_out` means
    every layer. Whole matrices by default; a final `[3]`, `[*]` or `[0:4]` asks for heads. LASER's and Hugging Face's
    names are understood too (`hooks.aliases`).

    Raises:
        TypeError: if a pattern is not a string.
        SiteError: if a pattern names nothing, with the nearest names that exist.
    """
    return [str(site) for site in match_each(model, sites)]
