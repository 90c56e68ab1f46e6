"""Tasks from published files: CounterFact, BIG-bench, TruthfulQA and BLiMP."""

import random
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from analyses.tasks._json_csv import (
    FilePath,
    Record,
    TaskFileError,
    read_csv,
    read_json_array,
    read_json_lines,
    read_json_object,
    read_text,
)
from analyses.tasks._parsing import Schema, joined, task_of, without_repeats
from analyses.tasks.items import AnswerItem, ChoiceItem, Item
from analyses.tasks.task import Task
from surgery.arguments import one_of, seed, shown

CounterFactPrompt: TypeAlias = Literal["rewrite", "paraphrase", "neighborhood"]
TruthfulQAForm: TypeAlias = Literal["best", "binary", "statements"]

_QUESTION = "Q: {question}\nA:"
_STATEMENT = "Question: {question}\nAnswer: {answer}\nIs this answer true or false? It is"


def from_counterfact(
    path: FilePath,
    *,
    name: str | None = None,
    prompts: Sequence[CounterFactPrompt] = ("rewrite", "paraphrase"),
    separator: str = " ",
) -> Task:
    """The facts of CounterFact, or of the smaller `known_1000.json`, as prompts with one answer each.

    CounterFact's false target becomes the distractor. All prompts of a case, and all of a subject, form a group. The
    metadata hold `subject`, `relation_id`, `case_id` and which prompt it is.

    Args:
        path: the file, in UTF-8.
        name: the task's name; the file's by default.
        prompts: which of CounterFact's prompts to take. The default is LASER's: a statement and its paraphrases.
        separator: what goes between a prompt and its answer.

    A record that makes no item goes to `unscorable`.

    Source: Meng et al., "Locating and Editing Factual Associations in GPT" (arXiv:2202.05262).

    Raises:
        TaskFileError: if the file is not of either form; it names file and line.
        ValueError: if there are no such prompts.

    >>> import json, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "known.json"
    >>> fact = {"prompt": "Big Ben is in", "attribute": "London", "subject": "Big Ben"}
    >>> _ = path.write_text(json.dumps([fact]))
    >>> tasks.from_counterfact(path)[0].answers
    (' London',)
    """
    kinds = () if isinstance(prompts, str) else tuple(dict.fromkeys(prompts))
    if not kinds or set(kinds) - set(get_args(CounterFactPrompt)):
        raise ValueError(f"prompts={prompts!r}: CounterFact has {get_args(CounterFactPrompt)}. Give a list of them.")
    return task_of(
        read_json_array(path),
        lambda record: facts_of(record, kinds, separator),
        name=name or Path(path).stem,
        metadata={"source": str(path)},
    )


def from_bigbench(
    path: FilePath, *, name: str | None = None, separator: str = " ", shuffle_seed: int | None = 0
) -> Task:
    """The task in a BIG-bench `task.json`: a choice where the examples score their targets, else an answer.

    The prompt is the file's own: task prefix, input prefix, input, the choices if the file wants them in the prompt,
    and output prefix. The choices of every example are shuffled, in the prompt and as labels alike: in some files the
    right one always comes first. BIG-bench's own code does so too, with other random numbers. An example that makes no
    item, such as one that scores all its targets alike, goes to `unscorable`.

    Args:
        path: the file, in UTF-8.
        name: the task's name; the one in the file by default.
        separator: what goes between the prompt and a target, unless the prompt ends in white space.
        shuffle_seed: of the order of the choices; None leaves them as in the file.

    Source: Srivastava et al., "Beyond the Imitation Game" (arXiv:2206.04615) and its JSON task format.

    Raises:
        TaskFileError: if the file is not of this form; it names file and line.

    >>> import json, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "task.json"
    >>> example = {"input": "Is fire hot?", "target_scores": {"yes": 1, "no": 0}}
    >>> _ = path.write_text(json.dumps({"name": "fire", "examples": [example]}))
    >>> tasks.from_bigbench(path)[0].right
    ('yes',)
    """
    if shuffle_seed is not None:
        seed(shuffle_seed, "shuffle_seed")
    header, records = read_json_object(path, "examples")
    return task_of(
        records,
        lambda record: [_bigbench_item(header, record, separator, shuffle_seed)],
        name=name or str(header.get("name", Path(path).stem)),
        metadata={"source": str(path), "description": header.get("description", ""), "shuffle_seed": shuffle_seed},
    )


