"""From items to token ids: where a sequence begins, and where a prompt ends and its answer begins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from analyses.tasks.items import Item, Text, Unscorable
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
        """The ids that the model has to read to score the continuation: all but the last."""
        return self.context + self.ids[:-1]


@dataclass(frozen=True, slots=True)
class TokenisedItem:
    """An item as token ids.

    Args:
        prompt: the prompt exactly as it is given.
        context: the ids that the continuations continue. They differ from the prompt where it ends in spaces and the
            continuations are strings: the spaces then go to the continuations.
        continuations: the right ones before the wrong ones.
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
    """The task's items as token ids, None for items that have none; and those items with the reason.

    A prompt and a string that continues it are split where the tokenizer itself splits them: spaces at the prompt's end
    go to the continuation, both are tokenised as one text, and the ids after the prompt's own are the continuation.
    Where the tokenizer would merge the two, the continuation is tokenised apart, if that spells the same text. Ids, and
    generated text, continue the prompt exactly as it is given.

    Args:
        words: of the model.
        task: any task.
        new_tokens: how many tokens will be generated after a prompt and have to fit.
    """
    spell = Speller(words, _texts(task))
    tokenised: list[TokenisedItem | None] = []
    problems: list[Unscorable] = []
    for index, item in enumerate(task.items):
        try:
            tokenised.append(_tokenised(spell, item, new_tokens))
        except Unspellable as reason:
            problems.append(Unscorable(task.where(index), str(reason)))
            tokenised.append(None)
    return tuple(tokenised), tuple(problems)


def scorable(
    model: nn.Module, task: Task | Sequence[Item], *, prepend_bos: bool | None = None, new_tokens: int = 0
) -> Task:
    """The task without the items that this model cannot be asked, which are listed in its `unscorable`.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        task: any task, or a list of items.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.
        new_tokens: how many tokens will be generated after a prompt and have to fit.

    >>> items = [tasks.AnswerItem((1, 2), ((3,),)), tasks.AnswerItem((1, 2), ((99,),))]
    >>> [str(item) for item in scoring.scorable(model, items).unscorable]
    ["items, item 1: token 99 in (99,) is outside the model's vocabulary of 40"]
    """
    task = as_task(task)
    whole(new_tokens, "new_tokens")
    tokenised, problems = tokenise(vocabulary(model, prepend_bos=prepend_bos), task, new_tokens=new_tokens)
    rest = task.take(index for index, item in enumerate(tokenised) if item is not None)
    return replace(rest, unscorable=task.unscorable + problems)


def _texts(task: Task) -> Iterator[str]:
    """Every string that will be tokenised, but for the few continuations that are tokenised apart."""
    for item in task.items:
        trimmed, spaces = _trimmed(item.context)
        yield from (text for text in (item.context, trimmed) if isinstance(text, str))
        for text in (*item.right, *item.wrong):
            if isinstance(text, str):
                yield trimmed + spaces + text if isinstance(trimmed, str) else text


def _trimmed(context: Text) -> tuple[Text, str]:
    """The context without spaces at its end, and those spaces."""
    if not isinstance(context, str):
        return context, ""
    # Only spaces: most tokenizers join a space to the word after it, but keep line breaks and tabs apart.
    trimmed = context.rstrip(" ")
    return trimmed, context[len(trimmed) :]


def _tokenised(spell: Speller, item: Item, new_tokens: int) -> TokenisedItem:
    texts = [(text, True) for text in item.right] + [(text, False) for text in item.wrong]
    # A pair has no prompt: the first token of each sentence is what the rest of it continues.
    if item.kind == "pair":
        continuations = [_sentence(spell, text, right) for text, right in texts]
        prompt = context = continuations[0].context
    else:
        trimmed, spaces = _trimmed(item.context)
        prompt, before = (_within(spell, _read(spell, text), item.context) for text in (item.context, trimmed))
        strings = [isinstance(text, str) for text, _ in texts]
        context = before if any(strings) else prompt
        if not context:
            raise Unspellable(
                "nothing comes before the answer: the prompt is empty, and texts begin without a special token"
            )
        # Strings and ids would be scored after different contexts, whose probabilities do not compare.
        if prompt != before and any(strings) and not all(strings):
            raise Unspellable(
                f"the prompt ends in {item.context[-20:]!r}: a string takes the spaces at its end over, token ids come "
                "after them, so that the two are not asked at the same position; give all texts as strings, or all as "
                "ids"
            )
        continuations = [
            Continuation(context, _within(spell, after(spell, trimmed, spaces, text), text), right, text)
            for text, right in texts
        ]
    # The last token of a continuation is predicted but never read.
    longest = max(len(continuation.row) for continuation in continuations)
    if new_tokens:
        longest = max(longest, len(prompt) + new_tokens - 1)
    if longest > spell.words.n_ctx:
        raise Unspellable(f"it takes {longest} tokens, and the model reads {spell.words.n_ctx}")
    return TokenisedItem(prompt, context, _without_repeats(continuations))


