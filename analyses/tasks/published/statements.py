"""TruthfulQA's answers, each as a statement that is true or false."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final, get_args

from analyses.tasks._benchmarks import check_template, true_and_false
from analyses.tasks._json_csv import Record
from analyses.tasks._parsing import joined
from analyses.tasks.items import ChoiceItem, Item
from analyses.tasks.published.columns import PerLabel, ended, text_of, value_of
from analyses.tasks.published.form import FromRecords
from analyses.tasks.rules import NamedRule
from surgery.arguments import one_of, shown


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Statements(FromRecords):
    """Each answer of a question as an item: is it true or false? Read from the hub's rows, mc_task.json or the CSV.

    Args:
        ending: what is put after an answer that does not end in it; "" for nothing.
        labels: for a true and for a false answer.
        targets: the column of the answers, where the data have one; the CSV has a column for each kind.
        per: as of `Likeliest`.
    """

    ending: str = "."
    labels: tuple[str, str] = ("true", "false")
    targets: str = "mc2_targets"
    per: PerLabel = "sequence"

    def __post_init__(self) -> None:
        check_template(self.prompt, ["{question}", "{answer}"])
        one_of(self.per, "per", get_args(PerLabel))
        if isinstance(self.labels, str) or len(set(self.labels)) != 2:
            raise ValueError(f"labels={self.labels!r}: give two, for a true and for a false answer.")

    @property
    def rule(self) -> NamedRule:
        """The likelier label."""
        return NamedRule("Likeliest", {"per": self.per})

    def items(self, record: Record) -> list[Item]:
        """An item for each answer; those of a question form a group."""
        if "Correct Answers" in record.fields:
            question = text_of(record, "Question")
            right, wrong = true_and_false(record)
            answers = [(answer, True) for answer in right] + [(answer, False) for answer in wrong]
        else:
            question, answers = text_of(record, "question"), self._targets(record)
        return [self._item(question, answer, truth) for answer, truth in answers]

    def _item(self, question: str, answer: str, truth: bool) -> ChoiceItem:
        closed = ended(answer, self.ending, enough=(self.ending,))
        prompt = self.prompt.format(question=question, answer=closed)
        labels = tuple(joined(prompt, label, self.separator) for label in self.labels)
        return ChoiceItem(
            prompt,
            labels,
            (0 if truth else 1,),
            groups=(f"question {question}",),
            metadata={"question": question, "answer": answer},
        )

    def _targets(self, record: Record) -> list[tuple[str, bool]]:
        """Each answer, and whether it is true."""
        value = value_of(record, self.targets)
        if isinstance(value, Mapping) and {"choices", "labels"} <= set(value):
            choices, labels = value["choices"], value["labels"]
        elif isinstance(value, Mapping):  # mc_task.json maps each answer to its label
            choices, labels = list(value), list(value.values())
        else:
            choices, labels = (), ()
        fits = isinstance(choices, list) and isinstance(labels, list) and len(choices) == len(labels)
        texts = all(isinstance(one, str) and one.strip() for one in choices)
        if not fits or not texts or not all(label in (0, 1) for label in labels):
            raise record.error(
                f"{self.targets!r} is {shown(value)}",
                "it has 'choices' and as many 'labels', each 0 or 1",
                "Give TruthfulQA's multiple choice",
            )
        return [(choice.strip(), bool(label)) for choice, label in zip(choices, labels, strict=True)]
