"""Facts counted in a corpus, against regular expressions over documents that are in memory as a whole."""

import gzip
import json
import random
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from analyses import tasks
from analyses.tasks import _corpus

FACTS = [
    ("Big Ben", "London"), ("New York City", "New York"), ("York", "U.S."), ("the", "he"), ("St. Paul's", "new york"),
    ("Île", "Œuvre"), ("Nowhere", "Nothing"), ("York", "York York"),
]  # fmt: skip
PARTS = [
    "Big", "Ben", "London", "New", "York", "City", "U", ".", "S", "the", "he", "St", "Paul", "'", "s", "ÎLE", "Île",
    "Œuvre", "œuvre", "new", "york", "Londoner", "_York", "\n", " ", "  ", "\t", ",", "\n\n", "-", "NEW",
]  # fmt: skip


def task(facts: list[tuple[str, str]] = FACTS) -> tasks.Task:
    numbered = enumerate(facts)
    items = [tasks.AnswerItem(f"{name} {n}", (f" {a}",), metadata={"subject": name}) for n, (name, a) in numbered]
    return tasks.Task("facts", tuple(items))


def corpus(seed: int, length: int = 400) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice([*PARTS, " ", " ", " "]) for _ in range(length))


def occurrences(text: str, document: str, ignore_case: bool) -> int:
    """A regular expression a word or mark, with a space where two words meet; matches may overlap."""
    if ignore_case:
        text, document = text.casefold(), document.casefold()
    parts = re.findall(r"\w+|[^\w\s]", text)
    pattern = re.escape(parts[0])
    for before, after in pairwise(parts):
        both_words = re.match(r"\w", before) and re.match(r"\w", after)
        pattern += (r"\s+" if both_words else r"\s*") + re.escape(after)
    edge = [r"(?<!\w)" if re.match(r"\w", parts[0]) else "", r"(?!\w)" if re.match(r"\w", parts[-1]) else ""]
    return len(re.findall(f"(?={edge[0]}{pattern}{edge[1]})", document))


def naive(facts: list[tuple[str, str]], documents: list[str], ignore_case: bool) -> list[list[int]]:
    rows = []
    for subject, answer in facts:
        both = [(occurrences(subject, one, ignore_case), occurrences(answer, one, ignore_case)) for one in documents]
        together = sum(a > 0 and b > 0 for a, b in both)
        rows.append([together, sum(b for _, b in both), sum(b > 0 for _, b in both), sum(a > 0 for a, _ in both)])
    return rows


def counts(found: tasks.Frequencies) -> list[list[int]]:
    return found.frame[["together", "answer", "answer_documents", "subject_documents"]].to_numpy().tolist()


