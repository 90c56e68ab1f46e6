"""What sweeps over training give: values at every step under every cut, for one run or for several seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import pandas as pd
from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True, slots=True, repr=False)
class Sweep:
    """Values over training steps and cuts, one row for each metric.

    Columns of `frame`: step, end (what was cut, see `truncation.cuts.End`), site, rho, metric, value, stderr. On the
    recall experiment the metrics are those of `recall.evaluate` and, uncut, the attention probes; on prompts they are
    `p(name)`, `log_p(name)`, `rank(name)`, `margin(name)` (logits of "correct" over the name) and `likeliest(name)`.
    """

    frame: pd.DataFrame

    @classmethod
    def joined(cls, frames: Mapping[int, pd.DataFrame]) -> "Sweep":
        """The sweep of the tables of all steps."""
        rows = pd.concat([frame.assign(step=step) for step, frame in frames.items()], ignore_index=True)
        return cls(pd.DataFrame(rows, columns=["step", "end", "site", "rho", "metric", "value", "stderr"]))

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.frame.copy()

    @property
    def steps(self) -> tuple[int, ...]:
        """The training steps, rising."""
        return tuple(sorted(map(int, self.frame["step"].unique())))

    def of(self, metric: str, *, end: str = "full", site: str = "", rho: float | None = None) -> pd.Series:
        """A metric over training steps, under one cut.

        Raises:
            KeyError: if there is none.
        """
        frame = self.frame
        fits = (frame["metric"] == metric) & (frame["end"] == end) & frame["site"].str.startswith(site)
        rows = frame.loc[fits if rho is None else fits & (frame["rho"] == rho)]
        if rows.empty or rows["step"].duplicated().any():
            curves = "none" if rows.empty else f"{len(rows.groupby(['site', 'rho']))}"
            raise KeyError(
                f"metric={metric!r}, end={end!r}, site={site!r}, rho={rho!r} names {curves} of the curves: metrics are "
                f"{', '.join(frame['metric'].unique())}; ends {', '.join(frame['end'].unique())}; name a site and a "
                "rho where there are several."
            )
        return rows.set_index("step")["value"].sort_index()

    def __repr__(self) -> str:
        last = self.frame[self.frame["step"] == self.steps[-1]]
        shown = last.pivot_table(index=["site", "end", "rho"], columns="metric", values="value", sort=False)
        table = shown.to_string(float_format="{:.3f}".format)
        return f"truncation at steps {', '.join(map(str, self.steps))}; at the last:\n{table}"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Study:
    """The same sweep for several seeds, and how far the seeds spread."""

    sweeps: dict[int, Sweep]
    losses: dict[int, Float[Tensor, " step"]]

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each step, cut and metric: mean, lowest and highest over seeds."""
        frames = [sweep.frame.assign(seed=seed) for seed, sweep in self.sweeps.items()]
        by = ["step", "end", "site", "rho", "metric"]
        values = pd.concat(frames).groupby(by, sort=False)["value"]
        return values.agg(["mean", "min", "max"]).reset_index()

    def at(
        self, metric: str, step: int, *, end: str = "full", site: str = "", rho: float | None = None
    ) -> dict[int, float]:
        """A metric's value at one step, by seed."""
        cut = {"end": end, "site": site, "rho": rho}
        return {seed: sweep.of(metric, **cut).to_dict()[step] for seed, sweep in self.sweeps.items()}

    def __repr__(self) -> str:
        frame = self.to_dataframe()
        last = frame[frame["step"] == frame["step"].max()]
        triples = zip(last["mean"], last["min"], last["max"], strict=True)
        wide = last.assign(value=[f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in triples])
        index = ["site", "end", "rho"]
        shown = wide.pivot_table(index=index, columns="metric", values="value", aggfunc="first", sort=False).fillna("")
        seeds = ", ".join(map(str, self.sweeps))
        return f"mean and range over seeds {seeds} at step {frame['step'].max()}\n{shown.to_string()}"
