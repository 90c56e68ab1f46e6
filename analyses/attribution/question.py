"""What an attribution is asked: a metric of a model, on some examples, as a function of some components' gains."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from analyses import metrics
from analyses.attribution.effects import Measure, Selection, Unit
from hooks import Place, Site, host_of, match_sites
from hooks.replay import has_hooks
from surgery import Basis, Decomposition, Decompositions
from surgery.decompositions import basis_of
from surgery.operations import components_in_force

Sites = str | Iterable[str] | Selection
"""Which components: every one of the matrices that a pattern (or each of several) names, or a selection of them."""

Tokens = Tensor | str
"""Token ids `[example pos]`, or one string. (Annotated without a shape: what is wrong is said in our words.)"""

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
        """The examples' indices in batches; all at once where somebody's hooks, which may rely on it, are active."""
        whole = has_hooks(self.model)
        yield from torch.arange(self.n_examples).split(self.n_examples if whole else self.rows_per_pass())

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
        return Measure(metric.name, metric.unit, metric.higher_is_better, baseline.detach().float().cpu())

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
    attention_mask: Tensor | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Question:
    """The question, after every check that needs no forward pass.

    Raises:
        ValueError: if there are no examples, the mask does not match, the batch size is not positive, nothing is
            selected, the components do not sum to their matrices or are not those a selection was made of, or the model
            is in train mode with dropout, where the same components would have another effect at every call.
        SiteError: if a pattern names no editable matrix.
    """
    check_deterministic(model)
    tokens = as_tokens(model, tokens)
    if attention_mask is not None and attention_mask.shape != tokens.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, the tokens {tuple(tokens.shape)}: give one "
            "entry a token."
        )
    known = metrics.as_metric(metric).n_examples
    if known not in (None, len(tokens)):
        raise ValueError(
            f"the metric was made for {known} examples, the tokens are {len(tokens)}: give it one answer an example, "
            "or one for all."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: at least one sequence goes through the model at a time.")
    mask = None if attention_mask is None else attention_mask.to(tokens.device).long()
    examples = Examples(tokens, mask, metrics.as_metric(metric))
    return Question(model, examples, _targets(model, sites, svds, progress), batch_size)


def as_tokens(model: nn.Module, given: Tokens) -> Int[Tensor, "example pos"]:
    """Tokens `[example pos]` on the model's device.

    Raises:
        ValueError: if there are none, or they are not a batch of sequences.
    """
    tokens = model.to_tokens(given) if isinstance(given, str) else given  # type: ignore[operator]
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or 0 in tokens.shape or tokens.is_floating_point():
        shown = f"shape {tuple(tokens.shape)}, {tokens.dtype}" if isinstance(tokens, Tensor) else repr(type(tokens))
        raise ValueError(f"the tokens have {shown}: give token ids [example pos], at least one example, or one string.")
    return tokens.to(next(model.parameters()).device)


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


def _targets(model: nn.Module, sites: Sites, svds: Decompositions | None, progress: bool) -> dict[Site, Target]:
    chosen: Mapping[Site, tuple[Unit, ...] | None]
    if isinstance(sites, Selection):
        chosen = {**selected(model, sites)}
    else:
        patterns = [sites] if isinstance(sites, str) else list(sites)
        chosen = dict.fromkeys(sorted({site for pattern in patterns for site in match_sites(model, pattern)}))
    if not chosen:
        raise ValueError("no component is selected: name at least one matrix, or components of it.")
    _check_basis(basis_of(svds), sites)
    host = host_of(model)
    targets = {}
    for site, components in components_in_force(model, chosen, svds=svds, progress=progress).items():
        units = chosen[site]
        if units is None:
            units = tuple((i,) for i in range(components.rank))
        over = [i for unit in units for i in unit if i >= components.rank]
        if over:
            raise ValueError(
                f"component {over[0]} of '{site}' was selected, but it has {components.rank} components, 0 to "
                f"{components.rank - 1}."
            )
        targets[site] = Target(host.place(site), components, units)
    return targets


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
