"""Eigenpruning's tasks: arithmetic that is made here, and SuperGLUE's premises with an answer of one token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from analyses.tasks._benchmarks import check_template
from analyses.tasks._generators import addition, multiplication
from analyses.tasks._json_csv import Record
from analyses.tasks._parsing import joined
from analyses.tasks.items import AnswerItem, Item
from analyses.tasks.published.columns import Classes, check_labels, text_of
from analyses.tasks.published.form import FromRecords, Made
from analyses.tasks.published.tokenizers import Tokenizer, check_tokenizer, ids_of, n_tokens_after
from analyses.tasks.rules import NamedRule
from surgery.arguments import counted, one_of, whole

_FIRST = NamedRule("StartsWith", {"n_tokens": 1})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic(Made):
    """All sums or products of two numbers below a limit.

    Args:
        prompt: with `{i}` and `{j}`.
        operation: what is asked.
        limit: one more than the largest number.
        tokenizer: of the model, to keep the results that are one token; None keeps all.
    """

    operation: Literal["sum", "product"]
    limit: int
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        check_template(self.prompt, ["{i}", "{j}"])
        one_of(self.operation, "operation", ("sum", "product"))
        whole(self.limit, "limit", least=1)
        check_tokenizer(self.tokenizer)

    @property
    def rule(self) -> NamedRule:
        """The first token of the result is the likeliest of all."""
        return _FIRST

    def made(self) -> tuple[Item, ...]:
        """The items, in order of i and then j."""
        make = addition if self.operation == "sum" else multiplication
        items = make(self.limit, template=self.prompt, separator=self.separator).items
        tokenizer = self.tokenizer
        if tokenizer is None:
            return items
        lengths = [n_tokens_after(tokenizer, str(item.context), str(item.right[0])) for item in items]
        return tuple(item for item, length in zip(items, lengths, strict=True) if length == 1)

    def note(self, items: Sequence[Item]) -> str:
        """That results of several tokens were kept, where no tokenizer was given."""
        if self.tokenizer is not None:
            return ""
        return (
            "no tokenizer was given: results of several tokens, which the paper has not, were kept and are judged by "
            "their first token. Give tokenizer=model.tokenizer to leave them out."
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Premises(FromRecords):
    """SuperGLUE's texts in a prompt, with the label that says their class as the answer and the others as distractors.

    Args:
        texts: the columns that fill the prompt.
        questions: what fills `{question}`, by the value of that column; empty where there is none.
        classes: the column of the class.
        labels: class → the label that says it.
        label_token: None for the label itself, of which the first token counts; a number for one token of it alone,
            counted from 0, which takes a tokenizer.
        tokenizer: of the model.
    """

    texts: tuple[str, ...]
    classes: Classes
    labels: Mapping[str, str] = field(hash=False)
    questions: Mapping[str, str] = field(default_factory=dict, hash=False)
    label_token: int | None = None
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        check_template(self.prompt, [f"{{{text}}}" for text in (*self.texts, *(["question"] * bool(self.questions)))])
        check_labels(self.labels, self.classes)
        check_tokenizer(self.tokenizer)
        if self.label_token is not None:
            whole(self.label_token, "label_token")
            self._check_label_token(self.label_token)

    @property
    def rule(self) -> NamedRule:
        """The first token of the label is the likeliest of all."""
        return _FIRST

    def items(self, record: Record) -> list[Item]:
        """The texts, with the label of their class as the answer."""
        name = self.classes.of(record)
        texts = {text: text_of(record, text) for text in self.texts}
        if self.questions:
            kind = text_of(record, "question")
            if kind not in self.questions:
                raise record.error(
                    f"'question' is {kind!r}", f"it is one of {', '.join(self.questions)}", "Give SuperGLUE's COPA"
                )
            texts["question"] = self.questions[kind]
        prompt = self.prompt.format(**texts)
        answers = {one: self._answer(prompt, label) for one, label in self.labels.items()}
        if name not in answers:
            raise record.error(
                f"its class is {name}", f"there are labels for {', '.join(answers)}", "Give labels= for it too"
            )
        right = answers[name]
        wrong = tuple(dict.fromkeys(answer for answer in answers.values() if answer != right))
        return [AnswerItem(prompt, (right,), wrong, metadata={"class": name})]

    def note(self, items: Sequence[Item]) -> str:
        """Which token of each label was compared, where that is not the first."""
        if self.label_token is None or self.tokenizer is None:
            return ""
        pieces = {
            label: ids_of(self.tokenizer, self.separator + label)[self.label_token] for label in self.labels.values()
        }
        compared = ", ".join(f"{label!r} by token {piece}" for label, piece in pieces.items())
        return f"what is compared with the likeliest next token is token {self.label_token} of each label: {compared}"

    def _answer(self, prompt: str, label: str) -> str | tuple[int, ...]:
        if self.label_token is None or self.tokenizer is None:
            return joined(prompt, label, self.separator)  # type: ignore[return-value]
        return (ids_of(self.tokenizer, self.separator + label)[self.label_token],)

    def _check_label_token(self, at: int) -> None:
        if self.tokenizer is None:
            raise ValueError(f"label_token={at} takes a tokenizer. Give tokenizer=model.tokenizer.")
        lengths = {label: len(ids_of(self.tokenizer, self.separator + label)) for label in self.labels.values()}
        short = next((label for label, length in lengths.items() if length <= at), None)
        if short is not None:
            raise ValueError(
                f"label_token={at}: the label {short!r} has {counted(lengths[short], 'token')} with this tokenizer, "
                "counted from 0. Take a smaller number, or other labels."
            )
