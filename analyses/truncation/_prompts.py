"""Prompts with the tokens whose probability is tracked after them: the right answer, its rival, a generic word.

For the truncation study (arXiv:2406.03068, its experiments on pretrained models): indirect objects come from
`tasks.ioi`, facts from `facts`; the generic competitor of both is " the".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from analyses.prompts import Prompts as AnyPrompts
from analyses.prompts import read
from analyses.tasks.items import AnswerItem, Item, Text
from analyses.tasks.task import Task, as_task
from analyses.tokens.items import TokenisedItem
from analyses.tokens.tokenizer import vocabulary
from hooks import host_of
from hooks.inputs import Inputs, Reads
from surgery.arguments import counted, one_of, shown

CORRECT, DISTRACTOR = "correct", "distractor"
Tracked = int | str | Sequence[int] | Sequence[Text] | Tensor
"""A token for all prompts, or one for each: its id, or a text that continues the prompt, of which the first token
counts."""

Several = Literal["refuse", "leave out", "first"]
"""What to do with a word that is several tokens: raise, leave its prompt out, or track its first token.

Prompts whose words are the same token are left out with them.
"""

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
    """A task that asks where a sight is: the answer is its own city, the distractor another sight's.

    >>> from analyses import truncation
    >>> item = truncation.facts().items[0]
    >>> item.prompt, item.answers, item.distractors
    ('The Eiffel Tower is located in', (' Paris',), (' Rome',))

    There is an item for every sight in `places` and every template; the items of a sight form a group.

    Raises:
        ValueError: if there are fewer than two different answers, or a template does not name {subject}.
    """
    if isinstance(templates, str):
        raise ValueError(f"templates={templates!r} is one string: give a list of strings, such as [{templates!r}].")
    without = next((template for template in templates if "{subject}" not in template), None)
    if without is not None or not templates:
        raise ValueError(f"templates={templates!r}: give one or more, each with {{subject}} in it.")
    names = list(dict.fromkeys(answer for _, answer in places))
    if len(names) < 2:
        raise ValueError(
            f"places hold {counted(len(names), 'different answer')}: every fact needs another one as its rival. "
            "Give 2 or more."
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
    """Rows of tokens, read at the last token of each, and for every tracked name a token after each."""

    inputs: Inputs
    track: dict[str, Int[Tensor, " example"]]

    def __len__(self) -> int:
        return len(self.inputs)

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
        for name, ids in self.track.items():
            same = (ids == self.track[CORRECT]).nonzero().flatten().tolist()
            if name != CORRECT and same:
                raise ValueError(
                    f"{CORRECT!r} and {name!r} are the same token after prompt {same[0]} (and "
                    f"{counted(len(same) - 1, 'other')}): nothing tells them apart there. Choose words that differ in "
                    "their first token, or leave these prompts out."
                )


def prompts(
    model: nn.Module,
    source: Task | str | Sequence[Text] | Sequence[Item] | Int[Tensor, "example pos"],
    track: Mapping[str, Tracked] | None = None,
    *,
    generic: str | int | None = None,
    prepend_bos: bool | None = None,
) -> Prompts:
    """The prompts as tokens of this model, with the ids of the tokens that are tracked after each.

    >>> from analyses import truncation
    >>> made = truncation.prompts(model, tokens, {"correct": 1}, generic=2)
    >>> len(made), made.track["generic"].tolist()
    (3, [2, 2, 2])

    A tracked id is read after the prompt exactly as it is given. A tracked text takes over the spaces at the prompt's
    end, as in scoring.

    Args:
        model: only its tokenizer, configuration and device are used.
        source: a task of answers, of which each item's first right answer is tracked as "correct" and, if every item
            has one, its first distractor as "distractor"; or one text or several; or token ids, all of a length.
        track: names and tokens; a text stands for its first token, as it continues the prompt.
        generic: short for `track={"generic": ...}`, for instance " the".
        prepend_bos: overrides `model.cfg.default_prepend_bos`.

    Raises:
        ValueError: if there are no prompts, or a tracked token is missing, outside the vocabulary, not one a prompt,
            read at another position than the rest, or a text that begins with a token for white space only.
        UnscorableItems: if a text cannot be read or said by this model.
    """
    contexts, texts = tracked(source, track, generic)
    after = {name: _after(model, contexts, given, prepend_bos) for name, given in texts.items()}
    rows = [item.context for item in after[CORRECT].items or ()]
    for name, others in after.items():
        apart = next((at for at, item in enumerate(others.items or ()) if item.context != rows[at]), None)
        if apart is not None:
            raise ValueError(
                f"the prompt {contexts[apart]!r} ends in spaces, which a text takes over and token ids do not, so that "
                f"{CORRECT!r} and {name!r} are not asked at the same place. Track texts only or ids only, or "
                "leave out the spaces."
            )
    reads = Reads(torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows]))
    firsts = {name: torch.tensor([_first(item) for item in others.items or ()]) for name, others in after.items()}
    made = Prompts(Inputs(after[CORRECT].tokens, after[CORRECT].mask, reads), firsts)
    made.check(host_of(model).d_vocab)
    return made


def one_token_each(
    model: nn.Module,
    source: object,
    track: Mapping[str, Tracked] | None,
    *,
    generic: str | int | None,
    prepend_bos: bool | None,
    several: Several,
) -> tuple[Prompts, int]:
    """The prompts as `prompts` makes them, and how many were left out because their words are not one token each.

    Raises:
        ValueError: if a word is several tokens of this model and is not to be left out, none is left, or as `prompts`.
    """
    one_of(several, "several", get_args(Several))
    contexts, texts = tracked(source, track, generic)
    if several == "first":
        return prompts(model, contexts, texts, prepend_bos=prepend_bos), 0
    after = {name: _answered(model, contexts, given, prepend_bos).items or () for name, given in texts.items()}
    lengths = {name: [len(item.continuations[0].ids) for item in items] for name, items in after.items()}
    for name, given in texts.items():
        long = [at for at, length in enumerate(lengths[name]) if length > 1]
        if long and (several == "refuse" or len(long) == len(contexts)):
            at = long[0]
            raise ValueError(
                f"the {name} word {given[at]!r} after {shown(contexts[at])} is {lengths[name][at]} tokens of this "
                f"model, and {counted(len(long), 'prompt')} of {len(contexts)} have such a word: the probability of "
                "the first token is not that of the word. Choose words of one token, leave these prompts out with "
                "several='leave out', or track their first tokens with several='first'."
            )
    first = {name: [_first(item) for item in items] for name, items in after.items()}
    kept = [
        at
        for at in range(len(contexts))
        if all(of_name[at] == 1 for of_name in lengths.values())
        and all(ids[at] != first[CORRECT][at] for name, ids in first.items() if name != CORRECT)
    ]
    words = {name: [given[at] for at in kept] for name, given in texts.items()}
    if not kept:
        raise ValueError(
            f"of {counted(len(contexts), 'prompt')} none has words of one token each that differ: choose other words, "
            "or track their first tokens with several='first'."
        )
    if several == "refuse":
        return prompts(model, contexts, texts, prepend_bos=prepend_bos), 0
    return prompts(model, [contexts[at] for at in kept], words, prepend_bos=prepend_bos), len(contexts) - len(kept)


def tracked(
    source: object, track: Mapping[str, Tracked] | None, generic: str | int | None
) -> tuple[list[Text], dict[str, list[Text]]]:
    """The prompts, and for every name the text or the id that is tracked after each of them.

    Raises:
        ValueError: if there are no prompts, or the right token or those of some prompts are missing.
    """
    if generic is not None and "generic" in (track or {}):
        raise ValueError(f"'generic' is given twice, as generic={generic!r} and in track: give it once.")
    wanted: dict[str, Tracked] = dict(track or {}) | ({} if generic is None else {"generic": generic})
    contexts, of_task = _contexts(source)
    wanted = {**of_task, **wanted}
    if not contexts:
        raise ValueError("there are no prompts: give at least one text, row of tokens, or item.")
    if CORRECT not in wanted:
        raise ValueError(
            f"track names {', '.join(map(repr, wanted)) or 'nothing'}: margins are taken from {CORRECT!r}, the right "
            "token of each prompt. Add it."
        )
    return contexts, {name: _spread(name, given, len(contexts)) for name, given in wanted.items()}


def _contexts(source: object) -> tuple[list[Text], dict[str, Tracked]]:
    """The prompts, and the tokens that a task tracks by itself."""
    match source:
        case str():
            return [source], {}
        case Tensor() if source.ndim == 2 and not source.is_floating_point() and source.dtype != torch.bool:
            return [tuple(row) for row in source.tolist()], {}
        case Tensor():
            raise ValueError(
                f"the prompts are a tensor of shape {tuple(source.shape)} and {source.dtype}: give token ids, whole "
                "numbers [example pos]."
            )
        case list() | tuple() if not any(isinstance(entry, Item) for entry in source):
            return list(source), {}
    task = as_task(source)
    return [item.context for item in task.items], _of_task(task)


def _of_task(task: Task) -> dict[str, Tracked]:
    """The task's own answers and distractors."""
    if task.kind != "answer":
        raise ValueError(
            f"task {task.name!r} holds items of kind {task.kind!r}: a token is tracked after prompts with answers. "
            "Give a task of answers, or texts and track=."
        )
    tracked: dict[str, Tracked] = {CORRECT: [item.right[0] for item in task.items]}
    without = [i for i, item in enumerate(task.items) if not item.wrong]
    if 0 < len(without) < len(task):
        raise ValueError(
            f"item {without[0]} of task {task.name!r} has no distractor, others have: give every item one to track, "
            "or none."
        )
    if not without:
        tracked[DISTRACTOR] = [item.wrong[0] for item in task.items]
    return tracked


