import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from analyses import tasks
from analyses.tasks import AnswerItem, ChoiceItem, MinimalPair, TaskFileError


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def table(path: Path, rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def message(call: object) -> str:
    with pytest.raises(TaskFileError) as error:
        call()
    return str(error.value)


def located(path: Path, expected: str) -> str:
    """An error of the file: at a line, or in an item of an array."""
    return f"{path}{expected}" if expected.startswith(", item") else f"{path}:{expected}"


# JSON lines


def test_json_lines_of_every_kind(tmp_path: Path) -> None:
    facts = jsonl(
        tmp_path / "facts.jsonl",
        {
            "prompt": "The capital of Peru is",
            "answer": "Lima",
            "alternatives": ["lima", " LIMA", " Lima"],
            "group": 7,
            "year": 1535,
        },
        {"prompt": "Q:\n", "answer": ["one", "1"], "distractors": ["two"], "groups": ["a", "b"]},
        {"prompt": [3, 4], "answer": [5], "alternatives": [[6, 7]], "distractors": [[8]]},
        {"prompt": "1 + 1 =", "answer": 2},
    )
    task = tasks.from_jsonl(facts)
    assert task.name == "facts" and task.metadata == {"source": str(facts)}
    where = [f"{facts}:{line}" for line in (1, 2, 3, 4)]
    assert task.items == (
        AnswerItem(
            "The capital of Peru is",
            (" Lima", " lima", " LIMA"),
            groups=("7",),
            metadata={"year": 1535},
            source=where[0],
        ),
        AnswerItem("Q:\n", ("one", "1"), ("two",), groups=("a", "b"), source=where[1]),
        AnswerItem((3, 4), ((5,), (6, 7)), ((8,),), source=where[2]),
        AnswerItem("1 + 1 =", (" 2",), source=where[3]),
    )
    choices = jsonl(
        tmp_path / "choices.jsonl",
        {"prompt": "q", "labels": ["yes", "no"], "correct": "no"},
        {"prompt": "q", "labels": ["1", "2", "0"], "correct": ["2", "1"]},
        {"prompt": [9], "labels": [[5], [6]], "correct": [[6]]},
    )
    assert [(item.labels, item.correct) for item in tasks.from_jsonl(choices, correct_is="label")] == [
        ((" yes", " no"), (1,)),
        ((" 1", " 2", " 0"), (1, 0)),
        (((5,), (6,)), (1,)),
    ]
    pairs = jsonl(
        tmp_path / "pairs.jsonl", {"good": "a b", "bad": "b a", "kind": "order"}, {"good": [1, 2], "bad": [2, 1]}
    )
    assert tasks.from_jsonl(pairs).items == (
        MinimalPair("a b", "b a", metadata={"kind": "order"}, source=f"{pairs}:1"),
        MinimalPair((1, 2), (2, 1), source=f"{pairs}:2"),
    )


def test_fields_can_be_renamed_templated_and_given_labels(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", {"question": "Is it?", "truth": "yes", "topic": "x"})
    task = tasks.from_jsonl(
        path,
        name="questions",
        rename={"truth": "correct"},
        template="Q: {question}\nA:",
        labels=["yes", "no"],
        separator="_",
    )
    assert task.name == "questions"
    assert task.items == (
        ChoiceItem(
            "Q: Is it?\nA:",
            ("_yes", "_no"),
            (0,),
            metadata={"question": "Is it?", "topic": "x"},
            source=f"{path}:1",
        ),
    )


def test_blank_lines_byte_order_marks_and_odd_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    text = '\ufeff\n{"prompt": "a\u2028b\u0085", "answer": "x"}\r\n\n  \n{"prompt": "c", "answer": "y"}'
    path.write_bytes(text.encode())
    task = tasks.from_jsonl(path)
    assert [(item.source.rpartition(":")[2], item.context) for item in task] == [("2", "a\u2028b\u0085"), ("5", "c")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "1: the file is empty: a task file has at least one item"),
        (b" \n\t\n", "1: the file is empty"),
        (
            b'{"prompt": "a", "answer": "b"}\n{"prompt": "caf\xe9"',
            "2: byte 0xe9 is not UTF-8: task files are UTF-8 text. Convert",
        ),
        (
            "\ufeff{}".encode("utf-16-le"),
            "1: the file begins with the mark of UTF-16: task files are UTF-8 text. Convert",
        ),
        (
            b'{"prompt": "a", "answer": "b"}\n\n{"prompt": "a", "ans',
            "3: this is not JSON of the expected form (Unterminated string",
        ),
        (b'{"prompt": "a", "answer": "b"}\n{"prompt": "a",\n', "2: this is not JSON of the expected form"),
        (
            b'{"prompt": "a", "answer": "b"} {}',
            "1: this is not JSON of the expected form (Extra data)",
        ),
        (
            b'["prompt", "a"]',
            ", item 0: this is of type str: an item is an object of named fields. Is the file of this format?",
        ),
        (
            b'{"prompt": "a"}',
            "1: there is no 'answer': the record has the fields 'prompt'. An item needs 'prompt' and 'answer'",
        ),
        (b'\n{"prompt": "a", "answer": ""}', "2: 'answer' is empty: the record has the fields 'prompt', 'answer'"),
        (b'{"answer": "a"}', "1: there is no 'prompt'"),
        (b'{"prompt": 1.5, "answer": "b"}', "1: field 'prompt' is 1.5: a text is a string, or a list of token ids"),
        (b'{"prompt": "a", "answer": null}', "1: there is no 'answer'"),
        (b'{"prompt": "a", "answer": true}', "1: field 'answer' is True: a text is a string"),
        (b'{"prompt": "a", "answer": {"b": 1}}', "1: field 'answer' is {'b': 1}: a text is a string"),
        (b'{"prompt": "a", "answer": "\\ud800"}', "1: field 'answer' is '\\ud800': a text has no lone surrogates"),
        (
            b'{"prompt": "a", "answer": "b", "alternatives": "c"}',
            "1: field 'alternatives' is 'c': it is a list of strings",
        ),
        (
            b'{"prompt": "a", "answer": "b", "distractors": ["b"]}',
            "1: ' b' is both an accepted answer and a distractor",
        ),
        (
            b'{"prompt": "a", "answer": "b", "answers": ["c"]}',
            "1: two fields mean 'answer': it has 'prompt', 'answer', 'answers'",
        ),
        (b'{"prompt": "a", "labels": ["b", "c"]}', "1: there is no 'correct'"),
        (
            b'{"prompt": "a", "labels": ["b", "c"], "correct": "d"}',
            "1: 'correct' is 'd': the 2 labels are ['b', 'c']. Give one",
        ),
        (b'{"prompt": "a", "labels": ["b", "c"], "correct": 0.0}', "1: 'correct' is 0.0"),
        (b'{"prompt": "a", "labels": ["b", "c"], "correct": true}', "1: 'correct' is True"),
        (b'{"prompt": "a", "labels": ["b", "c"], "correct": 2}', "1: 'correct' is 2: the 2 labels are ['b', 'c']"),
        (
            b'{"prompt": "a", "labels": ["b"], "correct": 0}',
            "1: 1 label given: an item of kind 'choice' has at least 2",
        ),
        (b'{"good": "a"}', "1: there is no 'bad'"),
        (b'{"good": "a", "bad": "a"}', "1: the sentences ('a', 'a') are not all different"),
    ],
)
def test_bad_json_lines_name_file_and_line(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text)
    assert message(lambda: tasks.from_jsonl(path)).startswith(located(path, expected))


