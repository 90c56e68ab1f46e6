"""LASER's tasks with an answer of its own for each item: facts and questions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias, final, get_args

from analyses.tasks._benchmarks import CounterFactPrompt, check_template, facts_of
from analyses.tasks._json_csv import Record
from analyses.tasks._parsing import joined
from analyses.tasks.items import AnswerItem, Item
from analyses.tasks.published.bigbench import input_of, one_target
from analyses.tasks.published.columns import ended, text_of
from analyses.tasks.published.form import FromRecords, LeftOut, Parts
from analyses.tasks.published.tokenizers import Tokenizer, check_tokenizer, ids_of
from analyses.tasks.rules import NamedRule
from surgery.arguments import counted, one_of, whole

Kinds: TypeAlias = tuple[CounterFactPrompt, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Facts(FromRecords):
    """The facts of CounterFact or of known_1000.json.

    Args:
        prompt: what is read, with the fact's own prompt as `{prompt}`.
        prompts: which of CounterFact's prompts are taken.
        says: the rule: "SaysNext" compares the text of the likeliest token, "StartsWith" all tokens of the answer.
        generic: a word that is asked for as the only distractor; None for the data set's own.
    """

    prompts: Kinds = ("rewrite", "paraphrase")
    says: str = "SaysNext"
    generic: str | None = None

    def __post_init__(self) -> None:
        check_template(self.prompt, ["{prompt}"])
        one_of(self.says, "says", ("SaysNext", "StartsWith"))
        kinds = get_args(CounterFactPrompt)
        if isinstance(self.prompts, str) or not self.prompts or set(self.prompts) - set(kinds):
            raise ValueError(f"prompts={self.prompts!r}: CounterFact has {', '.join(kinds)}. Give a list of them.")

    @property
    def rule(self) -> NamedRule:
        """The likeliest next token says the answer."""
        return NamedRule(self.says)

    def items(self, record: Record) -> list[Item]:
        """The fact after each of its prompts."""
        made = facts_of(record, self.prompts, self.separator)
        return [
            replace(
                item,
                prompt=self.prompt.format(prompt=item.prompt),
                distractors=item.distractors if self.generic is None else (self.generic,),
            )
            for item in made
        ]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Questions(FromRecords):
    """HotPotQA's questions with answers that are short enough.

    Args:
        ending: what is put after a question that ends in neither "." nor "?"; "" for nothing.
        n_tokens: how many tokens are generated, in which the answer is looked for.
        whole_words: whether an answer counts only between word boundaries; not so in the paper.
        complete: whether all these tokens are generated although the answer is there, as `Scores.word_overlap` needs:
            the paper has F1, precision and recall beside the accuracy.
        most_tokens: the longest answer that is kept, in tokens.
        tokenizer: counts them: the one of Llama in the paper. Without one, answers are left out that are certainly too
            long, and a note tells how many others might be.
        as_many_train: whether no more is taken of a split than the last one has, as the paper does with train.
    """

    ending: str = "?"
    n_tokens: int = 15
    whole_words: bool = False
    complete: bool = True
    most_tokens: int = 15
    tokenizer: Tokenizer | None = None
    as_many_train: bool = True

    def __post_init__(self) -> None:
        check_template(self.prompt, ["{text}"])
        whole(self.n_tokens, "n_tokens", least=1)
        whole(self.most_tokens, "most_tokens", least=1)
        check_tokenizer(self.tokenizer)

    @property
    def rule(self) -> NamedRule:
        """The answer occurs in what is generated."""
        settings = {"n_tokens": self.n_tokens, "whole_words": self.whole_words, "complete": self.complete}
        return NamedRule("Contains", settings)

    def chosen(self, parts: Parts) -> list[Record]:
        """Of each split as many records as the last one has, in order."""
        if not self.as_many_train:
            return list(chain.from_iterable(parts.values()))
        most = len(list(parts.values())[-1])
        return list(chain.from_iterable(records[:most] for records in parts.values()))

    def items(self, record: Record) -> list[Item]:
        """The question, if its answer is short enough."""
        question, answer = text_of(record, "question"), text_of(record, "answer")
        # A tokenizer splits at white space, and has a token for every byte at the worst.
        n = len(answer.split()) if self.tokenizer is None else len(ids_of(self.tokenizer, answer))
        if n > self.most_tokens:
            raise LeftOut(f"its answer has more than {counted(self.most_tokens, 'token')}")
        prompt = self.prompt.format(text=ended(question, self.ending))
        metadata = {name: record.fields[name] for name in ("id", "type", "level") if name in record.fields}
        return [AnswerItem(prompt, (joined(prompt, answer, self.separator),), metadata=metadata)]

    def note(self, items: Sequence[Item]) -> str:
        """How many answers might be too long, where no tokenizer was given."""
        if self.tokenizer is not None:
            return ""
        # A sentencepiece tokenizer puts a space before the text, which may be a token too.
        unsure = sum(len(str(item.right[0]).strip().encode()) + 1 > self.most_tokens for item in items)
        return (
            f"no tokenizer was given: answers of more than {self.most_tokens} words were left out, and {unsure} of the "
            f"{len(items)} that were kept are long enough to have more than {self.most_tokens} tokens. "
            "Give tokenizer= to keep those that the paper keeps."
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Targets(FromRecords):
    """BIG-bench's items with one target, which is looked for in what is generated.

    Args:
        n_tokens: how many tokens are generated.
        whole_words: whether the target counts only between word boundaries; not so in the paper.
    """

    n_tokens: int = 10
    whole_words: bool = False

    def __post_init__(self) -> None:
        check_template(self.prompt, ["{input}"])
        whole(self.n_tokens, "n_tokens", least=1)

    @property
    def rule(self) -> NamedRule:
        """The target occurs in what is generated."""
        return NamedRule("Contains", {"n_tokens": self.n_tokens, "whole_words": self.whole_words})

    def items(self, record: Record) -> list[Item]:
        """The item, if it has one target."""
        target = one_target(record)
        prompt = self.prompt.format(input=input_of(record).strip())
        return [AnswerItem(prompt, (joined(prompt, target, self.separator),))]
