from dataclasses import FrozenInstanceError
from math import isnan, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import surgery
from analyses import recall
from surgery import DropTop, KeepTop, Zero

HOSTS = [pytest.param(recall.model, marks=pytest.mark.hooked, id="hooked"), pytest.param(recall.bridge, id="bridge")]
TASK = recall.RecallTask.synthetic(d_vocab=9, triggers=2, noise_token=5, n_ctx=16)
METRICS = ["p_correct", "p_noise", "accuracy", "accuracy_without_noise", "margin"]
MASSES = ["previous_token", "previous_token_after_trigger", "answer", "noise", "answer_share", "noise_share"]


def sharp(make) -> nn.Module:
    """A small untrained model whose predictions and attention are far from uniform."""
    model = make(TASK, d_model=12, unembed_scale=1.0)
    W = recall.weights(model)
    return recall.load(model, {name: W[name] * (3 if name.endswith("W_K") else 1) for name in W})


def scores_by_hand(logits: Tensor, batch: recall.RecallBatch, noise: int) -> list[list[tuple[float, ...]]]:
    """The metrics of every scored position of every sequence, one at a time."""
    sequences = []
    for b in range(len(batch)):
        values = []
        for t in range(batch.tokens.shape[1]):
            if not batch.scored[b, t]:
                continue
            x, answer = logits[b, t].double(), int(batch.answers[b, t])
            p = x.exp() / x.exp().sum()
            others = [z for z in range(len(x)) if z != noise]
            best = max(range(len(x)), key=lambda z, x=x: x[z].item())
            best_other = max(others, key=lambda z, x=x: x[z].item())
            margin = x[answer] - x[noise]
            values.append((p[answer].item(), p[noise].item(), best == answer, best_other == answer, margin.item()))
        sequences.append(values)
    return sequences


def jackknife(sequences: list[list[tuple[float, ...]]]) -> np.ndarray:
    """Standard errors of the means over all positions, leaving out one sequence at a time."""
    means = []
    for left_out in range(len(sequences)):
        rest = [values for i, sequence in enumerate(sequences) if i != left_out for values in sequence]
        means.append(np.mean(rest, axis=0))
    n = len(sequences)
    return np.sqrt((n - 1) / n * np.square(means - np.mean(means, axis=0)).sum(0))


def test_printed_scores_are_a_line_each_and_no_floats_of_sixteen_digits() -> None:
    stderr = dict(zip(METRICS, (0.0049, 0.005, 0.019, 0.0, 0.0231), strict=True))
    scores = recall.RecallScores(0.518123456789, 0.477, 0.581, 1.0, 0.0841, stderr, 0.0, 512, 7418)
    assert repr(scores).splitlines() == [
        "recall on 512 sequences, alpha 0, 7418 positions; ± standard error",
        "  p_correct              0.518 ± 0.005 probability",
        "  p_noise                0.477 ± 0.005 probability",
        "  accuracy               0.581 ± 0.019 fraction",
        "  accuracy_without_noise 1.000 ± 0.000 fraction",
        "  margin                 0.084 ± 0.023 logits",
    ]


@pytest.mark.parametrize("make", HOSTS)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_scores_are_what_a_loop_over_positions_gives(make, alpha: float) -> None:
    model = sharp(make)
    found = recall.evaluate(model, TASK, sequences=60, seed=3, alpha=alpha, batch_size=17)
    batch = TASK.sample(60, seed=3, alpha=alpha)
    with torch.no_grad():
        sequences = scores_by_hand(model(batch.tokens), batch, TASK.noise_token)
    values = [value for sequence in sequences for value in sequence]
    assert [getattr(found, m) for m in METRICS] == pytest.approx(np.mean(values, axis=0).tolist(), abs=1e-5)
    assert [found.stderr[m] for m in METRICS] == pytest.approx(jackknife(sequences).tolist(), rel=0.06)
    assert (found.sequences, found.positions, found.alpha) == (60, len(values), alpha)
    assert 0 < found.accuracy < 1


@pytest.mark.hooked
def test_both_hosts_get_the_same_scores_and_probes() -> None:
    hooked, bridged = sharp(recall.model), sharp(recall.bridge)
    assert recall.evaluate(hooked, TASK, sequences=40) == recall.evaluate(bridged, TASK, sequences=40)
    assert recall.attention_probes(hooked, TASK, sequences=40) == recall.attention_probes(bridged, TASK, sequences=40)


