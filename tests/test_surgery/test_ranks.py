"""Oracles: LASER's published table, the papers' formulas integrated by scipy, simulated noise with planted spikes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize
from torch import Tensor

from surgery import ranks

SHAPES = [(64, 768), (768, 64), (128, 128), (200, 500)]


def planted(d_in: int, d_out: int, *, spikes: int, strength: float, seed: int, dead_rows: int = 0) -> Tensor:
    """The spectrum of noise with `spikes` directions at 1 to 2 times `strength` times the edge of the noise."""
    rng, sigma = np.random.default_rng(seed), 0.3
    W = sigma * rng.standard_normal((d_in, d_out))
    U, V = (np.linalg.qr(rng.standard_normal((d, max(spikes, 1))))[0][:, :spikes] for d in (d_in, d_out))
    edge = sigma * (math.sqrt(d_in) + math.sqrt(d_out))
    W += (U * (strength * edge * np.linspace(1, 2, spikes))) @ V.T
    W[:dead_rows] = 0
    return torch.from_numpy(np.linalg.svd(W, compute_uv=False)).float()


@pytest.mark.parametrize(
    ("rho", "d", "kept"),
    [
        (0.9, 4096, 3686),
        (0.8, 4096, 3276),
        (0.6, 4096, 2457),
        (0.2, 4096, 819),
        (0.1, 4096, 409),
        (0.05, 4096, 204),
        (0.01, 4096, 40),
        (0.01, 768, 7),
        (0.001, 768, 0),
        (0.29, 100, 29),  # 0.29 · 100 is 28.999999999999996
        (1, 768, 768),
        (0, 768, 0),
    ],
)
def test_rank_from_rho_is_lasers(rho: float, d: int, kept: int) -> None:
    assert ranks.rank_from_rho(rho, d) == kept


@given(st.integers(0, 10_000), st.integers(1, 20_000))
def test_rank_from_rho_is_floor_in_whole_numbers(ten_thousandths: int, d: int) -> None:
    assert ranks.rank_from_rho(ten_thousandths / 10_000, d) == ten_thousandths * d // 10_000


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_fractions_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"^rho={value!r}: give a fraction, from 0 to 1"):
        ranks.rank_from_rho(value, 10)
    with pytest.raises(ValueError, match=f"^energy={value!r}: give a fraction, from 0 to 1"):
        ranks.rank_from_energy(torch.ones(3), value)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.integers(0, 100))
def test_rank_from_energy_is_the_first_sum_that_reaches_it(values: list[int], percent: int) -> None:
    squares = [v**2 for v in values]
    reached = [r for r in range(len(values) + 1) if 100 * sum(squares[:r]) >= percent * sum(squares)]
    assert ranks.rank_from_energy(torch.tensor(values, dtype=torch.float32), percent / 100) == reached[0]


def test_all_of_the_energy_is_every_component_but_zeros() -> None:
    S = torch.tensor([1e4, 1.0, 1e-6, 1e-12, 0.0, 0.0])
    assert ranks.rank_from_energy(S, 1) == 4
    assert ranks.rank_from_energy(S.flip(0), 1) == 6
    assert ranks.rank_from_energy(torch.zeros(4), 1) == 0
    assert ranks.rank_from_energy(torch.zeros(0), 0.5) == 0


@pytest.mark.parametrize("beta", [1.0, 0.999, 0.75, 0.25, 0.1, 1 / 48, 1e-3, 1e-5])
def test_the_marchenko_pastur_median_halves_the_law(beta: float) -> None:
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    middle = ranks.marchenko_pastur_median(beta)

    def density(x: float) -> float:
        return math.sqrt(max((high - x) * (x - low), 0)) / (2 * math.pi * beta * x)

    assert low < middle < high
    for a, b in ((low, middle), (middle, high)):
        assert integrate.quad(density, a, b, limit=500)[0] == pytest.approx(0.5, abs=1e-6)


def test_the_marchenko_pastur_median_is_that_of_simulated_spectra() -> None:
    for m, n in ((500, 500), (200, 1000)):
        eigenvalues = np.linalg.svd(np.random.default_rng(0).standard_normal((m, n)), compute_uv=False) ** 2 / n
        assert ranks.marchenko_pastur_median(m / n) == pytest.approx(np.median(eigenvalues), rel=0.02)


@pytest.mark.parametrize("beta", [0.0, -1.0, 1.5, math.nan])
def test_the_law_needs_a_ratio(beta: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and at most 1. Turn it over"):
        ranks.marchenko_pastur_median(beta)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_edge_of_noise_is_found_with_and_without_spikes(shape: tuple[int, int]) -> None:
    for spikes in (0, 5, min(shape) // 3):
        true = 0.3 * sum(math.sqrt(d - spikes) for d in shape)
        S = planted(*shape, spikes=spikes, strength=1.5, seed=1)
        assert ranks.noise_edge(S, *shape) == pytest.approx(true, rel=0.03)
        assert ranks.noise_edge(7 * S, *shape) == pytest.approx(7 * ranks.noise_edge(S, *shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise_alone_keeps_one_component_at_most(shape: tuple[int, int]) -> None:
    spectra = [planted(*shape, spikes=0, strength=0, seed=seed) for seed in range(25)]
    assert max(ranks.marchenko_pastur_rank(S, *shape) for S in spectra) <= 1
    assert max(ranks.gavish_donoho_rank(S, *shape) for S in spectra) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [1 / 64, 1 / 10, 1 / 4, 2 / 5])
def test_planted_spikes_are_counted(shape: tuple[int, int], share: float) -> None:
    spikes = math.ceil(share * min(shape))
    for seed in range(5):
        S = planted(*shape, spikes=spikes, strength=2, seed=seed)
        assert spikes <= ranks.marchenko_pastur_rank(S, *shape) <= spikes + 2
        assert ranks.gavish_donoho_rank(S, *shape) == spikes


@pytest.mark.parametrize("shape", [(64, 768), (128, 128), (200, 500)], ids=str)
@pytest.mark.parametrize("dead_share", [0.1, 0.5, 0.8])
def test_dead_rows_do_not_pass_for_silence(shape: tuple[int, int], dead_share: float) -> None:
    dead = int(dead_share * shape[0])
    S = planted(*shape, spikes=3, strength=4, seed=2, dead_rows=dead)
    alive = planted(*shape, spikes=3, strength=4, seed=2, dead_rows=dead)[: shape[0] - dead]
    for rule in (ranks.marchenko_pastur_rank, ranks.gavish_donoho_rank):
        assert 3 <= rule(S, *shape) <= 4
        assert rule(S + 1e-7 * S[0], *shape) == rule(S, *shape)  # zeros as an fp32 SVD leaves them
        assert rule(alive, *shape) == rule(S, *shape)  # zeros left out


@pytest.mark.parametrize(
    ("S", "kept"), [([0.0] * 6, 0), ([5.0, 3.0, 0, 0, 0, 0], 2), ([5.0], 1), ([5.0, 4.9, 4.8, 4.7, 4.6, 4.5], 0)]
)
def test_of_a_few_values_zeros_alone_are_left_out(S: list[float], kept: int) -> None:
    """A handful of values says nothing about noise if the others are zero; six without a zero may be all noise."""
    assert ranks.marchenko_pastur_rank(torch.tensor(S), 6, 40) == kept
    assert ranks.gavish_donoho_rank(torch.tensor(S), 6, 40) == kept
    assert (ranks.noise_edge(torch.tensor(S), 6, 40) > 0) == (0.0 not in S and len(S) == 6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2)])
def test_the_smallest_matrices_have_ranks(shape: tuple[int, int]) -> None:
    S = torch.ones(min(shape))
    assert ranks.marchenko_pastur_rank(S, *shape) == ranks.gavish_donoho_rank(S, *shape) == 0


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.25, 0.1])
def test_the_hard_threshold_is_the_papers(beta: float) -> None:
    """A value just above ω·median is kept, one just below is not; ω from the paper's equations, and near its cubic."""
    n, m = 4000, round(4000 * beta)
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def share(x: float) -> float:
        value = integrate.quad(lambda t: math.sqrt((high - t) * (t - low)) / (2 * math.pi * beta * t), low, x)[0]
        return value - 0.5

    middle = optimize.brentq(share, low + 1e-6, high)
    root = (beta + 1) + math.sqrt(beta**2 + 14 * beta + 1)
    omega = math.sqrt(2 * (beta + 1) + 8 * beta / root) / math.sqrt(middle)
    assert omega == pytest.approx(0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, abs=0.03)
    S = torch.ones(m, dtype=torch.float64)
    for factor, kept in ((1.001, 1), (0.999, 0)):
        S[0] = factor * omega
        assert ranks.gavish_donoho_rank(S, m, n) == kept


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_effective_and_stable_rank_are_their_formulas(values: list[float]) -> None:
    S = torch.tensor(values, dtype=torch.float64)
    shares = [v / sum(values) for v in values]
    entropy = -sum(p * math.log(p) for p in shares)
    assert ranks.effective_rank(S) == pytest.approx(math.exp(entropy))
    assert ranks.stable_rank(S) == pytest.approx(sum(v * v for v in values) / max(values) ** 2)
    assert 1 - 1e-9 <= ranks.stable_rank(S) <= len(values) + 1e-9


