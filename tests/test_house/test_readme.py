"""What the README shows runs, and does what it says."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers as hf
from tiny_tokenizers import byte_level, wrapped

from surgery import Drop

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
FIRST, BACK, LANGUAGE, EXPORT, METHODS = BLOCKS
QUICKER = {
    "limit=12": "limit=7",
    "draws=10": "draws=1",
    'print(truncation.study(recall.RecallTask.synthetic(), cache=".surgery-cache"))\n': "",  # has a test of its own
}

Names = dict[str, object]


@pytest.fixture
def folder(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the cache of trained models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".surgery-cache").symlink_to(trained)
    return tmp_path


def write_gpt2(folder: Path) -> None:
    """A random GPT-2 with its tokenizer, and questions that it can be asked."""
    tokenizer = wrapped(byte_level(400))  # " Paris" is one token of it
    torch.manual_seed(0)
    hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=len(tokenizer), n_positions=96)
    ).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    countries = [f"{name}{n}" for n in range(10) for name in ("France", "Italy", "Peru")]
    lines = [
        json.dumps({"prompt": f"The capital of {country} is", "answer": "Paris", "distractors": ["Rome"]})
        for country in countries
    ]
    (folder / "questions.jsonl").write_text("\n".join(lines))


def test_the_first_lines_run_and_attribution_names_the_component(folder: Path, capsys) -> None:
    names: Names = {}
    exec(FIRST, names)
    assert (folder / "edit.json").exists()
    exec(BACK, names)
    assert names["spec"] == {"blocks.1.mlp.W_out": Drop([0])}
    assert names["surgery"].active(names["model"]) == ()  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert "operation applied to TransformerBridge" in printed
    assert " 0.0%" not in printed.split("recall on")[0]  # no example edits a matrix of zeros
    assert max(map(len, printed.splitlines())) < 200


def test_the_lines_for_a_language_model_run_and_what_they_save_has_the_edit(folder: Path) -> None:
    write_gpt2(folder)
    names: Names = {}
    exec("import surgery\nfrom surgery import KeepTop\n" + LANGUAGE, names)
    before = hf.AutoModelForCausalLM.from_pretrained("gpt2").transformer.h[1].mlp.c_proj.weight
    exec(EXPORT, names)
    after = hf.AutoModelForCausalLM.from_pretrained("edited").transformer.h[1].mlp.c_proj.weight
    U, S, Vh = torch.linalg.svd(before.detach().double(), full_matrices=False)
    torch.testing.assert_close(after.detach().double(), (U[:, :3] * S[:3]) @ Vh[:3], atol=1e-6, rtol=1e-5)


def test_the_lines_of_the_methods_run(folder: Path, capsys) -> None:
    lines = METHODS
    for shown, quicker in QUICKER.items():
        assert shown in lines
        lines = lines.replace(shown, quicker)
    exec("from analyses import laser, recall\n" + lines, {})
    printed = capsys.readouterr().out
    for expected in ("verdict: ", "the same singular values on random vectors", "sign flipped"):
        assert expected in printed


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_python(block: str) -> None:
    compile(block, "README.md", "exec")


def test_every_file_and_command_that_is_named_exists() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    pages = {f"docs/{page}.md" for page in ("architecture", "glossary", "extending", "eigenpruning")}
    assert pages | {"docs/figures/demo.png", "notebooks/surgery.ipynb", "CITATION.cff"} <= set(targets)
    assert [target for target in targets if not (ROOT / target).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"make ([a-z-]+)", README)
    assert [name for name in commands if not re.search(rf"^{name}:", makefile, flags=re.MULTILINE)] == []
    assert [name for name in re.findall(r"python (benchmarks/\S+\.py)", README) if not (ROOT / name).exists()] == []


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs" / "figures" / "demo.png").stat().st_size < 200_000
