"""Edits of one matrix, each a choice of gains on its components: 1 leaves a component, 0 removes it.

An edit is a value: it knows no model, and the same edit can be applied to any matrix.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import isfinite
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.bases import SVD, Basis
from surgery.decompositions import Decomposition

Index = int | slice | str
"""A component: an index as in Python, a slice, or a slice in writing such as ``"5:8"``."""


class Gains(NamedTuple):
    """What an edit does to the components of a basis.

    `values` is the gain of each. `rest` is the gain of whatever the components do not sum up to (nothing, in a complete
    basis). `constants` is what the coordinate `x·u_i` is replaced by to the degree that the gain falls short of 1.
    """

    values: Float[Tensor, " component"]
    rest: float
    constants: Float[Tensor, " component"] | None = None


class Edit(ABC):
    """A choice of gains, in the basis `basis`."""

    __slots__ = ()
    basis: Basis

    @abstractmethod
    def gains(self, decomposition: Decomposition) -> Gains:
        """The gains this edit chooses for the components of one matrix.

        Raises:
            ValueError: if it asks for components that the matrix does not have; the text names the matrix.
        """

    def __repr__(self) -> str:
        shown = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != _default(f)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={_shown(value)}' for name, value in shown)})"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Keep(Edit):
    """Keep these components and remove all others. Indices, negative indices and slices as in Python, 0 the strongest."""

    components: Sequence[Index] | slice
    basis: Basis = SVD()

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", _indices(self.components, self))

    def gains(self, decomposition: Decomposition) -> Gains:
        """1 on the chosen, 0 on the others."""
        return kept(decomposition, _resolved(self, self.components, decomposition))


@final
@dataclass(frozen=True, slots=True, repr=False)
class Drop(Edit):
    """Remove these components and keep all others. Indices, negative indices and slices as in Python, 0 the strongest."""

    components: Sequence[Index] | slice
    basis: Basis = SVD()

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", _indices(self.components, self))

    def gains(self, decomposition: Decomposition) -> Gains:
        """0 on the chosen, 1 on the others."""
        return dropped(decomposition, _resolved(self, self.components, decomposition))


@final
@dataclass(frozen=True, slots=True, repr=False)
class Scale(Edit):
    """Multiply components by gains: `{index: gain}`, the others by 1, or one gain for every component.

    A tensor of gains that requires grad stays in the graph, so a loss can be differentiated with respect to it. With
    `keep_nuclear_norm` all gains are rescaled so that the strengths still sum to what they did.
    """

    gain: Mapping[int, float] | Sequence[float] | Float[Tensor, " component"]
    keep_nuclear_norm: bool = False
    basis: Basis = SVD()

    def __post_init__(self) -> None:
        if isinstance(self.gain, Tensor):
            values = self.gain.detach().flatten().tolist()
            if self.gain.ndim != 1:
                raise ValueError(f"Scale takes one gain for each component, a vector, not a tensor of shape {tuple(self.gain.shape)}.")
        elif isinstance(self.gain, Mapping):
            object.__setattr__(self, "gain", {int(i): float(g) for i, g in self.gain.items()})
            values = list(self.gain.values())
        else:
            object.__setattr__(self, "gain", tuple(float(g) for g in self.gain))
            values = list(self.gain)
        bad = [g for g in values if not isfinite(g) or g < 0]
        if bad:
            raise ValueError(f"Scale was given the gain {bad[0]!r}: gains are finite and 0 or more (1 leaves a component, 0 removes it).")

    def gains(self, decomposition: Decomposition) -> Gains:
        """The given gains, 1 where none was given."""
        values = self._values(decomposition)
        if self.keep_nuclear_norm:
            scaled = (values * decomposition.S).sum()
            if scaled.detach() == 0:
                raise ValueError(f"{self!r} leaves nothing of '{decomposition.site}', so its nuclear norm cannot be kept.")
            values = values * (decomposition.S.sum() / scaled)
        return Gains(values, 1.0)

    def _values(self, decomposition: Decomposition) -> Tensor:
        if isinstance(self.gain, Mapping):
            values = torch.ones_like(decomposition.S)
            chosen = _resolved(self, tuple(self.gain), decomposition)
            values[chosen] = torch.tensor(list(self.gain.values()), dtype=values.dtype, device=values.device)
            return values
        given = self.gain if isinstance(self.gain, Tensor) else torch.tensor(self.gain, dtype=torch.float64)
        if given.shape[0] != decomposition.rank:
            raise ValueError(
                f"Scale was given {given.shape[0]} gains, but '{decomposition.site}' has {decomposition.rank} components: "
                "give one each, or a mapping {index: gain}."
            )
        return given.to(decomposition.S)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scale) or (self.keep_nuclear_norm, self.basis) != (other.keep_nuclear_norm, other.basis):
            return False
        if isinstance(self.gain, Tensor) and isinstance(other.gain, Tensor):
            return torch.equal(self.gain, other.gain)
        return type(self.gain) is type(other.gain) and self.gain == other.gain

    def __hash__(self) -> int:
        return hash((Scale, self.keep_nuclear_norm, self.basis))


@final
@dataclass(frozen=True, slots=True, repr=False)
class Zero(Edit):
    """Remove the whole matrix (its bias stays)."""

    basis: Basis = SVD()

    def gains(self, decomposition: Decomposition) -> Gains:
        """0 on everything."""
        return Gains(torch.zeros_like(decomposition.S), 0.0)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Compensated(Edit):
    """Another edit, with what it removes replaced by a constant instead of by nothing.

    Component i then gives `γ s (x·u) v + (1 − γ) s c v`. With `c = mean(x)·u` this is mean ablation, and the compensation of
    Eigenpruning (arXiv:2404.03147, sec. 3.3). It is independent of position and sequence length.

    `constants` holds `c` for every component, in the units of the coordinate `x·u`.
    """

    REQUIRES_BIAS: ClassVar[bool] = True
    edit: Edit
    constants: Sequence[float] | Float[Tensor, " component"]

    def __post_init__(self) -> None:
        given = self.constants.tolist() if isinstance(self.constants, Tensor) else self.constants
        object.__setattr__(self, "constants", tuple(float(c) for c in given))
        if isinstance(self.edit, Compensated):
            raise ValueError(f"Compensated was given {self.edit!r}, which is compensated already: give it a plain edit.")
        if not all(isfinite(c) for c in self.constants):
            raise ValueError("Compensated was given a constant that is not finite: constants are mean(x)·u of each component.")

    @property
    def basis(self) -> Basis:  # type: ignore[override]
        """The basis of the edit within."""
        return self.edit.basis

    def gains(self, decomposition: Decomposition) -> Gains:
        """The gains of the edit within, and the constants."""
        if len(self.constants) != decomposition.rank:
            raise ValueError(
                f"Compensated was given {len(self.constants)} constants, but '{decomposition.site}' has {decomposition.rank} "
                "components: give one each."
            )
        S = decomposition.S
        return self.edit.gains(decomposition)._replace(constants=torch.tensor(self.constants, dtype=S.dtype, device=S.device))


def kept(decomposition: Decomposition, chosen: Iterable[int]) -> Gains:
    """1 on the chosen components, 0 on the others and on the rest."""
    values = torch.zeros_like(decomposition.S)
    values[list(chosen)] = 1
    return Gains(values, 0.0)


def dropped(decomposition: Decomposition, chosen: Iterable[int]) -> Gains:
    """0 on the chosen components, 1 on the others and on the rest."""
    values = torch.ones_like(decomposition.S)
    values[list(chosen)] = 0
    return Gains(values, 1.0)


def _indices(given: Sequence[Index] | slice, edit: Edit) -> tuple[Index, ...]:
    """The components as a tuple of integers and written slices, which compare, hash and go to JSON."""
    if isinstance(given, str | slice | int):
        given = (given,)
    elif isinstance(given, Tensor):
        given = given.tolist()
    return tuple(_index(item, edit) for item in given)


def _index(item: Index, edit: Edit) -> Index:
    match item:
        case bool():
            pass
        case slice(start=start, stop=stop, step=step):
            written = f"{'' if start is None else start}:{'' if stop is None else stop}"
            return written if step is None else f"{written}:{step}"
        case str() if _is_slice(item):
            return item
        case _:
            try:
                return item.__index__()  # type: ignore[union-attr]
            except AttributeError:
                pass
    raise ValueError(f"{type(edit).__name__} was given {item!r} as a component: components are integers or slices such as '5:8'.")


def _is_slice(text: str) -> bool:
    bounds = text.split(":")
    return len(bounds) in (2, 3) and all(bound == "" or bound.lstrip("-").isdigit() for bound in bounds) and bounds[2:] != ["0"]


def _resolved(edit: Edit, given: Iterable[Index] | slice, decomposition: Decomposition) -> list[int]:
    """The components as indices from 0, each once."""
    n = decomposition.rank
    chosen: list[int] = []
    for item in given:  # type: ignore[union-attr]
        if isinstance(item, str):
            chosen += range(n)[slice(*(int(bound) if bound else None for bound in item.split(":")))]
        elif -n <= item < n:  # type: ignore[operator]
            chosen.append(item % n)  # type: ignore[operator]
        else:
            raise ValueError(f"{edit!r} names component {item}, but '{decomposition.site}' has {n} components, 0 to {n - 1}.")
    if len(set(chosen)) < len(chosen):
        twice = next(i for i in chosen if chosen.count(i) > 1)
        raise ValueError(f"{edit!r} names component {twice} of '{decomposition.site}' more than once: name each once.")
    return chosen


def _default(field: object) -> object:
    default = field.default  # type: ignore[attr-defined]
    return default if default is not MISSING else object()


def _shown(value: object) -> str:
    if isinstance(value, tuple | list) and len(value) > 8:
        return f"[{', '.join(map(repr, value[:6]))}, … {len(value)} in all]"
    if isinstance(value, Mapping) and len(value) > 8:
        return f"{{{', '.join(f'{k!r}: {v!r}' for k, v in list(value.items())[:6])}, … {len(value)} in all}}"
    if isinstance(value, Tensor):
        return f"tensor of {value.numel()}"
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
