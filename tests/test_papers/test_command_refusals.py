"""What the papers' commands refuse, in a sentence that says what to do; and what their estimates count."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers as hf
from tiny_tokenizers import byte_level, wrapped

from analyses import tasks
from analyses.laser.candidates import MLP, candidates
from analyses.papers import main
from analyses.papers._commands import parsed
from analyses.papers._eigenpruning import items_asked
from analyses.papers._estimates import Estimate, Measured, Work, decompositions, measure, recordings, spoken
from analyses.papers._items import divided, file_hash
from analyses.papers._laser import passes
from analyses.tasks import AnswerItem, Splits, Task
from hooks import Site, match_each
from hooks.loading import load
from surgery import KeepTop


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small GPT-2, whose matrices of layers 0 and 1 are 16 × 32 and 32 × 16, and with files."""
    folder, tokenizer = tmp_path_factory.mktemp("refusals"), wrapped(byte_level(300))
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_inner": 32, "n_layer": 2, "n_head": 2, "n_positions": 48, "vocab_size": len(tokenizer)}
    hf.GPT2LMHeadModel(hf.GPT2Config(**sizes)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "training").mkdir()
    (folder / "training" / "step0").symlink_to(folder / "model", target_is_directory=True)
    (folder / "empty").mkdir()
    facts = [{"prompt": f"Fact {n} is", "answer": "true"} for n in range(10)]
    choices = [{"prompt": f"Is {n} two?", "labels": [" one", " two"], "correct": [0]} for n in range(10)]
    pairs = [{"good": f"Cats sleep {n}.", "bad": f"Cats sleeps {n}."} for n in range(10)]
    long = [*facts[:9], {"prompt": "word " * 60, "answer": "true"}]
    files = {"facts": facts, "choices": choices, "pairs": pairs, "long": long, "other": [{"text": "a"}], "none": []}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def refusal(home: Path, command: str, **changed: object) -> str:
    """What a command tells that is expected to fail, and not to write anything."""
    given = {"model": home / "model", "task": home / "facts.jsonl", "output": home / "out", **changed}
    told: list[str] = []
    arguments = [text for name, value in given.items() if value is not None
                 for text in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))]  # fmt: skip
    assert main([command, *arguments, "--quiet"], say=told.append) == 1
    assert not (home / "out").exists()
    return told[-1]


CASES = {
    "no such task": ({"task": "bios-gendre"}, "there is no task 'bios-gendre'; near it: bios-gender"),
    "no such file": ({"task": "nowhere.jsonl"}, "there is no file 'nowhere.jsonl': give the file that holds the items"),
    "no such data": ({"task": "counterfact", "data": "nowhere.json"}, "there is no file 'nowhere.json'"),
    "missing columns": ({"task": "{home}/other.jsonl"}, "other.jsonl:1"),
    "empty task": ({"task": "{home}/none.jsonl"}, "none.jsonl"),
    "folder without config": ({"model": "{home}/empty"}, "holds no config.json: a model's folder is what"),
    "no such folder": ({"model": "./nowhere"}, "there is no folder './nowhere'"),
    "a file as the model": ({"model": "{home}/facts.jsonl"}, "is a file: give the folder that holds the model"),
    "hub without network": ({"model": "nobody/nothing-1b"}, "HF_HUB_OFFLINE"),
    "no such device": ({"device": "cuda:99"}, "--device cuda:99 cannot be used"),
    "too long prompts": ({"task": "{home}/long.jsonl"}, "leave them out"),
    "no such matrix": ({"sites": "blocks.7.mlp.W_out"}, "this model has 2 layers"),
    "an option too many": ({"option": "a=1"}, "goes with a recipe: leave it out"),
    "no such option": ({"task": "int-sum", "option": "kind=3"}, "has no option 'kind'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_a_sentence(home: Path, case: str) -> None:
    changed, expected = CASES[case]
    given = {name: value.format(home=home) for name, value in changed.items()}
    told = refusal(home, "laser", **given)
    assert told.startswith("error: ") and expected in told
    assert told.rstrip().endswith((".", "?", ")"))


@pytest.mark.parametrize(
    ("command", "task", "kind"), [("truncation", "choices", "choice"), ("eigenpruning", "pairs", "pair")]
)
def test_a_task_of_the_wrong_kind_is_refused(home: Path, command: str, task: str, kind: str) -> None:
    told = refusal(home, command, task=home / f"{task}.jsonl")
    assert f"holds items of kind {kind!r}, and {command} is for the kinds" in told


def test_a_training_is_refused_where_there_is_none(home: Path) -> None:
    told = refusal(home, "truncation", model=home, steps="all")
    assert "holds no checkpoint: each is a Hugging Face folder of the name 'step{step}'" in told
    assert "--model" not in told and "step7" in refusal(home, "truncation", model=home / "training", steps="7")
    assert "'main': it says where the number stands" in refusal(
        home, "truncation", model=home / "training", steps="0", revision="main"
    )


def test_over_a_training_what_is_generated_is_not_judged(home: Path) -> None:
    rows = home / "gsm8k.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n} x 4 =", "answer": f"#### {4 * n}"}) + "\n" for n in range(5)))
    told = refusal(
        home, "truncation", model=home / "training", steps="all", task="gsm8k", data=rows, option="n_examples=0"
    )
    assert "is judged by what is generated, and over a training the probabilities" in told