def test_scores_say_their_units_and_cannot_be_changed() -> None:
    scores = recall.evaluate(sharp(recall.bridge), TASK, sequences=20)
    frame = scores.to_dataframe()
    assert frame["metric"].tolist() == METRICS
    assert frame["unit"].tolist() == ["probability", "probability", "fraction", "fraction", "logits"]
    assert frame["value"].tolist() == [getattr(scores, m) for m in METRICS]
    assert frame["stderr"].tolist() == [scores.stderr[m] for m in METRICS]
    with pytest.raises(FrozenInstanceError):
        scores.p_noise = 0.0  # type: ignore[misc]


def test_with_as_many_positions_in_every_sequence_the_standard_error_is_the_plain_one() -> None:
    """0 is the trigger and 2 the noise, and 0 follows both others: with α = 1 every sequence is 0, 2, 0, 2, ..."""
    task = recall.RecallTask(torch.tensor([1.0, 0, 0]), torch.tensor([[1.0, 0, 0]] * 3), (0,), 2, n_ctx=8)
    model = recall.bridge(task, d_model=8, unembed_scale=1.0)
    scores = recall.evaluate(model, task, sequences=5, seed=1, alpha=1.0)
    batch = task.sample(5, seed=1, alpha=1.0)
    with torch.no_grad():
        sequences = scores_by_hand(model(batch.tokens), batch, 2)
    assert [len(values) for values in sequences] == [3] * 5
    means = np.mean(sequences, axis=1)
    assert len({tuple(row) for row in means.tolist()}) == 2  # the answers are 0 or 1
    expected = means.std(axis=0, ddof=1) / sqrt(5)
    assert [scores.stderr[m] for m in METRICS] == pytest.approx(expected.tolist(), abs=1e-6)
    assert scores.stderr["p_correct"] > 1e-3


def test_one_sequence_has_no_standard_error() -> None:
    task = recall.RecallTask(torch.tensor([1.0, 0, 0]), torch.tensor([[0.9, 0.05, 0.05]] * 3), (0,), 2)
    scores = recall.evaluate(recall.bridge(task, d_model=8), task, sequences=1)
    assert all(isnan(value) for value in scores.stderr.values())
    assert not isnan(scores.p_correct)


def test_scores_follow_an_edit() -> None:
    model = sharp(recall.bridge)
    before = recall.evaluate(model, TASK, sequences=20)
    with surgery.apply(model, {"blocks.1.mlp.W_out": Zero()}):
        under = recall.evaluate(model, TASK, sequences=20)
    edited = recall.load(
        sharp(recall.bridge),
        {n: W * (n != "blocks.1.mlp.W_out") for n, W in recall.weights(model).items()},
    )
    assert under == recall.evaluate(edited, TASK, sequences=20)
    assert under != before == recall.evaluate(model, TASK, sequences=20)


def patterns(W: dict[str, Tensor], tokens: list[int]) -> list[np.ndarray]:
    """Both heads' attention of one sequence, [query, key], row by row."""
    W = {name: matrix.double().numpy() for name, matrix in W.items()}
    resid = np.stack([W["embed.W_E"][z] + W["pos_embed.W_pos"][t] for t, z in enumerate(tokens)])
    found = []
    for layer in range(2):
        K, V, O = (W[f"blocks.{layer}.attn.W_{m}"] for m in "KVO")  # noqa: E741
        pattern = np.zeros((len(tokens), len(tokens)))
        for t in range(len(tokens)):
            scores = np.array([resid[t] @ (resid[s] @ K) for s in range(t + 1)]) / sqrt(len(K))
            weights = np.exp(scores - scores.max())
            pattern[t, : t + 1] = weights / weights.sum()
        found.append(pattern)
        resid = resid + pattern @ resid @ V @ O
        resid = resid + np.maximum(resid @ W[f"blocks.{layer}.mlp.W_in"], 0) @ W[f"blocks.{layer}.mlp.W_out"]
    return found