def from_truthfulqa(
    path: FilePath,
    *,
    form: TruthfulQAForm = "best",
    name: str | None = None,
    template: str | None = None,
    separator: str = " ",
) -> Task:
    """The questions of TruthfulQA's CSV as choices.

    Args:
        path: the file, in UTF-8.
        form: `best`: the best answer against all incorrect ones; `binary`: the best against the best incorrect one;
            `statements`: for each answer, correct or not, whether it is true or false, as LASER asks.
        name: the task's name; the file's by default.
        template: the prompt, with `{question}` and, for statements, `{answer}` in it.
        separator: what goes between a prompt and a label.

    A question goes to `unscorable` if it has no incorrect answer, or one that is listed as correct too. Statements
    about the same question form a group.

    Source: Lin, Hilton, Evans, "TruthfulQA" (arXiv:2109.07958); LASER (arXiv:2312.13558).

    Raises:
        TaskFileError: if the file lacks a column; it names file and line.
        ValueError: if there is no such form, or the template lacks a field.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "qa.csv"
    >>> columns = "Question,Best Answer,Correct Answers,Incorrect Answers"
    >>> _ = path.write_text(f"{columns}\\nAre seeds bad?,No,No; Not at all,Yes\\n")
    >>> tasks.from_truthfulqa(path)[0].labels
    (' No', ' Yes')
    """
    one_of(form, "form", get_args(TruthfulQAForm))
    if template is None:
        template = _STATEMENT if form == "statements" else _QUESTION
    check_template(template, ["{question}", "{answer}"] if form == "statements" else ["{question}"])
    if read_text(path).lstrip()[:1] in ("[", "{"):
        raise TaskFileError(
            f"{path}:1",
            "this is a JSON file, such as TruthfulQA's mc_task.json: from_truthfulqa reads its table TruthfulQA.csv. "
            "Give that one, or make records of this one and read them with tasks.from_records.",
        )
    return task_of(
        read_csv(path),
        lambda record: _question(record, form, template, separator),
        name=name or Path(path).stem,
        metadata={"source": str(path), "form": form},
    )


def from_blimp(path: FilePath, *, name: str | None = None) -> Task:
    """The minimal pairs of a BLiMP JSON-lines file, or of all such files in a folder.

    Pairs of two equal sentences, of which the published files have seven, go to `unscorable`.

    Source: Warstadt et al., "BLiMP" (arXiv:1912.00582).

    Raises:
        TaskFileError: if no line of a file is a pair; it names file and line.
        FileNotFoundError: if the folder holds no JSON-lines file.

    >>> import json, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "agreement.jsonl"
    >>> _ = path.write_text(json.dumps({"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps."}))
    >>> tasks.from_blimp(path)[0].wrong
    ('Cats sleeps.',)
    """
    paths: Sequence[FilePath] = sorted(Path(path).glob("*.jsonl")) if Path(path).is_dir() else [path]
    if not paths:
        raise FileNotFoundError(
            f"{path}: no *.jsonl in this folder: BLiMP has one such file a phenomenon. Give its `data` folder."
        )
    name, metadata = name or Path(path).stem, {"source": str(path)}
    files = [task_of(read_json_lines(file), Schema().pair, name=name, metadata=metadata) for file in paths]
    items, unscorable = [item for file in files for item in file], [odd for file in files for odd in file.unscorable]
    return Task(name, tuple(items), metadata, tuple(unscorable))


