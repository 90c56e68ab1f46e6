"""What an attribution found: the effect of single components on a metric, with its evidence, and the specs it suggests.

One sign convention everywhere: **effect = metric with the component removed − metric now**. A component whose removal
lowers a metric that should be high has a negative effect and is helpful; `drop_most_harmful` follows the metric's
direction.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hooks import Site
from surgery import SVD, Basis, Drop, Edit, Keep
from surgery.arguments import counted, number, shown, whole
from surgery.arguments import seed as whole_seed
from surgery.bases import decode_basis
from surgery.files import whole_file
from surgery.json_values import encode
from surgery.svd import degenerate_blocks

Unit = tuple[int, ...]
"""Components that are removed together: usually one, or a degenerate block."""

OrderKey = Callable[[np.ndarray], np.ndarray]
_FORMAT, _VERSION = "model-surgery effects", "1"
_SVD = SVD()
REMOVAL = "removal"
"""What is done to a component when it is taken out and nothing put in its place: what `Drop` does."""


@final
class Selection(Mapping[str, tuple[Unit, ...]]):
    """Chosen components of chosen matrices: what `sites=` takes where only some components are wanted.

    They are components in `basis`: singular components unless something else was attributed.
    """

    def __init__(self, units: Mapping[str, Sequence[int | Sequence[int]]], *, basis: Basis = _SVD) -> None:
        if not isinstance(units, Mapping):
            raise ValueError(f"a selection of {shown(units)}: give the components of each matrix, {{site: [0, 3]}}.")
        self.basis = basis
        self._units = {str(site): _units(site, chosen) for site, chosen in units.items()}
        for site, chosen in self._units.items():
            members = [i for unit in chosen for i in unit]
            if len(set(members)) < len(members):
                raise ValueError(
                    f"the selection of '{site}' is {list(chosen)!r}: name each component once, counting from 0, the "
                    "strongest."
                )

    def __getitem__(self, site: str) -> tuple[Unit, ...]:
        return self._units[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Selection) and other.basis != self.basis:
            return False
        return super().__eq__(other)

    @property
    def n_components(self) -> int:
        """How many components are chosen, over all matrices."""
        return sum(len(unit) for chosen in self._units.values() for unit in chosen)

    def drop(self) -> dict[str, Edit]:
        """The spec that removes them."""
        return {site: Drop(self._members(site), basis=self.basis) for site in self}

    def keep(self) -> dict[str, Edit]:
        """The spec that keeps them and removes every other component of these matrices."""
        return {site: Keep(self._members(site), basis=self.basis) for site in self}

    def _members(self, site: str) -> list[int]:
        return sorted(i for unit in self[site] for i in unit)

    def __repr__(self) -> str:
        lines = [f"  {site}: {', '.join('+'.join(map(str, unit)) for unit in chosen)}" for site, chosen in self.items()]
        return "\n".join([f"Selection of {counted(self.n_components, 'component')}", *lines])


def _units(site: object, chosen: object) -> tuple[Unit, ...]:
    """The units of one matrix, each a component or several."""
    try:
        if isinstance(chosen, str | bytes | Mapping):
            raise TypeError
        return tuple(
            tuple(_component(i) for i in unit) if isinstance(unit, list | tuple | range) else (_component(unit),)
            for unit in list(chosen)  # type: ignore[call-overload]
        )
    except (TypeError, ValueError):
        raise ValueError(
            f"the selection of '{site}' is {shown(chosen)}: name each component once, counting from 0, the strongest, "
            "in a list such as [0, 3], or [(0, 1), 3] where some go together."
        ) from None


def _component(given: object) -> int:
    return whole(given, "component")


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


@final
@dataclass(frozen=True, slots=True, repr=False)
class Effects:
    """The effect of removing components, in the metric's unit, one row for each example.

    `examples[site]` is `[example, unit]`; `units[site]` says which components a column stands for. `strengths[site]`
    are all of the matrix's singular values in force. `noise[site]` is the standard error of a column's mean that comes
    from the method itself (random probes, permutations), 0 for exact methods. `passes` counts the work in forward
    passes of the whole model over all examples. `change` is what all of it together does to the metric, where the
    effects are shares of that. `positions[site]`, where asked for, splits the effects by position, `[example, pos,
    unit]`. `basis` is what the components are components of. `intervention` says what was done to a component: its
    removal, unless an analysis says something else. A metric that gave one number for all examples together has one
    row, and no standard error.
    """

    method: str
    measure: Measure
    units: dict[str, tuple[Unit, ...]]
    examples: dict[str, Float[Tensor, "example unit"]]
    strengths: dict[str, Float[Tensor, " component"]]
    weight_state: str
    passes: float
    noise: dict[str, Float[Tensor, " unit"]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    change: Float[Tensor, " example"] | None = None
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
    def residual(self) -> float:
        """How far shares are from the change they are shares of, relative to it: the certificate of `by_path`.

        Raises:
            ValueError: if these are effects of single components, which need not sum to anything.
        """
        if self.change is None:
            raise ValueError(
                f"effects by {self.method} are not shares of a change: only by_path and by_shapley give shares."
            )
        total = float(self.change.mean())
        gap = abs(sum(float(rows.sum(1).mean()) for rows in self.examples.values()) - total)
        return gap / abs(total) if total else float("inf" if gap else 0)

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
        if not 0 < number(level, "level") < 1:
            raise ValueError(f"level={level!r}: a confidence level lies between 0 and 1, such as 0.95.")
        resamples = whole(resamples, "resamples", least=1)
        self._check_attributed(site)
        rows = self.examples[site].double()
        generator = torch.Generator().manual_seed(whole_seed(seed))
        weights = torch.zeros(resamples, len(rows), dtype=rows.dtype)
        draws = torch.randint(len(rows), (resamples, len(rows)), generator=generator)
        weights.scatter_add_(1, draws, torch.ones_like(draws, dtype=rows.dtype))
        means = weights @ rows / len(rows)
        tail = (1 - level) / 2
        bounds = np.quantile(means.numpy(), [tail, 1 - tail], axis=0)  # torch's refuses more than 2**24 numbers
        return torch.stack([self._spread(site, bound) for bound in torch.from_numpy(bounds).to(self.examples[site])])

    def top(self, k: int) -> Selection:
        """The k units with the largest effects in absolute value, over all matrices, largest first in each matrix."""
        return self._selected(k, lambda effect: -np.abs(effect))

    def drop(self, k: int) -> dict[str, Edit]:
        """The spec that removes `top(k)`."""
        return self.top(k).drop()

    def keep(self, k: int) -> dict[str, Edit]:
        """The spec that keeps `top(k)` and removes every other component of the attributed matrices."""
        chosen = self.top(k)
        return {site: Keep([i for unit in chosen.get(site, ()) for i in unit], basis=self.basis) for site in self.sites}

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
        """Write everything to one safetensors file."""
        tensors = {f"{site}|examples": rows.contiguous() for site, rows in self.examples.items()}
        tensors |= {f"{site}|strengths": S.contiguous() for site, S in self.strengths.items()}
        tensors |= {f"{site}|noise": n.contiguous() for site, n in self.noise.items()}
        tensors |= {f"{site}|positions": rows.contiguous() for site, rows in self.positions.items()}
        tensors["baseline"] = self.measure.baseline.contiguous()
        if self.change is not None:
            tensors["change"] = self.change.contiguous()
        about = {
            "method": self.method, "units": self.units, "weight_state": self.weight_state, "passes": self.passes,
            "notes": self.notes, "name": self.measure.name, "unit": self.measure.unit,
            "higher_is_better": self.measure.higher_is_better, "basis": encode(self.basis),
            "intervention": self.intervention,
        }  # fmt: skip
        metadata = {"format": _FORMAT, "version": _VERSION, "about": json.dumps(about)}
        with whole_file(path) as file:
            save_file(tensors, str(file), metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Effects":
        """What `save` wrote.

        Raises:
            ValueError: if the file is damaged or not one of ours.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if (metadata.get("format"), metadata.get("version")) != (_FORMAT, _VERSION):
                    raise ValueError(f"not one that this release wrote, version {_VERSION}")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
                return cls._read(json.loads(metadata["about"]), tensors)
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or not a file of effects ({error}): attribute again and save."
            ) from error

    @classmethod
    def _read(cls, about: dict, tensors: dict[str, Tensor]) -> "Effects":
        units = {site: tuple(tuple(u) for u in chosen) for site, chosen in about["units"].items()}
        parts = {
            name: {site: tensors[f"{site}|{name}"] for site in units if f"{site}|{name}" in tensors}
            for name in ("examples", "strengths", "noise", "positions")
        }
        for site, chosen in units.items():
            if parts["examples"][site].shape[1:] != (len(chosen),) or parts["strengths"][site].ndim != 1:
                raise ValueError(f"the parts of {site} do not fit together")
        measure = Measure(about["name"], about["unit"], about["higher_is_better"], tensors["baseline"])
        state, notes = about["weight_state"], tuple(about["notes"])
        basis = decode_basis(about["basis"]) if "basis" in about else _SVD
        return cls(about["method"], measure, units, parts["examples"], parts["strengths"], state, about["passes"],
                   parts["noise"], notes, tensors.get("change"), parts["positions"], basis,
                   about.get("intervention", _intervention_by(about["method"])))  # fmt: skip

    def __repr__(self) -> str:
        measure = self.measure
        count = sum(len(chosen) for chosen in self.units.values())
        frame = self.to_dataframe().dropna(subset="effect")
        frame = frame.iloc[np.argsort(-np.abs(frame["effect"].to_numpy()), kind="stable")[:5]]
        shown = frame[["site", "component", "strength", "effect", "stderr"]].to_string(index=False)
        lines = [
            f"effect of {self.intervention} on {measure.label}, by {self.method}: {counted(count, 'component')} of "
            f"{counted(len(self.sites), 'matrix', 'matrices')}, {counted(len(measure.baseline), 'example')}, "
            f"{self.passes:.3g} forward {'pass' if self.passes == 1 else 'passes'}, weights {self.weight_state}",
            f"{measure.name} now: {float(measure.baseline.mean()):.4g}; largest effects:",
            shown,
            *self.notes,
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
        over_examples = rows.std(0) / len(rows) ** 0.5 if len(rows) > 1 else torch.full_like(rows[0], nan)
        return self._spread(site, (over_examples.square() + self._noise(site).square()).sqrt())

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


def _intervention_by(method: str) -> str:
    """What files say that were written before they named it."""
    patched = method.startswith("patching") or "clean to corrupted" in method or "(resample)" in method
    return "patching" if patched else "replacement by the mean" if "(mean)" in method else REMOVAL


def _degenerate_units(S: Float[Tensor, " component"], rtol: float = 1e-5) -> list[Unit]:
    """Blocks of (near-)equal strengths, whatever their order: gains in force may have changed it."""
    order = S.argsort(descending=True, stable=True)
    return [tuple(sorted(order[block].tolist())) for block in degenerate_blocks(S[order], rtol)]
