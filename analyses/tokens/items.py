"""From texts to token ids: where a sequence begins, and where a prompt ends and its answer begins."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from analyses.tasks.items import Item, MinimalPair, Text, Unscorable
from analyses.tasks.task import Task, as_task
from analyses.tokens.tokenizer import Ids, Speller, Unspellable, Vocabulary, vocabulary
from surgery.arguments import counted, whole


@dataclass(frozen=True, slots=True)
class Continuation:
    """Token ids, and those that the model reads before them."""

    context: Ids
    ids: Ids
    right: bool
    text: Text

    @property
    def row(self) -> Ids:
        """What has to be read to score it: everything but its last token."""
        return self.context + self.ids[:-1]


@dataclass(frozen=True, slots=True)
class TokenisedItem:
    """The prompt as it is given, what the continuations continue, and these: the right ones before the wrong ones.

    Prompt and context differ where the prompt ends in spaces and the continuations are strings, which take these over.
    """

    prompt: Ids
    context: Ids
    continuations: tuple[Continuation, ...]


class UnscorableItems(ValueError):
    """Items that this model cannot be asked; `items` says where and why."""

    def __init__(self, task: Task, items: tuple[Unscorable, ...]) -> None:
        self.items = items
        shown = "\n".join(f"  {item}" for item in items[:5])
        more = f"\n  and {len(items) - 5} more" if len(items) > 5 else ""
        super().__init__(
            f"{len(items)} of the {counted(len(task), 'item')} of task {task.name!r} cannot be scored with this "
            f"model:\n{shown}{more}\nEvery item of a task is scored. "
            "Correct them, or leave them out in the open with scoring.scorable(model, task)."
        )


def tokenise(
    words: Vocabulary, task: Task, *, new_tokens: int = 0
) -> tuple[tuple[TokenisedItem | None, ...], tuple[Unscorable, ...]]:
    """The task's items as token ids, and the items that have none; the latter are None among the former.

    A prompt and a string that continues it are split where the tokenizer itself splits them: spaces at the prompt's end
    go to the continuation, both are tokenised as one text, and what comes after the prompt's own tokens is the
    continuation. Where the tokenizer would merge the two, the continuation is tokenised apart, if that spells the same
    text. Ids, and what is generated, continue the prompt exactly as it is given.

    Args:
        words: of the model.
        task: any task.
        new_tokens: how many tokens will be generated after a prompt and have to fit.
    """
    spell = Speller(words, _texts(task))
    found: list[TokenisedItem | None] = []
    problems: list[Unscorable] = []
    for index, item in enumerate(task.items):
        try:
            tokenised = _tokenised(spell, item)
            _check_length(words, tokenised, new_tokens)
            found.append(tokenised)
        except Unspellable as reason:
            problems.append(Unscorable(task.where(index), str(reason)))
            found.append(None)
    return tuple(found), tuple(problems)


def scorable(
    model: nn.Module, task: Task | Sequence[Item], *, prepend_bos: bool | None = None, new_tokens: int = 0
) -> Task:
    """The task without the items that this model cannot be asked, which are listed in its `unscorable`.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        task: any task, or a list of items.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.
        new_tokens: how many tokens will be generated after a prompt and have to fit.
    """
    task = as_task(task)
    whole(new_tokens, "new_tokens")
    tokenised, problems = tokenise(vocabulary(model, prepend_bos=prepend_bos), task, new_tokens=new_tokens)
    kept = task.take(index for index, item in enumerate(tokenised) if item is not None)
    return replace(kept, unscorable=task.unscorable + problems)


def _texts(task: Task) -> Iterable[str]:
    for item in task.items:
        context, spaces = _trimmed(item.context)
        if isinstance(item.context, str):
            yield item.context
            yield item.context.rstrip(" ")
        for text in (*item.right, *item.wrong):
            if isinstance(text, str):
                yield context + spaces + text if isinstance(context, str) else text


def _trimmed(context: Text) -> tuple[Text, str]:
    """The context without spaces at its end, and those spaces."""
    if not isinstance(context, str):
        return context, ""
    trimmed = context.rstrip(" ")
    return trimmed, context[len(trimmed) :]


def _tokenised(spell: Speller, item: Item) -> TokenisedItem:
    asked = [(text, True) for text in item.right] + [(text, False) for text in item.wrong]
    if isinstance(item, MinimalPair):
        found = [_sentence(spell, text, right) for text, right in asked]
        return TokenisedItem(found[0].context, found[0].context, _merged(found))
    trimmed, spaces = _trimmed(item.context)
    given, before = (_checked(spell, _read(spell, text), item.context) for text in (item.context, trimmed))
    strings = [isinstance(text, str) for text, _ in asked]
    context = before if any(strings) else given
    if not context:
        raise Unspellable(
            "nothing comes before the answer: the prompt is empty, and texts begin without a special token"
        )
    if given != before and any(strings) and not all(strings):
        raise Unspellable(
            f"the prompt ends in {item.context[-20:]!r}: a string takes the spaces at its end over, token ids come "
            "after them, so that the two are not asked at the same place; give all texts as strings, or all as ids"
        )
    found = [_continuation(spell, trimmed, spaces, context, text, right) for text, right in asked]
    return TokenisedItem(given, context, _merged(found))


def _read(spell: Speller, prompt: Text) -> Ids:
    return spell.begin(spell.ids(prompt)) if isinstance(prompt, str) else prompt


def _merged(found: list[Continuation]) -> tuple[Continuation, ...]:
    """Continuations that are the same tokens, once; refuses a right and a wrong one that are."""
    first_with: dict[tuple[Ids, Ids], Continuation] = {}
    for one in found:
        other = first_with.setdefault((one.context, one.ids), one)
        if other.right != one.right:
            raise Unspellable(
                f"{other.text!r} and {one.text!r}, one right and one wrong, are the same tokens {one.ids}"
            )
    return tuple(first_with.values())


def _sentence(spell: Speller, text: Text, right: bool) -> Continuation:
    if isinstance(text, str):
        ids = spell.ids(text)
        spell.check(text, 0)
        ids = _checked(spell, spell.begin(_known(spell, ids, text)), text)
    else:
        ids = _checked(spell, text, text)
    if len(ids) < 2:
        raise Unspellable(f"{text!r} is a single token with nothing before it, which has no probability")
    return Continuation(ids[:1], ids[1:], right, text)


def _continuation(spell: Speller, prompt: Text, spaces: str, context: Ids, text: Text, right: bool) -> Continuation:
    if isinstance(text, str):
        ids = _after(spell, prompt, spaces + text) if isinstance(prompt, str) else _after_ids(spell, prompt, text)
        ids = _known(spell, ids, text)
    else:
        ids = text
    if not ids:
        raise Unspellable(f"the tokenizer has no tokens for {text!r}")
    return Continuation(context, _checked(spell, ids, text), right, text)


def _after(spell: Speller, prompt: str, text: str) -> Ids:
    """The ids by which the text continues the prompt."""
    before, both = spell.ids(prompt), spell.ids(prompt + text)
    spell.check(prompt + text, len(prompt))
    if both[: len(before)] == before:
        return both[len(before) :]
    apart, tokenizer = _apart(spell, text), spell.words.tokenizer
    assert tokenizer is not None, "it gave the ids"
    if tokenizer.decode([*before, *apart]) != tokenizer.decode(list(both)):
        raise Unspellable(
            f"the tokenizer merges the end of {prompt[-20:]!r} with {text!r}: between the two is no token boundary"
        )
    return apart


def _after_ids(spell: Speller, prompt: Ids, text: str) -> Ids:
    """The ids by which the text continues a prompt that is given as ids."""
    apart, tokenizer = _apart(spell, text), spell.words.tokenizer
    assert tokenizer is not None, "it gave the ids"
    # Some tokenizers put a space before every text, which would be a second one here.
    if tokenizer.decode([*prompt, *apart]) != tokenizer.decode(list(prompt)) + text:
        raise Unspellable(
            f"the tokenizer spells {text!r} apart from its prompt, which is ids, differently: give ids for both"
        )
    return apart


def _apart(spell: Speller, text: str) -> Ids:
    ids = spell.ids(text)
    spell.check(text, 0)
    return ids


def _known(spell: Speller, ids: Ids, text: str) -> Ids:
    # A text may have the token written out: GPT-2's tokenizers call their end-of-text token unknown.
    unknown = next((token for token, id in spell.unknown.items() if id in ids and token not in text), None)
    if unknown is not None:
        raise Unspellable(f"the tokenizer does not know a part of {text!r}, which becomes {unknown!r}")
    return ids


def _checked(spell: Speller, ids: Ids, text: Text) -> Ids:
    outside = [id for id in ids if not 0 <= id < spell.words.size]
    if outside:
        raise Unspellable(f"token {outside[0]} in {text!r} is outside the model's vocabulary of {spell.words.size}")
    return ids


def _check_length(words: Vocabulary, item: TokenisedItem, new_tokens: int) -> None:
    longest = max(len(one.row) for one in item.continuations)
    if new_tokens:
        longest = max(longest, len(item.prompt) + new_tokens - 1)
    if longest > words.n_ctx:
        raise Unspellable(f"it takes {longest} tokens, and the model reads {words.n_ctx}")
