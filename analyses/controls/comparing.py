"""Removing the k most harmful components, beside as many chosen by strength, at random or in rotated directions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from analyses.attribution.effects import REMOVAL, Effects, Selection
from analyses.attribution.gradients import metric_of
from analyses.attribution.question import Question, ask
from analyses.controls.comparison import Comparison
from analyses.controls.draws import Match, by_strength, members, random_selection, twice
from analyses.controls.rotations import Directions, rotated
from analyses.metrics import Metric
from analyses.metrics.placement import Mask
from analyses.prompts import Tokens
from hooks import Site, host_of
from hooks.replay import Rows, recorded, replayed
from surgery import SVD, Decompositions, Edit, active, apply
from surgery.arguments import counted, shown, whole
from surgery.arguments import seed as whole_seed


def compare(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    effects: Effects,
    *,
    ks: Sequence[int] = (1, 2, 5, 10, 20),
    seeds: int = 3,
    seed: int = 0,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Comparison:
    """The metric with the k most harmful units removed, for each k, beside the same removal by every control.

    Most harmful by `effects`, for the direction of its metric; the largest in absolute value where that has none, or
    the effects are not of removal. If fewer than k are harmful, these are removed. Each control removes as many
    components, of the same matrices but for the strongest: the strongest of all attributed matrices; `seeds` random
    draws of equal count; of equal energy; and of random directions in the span of twice as many components of each
    matrix, the chosen and the next in line (`rotated`). Every removal is measured with `surgery.apply` on the whole
    model, from the first edited matrix on.

    Under an operation in force that edits one of these matrices, or where the components are not singular ones,
    directions cannot be rotated, and a note says so.

    Raises:
        ValueError: if `ks` or `seeds` make no sense, the effects were found on other weights or strengths than the
            model has now, the metric gives the wrong shape or NaN, or as `ask`.
        SiteError: if this model lacks one of the matrices.
    """
    if not isinstance(effects, Effects):
        raise ValueError(f"effects={shown(effects)}: give what an attribution returned, or effects of patching.")
    if isinstance(ks, int | str) or not len(ks):
        raise ValueError(f"ks={ks!r}: give numbers of components, such as [1, 5, 20].")
    ks, seeds, seed = [whole(k, "k", least=1) for k in ks], whole(seeds, "seeds", least=1), whole_seed(seed)
    question = ask(
        model, tokens, metric, Selection({site: [0] for site in effects.sites}, basis=effects.basis),
        svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    _check_same_weights(question, effects)
    ks, draws = tuple(sorted(set(ks))), range(seed, seed + seeds)
    notes = []
    if effects.intervention != REMOVAL:
        notes.append(f"the effects are of {effects.intervention}, not of removal: the largest are removed")
        effects = replace(effects, measure=replace(effects.measure, higher_is_better=None))
    directed = effects.measure.higher_is_better is not None
    chosen = tuple(effects.most_harmful(k) if directed else effects.top(k) for k in ks)
    plan = _Plan(question, effects, svds)
    removals = {
        "most harmful" if directed else "largest effect": [[plan.selected(some)] for some in chosen],
        "strongest": [[plan.selected(by_strength(effects, some.n_components))] for some in chosen],
        "random, same count": [[plan.random(some, "count", n) for n in draws] for some in chosen],
        "random, same energy": [[plan.random(some, "energy", n) for n in draws] for some in chosen],
    }
    if chosen[-1].n_components < ks[-1]:
        few = counted(chosen[-1].n_components, "component")
        notes.append(f"only {few} {'is' if few.startswith('1 ') else 'are'} {'harmful' if directed else 'attributed'}")
    edited = {change.site.joint for operation in active(model) for change in operation.changes}
    if any(site.joint in edited for site in question.targets):
        notes.append("no directions were rotated: an operation in force edits these matrices in the basis SVD()")
    elif effects.basis != SVD():
        notes.append(f"no directions were rotated: components in {effects.basis!r} are not orthogonal")
    else:
        removals["rotated"] = [[plan.rotated(some, n) for n in draws] for some in chosen]
    baseline, values = _measured(question, [r for grid in removals.values() for row in grid for r in row], progress)
    split = iter(values)
    return Comparison(
        question.measure(baseline),
        ks,
        chosen,
        {
            name: torch.stack([torch.stack([next(split) for _ in row]) for row in grid])
            for name, grid in removals.items()
        },
        {name: torch.tensor([[r.components for r in row] for row in grid]) for name, grid in removals.items()},
        {name: torch.tensor([[r.energy for r in row] for row in grid]) for name, grid in removals.items()},
        tuple(notes),
    )


@final
@dataclass(frozen=True, slots=True)
class _Removal:
    """Specs, each with the store of its components; how many of these they remove, and their share of the energy."""

    specs: tuple[tuple[dict[str, Edit], Decompositions | None], ...]
    components: int
    energy: float

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for spec, svds in self.specs:
                stack.enter_context(apply(model, spec, svds=svds, progress=False))
            yield

    @property
    def first(self) -> Site | None:
        """The first matrix that is edited."""
        return min((Site.parse(address) for spec, _ in self.specs for address in spec), default=None)


@final
@dataclass(frozen=True, slots=True)
class _Plan:
    """Removals from the matrices of one question, for these effects."""

    question: Question
    effects: Effects
    svds: Decompositions | None

    def selected(self, some: Selection) -> _Removal:
        strengths = [self.effects.strengths[site][members(some, site)] for site in some]
        return _Removal(((some.drop(), self.svds),) if some else (), some.n_components, self._share(strengths))

    def random(self, some: Selection, match: Match, seed: int) -> _Removal:
        return self.selected(random_selection(self.effects, some, match=match, seed=seed))

    def rotated(self, some: Selection, seed: int) -> _Removal:
        model, among = self.question.model, twice(self.effects, some)
        spec = rotated(model, some, among, seed=seed, svds=self.svds, progress=False)
        parts = {str(site): target.components for site, target in self.question.targets.items()}
        bases = {site: edit.basis for site, edit in spec.items()}
        written = [
            parts[site].S.unsqueeze(1) * (parts[site].Vh @ basis.directions.mT)
            for site, basis in bases.items()
            if isinstance(basis, Directions)
        ]
        # Such a basis is used here only: its components are kept beside it, not in the model's memory.
        specs = tuple(({site: edit}, Decompositions(basis=bases[site])) for site, edit in spec.items())
        return _Removal(specs, some.n_components, self._share(written))

    def _share(self, removed: Sequence[Tensor]) -> float:
        total, part = (
            sum(float(S.double().square().sum()) for S in of) for of in (self.effects.strengths.values(), removed)
        )
        return part / total if total else 0.0


def _measured(
    question: Question, removals: Sequence[_Removal], progress: bool
) -> tuple[Float[Tensor, " example"], Float[Tensor, "removal row"]]:
    """The metric as it is and under each removal, from the first edited matrix on."""
    model, baselines, values = question.model, [], []
    batches = list(question.batches())
    with tqdm(total=len(removals) * len(batches), desc="controls", unit="run", delay=1, disable=not progress) as bar:
        for chosen in batches:
            part, found = question.take(chosen), []
            with recorded(model, range(host_of(model).n_layers)) as recording:
                baselines.append(metric_of(question, part))
            for removal in removals:
                if removal.first is None:
                    found.append(baselines[-1])
                else:
                    rows = Rows(torch.arange(len(part.tokens)))
                    with removal.applied(model), replayed(model, recording, removal.first, rows):
                        found.append(metric_of(question, part))
                bar.update()
            values.append(torch.stack(found))
    return torch.cat(baselines), question.pooled(torch.cat(values, dim=1).float().cpu().mT).mT


def _check_same_weights(question: Question, effects: Effects) -> None:
    for site, target in question.targets.items():
        now, then = target.components.S.cpu().double(), effects.strengths[str(site)].double()
        if now.shape != then.shape or not torch.allclose(now, then, rtol=1e-3, atol=1e-5 * float(then.max())):
            raise ValueError(
                f"the components of '{site}' have other strengths now than when the effects were found (other weights, "
                "or another operation in force): controls would remove something else. Attribute this model as it is "
                "now."
            )
