from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from analyses.associative_memory import Memory, dynamics, noise_singular_value, rank_table, simulate

COLUMNS = ["p_correct", "p_noise"]


def row(table, edit: str, components: int):
    return table[(table["edit"] == edit) & (table["components"] == components)].iloc[0]


def symmetric(n: int, own: float, other: float, noise: float) -> torch.Tensor:
    """A memory's matrix from its three different logits."""
    W = torch.full((n, n + 1), other, dtype=torch.float64)
    W[:, :n] += (own - other) * torch.eye(n, dtype=torch.float64)
    W[:, n] = noise
    return W


def descent_by_loop(n: int, alpha: float, steps: int, lr: float) -> list[list[float]]:
    """The gradient of Σ_x −Σ_y p*(y|x) log p(y|x), one logit at a time."""
    W = [[0.0] * (n + 1) for _ in range(n)]
    for _ in range(steps):
        for x in range(n):
            total = sum(exp(logit) for logit in W[x])
            p = [exp(logit) / total for logit in W[x]]
            labels = [1 - alpha if y == x else alpha if y == n else 0 for y in range(n + 1)]
            W[x] = [logit + lr * (label - q) for logit, label, q in zip(W[x], labels, p, strict=True)]
    return W


@given(st.integers(2, 6), st.floats(0.05, 0.95), st.integers(1, 30), st.floats(0.1, 3.5))
@settings(max_examples=25)
def test_the_simulation_is_gradient_descent_from_zero(n: int, alpha: float, steps: int, lr: float) -> None:
    memory = simulate(n, alpha, steps=steps, lr=lr)
    assert np.allclose(memory.W.numpy(), descent_by_loop(n, alpha, steps, lr), atol=1e-12)


def test_the_gradient_is_that_of_the_cross_entropy() -> None:
    n, alpha = 3, 0.3
    labels = np.hstack([(1 - alpha) * np.eye(n), np.full((n, 1), alpha)])

    def loss(flat: np.ndarray) -> float:
        W = flat.reshape(n, n + 1)
        return float(-(labels * (W - np.log(np.exp(W).sum(1, keepdims=True)))).sum())

    one_step = simulate(n, alpha, steps=1, lr=1e-6).W.numpy().ravel() / 1e-6
    h = 1e-6
    central = [(loss(h * e) - loss(-h * e)) / (2 * h) for e in np.eye(n * (n + 1))]
    assert np.allclose(one_step, -np.array(central), atol=1e-6)
    # And descent ends where an optimiser of its own kind ends.
    best = minimize(loss, np.zeros(n * (n + 1)), method="BFGS", options={"gtol": 1e-4}).fun
    assert loss(simulate(n, alpha, steps=20_000).W.numpy().ravel()) == pytest.approx(best, abs=1e-3)


@given(st.integers(2, 8), st.floats(0.5, 20), st.floats(0.02, 0.98))
def test_the_closed_form_is_the_spectrum_of_a_memory_in_equilibrium(n: int, signal: float, alpha: float) -> None:
    """Logits that sum to zero (as descent keeps them), with p(noise)/p(correct) = α/(1 − α): their SVD by numpy."""
    odds = log((1 - alpha) / alpha)
    noise = ((n - 1) * signal - n * odds) / (n + 1)
    W = symmetric(n, noise + odds, noise + odds - signal, noise)
    S = np.linalg.svd(W.numpy(), compute_uv=False)
    expected = sorted([*[signal] * (n - 1), noise_singular_value(n, alpha, signal)], reverse=True)
    assert np.allclose(S, expected, atol=1e-9 * (1 + S[0]))


@pytest.mark.parametrize("alpha", [0.2, 0.35, 0.5, 0.6, 0.8])
@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_the_closed_form_meets_the_simulation(n: int, alpha: float) -> None:
    memory = simulate(n, alpha, steps=9000, lr=1.5)
    assert memory.noise == pytest.approx(noise_singular_value(n, alpha, memory.signal), abs=1e-3)
    U, S, _ = np.linalg.svd(memory.W.numpy(), full_matrices=False)
    assert np.allclose(S, sorted([*[memory.signal] * (n - 1), memory.noise], reverse=True), atol=1e-9)
    if (n, alpha) != (3, 0.5):
        assert S[memory.noise_component] == pytest.approx(memory.noise, abs=1e-9)
        assert np.allclose(np.abs(U[:, memory.noise_component]), 1 / sqrt(n), atol=1e-8)


def test_three_inputs_and_even_noise_leave_no_component_to_the_noise() -> None:
    memory = simulate(3, 0.5)
    S = np.linalg.svd(memory.W.numpy(), compute_uv=False)
    assert np.allclose(S, memory.signal)
    assert memory.noise == pytest.approx(memory.signal)
    assert memory.noise_component in range(3)


def test_two_inputs_and_even_noise_keep_it_in_the_lower_component() -> None:
    memory = simulate(2, 0.5)
    table = rank_table(memory)
    assert memory.noise_component == 1
    assert memory.probabilities == pytest.approx((0.5, 0.5), abs=1e-3)
    assert row(table, "keep top", 2)[COLUMNS].tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    assert row(table, "keep top", 1)[COLUMNS].tolist() == pytest.approx([0.974, 0.025], abs=6e-4)