def check_template(template: object, fields: Sequence[str]) -> None:
    """Refuse a template without these fields, or with others.

    Raises:
        ValueError: if it is one.
    """
    if not isinstance(template, str):
        raise ValueError(f"template={shown(template)}: it is a text with {' and '.join(fields)}. Give one.")
    try:
        template.format(**{field[1:-1]: "" for field in fields})
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        given = f"template={template!r} cannot be filled ({type(error).__name__}: {error})"
    else:
        if all(field in template for field in fields):
            return
        given = f"template={template!r}"
    raise ValueError(f"{given}: it has {' and '.join(fields)}, and no other field. Double every other brace.")


def _string(record: Record, *path: str) -> str:
    """The string at the end of a path of field names."""
    value: object = record.fields
    # Level by level, so that the message names the level at which the record differs from the format.
    for depth, key in enumerate(path):
        if not isinstance(value, Mapping) or key not in value:
            fields_there = ", ".join(map(repr, value)) if isinstance(value, Mapping) else repr(value)
            raise record.error(
                f"there is no {'.'.join(path[: depth + 1])!r}",
                f"this format has it, and the record has {fields_there}",
                "Is the file of this format?",
            )
        value = value[key]
    if not isinstance(value, str) or not value:
        raise record.error(f"{'.'.join(path)!r} is {value!r}", "it is a string that is not empty", "Correct it")
    return value


def _strings(record: Record, key: str) -> list[str]:
    value = record.fields.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
        raise record.error(f"{key!r} is {value!r}", "it is a list of strings that are not empty", "Correct it")
    return value


def facts_of(record: Record, prompts: Sequence[CounterFactPrompt], separator: str) -> Iterator[AnswerItem]:
    """The items of a record of CounterFact, or of known_1000.json.

    Raises:
        ItemError: if the record is of neither form.
    """
    fields = record.fields
    # known_1000.json has the facts of CounterFact in flat records, without paraphrases.
    if "requested_rewrite" not in fields:
        yield _known_fact(record, separator)
        return
    subject = _string(record, "requested_rewrite", "subject")
    pattern = _string(record, "requested_rewrite", "prompt")
    if "{}" not in pattern:
        raise record.error(f"the prompt is {pattern!r}", "it holds {} where the subject belongs", "Correct it")
    answer = _string(record, "requested_rewrite", "target_true", "str")
    rival = _string(record, "requested_rewrite", "target_new", "str")
    rewrite = fields["requested_rewrite"]
    relation = rewrite.get("relation_id") if isinstance(rewrite, Mapping) else None
    texts: dict[CounterFactPrompt, list[str]] = {
        "rewrite": [pattern.replace("{}", subject)],
        "paraphrase": _strings(record, "paraphrase_prompts"),
        "neighborhood": _strings(record, "neighborhood_prompts"),
    }
    case = fields.get("case_id", record.source)
    for form in prompts:
        for text in texts[form]:
            yield AnswerItem(
                text,
                (joined(text, answer, separator),),
                (joined(text, rival, separator),),
                groups=(f"case {case}", f"subject {subject}"),
                metadata={"case_id": case, "subject": subject, "relation_id": relation, "prompt_kind": form},
            )


def _known_fact(record: Record, separator: str) -> AnswerItem:
    prompt, answer, subject = (_string(record, name) for name in ("prompt", "attribute", "subject"))
    metadata = {name: value for name, value in record.fields.items() if name not in ("prompt", "attribute")}
    return AnswerItem(prompt, (joined(prompt, answer, separator),), groups=(f"subject {subject}",), metadata=metadata)


