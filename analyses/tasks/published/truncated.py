"""The truncation study's tasks on pretrained models: indirect objects, and GSM8K after worked examples."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import final

from analyses.tasks._benchmarks import check_template
from analyses.tasks._generators import ioi
from analyses.tasks._json_csv import Record
from analyses.tasks._parsing import joined
from analyses.tasks.items import AnswerItem, Item
from analyses.tasks.published.columns import text_of
from analyses.tasks.published.data import table
from analyses.tasks.published.form import FromRecords, LeftOut, Made, Parts
from analyses.tasks.rules import NamedRule
from surgery.arguments import counted, finite, seed, whole

_FINAL = re.compile(r"####\s*(\S.*)\s*$")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_GREEDY = {"samples": 1, "temperature": 0.0, "seed": 0}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IndirectObjects(Made):
    """Indirect objects, with the other name and a generic word as distractors.

    Args:
        prompt: `{scene}` is the sentence up to the answer.
        n: how many items.
        seed: the same seed gives the same items.
        generic: the word that the study follows beside the names.
    """

    n: int = 1000
    seed: int = 0
    generic: str = " the"

    def __post_init__(self) -> None:
        check_template(self.prompt, ["{scene}"])
        whole(self.n, "n", least=1)
        seed(self.seed)

    @property
    def rule(self) -> NamedRule:
        """The indirect object is the likeliest."""
        return NamedRule("StartsWith")

    def made(self) -> tuple[Item, ...]:
        """The items, drawn."""
        return tuple(
            replace(item, prompt=self.prompt.format(scene=item.prompt), distractors=(*item.distractors, self.generic))
            for item in ioi(self.n, seed=self.seed)
            if isinstance(item, AnswerItem)
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkedExamples(FromRecords):
    """GSM8K's questions after worked ones, of which the answer is the last number.

    Args:
        prompt: of one question, `{question}`; a worked example is the same with its solution after it.
        between: what stands between two examples.
        n_examples: how many worked examples; 0 for none.
        examples: a file, or records, whose first ones are taken; None takes those of `examples_split`.
        examples_split: the split they are from.
        n_tokens: how many tokens are generated.
        stop: where what is generated ends.
        samples: how many solutions are generated for a question, of which the majority counts.
        temperature: of the samples; 0 takes the likeliest tokens, as one sample has to.
        seed: of the samples.
    """

    between: str = "\n\n"
    n_examples: int = 8
    examples: str | PathLike[str] | Iterable[Mapping[str, object]] | None = None
    examples_split: str = "train"
    n_tokens: int = 256
    stop: tuple[str, ...] = ("Question",)
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_template(self.prompt, ["{question}"])
        whole(self.n_examples, "n_examples")
        whole(self.n_tokens, "n_tokens", least=1)
        whole(self.samples, "samples", least=1)
        finite(self.temperature, "temperature", least=0)
        seed(self.seed)

    @property
    def rule(self) -> NamedRule:
        """The last number that is generated is the reference."""
        drawn = {"samples": self.samples, "temperature": self.temperature, "seed": self.seed}
        settings = {"n_tokens": self.n_tokens, "stop": self.stop}
        return NamedRule("LastNumber", settings if drawn == _GREEDY else settings | drawn)

    @property
    def read_splits(self) -> tuple[str, ...]:
        """Those that are asked about, and the one with the worked examples."""
        wanted = self.n_examples > 0 and self.examples is None and self.examples_split not in self.splits
        return (*self.splits, self.examples_split) if wanted else self.splits

    def reader(self, parts: Parts) -> Callable[[Record], list[Item]]:
        """What makes the item of each record: all have the same worked examples before them.

        Raises:
            ValueError: if there are fewer examples than asked for.
        """
        records = table(self.examples, "examples") if self.examples is not None else parts.get(self.examples_split, ())
        chosen = list(records)[: self.n_examples]
        if len(chosen) < self.n_examples:
            raise ValueError(
                f"n_examples={self.n_examples}, and there are {counted(len(chosen), 'record')} to take worked examples "
                "from. Give examples='train.jsonl', or the splits as in {'test': file, 'train': file}, or n_examples=0."
            )
        worked = {text_of(record, "question"): text_of(record, "answer") for record in chosen}
        before = "".join(
            f"{(prompt := self.prompt.format(question=question))}{joined(prompt, answer, self.separator)}{self.between}"
            for question, answer in worked.items()
        )

        def read(record: Record) -> list[Item]:
            if text_of(record, "question") in worked:
                raise LeftOut("it is one of the worked examples")
            return [replace(item, prompt=before + str(item.context)) for item in self.items(record)]

        return read

    def items(self, record: Record) -> list[Item]:
        """The question by itself, with the reference after "####" as its answer."""
        question, answer = text_of(record, "question"), text_of(record, "answer")
        found = _FINAL.search(answer)
        reference = found[1].strip().replace(",", "").replace("$", "") if found else ""
        if not _NUMBER.fullmatch(reference):
            raise record.error(f"'answer' ends in {answer[-30:]!r}", "it ends in '####' and a number", "Give GSM8K")
        prompt = self.prompt.format(question=question)
        return [AnswerItem(prompt, (joined(prompt, reference, self.separator),), metadata={"solution": answer})]