def test_an_odd_line_is_put_aside_with_its_reason(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "q.jsonl",
        {"prompt": "a", "answer": "b"},
        {"prompt": "a"},
        {"prompt": "a", "answer": "b", "distractors": ["b"]},
        {"prompt": "a", "answer": "b", "alternatives": [""]},
        {"prompt": "a", "answer": "b", "labels": ["b", "c"], "correct": 0},
    )
    with path.open("a") as file:
        file.write('{"prompt": "a", "prompt": "c", "answer": "b"}\n')
    task = tasks.from_jsonl(path)
    assert len(task) == 1 and repr(task).endswith("5 unscorable left out)")
    said = [
        "there is no 'answer': the record has the fields 'prompt'",
        "' b' is both an accepted answer and a distractor",
        "a text in 'answer' is empty: it needs a token",
        "there are 'prompt', 'answer', 'labels', 'correct' together: an item has",
        "'prompt' stands there twice: only the last would count",
    ]
    for line, (aside, reason) in enumerate(zip(task.unscorable, said, strict=True), start=2):
        assert aside.where == f"{path}:{line}" and aside.reason.startswith(reason)


@pytest.mark.parametrize(
    ("labels", "correct", "texts", "right"),
    [
        (["3", "3", "4", "5"], "4", (" 3", " 4", " 5"), " 4"),
        (["3", "3", "b", "5"], 2, (" 3", " b", " 5"), " b"),
        (["c", "c", "b"], 0, (" c", " b"), " c"),
        (["c", "c", "b"], 1, (" c", " b"), " c"),
        (["x", " x", "y", "z"], 2, (" x", " y", " z"), " y"),
        (["x", "x", "y"], 2, (" x", " y"), " y"),
        (["x", "y", "y"], [1, 2], (" x", " y"), " y"),
    ],
)
def test_repeated_labels_do_not_shift_the_right_answer(
    tmp_path: Path, labels: list[str], correct: object, texts: tuple[str, ...], right: str
) -> None:
    record = {"prompt": "2+2 =", "labels": labels, "correct": correct}
    read = [tasks.from_jsonl(jsonl(tmp_path / "q.jsonl", record)), tasks.from_records([record])]
    if not isinstance(correct, list):
        rows = [["prompt", "labels", "correct"], ["2+2 =", "|".join(labels), str(correct)]]
        read += [tasks.from_csv(table(tmp_path / "q.csv", rows))]
        columns = {name: [value] for name, value in record.items()}
        read += [tasks.from_datasets(datasets.Dataset.from_dict(columns))]
    assert [(task[0].labels, task[0].right) for task in read] == [(texts, (right,))] * len(read)


