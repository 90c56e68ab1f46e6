"""Tasks from published files: CounterFact, BIG-bench, TruthfulQA and BLiMP."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from analyses.tasks.files import FilePath, Record, read_csv, read_json_array, read_json_lines, read_json_object
from analyses.tasks.items import AnswerItem, ChoiceItem, Item, Unscorable
from analyses.tasks.records import Schema, build, file_task, joined
from analyses.tasks.task import Task

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
        name: what to call the task; the file's name by default.
        prompts: which of CounterFact's prompts to take. The default is LASER's: a statement and its paraphrases.
        separator: what goes between a prompt and its answer.

    Source: Meng et al., "Locating and Editing Factual Associations in GPT" (arXiv:2202.05262).

    Raises:
        TaskFileError: if the file is not of either form; it names file and line.
    """
    records = read_json_array(path)
    items = (item for record in records for item in _facts(record, prompts, separator))
    return file_task(path, name, items)


def from_bigbench(path: FilePath, *, name: str | None = None, separator: str = " ") -> Task:
    """The task in a BIG-bench `task.json`: a choice where the examples score their targets, else an answer.

    The prompt is the file's own: task prefix, input prefix, input, the choices if the file wants them in the prompt,
    and output prefix. An example that scores all its targets alike has no right label: it goes to `unscorable`.

    Args:
        path: the file, in UTF-8.
        name: what to call the task; the name in the file by default.
        separator: what goes between the prompt and a target, unless the prompt ends in white space.

    Source: Srivastava et al., "Beyond the Imitation Game" (arXiv:2206.04615) and its JSON task format.

    Raises:
        TaskFileError: if the file is not of this form; it names file and line.
    """
    header, records = read_json_object(path, "examples")
    unscorable: list[Unscorable] = []
    items = _sift(records, lambda record: _bigbench_item(header, record, separator), unscorable)
    metadata = {"source": str(path), "description": header.get("description", "")}
    return build(name or str(header.get("name", Path(path).stem)), items, metadata, unscorable)


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
        name: what to call the task; the file's name by default.
        template: the prompt, with `{question}` and, for statements, `{answer}` in it.
        separator: what goes between a prompt and a label.

    A question without an incorrect answer goes to `unscorable`. Statements about the same question form a group.

    Source: Lin, Hilton, Evans, "TruthfulQA" (arXiv:2109.07958); LASER (arXiv:2312.13558).

    Raises:
        TaskFileError: if the file lacks a column; it names file and line.
    """
    default = _STATEMENT if form == "statements" else _QUESTION
    unscorable: list[Unscorable] = []

    items = _sift(read_csv(path), lambda record: _question(record, form, template or default, separator), unscorable)
    return build(name or Path(path).stem, items, {"source": str(path), "form": form}, unscorable)


def from_blimp(path: FilePath, *, name: str | None = None) -> Task:
    """The minimal pairs of a BLiMP JSON-lines file, or of all such files in a folder.

    Source: Warstadt et al., "BLiMP" (arXiv:1912.00582).

    Raises:
        TaskFileError: if a line lacks a sentence; it names file and line.
        FileNotFoundError: if the folder holds no JSON-lines file.
    """
    paths: Sequence[FilePath] = sorted(Path(path).glob("*.jsonl")) if Path(path).is_dir() else [path]
    if not paths:
        raise FileNotFoundError(
            f"{path}: no *.jsonl in this folder: BLiMP has one such file a phenomenon. Give its `data` folder."
        )
    schema = Schema()
    return file_task(
        path, name, (schema.item(record) for file in paths for record in map(_sentences, read_json_lines(file)))
    )


def _sift(
    records: Iterable[Record], read: Callable[[Record], list[Item] | str], unscorable: list[Unscorable]
) -> list[Item]:
    """The items of the records; where there is a reason instead, it is noted."""
    items: list[Item] = []
    for record in records:
        match read(record):
            case str(reason):
                unscorable.append(Unscorable(record.where, reason))
            case found:
                items.extend(found)
    return items


def _string(record: Record, fields: Mapping[str, object], *path: str) -> str:
    """The string at the end of a path of field names."""
    value: object = fields
    for depth, key in enumerate(path):
        if not isinstance(value, Mapping) or key not in value:
            found = ", ".join(map(repr, value)) if isinstance(value, Mapping) else repr(value)
            raise record.error(
                f"there is no {'.'.join(path[: depth + 1])!r}",
                f"this format has it, and the record has {found}",
                "Is the file of this format?",
            )
        value = value[key]
    if not isinstance(value, str) or not value:
        raise record.error(f"{'.'.join(path)!r} is {value!r}", "it is a string that is not empty", "Correct it")
    return value


def _strings(record: Record, fields: Mapping[str, object], key: str) -> list[str]:
    value = fields.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
        raise record.error(f"{key!r} is {value!r}", "it is a list of strings that are not empty", "Correct it")
    return value


def _facts(record: Record, prompts: Sequence[CounterFactPrompt], separator: str) -> Iterator[AnswerItem]:
    fields = record.fields
    if "requested_rewrite" not in fields:
        yield _known_fact(record, separator)
        return
    subject = _string(record, fields, "requested_rewrite", "subject")
    pattern = _string(record, fields, "requested_rewrite", "prompt")
    answer = _string(record, fields, "requested_rewrite", "target_true", "str")
    rival = _string(record, fields, "requested_rewrite", "target_new", "str")
    rewrite = fields["requested_rewrite"]
    assert isinstance(rewrite, Mapping), "a string was found in it"
    texts: dict[CounterFactPrompt, list[str]] = {
        "rewrite": [pattern.replace("{}", subject)],
        "paraphrase": _strings(record, fields, "paraphrase_prompts"),
        "neighborhood": _strings(record, fields, "neighborhood_prompts"),
    }
    case = fields.get("case_id", record.where)
    for form in prompts:
        for text in texts[form]:
            yield AnswerItem(
                prompt=text,
                answers=(joined(text, answer, separator),),
                distractors=(joined(text, rival, separator),),
                groups=(f"case {case}", f"subject {subject}"),
                metadata={
                    "case_id": case,
                    "subject": subject,
                    "relation_id": rewrite.get("relation_id"),
                    "prompt_kind": form,
                },
                source=record.where,
            )


def _known_fact(record: Record, separator: str) -> AnswerItem:
    fields = record.fields
    prompt, answer, subject = (_string(record, fields, name) for name in ("prompt", "attribute", "subject"))
    return AnswerItem(
        prompt=prompt,
        answers=(joined(prompt, answer, separator),),
        groups=(f"subject {subject}",),
        metadata={name: value for name, value in fields.items() if name not in ("prompt", "attribute")},
        source=record.where,
    )


def _bigbench_item(header: Mapping[str, object], record: Record, separator: str) -> list[Item] | str:
    fields = record.fields
    scores = fields.get("target_scores")
    metadata = {name: value for name, value in fields.items() if name not in ("input", "target", "target_scores")}
    if scores is None:
        prompt = _bigbench_prompt(header, record, ())
        value = fields.get("target")
        targets = _strings(record, fields, "target") if isinstance(value, list) else [_string(record, fields, "target")]
        answers = tuple(dict.fromkeys(joined(prompt, target, separator) for target in targets))
        return [AnswerItem(prompt, answers, metadata=metadata, source=record.where)]
    if not isinstance(scores, Mapping) or not all(isinstance(score, int | float) for score in scores.values()):
        raise record.error(f"'target_scores' is {scores!r}", "it maps each label to a number", "Correct it")
    best = max(scores.values(), default=0)
    correct = tuple(index for index, score in enumerate(scores.values()) if score == best)
    if len(correct) == len(scores):
        return f"all {len(scores)} labels have the same score, so that none is right"
    prompt = _bigbench_prompt(header, record, tuple(scores))
    labels = tuple(joined(prompt, label, separator) for label in scores)
    return [ChoiceItem(prompt, labels, correct, metadata=metadata, source=record.where)]


def _bigbench_prompt(header: Mapping[str, object], record: Record, labels: tuple[str, ...]) -> str:
    # The format's own defaults, where a task sets none.
    defaults = {
        "task_prefix": "",
        "example_input_prefix": "\nQ: ",
        "example_output_prefix": "\nA: ",
        "choice_prefix": "\n  choice: ",
    }
    parts = {name: str(header.get(name, default)) for name, default in defaults.items()}
    shown = labels if header.get("append_choices_to_input", True) else ()
    choices = "".join(f"{parts['choice_prefix']}{label}" for label in shown)
    question = _string(record, record.fields, "input")
    return f"{parts['task_prefix']}{parts['example_input_prefix']}{question}{choices}{parts['example_output_prefix']}"


def _question(record: Record, form: TruthfulQAForm, template: str, separator: str) -> list[Item] | str:
    question, best = (_string(record, record.fields, name) for name in ("Question", "Best Answer"))
    if form == "binary":
        wrong = [_string(record, record.fields, "Best Incorrect Answer")]
    else:
        wrong = _answers(record, "Incorrect Answers")
    wrong = [answer for answer in wrong if answer != best]
    if not wrong:
        return "the question has no incorrect answer that differs from the best one"
    if form == "statements":
        return _statements(record, question, best, wrong, template, separator)
    prompt = template.format(question=question)
    labels = tuple(joined(prompt, answer, separator) for answer in [best, *wrong])
    return [ChoiceItem(prompt, labels, (0,), metadata=_about(record), source=record.where)]


def _statements(
    record: Record, question: str, best: str, wrong: list[str], template: str, separator: str
) -> list[Item]:
    right = list(dict.fromkeys([best, *_answers(record, "Correct Answers")]))
    items: list[Item] = []
    for answer in dict.fromkeys([*right, *wrong]):
        prompt = template.format(question=question, answer=answer)
        labels = tuple(joined(prompt, label, separator) for label in ("true", "false"))
        truth = 0 if answer in right else 1
        group = (f"question {question}",)
        items.append(ChoiceItem(prompt, labels, (truth,), groups=group, metadata=_about(record), source=record.where))
    return items


def _answers(record: Record, column: str) -> list[str]:
    parts = (part.strip() for part in _string(record, record.fields, column).split(";"))
    return list(dict.fromkeys(part for part in parts if part))


def _about(record: Record) -> dict[str, object]:
    return {"type": record.fields.get("Type"), "category": record.fields.get("Category")}


def _sentences(record: Record) -> Record:
    for name in ("sentence_good", "sentence_bad"):
        _string(record, record.fields, name)
    return record
