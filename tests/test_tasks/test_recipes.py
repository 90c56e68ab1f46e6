"""The papers' own tasks, each read from a small file in its data set's own schema."""

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import pandas as pd
import pytest
from tiny_tokenizers import bridge_with, byte_level, wrapped

from analyses import scoring, tasks
from analyses.tasks import AnswerItem, ChoiceItem, NamedRule, Task, TaskFileError

BIOS = "Consider the following text: {} Is the person in this text a male or female? The gender of this person is"
WORK = (
    "Consider the following text: {} What is the profession of the person in this text? "
    "The profession of this person is"
)
CLAIM = "Consider the following claim: {} Is this claim true or false. The claim is"
CB = (
    "Premise: {}\n\nHypothesis: {}\n\n"
    "Does the premise entail the hypothesis, contradict it, or is it neutral to it?\n\n"
    "Answer (entails, contradicts, is neutral): The premise"
)
RTE = (
    "Premise: {}\n\nHypothesis: {}\n\nDoes the premise entail the hypothesis or contradict it?\n\n"
    "Answer (entails or contradicts): The premise"
)
COPA = (
    "Premise: {}\n\nWhat was the {} of this?\n\nAlternative 1: {}\n\nAlternative 2: {}\n\n"
    "The correct alternative is alternative"
)
EIGHT = ("journalist", "poet", "composer", "model", "teacher", "architect", "painter", "professor")


def rewrite(subject: str, prompt: str, true: str, new: str, paraphrases: Sequence[str]) -> dict[str, object]:
    rewritten = {
        "subject": subject, "prompt": prompt, "relation_id": "P36", "target_true": {"str": true, "id": "Q1"},
        "target_new": {"str": new, "id": "Q2"},
    }  # fmt: skip
    return {"case_id": 3, "requested_rewrite": rewritten, "paraphrase_prompts": list(paraphrases)}


def claim(text: str, label: str) -> dict[str, object]:
    return {"id": 1, "label": label, "claim": text, "evidence_id": 2}


def bio(text: str, profession: int, gender: int) -> dict[str, object]:
    return {"hard_text": text, "profession": profession, "gender": gender}


def hotpot(question: str, answer: str) -> dict[str, object]:
    return {"id": "5a7a", "question": question, "answer": answer, "type": "bridge", "level": "hard"}


def big(text: str, *targets: str, choices: Sequence[str] = ()) -> dict[str, object]:
    scores = [int(choice in targets) for choice in choices]
    return {
        "idx": 0, "inputs": text, "targets": list(targets), "multiple_choice_targets": list(choices),
        "multiple_choice_scores": scores,
    }  # fmt: skip


def read(name: str, rows: object, **options: object) -> Task:
    return tasks.recipe(name).task(rows, **options)


def asked(task: Task) -> list[tuple[object, tuple[object, ...], tuple[object, ...]]]:
    return [(item.context, item.right, item.wrong) for item in task]


def left_out(task: Task) -> Mapping[str, int]:
    return task.metadata["left_out"]


# LASER


def test_counterfact_takes_a_fact_and_its_paraphrases_with_a_space_before_the_answer() -> None:
    rows = [rewrite("Peru", "The capital of {} is", "Lima", "Oslo", ["Long ago. Peru is led from", "Peru's capital:"])]
    task = read("counterfact", rows)
    prompts = ["The capital of Peru is", "Long ago. Peru is led from", "Peru's capital:"]
    assert asked(task) == [(prompt, (" Lima",), (" Oslo",)) for prompt in prompts]
    assert len(task.clusters()) == 1 and task.rule == NamedRule("SaysNext")
    assert [item.metadata["prompt_kind"] for item in task] == ["rewrite", "paraphrase", "paraphrase"]
    assert [item.context for item in read("counterfact", rows, prompts=("rewrite",))] == prompts[:1]
    assert read("counterfact", rows, prompt="Q. {prompt}")[0].context == "Q. The capital of Peru is"
    assert read("counterfact", rows, says="StartsWith").rule == NamedRule("StartsWith")


