"""What a model says on a task under one edit after another, without computing again what lies before the edits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, final

import torch
from hooks.replay import Recording
from hooks.suffix import Passage, nbytes, record, rerun, run
from jaxtyping import Float
from torch import Tensor, nn

from analyses.scoring import (
    Batch,
    EncodedTask,
    EncodedText,
    Readings,
    Rule,
    Scores,
    encode,
    encode_text,
    generate,
    judge,
    read,
    text_loss_encoded,
)  # fmt: skip
from analyses.tasks.task import Task
from analyses.tokens.tokenizer import Ids
from hooks import Site, host_of
from surgery.arguments import whole

MEMORY = 2 * 2**30
"""The stated budget in bytes: what is kept of earlier layers takes at most so much, a pass about a quarter of it."""
_LARGEST_BATCH = 64

Text: TypeAlias = str | Tensor


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model said on a task's items: enough to judge them again."""

    readings: Readings
    generated: tuple[Ids, ...] = ()


@dataclass(slots=True)
class Evaluator:
    """One task on one model, asked again and again.

    `prepare(site)` records what flows into the site's block under the edits then in force, for as many of the coming
    sites as the memory takes; batches beyond it are run in full. `outcome(site)` starts there. `forget_after` says that
    an edit has been made for good.
    """

    model: nn.Module
    encoded: EncodedTask
    sites: tuple[Site, ...] = ()
    memory: int = MEMORY
    _held: dict[int, Recording] = field(default_factory=dict, init=False, repr=False)
    _covered: tuple[Site, ...] = field(default=(), init=False, repr=False)

    def scores(self, outcome: Outcome) -> Scores:
        """The outcome, judged by the task's rule."""
        return judge(self.encoded, outcome.readings, outcome.generated)

    @torch.no_grad()
    def prepare(self, site: Site) -> Outcome | None:
        """Make sure that what lies before the site is there; what the model says now where that had to be run."""
        if site in self._covered:
            return None
        self._held.clear()
        self._covered = self._fitting(site)
        return self._outcome(partial(self._recorded, self._covered))

    @torch.no_grad()
    def outcome(self, site: Site | None = None) -> Outcome:
        """What the model says now, where nothing before `site` differs from what was prepared; None runs all of it."""
        if site is None or site not in self._covered:
            return self._outcome(partial(_whole, self.model))
        return self._outcome(partial(self._from, site))

    def forget_after(self, changed: Site) -> None:
        """The matrix at `changed` is another one from now on."""
        self._covered = tuple(site for site in self._covered if not _is_before(changed, site))
        if not self._covered:
            self._held.clear()

    def _outcome(self, forward: partial[Tensor]) -> Outcome:
        readings = read(self.encoded, forward)
        if not self.encoded.rule.new_tokens:
            return Outcome(readings)
        widest = max(len(batch.tokens) for batch in self.encoded.batches)
        return Outcome(readings, generate(self.encoded, partial(_whole, self.model), batch_size=widest))

    def _fitting(self, site: Site) -> tuple[Site, ...]:
        """The site and those after it in the list, as far as the memory reaches; never less than one layer's."""
        coming = self.sites[self.sites.index(site) :] if site in self.sites else (site,)
        tokens = sum(batch.tokens.numel() for batch in self.encoded.batches)
        of_layer = 2 * tokens * self.model.cfg.d_model * _width(self.model)  # type: ignore[union-attr]
        layers = list(dict.fromkeys(one.layer for one in coming))[: max(1, self.memory // of_layer)]
        return tuple(one for one in self.sites or coming if one.layer in layers)

    def _recorded(self, sites: Sequence[Site], batch: Batch) -> Float[Tensor, "place d_vocab"]:
        if not any(batch is own for own in self.encoded.batches):
            return _whole(self.model, batch)
        recording, logits = record(self.model, _passage(batch), sites)
        if sum(map(nbytes, self._held.values())) + nbytes(recording) <= self.memory:
            self._held[id(batch)] = recording
        return logits

    def _from(self, site: Site, batch: Batch) -> Float[Tensor, "place d_vocab"]:
        held = self._held.get(id(batch))
        return _whole(self.model, batch) if held is None else rerun(self.model, _passage(batch), held, site)


def evaluator(
    model: nn.Module,
    task: Task,
    sites: Iterable[Site] = (),
    *,
    rule: Rule | None = None,
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
) -> Evaluator:
    """An evaluator whose batches fit the memory, unless a batch size is given; `sites` in the order in which they come.

    Raises:
        UnscorableItems: if there are items that this model cannot be asked.
        ValueError: if the task is empty, the rule is not for its kind, or the memory is not positive.
    """
    whole(memory, "memory", least=1)
    size = _LARGEST_BATCH if batch_size is None else batch_size
    encoded = encode(model, task, rule=rule, batch_size=size, prepend_bos=prepend_bos)
    if batch_size is None:
        fitting = _fitting_batch(model, encoded, memory // 4)
        if fitting < _LARGEST_BATCH:
            encoded = encode(model, task, rule=rule, batch_size=fitting, prepend_bos=prepend_bos)
    return Evaluator(model, encoded, tuple(sites), memory)


@torch.no_grad()
def loss_on(model: nn.Module, text: EncodedText | None) -> float | None:
    """The mean next-token loss on a plain text as the model is now, in nats per token; None without a text."""
    return None if text is None else text_loss_encoded(text, partial(_whole, model))


def encoded_text(model: nn.Module, text: Text | None, *, prepend_bos: bool | None = None) -> EncodedText | None:
    """A user's plain text, made ready for the model."""
    return None if text is None else encode_text(model, text, prepend_bos=prepend_bos)


def cost(model: nn.Module, site: Site | None) -> int:
    """How many blocks run for one item when the site is edited."""
    n_layers = host_of(model).n_layers
    return n_layers if site is None else n_layers - site.layer


def _whole(model: nn.Module, batch: Batch) -> Float[Tensor, "place d_vocab"]:
    return run(model, _passage(batch))


def _passage(batch: Batch) -> Passage:
    return Passage(batch.tokens, batch.mask, batch.row, batch.pos)


def _is_before(changed: Site, site: Site) -> bool:
    """Whether what was recorded to start at `site` depends on the matrix at `changed`."""
    if changed.layer != site.layer:
        return changed.layer < site.layer
    return changed.part == "attn" and site.part == "mlp"


def _width(model: nn.Module) -> int:
    return next(model.parameters()).element_size()


def _fitting_batch(model: nn.Module, encoded: EncodedTask, memory: int) -> int:
    """How many sequences a pass can hold: a block's activations at every token and the logits at every place."""
    cfg = model.cfg
    pos = max(batch.tokens.shape[1] for batch in encoded.batches)
    places = max(len(batch.row) / len(batch.tokens) for batch in encoded.batches)
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model  # type: ignore[union-attr]
    a_token = 12 * cfg.d_model + 4 * d_mlp + 3 * cfg.n_heads * pos  # type: ignore[union-attr]
    a_sequence = (pos * a_token + 3 * places * cfg.d_vocab) * max(4, _width(model))  # type: ignore[union-attr]
    return max(1, int(min(_LARGEST_BATCH, memory // a_sequence)))
