"""Components to hold chosen ones against: the strongest, others at random, and the next in line."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.attribution.effects import Effects, Selection
from analyses.attribution.question import Components, selection_of
from surgery.arguments import counted, whole
from surgery.arguments import seed as whole_seed

Match = Literal["count", "energy"]


def by_strength(effects: Effects, k: int) -> Selection:
    """The k strongest components of the attributed matrices, whatever their effects: what `s_i` alone would choose.

    Raises:
        ValueError: if k is negative, or there are not so many.
    """
    flat = [(site, i) for site, S in effects.strengths.items() for i in range(len(S))]
    if whole(k, "k") > len(flat):
        raise ValueError(
            f"k={k!r}: the attributed matrices have {counted(len(flat), 'component')}. Give a number from 0 to that."
        )
    strengths = np.concatenate([S.numpy() for S in effects.strengths.values()])
    chosen: dict[str, list[int]] = {}
    for at in np.argsort(-strengths, kind="stable")[:k]:
        site, component = flat[at]
        chosen.setdefault(site, []).append(component)
    return Selection(chosen, basis=effects.basis)


def random_selection(
    effects: Effects, chosen: Selection | Components, *, match: Match = "count", seed: int
) -> Selection:
    """Other components of the same matrices, drawn at random: as many of each, or with as much energy.

    Energy is `Σ s_i²`: components are taken in random order, each if it brings the sum nearer to that of the chosen,
    which may take many weak ones for a strong one, and all others may fall short of it. The chosen components
    themselves, and those without strength, are left out, as long as there are enough others.

    Raises:
        ValueError: if a chosen matrix was not attributed, or not in this basis, or `match` is something else.
    """
    chosen = selection_of(chosen, effects.basis, "chosen")
    _check_basis(effects, chosen)
    generator = torch.Generator().manual_seed(whole_seed(seed))
    drawn: dict[str, list[int]] = {}
    for site in chosen:
        if site not in effects.strengths:
            raise ValueError(f"'{site}' was not attributed: there are {', '.join(effects.sites)}. Choose among these.")
        taken, S = members(chosen, site), effects.strengths[site].double()
        others = [i for i in range(len(S)) if i not in taken and float(S[i]) > 0]
        pool = others if len(others) >= len(taken) else [i for i in range(len(S)) if float(S[i]) > 0]
        order = [pool[n] for n in torch.randperm(len(pool), generator=generator).tolist()]
        match match:
            case "count":
                drawn[site] = order[: len(taken)]
            case "energy":
                drawn[site] = _matching(order, S.square(), float(S[taken].square().sum()))
            case _:
                raise ValueError(f"match={match!r}: it is 'count' or 'energy'. Choose one.")
    return Selection({site: sorted(found) for site, found in drawn.items() if found}, basis=effects.basis)


def _matching(order: Sequence[int], energies: Float[Tensor, " component"], target: float) -> list[int]:
    """Components in this order, each if it brings the sum of energies nearer to the target."""
    taken, total = [], 0.0
    for i in order:
        energy = float(energies[i])
        if abs(total + energy - target) < abs(total - target):
            taken.append(i)
            total += energy
    return taken


def twice(effects: Effects, some: Selection) -> Selection:
    """The chosen components of each matrix and as many more: the next by effect, then the strongest not attributed."""
    _check_basis(effects, some)
    sign = {None: None, True: 1, False: -1}[effects.measure.higher_is_better]
    wider: dict[str, list[int]] = {}
    for site in some:
        taken, S = members(some, site), effects.strengths[site]
        score = effects[site].abs() if sign is None else sign * effects[site]
        by_effect = score.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()  # not attributed: last
        others = [i for i in by_effect if i not in taken and float(S[i]) > 0]
        wider[site] = [*taken, *others[: len(taken)]]
    return Selection(wider, basis=effects.basis)


def _check_basis(effects: Effects, some: Selection) -> None:
    if some.basis != effects.basis:
        raise ValueError(
            f"the selection names components in the basis {some.basis!r}, the effects are of components in "
            f"{effects.basis!r}: choose among those that were attributed."
        )


def members(some: Selection, site: str) -> list[int]:
    """The selected components of one matrix, those of blocks too."""
    return [i for unit in some[site] for i in unit]
