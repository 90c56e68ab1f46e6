"""Components to hold a selection against: the strongest, others at random, and the next in line."""

from typing import Literal, get_args

import torch

from analyses.attribution.effects import Effects
from analyses.attribution.selections import Components, Selection, selection_of
from surgery.arguments import one_of, whole
from surgery.arguments import seed as whole_seed
from surgery.controls import nearest_energy, random_order

Match = Literal["count", "energy"]
"""What a random selection has in common with the one that it controls."""


def by_strength(effects: Effects, k: int) -> Selection:
    """The k strongest components of the attributed matrices, whatever their effects: what `s_i` alone would choose.

    Raises:
        ValueError: if k is negative, or above the number of components.

    >>> effects = attribution.by_gradient(model, tokens, metrics.logit(3), "blocks.*.mlp.W_out", progress=False)
    >>> controls.by_strength(effects, 5).n_components
    5
    """
    frame = effects.to_dataframe()
    strongest = frame.sort_values("strength", ascending=False, kind="stable").head(whole(k, "k", most=len(frame)))
    return Selection(strongest.groupby("site", sort=False)["component"].apply(list).to_dict(), basis=effects.basis)


def random_selection(
    effects: Effects, selection: Selection | Components, *, match: Match = "count", seed: int = 0
) -> Selection:
    """Other components of the same matrices, drawn at random: as many of each, or with as much energy.

    Energy is `Σ s_i²`, matched as `surgery.controls.nearest_energy` says: many weak components may stand for a strong
    one, and all others together may fall short of it. The selected components themselves, and components without
    strength, are left out, unless there are too few others.

    Raises:
        ValueError: if a selected matrix was not attributed, or not in this basis, or `match` is something else.

    >>> effects = attribution.by_gradient(model, tokens, metrics.logit(3), "blocks.*.mlp.W_out", progress=False)
    >>> chance = controls.random_selection(effects, effects.top(5), seed=1)
    >>> chance.n_components, sorted(chance) == sorted(effects.top(5))
    (5, True)
    """
    selection = selection_of(selection, effects.basis, "selection")
    _check_basis(effects, selection)
    one_of(match, "match", get_args(Match))
    generator = torch.Generator().manual_seed(whole_seed(seed))
    drawn: dict[str, list[int]] = {}
    for site in selection:
        if site not in effects.strengths:
            raise ValueError(f"'{site}' was not attributed: there are {', '.join(effects.sites)}. Choose among these.")
        selected, energies = members(selection, site), effects.strengths[site].double().square()
        strong = energies.nonzero().flatten().tolist()
        others = [i for i in strong if i not in selected]
        pool = others if len(others) >= len(selected) else strong
        order = [pool[n] for n in random_order(len(pool), generator)]
        if match == "count":
            drawn[site] = order[: len(selected)]
        else:
            drawn[site] = nearest_energy(order, energies, float(energies[selected].sum()))
    return Selection({site: sorted(taken) for site, taken in drawn.items() if taken}, basis=effects.basis)


def twice(effects: Effects, selection: Selection) -> Selection:
    """The selected components of each matrix and as many more: the next by effect, then the strongest others."""
    _check_basis(effects, selection)
    sign = {None: None, True: 1, False: -1}[effects.measure.higher_is_better]
    wider: dict[str, list[int]] = {}
    for site in selection:
        selected, S = members(selection, site), effects.strengths[site]
        harm = effects[site].abs() if sign is None else sign * effects[site]
        # Components that were not attributed (NaN) come last; the stable sort leaves them by falling strength.
        by_effect = harm.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()
        others = [i for i in by_effect if i not in selected and float(S[i]) > 0]
        wider[site] = [*selected, *others[: len(selected)]]
    return Selection(wider, basis=effects.basis)


def members(selection: Selection, site: str) -> list[int]:
    """The selected components of one matrix, those of blocks too."""
    return [i for unit in selection[site] for i in unit]


def _check_basis(effects: Effects, selection: Selection) -> None:
    if selection.basis != effects.basis:
        raise ValueError(
            f"the selection names components in the basis {selection.basis!r}, the effects are of components in "
            f"{effects.basis!r}: choose among those that were attributed."
        )
