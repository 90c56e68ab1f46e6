"""What an attribution is asked: a metric of a model, on some examples, as a function of some components' gains."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from analyses import metrics
from analyses.attribution.effects import Measure, Selection, Unit
from analyses.metrics.placement import Mask
from analyses.prompts import Tokens, mask_of, read, warn_if_padded
from hooks import Place, Site, host_of, match_sites
from hooks.replay import has_hooks
from surgery import Basis, Decomposition, Decompositions
from surgery.arguments import counted, shown, whole
from surgery.decompositions import basis_of
from surgery.operations import components_in_force

Components = Mapping[str, Sequence[int | Sequence[int]]]
"""Chosen components of chosen matrices: a `Selection`, or a plain dict, `{"blocks.0.mlp.W_out": [0, 3]}`."""
Sites = str | Iterable[str] | Components
"""Which components: every one of the matrices that a pattern (or each of several) names, or chosen ones."""

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
    def address(self) -> str:
        """The site in writing."""
        return str(self.place.site)


@final
@dataclass(frozen=True, slots=True)
class Examples:
    """Some of the examples, with the metric cut down to them."""

    tokens: Int[Tensor, "example pos"]
    attention_mask: Int[Tensor, "example pos"] | None
    metric: metrics.Metric


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
        return len(self.examples.tokens)

    def rows_per_pass(self, n_pos: int | None = None, n_logits: int | None = None) -> int:
        """How many sequences of `n_pos` tokens with logits at `n_logits` positions go through at a time."""
        n_pos = n_pos or self.examples.tokens.shape[1]
        n_logits = n_logits or len(self.examples.metric.needed_positions(n_pos))
        fitting = min(TOKENS_PER_PASS // n_pos, LOGITS_PER_PASS // (n_logits * int(self.model.cfg.d_vocab)))  # type: ignore[union-attr]
        return self.batch_size or max(1, fitting)

    def batches(self) -> Iterator[Int[Tensor, " example"]]:
        """The examples' indices in batches; all at once where somebody's hooks or function may rely on it."""
        together = self.examples.metric.whole_batch or has_hooks(self.model)
        yield from torch.arange(self.n_examples).split(self.n_examples if together else self.rows_per_pass())

    @torch.inference_mode(False)
    def take(self, chosen: Int[Tensor, " row"]) -> Examples:
        """Some examples, in any order and as often as wanted."""
        here = self.examples
        at = chosen.to(here.tokens.device)
        mask = None if here.attention_mask is None else here.attention_mask[at]
        return Examples(here.tokens[at], mask, here.metric.select(chosen))

    @property
    def basis(self) -> Basis:
        """What the components are components of; the same for every matrix."""
        return next(iter(self.targets.values())).components.basis

    def measure(self, baseline: Float[Tensor, " example"]) -> Measure:
        """The metric as a result records it."""
        metric = self.examples.metric
        return Measure(metric.name, metric.unit, metric.higher_is_better, self.pooled(baseline).detach().float().cpu())

    def pooled(self, rows: Float[Tensor, "example ..."]) -> Float[Tensor, "example2 ..."]:
        """The rows of a result: as they are, or one for all examples where the metric has one number for all."""
        return rows.mean(0, keepdim=True) if self.examples.metric.pooled else rows

    @property
    def weight_state(self) -> str:
        """Whether the weights are raw or processed."""
        return host_of(self.model).weight_state()


def ask(
    model: nn.Module,
    tokens: Tokens,
    metric: metrics.Metric | Callable[[Tensor], Tensor],
    sites: Sites,
    *,
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
    ids, mask = read(model, tokens, attention_mask)
    asked = metrics.as_metric(metric)
    if asked.n_examples not in (None, len(ids)):
        raise ValueError(
            f"the metric was made for {counted(asked.n_examples, 'example')}, the tokens are {len(ids)}: give it one "
            "answer an example, or one for all (several for one example are a row, [[3, 5]])."
        )
    size = None if batch_size is None else whole(batch_size, "batch_size", least=1)
    mask = _agreed(asked.attention_mask, mask, ids)
    if mask is None and asked.attention_mask is None:
        warn_if_padded(model, ids)
    examples = Examples(ids, None if mask is None else mask.long(), asked.bound(model, ids, mask))
    return Question(model, examples, _targets(model, sites, svds, progress), size)


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


def counterparts(question: Question, corrupted: Tokens) -> Int[Tensor, "example pos"]:
    """The corrupted examples, if there is one of the same length for each clean one.

    Raises:
        ValueError: if they differ in number or length.
    """
    here = question.examples
    other, mask = read(question.model, corrupted)
    if other.shape != here.tokens.shape:
        raise ValueError(
            f"the corrupted tokens have shape {tuple(other.shape)}, the clean ones {tuple(here.tokens.shape)}: every "
            "clean example needs a corrupted one of the same length. Give corrupted tokens of the clean ones' shape."
        )
    check_same_lengths(here.attention_mask, mask)
    return other


def check_same_lengths(clean: Tensor | None, corrupted: Tensor | None) -> None:
    """Refuse pairs of texts of which one is longer; no mask of the corrupted ones means that the clean ones' holds.

    Raises:
        ValueError: if the masks differ.
    """
    if corrupted is None:
        return
    mine = torch.ones_like(corrupted) if clean is None else clean.bool()
    apart = (mine != corrupted).any(1).nonzero().flatten().tolist()
    if apart:
        raise ValueError(
            f"the corrupted text of example {apart[0]} has other real tokens than the clean one "
            f"({int(corrupted[apart[0]].sum())} and {int(mine[apart[0]].sum())}). Give pairs with equally many "
            "tokens."
        )


def check_deterministic(model: nn.Module) -> None:
    """Refuse a model that gives another answer at every call.

    Raises:
        ValueError: in train mode, if the model has dropout.
    """
    inner = getattr(model, "original_model", model)
    rates = [_dropout(m) for m in inner.modules() if m.training]
    if any(rates):
        raise ValueError(
            f"the model is in train mode and has dropout ({max(rates)}), so its output changes at every call: "
            "call model.eval() first."
        )


def _dropout(module: nn.Module) -> float:
    """The rate of a dropout layer, or of attention that drops by itself, as Hugging Face's does; else 0."""
    held = module.p if isinstance(module, nn.Dropout) else module.__dict__.get("attention_dropout", 0.0)
    return held if isinstance(held, float) else 0.0


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


