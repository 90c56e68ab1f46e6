"""Hooks that patch, scale and steer single components in runs of one's own.

They go into `model.run_with_hooks(tokens, fwd_hooks=...)` or `model.hooks(...)` among other hooks, and run in the order
of the list. They act at the one end of a matrix that is its own (`hooks.coordinates`), and take the strengths that are
in force when they are made.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks import Place, Site, SiteError, match_sites, place_of
from hooks import coordinates as ends
from hooks.coordinates import Axes, HookFunction, Where
from surgery import Decompositions
from surgery.arguments import counted, finite, several, shown, whole
from surgery.decompositions import chosen_basis
from surgery.operations import components_in_force

Hooks = list[tuple[str, HookFunction]]
"""Pairs of hook name and function, as `run_with_hooks` takes them."""


@runtime_checkable
class Cache(Protocol):
    """What `model.run_with_cache` returns: activations by the name of their hook point."""

    def __getitem__(self, name: str, /) -> Tensor:
        """The activation."""
        ...


def hook_point(model: nn.Module, site: str | Site) -> str:
    """Where the coordinates of a matrix are read and patched: the activation that a cache for `fwd_hooks` must hold.

    Raises:
        SiteError: if there is no such matrix, or this model, as it is set up now, does not show its end.

    >>> patching.hook_point(model, "blocks.0.mlp.W_out")  # transformer-lens 3: a HookedTransformer
    'blocks.0.mlp.hook_post'
    """
    return ends.hook_point(_place(model, site))


def coordinates(
    model: nn.Module,
    site: str | Site,
    cache: Cache,
    *,
    components: Sequence[int] | None = None,
    svds: Decompositions | None = None,
    progress: bool = True,
) -> Float[Tensor, "example pos component"]:
    """The coordinates `s_i (x·u_i)` of a matrix's components (None: of all) in a run that was cached.

    Raises:
        ValueError: if the cache does not hold `hook_point(model, site)`, or a component does not exist.
        SiteError: as `hook_point`.

    >>> _, cache = model.run_with_cache(tokens)
    >>> patching.coordinates(model, "blocks.0.mlp.W_out", cache, components=[0, 3], progress=False).shape
    torch.Size([3, 8, 2])
    """
    return _cached(_axes(model, site, components, svds, progress), cache)


def fwd_hooks(
    model: nn.Module,
    site: str | Site,
    components: Sequence[int],
    source: Cache | Tensor,
    *,
    positions: Where = "all",
    svds: Decompositions | None = None,
    progress: bool = True,
) -> Hooks:
    """Hooks that give components the coordinates they have in `source`, at the chosen positions.

    `source` is a cache of the other run, which must hold `hook_point(model, site)`, or the coordinates themselves,
    `[example pos component]` in the order of `components`, as `coordinates` gives them (an axis of size 1 serves all).

    Raises:
        ValueError: if the source lacks the activation or has another shape, or a component does not exist or is too
            weak to be set; when the hook runs, if the run has another number of examples or positions.
        SiteError: as `hook_point`.

    >>> _, cache = model.run_with_cache(tokens.flip(0))
    >>> hooks = patching.fwd_hooks(model, "blocks.0.mlp.W_out", [0, 1], cache, positions=-1, progress=False)
    >>> model.run_with_hooks(tokens, fwd_hooks=hooks).shape
    torch.Size([3, 8, 40])
    """
    axes = _axes(model, site, components, svds, progress)
    if isinstance(source, Tensor):
        _check_reached(axes)
        wanted = source
    else:
        wanted = _cached(axes, source)
    if wanted.ndim != 3 or wanted.shape[2] != len(axes.strengths):
        raise ValueError(
            f"the source of '{axes.place.site}' has shape {tuple(wanted.shape)}: coordinates are [example pos "
            f"component], here of {counted(len(axes.strengths), 'component')}. Take them from "
            "coordinates(...), or give a cache."
        )

    def to_source(now: Tensor) -> Tensor:
        sizes = zip(wanted.shape[:2], now.shape[:2], strict=True)
        if any(given not in (1, needed) for given, needed in sizes):
            raise ValueError(
                f"the source of '{axes.place.site}' holds {counted(wanted.shape[0], 'example')} of "
                f"{counted(wanted.shape[1], 'position')}, "
                f"this run {now.shape[0]} of {now.shape[1]}: every position takes the coordinate of the same position. "
                "Cache a run of this shape."
            )
        return wanted.to(now) - now

    return [axes.hook(to_source, positions)]


def scaling_hooks(
    model: nn.Module,
    site: str | Site,
    gains: Tensor,
    *,
    components: Sequence[int] | None = None,
    positions: Where = "all",
    svds: Decompositions | None = None,
    progress: bool = True,
) -> Hooks:
    """Hooks that multiply components by gains `[example component]`, each example's own: 1 leaves one, 0 removes it.

    There is a column for each of `components` (None: for every component of the matrix), and a row for each example, or
    one for all. Gradients flow into the gains.

    Raises:
        ValueError: if the columns do not fit, or a component does not exist; when the hook runs, if the rows do not.
        SiteError: as `hook_point`.

    >>> gains = torch.zeros(3, 1)  # takes component 2 out of each example
    >>> hooks = patching.scaling_hooks(model, "blocks.0.mlp.W_out", gains, components=[2], progress=False)
    >>> with surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Drop([2])}, progress=False):
    ...     dropped = model(tokens)
    >>> torch.allclose(model.run_with_hooks(tokens, fwd_hooks=hooks), dropped, atol=1e-5)
    True
    """
    axes = _axes(model, site, components, svds, progress)
    if not isinstance(gains, Tensor):
        raise ValueError(f"the gains of '{axes.place.site}' are {shown(gains)}: give a tensor [example component].")
    if gains.ndim != 2 or gains.shape[1] != len(axes.strengths):
        raise ValueError(
            f"the gains of '{axes.place.site}' have shape {tuple(gains.shape)}: they are [example component], here of "
            f"{counted(len(axes.strengths), 'component')}. Give a column for each, or name the components."
        )

    if not bool(gains.isfinite().all()):
        raise ValueError(f"the gains of '{axes.place.site}' hold NaN or infinity: give finite numbers.")

    def scaled(now: Tensor) -> Tensor:
        if len(gains) not in (1, len(now)):
            raise ValueError(
                f"gains of {counted(len(gains), 'example')} in a run of {len(now)}: each example has a row, or one row "
                "serves all. Give the rows of the examples that run."
            )
        return (gains.to(now).unsqueeze(1) - 1) * now

    return [axes.hook(scaled, positions)]


def steering_hooks(
    model: nn.Module,
    site: str | Site,
    component: int,
    *,
    factor: float | int | None = None,
    amount: float | int | None = None,
    positions: Where = "all",
    svds: Decompositions | None = None,
    progress: bool = True,
) -> Hooks:
    """Hooks that multiply one component's coordinate by `factor`, or add `amount` to it, at the chosen positions.

    An amount is in units of the matrix's output: `amount · v_i` is added to it, a vector of that length.

    Raises:
        ValueError: unless exactly one of the two is given, or if the component does not exist or, for an amount, is too
            weak to be set.
        SiteError: as `hook_point`.

    >>> hooks = patching.steering_hooks(model, "blocks.1.mlp.W_out", 0, amount=4.0, positions=-1, progress=False)
    >>> model.run_with_hooks(tokens, fwd_hooks=hooks).shape
    torch.Size([3, 8, 40])
    """
    if (factor is None) == (amount is None):
        raise ValueError(f"steering was given factor={factor!r} and amount={amount!r}: give exactly one of them.")
    axes = _axes(model, site, [whole(component, "component")], svds, progress)
    if factor is not None:
        times = finite(factor, "factor")
        return [axes.hook(lambda now: (times - 1) * now, positions)]
    _check_reached(axes)
    by = finite(amount, "amount")
    return [axes.hook(lambda now: torch.full_like(now, by), positions)]


def _place(model: nn.Module, site: str | Site) -> Place:
    """The place of one matrix, by any name that `surgery.apply` takes.

    Raises:
        SiteError: if it names none, or several.
    """
    found = match_sites(model, str(site))
    if len(found) > 1:
        raise SiteError(
            f"'{site}' names {len(found)} matrices, from {found[0]} to {found[-1]}: hooks are made for one. Name it."
        )
    return place_of(model, found[0])


def _axes(
    model: nn.Module, site: str | Site, components: Sequence[int] | None, svds: Decompositions | None, progress: bool
) -> Axes:
    place = _place(model, site)
    # Coordinates are read along singular vectors: only these are orthonormal at both ends.
    basis = chosen_basis(None, svds)
    matrix = components_in_force(model, [place.site], basis=basis, svds=svds, progress=progress)[place.site]
    n = matrix.n_components
    chosen = list(range(n)) if components is None else several(components, "components", most=n - 1)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"components={shown(components)} of '{place.site}': name each once.")
    return ends.axes_of(place, chosen, matrix.U, matrix.S, matrix.Vh)


def _cached(axes: Axes, cache: Cache) -> Float[Tensor, "example pos component"]:
    name = ends.hook_point(axes.place)
    try:
        activation = cache[name]
    except KeyError:
        raise ValueError(
            f"the cache does not hold '{name}', where the components of '{axes.place.site}' are read. Cache it: "
            f"model.run_with_cache(tokens, names_filter={name!r})."
        ) from None
    return axes.read(activation.detach())


def _check_reached(axes: Axes) -> None:
    if axes.unreachable:
        raise ValueError(
            f"component {axes.unreachable[0]} of '{axes.place.site}' has next to no strength, so no input of the "
            "matrix gives its output a chosen coordinate along it. Choose a stronger component."
        )
