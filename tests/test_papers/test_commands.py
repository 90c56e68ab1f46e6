"""The papers' commands, from a folder with a model and a file with items to the report; and what they refuse."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers as hf
from tiny_tokenizers import byte_level, wrapped

import surgery
from analyses import attribution, eigenpruning, laser, scoring, tasks, truncation
from analyses.papers import main
from hooks.loading import load
from surgery import KeepTop, apply

SHAPES: dict[str, Callable[[int], torch.nn.Module]] = {
    "gptj": lambda size: hf.GPTJForCausalLM(
        hf.GPTJConfig(n_embd=16, n_layer=2, n_head=2, n_positions=160, rotary_dim=4, vocab_size=size)
    ),
    "llama": lambda size: hf.LlamaForCausalLM(hf.LlamaConfig(**_shape(size), num_key_value_heads=1)),
    "phi": lambda size: hf.PhiForCausalLM(hf.PhiConfig(**_shape(size))),
    "pythia": lambda size: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_shape(size))),
}
WORDS = ("Paris", "Rome", "Lima", "Tokyo")


def _shape(size: int) -> dict[str, int]:
    return {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "vocab_size": size, "max_position_embeddings": 160,
    }  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of every shape, and with files of items."""
    folder, tokenizer = tmp_path_factory.mktemp("papers"), wrapped(byte_level(400))
    for name, make in SHAPES.items():
        torch.manual_seed(0)
        model = make(len(tokenizer))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(12)  # far from uniform, so that cuts change what is likely
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write(folder / "facts.jsonl", facts(20))
    choices = [{"prompt": f"Is {n} two?", "labels": [" one", " two"], "correct": [n % 2]} for n in range(15)]
    write(folder / "choices.jsonl", choices)
    return folder