def test_hotpot_leaves_out_answers_that_are_too_long_for_the_tokenizer() -> None:
    rows = [
        hotpot("Which city is older, Lima or Oslo?", "Oslo"),
        hotpot("Name the river", "the Amazon"),
        hotpot("It ends in a full stop.", "a b c d"),
    ]
    task = read("hotpot-qa", rows, tokenizer=lambda text: range(len(text.split())), most_tokens=3)
    assert asked(task) == [
        ("Which city is older, Lima or Oslo? The answer is", (" Oslo",), ()),
        ("Name the river? The answer is", (" the Amazon",), ()),
    ]
    assert left_out(task) == {"its answer has more than 3 tokens": 1} and "note" not in task.metadata
    assert task.rule == NamedRule("Contains", {"n_tokens": 15, "whole_words": False, "complete": True})
    assert read("hotpot-qa", rows, n_tokens=4).rule.settings["n_tokens"] == 4
    tokenizer = wrapped(byte_level())
    n = len(tokenizer.encode("the Amazon", add_special_tokens=False))
    assert len(read("hotpot-qa", rows, tokenizer=tokenizer, most_tokens=n)) == 3 - (
        len(tokenizer.encode("a b c d", add_special_tokens=False)) > n
    )


def test_hotpot_without_a_tokenizer_says_what_it_could_not_tell() -> None:
    long, sure, unsure = " ".join("abcdefghijklmnop"), "Lima", "Llanfairpwllgwyngyll"
    task = read("hotpot-qa", [hotpot("Which?", answer) for answer in (long, sure, unsure)])
    assert [item.right for item in task] == [(f" {sure}",), (f" {unsure}",)]
    assert left_out(task) == {"its answer has more than 15 tokens": 1}
    assert "no tokenizer was given" in str(task.metadata["note"]) and "1 of the 2 that were kept" in str(
        task.metadata["note"]
    )


def test_hotpot_takes_of_train_as_many_as_validation_has_and_puts_them_first() -> None:
    parts = {
        "validation": [hotpot(f"v{n}?", "yes") for n in range(2)],
        "train": [hotpot(f"t{n}?", "no") for n in range(5)],
    }
    questions = [str(item.context).split("?")[0] for item in read("hotpot-qa", parts)]
    assert questions == ["t0", "t1", "v0", "v1"]
    assert [item.metadata["split"] for item in read("hotpot-qa", parts)] == ["train"] * 2 + ["validation"] * 2
    assert len(read("hotpot-qa", parts, as_many_train=False)) == 7
    only = read("hotpot-qa", parts, splits=["validation"])
    assert [str(item.context).split("?")[0] for item in only] == ["v0", "v1"]


def test_fever_takes_each_claim_of_one_label_once() -> None:
    rows = [
        claim("Lima is in Peru.", "SUPPORTS"),
        claim("Oslo is in Peru", "REFUTES"),
        claim("Lima is in Peru.", "SUPPORTS"),
        claim("Rome burned.", "SUPPORTS"),
        claim("Rome burned.", "REFUTES"),
        claim("Bern sleeps.", "NOT ENOUGH INFO"),
        claim("Is it?", "SUPPORTS"),
        claim("Paris sang.", "MAYBE"),
    ]
    task = read("fever", rows)
    assert asked(task) == [
        (CLAIM.format("Lima is in Peru."), (" true",), (" false",)),
        (CLAIM.format("Oslo is in Peru."), (" false",), (" true",)),
        (CLAIM.format("Is it?"), (" true",), (" false",)),
    ]
    assert left_out(task) == {
        "an earlier record has the same 'claim'": 1,
        "its records differ in 'label'": 2,
        "'label' is NOT ENOUGH INFO, which has no label": 1,
    }
    (odd,) = task.unscorable
    assert odd.where == "fever, record 7"
    assert odd.reason.startswith("'label' is 'MAYBE': the classes are SUPPORTS, REFUTES, NOT ENOUGH INFO.")
    labels = {"SUPPORTS": "yes", "REFUTES": "no", "NOT ENOUGH INFO": "unknown"}
    assert len(read("fever", rows, labels=labels)) == 4
    # A number is no class here: the data set gives names.
    with pytest.raises(TaskFileError, match="'label' is 0"):
        read("fever", [{"claim": "x", "label": 0}])


