"""What an attribution found: the effect of single components on a metric, with its evidence, and the specs it suggests.

One sign convention everywhere: **effect = metric with the component removed − metric now**. A component whose removal
lowers a metric that should be high has a negative effect and is helpful; `drop_most_harmful` follows the metric's
direction.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from analyses.attribution.selections import Selection, Unit
from analyses.statistics import bootstrap_interval, mean_and_stderr
from hooks import Site
from surgery import SVD, Basis, Edit
from surgery.arguments import counted, number, whole
from surgery.bases import decode_basis
from surgery.files import read_tensors, whole_file
from surgery.json_values import encode
from surgery.svd import degenerate_blocks

__all__ = ["REMOVAL", "Effects", "Measure", "Shares"]

_FORMAT, _VERSION = "model-surgery effects", "1"
_BY_SITE = ("examples", "strengths", "noise", "positions")
OrderKey = Callable[[np.ndarray], np.ndarray]
_SVD = SVD()
REMOVAL = "removal"
"""What is done to a component when it is taken out and nothing put in its place: what `Drop` does."""


@final
@dataclass(frozen=True, slots=True)
class Measure:
    """The metric behind an attribution: its name, unit and direction, and its value now, per example."""

    name: str
    unit: str
    higher_is_better: bool | None
    baseline: Float[Tensor, " example"]

    @property
    def label(self) -> str:
        """Its name, with its unit where it has one."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