def masses_by_hand(model: nn.Module, batch: recall.RecallBatch, noise: int) -> dict[str, list[float]]:
    """Every value that a probe averages, position by position."""
    found: dict[str, list[float]] = {name: [] for name in MASSES}
    W = recall.weights(model)
    for b in range(len(batch)):
        z, answers = batch.tokens[b].tolist(), batch.answers[b].tolist()
        first, second = patterns(W, z)
        for t in range(1, len(z)):
            found["previous_token"].append(first[t, t - 1])
            if answers[t - 1] >= 0:
                found["previous_token_after_trigger"].append(first[t, t - 1])
        for t in range(len(z)):
            if not batch.scored[b, t]:
                continue
            outputs = [s for s in range(1, t + 1) if z[s - 1] == z[t] and z[s] == answers[t]]
            noisy = [s for s in range(t + 1) if z[s] == noise]
            for name, keys in (("answer", outputs), ("noise", noisy)):
                found[name].append(sum(second[t, s] for s in keys))
                found[f"{name}_share"].append(len(keys) / (t + 1))
    return found


@pytest.mark.parametrize("make", HOSTS)
def test_probes_are_what_a_loop_over_positions_gives(make) -> None:
    model = sharp(make)
    found = recall.attention_probes(model, TASK, sequences=30, seed=4, batch_size=13)
    expected = masses_by_hand(model, TASK.sample(30, seed=4), TASK.noise_token)
    for name, values in expected.items():
        assert getattr(found, name) == pytest.approx(np.mean(values), abs=1e-5), name
        assert 0 < found.stderr[name] < 0.2
    assert (found.alpha, found.sequences) == (TASK.alpha, 30)
    assert abs(found.answer - found.answer_share) > 0.01
    frame = found.to_dataframe()
    assert frame["probe"].tolist() == MASSES
    assert frame["mass"].tolist() == [getattr(found, name) for name in MASSES]


def test_without_noise_after_triggers_the_probes_see_less_of_it() -> None:
    model = sharp(recall.bridge)
    clean = recall.attention_probes(model, TASK, sequences=50, alpha=0.0)
    assert clean.noise_share < recall.attention_probes(model, TASK, sequences=50).noise_share
    assert clean.alpha == 0


@pytest.mark.parametrize("measure", [recall.evaluate, recall.attention_probes])
def test_what_cannot_be_measured_is_refused(measure) -> None:
    model = recall.bridge(TASK, d_model=8)
    with pytest.raises(ValueError, match=r"sequences=0: give a whole number, 1 or more\."):
        measure(model, TASK, sequences=0)
    with pytest.raises(ValueError, match=r"batch_size=0: give a whole number, 1 or more"):
        measure(model, TASK, batch_size=0)
    with pytest.raises(ValueError, match=r"alpha=2\.0: give a fraction"):
        measure(model, TASK, alpha=2.0)
    never = recall.RecallTask(torch.tensor([0.0, 0.5, 0.5]), torch.tensor([[0, 0.5, 0.5]] * 3), (0,), 2, n_ctx=16)
    with pytest.raises(
        ValueError, match=r"no trigger occurs twice in any of the 8 sequences of RecallTask\(3 tokens, .*: noth"
    ):
        measure(recall.bridge(never, d_model=8), never, sequences=8)


@pytest.fixture(scope="session")
def laptop(trained: Path) -> tuple[recall.RecallTask, nn.Module, recall.TrainingRun]:
    """The default setting, trained once: 10 to 20 s on one core."""
    task = recall.RecallTask.synthetic()
    model = recall.bridge(task)
    run = recall.train(model, task, checkpoints=(0,), cache=trained, progress=False)
    return task, model, run


def with_matrix(model: nn.Module, name: str, matrix: Tensor) -> nn.Module:
    return recall.load(recall.as_bridge(model), {**recall.weights(model), name: matrix})


def test_the_trained_model_is_torn_between_answer_and_noise(laptop) -> None:
    task, model, _ = laptop
    full = recall.evaluate(model, task)
    assert 0.45 < full.p_correct < 0.57
    assert 0.42 < full.p_noise < 0.53
    assert full.p_correct + full.p_noise > 0.98
    assert full.accuracy_without_noise > 0.995
    assert recall.evaluate(model, task, alpha=0.5).p_noise == pytest.approx(full.p_noise, abs=0.05)