def test_bios_asks_for_the_gender_and_for_eight_professions() -> None:
    rows = [bio("She teaches in Lima", 26, 1), bio("He nurses.", 13, 0), bio("Why does he write?", 20, 0)]
    assert asked(read("bios-gender", rows)) == [
        (BIOS.format("She teaches in Lima."), (" female",), (" male",)),
        (BIOS.format("He nurses."), (" male",), (" female",)),
        (BIOS.format("Why does he write?"), (" male",), (" female",)),
    ]
    task = read("bios-profession", rows)
    assert [(item.context, item.right) for item in task] == [
        (WORK.format("She teaches in Lima."), (" teacher",)),
        (WORK.format("Why does he write?"), (" poet",)),
    ]
    assert all({*item.right, *item.wrong} == {f" {name}" for name in EIGHT} for item in task)
    assert left_out(task) == {"'profession' is nurse, which has no label": 1}
    assert task.rule == NamedRule("Likeliest", {"per": "sequence"})
    more = read(
        "bios-profession", rows, labels={"nurse": "nurse", "poet": "writer"}, separator="\n", ending="", per="first"
    )
    assert [item.right for item in more] == [("\nnurse",), ("\nwriter",)]
    assert more.rule == NamedRule("Likeliest", {"per": "first"})


def test_numbers_of_classes_may_be_text_or_names() -> None:
    rows = [{"hard_text": "x", "profession": value, "gender": "1"} for value in ("20", "poet", 20)]
    assert [item.right for item in read("bios-profession", rows)] == [(" poet",)] * 3
    assert [item.right for item in read("bios-gender", rows)] == [(" female",)] * 3


def test_truthfulqa_makes_a_statement_of_each_answer() -> None:
    hub = {"question": "Where is Lima?", "mc2_targets": {"choices": ["In Peru", "In Oslo."], "labels": [1, 0]}}
    file = {"question": "Where is Lima?", "mc2_targets": {"In Peru": 1, "In Oslo.": 0}}
    table = {
        "Question": "Where is Lima?", "Best Answer": "In Peru", "Correct Answers": "In Peru",
        "Incorrect Answers": "In Oslo.",
    }  # fmt: skip
    # No space before "Is", and a question mark is not a full stop.
    ending = "Is this statement true or false? This statement is"
    expected = [
        (f"Where is Lima? In Peru.{ending}", (" true",), (" false",)),
        (f"Where is Lima? In Oslo.{ending}", (" false",), (" true",)),
    ]
    for row in (hub, file, table):
        task = read("truthful-qa", [row])
        assert asked(task) == expected and len(task.clusters()) == 1
    odd = {"question": "Why?", "mc2_targets": {"choices": ["Why not?"], "labels": [0]}}
    assert read("truthful-qa", [odd])[0].context == f"Why? Why not?.{ending}"
    spaced = read("truthful-qa", [hub], prompt="{question} {answer} True?", labels=("yes", "no"), ending="!")
    assert asked(spaced)[0] == ("Where is Lima? In Peru! True?", (" yes",), (" no",))


@pytest.mark.parametrize(
    "targets",
    [{"choices": ["a"], "labels": [1, 0]}, {"choices": ["a"], "labels": [2]}, ["a"], {"choices": [""], "labels": [1]}],
)
def test_truthfulqa_refuses_targets_that_do_not_fit(targets: object) -> None:
    with pytest.raises(TaskFileError, match="as many 'labels', each 0 or 1"):
        read("truthful-qa", [{"question": "Why?", "mc2_targets": targets}])


def test_epistemic_reasoning_reads_rows_of_the_hub_and_the_file_alike(tmp_path: Path) -> None:
    labels = ("entailment", "non-entailment")
    prompt = "Choose.\n\nPremise: Ann knows. Hypothesis: Bob knows.\nRelation:"
    rows = [big(f"{prompt} ", "non-entailment", choices=labels), big(prompt, *labels, choices=labels)]
    task = read("epistemic-reasoning", rows)
    expected = [(prompt, (" non-entailment",), (" entailment",))]
    assert asked(task) == expected and left_out(task) == {"it has 2 targets": 1}
    file = {
        "name": "epistemic_reasoning", "task_prefix": "Choose.\n", "example_input_prefix": "\n",
        "example_output_prefix": "\nRelation: ", "append_choices_to_input": False,
        "examples": [
            {"input": "Premise: Ann knows. Hypothesis: Bob knows.", "target_scores": {labels[0]: 0, labels[1]: 1}}
        ],
    }  # fmt: skip
    path = tmp_path / "task.json"
    path.write_text(json.dumps(file))
    assert asked(read("epistemic-reasoning", path)) == expected
    variant = read(
        "epistemic-reasoning",
        path,
        last_line="True or false?",
        labels={"entailment": "True", "non-entailment": "False"},
    )
    assert asked(variant) == [(prompt.replace("Relation:", "True or false?"), (" False",), (" True",))]