def test_a_first_token_that_tells_nothing_is_refused_with_the_option_that_helps(home: Path) -> None:
    digits = home / "digits.jsonl"
    digits.write_text("".join(json.dumps({"prompt": f"{n} x 4 =", "answer": f"{60 + n}"}) + "\n" for n in range(10)))
    told = refusal(home, "eigenpruning", task=digits)
    assert "begins with a token of white space" in told and told.endswith("On the command line: --per sequence.")
    # Choices are judged by all of their tokens, but components are scored by the first.
    labels = home / "labels.jsonl"
    rows = [{"prompt": f"Is {n} two?", "labels": [" two plus", " two and"], "correct": [n % 2]} for n in range(10)]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = refusal(home, "eigenpruning", task=labels)
    assert "begin with the same tokens" in told and told.endswith("On the command line: --per sequence.")


def test_a_folder_of_something_else_is_refused_and_kept(home: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    told: list[str] = []
    arguments = ["laser", "--model", str(home / "model"), "--task", str(home / "facts.jsonl")]
    assert main([*arguments, "--output", str(tmp_path)], say=told.append) == 1
    assert "holds files and no run.json, so it is not of a run" in told[-1]
    assert main([*arguments, "--output", str(tmp_path / "thesis.tex")], say=told.append) == 1
    assert "is a file: give a folder" in told[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dtype", "float8"], "invalid choice: 'float8'"),
        (["--limit", "0"], "'0' is not a whole number, 1 or more"),
        (["--rhos", "1.5"], "'1.5' is not a fraction, from 0 to 1"),
        (["--seed", "-1"], "'-1' is not a whole number"),
        (["--option", "x"], "'x' is not of the form NAME=VALUE"),
        (["--strat", "screened"], "unrecognized arguments"),
        (["truncation", "--steps", "0;512"], "'0;512' is not 'all', or whole numbers with commas between them"),
        (["eigenpruning", "--score", "ablation", "--corrupt", "shuffle"], "--corrupt shuffle goes with the paper's"),
        (["eigenpruning", "--score", "fisher"], "invalid choice: 'fisher'"),
    ],
)
def test_what_cannot_be_understood_is_told_before_anything_is_loaded(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *more = ["laser", *arguments] if arguments[0].startswith("-") else arguments
    with pytest.raises(SystemExit) as stopped:
        main([command, "--model", "x", "--task", "y", *more])
    assert stopped.value.code == 2 and expected in capsys.readouterr().err


def test_an_interrupt_before_anything_is_finished_leaves_no_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("analyses.papers._running.loaded", interrupt)
    told: list[str] = []
    arguments = [
        "laser",
        "--model",
        str(home / "model"),
        "--task",
        str(home / "facts.jsonl"),
        "--output",
        str(home / "out"),
    ]
    assert main(arguments, say=told.append) == 130
    assert "Nothing is lost; the same command goes on from there" in told[-1]
    assert not (home / "out").exists()


def test_the_first_fifth_chooses_and_what_stood_there_does_not_report() -> None:
    items = tuple(AnswerItem(f"a {n}", (" b",)) for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 0))
    parts, said = divided(Task("t", items), "published", screen=False, seed=0)
    assert [item.context for item in parts.validation.items] == ["a 0", "a 1"]
    assert [item.context for item in parts.test.items] == [f"a {n}" for n in range(2, 9)]
    assert "the first 2 of 10 items choose, the other 7 report" in said
    assert "1 item of the rest stood among the first too and were left out" in said