def _spread(name: str, given: object, n: int) -> list[Text]:
    """One continuation for each prompt."""
    if isinstance(given, Tensor | np.ndarray | np.generic):
        given = given.tolist()
    texts: list[Text] = []
    for token in given if isinstance(given, list | tuple) else [given] * n:
        text = (token,) if isinstance(token, int) and not isinstance(token, bool) else token
        if not isinstance(text, str | tuple):
            raise ValueError(
                f"track[{name!r}] holds {token!r}: a token is named by its id, or by a text that begins with it. Give "
                "one for all prompts, or a list of one for each."
            )
        texts.append(text)
    if len(texts) != n:
        raise ValueError(
            f"track[{name!r}] has {counted(len(texts), 'token')} for {counted(n, 'prompt')}: give one for all, or one "
            "for each."
        )
    return texts


def _after(model: nn.Module, contexts: Sequence[Text], texts: Sequence[Text], prepend_bos: bool | None) -> AnyPrompts:
    """The prompts, each with the text that is tracked after it as its answer."""
    prompts, words = _answered(model, contexts, texts, prepend_bos), vocabulary(model)
    for context, text, item in zip(contexts, texts, prompts.items or (), strict=True):
        if isinstance(text, str) and text.strip() and not words.decode((_first(item),)).strip():
            raise ValueError(
                f"{text!r} after {context[-20:]!r} begins with token {_first(item)}, which is white space only: its "
                "probability is not that of the word. Leave out a space that is there twice, or give the token's id."
            )
    return prompts


def _answered(
    model: nn.Module, contexts: Sequence[Text], texts: Sequence[Text], prepend_bos: bool | None
) -> AnyPrompts:
    items = [AnswerItem(context, (text,)) for context, text in zip(contexts, texts, strict=True)]
    return read(model, Task("prompts", tuple(items)), prepend_bos=prepend_bos)


def _first(item: TokenisedItem) -> int:
    """The token that is tracked after a prompt."""
    return item.continuations[0].ids[0]