def test_wikidata_takes_items_with_exactly_one_target() -> None:
    rows = [big("  Lima is in ", "Peru"), big("Ann knows", "Bob", "Cid"), big("Nobody knows")]
    task = read("wikidata-qa", rows)
    assert asked(task) == [("Lima is in", (" Peru",), ())]
    assert left_out(task) == {"it has 2 targets": 1, "it has 0 targets": 1}
    assert task.rule == NamedRule("Contains", {"n_tokens": 10, "whole_words": False})


def test_yes_or_no_is_read_from_bigbench_and_from_its_hard_tasks() -> None:
    task = read("causal-judgement", [big("Did it?\nA:", "No", choices=("Yes", "No"))])
    assert asked(task) == [("Did it?\nA:", (" No",), (" Yes",))]
    rows = [
        {"input": "Question: Ann lies. Does Ann tell the truth?", "target": "No"},
        {"input": "x", "target": "Maybe"},
    ]
    lies = read("web-of-lies", rows)
    assert asked(lies) == [(rows[0]["input"], (" No",), (" Yes",))]
    assert "its target is 'Maybe': the targets are Yes, No." in str(lies.unscorable[0])


# Eigenpruning


def test_arithmetic_is_every_pair_of_numbers() -> None:
    products, sums = read("int-mult", None), read("int-sum", None, limit=12)
    assert asked(products) == [(f"{i} x {j} =", (f" {i * j}",), ()) for i in range(20) for j in range(20)]
    assert asked(sums) == [(f"{i} + {j} =", (f" {i + j}",), ()) for i in range(12) for j in range(12)]
    assert tasks.recipe("int-sum").options["limit"] == 100
    assert "results of several tokens" in str(products.metadata["note"])


def test_arithmetic_keeps_results_of_one_token() -> None:
    task = read("int-mult", None, limit=12, tokenizer=lambda text: range(len(text.replace(" ", ""))))
    assert asked(task) == [(f"{i} x {j} =", (f" {i * j}",), ()) for i in range(12) for j in range(12) if i * j < 10]
    assert "note" not in task.metadata
    with pytest.raises(ValueError, match="It keeps: products of one token"):
        read("int-mult", None, limit=2, tokenizer=lambda text: range(len(text)))  # the space is a token of its own
    with pytest.raises(ValueError, match="recipe 'int-mult' makes its items: leave out data="):
        read("int-mult", [])


@pytest.mark.parametrize("numbers", [True, False])
def test_superglue_has_labels_by_number_or_name_and_some_have_none(numbers: bool) -> None:
    names = ["entailment", "contradiction", "neutral"]
    rows = [{"premise": "P.", "hypothesis": "H.", "label": n if numbers else names[n], "idx": n} for n in range(3)]
    task = read("cb", [*rows, {"premise": "P.", "hypothesis": "H.", "label": -1, "idx": 9}])
    labels = (" entails", " contradicts", " is neutral")
    assert asked(task) == [
        (CB.format("P.", "H."), (label,), tuple(other for other in labels if other != label)) for label in labels
    ]
    assert left_out(task) == {"'label' is -1: no label": 1} and task.rule == NamedRule("StartsWith", {"per": "first"})
    rte = read("rte", [{"premise": "P.", "hypothesis": "H.", "label": 1, "idx": 0}])
    assert asked(rte) == [(RTE.format("P.", "H."), (" contradicts",), (" entails",))]


