"""What a removal did beside its controls."""

from dataclasses import dataclass
from typing import final

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from analyses.attribution.effects import Measure, Selection
from surgery import Edit
from surgery.arguments import counted

_COLUMNS = ["removal", "k", "draw", "components", "energy", "value", "value_stderr", "effect", "effect_stderr"]


@final
@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """The metric of each example under removals: of the chosen components (the first entry), and of their controls.

    `values[removal]` is `[k draw example]`; removals that are not random have one draw. `components` and `energies` say
    how many components each took out, and their share of the energy `Σ s²` of all attributed matrices. `chosen` are the
    components that the attribution names for each of `ks`.
    """

    measure: Measure
    ks: tuple[int, ...]
    chosen: tuple[Selection, ...]
    values: dict[str, Float[Tensor, "k draw example"]]
    components: dict[str, Int[Tensor, "k draw2"]]
    energies: dict[str, Float[Tensor, "k draw3"]]
    notes: tuple[str, ...] = ()

    def spec(self, k: int) -> dict[str, Edit]:
        """The spec that removes what the attribution names for this k.

        Raises:
            ValueError: if k was not compared.
        """
        if k not in self.ks:
            raise ValueError(
                f"k={k!r} was not compared: there are {', '.join(map(str, self.ks))}. Choose one of these."
            )
        return self.chosen[self.ks.index(k)].drop()

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each removal, k and draw: the mean of the metric and of its change, with standard errors."""
        n, rows = len(self.measure.baseline), []
        for removal, values in self.values.items():
            change = values - self.measure.baseline
            for at, k in enumerate(self.ks):
                for draw in range(values.shape[1]):
                    value, effect = values[at, draw], change[at, draw]
                    spread = [float(x.std() / n**0.5) if n > 1 else float("nan") for x in (value, effect)]
                    count, energy = int(self.components[removal][at, draw]), float(self.energies[removal][at, draw])
                    rows.append(
                        (
                            removal,
                            k,
                            draw,
                            count,
                            energy,
                            float(value.mean()),
                            spread[0],
                            float(effect.mean()),
                            spread[1],
                        )
                    )
        return pd.DataFrame(rows, columns=_COLUMNS)

    def __repr__(self) -> str:
        measure = self.measure
        shown = pd.DataFrame(
            {k: [_range(values[at].mean(1)) for values in self.values.values()] for at, k in enumerate(self.ks)},
            index=list(self.values),
        )
        direction = {None: "no direction", True: "higher is better", False: "lower is better"}[measure.higher_is_better]
        return "\n".join([
            f"{measure.label}, {direction}, {counted(len(measure.baseline), 'example')}: "
            f"{float(measure.baseline.mean()):.4g} now; after removing k components (least to most over draws):",
            shown.to_string(),
            *self.notes,
        ])  # fmt: skip


def _range(means: Float[Tensor, " draw"]) -> str:
    mean, low, high = (float(x) for x in (means.mean(), means.min(), means.max()))
    return f"{mean:.4g}" if len(means) == 1 else f"{mean:.4g} ({low:.4g} to {high:.4g})"