@pytest.mark.parametrize("correct", ["x", 0, " x", 1])
def test_a_right_and_a_wrong_label_that_become_one_text_cannot_be_told_apart(correct: object) -> None:
    records = [{"prompt": "q", "labels": ["x", " x", "y"], "correct": given} for given in (correct, "y")]
    task = tasks.from_records(records)
    assert [item.right for item in task] == [(" y",)]
    assert task.unscorable[0].reason.startswith("a right and a wrong label are the same text ' x'")


@pytest.mark.parametrize("correct", [2, "2"])
def test_a_label_that_is_a_number_is_not_taken_for_a_position(tmp_path: Path, correct: object) -> None:
    path = jsonl(tmp_path / "q.jsonl", {"prompt": "1 + 1 =", "labels": ["1", "2", "3"], "correct": correct})
    said = message(lambda: tasks.from_jsonl(path))
    assert said == (
        f"{path}:1: 'correct' is {correct!r}: that is one of the labels ['1', '2', '3'], and it is the position of "
        "'3'. Say what it is with correct_is='label' or correct_is='position'."
    )
    assert tasks.from_jsonl(path, correct_is="label")[0].right == (" 2",)
    assert tasks.from_jsonl(path, correct_is="position")[0].right == (" 3",)


def test_a_label_in_ids_is_not_taken_for_positions() -> None:
    records = [{"prompt": [9], "labels": [[1], [0]], "correct": [1]}]
    assert "that is one of the labels [[1], [0]], and it is the position of [0]" in message(
        lambda: tasks.from_records(records)
    )
    assert tasks.from_records(records, correct_is="label")[0].right == ((1,),)
    assert tasks.from_records(records, correct_is="position")[0].right == ((0,),)


def test_numbers_after_a_text_are_not_taken_for_token_ids() -> None:
    said = message(lambda: tasks.from_records([{"prompt": "1 + 1 =", "answer": [2, 3]}]))
    assert said.startswith("records, record 0: 'answer' is [2, 3] after a prompt that is text: it may be one answer in")
    (item,) = tasks.from_records([{"prompt": "1 + 1 =", "answer": [[2, 3]]}])
    assert item.answers == ((2, 3),)


def test_an_empty_label_does_not_shift_the_right_answer(tmp_path: Path) -> None:
    rows = [["prompt", "labels", "correct"], ["p", "a||b|c", "2"], ["q", "a|b|c", "2"]]
    task = tasks.from_csv(table(tmp_path / "q.csv", rows))
    assert [item.right for item in task] == [(" c",)]
    assert task.unscorable[0].reason.startswith("a text in 'labels' is empty")


def test_a_field_without_a_value_is_not_written_into_a_prompt() -> None:
    records = [{"context": text, "answer": "b"} for text in ("x", None)]
    task = tasks.from_records(records, template="{context}:")
    assert [item.context for item in task] == ["x:"]
    assert task.unscorable[0].reason.startswith("the template '{context}:' cannot be filled (KeyError: 'context')")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("form", ["array", "objects"])
def test_json_that_is_not_a_line_an_item_is_read_too(tmp_path: Path, indent: int | None, form: str) -> None:
    records = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
    path = tmp_path / "facts.json"
    path.write_text(
        json.dumps(records, indent=indent)
        if form == "array"
        else "\n".join(json.dumps(record, indent=indent) for record in records)
    )
    task = tasks.from_jsonl(path)
    assert [(item.prompt, item.answers) for item in task] == [("a", (" b",)), ("c", (" d",))]
    second = next(n for n, line in enumerate(path.read_text().split("\n"), start=1) if '"c"' in line)
    line = f"{path}:{second - 1 if indent else second}"
    assert task[1].source == (f"{path}, item 1" if form == "array" else line)


