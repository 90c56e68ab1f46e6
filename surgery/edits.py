"""Edits of one matrix, each a choice of gains on its components: 1 leaves a component, 0 removes it.

An edit is a value: it knows no model, and the same edit can be applied to any matrix.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from operator import index
from typing import NamedTuple, SupportsIndex, final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.arguments import finite, is_bool, shown
from surgery.bases import SVD, Basis, check_basis
from surgery.decompositions import Decomposition

__all__ = ["Compensated", "Drop", "Edit", "Gains", "Keep", "Scale", "Zero", "gains_on_all"]

Index = SupportsIndex | slice | str
"""A component: an index as in Python, a slice, or a slice in writing such as ``"5:8"``."""
_SLICE = re.compile(r"(-?[0-9]{1,18})?:(-?[0-9]{1,18})?(:(?P<step>-?[0-9]{1,18})?)?")


class Gains(NamedTuple):
    """The gains that an edit puts on the components of a basis.

    Component i then writes `γ_i s_i (x·u_i) v_i + (1 − γ_i) s_i c_i v_i`.

    `values[i]` is the gain γ_i. `rest` is the gain of what the components leave of the matrix (nothing, in a complete
    basis). `constants[i]` is c_i, which replaces the coordinate x·u_i with weight 1 − γ_i; None for zeros.
    """

    values: Float[Tensor, " component"]
    rest: float
    constants: Float[Tensor, " component"] | None = None


class Edit(ABC):
    """A choice of gains on the components in the basis `basis`.

    An edit of your own is a frozen dataclass with one method. It can do all that the others do but be saved to a file.

    >>> from dataclasses import dataclass
    >>> from surgery import SVD, Basis, Edit, Gains
    >>> @dataclass(frozen=True)
    ... class Fade(Edit):
    ...     factor: float
    ...     basis: Basis = SVD()
    ...     def gains(self, decomposition):
    ...         steps = torch.arange(decomposition.n_components)
    ...         return Gains((self.factor**steps).to(decomposition.S), rest=1.0)
    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": Fade(0.5)}) as operation:
    ...     operation.changes[0].gains.values[:3].tolist()
    [1.0, 0.5, 0.25]
    """

    __slots__ = ()
    basis: Basis

    @abstractmethod
    def gains(self, decomposition: Decomposition) -> Gains:
        """The gains this edit chooses for the components of one matrix.

        Raises:
            ValueError: if it asks for components that the matrix does not have; the text names the matrix.
        """

    def __repr__(self) -> str:
        known = fields(self) if is_dataclass(self) else ()  # somebody's own edit need not be a dataclass
        values = [(f.name, getattr(self, f.name)) for f in known if _differs(f, getattr(self, f.name))]
        return f"{type(self).__name__}({', '.join(f'{name}={_shown(value)}' for name, value in values)})"


@dataclass(frozen=True, slots=True, repr=False)
class _ByComponent(Edit):
    """An edit of components that are named one by one."""

    components: slice | str | Iterable[Index]
    basis: Basis = SVD()

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", _indices(self.components, self))
        check_basis(self.basis, f"{type(self).__name__} was given basis")


@final
@dataclass(frozen=True, slots=True, repr=False)
class Keep(_ByComponent):
    """Keep these components and remove all others.

    Indices, negative indices and slices mean what they do in Python; 0 is the strongest. A single component is written
    `[5]`: a bare 5 could mean five of them.

    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Keep([0, "4:6", -1])}) as operation:
    ...     operation.changes[0].gains.values.nonzero().flatten().tolist()
    [0, 4, 5, 15]
    """

    def gains(self, decomposition: Decomposition) -> Gains:
        """1 on the named components, 0 on the others."""
        return kept(decomposition, _resolved(self, self.components, decomposition))


@final
@dataclass(frozen=True, slots=True, repr=False)
class Drop(_ByComponent):
    """Remove these components and keep all others; they are named as in `Keep`.

    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Drop([0])}) as operation:
    ...     int(torch.linalg.matrix_rank(operation.weight("blocks.0.mlp.W_out")))
    15
    """

    def gains(self, decomposition: Decomposition) -> Gains:
        """0 on the named components, 1 on the others."""
        return dropped(decomposition, _resolved(self, self.components, decomposition))


@final
@dataclass(frozen=True, slots=True, repr=False)
class Scale(Edit):
    """Multiply components by gains: `{index: gain}`, the others by 1; a gain for each; or one number for all of them.

    A tensor of gains that requires grad stays in the graph, so a loss can be differentiated with respect to it. The
    model shows what the gains were when they were applied: to learn them, `apply` and undo in every step, since one
    `apply` serves one backward pass. Applied under `torch.no_grad()` they are not in the graph, and `commit` refuses
    them. With `keep_nuclear_norm` all gains are rescaled so that the strengths still sum to what they did.

    >>> gain = torch.ones(16, requires_grad=True)
    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Scale(gain)}):
    ...     model(tokens).logsumexp(-1).mean().backward()
    >>> gain.grad.shape
    torch.Size([16])
    """

    gain: Mapping[int, float] | Iterable[float] | float | int | Tensor
    keep_nuclear_norm: bool = False
    basis: Basis = SVD()

    def __post_init__(self) -> None:
        match self.gain:
            case Tensor() as gain:
                if gain.ndim > 1 or gain.dtype == torch.bool or gain.is_complex():
                    raise ValueError(
                        f"Scale was given a tensor of shape {tuple(gain.shape)} and type "
                        f"{str(gain.dtype).removeprefix('torch.')}: give one number, or a vector, one gain for each "
                        "component."
                    )
                for value in gain.detach().flatten().tolist():
                    _gain(value)
            case Mapping() as gain:
                object.__setattr__(self, "gain", {_component(i): _gain(value) for i, value in gain.items()})
            case Iterable() as gain if getattr(gain, "ndim", 1):  # numpy has vectors of no dimension
                object.__setattr__(self, "gain", tuple(map(_gain, _sequence(gain, "gains", self))))
            case gain:
                object.__setattr__(self, "gain", _gain(gain))
        if not isinstance(self.keep_nuclear_norm, bool):
            raise ValueError(f"Scale was given keep_nuclear_norm={shown(self.keep_nuclear_norm)}: give True or False.")
        check_basis(self.basis, "Scale was given basis")

    def gains(self, decomposition: Decomposition) -> Gains:
        """The given gains, 1 where none was given."""
        values = self._values(decomposition)
        if self.keep_nuclear_norm:
            scaled = (values * decomposition.S).sum()
            if scaled.detach() == 0:
                raise ValueError(
                    f"{self!r} leaves nothing of '{decomposition.site}', so its nuclear norm cannot be kept: "
                    "use Zero()."
                )
            values = values * (decomposition.S.sum() / scaled)
        return Gains(values, 1.0)

    def _values(self, decomposition: Decomposition) -> Tensor:
        if isinstance(self.gain, Mapping):
            values = torch.ones_like(decomposition.S)
            named = _resolved(self, [int(i) for i in self.gain], decomposition)
            values[named] = torch.tensor(list(self.gain.values()), dtype=values.dtype, device=values.device)
            return values
        gain = self.gain if isinstance(self.gain, Tensor) else torch.tensor(self.gain, dtype=torch.float64)
        if not gain.ndim:
            return gain.to(decomposition.S).expand(decomposition.n_components)
        if gain.shape[0] != decomposition.n_components:
            raise ValueError(
                f"Scale was given {gain.shape[0]} gains, but '{decomposition.site}' has {decomposition.n_components} "
                "components: give one each, or a mapping {index: gain}."
            )
        return gain.to(decomposition.S)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scale):
            return False
        if (self.keep_nuclear_norm, self.basis) != (other.keep_nuclear_norm, other.basis):
            return False
        return self._plain() == other._plain()

    def _plain(self) -> object:
        """The gains as Python's numbers, which a file can hold."""
        if isinstance(self.gain, Tensor):
            values = self.gain.detach().tolist()
            return tuple(values) if isinstance(values, list) else values
        return self.gain

    def __hash__(self) -> int:
        return hash((Scale, self.keep_nuclear_norm, self.basis))