def test_copa_asks_for_cause_or_effect() -> None:
    row = {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect", "label": 0}
    rows = [row, {**row, "question": "cause", "label": 1}, {**row, "question": "reason"}, {**row, "label": 2}]
    task = read("copa", rows)
    assert asked(task) == [
        (COPA.format("It rained.", "effect", "Wet.", "Dry."), (" 1",), (" 2",)),
        (COPA.format("It rained.", "cause", "Wet.", "Dry."), (" 2",), (" 1",)),
    ]
    assert [str(odd).split(": ")[1] for odd in task.unscorable] == ["'question' is 'reason'", "'label' is 2"]


def test_rte_may_compare_the_second_token_as_the_published_code_does() -> None:
    tokenizer = wrapped(byte_level())
    pieces = {label: tokenizer.encode(f" {label}", add_special_tokens=False) for label in ("entails", "contradicts")}
    assert min(map(len, pieces.values())) > 1
    rows = [{"premise": "P.", "hypothesis": "H.", "label": 0}]
    task = read("rte", rows, label_token=1, tokenizer=tokenizer)
    assert (task[0].right, task[0].wrong) == (((pieces["entails"][1],),), ((pieces["contradicts"][1],),))
    assert f"token 1 of each label: 'entails' by token {pieces['entails'][1]}" in str(task.metadata["note"])
    with pytest.raises(ValueError, match="label_token=1 takes a tokenizer"):
        read("rte", rows, label_token=1)
    with pytest.raises(ValueError, match="label_token=90: the label 'entails' has"):
        read("rte", rows, label_token=90, tokenizer=tokenizer)


# The truncation study


def test_indirect_objects_and_facts_stand_against_a_generic_word(tmp_path: Path) -> None:
    task = read("pythia-ioi", None, n=6)
    plain = tasks.ioi(6, seed=0)
    assert asked(task) == [(item.context, item.right, (*item.wrong, " the")) for item in plain]
    path = tmp_path / "known_1000.json"
    path.write_text(json.dumps([{"prompt": "Big Ben is in", "attribute": "London", "subject": "Big Ben"}]))
    facts = read("pythia-facts", path)
    assert asked(facts) == [("Big Ben is in", (" London",), (" the",))] and facts.rule == NamedRule("StartsWith")


def test_gsm8k_puts_worked_examples_before_the_question() -> None:
    train = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}.\n#### {n + 1}"} for n in range(9)]
    test = [
        {"question": "How dear?", "answer": "Sum.\n#### $1,234"},
        {"question": "How cold?", "answer": "Less.\n#### -3.5"},
        {"question": "What is 0 + 1?", "answer": "Same.\n#### 1"},
        {"question": "How?", "answer": "No end"},
    ]
    task = read("gsm8k", {"train": train, "test": test})
    worked = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in train[:8])
    assert asked(task) == [
        (f"{worked}Question: How dear?\nAnswer:", (" 1234",), ()),
        (f"{worked}Question: How cold?\nAnswer:", (" -3.5",), ()),
    ]
    assert left_out(task) == {"it is one of the worked examples": 1}
    assert "'answer' ends in 'No end'" in str(task.unscorable[0])
    assert task.rule == NamedRule("LastNumber", {"n_tokens": 256, "stop": ("Question",)})
    assert read("gsm8k", test[:2], examples=train, n_examples=1)[0].context == (
        "Question: What is 0 + 1?\nAnswer: 0 + 1 = 1.\n#### 1\n\nQuestion: How dear?\nAnswer:"
    )
    assert read("gsm8k", test[:2], n_examples=0)[0].context == "Question: How dear?\nAnswer:"
    with pytest.raises(ValueError, match=r"n_examples=8, and there are 0 records .* Give examples='train.jsonl'"):
        read("gsm8k", test)


# Data in every form


ROWS = [bio("She teaches.", 26, 1), bio("He sings.", 23, 0)]


def jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def json_file(path: Path) -> Path:
    path.write_text(json.dumps(ROWS))
    return path


def separated(path: Path, delimiter: str) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def parquet(path: Path) -> Path:
    pd.DataFrame(ROWS).to_parquet(path)
    return path


def shards(folder: Path) -> Path:
    jsonl(folder / "test-00000-of-00001.jsonl", [bio("Not this one.", 0, 0)])
    for n, row in enumerate(ROWS):
        jsonl(folder / f"dev-0000{n}-of-00002.jsonl", [row])
    return folder


