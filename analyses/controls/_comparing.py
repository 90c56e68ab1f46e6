"""Removing the k most harmful components, beside as many chosen by strength, at random or in rotated directions."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from analyses.attribution.effects import REMOVAL, Effects
from analyses.attribution.question import Question, ask, check_same_weights
from analyses.attribution.selections import Selection
from analyses.controls._draws import by_strength
from analyses.controls._plan import Plan, Removal
from analyses.controls.removals import Removals
from analyses.metrics import Metric
from analyses.metrics.positions import Mask
from analyses.prompts import Tokens
from hooks.running import arithmetic, record, rerun
from surgery import SVD, Decompositions, active
from surgery.arguments import counted, several, shown, whole
from surgery.arguments import seed as whole_seed
from surgery.progress import progress_bar

Grid = list[list[Removal]]
"""Removals by k and by draw."""


def compare(
    model: nn.Module,
    tokens: Tokens,
    metric: Metric | Callable[[Tensor], Tensor],
    effects: Effects,
    *,
    ks: Sequence[int] = (1, 2, 5, 10, 20),
    draws: int = 3,
    seed: int = 0,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Removals:
    """The metric with the k most harmful units removed, for each k, beside the same removal by every control.

    Most harmful by `effects`, in the direction of their metric; the largest in absolute value if it has no direction or
    the effects are not of removal. If fewer than k are harmful, these are removed. Each control removes as many
    components: the strongest of all attributed matrices; or, of the same matrices, `draws` random selections of equal
    count, of equal energy, and of directions in the span of twice as many components (`rotated`). Every removal is
    measured with `surgery.apply`, by running the model from the first edited matrix on.

    Directions are not rotated, as a note says, under an operation in force that edits one of these matrices, or where
    the components are not singular ones.

    Raises:
        ValueError: if `ks` or `draws` make no sense, the effects were found on other weights or strengths than the
            model has now, the metric gives the wrong shape or NaN, or as `ask`.
        SiteError: if this model lacks one of the matrices.

    >>> effects = attribution.by_gradient(model, tokens, metrics.logit(3), "blocks.1.mlp.W_out", progress=False)
    >>> compared = controls.compare(model, tokens, metrics.logit(3), effects, ks=[2], draws=2, progress=False)
    >>> sorted(compared.values)
    ['largest effect', 'random, same count', 'random, same energy', 'rotated', 'strongest']
    """
    ks, draws = _numbers(ks, draws, effects)
    question = ask(
        model, tokens, metric, Selection({site: [0] for site in effects.sites}, basis=effects.basis),
        basis=effects.basis, svds=svds, attention_mask=attention_mask, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    check_same_weights(question, effects)
    seeds = range(whole_seed(seed), seed + draws)
    selections, grids, notes = _removals(Plan(question, effects, svds), ks, seeds)
    baseline, values = _measured(question, [r for grid in grids.values() for row in grid for r in row], progress)
    per_grid = values.split([len(ks) * len(grid[0]) for grid in grids.values()])
    return Removals(
        question.measure(baseline),
        ks,
        selections,
        {name: part.unflatten(0, (len(ks), -1)) for name, part in zip(grids, per_grid, strict=True)},
        {name: torch.tensor([[r.components for r in row] for row in grid]) for name, grid in grids.items()},
        {name: torch.tensor([[r.energy for r in row] for row in grid]) for name, grid in grids.items()},
        notes,
    )


def _numbers(ks: Sequence[int], draws: int, effects: Effects) -> tuple[tuple[int, ...], int]:
    """The numbers of components, rising, each once; and that of draws."""
    if not isinstance(effects, Effects):
        raise ValueError(f"effects={shown(effects)}: give what an attribution returned, or effects of patching.")
    return tuple(sorted(set(several(ks, "ks", least=1)))), whole(draws, "draws", least=1)


def _removals(
    plan: Plan, ks: tuple[int, ...], seeds: Sequence[int]
) -> tuple[tuple[Selection, ...], dict[str, Grid], tuple[str, ...]]:
    """The selection for each k; its removal and the controls', by name; and what has to be said about them."""
    effects, notes = plan.effects, []
    directed = effects.measure.higher_is_better is not None
    if effects.intervention != REMOVAL:
        notes.append(f"the effects are of {effects.intervention}, not of removal: the largest are removed")
        directed = False
    if not directed:
        # The next in line, among which directions are rotated, are the largest as well.
        plan = replace(plan, effects=replace(effects, measure=replace(effects.measure, higher_is_better=None)))
    selections = tuple(effects.most_harmful(k) if directed else effects.top(k) for k in ks)
    grids: dict[str, Grid] = {
        "most harmful" if directed else "largest effect": [[plan.selected(s)] for s in selections],
        "strongest": [[plan.selected(by_strength(effects, s.n_components))] for s in selections],
        "random, same count": [[plan.random(s, "count", seed) for seed in seeds] for s in selections],
        "random, same energy": [[plan.random(s, "energy", seed) for seed in seeds] for s in selections],
    }
    n = selections[-1].n_components
    if n < ks[-1]:
        notes.append(
            f"only {counted(n, 'component')} {'is' if n == 1 else 'are'} {'harmful' if directed else 'attributed'}"
        )
    edited = {change.site.joint for operation in active(plan.question.model) for change in operation.changes}
    if any(site.joint in edited for site in plan.question.targets):
        notes.append("no directions were rotated: an operation in force edits these matrices in the basis SVD()")
    elif effects.basis != SVD():
        notes.append(f"no directions were rotated: components in {effects.basis!r} are not orthogonal")
    else:
        grids["rotated"] = [[plan.rotated(s, seed) for seed in seeds] for s in selections]
    return selections, grids, tuple(notes)


def _measured(
    question: Question, removals: Sequence[Removal], progress: bool
) -> tuple[Float[Tensor, " example"], Float[Tensor, "removal row"]]:
    """The metric as it is and under each removal, from the first edited matrix on."""
    model, baselines, values = question.model, [], []
    batches = list(question.batches())
    with progress_bar("controls", progress=progress, total=len(removals) * len(batches), unit="run") as bar:
        for batch in batches:
            examples, under = question.examples.take(batch), []
            with arithmetic(False):
                recording, logits = record(model, examples.read)
                baselines.append(examples.measured(logits))
                for removal in removals:
                    if removal.first is None:
                        under.append(baselines[-1])
                    else:
                        with removal.applied(model):
                            logits = rerun(model, examples.read, recording, removal.first)
                        under.append(examples.measured(logits))
                    bar.update()
            values.append(torch.stack(under))
    return torch.cat(baselines), question.pooled(torch.cat(values, dim=1).float().cpu().mT).mT
