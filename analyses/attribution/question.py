"""What an attribution is asked: a metric of a model, on some examples, as a function of some components' gains."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from analyses import metrics
from analyses.attribution.effects import REMOVAL, Effects, Measure
from analyses.attribution.selections import Selection, Sites, Unit, selection_of
from analyses.metrics.positions import Mask
from analyses.prompts import Prompts, Tokens, mask_of, read, warn_if_padded
from analyses.prompts.continuations import segments
from hooks import Place, Site, host_of, match_each, match_sites
from hooks.inputs import Inputs
from hooks.log_probs import Unembedding
from hooks.modes import check_deterministic
from hooks.recording import has_hooks
from surgery import Basis, Decomposition, Decompositions
from surgery.arguments import counted, whole
from surgery.decompositions import chosen_basis
from surgery.operations import components_in_force

TOKENS_PER_PASS = 8192
LOGITS_PER_PASS = 2**26
"""The stated budget: unless `batch_size` says otherwise, at most so many tokens go through the model at a time, and at
most so many logits come out of it (256 MiB in fp32)."""


@final
@dataclass(frozen=True, slots=True)
class Target:
    """A matrix under attribution: where it is, its components in force, and which of them are asked about."""

    place: Place
    components: Decomposition
    units: tuple[Unit, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every component is asked about, each by itself and in order."""
        return self.units == tuple((i,) for i in range(self.components.n_components))


@final
@dataclass(frozen=True, slots=True)
class Examples:
    """Some of the examples: their rows, and the metric cut down to them.

    An example is one row, unless the metric reads several rows of each (a task's item with several texts to compare).
    """

    inputs: Inputs
    metric: metrics.Metric

    @property
    def n_examples(self) -> int:
        """The number of examples."""
        first = self.metric.first_row
        return len(self.inputs) if first is None else len(first) - 1

    @property
    def owner(self) -> Int[Tensor, " row"] | None:
        """The example of each row; None where each row is one."""
        first = self.metric.first_row
        return None if first is None else torch.repeat_interleave(first.diff())

    @property
    def read(self) -> Inputs:
        """The rows, read where the metric reads them."""
        return self.inputs.read_at(self.metric.reads(len(self.inputs), self.inputs.n_pos))

    @torch.inference_mode(False)
    def take(self, examples: Int[Tensor, " chosen"]) -> "Examples":
        """Some examples, in any order and as often as wanted."""
        return Examples(self.inputs.take(self.rows_of(examples)), self.metric.select(examples))

    def rows_of(self, examples: Int[Tensor, " chosen"]) -> Int[Tensor, " row"]:
        """The rows of some examples."""
        first = self.metric.first_row
        return examples if first is None else segments(first, examples)

    def measured(self, logits: Tensor) -> Float[Tensor, " example"]:
        """The metric of each example, from the logits where it reads them."""
        return self.metric.checked(logits, len(self.inputs), self.inputs.n_pos)

    def measured_after(self, forward: Callable[[], Tensor], end: Unembedding | None) -> Tensor:
        """The metric of each example after a pass, which keeps no row of logits where the metric needs none."""
        size = len(self.inputs), self.inputs.n_pos
        tokens = None if end is None else self.metric.scored(*size)
        # Tokens that are not in the vocabulary are for the metric to refuse.
        if end is None or tokens is None or int(tokens.max()) >= end.d_vocab:
            return self.measured(forward())
        with end.instead_of_logits(tokens) as given:
            log_probs = forward().flatten()
        if not torch.equal(log_probs, given()):  # the model does something more to its logits
            return self.measured(forward())
        return self.metric.checked_log_probs(log_probs, *size)

    def summed(self, rows: Float[Tensor, "row ..."]) -> Float[Tensor, "example ..."]:
        """What concerns the rows of an example, added up."""
        owner = self.owner
        if owner is None:
            return rows
        return rows.new_zeros(self.n_examples, *rows.shape[1:]).index_add(0, owner.to(rows.device), rows)


