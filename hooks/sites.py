"""The address of one weight matrix, in TransformerLens's own names.

blocks.3.mlp.W_out        the layer's matrix
blocks.5.attn.W_Q         the layer's matrix, joint over heads
blocks.5.attn.W_Q[3]      one head of it (key-value heads for W_K and W_V under grouped-query attention)
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

__all__ = ["MATRICES", "Matrix", "Site", "SiteError"]

AttentionMatrix = Literal["W_Q", "W_K", "W_V", "W_O"]
MLPMatrix = Literal["W_in", "W_gate", "W_out"]
Matrix = Literal[AttentionMatrix, MLPMatrix]

ATTENTION_MATRICES: tuple[AttentionMatrix, ...] = get_args(AttentionMatrix)
MLP_MATRICES: tuple[MLPMatrix, ...] = get_args(MLPMatrix)
MATRICES: tuple[Matrix, ...] = (*ATTENTION_MATRICES, *MLP_MATRICES)

_ADDRESS = re.compile(
    r"blocks\.(?P<layer>0|[1-9][0-9]{0,8})\.(?P<part>attn|mlp)\.(?P<matrix>W_[A-Za-z]+)"
    r"(\[(?P<head>0|[1-9][0-9]{0,8})\])?"
)


class SiteError(ValueError):
    """A pattern or address that names no editable matrix of the model at hand."""


@dataclass(frozen=True, slots=True)
class Site:
    """The address of one matrix of one block; with `head`, of the part of it that belongs to one head.

    Sites sort by layer, then in the order in which a block applies its matrices, then by head.

    >>> from hooks import Site
    >>> str(Site(5, "W_Q", head=3)), Site.parse("blocks.3.mlp.W_out")
    ('blocks.5.attn.W_Q[3]', Site(layer=3, matrix='W_out', head=None))
    """

    layer: int
    matrix: Matrix
    head: int | None = None

    def __post_init__(self) -> None:
        if self.matrix not in MATRICES:
            raise _no_such_matrix(self.matrix)
        if self.head is not None and self.matrix not in ATTENTION_MATRICES:
            raise SiteError(f"{self.matrix!r} has no heads: only {', '.join(ATTENTION_MATRICES)} take a head index.")
        if self.layer < 0:
            raise SiteError(f"blocks.{self.layer} names no block: layers count from 0. Count from the first one.")
        if self.head is not None and self.head < 0:
            raise SiteError(
                f"'{self.matrix}[{self.head}]' names no head: heads count from 0. Patterns may count from the end "
                "(surgery.sites(model, pattern))."
            )

    def __str__(self) -> str:
        head = "" if self.head is None else f"[{self.head}]"
        return f"{self.prefix}.{self.part}.{self.matrix}{head}"

    def __lt__(self, other: "Site") -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, int, int]:
        return self.layer, MATRICES.index(self.matrix), -1 if self.head is None else self.head

    @property
    def part(self) -> Literal["attn", "mlp"]:
        """The half of the block that holds the matrix."""
        return "attn" if self.matrix in ATTENTION_MATRICES else "mlp"

    @property
    def prefix(self) -> str:
        """TransformerLens's name of the block, `blocks.L`."""
        return f"blocks.{self.layer}"

    @property
    def joint(self) -> "Site":
        """The whole matrix that this site is, or is a head of."""
        return replace(self, head=None)

    def at_head(self, head: int) -> "Site":
        """The part of this matrix that belongs to `head`."""
        return replace(self, head=head)

    @classmethod
    def parse(cls, address: str) -> "Site":
        """The site that an exact address names.

        Raises:
            SiteError: if `address` is not of the form `blocks.L.attn.W_Q`, `blocks.L.attn.W_Q[h]` or
            `blocks.L.mlp.W_in`.
        """
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise SiteError(
                f"{address[:80]!r} is not the address of one matrix: "
                "write blocks.LAYER.attn.W_Q, blocks.LAYER.attn.W_Q[HEAD] or blocks.LAYER.mlp.W_in."
            )
        matrix, head = match["matrix"], match["head"]
        if matrix not in MATRICES:
            raise _no_such_matrix(matrix)
        site = cls(int(match["layer"]), matrix, None if head is None else int(head))
        if site.part != match["part"]:
            raise SiteError(f"{address!r} names no matrix: {site.matrix} lives in {site.prefix}.{site.part}.")
        return site


def _no_such_matrix(name: str) -> SiteError:
    return SiteError(f"no matrix is called {name!r}: sites are {', '.join(MATRICES)}. Use one of these names.")