def test_the_hash_is_the_files_own(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"abc")
    assert file_hash(tmp_path / "data") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_estimate_of_a_search_follows_from_the_counts(home: Path) -> None:
    model = load(str(home / "model"))
    tried = candidates(model, MLP, (0.5, 0.1), [KeepTop])  # 2 layers × 2 matrices × 2 ρ
    items = tuple(AnswerItem(f"a {n}", (" b",)) for n in range(30))
    parts = Splits(Task("t", ()), Task("t", items[:10]), Task("t", items[10:]))
    measured = Measured(0.5, (1.0, Site.parse("blocks.0.mlp.W_in")), 4.0, 1.0)
    work = passes(model, parts, tried, measured, draws=2, composing=True)
    # A trial of layer 0 runs both blocks, one of layer 1 half of them: 4 × 1 + 4 × ½ = 6 passes, and the unedited one.
    assert [one.times for one in work] == [10 * 7, 2 * 20, 20 * 8, 10 * 7, 20 * 8]
    assert sum(one.seconds for one in work) == 0.5 * (70 + 40 + 160 + 70 + 160)
    sites = match_each(model, MLP)
    assert [(one.times, one.seconds_each) for one in decompositions(model, sites, measured)] == [(2, 1.0), (2, 1.0)]
    # Of a matrix with twice the elements and the same rank, twice the time.
    (larger,) = decompositions(model, match_each(model, "blocks.*.attn.W_Q"), measured)
    assert larger.seconds_each == pytest.approx(16 * 16 * 16 / (16 * 32 * 16))


def test_the_estimate_of_eigenpruning_follows_from_the_counts() -> None:
    how = {"draws": 3, "passes": 4}
    assert sum(items_asked(10, 5, **how, finetune=False).values()) == 4 * 10 + 7 * 5
    assert sum(items_asked(10, 5, **how, finetune=True).values()) == 40 + 35 + 3 * 10 + 40 + 7 * 5


def test_what_is_measured_is_divided_by_the_items(home: Path) -> None:
    model, ticks = load(str(home / "model")), iter(range(100))
    task = Task("t", tuple(AnswerItem(f"a {n}", (" b",)) for n in range(8)))
    measured = measure(
        model, task, match_each(model, MLP), prepend_bos=None, batch_size=None, clock=lambda: float(next(ticks))
    )
    assert measured.an_item == pytest.approx(1 / 8)  # a second by this clock, for eight items
    assert measured.a_decomposition is not None and measured.a_decomposition[0] == 1.0


def test_an_estimate_is_the_sum_of_its_lines() -> None:
    estimate = Estimate(
        [Work("trials", 100, 0.5), Work("decompositions", 4, 10.0)], {"weights": 2**20, "a pass": 2**19}
    )
    assert (estimate.seconds, estimate.bytes) == (90.0, 2**20 + 2**19)
    assert "about 1.5 min, 1.5 MiB of memory" in str(estimate)
    assert [spoken(s) for s in (3e-5, 0.02, 3.0, 75.0, 7200.0, 2e6)] == [
        "30 µs",
        "20 ms",
        "3 s",
        "1.2 min",
        "2 h",
        "23 d",
    ]


def test_the_settings_are_what_was_typed() -> None:
    understood = parsed(
        ["laser", "--model", "EleutherAI/gpt-j-6b", "--task", "bios-gender", "--data", "dev=a.jsonl", "--option", "n=3",
         "--option", "text=hard text", "--no-prepend-bos", "--dtype", "float16", "--compose"]
    )  # fmt: skip
    assert understood is not None
    settings, method = understood
    assert settings.options == {"n": 3, "text": "hard text"} and settings.prepend_bos is False
    assert str(settings.output) == "results/laser-gpt-j-6b-bios-gender"
    assert (method.compose, method.rhos) == (True, (0.9, 0.8, 0.6, 0.2, 0.1, 0.05, 0.01))  # type: ignore[attr-defined]
    assert parsed(["tasks"]) is None


PAGE = Path(__file__).resolve().parents[2] / "docs" / "papers.md"
COMMANDS = re.findall(r"python -m analyses\.papers [^`\n|]+", PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_on_the_page_can_be_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shlex.split(command)[3:]
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stopped:
            parsed(arguments)
        assert stopped.value.code == 0 and arguments[0] in capsys.readouterr().out
        return
    understood = parsed(arguments)
    if understood is None:
        assert arguments == ["tasks"]
        return
    task = understood[0].task
    assert task in set(tasks.recipes()["name"]) or task.endswith(".jsonl")


def test_the_page_has_commands() -> None:
    assert {command.split()[3] for command in COMMANDS} == {"laser", "eigenpruning", "truncation", "tasks"}
    assert len(COMMANDS) >= 12


def test_recordings_are_counted_up_to_their_budget(home: Path) -> None:
    model, measured = load(str(home / "model")), Measured(0.5, None, 4.0, 1.0)
    # 10 items of 4 tokens, 2 layers with 2 residual streams of 16 numbers of 4 bytes each.
    assert recordings(model, measured, 10, budget=2**30) == 10 * 4 * 2 * 2 * 16 * 4
    assert recordings(model, measured, 10, budget=1000) == 1000