@final
@dataclass(frozen=True, slots=True)
class Question:
    """A model, examples, a metric and the components whose effect is wanted; from `ask`, which checks them."""

    model: nn.Module
    examples: Examples
    targets: dict[Site, Target]
    batch_size: int | None

    @property
    def n_examples(self) -> int:
        """The number of examples."""
        return self.examples.n_examples

    def rows_per_pass(self, n_pos: int | None = None, n_reads: float | int | None = None) -> int:
        """How many rows of `n_pos` tokens, of which `n_reads` are read, go through the model at a time."""
        n_pos = n_pos or self.examples.inputs.n_pos
        n_reads = n_reads or self.examples.read.reads_per_row
        fitting = min(TOKENS_PER_PASS // n_pos, LOGITS_PER_PASS / (n_reads * host_of(self.model).d_vocab))
        return self.batch_size or max(1, int(fitting))

    def batches(self) -> Iterator[Int[Tensor, " example"]]:
        """The examples' indices in batches; all at once where somebody's hooks or function may rely on it."""
        together = self.examples.metric.whole_batch or has_hooks(self.model)
        rows_each = -(-len(self.examples.inputs) // self.n_examples)
        size = self.n_examples if together else max(1, self.rows_per_pass() // rows_each)
        yield from torch.arange(self.n_examples).split(size)

    def on(self, tokens: Int[Tensor, "row pos"]) -> "Question":
        """The same question of other rows, with the same mask and metric."""
        examples = replace(self.examples, inputs=replace(self.examples.inputs, tokens=tokens))
        return replace(self, examples=examples)

    @property
    def basis(self) -> Basis:
        """The basis of the components; every target shares it."""
        return next(iter(self.targets.values())).components.basis

    def measure(self, baseline: Float[Tensor, " example"]) -> Measure:
        """The metric as a result records it."""
        metric = self.examples.metric
        return Measure(metric.name, metric.unit, metric.higher_is_better, self.pooled(baseline).detach().float().cpu())

    def pooled(self, rows: Float[Tensor, "example ..."]) -> Float[Tensor, "example2 ..."]:
        """The rows of a result: as they are, or one for all examples where the metric has one number for all."""
        return rows.mean(0, keepdim=True) if self.examples.metric.pooled else rows

    def effects(
        self,
        method: str,
        baselines: Sequence[Tensor],
        rows: Mapping[Site, Sequence[Tensor]],
        *,
        passes: float,
        noise: Mapping[Site, Tensor] | None = None,
        positions: Mapping[Site, Sequence[Tensor]] | None = None,
        intervention: str = REMOVAL,
    ) -> Effects:
        """The result of a method, from what it found in each batch: the one place where results are put together."""

        def joined(batches: Mapping[Site, Sequence[Tensor]]) -> dict[str, Tensor]:
            return {str(site): self.pooled(torch.cat(list(parts))).float().cpu() for site, parts in batches.items()}

        return Effects(
            method=method,
            measure=self.measure(torch.cat(list(baselines))),
            units={str(site): target.units for site, target in self.targets.items()},
            examples=joined(rows),
            strengths={str(site): target.components.S.cpu() for site, target in self.targets.items()},
            weight_state=host_of(self.model).weight_state(),
            passes=passes,
            noise={str(site): stderr.float().cpu() for site, stderr in (noise or {}).items()},
            positions=joined(positions or {}),
            basis=self.basis,
            intervention=intervention,
        )


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A question without its model, for those who have one of their own."""

    prompts: Prompts
    metric: metrics.Metric | Callable[[Tensor], Tensor]
    units: dict[str, tuple[Unit, ...]]
    basis: Basis
    batch_size: int | None

    @classmethod
    def of(cls, question: Question, prompts: Prompts, metric: metrics.Metric | Callable[[Tensor], Tensor]) -> "Asked":
        """What was asked, from the prompts and the metric that it was made of."""
        units = {str(site): target.units for site, target in question.targets.items()}
        return cls(prompts.to("cpu"), metric, units, question.basis, question.batch_size)

    def of_model(self, model: nn.Module) -> Question:
        """The same question of this model."""
        prompts, sites = self.prompts.to(host_of(model).device), Selection(self.units, basis=self.basis)
        return ask(model, prompts, self.metric, sites, batch_size=self.batch_size, progress=False)


def ask(
    model: nn.Module,
    tokens: Tokens,
    metric: metrics.Metric | Callable[[Tensor], Tensor],
    sites: Sites,
    *,
    basis: Basis | None = None,
    svds: Decompositions | None = None,
    attention_mask: Mask = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Question:
    """The question, after every check that needs no forward pass.

    One mask serves the model and the metric: whichever was given one lends it to the other. Tokens that look padded and
    have none are warned of.

    Raises:
        ValueError: if there are no examples, the mask does not match them or is not the metric's, the batch size is not
            positive, nothing is selected, the components do not sum to their matrices or are not those a selection was
            made of, or the model is in train mode with dropout, where the same components would have another effect at
            every call.
        SiteError: if a pattern names no editable matrix.
    """
    check_deterministic(model)
    asked = metrics.as_metric(metric)
    prompts = prompts_for(model, tokens, asked, attention_mask)
    if asked.n_examples not in (None, len(prompts)):
        raise ValueError(
            f"the metric was made for {counted(asked.n_examples, 'example')}, the tokens are {len(prompts)}: give it "
            "one answer an example, or one for all (several for one example are a row, [[3, 5]])."
        )
    size = None if batch_size is None else whole(batch_size, "batch_size", least=1)
    prompts = replace(prompts, mask=_agreed(asked.attention_mask, prompts.mask, prompts.tokens))
    bound = asked.bound(model, prompts)
    # What the model reads are the prompts, or the rows of a metric that has rows of its own.
    tokens, mask = (prompts.tokens, prompts.mask) if bound.rows is None else (bound.rows.tokens, bound.rows.mask)
    device, all_real = prompts.tokens.device, bound.rows is not None and bool(bound.rows.mask.all())
    inputs = Inputs(tokens.to(device), None if mask is None or all_real else mask.long().to(device))
    return Question(model, Examples(inputs, bound), _targets(model, sites, basis, svds, progress), size)


def prompts_for(model: nn.Module, tokens: Tokens, metric: metrics.Metric, attention_mask: Mask = None) -> Prompts:
    """The prompts, with a warning of padding of which neither they nor the metric say anything; as read before, silent.

    Raises:
        ValueError: as `analyses.prompts.read`.
    """
    if isinstance(tokens, Prompts):
        return tokens
    prompts = read(model, tokens, attention_mask)
    if metric.attention_mask is None and prompts.mask is None and prompts.items is None:
        warn_if_padded(model, prompts.tokens)
    return prompts


def _agreed(
    of_metric: Tensor | None, of_texts: Tensor | None, tokens: Int[Tensor, "example pos"]
) -> Bool[Tensor, "example pos"] | None:
    """The mask of the metric and of the model, which is one; None if neither has one, or nothing is masked in it."""
    if of_metric is None:
        return of_texts
    try:
        own = mask_of(of_metric.expand(len(tokens), -1), tokens.shape).to(tokens.device)
    except ValueError as error:
        raise ValueError(f"the metric's mask does not go with the tokens: {error}") from None
    if of_texts is not None:
        if not torch.equal(own, of_texts):
            raise ValueError(
                "the metric was made with another attention_mask than the analysis was given: they say which tokens "
                "are real, and have to be the same. Give one of them only, and it serves both."
            )
        return of_texts
    if bool(own.all()):
        return None
    if bool((own.int().diff(dim=1).abs().sum(1) > 1).any()):
        raise ValueError(
            "the metric's attention_mask is 0 between tokens, and the analysis was given none: a mask says which "
            "tokens are real, to the model too. If these are not, give the analysis the same mask; if they only are "
            "not to be measured, choose positions, or labels of metrics.loss."
        )
    return own


def counterparts(question: Question, corrupted: Tokens) -> Int[Tensor, "row pos"]:
    """The corrupted rows, if there is one of the same length for each clean one.

    Raises:
        ValueError: if they differ in number or length.
    """
    here, prompts = question.examples.inputs, read(question.model, corrupted)
    other = Inputs(prompts.tokens, prompts.mask)
    if question.examples.metric.rows is not None and prompts.items is not None:
        rows = prompts.with_continuations()
        other = Inputs(rows.tokens.to(here.tokens.device), rows.mask)
    if other.tokens.shape != here.tokens.shape:
        raise ValueError(
            f"the corrupted tokens have shape {tuple(other.tokens.shape)}, the clean ones {tuple(here.tokens.shape)}: "
            "every clean example needs a corrupted one of the same length. Give corrupted tokens of the clean ones' "
            "shape."
        )
    if other.mask is not None:  # without one, that of the clean rows holds
        clean = torch.ones_like(other.mask) if here.mask is None else here.mask.bool()
        apart = (clean != other.mask).any(1).nonzero().flatten().tolist()
        if apart:
            raise ValueError(
                f"the corrupted text of example {apart[0]} has other real tokens than the clean one "
                f"({int(other.mask[apart[0]].sum())} and {int(clean[apart[0]].sum())}). Give pairs with equally many "
                "tokens."
            )
    return other.tokens


def check_same_weights(question: Question, effects: Effects) -> None:
    """Refuse effects that were found on other weights than the question's.

    Raises:
        ValueError: if the components of a matrix have other strengths now.
    """
    for site, target in question.targets.items():
        now, then = target.components.S.cpu().double(), effects.strengths[str(site)].double()
        if now.shape != then.shape or not torch.allclose(now, then, rtol=1e-3, atol=1e-5 * float(then.max())):
            raise ValueError(
                f"the components of '{site}' have other strengths now than when the effects were found (other weights, "
                "or another operation in force): something else would be removed. Attribute this model as it is now."
            )


def selected(model: nn.Module, selection: Selection) -> dict[Site, tuple[Unit, ...]]:
    """The units chosen of each matrix, where a key of the selection may be a pattern that names several.

    Raises:
        ValueError: if two keys name the same matrix.
        SiteError: if a key names no editable matrix.
    """
    found: dict[Site, tuple[Unit, ...]] = {}
    for address, units in selection.items():
        for site in match_sites(model, address):
            if site in found:
                raise ValueError(f"the selection names '{site}' twice, once as '{address}': name each matrix once.")
            found[site] = units
    return {site: units for site, units in found.items() if units}


def _targets(
    model: nn.Module, sites: Sites, basis: Basis | None, svds: Decompositions | None, progress: bool
) -> dict[Site, Target]:
    selection: Mapping[Site, tuple[Unit, ...] | None]
    if isinstance(sites, Selection) and basis is None:
        basis = sites.basis
    basis = chosen_basis(basis, svds)
    if isinstance(sites, Mapping):
        sites = selection_of(sites, basis)
        selection = {**selected(model, sites)}
    else:
        selection = dict.fromkeys(match_each(model, sites))
    if not selection:
        raise ValueError("no component is selected: name at least one matrix, or components of it.")
    _check_basis(basis, sites)
    targets, places = {}, host_of(model).places(selection)
    for site, components in components_in_force(model, selection, basis=basis, svds=svds, progress=progress).items():
        units = selection[site]
        if units is None:
            units = tuple((i,) for i in range(components.n_components))
        n = components.n_components
        beyond = [i for unit in units for i in unit if i >= n]
        if beyond:
            raise ValueError(
                f"component {beyond[0]} of '{site}' was selected, but it has {counted(n, 'component')}, 0 to {n - 1}."
            )
        targets[site] = Target(places[site], components, units)
    return targets


def _check_basis(basis: Basis, sites: Sites) -> None:
    if not (basis.complete or basis.leading):
        raise ValueError(
            f"basis={basis!r}: its components do not sum to the matrix, so that removing one has no effect of its own. "
            "Attribute in SVD(), LeadingSVD(rank) or RowBlocks(n)."
        )
    if isinstance(sites, Selection) and sites.basis != basis:
        raise ValueError(
            f"the selection names components in the basis {sites.basis!r}, but basis={basis!r} was asked for: leave "
            "basis= out, which takes the selection's, or select in that basis."
        )
