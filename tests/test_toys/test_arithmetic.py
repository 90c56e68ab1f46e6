"""The arithmetic task against counting, and its training: cached, repeatable, and of the noise that it is given."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy import stats

import surgery
from analyses import arithmetic, scoring
from analyses.toys import training


def test_prompts_and_answers_spell_the_operation() -> None:
    for operation, apply in (("x", lambda i, j: i * j), ("+", lambda i, j: i + j)):
        task = arithmetic.ArithmeticTask(operation, limit=5)
        largest = max(apply(i, j) for i in range(5) for j in range(5))
        sign, equals = largest + 1, largest + 2
        expected = [([i, sign, j, equals], apply(i, j)) for i in range(5) for j in range(5)]
        assert list(zip(task.prompts.tolist(), task.answers.tolist(), strict=True)) == expected
        assert task.d_vocab == largest + 3


def test_wrong_answers_are_the_most_frequent_ones() -> None:
    task = arithmetic.ArithmeticTask("x", limit=7, frequent=3)
    counts = Counter(i * j for i in range(7) for j in range(7))
    assert [counts[a] for a in task.wrong] == sorted(counts.values(), reverse=True)[:3]
    items = task.items().items
    assert all(item.answers[0][0] not in task.wrong for item in items)
    assert len(items) == 49 - sum(counts[a] for a in task.wrong)
    assert all(item.distractors == tuple((w,) for w in task.wrong) for item in items)
    mirrored = {frozenset((item.metadata["i"], item.metadata["j"])): set() for item in items}
    for item in items:
        mirrored[frozenset((item.metadata["i"], item.metadata["j"]))].add(item.groups)
    assert all(len(groups) == 1 for groups in mirrored.values())


def test_training_answers_are_wrong_with_the_given_probability() -> None:
    task = arithmetic.ArithmeticTask("+", limit=6, alpha=0.3, frequent=2)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([task.sample(generator) for _ in range(1000)])
    right = task.answers
    asked = ~torch.isin(right, torch.tensor(task.wrong))
    replaced = (drawn != right)[:, asked]
    n = replaced.numel()
    assert stats.binomtest(int(replaced.sum()), n, 0.3).pvalue > 1e-3
    counts = torch.bincount(right)[list(task.wrong)].double()
    seen = torch.tensor([(drawn[:, asked][replaced] == w).sum() for w in task.wrong]).double()
    assert seen.sum() == replaced.sum()
    assert stats.chisquare(seen.numpy(), (counts / counts.sum() * seen.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("make", [pytest.param(arithmetic.model, marks=pytest.mark.hooked), arithmetic.bridge])
def test_a_trained_model_hedges_and_comes_back_from_the_cache(make: object, tmp_path: Path) -> None:
    task = arithmetic.ArithmeticTask("x", limit=4)
    models = [make(task, d_model=32, n_layers=1) for _ in range(2)]
    losses = [arithmetic.train(m, task, steps=150, lr=1e-2, cache=tmp_path, progress=False) for m in models]
    assert len(list(tmp_path.glob("arithmetic-*.safetensors"))) == 1
    assert torch.equal(*losses)
    assert len(losses[0]) == 150
    for first, second in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(first, second)
    found = scoring.score(models[1], task.items())
    assert (found.p_correct > 0.2).all()
    assert 0.25 < found.p_wrong.mean() < 0.75
    assert (found.p_correct + found.p_wrong).mean() > 0.9
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"the stored work .* is damaged"):
        arithmetic.train(make(task, d_model=32, n_layers=1), task, steps=150, lr=1e-2, cache=tmp_path, progress=False)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = arithmetic.ArithmeticTask("x", limit=3)
    monkeypatch.setattr(training, "EVERY", 2)
    settings = {"steps": 7, "lr": 1e-2, "weight_decay": 0.1, "progress": False}
    whole, resumed = (arithmetic.bridge(task, d_model=8, n_layers=1) for _ in range(2))
    losses = arithmetic.train(whole, task, **settings)
    drawn, original = [], arithmetic.ArithmeticTask.sample

    def impatient(self: arithmetic.ArithmeticTask, generator: torch.Generator) -> torch.Tensor:
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(original(self, generator))
        return drawn[-1]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(arithmetic.ArithmeticTask, "sample", impatient)
        arithmetic.train(arithmetic.bridge(task, d_model=8, n_layers=1), task, cache=tmp_path, **settings)
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-step000004.safetensors")
    assert torch.equal(arithmetic.train(resumed, task, cache=tmp_path, **settings), losses)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)
    assert sorted(path.stem[-6:] for path in tmp_path.iterdir()) == ["000004", "000007"]


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="limit=1: give a whole number, 2 or more"):
        arithmetic.ArithmeticTask("x", limit=1)
    with pytest.raises(ValueError, match=r"alpha=1\.2: give a fraction, from 0 to 1"):
        arithmetic.ArithmeticTask("x", alpha=1.2)
    with pytest.raises(ValueError, match="frequent=40: give a whole number, from 1 to 9"):
        arithmetic.ArithmeticTask("+", limit=5, frequent=40)
    task = arithmetic.ArithmeticTask("+", limit=3)
    with pytest.raises(ValueError, match="n_heads=3: the heads divide d_model"):
        arithmetic.bridge(task, n_heads=3)
    model = arithmetic.bridge(task, d_model=8, n_layers=1)
    with pytest.raises(ValueError, match="steps=0"):
        arithmetic.train(model, task, steps=0, progress=False)
    with (
        surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Drop([0])}, progress=False),
        pytest.raises(ValueError, match="an edit is in force on this model, and training would not see it"),
    ):
        arithmetic.train(model, task, steps=1, progress=False)
