"""What component patching found: the effect of giving components the coordinates of another run."""

from dataclasses import dataclass, replace
from typing import Literal, final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.attribution.effects import Effects, Measure
from analyses.attribution.selections import Selection
from surgery.arguments import counted

Direction = Literal["denoising", "noising"]

_COLUMNS = ["site", "layer", "matrix", "head", "position", "component", "strength", "effect", "stderr", "fraction",
            "degenerate"]  # fmt: skip


@final
@dataclass(frozen=True, slots=True, repr=False)
class Patching:
    """What patching components did to the metric: **effect = metric patched − metric unpatched**, in its unit.

    `measure.baseline` is the metric of the runs that were patched, `source` that of the runs that the coordinates come
    from, per example. `parts` holds the effects, one table for each of `positions`, or a single one where components
    were patched at all positions together (`positions` None).
    """

    direction: Direction
    measure: Measure
    source: Float[Tensor, " example"]
    parts: tuple[Effects, ...]
    positions: tuple[int, ...] | None

    def __getitem__(self, site: str) -> Tensor:
        """The mean effects of a matrix, `[component]`, or `[position component]`; heads first for a final `[*]`.

        NaN where a component was not patched.
        """
        found = [part[site] for part in self.parts]
        return found[0] if self.positions is None else torch.stack(found, dim=-2)

    def stderr(self, site: str) -> Tensor:
        """The standard error of each mean effect over examples, in the shape of `patched[site]`."""
        found = [part.stderr(site) for part in self.parts]
        return found[0] if self.positions is None else torch.stack(found)

    def fraction(self, site: str) -> Tensor:
        """The mean effects as a share of what changing the whole text does: 0 for nothing, 1 for all of it."""
        return self[site] / self._gap

    @property
    def sites(self) -> tuple[str, ...]:
        """The matrices whose components were patched."""
        return self.parts[0].sites

    @property
    def effects(self) -> Effects:
        """The effects at all positions together, as the attributions have them.

        Raises:
            ValueError: if positions were patched one at a time, whose effects need not sum to anything.
        """
        if self.positions is not None:
            raise ValueError(
                f"components were patched at each of {counted(len(self.positions), 'position')} by itself, and these "
                "effects do not sum to one: use at(position), or patch with positions='all'."
            )
        return self.parts[0]

    def at(self, position: int) -> Effects:
        """The effects of patching at one position.

        Raises:
            ValueError: if that position was not patched by itself.
        """
        if self.positions is None or position not in self.positions:
            there = "all together" if self.positions is None else f"each of {', '.join(map(str, self.positions))}"
            raise ValueError(
                f"position {position} was not patched by itself: patched were {there}. Patch again with "
                f"positions=[{position}]."
            )
        return self.parts[self.positions.index(position)]

    def top(self, k: int) -> Selection:
        """The k units with the largest effects in absolute value, over all matrices and at any position."""
        largest = {
            site: torch.stack([part.examples[site].mean(0) for part in self.parts]).abs().amax(0, keepdim=True)
            for site in self.sites
        }
        return replace(self.parts[0], examples=largest).top(k)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each component: the columns of `Effects`, `fraction`, and `position` where it was varied."""
        frames = [part.to_dataframe() for part in self.parts]
        if self.positions is not None:
            frames = [frame.assign(position=at) for frame, at in zip(frames, self.positions, strict=True)]
        whole = pd.concat(frames, ignore_index=True)
        whole["fraction"] = whole["effect"] / float(self._gap)
        return whole.reindex(columns=[column for column in _COLUMNS if column in whole])

    @property
    def _gap(self) -> Tensor:
        return self.source.mean() - self.measure.baseline.mean()

    def __repr__(self) -> str:
        runs = ("corrupted", "clean") if self.direction == "denoising" else ("clean", "corrupted")
        units = self.parts[0].units
        frame = self.to_dataframe().dropna(subset="effect")
        frame = frame.sort_values("effect", key=lambda effect: -effect.abs()).head(5)
        columns = ["site", "position", "component", "strength", "effect", "stderr", "fraction"]
        where = (
            "at all positions" if self.positions is None else f"at each of {counted(len(self.positions), 'position')}"
        )
        return "\n".join([
            f"patching ({self.direction}) of {counted(sum(map(len, units.values())), 'component')} of "
            f"{counted(len(units), 'matrix', 'matrices')} {where}, {counted(len(self.source), 'example')}",
            f"{self.measure.label}: {runs[0]}, unpatched, {float(self.measure.baseline.mean()):.4g}; {runs[1]} "
            f"{float(self.source.mean()):.4g}; largest effects:",
            frame[[column for column in columns if column in frame]].to_string(index=False),
        ])  # fmt: skip