def test_effective_rank_counts_equal_values_and_ignores_zeros() -> None:
    S = torch.tensor([2.0, 2.0, 2.0, 0.0])
    assert ranks.effective_rank(S) == pytest.approx(3)
    assert ranks.stable_rank(S) == pytest.approx(3)
    assert ranks.rank_from_entropy(S, 4, 9) == 3
    assert ranks.rank_from_entropy(torch.tensor([1.0, 0.7]), 2, 2) == 2  # 1.97
    assert ranks.effective_rank(torch.zeros(3)) == ranks.stable_rank(torch.zeros(3)) == 0
    assert ranks.rank_from_entropy(torch.zeros(3), 3, 3) == 0


@pytest.mark.parametrize("rule", ranks.RULES.values(), ids=ranks.RULES)
def test_rules_read_any_precision_and_refuse_what_is_no_spectrum(rule) -> None:
    S = planted(40, 90, spikes=4, strength=3, seed=0)
    kept = rule(S, 40, 90)
    assert isinstance(kept, int)
    assert kept == rule(S.double(), 40, 90) == rule(S.bfloat16(), 40, 90) == rule(S.requires_grad_(), 40, 90)
    with pytest.raises(
        ValueError, match=r"^41 singular values for a 40 x 90 matrix, which has from 1 to 40: pass those"
    ):
        rule(torch.ones(41), 40, 90)
    with pytest.raises(ValueError, match=r"^0 singular values for a 40 x 90 matrix"):
        rule(torch.ones(0), 40, 90)
    with pytest.raises(ValueError, match=r"do not fall from first to last: a rank means the leading ones. Sort them"):
        rule(torch.tensor([1.0, 2.0]), 40, 90)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(
            ValueError, match=r"^1 of 2 singular values are negative, NaN or infinite.* Pass S as an SVD"
        ):
            rule(torch.tensor([1.0, bad]), 40, 90)
