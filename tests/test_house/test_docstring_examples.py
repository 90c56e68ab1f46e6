"""The examples in the docstrings, run on a tiny model."""

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import models
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("hooks", "surgery", "analyses")
    for path in (ROOT / package).rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)
ANALYSES = ("attribution", "controls", "eigenpruning", "laser", "metrics", "patching", "plots", "prompts", "recall",
            "arithmetic", "associative_memory", "engines", "papers", "scoring", "tasks", "truncation")  # fmt: skip
# What a user calls; a function of these without an example is found missing below.
FACES = ("surgery", "hooks", *(f"analyses.{name}" for name in ANALYSES))


def examples(module: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module), module)
    return [test for test in found if test.examples]


def names(module: str) -> dict[str, object]:
    """What an example may use without importing it."""
    return {
        **vars(importlib.import_module(module)),
        **{name: importlib.import_module(f"analyses.{name}") for name in ANALYSES},
        "surgery": importlib.import_module("surgery"),
        "torch": torch,
        "tokens": models.tokens(3, 8) % 40,
        "model": tiny(),
    }


def tiny() -> torch.nn.Module:
    """Two layers of width 16: on HookedTransformer, or where there is none, on the bridge."""
    if models.has_hooked_transformer():
        return models.hooked("ln", d_model=16, d_head=8, n_heads=2, d_mlp=32, d_vocab=40, n_ctx=16)
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, n_inner=32)
    return build_bridge_from_module(GPT2LMHeadModel(config).eval(), "GPT2LMHeadModel", hf_config=config)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_say(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write a file
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report: list[str] = []
    for test in examples(module):
        test.globs = names(module)
        if not models.has_hooked_transformer():
            test.examples = [example for example in test.examples if "# transformer-lens 3" not in example.source]
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def functions(face: str) -> Iterator[str]:
    module = importlib.import_module(face)
    yield from (name for name in module.__all__ if inspect.isroutine(getattr(module, name)))


@pytest.mark.parametrize(("face", "name"), [(face, name) for face in FACES for name in functions(face)])
def test_each_public_function_has_an_example(face: str, name: str) -> None:
    assert ">>>" in (inspect.getdoc(getattr(importlib.import_module(face), name)) or "")