@dataclass(frozen=True, slots=True, repr=False)
class Effects:
    """The effect of removing components, in the metric's unit, one row for each example.

    A metric that gave one number for all examples together has one row, and no standard error.

    Args:
        method: how the effects were found.
        measure: the metric, and its value now.
        units: of each matrix, which components a column stands for.
        examples: of each matrix, the effects, `[example, unit]`.
        strengths: of each matrix, all of its singular values in force.
        weight_state: which form of the weights the model holds.
        passes: the work, in forward passes of the whole model over all examples.
        noise: the standard error of a column's mean that comes from the method itself (random probes, orders); exact
            methods have none.
        positions: where asked for, the effects split by position, `[example, pos, unit]`.
        basis: the basis of the components.
        intervention: what was done to a component: its removal, unless an analysis says something else.

    >>> effects = attribution.by_gradient(model, tokens, metrics.logit(3), "blocks.1.mlp.W_out", progress=False)
    >>> effects["blocks.1.mlp.W_out"].shape, effects.top(2).n_components
    (torch.Size([16]), 2)
    >>> sorted(effects.to_dataframe().columns)[:4]
    ['component', 'degenerate', 'effect', 'head']
    """

    method: str
    measure: Measure
    units: dict[str, tuple[Unit, ...]]
    examples: dict[str, Float[Tensor, "example unit"]]
    strengths: dict[str, Float[Tensor, " component"]]
    weight_state: str
    passes: float
    noise: dict[str, Float[Tensor, " unit"]] = field(default_factory=dict)
    positions: dict[str, Float[Tensor, "example pos unit"]] = field(default_factory=dict)
    basis: Basis = _SVD
    intervention: str = REMOVAL

    def __post_init__(self) -> None:
        for site, rows in self.examples.items():
            if not bool(torch.isfinite(rows).all()):
                raise ValueError(
                    f"{int((~torch.isfinite(rows)).sum())} effects on '{site}' are not finite: the metric "
                    f"{self.measure.name!r} or "
                    "the model gives NaN or infinity on these inputs. Check metric(model(tokens)) first."
                )

    def __getitem__(self, site: str) -> Tensor:
        """The mean effects of a matrix, `[component]`, or of all its heads for a final `[*]`, `[head component]`.

        NaN where a component was not attributed; components of one unit all show the unit's effect.
        """
        return self._by_head(site, lambda one: self._spread(one, self.examples[one].mean(0)))

    @property
    def sites(self) -> tuple[str, ...]:
        """The matrices that were attributed."""
        return tuple(self.units)

    def stderr(self, site: str) -> Float[Tensor, "*head component"]:
        """The standard error of each mean effect: over examples and, where the method is random, over its draws."""
        return self._by_head(site, self._stderr)

    def interval(
        self, site: str, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> Float[Tensor, "2 component"]:
        """Bootstrap percentile interval of each mean effect over examples, `[lower, upper]`."""
        self._check_attributed(site)
        bounds = bootstrap_interval(self.examples[site], level=level, resamples=resamples, seed=seed)
        return torch.stack([self._spread(site, bound) for bound in bounds.to(self.examples[site])])

    def top(self, k: int) -> Selection:
        """The k units with the largest effects in absolute value, over all matrices, largest first in each matrix."""
        return self._selected(k, lambda effect: -np.abs(effect))

    def drop(self, k: int) -> dict[str, Edit]:
        """The spec that removes `top(k)`."""
        return self.top(k).drop()

    def keep(self, k: int) -> dict[str, Edit]:
        """The spec that keeps `top(k)` and removes every other component of the attributed matrices."""
        chosen = self.top(k)
        return Selection({site: chosen.get(site, ()) for site in self.sites}, basis=self.basis).keep()

    def most_harmful(self, k: int) -> Selection:
        """The k units whose removal improves the metric most; fewer if fewer improve it.

        Raises:
            ValueError: if the metric has no direction, or something else than removal was measured.
        """
        if self.intervention != REMOVAL:
            raise ValueError(
                f"these are effects of {self.intervention}, not of removal, so they do not say which components to "
                "remove. Attribute removal (by_ablation with replacement='zero', by_gradient without corrupted), or "
                "remove the largest all the same: drop(k)."
            )
        k, sign = whole(k, "k"), self._direction()
        improving = int(sum((sign * self.examples[site].mean(0) > 0).sum() for site in self.sites))
        return self._selected(min(k, improving), lambda effect: -sign * effect)

    def drop_most_harmful(self, k: int) -> dict[str, Edit]:
        """The spec that removes `most_harmful(k)`.

        Raises:
            ValueError: as `most_harmful`.
        """
        return self.most_harmful(k).drop()

    def degenerate(self, rtol: float = 1e-5) -> Selection:
        """The (near-)equal singular values of each matrix, a unit for each block of them: attribute these as one.

        Inside a block singular vectors are defined only up to a rotation, and so are the effects of single ones.
        """
        if not 0 <= number(rtol, "rtol") < 1:
            raise ValueError(f"rtol={rtol!r}: a relative difference lies between 0 and 1, such as 1e-5.")
        found = {site: _degenerate_units(S, rtol) for site, S in self.strengths.items()}
        return Selection({site: units for site, units in found.items() if units}, basis=self.basis)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each component: site, layer, matrix, head, component, strength, effect, stderr, degenerate."""
        frames = [self._frame(site) for site in self.sites]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, with what is no tensor as JSON in its header."""
        tensors = {
            f"{site}|{name}": rows.contiguous() for name in _BY_SITE for site, rows in getattr(self, name).items()
        }
        measure = self.measure
        tensors["baseline"] = measure.baseline.contiguous()
        about = {
            "method": self.method, "units": self.units, "weight_state": self.weight_state, "passes": self.passes,
            "name": measure.name, "unit": measure.unit, "higher_is_better": measure.higher_is_better,
            "basis": encode(self.basis), "intervention": self.intervention,
        }  # fmt: skip
        if isinstance(self, Shares):
            tensors["change"] = self.change.contiguous()
            about["notes"] = self.notes
        metadata = {"format": _FORMAT, "version": _VERSION, "about": json.dumps(about)}
        with whole_file(path) as file:
            save_file(tensors, str(file), metadata=metadata)

    @staticmethod
    def load(path: str | Path) -> "Effects":
        """What `save` wrote: `Effects`, or `Shares`.

        Raises:
            ValueError: if the file is damaged or not one of ours.
        """
        with read_tensors(path, (_FORMAT, _VERSION), "effects") as (metadata, tensors):
            return _read(json.loads(metadata["about"]), tensors)

    def __repr__(self) -> str:
        measure = self.measure
        count = sum(len(chosen) for chosen in self.units.values())
        frame = self.to_dataframe().dropna(subset="effect")
        frame = frame.sort_values("effect", key=lambda effect: -effect.abs(), kind="stable").head(5)
        table = frame[["site", "component", "strength", "effect", "stderr"]].to_string(index=False)
        lines = [
            f"effect of {self.intervention} on {measure.label}, by {self.method}: {counted(count, 'component')} of "
            f"{counted(len(self.sites), 'matrix', 'matrices')}, {counted(len(measure.baseline), 'example')}, "
            f"{self.passes:.3g} forward {'pass' if self.passes == 1 else 'passes'}, weights {self.weight_state}",
            f"{measure.name} now: {float(measure.baseline.mean()):.4g}; largest effects:",
            table,
        ]
        return "\n".join(lines)

    def _by_head(self, site: str, read: Callable[[str], Tensor]) -> Tensor:
        """What `read` gives of a matrix; for a final `[*]`, a row for each head up to the last attributed one."""
        if site.endswith("[*]"):
            found = {Site.parse(s).head: read(s) for s in self.units if s.startswith(f"{site[:-3]}[")}
            heads = {head: row for head, row in found.items() if head is not None}
            if heads:
                nothing = torch.full_like(next(iter(heads.values())), nan)
                return torch.stack([heads.get(head, nothing) for head in range(max(heads) + 1)])
        self._check_attributed(site)
        return read(site)

    def _check_attributed(self, site: str) -> None:
        if site not in self.units:
            names = [*list(self.units)[:8], *(["…"] if len(self.units) > 8 else [])]
            raise KeyError(f"'{site}' was not attributed; there are {', '.join(names)}. All are in effects.sites.")

    def _stderr(self, site: str) -> Float[Tensor, " component"]:
        rows = self.examples[site]
        return self._spread(site, (mean_and_stderr(rows)[1].square() + self._noise(site).square()).sqrt())

    def _noise(self, site: str) -> Tensor:
        return self.noise.get(site, torch.zeros(len(self.units[site])))

    def _direction(self) -> int:
        if self.measure.higher_is_better is None:
            raise ValueError(
                f"the metric {self.measure.name!r} has no direction, so nothing is harmful to it: give it "
                "higher_is_better=True or False, or choose by size with top(k) or drop(k)."
            )
        return 1 if self.measure.higher_is_better else -1

    def _selected(self, k: int, order: OrderKey) -> Selection:
        k = whole(k, "k")
        flat = [(site, unit) for site in self.sites for unit in self.units[site]]
        effects = np.concatenate([self.examples[site].mean(0).numpy() for site in self.sites]) if flat else np.empty(0)
        chosen: dict[str, list[Unit]] = {}
        for at in np.argsort(order(effects), kind="stable")[:k]:
            site, unit = flat[at]
            chosen.setdefault(site, []).append(unit)
        return Selection({site: chosen[site] for site in self.sites if site in chosen}, basis=self.basis)

    def _spread(self, site: str, values: Float[Tensor, " unit"]) -> Float[Tensor, " component"]:
        spread = torch.full_like(self.strengths[site], nan, dtype=values.dtype)
        for unit, value in zip(self.units[site], values.tolist(), strict=True):
            spread[list(unit)] = value
        return spread

    def _frame(self, site: str) -> pd.DataFrame:
        parsed, S = Site.parse(site), self.strengths[site]
        block = torch.full((len(S),), -1, dtype=torch.long)
        for n, members in enumerate(_degenerate_units(S)):
            block[list(members)] = n
        frame = pd.DataFrame({
            "site": site, "layer": parsed.layer, "matrix": parsed.matrix, "head": parsed.head,
            "component": range(len(S)), "strength": S.numpy(), "effect": self[site].numpy(),
            "stderr": self.stderr(site).numpy(), "degenerate": block.numpy(),
        })  # fmt: skip
        frame["head"] = frame["head"].astype("Int64")
        frame["degenerate"] = frame["degenerate"].astype("Int64").where(frame["degenerate"] >= 0)
        return frame


@final
@dataclass(frozen=True, slots=True, repr=False)
class Shares(Effects):
    """The shares of single components in what an edit changes, which sum to it.

    Args:
        change: what the edit does to the metric, `[example]`.
        notes: what else is to be said about the sum, a line each.
    """

    change: Float[Tensor, " example"] = field(kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def residual(self) -> float:
        """How far the shares are from the change, relative to it: the certificate of `by_path`."""
        return residual(torch.cat(list(self.examples.values()), 1), self.change)

    def __repr__(self) -> str:
        return "\n".join([Effects.__repr__(self), *self.notes])


def residual(shares: Float[Tensor, "example player"], change: Float[Tensor, " example"]) -> float:
    """How far the shares are from the change, relative to it, on the mean over examples."""
    gap, total = abs(float(shares.sum(1).mean() - change.mean().cpu())), abs(float(change.mean()))
    return gap / total if total > 0 else float("inf" if gap > 0 else 0)


def _degenerate_units(S: Float[Tensor, " component"], rtol: float = 1e-5) -> list[Unit]:
    """Blocks of (near-)equal strengths, whatever their order: gains in force may have changed it."""
    order = S.argsort(descending=True, stable=True)
    return [tuple(sorted(order[block].tolist())) for block in degenerate_blocks(S[order], rtol)]


def _read(about: dict, tensors: dict[str, Tensor]) -> Effects:
    units = {site: tuple(tuple(unit) for unit in chosen) for site, chosen in about["units"].items()}
    by_site = {
        name: {site: tensors[f"{site}|{name}"] for site in units if f"{site}|{name}" in tensors} for name in _BY_SITE
    }
    for site, chosen in units.items():
        if by_site["examples"][site].shape[1:] != (len(chosen),) or by_site["strengths"][site].ndim != 1:
            raise ValueError(f"the parts of {site} do not fit together")
    fields = {
        "method": about["method"],
        "measure": Measure(about["name"], about["unit"], about["higher_is_better"], tensors["baseline"]),
        "units": units,
        "weight_state": about["weight_state"],
        "passes": about["passes"],
        "basis": decode_basis(about["basis"]) if "basis" in about else SVD(),
        "intervention": about.get("intervention", _intervention_by(about["method"])),
        **by_site,
    }
    if "change" in tensors:
        return Shares(**fields, change=tensors["change"], notes=tuple(about["notes"]))
    return Effects(**fields)


def _intervention_by(method: str) -> str:
    """What files say that were written before they named it."""
    patched = method.startswith("patching") or "clean to corrupted" in method or "(resample)" in method
    return "patching" if patched else "replacement by the mean" if "(mean)" in method else REMOVAL