def test_truncating_by_hand_gives_the_published_signs(laptop) -> None:
    """Plain SVDs of the weights, no edit of ours: the noise sits on top of W_out, and of it alone."""
    task, model, _ = laptop
    W = recall.weights(model)
    W_in, W_out = W["blocks.1.mlp.W_in"], W["blocks.1.mlp.W_out"]
    U, S, Vh = torch.linalg.svd(W_out, full_matrices=False)
    top = S[0] * torch.outer(U[:, 0], Vh[0])
    U, S, Vh = torch.linalg.svd(W_in, full_matrices=False)
    low_rank = U[:, :6] @ torch.diag(S[:6]) @ Vh[:6]  # ρ = 0.05 of 128
    expected = {
        "no mlp": ("blocks.1.mlp.W_out", torch.zeros_like(W_out), (0.89, 0.96), (0, 0.008), 0.995),
        "W_in at 0.05": ("blocks.1.mlp.W_in", low_rank, (0.86, 0.93), (0.03, 0.10), 0.98),
        "W_out without its top": ("blocks.1.mlp.W_out", W_out - top, (0.96, 1), (0, 0.004), 0.995),
        "W_out, only its top": ("blocks.1.mlp.W_out", top, (0.10, 0.24), (0.74, 0.89), None),
    }
    for name, (site, matrix, p_correct, p_noise, accuracy) in expected.items():
        scores = recall.evaluate(with_matrix(model, site, matrix), task)
        assert p_correct[0] < scores.p_correct < p_correct[1], name
        assert p_noise[0] <= scores.p_noise < p_noise[1], name
        assert scores.accuracy > accuracy if accuracy else scores.accuracy < 0.05, name
        assert scores.accuracy_without_noise > 0.98, name


def test_edits_give_what_truncating_by_hand_gives(laptop) -> None:
    task, model, _ = laptop
    U, S, Vh = torch.linalg.svd(recall.weights(model)["blocks.1.mlp.W_out"], full_matrices=False)
    by_hand = recall.evaluate(with_matrix(model, "blocks.1.mlp.W_out", U[:, 1:] * S[1:] @ Vh[1:]), task, sequences=64)
    with surgery.apply(model, {"blocks.1.mlp.W_out": DropTop(rank=1)}):
        edited = recall.evaluate(model, task, sequences=64)
    assert [getattr(edited, m) for m in METRICS] == pytest.approx([getattr(by_hand, m) for m in METRICS], abs=1e-4)
    with surgery.apply(model, {"blocks.1.mlp.W_out": KeepTop(rank=1)}):
        assert recall.evaluate(model, task, sequences=64).margin < -1


def test_the_noise_is_learnt_before_the_answer(laptop) -> None:
    task, _, run = laptop
    on_the_way = recall.bridge(task)
    begun = recall.train(on_the_way, task, steps=50, checkpoints=(0,), progress=False)
    assert torch.equal(begun.losses, run.losses[:50])
    weights = begun.checkpoints | run.checkpoints
    scores = {step: recall.evaluate(recall.load(on_the_way, W), task, sequences=128) for step, W in weights.items()}
    assert scores[0].p_noise < 0.25
    assert scores[50].p_noise == pytest.approx(0.5, abs=0.1)
    assert scores[50].p_correct < 0.2
    assert scores[50].accuracy_without_noise < 0.6 < 0.99 < scores[400].accuracy_without_noise
    assert run.losses[-20:].mean() < run.losses[40:60].mean() - 0.7


def test_the_trained_second_head_looks_at_the_answer(laptop) -> None:
    task, model, run = laptop
    trained = recall.attention_probes(model, task, sequences=128)
    untrained = recall.attention_probes(recall.load(recall.as_bridge(model), run.checkpoints[0]), task, sequences=128)
    assert trained.answer > 0.8 > 4 * trained.answer_share
    assert trained.answer > untrained.answer + 10 * (trained.stderr["answer"] + untrained.stderr["answer"])
    assert trained.previous_token > untrained.previous_token + 0.2


def test_training_on_characters_of_a_text_learns_the_noise() -> None:
    task = recall.RecallTask.from_text("to be or not to be, that is the question: " * 3, triggers=2, n_ctx=24)
    model = recall.bridge(task, d_model=32)
    before = recall.evaluate(model, task, sequences=64, alpha=0.5)
    recall.train(model, task, steps=40, batch_size=16, progress=False)
    after = recall.evaluate(model, task, sequences=64, alpha=0.5)
    assert before.p_noise < 0.2 < 0.3 < after.p_noise
