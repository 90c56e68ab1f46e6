"""Reading and moving a matrix's output along some of its singular directions, by one hook.

With `W = Σ_i s_i u_i v_iᵀ`, component i adds `c_i v_i` to the output, `c_i = s_i (x·u_i)`: its coordinate. Every matrix
has one end that no other matrix shares and that TransformerLens shows, and the coordinates can be read and moved there:

- W_Q, W_K, W_V, W_in and W_gate at their output y: `c_i = (y − b)·v_i`, and c_i moves by δ with `y + δ v_i`;
- W_O and W_out at their input x: `c_i = s_i (x·u_i)`, and c_i moves by δ with `x + (δ / s_i) u_i`.

So a hook needs no partner and keeps nothing between calls, and works where a model shows only one end of a matrix.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hooks.places import Place

__all__ = ["Axes", "HookFunction", "Where", "axes_of", "check_positions", "hook_point", "positions"]

HookFunction = Callable[..., Tensor]
Where = Literal["all"] | int | slice | Sequence[int] | Tensor
"""Positions of a text: all, one column, some columns (a slice, a list), a column for each example (a tensor of whole
numbers `[example]`), or any (booleans `[example pos]`). Negative columns count from the end."""

_UNREACHABLE = 1e-6
"""Relative to the strongest component."""


@final
@dataclass(frozen=True, slots=True)
class Axes:
    """Some components of one matrix at the end that is its own, from `axes_of`.

    `directions` are theirs in what passes there, `strengths` those in force; `unreachable` says which of them are so
    weak that the rounding of the matrix outweighs what they write, where that keeps them from being set at will.
    """

    place: Place
    directions: Float[Tensor, "width component"]
    strengths: Float[Tensor, " component"]
    unreachable: tuple[int, ...]

    def read(self, activation: Tensor) -> Float[Tensor, "batch pos component"]:
        """The coordinates, from what the hook point shows."""
        if _at_input(self.place):
            return (self.place.read_input(activation).to(self.directions.dtype) @ self.directions) * self.strengths
        y = self.place.read_output(activation).to(self.directions.dtype)
        bias = self._bias()
        return (y if bias is None else y - bias.to(y.dtype)) @ self.directions

    def move(self, activation: Tensor, by: Float[Tensor, "batch pos component"]) -> Tensor:
        """The activation with each coordinate moved by so much, in its own dtype."""
        if not _at_input(self.place):
            return self.place.add_to_output(activation, by @ self.directions.mT)
        reached = self.strengths > 0
        steps = torch.where(reached, by / torch.where(reached, self.strengths, 1), 0)
        change = (steps @ self.directions.mT).to(activation.dtype)
        flat = (activation.flatten(2) if activation.ndim == 4 else activation).clone()
        flat[..., self.place.head_slice] += change
        return flat.view(activation.shape)

    def hook(self, change: Callable[[Tensor], Tensor], where: Where = "all") -> tuple[str, HookFunction]:
        """A pair for `run_with_hooks(fwd_hooks=[...])` that adds `change(coordinates)` to the coordinates.

        Raises:
            ValueError: if `where` says nothing about positions.
        """

        check_positions(where)

        def moved(activation: Tensor, hook: nn.Module) -> Tensor:
            coordinates = self.read(activation)
            by = change(coordinates)
            if not (isinstance(where, str) and where == "all"):
                by = by * positions(where, *activation.shape[:2], device=by.device).unsqueeze(-1)
            return self.move(activation, by)

        return hook_point(self.place), moved

    def _bias(self) -> Tensor | None:
        held = None if self.place.bias is None else self.place.bias.current()
        return None if held is None else held.detach().flatten()[self.place.head_slice]


def axes_of(
    place: Place,
    components: Sequence[int],
    U: Float[Tensor, "d_in all"],
    S: Float[Tensor, " all"],
    Vh: Float[Tensor, "all d_out"],
) -> Axes:
    """Where these components of a matrix, given by its singular vectors and its strengths now, are read and moved."""
    at = list(components)
    directions, weak = Vh[at].mT, ()
    if _at_input(place):
        directions, reach = U[:, at], _UNREACHABLE * float(S.max())
        weak = tuple(i for i in at if float(S[i]) <= reach)
    return Axes(place, directions, S[at], weak)


def hook_point(place: Place) -> str:
    """TransformerLens's name of the hook point at the end of a matrix that is its own.

    Raises:
        SiteError: if this model, as it is set up now, does not show it.
    """
    return place.hook_name("input" if _at_input(place) else "output", advice="Switch that off.")


def check_positions(where: object) -> None:
    """Refuse what cannot say which positions are meant, whatever the run.

    Raises:
        ValueError: if it is none of the forms of `Where`.
    """
    if isinstance(where, Tensor):
        whole = not (where.is_floating_point() or where.is_complex())
        fits = where.ndim == 2 if where.dtype == torch.bool else whole and where.ndim == 1
    elif isinstance(where, slice):
        parts = (where.start, where.stop, where.step)
        fits = all(part is None or _is_column(part) for part in parts) and index(where.step or 1) > 0
    elif isinstance(where, str):
        fits = where == "all"
    else:
        fits = all(map(_is_column, where)) if isinstance(where, Iterable) else _is_column(where)
    if not fits:
        given = f"a {where.dtype} tensor of shape {tuple(where.shape)}" if isinstance(where, Tensor) else repr(where)
        raise ValueError(f"positions is {given}: {_FORMS}")


def positions(where: Where, n_examples: int, n_pos: int, *, device: torch.device) -> Bool[Tensor, "rows pos"]:
    """The chosen positions as booleans, one row for each example or one for all.

    Raises:
        ValueError: if a column is outside, or there are not as many rows as examples.
    """
    check_positions(where)
    chosen, rows = torch.zeros(1, n_pos, dtype=torch.bool, device=device), slice(None)
    if isinstance(where, str):
        return ~chosen
    if isinstance(where, slice):
        chosen[:, where] = True
        return chosen
    if isinstance(where, Tensor):
        sizes = (n_examples, n_pos)[: where.ndim]
        if where.shape != sizes and where.shape != (1, n_pos):
            raise ValueError(
                f"positions is a {where.dtype} tensor of shape {tuple(where.shape)}, in a run of [example pos] of "
                f"shape {(n_examples, n_pos)}: {_FORMS}"
            )
        if where.dtype == torch.bool:
            return where.to(device)
        chosen, rows = chosen.repeat(n_examples, 1), torch.arange(n_examples, device=device)
    columns = [index(column) for column in (where if isinstance(where, Iterable) else [where])]
    outside = [column for column in columns if not -n_pos <= column < n_pos]
    if outside:
        raise ValueError(
            f"positions name column {outside[0]}, but this run has {n_pos}, 0 to {n_pos - 1}, or -{n_pos} to -1 "
            "counted from the end. Choose among them."
        )
    chosen[rows, columns] = True
    return chosen


def _at_input(place: Place) -> bool:
    return place.site.matrix in ("W_O", "W_out")


def _is_column(given: object) -> bool:
    try:
        index(given)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not isinstance(given, bool)


_FORMS = (
    "it is 'all', a column, a slice or list of columns, whole numbers [example], one column for each, or booleans "
    "[example pos]. Give one of these."
)