@final
@dataclass(frozen=True, slots=True, repr=False)
class Zero(Edit):
    """Remove the whole matrix (its bias stays).

    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Zero()}):
    ...     int(surgery.weight(model, "blocks.0.mlp.W_out").count_nonzero())
    0
    """

    basis: Basis = SVD()

    def __post_init__(self) -> None:
        check_basis(self.basis, "Zero was given basis")

    def gains(self, decomposition: Decomposition) -> Gains:
        """0 on everything."""
        return Gains(torch.zeros_like(decomposition.S), 0.0)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Compensated(Edit):
    """Another edit, which leaves a constant in place of what it removes.

    Component i gives `γ s (x·u) v + (1 − γ) s c v`, with its constant c the same at every position. `constants` holds
    c for every component of the matrix, in the units of the coordinate x·u. With `c = mean(x)·u` this is mean ablation,
    and the compensation of Eigenpruning (arXiv:2404.03147).

    >>> edit = surgery.Compensated(surgery.Drop([0]), constants=[0.5] * 16)
    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": edit}):
    ...     logits = model(tokens)
    """

    edit: Edit
    constants: Iterable[float] | Tensor

    def __post_init__(self) -> None:
        values = self.constants.tolist() if isinstance(self.constants, Tensor) else self.constants
        constants = tuple(finite(c, "Compensated was given constant") for c in _sequence(values, "constants", self))
        object.__setattr__(self, "constants", constants)
        if not isinstance(self.edit, Edit) or isinstance(self.edit, Compensated):
            raise ValueError(
                f"Compensated was given {shown(self.edit)} as its edit: give a plain edit such as Drop([0])."
            )

    @property
    def basis(self) -> Basis:  # type: ignore[override]
        """The basis of the edit within."""
        return self.edit.basis

    def gains(self, decomposition: Decomposition) -> Gains:
        """The gains of the edit within, and the constants."""
        constants = torch.tensor(tuple(self.constants), dtype=torch.float64)
        if len(constants) != decomposition.n_components:
            raise ValueError(
                f"Compensated was given {len(constants)} constants, but '{decomposition.site}' has "
                f"{decomposition.n_components} components: give one each."
            )
        return self.edit.gains(decomposition)._replace(constants=constants.to(decomposition.S))