def _without_repeats(continuations: Sequence[Continuation]) -> tuple[Continuation, ...]:
    """Continuations that are the same tokens, once; refuses a right and a wrong one that are."""
    first_with: dict[tuple[Ids, Ids], Continuation] = {}
    for continuation in continuations:
        # The first of them stays; another text for the same tokens would count their probability twice.
        first = first_with.setdefault((continuation.context, continuation.ids), continuation)
        if first.right != continuation.right:
            raise Unspellable(
                f"{first.text!r} and {continuation.text!r}, one right and one wrong, are the same tokens {first.ids}"
            )
    return tuple(first_with.values())


def _read(spell: Speller, prompt: Text) -> Ids:
    """The ids of a beginning: of a string with the beginning-of-sequence token, exactly once, if there is one."""
    if not isinstance(prompt, str):
        return prompt
    # The text may have the token written out at its start, as chat templates do.
    ids, bos = spell.ids(prompt), spell.words.bos
    return ids if bos is None or ids[:1] == (bos,) else (bos, *ids)


def _sentence(spell: Speller, text: Text, right: bool) -> Continuation:
    if isinstance(text, str):
        # Before the beginning-of-sequence token comes in, which may be the tokenizer's unknown token too.
        spell.check(spell.ids(text), text)
    ids = _within(spell, _read(spell, text), text)
    if len(ids) < 2:
        raise Unspellable(f"{text!r} is a single token with nothing before it, which has no probability")
    return Continuation(ids[:1], ids[1:], right, text)


def after(spell: Speller, prompt: Text, spaces: str, text: Text) -> Ids:
    """The ids by which the text, after these spaces, continues the prompt.

    Raises:
        Unspellable: if no ids say that text at that position.
    """
    if not isinstance(text, str):
        return text
    if not isinstance(prompt, str):
        # There is no text to tokenise together with the answer: it is spelled alone, and the two are read together.
        apart = spell.check(spell.ids(text), text)
        # Some tokenizers put a space before every text, which would be a second one here.
        # Compared with the prompt before it: what a tokenizer reads at the start of a text it may read otherwise later.
        if spell.read([*prompt, *apart]) != spell.read(prompt) + text:
            raise Unspellable(
                f"the tokenizer spells {text!r} apart from its prompt, which is ids, differently: give ids for both"
            )
        return apart
    # As one text with its prompt: by itself, a tokenizer may spell the answer with other ids, say with an extra space.
    before, both = spell.ids(prompt), spell.ids(prompt + spaces + text)
    if both[: len(before)] == before:
        return spell.check(both[len(before) :], text)
    # The tokenizer has a token that reaches over the end of the prompt: the model would never have read this prompt.
    apart = spell.check(spell.ids(spaces + text), text)
    if spell.read([*before, *apart]) != spell.read(both):
        raise Unspellable(
            f"the tokenizer merges the end of {prompt[-20:]!r} with {spaces + text!r}: between the two is no token "
            "boundary"
        )
    return apart


def _within(spell: Speller, ids: Ids, text: Text) -> Ids:
    """The ids, if the model has an embedding for each."""
    outside = next((id for id in ids if not 0 <= id < spell.words.size), None)
    if outside is not None:
        raise Unspellable(f"token {outside} in {text!r} is outside the model's vocabulary of {spell.words.size}")
    return ids