def _bigbench_item(header: Mapping[str, object], record: Record, separator: str, shuffle_seed: int | None) -> Item:
    fields = record.fields
    scores = fields.get("target_scores")
    metadata = {name: value for name, value in fields.items() if name not in ("input", "target", "target_scores")}
    if scores is None:
        prompt = bigbench_prompt(header, record, ())
        value = fields.get("target")
        targets = _strings(record, "target") if isinstance(value, list) else [_string(record, "target")]
        answers = tuple(dict.fromkeys(joined(prompt, target, separator) for target in targets))
        return AnswerItem(prompt, answers, metadata=metadata)
    if not isinstance(scores, Mapping) or not all(isinstance(s, int | float) and isfinite(s) for s in scores.values()):
        raise record.error(f"'target_scores' is {scores!r}", "it maps each label to a number", "Correct it")
    order = list(scores)
    if shuffle_seed is not None:
        # From the labels in alphabetical order, so that their order in the file plays no part.
        order = random.Random(f"{shuffle_seed} {fields.get('input')}").sample(sorted(scores), len(scores))
    # Several targets may share the highest score: all of these are right.
    best = max(scores.values(), default=0)
    right = [at for at, label in enumerate(order) if scores[label] == best]
    if len(right) == len(order):
        raise record.error(f"the labels score {scores!r}", "none of them is right, since all are alike", "Leave it out")
    prompt = bigbench_prompt(header, record, order)
    labels, correct = without_repeats(record, [joined(prompt, label, separator) for label in order], right)
    return ChoiceItem(prompt, labels, correct, metadata=metadata)


def bigbench_prompt(header: Mapping[str, object], record: Record, labels: Sequence[str]) -> str:
    """The prompt of an example, as its file's header puts it together, with these labels as its choices.

    Raises:
        ItemError: if the example has no input.
    """
    # The format's own defaults, where a task sets none.
    defaults = {
        "task_prefix": "",
        "example_input_prefix": "\nQ: ",
        "example_output_prefix": "\nA: ",
        "choice_prefix": "\n  choice: ",
    }
    task, before, after, choice = (str(header.get(name, default)) for name, default in defaults.items())
    listed = labels if header.get("append_choices_to_input", True) else ()
    choices = "".join(f"{choice}{label}" for label in listed)
    return f"{task}{before}{_string(record, 'input')}{choices}{after}"


def _question(record: Record, form: TruthfulQAForm, template: str, separator: str) -> list[Item]:
    question, best = (_string(record, name).strip() for name in ("Question", "Best Answer"))
    if form == "binary":
        right, wrong = [best], [_string(record, "Best Incorrect Answer").strip()]
        _check_answers(record, right, wrong)
    else:
        right, wrong = true_and_false(record)
    metadata = {"type": record.fields.get("Type"), "category": record.fields.get("Category")}

    def choice(labels: Sequence[str], correct: int, groups: tuple[str, ...] = (), **fields: str) -> ChoiceItem:
        prompt = template.format(question=question, **fields)
        texts = tuple(joined(prompt, label, separator) for label in labels)
        return ChoiceItem(prompt, texts, (correct,), groups=groups, metadata=metadata)

    if form != "statements":
        return [choice([best, *wrong], 0)]
    group = (f"question {question}",)
    answers = [(answer, 0) for answer in right] + [(answer, 1) for answer in wrong]
    return [choice(["true", "false"], truth, group, answer=answer) for answer, truth in answers]


def true_and_false(record: Record) -> tuple[list[str], list[str]]:
    """The correct answers of a row of TruthfulQA.csv, the best one first, and the incorrect ones.

    Raises:
        ItemError: if there are none of one of these, or the same answer is among both.
    """
    right = list(dict.fromkeys([_string(record, "Best Answer").strip(), *_answers(record, "Correct Answers")]))
    wrong = _answers(record, "Incorrect Answers")
    _check_answers(record, right, wrong)
    return right, wrong


def _check_answers(record: Record, right: Sequence[str], wrong: Sequence[str]) -> None:
    both = next((answer for answer in wrong if answer in right), None)
    if both is not None or not wrong:
        given = "there is no incorrect answer" if both is None else f"{both!r} is listed as correct and as incorrect"
        raise record.error(given, "a question has both, and they differ", "Correct it, or leave it out")


def _answers(record: Record, column: str) -> list[str]:
    parts = (part.strip() for part in _string(record, column).split(";"))
    return list(dict.fromkeys(part for part in parts if part))
