"""What a model says without an edit, as a draft of what it says under one: most edits leave most of it as it is.

Whatever a trial has in common with a draft is told by one pass from the edited matrix on; only where it departs does
the model go on token by token. What it says does not depend on the draft.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from analyses.prompts import Batch, pad
from analyses.scoring import EncodedTask, Saying, Speaker, speaker_of
from analyses.tokens.tokenizer import Ids
from hooks import Site, host_of
from hooks.inputs import Inputs, Reads
from hooks.past import Past, joined
from hooks.recording import Recording
from hooks.running import nbytes, record, rerun

_REMEMBERED = 4
"""How many different continuations of a prompt are kept as proposals."""


@final
@dataclass(frozen=True, slots=True)
class _Draft:
    """What was said after the prompts of a batch, row by row, with what flowed at these tokens.

    Args:
        row: of each continuation.
        said: what was said in each row, the end-of-text token included.
        recording: at the tokens of each row but the last, which was not read.
        past: keys and values of the prompts and of these tokens, in all layers that trials skip.
    """

    row: dict[tuple[Ids, int], int]
    said: tuple[Ids, ...]
    recording: Recording
    past: Past

    @property
    def nbytes(self) -> int:
        """The memory that it holds, in bytes."""
        return nbytes(self.recording) + self.past.nbytes

    def goes_on(self, saying: Saying) -> bool:
        """Whether the draft says the same, and more."""
        said = self.said[self.row[saying.key]]
        return not saying.ended and len(said) > len(saying.said) and said[: len(saying.said)] == saying.said

    def read_in(self, saying: Saying) -> Ids:
        """The tokens of the draft that the model has read."""
        return self.said[self.row[saying.key]][:-1]

    def whole_past(self, running: Sequence[Saying], rows: Sequence[int], past: Past) -> Past:
        """The past of some rows in all layers: of those that were skipped it is the draft's."""
        chosen = [running[row] for row in rows]
        lengths = [saying.n_read for saying in chosen]
        ran, skipped = past.at(rows, lengths), self.past.at([self.row[saying.key] for saying in chosen], lengths)
        return Past(ran.mask, skipped.layers | ran.layers)


@final
@dataclass(slots=True)
class Drafts:
    """The drafts of one part of a task, for as long as the recordings that they go with."""

    model: nn.Module
    encoded: EncodedTask
    _drafts: dict[int, _Draft] = field(default_factory=dict, init=False, repr=False)
    """By the identity of the batch."""
    _known: dict[tuple[Ids, int], list[Ids]] = field(default_factory=dict, init=False, repr=False)
    """The latest continuations, whichever edit they were said under."""

    def clear(self) -> None:
        """Forget the drafts. Proposals stay: they are of no consequence."""
        self._drafts.clear()

    def recorder(self, sites: Sequence[Site], room: Callable[[], int]) -> Speaker | None:
        """What generates and keeps it as a draft for trials at these sites, where there is room for so many bytes."""
        return speaker_of(self.model, self.encoded, partial(self._record, sites, room), self._propose)

    def follower(self, site: Site | None) -> Speaker | None:
        """What generates under an edit of this matrix, the first that differs; of all matrices where it is None."""
        way = self._go_on if site is None else partial(self._follow, site)
        return speaker_of(self.model, self.encoded, way, self._propose)

    def _go_on(self, speaker: Speaker, batch: Batch, sayings: list[Saying], past: Past) -> None:
        speaker.go_on(sayings, past)
        self._remember(sayings)

    def _record(
        self,
        sites: Sequence[Site],
        room: Callable[[], int],
        speaker: Speaker,
        batch: Batch,
        sayings: list[Saying],
        past: Past,
    ) -> None:
        lengths = [saying.n_read for saying in sayings]
        speaker.go_on(sayings, past)
        self._remember(sayings)
        said = tuple(saying.said for saying in sayings)
        if not sites or max(map(len, said)) < 2:
            return
        past = past.at(range(len(sayings)), lengths)
        tokens, mask = pad([ids[:-1] for ids in said], "right", self.encoded.vocabulary.pad)
        device, nowhere = batch.inputs.tokens.device, torch.zeros(0, dtype=torch.long)
        inputs = Inputs(tokens.to(device), mask.to(device), Reads(nowhere, nowhere), past)
        recording, _ = record(self.model, inputs, sites)
        # A trial runs every layer after its site's.
        past.layers = {layer: past.layers[layer] for layer in range(max(site.layer for site in sites) + 1)}
        draft = _Draft({saying.key: row for row, saying in enumerate(sayings)}, said, recording, past)
        if sum(kept.nbytes for kept in self._drafts.values()) + draft.nbytes <= room():
            self._drafts[id(batch)] = draft

    def _follow(self, site: Site, speaker: Speaker, batch: Batch, sayings: list[Saying], past: Past) -> None:
        draft, live = self._drafts.get(id(batch)), [row for row, saying in enumerate(sayings) if not saying.ended]
        running = [sayings[row] for row in live]
        if draft is not None and live:
            past = past.at(live, [saying.n_read for saying in running])
            parts = list(self._verified(site, speaker, draft, running, past))
            if parts:
                speaker.go_on([saying for alone, _ in parts for saying in alone], joined([held for _, held in parts]))
        elif len(past.layers) == host_of(self.model).n_layers:
            speaker.go_on(sayings, past)
        else:  # of the layers that were skipped nothing is kept
            speaker.from_the_start(running)
        self._remember(sayings)

    def _verified(
        self, site: Site, speaker: Speaker, draft: _Draft, running: list[Saying], past: Past
    ) -> Iterator[tuple[list[Saying], Past]]:
        """Read the draft from the matrix on; yields those that depart from it, and all that they have read."""
        start = 0
        while running:
            on = [draft.goes_on(saying) for saying in running]
            departed = [row for row, saying in enumerate(running) if not on[row] and not saying.ended]
            if departed:
                yield [running[row] for row in departed], draft.whole_past(running, departed, past)
            rows = [row for row, follows in enumerate(on) if follows]
            if not rows:
                return
            running = [running[row] for row in rows]
            past = past.at(rows, [saying.n_read for saying in running])
            chunks = [draft.read_in(saying)[start : start + speaker.width(len(running))] for saying in running]
            end = start + max(map(len, chunks))
            forward = partial(
                self._rerun, draft.recording.columns(start, end), site, [draft.row[saying.key] for saying in running]
            )
            speaker.read(running, past, chunks, forward)
            start = end

    def _rerun(self, recording: Recording, site: Site, rows: list[int], inputs: Inputs) -> Tensor:
        return rerun(self.model, inputs, recording, site, rows=torch.tensor(rows))

    def _propose(self, saying: Saying) -> Ids:
        """What followed the same words under an earlier edit; its last token is told, not read."""
        said, n = saying.said, len(saying.said)
        return next((ids[n:-1] for ids in self._known.get(saying.key, ()) if len(ids) > n and ids[:n] == said), ())

    def _remember(self, sayings: Iterable[Saying]) -> None:
        for saying in sayings:
            others = [ids for ids in self._known.get(saying.key, ()) if ids != saying.said]
            self._known[saying.key] = [saying.said, *others][:_REMEMBERED]
