"""How often the facts of a task stand in a corpus: documents with subject and answer, and answers by themselves."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import pandas as pd

from analyses.tasks._corpus import Document, Stretch, corpus_files, stretches
from analyses.tasks._json_csv import FilePath
from analyses.tasks.items import Item
from analyses.tasks.task import Task, as_task
from surgery.arguments import counted, one_of, shown

Words = tuple[str, ...]

_WORD = re.compile(r"\w+|[^\w\s]")
_LAST_WORD = re.compile(r"\w+\Z")
_LONGEST_WORD = 1000
"""Of a run of letters and digits that reaches over the end of a stretch so many are held for the next one."""
COUNTS = ("together", "answer", "answer_documents", "subject_documents")


@final
@dataclass(frozen=True, slots=True, repr=False)
class Frequencies:
    """How often each item's subject and answer stand in a corpus; called with an item, it says how often together.

    Columns of `frame`, a row for each item: subject and answers; together, the documents that hold both; answer, how
    often an answer stands there; answer_documents and subject_documents, in how many documents.
    """

    task: Task
    frame: pd.DataFrame
    documents: int

    def __call__(self, item: Item) -> float:
        """How many documents hold the item's subject and an answer; as `laser.by_frequency` asks."""
        return self.of("together")(item)

    def of(self, count: str) -> Callable[[Item], float]:
        """One of the counts as a function of an item, such as `of("answer")`.

        Raises:
            ValueError: if there is no such count, or the item is not of this task.
        """
        one_of(count, "count", COUNTS)
        numbers = dict(zip(self.task.items, self.frame[count].tolist(), strict=True))

        def counted_of(item: Item) -> float:
            if item not in numbers:
                raise ValueError(f"{shown(item)} was not counted: count a task that holds it.")
            return float(numbers[item])

        return counted_of

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.frame.copy()

    def __repr__(self) -> str:
        together = self.frame["together"].tolist()
        return (
            f"{counted(len(together), 'item')} of {self.task.name!r} in {counted(self.documents, 'document')}: "
            f"{sum(map(bool, together))} with subject and answer together, at most {max(together)} times"
        )


def frequencies(
    task: Task | Sequence[Item],
    files: FilePath | Iterable[FilePath],
    *,
    subject: str | Callable[[Item], str] = "subject",
    text_field: str = "text",
    document: Document = "paragraph",
    ignore_case: bool = False,
    progress: bool = True,
) -> Frequencies:
    """How often each item's subject and answer stand in a corpus, counted as whole words while it streams by.

    >>> import pathlib, tempfile
    >>> corpus = pathlib.Path(tempfile.mkdtemp()) / "corpus.txt"
    >>> _ = corpus.write_text("Big Ben is in London.\\n\\nLondon again, and London.\\n")
    >>> fact = tasks.AnswerItem("Big Ben is in", (" London",), metadata={"subject": "Big Ben"})
    >>> tasks.frequencies([fact], corpus, progress=False).frame[["together", "answer"]].values.tolist()
    [[1, 3]]

    Memory does not grow with the corpus. A text matches where the same words and marks follow each other, however they
    are spaced, so also over a line's end; "he" is not in "the". Words are runs of letters and digits: scripts that
    write none between spaces, such as Chinese, are not counted rightly. Several answers of an item count as one.

    Args:
        task: items with text answers.
        files: `.txt` and `.jsonl`, also with `.gz`, or folders of them.
        subject: the name of the item's subject in its metadata, or a function that says it.
        text_field: where a record of JSON lines has its text.
        document: what a document is in a text file: a paragraph, up to a blank line; a line; or all of the file.
        ignore_case: whether "london" is London.

    Raises:
        ValueError: if an item has no subject or is of token ids, or there is no corpus.
        TaskFileError: if a file cannot be read; it names file and line.
    """
    task = as_task(task)
    asked = [(_subject(task, at, subject), tuple(map(_text, item.right))) for at, item in enumerate(task.items)]
    paths = corpus_files(files)
    words = {text: _words(text, ignore_case) for name, answers in asked for text in (name, *answers)}
    numbers = {pattern: at for at, pattern in enumerate(dict.fromkeys(words.values()))}
    number = {text: numbers[pattern] for text, pattern in words.items()}  # texts of the same words are one
    seen = _Counts([(number[name], [number[answer] for answer in answers]) for name, answers in asked], len(numbers))
    search = _Search(list(numbers))
    stream = stretches(paths, document=document, field=text_field, progress=progress)
    for found in search.documents(stream, ignore_case):
        seen.add(found)
    frame = pd.DataFrame({"subject": [name for name, _ in asked], "answers": [answers for _, answers in asked]})
    return Frequencies(task, frame.assign(**seen.columns()), seen.documents)


