import csv
import json
import sys
from pathlib import Path

import datasets
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
        {"prompt": "q", "labels": ["1", "2", "0"], "correct": ["2", 2]},
    )
    assert [(item.labels, item.correct) for item in tasks.from_jsonl(choices)] == [
        ((" yes", " no"), (1,)),
        # A label comes before a position: "2" is the second label, the number 2 the third.
        ((" 1", " 2", " 0"), (1, 2)),
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
        (b"\xff\xfe{\x00", "1: byte 0xff is not UTF-8"),
        (
            b'{"prompt": "a", "answer": "b"}\n\n{"prompt": "a", "ans',
            "3: this is not JSON of the expected form (Unterminated string",
        ),
        (b'{"prompt": "a", "answer": "b"}\n{"prompt": "a",\n', "2: this is not JSON of the expected form"),
        (
            b'{"prompt": "a", "answer": "b"} {}',
            "1: this is not JSON of the expected form (there is more after the end)",
        ),
        (
            b'["prompt", "a"]',
            "1: this is of type list: an item is an object of named fields. Is the file of this format?",
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
            "1: 'correct' is 'd': the labels are ['b', 'c']. Give one",
        ),
        (b'{"prompt": "a", "labels": ["b", "c"], "correct": 0.0}', "1: 'correct' is 0.0"),
        (b'{"prompt": "a", "labels": ["b", "c"], "correct": true}', "1: 'correct' is True"),
        (b'{"prompt": "a", "labels": ["b", "c"], "correct": 2}', "1: correct=(2,) with 2 labels"),
        (
            b'{"prompt": "a", "labels": ["b"], "correct": 0}',
            "1: 1 labels given: an item of kind 'choice' has at least 2",
        ),
        (b'{"good": "a"}', "1: there is no 'bad'"),
        (b'{"good": "a", "bad": "a"}', "1: the sentences ('a', 'a') are not all different"),
    ],
)
def test_bad_json_lines_name_file_and_line(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text)
    assert message(lambda: tasks.from_jsonl(path)).startswith(f"{path}:{expected}")


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
        (b"prompt,answer\na,b\nc,\n", "3: 'answer' is empty"),
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
    said = message(
        lambda: tasks.from_datasets(datasets.Dataset.from_dict({"prompt": ["a", "b"], "answer": ["c", None]}))
    )
    assert said.startswith("dataset, row 1: there is no 'answer'")


def test_a_dataset_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "facts"
    folder.mkdir()
    jsonl(folder / "test.jsonl", {"prompt": "a", "answer": "b"})
    task = tasks.from_datasets(str(folder), split="test")
    assert [(item.prompt, item.answers) for item in task] == [("a", (" b",))]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ImportError, match=r"needs the package `datasets`, which is not installed\. Install model-surgery\[datasets\]"
    ):
        tasks.from_datasets("squad")


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
    second = path.read_text().split("\n").index(" {", 5) + 1
    assert len(task) == 6 and [item.source for item in task] == [f"{path}:2"] * 3 + [f"{path}:{second}"] * 3
    assert task[0] == AnswerItem(
        "The mother tongue of Danielle Darrieux is",
        (" French",),
        (" English",),
        groups=("case 5", "subject Danielle Darrieux"),
        metadata={"case_id": 5, "subject": "Danielle Darrieux", "relation_id": "P103", "prompt_kind": "rewrite"},
        source=f"{path}:2",
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
        ("{}", "1: this is not JSON of the expected form (expected '[', found '{')"),
        (
            '[\n{"prompt": "a"}]',
            "2: there is no 'attribute': this format has it, and the record has 'prompt'. Is the file",
        ),
        (
            '[\n{"prompt": "a", "attribute": 3, "subject": "b"}]',
            "2: 'attribute' is 3: it is a string that is not empty",
        ),
        ('[\n\n{"requested_rewrite": {"subject": "a"}}]', "3: there is no 'requested_rewrite.prompt'"),
        (
            '[{"requested_rewrite": 1}]',
            "1: there is no 'requested_rewrite.subject': this format has it, and the record has 1",
        ),
        ('[\n{"subject": "a",\n"prompt": "b", "attr', "3: this is not JSON of the expected form (Unterminated string"),
        (
            '[\n{"subject": "a", "prompt": "b", "attribute": "c"},\n',
            "3: this is not JSON of the expected form (Expecting value",
        ),
        (
            '[\n{"subject": "a", "prompt": "b", "attribute": "c"}\n',
            "3: this is not JSON of the expected form (the text ends early)",
        ),
        ("[3]", "1: this is of type int: an item is an object"),
        ("[" * 100_000, "1: this is not JSON of the expected form (nested too deeply)"),
    ],
)
def test_bad_fact_files_name_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert message(lambda: tasks.from_counterfact(path)).startswith(f"{path}:{expected}")


