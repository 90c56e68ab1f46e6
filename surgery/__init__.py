"""Edit the singular components of a TransformerLens model's weight matrices: exactly, reversibly, by name.

A spec maps patterns to edits. `apply` shows the edited weights in place of the model's own until it is undone:

>>> from surgery import KeepTop
>>> with surgery.apply(model, {"blocks.*.mlp.W_out": KeepTop(rank=2)}) as operation:
...     logits = model(tokens)
>>> operation.to_dataframe()[["site", "kept", "of"]].values.tolist()
[['blocks.0.mlp.W_out', 2, 16], ['blocks.1.mlp.W_out', 2, 16]]

Beside the names below there are `surgery.bases` (ways to write a matrix as components), `surgery.controls` (random
edits to hold a result against), `surgery.ranks` (how many components are signal) and `surgery.errors`.
"""

from surgery._guard import check_package, warn_if_hidden

check_package("hooks")
warn_if_hidden("analyses")

from collections.abc import Iterable

from torch import nn

from hooks import match_each
from surgery._as_hooks import fwd_hooks
from surgery._spec_files import load, save
from surgery.bases import SVD, RowBlocks
from surgery.bases import Basis as Basis
from surgery.bases import HaarBasis as HaarBasis
from surgery.bases import LeadingSVD as LeadingSVD
from surgery.bases import RandomizedSVD as RandomizedSVD
from surgery.controls import RandomBasis as RandomBasis
from surgery.controls import RandomComponents as RandomComponents
from surgery.cuts import DropBottom, DropTop, KeepBottom, KeepTop
from surgery.decompositions import Decomposition as Decomposition
from surgery.decompositions import Decompositions, decompose
from surgery.decompositions import forget as forget
from surgery.edits import Compensated, Drop, Edit, Keep, Scale, Zero
from surgery.edits import Gains as Gains
from surgery.errors import EditedModelError as EditedModelError
from surgery.errors import SiteError as SiteError
from surgery.errors import SpecFileError as SpecFileError
from surgery.errors import StaleDecompositionError as StaleDecompositionError
from surgery.operations import Operation, active, apply, commit, undo_all, weight
from surgery.specs import Spec

__all__ = [
    "SVD", "Compensated", "Decompositions", "Drop", "DropBottom", "DropTop", "Edit", "Keep", "KeepBottom", "KeepTop",
    "Operation", "RowBlocks", "Scale", "Spec", "Zero", "active", "apply", "commit", "decompose", "fwd_hooks", "load",
    "save", "sites", "undo_all", "weight",
]  # fmt: skip


def __dir__() -> list[str]:
    return list(__all__)


def sites(model: nn.Module, sites: str | Iterable[str] = "*") -> list[str]:
    """The addresses of every editable matrix that a pattern (or each of several) names, in order of the forward pass.

    `*` matches anything, dots included, `[QK]` a class of characters, `{in,out}` alternatives. Layers are numbers,
    `blocks.-1`, `blocks.[10-12]` (with 12), `blocks.[3:6]` (without 6) or `blocks.[0,4]`; without one, `W_out` means
    every layer. Whole matrices by default; a final `[3]`, `[*]` or `[0:4]` asks for heads. LASER's and Hugging Face's
    names are understood too.

    >>> surgery.sites(model, "blocks.1.mlp.*")
    ['blocks.1.mlp.W_in', 'blocks.1.mlp.W_out']
    >>> surgery.sites(model, ["W_Q[0]", "down_proj"])
    ['blocks.0.attn.W_Q[0]', 'blocks.0.mlp.W_out', 'blocks.1.attn.W_Q[0]', 'blocks.1.mlp.W_out']

    Raises:
        TypeError: if a pattern is not a string.
        SiteError: if a pattern names nothing, with the nearest names that exist.
    """
    return [str(site) for site in match_each(model, sites)]