class _Search:
    """Finds many texts at once: a tree of words, walked from every word that one of the texts begins with."""

    def __init__(self, patterns: Sequence[Words]) -> None:
        self.tree: dict = {}
        for number, words in enumerate(patterns):
            node = self.tree
            for word in words:
                node = node.setdefault(word, {})
            node.setdefault(None, []).append(number)  # no word is None
        self.longest = max(map(len, patterns))

    def documents(self, stream: Iterable[Stretch], ignore_case: bool) -> Iterator[Counter[int]]:
        """Of each document with a word in it, how often every text stands there."""
        found: Counter[int] = Counter()
        cut, words, began = "", [], False
        for text, ends in stream:
            text = cut + text
            last = None if ends else _LAST_WORD.search(text[-_LONGEST_WORD:])  # it may go on in the next stretch
            cut = last[0] if last else ""
            words += _words(text[: len(text) - len(cut)], ignore_case)
            began = began or bool(words)
            # A match may begin in these words and end in the next stretch: all but the last few are done with.
            done = len(words) if ends else max(0, len(words) - self.longest + 1)
            self._count(words, done, found)
            words = words[done:]
            if ends:
                if began:
                    yield found
                found, cut, words, began = Counter(), "", [], False

    def _count(self, words: Sequence[str], end: int, found: Counter[int]) -> None:
        """Count the matches that begin before `end`."""
        tree = self.tree
        for at in range(end):
            node = tree.get(words[at])
            if node is None:
                continue
            after = at + 1
            while True:
                found.update(node.get(None, ()))
                node = node.get(words[after]) if after < len(words) else None
                if node is None:
                    break
                after += 1


class _Counts:
    """Counts of all items, document by document."""

    def __init__(self, items: Sequence[tuple[int, Sequence[int]]], texts: int) -> None:
        self.items = items
        self.documents = 0
        self.occurrences: Counter[int] = Counter()
        self.together, self.answer_documents = [0] * len(items), [0] * len(items)
        self.subject_documents: Counter[int] = Counter()
        self.items_of: dict[int, set[int]] = {text: set() for text in range(texts)}
        for item, (_, answers) in enumerate(items):
            for answer in answers:
                self.items_of[answer].add(item)

    def add(self, found: Mapping[int, int]) -> None:
        """Take in a document."""
        self.documents += 1
        if not found:
            return
        self.occurrences.update(found)
        self.subject_documents.update(found.keys())
        for item in set().union(*(self.items_of[text] for text in found)):
            self.answer_documents[item] += 1
            self.together[item] += self.items[item][0] in found

    def columns(self) -> dict[str, list[int]]:
        """The counts of every item, by `COUNTS`."""
        return {
            "together": self.together,
            "answer": [sum(self.occurrences[answer] for answer in set(answers)) for _, answers in self.items],
            "answer_documents": self.answer_documents,
            "subject_documents": [self.subject_documents[name] for name, _ in self.items],
        }


def _words(text: str, ignore_case: bool) -> Words:
    return tuple(_WORD.findall(text.casefold() if ignore_case else text))


def _text(answer: object) -> str:
    if not isinstance(answer, str):
        raise ValueError(f"the answer {shown(answer)} is of token ids: a corpus is text. Give answers as strings.")
    if not _WORD.search(answer):
        raise ValueError(f"the answer {answer!r} holds no word: nothing can be counted. Leave this item out.")
    return answer.strip()


def _subject(task: Task, at: int, subject: str | Callable[[Item], str]) -> str:
    item = task.items[at]
    name = item.metadata.get(subject) if isinstance(subject, str) else subject(item)
    if not isinstance(name, str) or not _WORD.search(name):
        asked = f"its field {subject!r} holds {shown(name)}" if isinstance(subject, str) else f"it is {shown(name)}"
        raise ValueError(
            f"{task.where(at)}: no subject, {asked}; there is {', '.join(map(repr, item.metadata)) or 'nothing'} in "
            "its metadata. Give the name of the field that holds it, or a function from an item to its subject."
        )
    return name.strip()