def selection_of(given: object, basis: Basis, what: str = "sites") -> Selection:
    """A selection, or a plain dict as one.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(given, Selection):
        return given
    if isinstance(given, Mapping):
        return Selection(given, basis=basis)
    raise ValueError(f"{what}={shown(given)}: give a Selection, such as effects.top(10), or {{site: [0, 3]}}.")


def basis_asked(svds: object) -> Basis:
    """The basis of the decompositions given.

    Raises:
        ValueError: if they are none.
    """
    if svds is not None and not isinstance(svds, Decompositions):
        raise ValueError(f"svds={shown(svds)}: give what surgery.decompose(model, ...) returned, or None.")
    return basis_of(svds)


def _targets(model: nn.Module, sites: Sites, svds: Decompositions | None, progress: bool) -> dict[Site, Target]:
    chosen: Mapping[Site, tuple[Unit, ...] | None]
    basis = basis_asked(svds)
    if isinstance(sites, Mapping):
        sites = selection_of(sites, basis)
        chosen = {**selected(model, sites)}
    else:
        chosen = dict.fromkeys(sorted({site for pattern in _patterns(sites) for site in match_sites(model, pattern)}))
    if not chosen:
        raise ValueError("no component is selected: name at least one matrix, or components of it.")
    _check_basis(basis, sites)
    host = host_of(model)
    targets = {}
    for site, components in components_in_force(model, chosen, basis=basis, svds=svds, progress=progress).items():
        units = chosen[site]
        if units is None:
            units = tuple((i,) for i in range(components.n_components))
        over = [i for unit in units for i in unit if i >= components.n_components]
        if over:
            raise ValueError(
                f"component {over[0]} of '{site}' was selected, but it has "
                f"{counted(components.n_components, 'component')}, 0 to {components.n_components - 1}."
            )
        targets[site] = Target(host.place(site), components, units)
    return targets


def _patterns(sites: object) -> list[str]:
    given = [sites] if isinstance(sites, str | Site) else list(sites) if isinstance(sites, Iterable) else [None]
    if not all(isinstance(one, str | Site) for one in given):
        raise ValueError(
            f"sites={shown(sites)}: name matrices by a pattern such as 'blocks.*.mlp.W_out', or several in a list, or "
            "components by {site: [0, 3]}."
        )
    return [str(one) for one in given]


def _check_basis(basis: Basis, sites: Sites) -> None:
    if not basis.complete:
        raise ValueError(
            f"svds is in the basis {basis!r}, whose components do not sum to the matrix, so that removing one has no "
            "effect of its own. Give decompositions in SVD() or RowBlocks(n), or none."
        )
    if isinstance(sites, Selection) and sites.basis != basis:
        raise ValueError(
            f"the selection names components in the basis {sites.basis!r}, but svds is in {basis!r}: give the "
            "decompositions that the selection was made with."
        )