def test_records_and_tables_in_memory_become_a_task() -> None:
    records = [{"q": "a", "answer": "b", "year": 3, "group": None}, {"q": "c", "answer": "d", "year": 4, "group": "g"}]
    expected = (
        AnswerItem("a", (" b",), metadata={"year": 3}, source="mine, record 0"),
        AnswerItem("c", (" d",), groups=("g",), metadata={"year": 4}, source="mine, record 1"),
    )
    for given in (records, iter(records), pd.DataFrame(records)):
        assert tasks.from_records(given, name="mine", rename={"q": "prompt"}).items == expected
    arrays = pd.DataFrame({"prompt": [np.array([3, 4])], "answer": [np.array([5])]})
    assert [(item.prompt, item.answers) for item in tasks.from_records(arrays)] == [((3, 4), ((5,),))]
    holed = pd.DataFrame({"prompt": ["a", "b"], "answer": ["c", float("nan")]})
    task = tasks.from_records(holed)
    assert len(task) == 1 and task.unscorable[0].reason.startswith("there is no 'answer'")


def test_a_bad_template_or_rename_names_the_line_and_the_fields(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", {"question": "a", "answer": "b"})
    said = message(lambda: tasks.from_jsonl(path, template="{nothing}"))
    assert said.startswith(f"{path}:1: the template '{{nothing}}' cannot be filled (KeyError: 'nothing')")
    assert "the record has the fields 'question', 'answer'. Name fields in braces" in said
    said = message(lambda: tasks.from_jsonl(path, rename={"query": "prompt"}))
    assert said == f"{path}:1: there is no field 'query': it has 'question', 'answer'. Correct `rename`, or the record."


def test_a_file_of_two_kinds_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "m.jsonl", {"prompt": "a", "answer": "b"}, {"good": "a", "bad": "b"})
    with pytest.raises(ValueError, match="holds items of the kinds answer, pair"):
        tasks.from_jsonl(path)


# CSV