def kept(decomposition: Decomposition, components: Iterable[int]) -> Gains:
    """Gains of 1 on these components, 0 on the others and on the rest."""
    values = torch.zeros_like(decomposition.S)
    values[list(components)] = 1
    return Gains(values, 0.0)


def dropped(decomposition: Decomposition, components: Iterable[int]) -> Gains:
    """Gains of 0 on these components, 1 on the others and on the rest."""
    values = torch.ones_like(decomposition.S)
    values[list(components)] = 0
    return Gains(values, 1.0)


def gains_on_all(edit: Edit, every: Decomposition) -> Float[Tensor, " component"]:
    """The gains of an edit on all components of a matrix, where its basis may hold the leading ones only."""
    if every.basis == edit.basis or not edit.basis.leading:
        return edit.gains(every).values
    k = edit.basis.n_components(*every.shape)
    first = replace(every, U=every.U[:, :k], S=every.S[:k], Vh=every.Vh[:k], basis=edit.basis)
    values, rest, _ = edit.gains(first)
    return torch.cat([values, values.new_full((every.n_components - k,), rest)])


def _indices(components: slice | str | Iterable[Index], edit: Edit) -> tuple[int | str, ...]:
    """The components as a tuple of integers and written slices, which compare, hash and go to JSON."""
    if not getattr(components, "ndim", 0) and (bare := _whole(components)) is not None:
        own = type(edit).__name__
        raise ValueError(
            f"{own}({bare}) could mean component {bare} or {bare} components: write {own}([{bare}]) for the one, "
            f"{own}Top(rank={bare}) for the strongest {bare}."
        )
    if isinstance(components, Tensor):
        components = components.flatten().tolist()
    if isinstance(components, str | slice):
        return (_index(components, edit),)
    return tuple(_index(item, edit) for item in _sequence(components, "components", edit))


def _index(item: object, edit: Edit) -> int | str:
    if isinstance(item, slice):
        bounds = [item.start, item.stop, *([] if item.step is None else [item.step])]
        item = ":".join("" if bound is None else str(bound) for bound in bounds)
    if isinstance(item, str) and (written := _SLICE.fullmatch(item)) and int(written["step"] or 1) != 0:
        return item
    if (whole := _whole(item)) is not None:
        return whole
    raise ValueError(
        f"{type(edit).__name__} was given {shown(item)} as a component: components are integers or slices such as "
        "'5:8'."
    )


def _gain(value: object) -> float:
    return finite(value, "Scale was given gain", least=0)


def _component(value: object) -> int:
    if (whole := _whole(value)) is None:
        raise ValueError(f"Scale was given a gain for {shown(value)}: components are integers. Give {{index: gain}}.")
    return whole


def _whole(value: object) -> int | None:
    """A Python, numpy or torch integer as an int, None for anything else (`True` is not 1 here)."""
    try:
        return None if is_bool(value) else index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _sequence(value: object, what: str, edit: Edit) -> Iterable[object]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{type(edit).__name__} was given {shown(value)} as its {what}: give a list.")
    return value


def _resolved(edit: Edit, components: slice | str | Iterable[Index], decomposition: Decomposition) -> list[int]:
    """The components as indices from 0, each once."""
    n = decomposition.n_components
    indices: list[int] = []
    for item in _indices(components, edit):
        match item:
            case str():
                indices += range(n)[slice(*(int(bound) if bound else None for bound in item.split(":")))]
            case int() if -n <= item < n:
                indices.append(item % n)
            case _:
                raise ValueError(
                    f"{edit!r} names component {item}, but '{decomposition.site}' has {n} components, 0 to {n - 1}: "
                    "name one of these, or count from the end with negative numbers."
                )
    if len(set(indices)) < len(indices):
        twice = next(i for i in indices if indices.count(i) > 1)
        raise ValueError(f"{edit!r} names component {twice} of '{decomposition.site}' more than once: name each once.")
    return indices


def _differs(field: Field, value: object) -> bool:
    """Whether a field holds another value than its default."""
    return field.default is MISSING or value != field.default


def _shown(value: object) -> str:
    if isinstance(value, tuple | list | Mapping) and len(value) > 8:
        first = dict(list(value.items())[:6]) if isinstance(value, Mapping) else list(value[:6])
        return f"{repr(first)[:-1]}, … {len(value)} in all{repr(first)[-1]}"
    if isinstance(value, Tensor):
        return f"tensor of {value.numel()}"
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
