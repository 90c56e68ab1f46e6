"""BIG-bench's tasks in any of their files: task.json, the rows on the hub, and BIG-bench Hard's two columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final, get_args

from analyses.tasks._benchmarks import bigbench_prompt, check_template
from analyses.tasks._json_csv import Record
from analyses.tasks._parsing import joined
from analyses.tasks.items import ChoiceItem, Item
from analyses.tasks.published.columns import PerLabel, text_of, texts_of
from analyses.tasks.published.data import HEADER
from analyses.tasks.published.form import FromRecords, LeftOut
from analyses.tasks.rules import NamedRule
from surgery.arguments import counted, one_of, shown


def input_of(record: Record) -> str:
    """What is asked, with what the task puts around it."""
    header = record.fields.get(HEADER)
    if isinstance(header, Mapping):
        scores = record.fields.get("target_scores")
        return bigbench_prompt(header, record, list(scores) if isinstance(scores, Mapping) else ())
    return text_of(record, "inputs" if "inputs" in record.fields else "input")


def one_target(record: Record) -> str:
    """The record's target.

    Raises:
        LeftOut: if it has several, or none.
        ItemError: if it has no field for them.
    """
    scores = record.fields.get("target_scores")
    if isinstance(scores, Mapping):
        if not all(isinstance(score, int | float) for score in scores.values()):
            raise record.error(f"'target_scores' is {scores!r}", "it maps each label to a number", "Correct it")
        targets = [str(label) for label, score in scores.items() if score == max(scores.values())]
    else:
        targets = texts_of(record, "targets" if "targets" in record.fields else "target")
    if len(targets) != 1:
        raise LeftOut(f"it has {counted(len(targets), 'target')}")
    return targets[0].strip()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choices(FromRecords):
    """BIG-bench's items with one target, which is one of the same few for all.

    Args:
        prompt: with the file's input as `{input}`, without the white space around it.
        labels: target → the label that says it.
        last_line: what stands in the place of the input's last line, "Relation:" say; None leaves it.
        per: as of `Likeliest`: "sequence" is the next token where every label is one, else the sum of their log p.
    """

    labels: Mapping[str, str] = field(hash=False)
    last_line: str | None = None
    per: PerLabel = "sequence"

    def __post_init__(self) -> None:
        check_template(self.prompt, ["{input}"])
        one_of(self.per, "per", get_args(PerLabel))
        if not isinstance(self.labels, Mapping) or len(set(self.labels.values())) < 2:
            raise ValueError(f"labels={shown(self.labels)}: give a dict with the label of each of two or more targets.")

    @property
    def rule(self) -> NamedRule:
        """The likeliest label."""
        return NamedRule("Likeliest", {"per": self.per})

    def items(self, record: Record) -> list[Item]:
        """The choice among the labels."""
        target, text = one_target(record), input_of(record).strip()
        if target not in self.labels:
            raise record.error(
                f"its target is {target!r}", f"the targets are {', '.join(self.labels)}", "Give labels= for others too"
            )
        if self.last_line is not None:
            text = text[: text.rfind("\n") + 1] + self.last_line
        prompt = self.prompt.format(input=text)
        labels = tuple(joined(prompt, label, self.separator) for label in self.labels.values())
        return [ChoiceItem(prompt, labels, (list(self.labels).index(target),))]