def test_a_table_with_lists_quotes_and_line_breaks(tmp_path: Path) -> None:
    rows = [
        ["prompt", "answer", "alternatives", "group", "id"],
        ['say "a,\nb"', "x", "y|z", "g", "1"],
        [],
        ["c", "d", "", "", "2"],
    ]
    path = table(tmp_path / "t.csv", rows)
    assert tasks.from_csv(path).items == (
        AnswerItem('say "a,\nb"', (" x", " y", " z"), groups=("g",), metadata={"id": "1"}, source=f"{path}:2"),
        AnswerItem("c", (" d",), metadata={"id": "2"}, source=f"{path}:5"),
    )
    tabs = table(tmp_path / "t.tsv", [["q", "labels", "correct"], ["a", "yes;no", "1"]], "\t")
    task = tasks.from_csv(tabs, rename={"q": "prompt"}, delimiter="\t", list_separator=";")
    assert task.items == (ChoiceItem("a", (" yes", " no"), (1,), source=f"{tabs}:2"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "1: the file is empty"),
        (b"prompt,answer\na,b\n\xe4,c\n", "3: byte 0xe4 is not UTF-8"),
        (b"prompt,answer\na,b\nc\n", "3: 1 fields: the header has 2 (prompt, answer). Quote fields"),
        (
            b'prompt,answer\na,b\n"c,d\n',
            "3: this row is not CSV (unexpected end of data): a quoted field ends with a quote",
        ),
        (b'prompt,answer\n"a"x,b\n', "2: this row is not CSV"),
        (b"prompt,answer,prompt\na,b,c\n", "1: the header names 'prompt' more than once: each column has its own name"),
        (b"prompt,reply\na,b\n", "2: there is no 'answer': the record has the fields 'prompt', 'reply'"),
        (b"prompt,answer\na,\nc,\n", "2: 'answer' is empty"),
        (b'prompt,answer\n"' + b"x" * 131_073 + b'",b\n', "2: a field of this row has more than 131072 characters"),
    ],
)
def test_bad_tables_name_file_and_line(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(text)
    assert message(lambda: tasks.from_csv(path)).startswith(f"{path}:{expected}")


def test_a_table_of_nothing_but_a_header_holds_no_item(tmp_path: Path) -> None:
    path = tmp_path / "header.csv"
    path.write_text("prompt,answer\n")
    with pytest.raises(ValueError, match=r"'header' holds no item that can be scored\. Look at the file or the filter"):
        tasks.from_csv(path)


# datasets


def test_a_dataset_in_memory_becomes_a_task() -> None:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["false", "true"]),
            "id": datasets.Value("int64"),
        }
    )
    rows = {"text": ["a", "b"], "label": [1, 0], "id": [10, 11]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    task = tasks.from_datasets(dataset, name="claims", rename={"label": "correct"}, template="{text}? It is")
    assert task.items == (
        ChoiceItem("a? It is", (" false", " true"), (1,), metadata={"text": "a", "id": 10}, source="claims, row 0"),
        ChoiceItem("b? It is", (" false", " true"), (0,), metadata={"text": "b", "id": 11}, source="claims, row 1"),
    )
    ids = datasets.Dataset.from_dict({"prompt": [[3, 4], [5]], "answer": [[6], [7]]})
    assert [(item.prompt, item.answers) for item in tasks.from_datasets(ids)] == [((3, 4), ((6,),)), ((5,), ((7,),))]
    holed = tasks.from_datasets(datasets.Dataset.from_dict({"prompt": ["a", "b"], "answer": ["c", None]}))
    assert len(holed) == 1 and str(holed.unscorable[0]).startswith("dataset, row 1: there is no 'answer'")


def test_the_number_of_a_class_is_its_position_whatever_the_labels_say() -> None:
    features = datasets.Features({"prompt": datasets.Value("string"), "correct": datasets.ClassLabel(names=["1", "0"])})
    dataset = datasets.Dataset.from_dict({"prompt": ["a"], "correct": [1]}, features=features)
    assert tasks.from_datasets(dataset)[0].right == (" 0",)


def test_a_split_is_not_named_for_a_dataset_that_is_one_already() -> None:
    dataset = datasets.Dataset.from_dict({"prompt": ["a"], "answer": ["b"]})
    with pytest.raises(ValueError, match=r"config=None, split='test': these choose what is loaded by name"):
        tasks.from_datasets(dataset, split="test")


def test_a_dataset_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "facts"
    folder.mkdir()
    jsonl(folder / "test.jsonl", {"prompt": "a", "answer": "b"})
    task = tasks.from_datasets(str(folder), split="test")
    assert [(item.prompt, item.answers) for item in task] == [("a", (" b",))]


# CounterFact


CASE = {
    "case_id": 5,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1"},
        "target_true": {"str": "French", "id": "Q2"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["It rained. Danielle Darrieux, a native", "Danielle Darrieux spoke the language"],
    "neighborhood_prompts": ["Michel Rocard is a native speaker of"],
}


def test_counterfact_gives_prompts_and_paraphrases_of_each_case(tmp_path: Path) -> None:
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps([CASE, {**CASE, "case_id": 6}], indent=1))
    task = tasks.from_counterfact(path)
    assert [item.source for item in task] == [f"{path}, item 0"] * 3 + [f"{path}, item 1"] * 3
    assert task[0] == AnswerItem(
        "The mother tongue of Danielle Darrieux is",
        (" French",),
        (" English",),
        groups=("case 5", "subject Danielle Darrieux"),
        metadata={"case_id": 5, "subject": "Danielle Darrieux", "relation_id": "P103", "prompt_kind": "rewrite"},
        source=f"{path}, item 0",
    )
    assert [item.metadata["prompt_kind"] for item in task[:3]] == ["rewrite", "paraphrase", "paraphrase"]
    assert task[2].prompt == "Danielle Darrieux spoke the language"
    assert len(task.clusters()) == 1
    neighbours = tasks.from_counterfact(path, prompts=["neighborhood"])
    assert [item.prompt for item in neighbours] == ["Michel Rocard is a native speaker of"] * 2


def test_known_facts_have_no_paraphrases(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    fact = {"known_id": 0, "subject": "Big Ben", "attribute": "London", "prompt": "Big Ben is in", "relation_id": "P1"}
    path.write_text(json.dumps([fact]))
    item = tasks.from_counterfact(path)[0]
    assert (item.prompt, item.answers, item.groups) == ("Big Ben is in", (" London",), ("subject Big Ben",))
    assert item.metadata == {"known_id": 0, "subject": "Big Ben", "relation_id": "P1"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: the file is empty"),
        ("{}", "1: the file holds a dict: this format is one list of objects. Is it the file?"),
        (
            '[\n{"prompt": "a"}]',
            ", item 0: there is no 'attribute': this format has it, and the record has 'prompt'. Is the file",
        ),
        (
            '[\n{"prompt": "a", "attribute": 3, "subject": "b"}]',
            ", item 0: 'attribute' is 3: it is a string that is not empty",
        ),
        ('[\n\n{"requested_rewrite": {"subject": "a"}}]', ", item 0: there is no 'requested_rewrite.prompt'"),
        (
            '[{"requested_rewrite": 1}]',
            ", item 0: there is no 'requested_rewrite.subject': this format has it, and the record has 1",
        ),
        ('[\n{"subject": "a",\n"prompt": "b", "attr', "3: this is not JSON of the expected form (Unterminated string"),
        (
            '[\n{"subject": "a", "prompt": "b", "attribute": "c"},\n',
            "3: this is not JSON of the expected form (Expecting value",
        ),
        (
            '[\n{"subject": "a", "prompt": "b", "attribute": "c"}\n',
            "3: this is not JSON of the expected form (Expecting ',' delimiter)",
        ),
        ("[3]", ", item 0: this is of type int: an item is an object"),
        ("[" * 100_000, "1: this is not JSON of the expected form (nested too deeply)"),
    ],
)
def test_bad_fact_files_name_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert message(lambda: tasks.from_counterfact(path)).startswith(located(path, expected))


def test_bad_prompts_of_a_case_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([{**CASE, "paraphrase_prompts": ["a", None]}]))
    assert message(lambda: tasks.from_counterfact(path)).startswith(
        f"{path}, item 0: 'paraphrase_prompts' is ['a', None]: it is a list"
    )