def test_bad_prompts_of_a_case_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([{**CASE, "paraphrase_prompts": ["a", None]}]))
    assert message(lambda: tasks.from_counterfact(path)).startswith(
        f"{path}:1: 'paraphrase_prompts' is ['a', None]: it is a list"
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
    task = tasks.from_bigbench(path)
    assert (task.name, task.metadata) == ("made up", {"source": str(path), "description": "d"})
    assert task.items == (
        ChoiceItem(
            "Answer.\nIn: Is fire cold?\nOut: ",
            ("yes", "no", "never"),
            (1, 2),
            metadata={"comment": "c"},
            source=f"{path}:4",
        ),
    )


def test_bigbench_fills_in_its_own_defaults(tmp_path: Path) -> None:
    path = bigbench(tmp_path / "task.json", [{"input": "1 or 2?", "target_scores": {"1": 1, "2": 0}}])
    assert tasks.from_bigbench(path)[0].context == "\nQ: 1 or 2?\n  choice: 1\n  choice: 2\nA: "
    path = bigbench(tmp_path / "task.json", [{"input": "1?", "target": ["one", "1"]}, {"input": "2?", "target": "two"}])
    task = tasks.from_bigbench(path, name="mine")
    assert [(item.context, item.right) for item in task] == [("\nQ: 1?\nA: ", ("one", "1")), ("\nQ: 2?\nA: ", ("two",))]
    assert task.name == "mine"


def test_a_bigbench_example_without_a_right_label_is_reported(tmp_path: Path) -> None:
    examples = [{"input": "a", "target_scores": {"x": 1, "y": 0}}, {"input": "b", "target_scores": {"x": 1, "y": 1}}]
    path = bigbench(tmp_path / "task.json", examples)
    task = tasks.from_bigbench(path)
    line = path.read_text().split("\n").index('      "input": "b",')
    assert len(task) == 1
    assert [str(item) for item in task.unscorable] == [
        f"{path}:{line}: all 2 labels have the same score, so that none is right"
    ]
    with pytest.raises(ValueError, match=r"'made up' holds no item that can be scored; left out: .*all 2 labels"):
        tasks.from_bigbench(bigbench(tmp_path / "task.json", examples[1:]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: the file is empty"),
        ("[]", "1: this is not JSON of the expected form (expected '{', found '[')"),
        (
            '{"name": "a", "subtasks": []}',
            "1: no items under 'examples': this format keeps them in a list of that name; the file has",
        ),
        ("{}", "1: no items under 'examples'"),
        ('{"examples": []}', "1: no items under 'examples'"),
        ('{"examples":\n3}', "2: this is not JSON of the expected form (expected '[', found '3')"),
        (
            '{"examples": [{"input": "a", "target": "b"}],\n"name": }',
            "2: this is not JSON of the expected form (Expecting value",
        ),
        (
            '{"examples": [{"input": "a", "target": "b"}]\n',
            "2: this is not JSON of the expected form (the text ends early)",
        ),
        ('{"examples": [{"input": "a", "target": "b"}]} x', "1: this is not JSON of the expected form (there is more"),
        ('{"examples": [\n{"input": "a"}]}', "2: there is no 'target'"),
        (
            '{"examples": [\n{"input": "a", "target_scores": {"b": "c", "d": "e"}}]}',
            "2: 'target_scores' is {'b': 'c', 'd': 'e'}",
        ),
        ('{"examples": [\n{"input": "", "target": "b"}]}', "2: 'input' is '': it is a string that is not empty"),
        ('{"examples": [\n{"input": "a", "target": [1]}]}', "2: 'target' is [1]: it is a list of strings"),
    ],
)
def test_bad_bigbench_files_name_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert message(lambda: tasks.from_bigbench(path)).startswith(f"{path}:{expected}")


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
    reason = "the question has no incorrect answer that differs from the best one"
    assert [(item.where, item.reason) for item in best.unscorable] == [(f"{path}:3", reason)]
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
        f"{path}:2: there is no 'Incorrect Answers': this format has it"
    )
    path = table(tmp_path / "qa.csv", [QUESTIONS[0], ["A", "B", "", "c", "d", "e", "f", "g"]])
    assert message(lambda: tasks.from_truthfulqa(path)).startswith(f"{path}:2: 'Question' is ''")


# BLiMP


def test_blimp_pairs_from_a_file_and_from_a_folder(tmp_path: Path) -> None:
    line = {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "field": "morphology", "UID": "agreement"}
    first = jsonl(tmp_path / "a.jsonl", line)
    second = jsonl(tmp_path / "b.jsonl", {**line, "sentence_good": "Dogs sleep."})
    metadata = {"field": "morphology", "UID": "agreement"}
    pair = MinimalPair("Cats sleep.", "Cats sleeps.", metadata=metadata, source=f"{first}:1")
    assert tasks.from_blimp(first).items == (pair,)
    both = tasks.from_blimp(tmp_path, name="blimp")
    assert both.name == "blimp" and [item.source for item in both] == [f"{first}:1", f"{second}:1"]
    jsonl(tmp_path / "c.jsonl", line, {"sentence_good": "Cats."})
    assert message(lambda: tasks.from_blimp(tmp_path)).startswith(
        f"{tmp_path / 'c.jsonl'}:2: there is no 'sentence_bad'"
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*\.jsonl in this folder: BLiMP has one such file a phenomenon"):
        tasks.from_blimp(tmp_path / "empty")
