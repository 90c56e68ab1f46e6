"""What a removal did beside its controls."""

from dataclasses import dataclass
from typing import final

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from analyses.attribution.effects import Measure
from analyses.attribution.selections import Selection
from analyses.statistics import mean_and_stderr
from surgery import Edit
from surgery.arguments import counted


@final
@dataclass(frozen=True, slots=True, repr=False)
class Removals:
    """The metric of each example under removals: of the components an attribution names (first), and of controls.

    `values[removal]` is `[k draw example]`; removals that are not random have one draw. `components` and `energies` say
    how many components each removal takes out, and their share of the energy `Σ s²` of all attributed matrices.
    `chosen` are the components that the attribution names for each of `ks`.
    """

    measure: Measure
    ks: tuple[int, ...]
    chosen: tuple[Selection, ...]
    values: dict[str, Float[Tensor, "k draw example"]]
    components: dict[str, Int[Tensor, "k draw2"]]
    energies: dict[str, Float[Tensor, "k draw3"]]
    notes: tuple[str, ...] = ()

    def spec(self, k: int) -> dict[str, Edit]:
        """The spec that removes the components that the attribution names for this k.

        Raises:
            ValueError: if k was not compared.
        """
        if k not in self.ks:
            raise ValueError(
                f"k={k!r} was not compared: there are {', '.join(map(str, self.ks))}. Choose one of these."
            )
        return self.chosen[self.ks.index(k)].drop()

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each removal, k and draw: the mean of the metric and of its change, with standard errors.

        Columns: removal, k, draw, components, energy, value, value_stderr, effect, effect_stderr.
        """
        rows = []
        for removal, values in self.values.items():
            for at, k in enumerate(self.ks):
                for draw, value in enumerate(values[at]):
                    row = {"removal": removal, "k": k, "draw": draw}
                    row["components"] = int(self.components[removal][at, draw])
                    row["energy"] = float(self.energies[removal][at, draw])
                    row |= _mean("value", value) | _mean("effect", value - self.measure.baseline)
                    rows.append(row)
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        measure = self.measure
        table = pd.DataFrame(
            {k: [_range(values[at].mean(1)) for values in self.values.values()] for at, k in enumerate(self.ks)},
            index=list(self.values),
        )
        direction = {None: "no direction", True: "higher is better", False: "lower is better"}[measure.higher_is_better]
        return "\n".join([
            f"{measure.label}, {direction}, {counted(len(measure.baseline), 'example')}: "
            f"{float(measure.baseline.mean()):.4g} now; after removing k components (least to most over draws):",
            table.to_string(),
            *self.notes,
        ])  # fmt: skip


def _mean(name: str, x: Float[Tensor, " example"]) -> dict[str, float]:
    """The mean over examples and its standard error, NaN for one example."""
    return dict(zip((name, f"{name}_stderr"), map(float, mean_and_stderr(x)), strict=True))


def _range(means: Float[Tensor, " draw"]) -> str:
    mean, least, most = (float(x) for x in (means.mean(), means.min(), means.max()))
    return f"{mean:.4g}" if len(means) == 1 else f"{mean:.4g} ({least:.4g} to {most:.4g})"
