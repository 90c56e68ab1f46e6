"""Prompts with the tokens whose probability is tracked after them: the right answer, its rival, a generic word.

For the truncation study (arXiv:2406.03068, its experiments on pretrained models): indirect objects come from
`tasks.ioi`, facts from `facts`; the generic competitor of both is " the".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from analyses.tasks.batches import encode, pad
from analyses.tasks.items import AnswerItem, Text
from analyses.tasks.task import Task

CORRECT, DISTRACTOR = "correct", "distractor"
Tracked = int | str | Sequence[int] | Sequence[Text] | Tensor
"""A token for all prompts, or one for each: its id, or a text that continues the prompt, of which the first token
counts."""

PLACES = (
    ("The Eiffel Tower", "Paris"), ("The Colosseum", "Rome"), ("The Brandenburg Gate", "Berlin"),
    ("The Statue of Liberty", "New York"), ("The Sagrada Familia", "Barcelona"), ("The Acropolis", "Athens"),
    ("The Kremlin", "Moscow"), ("Buckingham Palace", "London"), ("The Prado Museum", "Madrid"),
    ("The Sydney Opera House", "Sydney"), ("The Forbidden City", "Beijing"), ("The Blue Mosque", "Istanbul"),
    ("The Golden Gate Bridge", "San Francisco"), ("The White House", "Washington"), ("The Rijksmuseum", "Amsterdam"),
    ("The Little Mermaid statue", "Copenhagen"), ("The Atomium", "Brussels"), ("The Charles Bridge", "Prague"),
    ("The CN Tower", "Toronto"), ("The Louvre", "Paris"), ("The Hermitage Museum", "Saint Petersburg"),
    ("The Uffizi Gallery", "Florence"), ("The Tokyo Skytree", "Tokyo"), ("The Gateway of India", "Mumbai"),
)  # fmt: skip
"""Sights and the cities they are in."""


def facts(
    places: Sequence[tuple[str, str]] = PLACES, *, templates: Sequence[str] = ("{subject} is located in",)
) -> Task:
    """A prompt for every place and template; the answer is the place's own, the distractor the next other answer's.

    Items of a subject form a group.

    Raises:
        ValueError: if there are fewer than two different answers.
    """
    names = list(dict.fromkeys(answer for _, answer in places))
    if len(names) < 2:
        raise ValueError(
            f"places hold {len(names)} different answers: every fact needs another one as its rival. Give 2 or more."
        )
    items = []
    for subject, answer in places:
        other = names[(names.index(answer) + 1) % len(names)]
        items += [
            AnswerItem(t.format(subject=subject), (f" {answer}",), (f" {other}",), groups=(subject,)) for t in templates
        ]
    return Task("facts", tuple(items))


@final
@dataclass(frozen=True, slots=True)
class Prompts:
    """Token rows, padded on the right, and for every tracked name a token after each."""

    tokens: Int[Tensor, "example pos"]
    mask: Int[Tensor, "example pos"]
    track: dict[str, Int[Tensor, " example"]]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def last(self) -> Int[Tensor, " example"]:
        """The column of each prompt's last token."""
        return self.mask.sum(1) - 1

    def check(self, vocabulary: int) -> None:
        """Refuse tracked tokens that the model does not have, and rivals that are the same token as the right one.

        Raises:
            ValueError: in each of these cases.
        """
        for name, ids in self.track.items():
            outside = ids[(ids < 0) | (ids >= vocabulary)]
            if len(outside):
                raise ValueError(
                    f"track[{name!r}] names token {int(outside[0])}, the model has {vocabulary} tokens: ids run from "
                    f"0 to {vocabulary - 1}. Take the ids of this model's tokenizer."
                )
        if CORRECT not in self.track:
            raise ValueError(
                f"track names {', '.join(map(repr, self.track)) or 'nothing'}: margins are taken from {CORRECT!r}, the "
                "right token of each prompt. Add it."
            )
        for name, ids in self.track.items():
            same = (ids == self.track[CORRECT]).nonzero().flatten().tolist()
            if name != CORRECT and same:
                raise ValueError(
                    f"{CORRECT!r} and {name!r} are the same token after prompt {same[0]} (and {len(same) - 1} others): "
                    "nothing tells them apart there. Choose words that differ in their first token, or leave these "
                    "prompts out."
                )