FORMS: dict[str, Callable[[Path], object]] = {
    "json": lambda folder: json_file(folder / "a.json"),
    "json lines": lambda folder: str(jsonl(folder / "a.jsonl", ROWS)),
    "csv": lambda folder: separated(folder / "a.csv", ","),
    "tsv": lambda folder: separated(folder / "a.tsv", "\t"),
    "parquet": lambda folder: parquet(folder / "a.parquet"),
    "folder of one file": lambda folder: jsonl(folder / "all" / "a.jsonl", ROWS).parent,
    "folder of shards": lambda folder: shards(folder / "data"),
    "files": lambda folder: [jsonl(folder / f"{n}.jsonl", [row]) for n, row in enumerate(ROWS)],
    "splits": lambda folder: {"dev": jsonl(folder / "a.jsonl", ROWS), "test": folder / "none"},
    "records": lambda folder: ROWS,
    "data frame": lambda folder: pd.DataFrame(ROWS),
    "dataset": lambda folder: datasets.Dataset.from_list(ROWS),
    "dataset dict": lambda folder: datasets.DatasetDict({"dev": datasets.Dataset.from_list(ROWS)}),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_records_make_the_same_items_in_every_form(form: str, tmp_path: Path) -> None:
    task = read("bios-gender", FORMS[form](tmp_path))
    assert asked(task) == asked(read("bios-gender", ROWS))
    assert all(item.source for item in task)


def test_a_dataset_gives_its_classes_by_name() -> None:
    features = datasets.Features(
        {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
         "label": datasets.ClassLabel(names=["not_entailment", "entailment"])}
    )  # fmt: skip
    rows = [{"premise": "P.", "hypothesis": "H.", "label": n} for n in (0, 1, -1)]
    task = read("rte", datasets.Dataset.from_list(rows, features=features))
    assert [item.right for item in task] == [(" contradicts",), (" entails",)]  # by name: the numbers are swapped here


def test_nested_columns_come_out_of_parquet_as_lists(tmp_path: Path) -> None:
    row = {"question": "Where?", "mc2_targets": {"choices": ["Here", "There"], "labels": [1, 0]}}
    pd.DataFrame([row]).to_parquet(tmp_path / "a.parquet")
    assert asked(read("truthful-qa", tmp_path / "a.parquet")) == asked(read("truthful-qa", [row]))


def test_without_data_the_hub_is_asked_split_by_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(name: str, config: str | None, split: str) -> datasets.Dataset:
        calls.append((name, config, split))
        return datasets.Dataset.from_list([claim(f"In {split}.", "SUPPORTS")])

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = tasks.recipe("fever").task()
    assert calls == [("EleutherAI/fever", "v1.0", "paper_dev"), ("EleutherAI/fever", "v1.0", "paper_test")]
    assert [item.metadata["split"] for item in task] == ["paper_dev", "paper_test"]
    assert task.metadata["source"] == "EleutherAI/fever (v1.0), splits paper_dev, paper_test"


def test_an_order_of_ones_own_is_drawn_by_a_seed() -> None:
    rows = [bio(f"Text {n}.", 0, n % 2) for n in range(20)]
    orders = [[item.context for item in read("bios-gender", rows, shuffle_seed=seed)] for seed in (None, 1, 1, 2)]
    assert orders[0] == [BIOS.format(f"Text {n}.") for n in range(20)]
    assert orders[1] == orders[2] != orders[3] and sorted(orders[1]) == sorted(orders[0])


# Parts, rules and the table


def test_the_parts_are_those_of_the_papers() -> None:
    task = read("bios-gender", [bio(f"Text {n}.", 0, n % 2) for n in range(11)])
    parts = tasks.recipe("bios-gender").split(task)
    assert (parts.validation.items, parts.test.items, len(parts.screen)) == (task.items[:2], task.items[2:], 0)
    assert parts.test.rule == task.rule
    products = read("int-mult", None)
    made = tasks.recipe("int-mult").split(products, seed=3)
    assert (len(made.screen), len(made.validation), len(made.test)) == (320, 0, 80)
    assert {*made.screen.items, *made.test.items} == set(products.items)
    assert made.test.items != tasks.recipe("int-mult").split(products, seed=4).test.items
    rows = {
        split: [{"premise": f"{split} {n}", "hypothesis": "H.", "label": 0} for n in range(size)]
        for split, size in (("train", 3), ("validation", 2))
    }
    rte = tasks.recipe("rte").split(read("rte", rows))
    assert (len(rte.screen), len(rte.test)) == (3, 2) and "train 0" in str(rte.screen[0].context)
    with pytest.raises(ValueError, match="no item of task 'rte' is of the split 'train': theirs are none"):
        tasks.recipe("rte").split(read("rte", rows["train"]))
    assert len(tasks.recipe("pythia-ioi").split(read("pythia-ioi", None, n=4)).test) == 4
    with pytest.raises(ValueError, match="the first 20% of the 4 items of task 'bios-gender' are none: it takes 5"):
        tasks.recipe("bios-gender").split(task[:4])


def test_a_task_keeps_its_rule_and_shows_it() -> None:
    task = read("wikidata-qa", [big(f"Item {n} is", "x") for n in range(10)])
    parts = task.split(seed=0)
    kept = [task[:3], task.take([1]), task.filter(lambda item: True), parts.screen, parts.test, task[:2] + task[2:4]]
    assert all(part.rule == task.rule for part in kept) and len(kept[-1]) == 4
    assert repr(task).endswith("of kind 'answer', by Contains(n_tokens=10, whole_words=False))")
    with pytest.raises(ValueError, match=r"is scored by Contains.*and task 'plain' by None"):
        task + Task("plain", task.items)


def test_every_recipe_can_be_had_by_its_name() -> None:
    table = tasks.recipes()
    lines = repr(table).splitlines()
    assert len(lines) == len(table) + 1 == 19 and not any("..." in line for line in lines)
    for name, line in zip(table["name"], lines[1:], strict=True):
        recipe = tasks.recipe(name)
        assert line.startswith(name) and str(recipe.rule) in line and recipe.name == name
        assert recipe.options["prompt"] == recipe.prompt
    assert isinstance(table[["name"]], pd.DataFrame) and "kept" in table.columns


# What is refused


def refused(name: str, data: object, **options: object) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        tasks.recipe(name).task(data, **options)
    return str(error.value)


def test_what_is_wrong_with_the_data_is_said(tmp_path: Path) -> None:
    columns = refused("bios-gender", [{"text": "x", "gender": 0}])
    assert "bios-gender, record 0: there is no column 'hard_text'" in columns and "'text', 'gender'" in columns
    wrong = refused("bios-gender", [bio("x", 0, 2)])
    assert "'gender' is 2: the classes are male, female, or their numbers from 0 to 1." in wrong
    nothing = refused("bios-profession", [bio("x", 13, 0), bio("y", 13, 0)])
    assert "all 2 records were left out (2 × 'profession' is nurse, which has no label)" in nothing
    assert "It keeps: eight professions: journalist" in nothing
    assert "there is no item" in refused("bios-gender", [])
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no")
    assert f"{broken}: this is no parquet file" in refused("bios-gender", broken)
    cut = tmp_path / "cut.jsonl"
    cut.write_text('{"hard_text": "x", "gender": 0}\n{"hard_text": ')
    assert f"{cut}:2" in refused("bios-gender", cut)
    (tmp_path / "notes.txt").write_text("x")
    assert "the suffix '.txt' tells no format" in refused("bios-gender", tmp_path / "notes.txt")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: no file in this folder ends in .json" in refused("bios-gender", empty)
    assert "there is no such file" in refused("bios-gender", tmp_path / "none.jsonl")
    assert "is a folder: each split is one file" in refused("bios-gender", {"dev": empty})


def test_files_of_a_folder_are_read_once_and_of_one_configuration(tmp_path: Path) -> None:
    asked = [{"question": f"Who is {n}?", "answer": f"A {n}"} for n in range(6)]
    both = jsonl(tmp_path / "both" / "train-validation.jsonl", asked)
    assert f"{both}: its path names more than one of the splits train, validation" in refused("hotpot-qa", both.parent)
    for config, rows in (("fullwiki", asked[:2]), ("distractor", asked[2:])):
        for split in ("train", "validation"):
            jsonl(tmp_path / "copy" / config / f"{split}.jsonl", rows)
    task = tasks.recipe("hotpot-qa").task(tmp_path / "copy")
    assert [item.prompt.split()[2] for item in task] == ["0?", "1?", "0?", "1?"]
    for year in ("1", "2"):
        jsonl(tmp_path / "years" / year / "dev.jsonl", ROWS)
    assert "the files of the split 'dev' are in several folders: " in refused("bios-gender", tmp_path / "years")


def test_what_is_wrong_with_the_options_is_said() -> None:
    unknown = refused("bios-gender", ROWS, promt="{text}")
    assert "recipe 'bios-gender' has no option 'promt': it has classes, ending, labels" in unknown
    assert unknown.endswith("Did you mean 'prompt'?")
    assert "takes the splits 'dev', and there is no 'dev': the data have 'test'" in refused(
        "bios-gender", {"test": ROWS}
    )
    assert "which is one table without splits" in refused("bios-gender", ROWS, splits=("test",))
    assert "takes the splits 'test', and there is no 'test'" in refused("bios-gender", {"dev": ROWS}, splits="test")
    assert "splits=(1,): it is of the form of the published ('dev',)" in refused("bios-gender", ROWS, splits=[1])
    assert "ending=None: it is of the form of the published '.'" in refused("bios-gender", ROWS, ending=None)
    assert "n_tokens='5': it is of the form of the published 15" in refused("hotpot-qa", [], n_tokens="5")
    assert "cannot be filled" in refused("bios-gender", ROWS, prompt="{txt}")
    assert "it has {text}" in refused("bios-gender", ROWS, prompt="no field")
    assert "there is no class 'man'" in refused("bios-gender", ROWS, labels={"man": "man", "male": "male"})
    assert "there is no recipe 'bios': there are counterfact" in refused_name("bios")
    assert refused_name("bios-gendr").endswith("Did you mean 'bios-gender'?")


def refused_name(name: str) -> str:
    with pytest.raises(ValueError) as error:
        tasks.recipe(name)
    return str(error.value)


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("scripts are no longer supported")])
def test_without_network_the_error_says_which_file_to_give(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*args: object, **options: object) -> object:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    said = refused("hotpot-qa", None)
    assert "cannot load split 'train' of hotpot_qa (fullwiki), splits train, validation" in said and str(error) in said
    assert "Give a file of hotpot_qa, fullwiki, with the columns question and answer" in said
    assert "they are in no hub. Give a file of ROME's counterfact.json" in refused("counterfact", None)