def test_an_empty_list_of_facts_holds_no_item(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    path.write_text(" [ ]\n")
    with pytest.raises(ValueError, match="'none' holds no item that can be scored"):
        tasks.from_counterfact(path)


# BIG-bench


def bigbench(path: Path, examples: list[object], **header: object) -> Path:
    path.write_text(json.dumps({"name": "made up", "examples": examples, **header}, indent=2))
    return path


def test_bigbench_choices_are_put_as_the_file_says(tmp_path: Path) -> None:
    path = bigbench(
        tmp_path / "task.json",
        [{"input": "Is fire cold?", "target_scores": {"yes": 0, "no": 1, "never": 1}, "comment": "c"}],
        task_prefix="Answer.\n",
        example_input_prefix="In: ",
        example_output_prefix="\nOut: ",
        append_choices_to_input=False,
        description="d",
    )
    task = tasks.from_bigbench(path, shuffle_seed=None)
    about = {"source": str(path), "description": "d", "shuffle_seed": None}
    assert (task.name, task.metadata) == ("made up", about)
    assert task.items == (
        ChoiceItem(
            "Answer.\nIn: Is fire cold?\nOut: ",
            ("yes", "no", "never"),
            (1, 2),
            metadata={"comment": "c"},
            source=f"{path}, item 0",
        ),
    )


def test_bigbench_fills_in_its_own_defaults(tmp_path: Path) -> None:
    path = bigbench(tmp_path / "task.json", [{"input": "1 or 2?", "target_scores": {"1": 1, "2": 0}}])
    asked = tasks.from_bigbench(path, shuffle_seed=None)[0].context
    assert asked == "\nQ: 1 or 2?\n  choice: 1\n  choice: 2\nA: "
    path = bigbench(tmp_path / "task.json", [{"input": "1?", "target": ["one", "1"]}, {"input": "2?", "target": "two"}])
    task = tasks.from_bigbench(path, name="mine")
    assert [(item.context, item.right) for item in task] == [("\nQ: 1?\nA: ", ("one", "1")), ("\nQ: 2?\nA: ", ("two",))]
    assert task.name == "mine"


def test_a_bigbench_example_without_a_right_label_is_reported(tmp_path: Path) -> None:
    examples = [{"input": "a", "target_scores": {"x": 1, "y": 0}}, {"input": "b", "target_scores": {"x": 1, "y": 1}}]
    path = bigbench(tmp_path / "task.json", examples)
    task = tasks.from_bigbench(path)
    assert len(task) == 1
    assert [str(item) for item in task.unscorable] == [
        f"{path}, item 1: the labels score {{'x': 1, 'y': 1}}: none of them is right, since all are alike. "
        "Leave it out."
    ]
    said = message(lambda: tasks.from_bigbench(bigbench(tmp_path / "task.json", examples[1:] * 3)))
    assert said.startswith(f"{path}, item 0: the labels score {{'x': 1, 'y': 1}}")
    assert said.endswith("None of the other 2 records makes an item either.")


def test_one_odd_bigbench_example_does_not_cost_the_file(tmp_path: Path) -> None:
    good = {"input": "a", "target_scores": {"x": 1, "y": 0}}
    odd = {
        "'input' is ''": {**good, "input": ""},
        "a right and a wrong label are the same text ' x'": {"input": "a", "target_scores": {"x": 1, " x": 0, "y": 0}},
        "'target_scores' is {'x': nan": {"input": "a", "target_scores": {"x": float("nan"), "y": 0}},
        "'target' is ''": {"input": "a", "target": ""},
        "'target' is 7": {"input": "a", "target": 7},
        "'x' stands there twice": "twice",
    }
    path = bigbench(tmp_path / "task.json", [good, *odd.values()], example_output_prefix="\nA:")
    path.write_text(path.read_text().replace('"twice"', '{"input": "a", "target_scores": {"x": 1, "x": 0, "y": 0}}'))
    task = tasks.from_bigbench(path)
    assert len(task) == 1
    for aside, reason in zip(task.unscorable, odd, strict=True):
        assert aside.reason.startswith(reason)


def test_bigbench_choices_do_not_keep_the_order_that_gives_the_answer_away(tmp_path: Path) -> None:
    examples = [{"input": f"{n}?", "target_scores": {"d": 1, "c": 0, "b": 0, "a": 0}} for n in range(400)]
    path = bigbench(tmp_path / "task.json", examples)
    task = tasks.from_bigbench(path)
    first = sum(item.correct == (0,) for item in task)
    assert 60 < first < 140  # 100 ± 9
    for item in task:
        listed = [line.removeprefix("  choice: ") for line in item.prompt.split("\n") if "choice" in line]
        assert tuple(listed) == item.labels and item.right == ("d",)
    assert (
        task.items == tasks.from_bigbench(path, shuffle_seed=0).items != tasks.from_bigbench(path, shuffle_seed=1).items
    )
    # The order in the file plays no part.
    backwards = [{**one, "target_scores": dict(reversed(one["target_scores"].items()))} for one in examples]
    again = tasks.from_bigbench(bigbench(tmp_path / "other.json", backwards))
    assert [item.labels for item in again] == [item.labels for item in task]
    plain = tasks.from_bigbench(path, shuffle_seed=None)
    assert {item.labels for item in plain} == {("d", "c", "b", "a")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: the file is empty"),
        ("[]", "1: no items under 'examples': this format is an object that keeps them in a list of that name"),
        (
            '{"name": "a", "subtasks": []}',
            "1: no items under 'examples': this format is an object that keeps them in a list of that name; the file "
            "has 'name', 'subtasks'. Give a file of one task.",
        ),
        ("{}", "1: no items under 'examples'"),
        ('{"examples": []}', "1: no items under 'examples'"),
        ('{"examples":\n3}', "1: no items under 'examples'"),
        (
            '{"examples": [{"input": "a", "target": "b"}],\n"name": }',
            "2: this is not JSON of the expected form (Expecting value",
        ),
        (
            '{"examples": [{"input": "a", "target": "b"}]\n',
            "2: this is not JSON of the expected form (Expecting ',' delimiter)",
        ),
        ('{"examples": [{"input": "a", "target": "b"}]} x', "1: this is not JSON of the expected form (Extra data"),
        ('{"examples": [\n{"input": "a"}]}', ", item 0: there is no 'target'"),
        (
            '{"examples": [\n{"input": "a", "target_scores": {"b": "c", "d": "e"}}]}',
            ", item 0: 'target_scores' is {'b': 'c', 'd': 'e'}",
        ),
        ('{"examples": [\n{"input": "", "target": "b"}]}', ", item 0: 'input' is '': it is a string that is not empty"),
        ('{"examples": [\n{"input": "a", "target": [1]}]}', ", item 0: 'target' is [1]: it is a list of strings"),
    ],
)
def test_bad_bigbench_files_name_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert message(lambda: tasks.from_bigbench(path)).startswith(located(path, expected))