def prompts(
    model: nn.Module,
    source: Task | Sequence[str] | Int[Tensor, "example pos"],
    track: Mapping[str, Tracked] | None = None,
    *,
    generic: str | int | None = None,
) -> Prompts:
    """The prompts as tokens of this model, with what is tracked after each.

    Args:
        model: only its tokenizer, configuration and device are used.
        source: a task of answers, whose first right answer is tracked as "correct" and, if every item has one, whose
            first distractor as "distractor"; or texts; or token ids, all of a length.
        track: names and tokens. Of a text the first token counts, as it continues the prompt.
        generic: short for `track={"generic": ...}`, for instance " the".

    Raises:
        ValueError: if there are no prompts, or what is tracked is missing, outside the vocabulary, or not one token a
            prompt.
        UnscorableItems: if a text cannot be read or said by this model.
    """
    wanted: dict[str, Tracked] = dict(track or {}) | ({} if generic is None else {"generic": generic})
    if isinstance(source, Tensor):
        contexts: list[Text] = [tuple(row) for row in source.tolist()]
    elif isinstance(source, Task):
        contexts = [item.context for item in source.items]
        wanted = _of_task(source, wanted)
    else:
        contexts = list(source)
    if not contexts:
        raise ValueError("there are no prompts: give at least one text, row of tokens, or item.")
    texts = {name: _spread(name, given, len(contexts)) for name, given in wanted.items()}
    found = {name: _tokens_after(model, contexts, given) for name, given in texts.items()}
    rows = _tokens_after(model, contexts, [(0,)] * len(contexts))[0]
    tokens, mask = pad(rows, "right", 0)
    made = Prompts(tokens, mask, {name: torch.tensor(ids) for name, (_, ids) in found.items()})
    made.check(int(model.cfg.d_vocab))  # type: ignore[union-attr, arg-type]
    return made


def _of_task(task: Task, wanted: dict[str, Tracked]) -> dict[str, Tracked]:
    """The task's own answers and distractors beside what is asked for."""
    if task.kind != "answer":
        raise ValueError(
            f"task {task.name!r} holds items of kind {task.kind!r}: a token is tracked after prompts with answers. "
            "Give a task of answers, or texts and track=."
        )
    own: dict[str, Tracked] = {CORRECT: [item.right[0] for item in task.items]}
    without = [i for i, item in enumerate(task.items) if not item.wrong]
    if 0 < len(without) < len(task):
        raise ValueError(
            f"item {without[0]} of task {task.name!r} has no distractor, others have: give every item one to track, "
            "or none."
        )
    if not without:
        own[DISTRACTOR] = [item.wrong[0] for item in task.items]
    return {**own, **wanted}


def _spread(name: str, given: object, n: int) -> list[Text]:
    """One continuation for each prompt."""
    if isinstance(given, str):
        return [given] * n
    if isinstance(given, Tensor):
        given = given.flatten().tolist()
    if isinstance(given, int):
        return [(given,)] * n
    texts = [(one,) if isinstance(one, int) else one for one in given]  # type: ignore[attr-defined]
    if len(texts) != n:
        raise ValueError(f"track[{name!r}] has {len(texts)} tokens for {n} prompts: give one for all, or one for each.")
    return texts


def _tokens_after(
    model: nn.Module, contexts: Sequence[Text], texts: Sequence[Text]
) -> tuple[list[tuple[int, ...]], list[int]]:
    """The token rows of the prompts, and the first token of each text after its prompt."""
    items = [AnswerItem(context, (text,)) for context, text in zip(contexts, texts, strict=True)]
    encoded = encode(model, Task("prompts", tuple(items)))
    firsts = [encoded.continuations.ids[at][0] for at in encoded.continuations.first[:-1].tolist()]
    return list(encoded.contexts), firsts