def test_five_inputs_and_more_noise_put_it_on_top() -> None:
    memory = simulate(5, 0.6)
    table = rank_table(memory)
    assert memory.noise_component == 0
    assert memory.probabilities == pytest.approx((0.4, 0.6), abs=1e-3)
    assert row(table, "drop top", 1)[COLUMNS].tolist() == pytest.approx([0.996, 0.002], abs=6e-4)
    # Four of five components: .215/.781 in one basis of the four equal ones, so between the ends over all bases.
    kept = row(table, "keep top", 4)
    assert kept["p_correct_min"] < 0.215 < kept["p_correct_max"]
    assert kept["p_noise_min"] < 0.781 < kept["p_noise_max"]


def test_a_cut_inside_equal_values_is_averaged_over_random_bases() -> None:
    memory = simulate(5, 0.6)
    W = memory.W.numpy()
    U, _, _ = np.linalg.svd(W)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(4000):
        direction = U[:, 1:] @ rng.normal(size=4)  # what keeping 4 of 5 leaves out, a random signal direction
        direction /= np.linalg.norm(direction)
        logits = W - np.outer(direction, direction @ W)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        found.append((np.trace(p[:, :5]) / 5, p[:, 5].mean()))
    kept = row(rank_table(memory, draws=4000), "keep top", 4)
    assert kept[COLUMNS].tolist() == pytest.approx(np.mean(found, axis=0).tolist(), abs=3e-3)
    assert kept["p_correct_min"] == pytest.approx(min(p for p, _ in found), abs=3e-3)
    assert kept["p_noise_max"] == pytest.approx(max(p for _, p in found), abs=3e-3)


def test_a_cut_between_different_values_does_not_depend_on_the_basis() -> None:
    memory = simulate(4, 0.7)
    table = rank_table(memory, draws=50, seed=1)
    for edit, components in (("keep top", 0), ("keep top", 1), ("keep top", 4), ("drop top", 1), ("drop top", 4)):
        cut = row(table, edit, components)
        for name in COLUMNS:
            assert cut[f"{name}_max"] - cut[f"{name}_min"] < 1e-9
            assert cut[name] == pytest.approx(cut[f"{name}_min"], abs=1e-9)
    inside = row(table, "keep top", 2)
    assert inside["p_correct_max"] - inside["p_correct_min"] > 1e-3


def test_keeping_all_is_dropping_none_and_nothing_left_is_uniform() -> None:
    memory = simulate(3, 0.4)
    table = rank_table(memory, draws=8)
    assert len(table) == 2 * 4
    for edit, full, none in (("keep top", 3, 0), ("drop top", 0, 3)):
        assert row(table, edit, full)[COLUMNS].tolist() == pytest.approx(list(memory.probabilities), abs=1e-9)
        assert row(table, edit, none)[COLUMNS].tolist() == pytest.approx([1 / 4, 1 / 4])


def test_a_seed_gives_the_same_table() -> None:
    memory = simulate(5, 0.6, steps=200)
    assert rank_table(memory, draws=16).equals(rank_table(memory, draws=16))
    assert not rank_table(memory, draws=16).equals(rank_table(memory, draws=16, seed=1))


def test_dynamics_report_the_memories_on_the_way() -> None:
    frame = dynamics(4, 0.3, steps=25, lr=0.7, every=10)
    assert frame["step"].tolist() == [10, 20, 25]
    for line in frame.itertuples():
        memory = simulate(4, 0.3, steps=line.step, lr=0.7)
        assert (line.signal, line.noise) == (memory.signal, memory.noise)
        assert (line.p_correct, line.p_noise) == memory.probabilities
        assert line.closed_form == noise_singular_value(4, 0.3, memory.signal)


def test_the_signal_is_what_tells_two_inputs_apart() -> None:
    memory = Memory(3, 0.5, 1, 1.0, symmetric(3, own=2.0, other=-0.5, noise=1.0))
    assert memory.signal == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: simulate(1, 0.5),
            "n=1: give a whole number, 2 or more.",
        ),
        (lambda: simulate(3, 0.0), "alpha=0.0: the probability of noise lies between 0 and 1."),
        (lambda: simulate(3, 1.0), "alpha=1.0: the probability of noise lies"),
        (lambda: noise_singular_value(3, 1.5, 1.0), "alpha=1.5: the probability of noise lies"),
        (
            lambda: simulate(3, 0.5, steps=0),
            "steps=0: give a whole number, 1 or more.",
        ),
        (lambda: simulate(3, 0.5, lr=4.0), "lr=4.0: gradient descent converges with lr between 0 and 4."),
        (lambda: dynamics(3, 0.5, every=0), "every=0: give a whole number, 1 or more."),
        (
            lambda: rank_table(simulate(2, 0.5, steps=1), draws=0),
            "draws=0: give a whole number, 1 or more.",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, message: str) -> None:
    with pytest.raises(ValueError) as error:
        wrong()
    assert message in str(error.value)