# TruthfulQA


QUESTIONS = [
    [
        "Type",
        "Category",
        "Question",
        "Best Answer",
        "Best Incorrect Answer",
        "Correct Answers",
        "Incorrect Answers",
        "Source",
    ],
    ["A", "Food", "Are seeds bad?", "No", "Yes", "No; Not at all; No ", "Yes; They kill; ", "s"],
    ["A", "Odd", "What is it?", "This", "This", "This", "This", "s"],
]


def test_truthfulqa_in_its_three_forms(tmp_path: Path) -> None:
    path = table(tmp_path / "qa.csv", QUESTIONS)
    metadata, where = {"type": "A", "category": "Food"}, f"{path}:2"
    best = tasks.from_truthfulqa(path)
    prompt = "Q: Are seeds bad?\nA:"
    assert best.items == (ChoiceItem(prompt, (" No", " Yes", " They kill"), (0,), metadata=metadata, source=where),)
    reason = "'This' is listed as correct and as incorrect: a question has both, and they differ. Correct it, or leave"
    assert [(item.where, item.reason) for item in best.unscorable] == [(f"{path}:3", f"{reason} it out.")]
    binary = tasks.from_truthfulqa(path, form="binary", template="{question}", separator="\n")
    assert [(item.prompt, item.labels) for item in binary] == [("Are seeds bad?", ("\nNo", "\nYes"))]
    statements = tasks.from_truthfulqa(path, form="statements", template="{question} {answer}: ")
    assert [(item.prompt, item.labels, item.correct) for item in statements] == [
        ("Are seeds bad? No: ", ("true", "false"), (0,)),
        ("Are seeds bad? Not at all: ", ("true", "false"), (0,)),
        ("Are seeds bad? Yes: ", ("true", "false"), (1,)),
        ("Are seeds bad? They kill: ", ("true", "false"), (1,)),
    ]
    assert statements.clusters() == ((0, 1, 2, 3),) and statements.metadata["form"] == "statements"