def test_a_prompt_that_is_too_long_and_labels_that_begin_alike_are_refused_by_scoring() -> None:
    model = bridge_with(wrapped(byte_level()))
    with pytest.raises(scoring.UnscorableItems, match="and the model reads 96"):
        scoring.score(model, read("bios-gender", [bio("word " * 90, 0, 1)]))
    rows = [{"input": "Is it", "target": "Yes"}]
    labels = {"Yes": "xyz one", "No": "xyz two"}
    task = read("web-of-lies", rows, labels=labels, per="first")
    with pytest.raises(ValueError, match=r"' xyz one', which is right, and ' xyz two', which is wrong, begin with the"):
        scoring.score(model, task)
    assert len(scoring.score(model, read("web-of-lies", rows, labels=labels))) == 1


# The real files


STORY, DATA = os.environ.get("SURGERY_STORY_MODEL"), os.environ.get("SURGERY_DATA")


@pytest.fixture(scope="module")
def story() -> object:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(STORY))


@pytest.mark.skipif(not STORY or not DATA, reason="SURGERY_STORY_MODEL and SURGERY_DATA name no model and data")
@pytest.mark.parametrize(
    ("name", "file", "items", "kind"),
    [
        ("counterfact", "known_1000.json", 1209, AnswerItem),
        ("epistemic-reasoning", "epistemic_reasoning_task.json", 2000, ChoiceItem),
        ("truthful-qa", "TruthfulQA.csv", 6007, ChoiceItem),
    ],
)
def test_the_published_files_are_read_and_scored(story: object, name: str, file: str, items: int, kind: type) -> None:
    recipe = tasks.recipe(name)
    task = recipe.task(Path(str(DATA)) / file)
    assert len(task) == items and isinstance(task[0], kind)
    parts = recipe.split(task)
    assert len(parts.validation) == items // 5 and len(parts.test) == items - items // 5
    some = scoring.scorable(story, parts.validation[:60])
    scores = scoring.score(story, some)
    assert repr(scores.encoded.rule) == str(recipe.rule) and 0 <= scores.accuracy <= 1


# The page


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_of_the_recipes() -> None:
    table = tasks.recipes()
    rows = [
        [f"`{value}`" if column in ("name", "rule") else str(value) for column, value in row.items()]
        for row in table.to_dict("records")
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in ([*table.columns], *rows)]
    lines.insert(1, f"|{'---|' * len(table.columns)}")
    assert "\n".join(lines) in PAGE


def test_the_example_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = PAGE.split("```python\n")[1].split("```")[0]
    jsonl(tmp_path / "dev.jsonl", [bio(f"Text {n}.", 0, n % 2) for n in range(10)])
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"model": bridge_with(wrapped(byte_level(640)))}
    exec(compile(block.replace("rhos=(0.1,)", "rhos=(0.1,), progress=False"), "recipes.md", "exec"), names)
    assert len(names["scores"]) == 8 and len(names["result"].test.after) == 8