def facts(n: int) -> list[dict]:
    return [
        {"prompt": f"The capital of {name}{k} is", "answer": WORDS[k % 4], "distractors": [WORDS[(k + 1) % 4]]}
        for k, name in enumerate(("France", "Italy", "Peru", "Japan") * (n // 4))
    ]


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(*arguments: object) -> tuple[int, str]:
    """What a command returns and tells."""
    told: list[str] = []
    code = main([*map(str, arguments), "--quiet"], say=told.append)
    return code, "\n".join(told)


def common(home: Path, shape: str, output: Path, task: str = "facts.jsonl") -> list[object]:
    return ["--model", home / shape, "--task", home / task, "--output", output, "--draws", 1]


def laser_of(home: Path, shape: str, output: Path, *more: object) -> tuple[int, str]:
    sites = ("--sites", "blocks.1.mlp.W_{in,out}", "--rhos", 0.5, 0.1)
    return run("laser", *common(home, shape, output), *sites, *more)


@pytest.mark.parametrize("shape", SHAPES)
def test_laser_goes_from_a_folder_to_a_report(home: Path, tmp_path: Path, shape: str) -> None:
    code, told = laser_of(home, shape, tmp_path / "run", "--compose")
    assert code == 0, told
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    table = pd.read_csv(tmp_path / "run" / "table.csv")
    tried = table.loc[(table["split"] == "validation") & table["site"].notna()]
    assert len(tried) == 4 and set(tried["n_items"]) == {4}
    for part in ("How to repeat this", "weight state | raw", "seed | 0", "transformer-lens", "SHA-256", "not at hand"):
        assert part in report
    # Every file that the page links to is there.
    links = [text.split(")")[0] for text in report.split("](")[1:]]
    assert [link for link in links if not (tmp_path / "run" / link).exists()] == []
    assert {"figures/accuracy.html", "table.csv", "items.csv"} <= set(links)


def test_the_numbers_of_the_report_are_those_of_the_model(home: Path, tmp_path: Path) -> None:
    code, _ = laser_of(home, "phi", tmp_path / "run", "--rhos", 0.5)
    table = pd.read_csv(tmp_path / "run" / "table.csv")
    model, task = load(str(home / "phi")), tasks.from_jsonl(home / "facts.jsonl")
    assert code == 0
    for site in ("blocks.1.mlp.W_in", "blocks.1.mlp.W_out"):
        with apply(model, {site: KeepTop(rho=0.5)}, progress=False):
            expected = scoring.score(model, task[:4])
        row = table.loc[(table["site"] == site) & (table["split"] == "validation")].iloc[0]
        assert row["log_loss"] == pytest.approx(expected.log_loss.mean().item(), abs=1e-5)
    after = table.loc[(table["split"] == "test") & table["chosen"]].iloc[0]
    chosen = {} if pd.isna(after["site"]) else {after["site"]: KeepTop(rho=after["rho"])}
    with apply(model, chosen, progress=False):
        expected = scoring.score(model, task[4:])
    assert (after["accuracy"], after["log_loss"]) == pytest.approx((expected.accuracy, expected.log_loss.mean().item()))


@pytest.mark.parametrize("shape", ["phi", "llama"])
def test_eigenpruning_goes_from_a_folder_to_a_report(home: Path, tmp_path: Path, shape: str) -> None:
    command = ("eigenpruning", *common(home, shape, tmp_path / "run"), "--finetune", "--learning-rate", 1e-4)
    code, told = run(*command)
    assert code == 0, told
    table = pd.read_csv(tmp_path / "run" / "table.csv").set_index("variant")
    controls = ["random 1", "smallest s", "sign flipped"]
    tuned = ["fine-tuned", *(f"fine-tuned + {name}" for name in ("pruned", *controls))]
    assert table.index.tolist() == ["base", "pruned", *controls, *tuned]
    assert set(table["n_items"]) == {4}
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    # Four items show nothing, and the report says so, of the model as it is and of the copy.
    for variant in ("pruned", "fine-tuned + pruned"):
        assert re.search(rf"\*\*{re.escape(variant)}: the score shows nothing beyond '[a-z 0-9]+'", report)
        assert table["lead"].notna().sum() == 2 * len(controls)
    assert "right by StartsWith(per='first')" in report and "by SGD" not in report
    for variant in table.index:
        assert f"| {variant} |" in report
    # Again: nothing is computed, and the page is the same.
    (tmp_path / "run" / "report.md").unlink()
    finished = (tmp_path / "run" / "finished.jsonl").read_bytes()
    assert run(*command)[0] == 0
    assert (tmp_path / "run" / "report.md").read_text(encoding="utf-8") == report
    assert (tmp_path / "run" / "finished.jsonl").read_bytes() == finished


@pytest.mark.parametrize("score", ["gradient", "curvature", "ablation"])
def test_components_can_be_scored_by_an_attribution(home: Path, tmp_path: Path, score: str) -> None:
    site, per = "blocks.1.attn.W_K[0]", ("--per", "sequence", "--fraction", 0.5)
    code, told = run("eigenpruning", *common(home, "phi", tmp_path), "--score", score, "--sites", site, *per)
    assert code == 0, told
    rows = pd.read_csv(tmp_path / "scores.csv")
    # The same score without the command: the mean effect on the loss, of the items that are scored.
    parts = tasks.from_jsonl(home / "facts.jsonl").split(screen=0.8, validation=0.0, test=0.2, seed=0)
    by = {
        "gradient": attribution.by_gradient,
        "curvature": attribution.by_curvature,
        "ablation": attribution.by_ablation,
    }
    expected = eigenpruning.attribute(
        load(str(home / "phi")), parts.screen, site, score=by[score], reduce="mean", per="sequence", progress=False
    )
    assert rows["score"].tolist() == pytest.approx(expected[site].tolist(), rel=1e-3, abs=1e-6)
    spec = surgery.load(tmp_path / "edit.json", model=load(str(home / "phi")))
    assert set(spec) == {site} and "4 of 8 components removed" in told


@pytest.fixture(scope="module")
def training(home: Path) -> Path:
    """Two checkpoints of one training, a folder each."""
    for seed, step in enumerate((0, 1000)):
        torch.manual_seed(seed)
        model = SHAPES["pythia"](400)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(12 if parameter.ndim > 1 else 1)
        model.save_pretrained(home / "training" / f"step{step}")
        wrapped(byte_level(400)).save_pretrained(home / "training" / f"step{step}")
    return home / "training"


def over_training_of(home: Path, training: Path, output: Path, *more: object) -> tuple[int, str]:
    given = ("--model", training, "--task", home / "facts.jsonl", "--output", output, "--several", "first")
    cuts = ("--sites", "blocks.1.mlp.W_out", "--rhos", 0.5, "--generic", " of")
    return run("truncation", *given, *cuts, *(more or ("--steps", "0,1000")))


def test_every_checkpoint_of_a_training_is_cut(home: Path, training: Path, tmp_path: Path) -> None:
    code, told = over_training_of(home, training, tmp_path / "run")
    assert code == 0, told
    table = pd.read_csv(tmp_path / "run" / "table.csv", keep_default_na=False)
    asked = tasks.from_jsonl(home / "facts.jsonl").items
    for step in (0, 1000):
        model = load(str(training / f"step{step}"))
        for end, spec in {"full": {}, "keep top": {"blocks.1.mlp.W_out": KeepTop(rho=0.5)}}.items():
            with apply(model, spec, progress=False), torch.no_grad():
                p = [
                    model(model.to_tokens(item.context))[0, -1].softmax(0)[
                        model.to_tokens(" " + item.right[0].strip(), prepend_bos=False)[0, 0]
                    ]
                    for item in asked
                ]
            rows = table.loc[(table["step"] == step) & (table["end"] == end) & (table["quantity"] == "p")]
            value = rows.loc[rows["name"] == "correct", "value"].astype(float)
            assert value.tolist() == pytest.approx([torch.stack(p).mean().item()], abs=1e-5)
    # How many cuts raise a probability, counted again (ρ = .5, so that none keeps a whole matrix).
    p = table.loc[(table["quantity"] == "p") & (table["step"] == 1000) & (table["name"] == "correct")]
    uncut = float(p.loc[p["end"] == "full", "value"].iloc[0])
    values = [float(row["value"]) for row in p.to_dict("records") if row["end"] != "full"]
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    (row,) = [line for line in report.splitlines() if line.startswith("| 1000 | 0.")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[4:6] == [str(len(values)), str(sum(value > uncut for value in values))]
    assert "**2 checkpoints**, step 0 to 1000, on 20 prompts." in report and "at the steps 0, 1000" in report
    links = [text.split(")")[0] for text in report.split("](")[1:]]
    assert [link for link in links if not (tmp_path / "run" / link).exists()] == []
    assert {"figures/log_p_correct.html", "figures/log_p_generic.html"} <= set(links)
    # All of a folder are the same checkpoints, of which nothing is cut again; fewer are another run.
    assert "holds another run: steps" in over_training_of(home, training, tmp_path / "run", "--steps", "0")[1]


def test_a_training_that_was_stopped_goes_on(
    home: Path, training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, loads, killed = truncation.Revisions.load, [], True

    def loading(revisions: truncation.Revisions, step: int) -> torch.nn.Module:
        if killed and loads == [1000, 0]:
            raise KeyboardInterrupt
        loads.append(step)
        return make(revisions, step)

    monkeypatch.setattr(truncation.Revisions, "load", loading)
    code, told = over_training_of(home, training, tmp_path, "--steps", "all")
    assert code == 130 and "the same command goes on" in told
    killed = False
    assert over_training_of(home, training, tmp_path, "--steps", "all")[0] == 0
    # The last one is loaded first, to be measured; the one at step 0 is cut once.
    assert loads == [1000, 0, 1000, 1000]


def test_gsm8k_is_judged_by_the_last_number_of_several_samples(home: Path, tmp_path: Path) -> None:
    questions = [{"question": f"What is {n} x 4?", "answer": f"It is.\n#### {4 * n}"} for n in range(8)]
    write(tmp_path / "train.jsonl", questions[:1])
    write(tmp_path / "test.jsonl", questions[1:])
    code, told = run(
        "truncation", "--model", home / "pythia", "--task", "gsm8k", "--data", f"test={tmp_path / 'test.jsonl'}",
        "--data", f"train={tmp_path / 'train.jsonl'}", "--option", "n_examples=1", "--option", "n_tokens=6",
        "--option", "samples=3", "--option", "temperature=0.7", "--output", tmp_path / "run", "--draws", 1,
        "--sites", "blocks.1.mlp.W_out", "--rhos", 0.5,
    )  # fmt: skip
    assert code == 0, told
    table = pd.read_csv(tmp_path / "run" / "table.csv")
    options = {"n_examples": 1, "n_tokens": 6, "samples": 3, "temperature": 0.7}
    data = {"test": tmp_path / "test.jsonl", "train": tmp_path / "train.jsonl"}
    task = tasks.recipe("gsm8k").task(data, **options)
    model, choosing = load(str(home / "pythia")), task.split(screen=0.0, validation=0.5, test=0.5, seed=0).validation
    with apply(model, {"blocks.1.mlp.W_out": KeepTop(rho=0.5)}, progress=False):
        scores = scoring.score(model, choosing)
    assert scores.encoded.rule == scoring.LastNumber(6, stop=("Question",), samples=3, temperature=0.7)
    kept = table.loc[table["edit"] == "KeepTop"].iloc[0]
    assert (kept["accuracy"], kept["n_items"]) == (scores.accuracy, len(choosing))
    assert kept["log_loss"] == pytest.approx(scores.log_loss.mean().item(), abs=1e-5)


STORY, DATA = os.environ.get("SURGERY_STORY_MODEL"), os.environ.get("SURGERY_DATA")


@pytest.mark.skipif(not STORY or not DATA, reason="SURGERY_STORY_MODEL and SURGERY_DATA name no model and data")
def test_laser_runs_on_a_trained_model_and_published_facts(tmp_path: Path) -> None:
    data = Path(str(DATA)) / "known_1000.json"
    code, told = run(
        "laser", "--model", STORY, "--task", "counterfact", "--data", data, "--limit", 40, "--rhos", 0.2, 0.05,
        "--draws", 1, "--compose", "--output", tmp_path,
    )  # fmt: skip
    assert code == 0, told
    model, task = load(str(STORY)), tasks.recipe("counterfact").task(data)[:40]
    table, chosen = pd.read_csv(tmp_path / "table.csv"), surgery.load(tmp_path / "edit.json", model=model)
    assert (table["split"] == "validation").sum() == 1 + 2 * 2 * 5
    before, after = (table.loc[(table["split"] == "test") & (table["chosen"] == one)].iloc[0] for one in (False, True))
    for row, spec in ((before, {}), (after, chosen)):
        with apply(model, spec, progress=False):
            scores = scoring.score(model, task[8:])
        assert (row["accuracy"], row["log_loss"]) == pytest.approx((scores.accuracy, scores.log_loss.mean().item()))
    assert "| the paper | GPT-J 6B | 13.1 % | 24.0 % | 29.2 % |" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", ["pythia", "gptj"])
def test_truncation_goes_from_a_folder_to_a_report(home: Path, tmp_path: Path, shape: str) -> None:
    sites = ("--sites", "blocks.1.mlp.W_{in,out}", "--rhos", 0.5, 0.1, "--several", "first")
    command = ("truncation", *common(home, shape, tmp_path / "run"), *sites, "--generic", " of")
    code, told = run(*command)
    assert code == 0, told
    table = pd.read_csv(tmp_path / "run" / "table.csv", keep_default_na=False)
    assert len(table) == 3 * (
        1 + 1 + 2 * (2 * 2 + 1)
    )  # names × (uncut, MLP dropped, two matrices at both ends and top)
    controls = pd.read_csv(tmp_path / "run" / "controls.csv")
    assert controls["control"].tolist()[:2] == ["uncut", "the cut itself"] and len(controls) == 5
    # The edit that is saved does what the table says.
    model, halves = load(str(home / shape)), tasks.from_jsonl(home / "facts.jsonl")
    parts = halves.split(screen=0.0, validation=0.5, test=0.5, seed=0)
    with apply(model, surgery.load(tmp_path / "run" / "edit.json", model=model), progress=False), torch.no_grad():
        p = [
            model(model.to_tokens(item.context))[0, -1].softmax(0)[
                model.to_tokens(" " + item.right[0].strip(), prepend_bos=False)[0, 0]
            ]
            for item in parts.test.items
        ]
    assert controls["p(correct)"][1] == pytest.approx(torch.stack(p).mean().item(), abs=1e-5)
    assert run(*command)[0] == 0


def test_what_is_generated_is_judged_where_the_rule_generates(home: Path, tmp_path: Path) -> None:
    data = [{"question": f"Where is {name}", "answer": "Paris"} for name in ("Lima", "Rome", "Tokyo", "Peru", "Mary")]
    write(tmp_path / "hotpot.jsonl", data)
    sites = ("--sites", "blocks.1.mlp.W_out", "--rhos", 0.5)
    code, told = run(
        "truncation", "--model", home / "pythia", "--task", "hotpot-qa", "--data", tmp_path / "hotpot.jsonl",
        "--output", tmp_path / "run", "--draws", 1, *sites,
    )  # fmt: skip
    assert code == 0, told
    assert pd.read_csv(tmp_path / "run" / "table.csv")["edit"].tolist() == ["KeepTop", "DropTop"]
    assert "what is generated" in told
    code, told = run(
        "laser", "--model", home / "pythia", "--task", "hotpot-qa", "--data", tmp_path / "hotpot.jsonl", "--output",
        tmp_path / "laser", "--draws", 1, *sites,
    )  # fmt: skip
    assert code == 0, told
    # Of the five items, the first 20 % choose.
    model, task = load(str(home / "pythia")), tasks.recipe("hotpot-qa").task(tmp_path / "hotpot.jsonl")[1:]
    unedited = scoring.score(model, task).word_overlap().mean()
    report = (tmp_path / "laser" / "report.md").read_text(encoding="utf-8")
    said = re.search(r"share with the answers, mean over items: precision (\S+) % to .*, f1 (\S+) % to", report)
    assert said is not None
    assert [float(one) for one in said.groups()] == pytest.approx(
        [100 * unedited["precision"], 100 * unedited["f1"]], abs=0.06
    )


def test_a_recipe_says_what_the_paper_found(home: Path, tmp_path: Path) -> None:
    rows = [{"hard_text": f"{who} teaches {n} pupils", "profession": 26, "gender": n % 2}
            for n, who in enumerate(("She", "He") * 8)]  # fmt: skip
    write(tmp_path / "bios.jsonl", rows)
    code, told = run(
        "laser", "--model", home / "gptj", "--task", "bios-gender", "--data", tmp_path / "bios.jsonl", "--output",
        tmp_path / "run", "--draws", 1, "--rhos", 0.5, "--sites", "blocks.1.mlp.W_out", "--leave-out",
    )  # fmt: skip
    assert code == 0, told
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "| the paper | GPT-J 6B | 70.9 % | 97.5 % | not at hand | not at hand |" in report


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert laser_of(home, "pythia", tmp_path / "whole")[0] == 0
    put, finished = laser.Log.put, []

    def interrupted(self: laser.Log, key: str, piece: dict) -> None:
        put(self, key, piece)
        finished.append(key)
        if len(finished) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(laser.Log, "put", interrupted)
    code, told = laser_of(home, "pythia", tmp_path / "stopped")
    assert code == 130 and "the same command goes on" in told
    assert not (tmp_path / "stopped" / "report.md").exists()
    assert laser_of(home, "pythia", tmp_path / "stopped")[0] == 0
    assert len(set(finished)) == len(finished)  # nothing was done twice
    for name in ("table", "items", "controls"):
        whole, stopped = (pd.read_csv(tmp_path / run / f"{name}.csv") for run in ("whole", "stopped"))
        pd.testing.assert_frame_equal(whole, stopped)


def test_another_run_is_refused_and_the_folder_stays_as_it_was(home: Path, tmp_path: Path) -> None:
    assert laser_of(home, "phi", tmp_path / "run")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, told = laser_of(home, "phi", tmp_path / "run", "--seed", 1)
    assert (code, "holds another run: seed is '0' there and '1' here" in told) == (1, True)
    code, told = laser_of(home, "llama", tmp_path / "run")
    assert (code, "holds another run: weights is" in told) == (1, True)
    code, told = laser_of(home, "phi", tmp_path / "run", "--limit", 15)
    assert (code, "limit is 'None' there and '15' here" in told) == (1, True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_dry_run_writes_nothing_and_tells_what_it_costs(home: Path, tmp_path: Path) -> None:
    code, told = laser_of(home, "phi", tmp_path / "run", "--dry-run")
    assert code == 0 and not (tmp_path / "run").exists()
    assert "estimate, from a few passes and one decomposition measured here" in told
    assert "under 4 candidates" in told and "weights" in told