def test_a_truthfulqa_without_a_column_names_the_line(tmp_path: Path) -> None:
    path = table(tmp_path / "qa.csv", [row[:4] for row in QUESTIONS])
    assert message(lambda: tasks.from_truthfulqa(path)).startswith(
        f"{path}:2: there is no 'Correct Answers': this format has it"
    )
    path = table(tmp_path / "qa.csv", [QUESTIONS[0], ["A", "B", "", "c", "d", "e", "f", "g"]])
    assert message(lambda: tasks.from_truthfulqa(path)).startswith(f"{path}:2: 'Question' is ''")


def test_the_json_form_of_truthfulqa_is_told_from_the_table(tmp_path: Path) -> None:
    path = tmp_path / "mc_task.json"
    path.write_text('[{"question": "a", "mc1_targets": {"b": 1}}]')
    said = message(lambda: tasks.from_truthfulqa(path))
    assert said.startswith(
        f"{path}:1: this is a JSON file, such as TruthfulQA's mc_task.json: from_truthfulqa reads its"
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"template": "{q}"}, "template='{q}' cannot be filled (KeyError: 'q'): it has {question}, and no other field"),
        ({"template": "Q:"}, "template='Q:': it has {question}, and no other field"),
        ({"form": "statements", "template": "{question}"}, "template='{question}': it has {question} and {answer}"),
    ],
)
def test_a_template_without_the_question_is_refused(tmp_path: Path, settings: dict, expected: str) -> None:
    path = table(tmp_path / "qa.csv", QUESTIONS)
    with pytest.raises(ValueError) as error:
        tasks.from_truthfulqa(path, **settings)
    assert str(error.value).startswith(expected)


# BLiMP


def test_one_pair_of_equal_sentences_does_not_cost_the_other_pairs(tmp_path: Path) -> None:
    line = {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps."}
    odd = {**line, "sentence_bad": "Cats sleep."}
    first = jsonl(tmp_path / "a.jsonl", line, odd)
    jsonl(tmp_path / "b.jsonl", line)
    for path, n in ((first, 1), (tmp_path, 2)):
        task = tasks.from_blimp(path)
        assert len(task) == n
        assert [str(item) for item in task.unscorable] == [
            f"{first}:2: the sentences ('Cats sleep.', 'Cats sleep.') are not all different: give each one once."
        ]


def test_blimp_pairs_from_a_file_and_from_a_folder(tmp_path: Path) -> None:
    line = {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "field": "morphology", "UID": "agreement"}
    first = jsonl(tmp_path / "a.jsonl", line)
    second = jsonl(tmp_path / "b.jsonl", {**line, "sentence_good": "Dogs sleep."})
    metadata = {"field": "morphology", "UID": "agreement"}
    pair = MinimalPair("Cats sleep.", "Cats sleeps.", metadata=metadata, source=f"{first}:1")
    assert tasks.from_blimp(first).items == (pair,)
    both = tasks.from_blimp(tmp_path, name="blimp")
    assert both.name == "blimp" and [item.source for item in both] == [f"{first}:1", f"{second}:1"]
    jsonl(tmp_path / "c.jsonl", {"sentence_good": "Cats."})
    assert message(lambda: tasks.from_blimp(tmp_path)).startswith(
        f"{tmp_path / 'c.jsonl'}:1: there is no 'bad': the record has the fields 'sentence_good'."
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*\.jsonl in this folder: BLiMP has one such file a phenomenon"):
        tasks.from_blimp(tmp_path / "empty")
