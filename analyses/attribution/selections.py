"""Chosen components of chosen matrices."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, final

from surgery import SVD, Basis, Drop, Edit, Keep
from surgery.arguments import counted, shown, whole

__all__ = ["Components", "Selection", "Sites", "Unit", "selection_of"]

Unit = tuple[int, ...]
"""Components that are removed together: usually one, or a degenerate block."""
Components: TypeAlias = Mapping[str, Sequence[int | Sequence[int]]]
"""Chosen components of chosen matrices: a `Selection`, or a plain dict, `{"blocks.0.mlp.W_out": [0, 3]}`."""
Sites: TypeAlias = str | Iterable[str] | Components
"""Which components: every one of the matrices that a pattern (or each of several) names, or chosen ones."""

_SVD = SVD()


@final
class Selection(Mapping[str, tuple[Unit, ...]]):
    """Chosen components of chosen matrices: what `sites=` takes where only some components are wanted.

    They are components in `basis`: singular components unless something else was attributed.

    >>> selection = attribution.Selection({"blocks.0.mlp.W_out": [0, 3], "blocks.1.attn.W_Q": [(1, 2)]})
    >>> selection.n_components, selection.drop()["blocks.0.mlp.W_out"]
    (4, Drop(components=[0, 3]))
    """

    def __init__(self, units: Mapping[str, Sequence[int | Sequence[int]]], *, basis: Basis = _SVD) -> None:
        if not isinstance(units, Mapping):
            raise ValueError(f"a selection of {shown(units)}: give the components of each matrix, {{site: [0, 3]}}.")
        self.basis = basis
        self._units = {str(site): _units(site, chosen) for site, chosen in units.items()}
        for site, chosen in self._units.items():
            members = [i for unit in chosen for i in unit]
            if len(set(members)) < len(members):
                raise ValueError(
                    f"the selection of '{site}' is {list(chosen)!r}: name each component once, counting from 0, the "
                    "strongest."
                )

    def __getitem__(self, site: str) -> tuple[Unit, ...]:
        return self._units[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Selection) and other.basis != self.basis:
            return False
        return super().__eq__(other)

    @property
    def n_components(self) -> int:
        """How many components are chosen, over all matrices."""
        return sum(len(unit) for chosen in self._units.values() for unit in chosen)

    def drop(self) -> dict[str, Edit]:
        """The spec that removes them."""
        return {site: Drop(self._members(site), basis=self.basis) for site in self}

    def keep(self) -> dict[str, Edit]:
        """The spec that keeps them and removes every other component of these matrices."""
        return {site: Keep(self._members(site), basis=self.basis) for site in self}

    def _members(self, site: str) -> list[int]:
        return sorted(i for unit in self[site] for i in unit)

    def __repr__(self) -> str:
        lines = [f"  {site}: {', '.join('+'.join(map(str, unit)) for unit in chosen)}" for site, chosen in self.items()]
        return "\n".join([f"Selection of {counted(self.n_components, 'component')}", *lines])


def _units(site: object, chosen: object) -> tuple[Unit, ...]:
    """The units of one matrix, each a component or several."""
    try:
        if isinstance(chosen, str | bytes | Mapping):
            raise TypeError
        return tuple(
            tuple(whole(i, "component") for i in (unit if isinstance(unit, list | tuple | range) else [unit]))
            for unit in list(chosen)  # type: ignore[call-overload]
        )
    except (TypeError, ValueError):
        raise ValueError(
            f"the selection of '{site}' is {shown(chosen)}: name each component once, counting from 0, the strongest, "
            "in a list such as [0, 3], or [(0, 1), 3] where some go together."
        ) from None


def selection_of(components: object, basis: Basis, argument: str = "sites") -> Selection:
    """A selection as it is, or a plain dict as one in this basis.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(components, Selection):
        return components
    if isinstance(components, Mapping):
        return Selection(components, basis=basis)
    raise ValueError(f"{argument}={shown(components)}: give a Selection, such as effects.top(10), or {{site: [0, 3]}}.")