@pytest.mark.parametrize("ignore_case", [False, True])
@pytest.mark.parametrize("chunk", [3, 16, 2**20])
def test_counts_are_those_of_regular_expressions(
    ignore_case: bool, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the pieces are in which a file is read."""
    monkeypatch.setattr(_corpus, "_CHUNK", chunk)
    texts = [corpus(seed) for seed in range(12)]
    for n, text in enumerate(texts):
        (tmp_path / f"{n:02}.txt").write_text(text, encoding="utf-8")
    split = {
        "file": texts,
        "paragraph": [part for text in texts for part in re.split(r"\n(?:[^\S\n]*\n)+", text)],
        "line": [line for text in texts for line in text.split("\n")],
    }
    seen = 0
    for document, documents in split.items():
        found = tasks.frequencies(task(), tmp_path, document=document, ignore_case=ignore_case, progress=False)
        expected = naive(FACTS, documents, ignore_case)
        assert counts(found) == expected
        assert found.documents == sum(bool(re.search(r"\S", one)) for one in documents)
        seen += sum(row[0] for row in expected)
    assert seen > 10


def test_plain_compressed_and_json_lines_say_the_same(tmp_path: Path) -> None:
    texts = [corpus(seed, 60) for seed in range(30)]
    lines = "".join(json.dumps({"id": n, "body": text}) + "\n" for n, text in enumerate(texts))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.rstrip("\n").encode()))
    expected = naive(FACTS, texts, False)
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert counts(tasks.frequencies(task(), tmp_path / name, text_field="body", progress=False)) == expected
    both = tasks.frequencies(task(), [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"], text_field="body", progress=False)
    assert counts(both) == [[2 * n for n in row] for row in expected]
    (tmp_path / "c.txt").write_text("Big Ben\r\nis in\r\nLondon.\r\n\r\nBig Ben", encoding="utf-8-sig")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress((tmp_path / "c.txt").read_bytes()))
    for name in ("c.txt", "c.txt.gz"):
        assert counts(tasks.frequencies(task(), tmp_path / name, progress=False))[0] == [1, 1, 1, 2]


def test_several_answers_count_as_one_and_subjects_may_be_said_by_a_function(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Q1 is UK.\n\nQ1 is Britain, that is UK.\n\nUK")
    items = [tasks.AnswerItem("Q1:", (" UK", " Britain", "UK ")), tasks.AnswerItem("Q2:", (" Rome",))]
    found = tasks.frequencies(items, tmp_path, subject=lambda item: item.prompt[:-1], progress=False)
    assert counts(found) == [[2, 4, 3, 2], [0, 0, 0, 0]]
    assert (found(items[0]), found.of("answer")(items[0]), found(items[1])) == (2, 4, 0)
    assert repr(found) == "2 items of 'items' in 3 documents: 1 with subject and answer together, at most 2 times"
    with pytest.raises(ValueError, match="count='n': it is one of 'together', 'answer', "):
        found.of("n")
    with pytest.raises(ValueError, match=r"'Q3'.* was not counted: count a task that holds it"):
        found(tasks.AnswerItem("Q3", ("a",)))


@pytest.mark.long
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_corpus, "_CHUNK", 2**12)
    peaks = []
    for times in (20, 400):
        text = "York is not New York City, says he. " * 100
        (tmp_path / "long.txt").write_text(text * times)  # one line, one document
        tracemalloc.start()
        found = tasks.frequencies(task(), tmp_path / "long.txt", progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert counts(found)[1] == [1, 100 * times, 1, 1]
    assert peaks[1] < 1.5 * peaks[0] + 2**16


def test_what_is_no_corpus_is_named(tmp_path: Path) -> None:
    def refused(name: str, data: bytes, error: type[Exception], told: str, **settings: object) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(error, match=told):
            tasks.frequencies(task(), tmp_path / name, progress=False, **settings)

    refused("a.csv", b"a", ValueError, r"a\.csv' is no corpus: files end in \.txt, \.jsonl, or in one of these and")
    refused("a.txt", b"London\n\xff\n", tasks.TaskFileError, r"a\.txt:1: in or after this line, byte 0xff is not UTF-8")
    refused("b.jsonl", b'{"text": ""}\nLondon\n', tasks.TaskFileError, r"b\.jsonl:2: this line is not JSON")
    refused("c.jsonl", b'{"body": ""}\n', tasks.TaskFileError, r"c\.jsonl:1: no text under 'text': the record has")
    refused("d.jsonl", b"[1]\n", tasks.TaskFileError, r"d\.jsonl:1: no text under 'text': the record has 'list'")
    refused("e.txt.gz", b"London", tasks.TaskFileError, r"e\.txt\.gz: this is not a whole gzip file")
    refused("f.txt.gz", gzip.compress(b"London" * 99)[:-9], tasks.TaskFileError, "this is not a whole gzip file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' is no corpus"):
        tasks.frequencies(task(), tmp_path / "empty", progress=False)
    with pytest.raises(FileNotFoundError, match=r"there is no corpus file .*nowhere\.txt"):
        tasks.frequencies(task(), tmp_path / "nowhere.txt", progress=False)
    with pytest.raises(ValueError, match="there is no corpus: give one file or more"):
        tasks.frequencies(task(), [], progress=False)
    text = tmp_path / "a.txt"
    with pytest.raises(ValueError, match=r"items, item 0: no subject, its field 'name' holds None; there is 'subject'"):
        tasks.frequencies(list(task().items), text, subject="name", progress=False)
    with pytest.raises(ValueError, match=r"the answer \(1,\) is of token ids: a corpus is text"):
        tasks.frequencies([tasks.AnswerItem((2,), ((1,),), metadata={"subject": "a"})], text, progress=False)


def test_answers_of_the_same_words_are_counted_once(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text("Big Ben is in London.\n\nLondon again, and LONDON.\n")
    fact = tasks.AnswerItem("Big Ben is in", (" London", " london"), metadata={"subject": "Big Ben"})
    assert counts(tasks.frequencies([fact], file, ignore_case=True, progress=False)) == [[1, 3, 2, 1]]
