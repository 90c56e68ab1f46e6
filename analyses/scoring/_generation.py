"""Generation that reads every token once: each prompt goes on from the keys and values that scoring has left behind.

Several tokens are read in one pass where somebody proposes them, and the model keeps those that it says itself. So the
tokens are those of one step after the other, whatever was proposed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from analyses.prompts.continuations import Batch, pad
from analyses.scoring._batches import EncodedTask
from analyses.scoring._choosing import Key, chosen, unended
from analyses.scoring._generating_rules import Generates
from analyses.tokens.tokenizer import Ids
from hooks.inputs import Inputs, Reads
from hooks.past import Past, reads_on
from hooks.recording import has_hooks
from hooks.running import run

_LOGITS = 2**28
"""How many bytes of logits a pass may give."""
Way: TypeAlias = Callable[["Speaker", Batch, list["Saying"], Past], None]
"""How what was begun is brought to its end; the past is that of the prompts."""


@final
@dataclass(slots=True)
class Saying:
    """A continuation of a prompt while it grows.

    Args:
        key: the prompt, and which of its samples this is.
        said: the tokens so far, the end-of-text token included.
        n_read: how many tokens of the prompt and of `said` are in the past that goes with it.
        ended: whether nothing comes after it.
    """

    key: Key
    said: Ids = ()
    n_read: int = 0
    ended: bool = False

    @property
    def unread(self) -> Ids:
        """The tokens that the model has to read before it can go on."""
        return (*self.key[0], *self.said)[self.n_read :]


@final
@dataclass(slots=True)
class Speaker:
    """A model that says what the rule has it generate, batch by batch.

    Args:
        model: the model, which must be able to read on.
        encoded: the task.
        rule: its rule.
        way: how the continuations of a batch, of which the first token is said, are brought to their end.
        propose: what may come next, as tokens to try; of no consequence for what is said.
    """

    model: nn.Module
    encoded: EncodedTask
    rule: Generates
    way: Way
    propose: Callable[[Saying], Ids]
    _sayings: dict[Key, Saying] = field(default_factory=dict, init=False)
    _items: dict[Ids, list[int]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for number, prompt in enumerate(self.encoded.prompts):
            self._items.setdefault(prompt, []).append(number)

    def reading(self, inputs: Inputs) -> Inputs:
        """The inputs of a batch, whose keys and values are kept."""
        return replace(inputs, past=Past.nothing(inputs.tokens))

    def speak(self, batch: Batch, past: Past, logits: Float[Tensor, "read d_vocab"]) -> None:
        """Go on from the prompts of a batch, whose logits and past these are."""
        firsts = self.encoded.continuations.first_target[:-1]
        items, targets = (firsts.unsqueeze(1) == batch.index.cpu().unsqueeze(0)).nonzero(as_tuple=True)
        reads, sayings, rows, at = batch.inputs.reads, [], [], []
        assert reads is not None
        for item, read in zip(items.tolist(), batch.at.cpu()[targets].tolist(), strict=True):
            prompt = self.encoded.prompts[item]
            # Spaces at a prompt's end are in no row: such prompts are read by themselves.
            if prompt != self.encoded.contexts[item] or (prompt, 0) in self._sayings:
                continue
            for sample in range(self.rule.samples):
                saying = Saying((prompt, sample), n_read=len(prompt))
                self._sayings[saying.key] = saying
                sayings.append(saying)
                rows.append(int(reads.row[read]))
                at.append(read)
        if not sayings:
            return
        tokens = chosen(self.rule, logits[torch.tensor(at, device=logits.device)], [(s.key, 0) for s in sayings])
        for saying, token in zip(sayings, tokens, strict=True):
            self._tell(saying, token)
        self.way(self, batch, sayings, past.at(rows, [saying.n_read for saying in sayings]))

    def generated(self) -> tuple[Ids, ...]:
        """What was said after each item's prompt, sample by sample, up to the end of text."""
        batch_size = max(len(batch.inputs) for batch in self.encoded.batches)
        samples = range(self.rule.samples)
        missing = [Saying((prompt, n)) for prompt in self._items for n in samples if (prompt, n) not in self._sayings]
        missing.sort(key=lambda saying: saying.key, reverse=True)
        for start in range(0, len(missing), batch_size):
            self.from_the_start(missing[start : start + batch_size])
        self._sayings |= {saying.key: saying for saying in missing}
        eos = self.encoded.vocabulary.eos
        return tuple(
            unended(self._sayings[prompt, sample].said, eos) for prompt in self.encoded.prompts for sample in samples
        )

    def from_the_start(self, sayings: Sequence[Saying]) -> None:
        """Bring these to their end, of which nothing has been kept."""
        for saying in sayings:
            saying.n_read = 0
        tokens = self.encoded.batches[0].inputs.tokens
        self.go_on(sayings, Past.nothing(tokens[:1].expand(len(sayings), -1)))

    def go_on(self, sayings: Sequence[Saying], past: Past) -> None:
        """Bring these to their end, where a past of all layers holds what each has read."""
        running, limit = list(sayings), self.encoded.vocabulary.n_ctx
        while live := [number for number, saying in enumerate(running) if not saying.ended]:
            past = past.at(live, [running[number].n_read for number in live])
            running = [running[number] for number in live]
            widest = min(self.width(len(running)), limit - past.n_pos)
            chunks = [(*saying.unread, *self.propose(saying)) for saying in running]
            chunks = [chunk[: max(widest, len(saying.unread))] for chunk, saying in zip(chunks, running, strict=True)]
            self.read(running, past, chunks, partial(run, self.model))

    def read(
        self, sayings: Sequence[Saying], past: Past, chunks: Sequence[Ids], forward: Callable[[Inputs], Tensor]
    ) -> None:
        """Have the model read what each has left unread, and tokens proposed after that: what it says itself is kept.

        Args:
            sayings: none of which has ended.
            past: of each, what it has read; it will end with the chunks.
            chunks: what to read, beginning with all that is unread.
            forward: gives the logits.
        """
        device = self.encoded.batches[0].inputs.tokens.device
        tokens, mask = pad(chunks, "right", self.encoded.vocabulary.pad)
        n_unread = [len(saying.unread) for saying in sayings]
        pairs = [(row, pos) for row, chunk in enumerate(chunks) for pos in range(n_unread[row] - 1, len(chunk))]
        row, pos = torch.tensor(pairs).unbind(1)
        logits = forward(Inputs(tokens.to(device), mask.to(device), Reads(row, pos), past))
        keys = [(sayings[r].key, len(sayings[r].said) + p - n_unread[r] + 1) for r, p in pairs]
        answers = iter(chosen(self.rule, logits, keys))
        for saying, chunk, known in zip(sayings, chunks, n_unread, strict=True):
            following = [next(answers) for _ in range(known - 1, len(chunk))]
            saying.n_read += known
            for token, proposed in zip(following, (*chunk[known:], None), strict=True):
                self._tell(saying, token)
                if saying.ended or token != proposed:
                    break
                saying.n_read += 1

    def width(self, n_rows: int) -> int:
        """How many tokens of so many rows a pass may read, each of which gives logits."""
        return max(1, _LOGITS // (4 * n_rows * self.encoded.vocabulary.size))

    def _tell(self, saying: Saying, token: int) -> None:
        words, rule = self.encoded.vocabulary, self.rule
        saying.said = (*saying.said, token)
        if token == words.eos or len(saying.said) >= rule.new_tokens:
            saying.ended = True
            return
        text = words.decode(saying.said)
        items = (self.encoded.task.items[number] for number in self._items[saying.key[0]])
        saying.ended = rule.has_stopped(text) or (
            words.only_appends and all(rule.settled(item.right, saying.said, text) for item in items)
        )


def step_by_step(speaker: Speaker, batch: Batch, sayings: list[Saying], past: Past) -> None:
    """Token after token."""
    speaker.go_on(sayings, past)


def speaker_of(
    model: nn.Module, encoded: EncodedTask, way: Way = step_by_step, propose: Callable[[Saying], Ids] = lambda _: ()
) -> Speaker | None:
    """What generates for this task; None where nothing has to, or every token takes a pass through whole rows.

    That is so under hooks of the user, who may expect whole rows, and where a model cannot read on (`reads_on`).
    """
    rule = encoded.rule
    if not isinstance(rule, Generates) or has_hooks(model) or not reads_on(model):
        return None
    return Speaker(model, encoded, rule, way, propose)
