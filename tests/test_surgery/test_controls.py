"""Controls: as many components, or as much energy, or the same spectrum, and nothing in particular."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import borrowed

import surgery
from surgery import SVD, Gains, RandomBasis, RandomComponents
from surgery.bases import HaarBasis
from surgery.controls import matched, nearest_energy, random_directions
from surgery.decompositions import Decomposition

N = 12
W = torch.randn(20, N, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def decomposition_of(W: torch.Tensor, fingerprint: str = "0123456789abcdef" * 2) -> Decomposition:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return Decomposition("blocks.0.mlp.W_out", U, S, Vh, SVD(), fingerprint, "raw")


def removed_by(edit: RandomComponents, parts: Decomposition | None = None) -> list[int]:
    gains = edit.gains(parts or decomposition_of(W))
    assert set(gains.values.tolist()) <= {0.0, 1.0}
    assert gains.rest == 1
    return (gains.values == 0).nonzero().flatten().tolist()


@given(st.integers(0, N), st.integers(0, 2**63 - 1))
def test_as_many_components_are_removed_as_asked(count: int, seed: int) -> None:
    edit = RandomComponents(count=count, seed=seed)
    assert len(removed_by(edit)) == count
    assert removed_by(edit) == removed_by(RandomComponents(count=count, seed=seed))


def test_every_component_is_drawn_equally_often() -> None:
    drawn = torch.zeros(N)
    for seed in range(1200):
        drawn[removed_by(RandomComponents(count=3, seed=seed))] += 1
    assert drawn.sum() == 3600
    assert drawn.min() > 230
    assert drawn.max() < 370


def test_a_larger_count_removes_more_of_the_same_draw() -> None:
    for seed in range(5):
        few, many = (set(removed_by(RandomComponents(count=count, seed=seed))) for count in (3, 7))
        assert few < many


def test_two_matrices_get_two_draws_from_one_seed() -> None:
    draws = {
        tuple(removed_by(RandomComponents(count=6, seed=1), decomposition_of(W, f"{i:012x}" + "0" * 20)))
        for i in range(9)
    }
    assert len(draws) > 6


@given(st.floats(0, 1), st.integers(0, 1000))
def test_as_much_energy_is_removed_as_no_component_left_could_bring_nearer(energy: float, seed: int) -> None:
    share = torch.linalg.svdvals(W).square()
    share = share / share.sum()
    chosen = removed_by(RandomComponents(energy=energy, seed=seed))
    missed = abs(float(share[chosen].sum()) - energy)
    cuts = [removed_by(RandomComponents(count=count, seed=seed)) for count in range(N + 1)]
    assert missed <= min(abs(float(share[cut].sum()) - energy) for cut in cuts) + 1e-12  # no cut of the order is nearer
    assert missed <= float(share.max()) / 2 + 1e-12
    left = [i for i in range(N) if i not in chosen]
    if float(share[chosen].sum()) < energy:
        assert all(abs(float(share[[*chosen, i]].sum()) - energy) >= missed - 1e-12 for i in left)


def test_what_would_overshoot_is_passed_over_and_weaker_components_fill_the_gap() -> None:
    shares = torch.tensor([0.64, 0.09, 0.09, 0.09, 0.09], dtype=torch.float64)
    matrix = torch.diag(shares.sqrt())
    for seed in range(20):
        assert len(removed_by(RandomComponents(energy=0.27, seed=seed), decomposition_of(matrix))) == 3
    assert nearest_energy([1, 0, 2, 3, 4], shares, 0.27) == [1, 2, 3]
    assert nearest_energy([0, 1, 2, 3, 4], shares, 0.7) == [0, 1]
    assert nearest_energy([4, 3], shares, 0.0) == []


@given(st.lists(st.floats(0, 1), min_size=N, max_size=N), st.integers(0, 99))
def test_a_matched_control_removes_as_much_as_the_gains_do(gains: list[float], seed: int) -> None:
    parts, values = decomposition_of(W), torch.tensor(gains, dtype=torch.float64)
    squares = torch.linalg.svdvals(W).square()
    by_count, by_energy, by_spectrum = (
        matched(Gains(values, 1.0), parts, by=by, seed=seed) for by in ("count", "energy", "spectrum")
    )
    assert by_count == RandomComponents(count=round(N - sum(gains)), seed=seed)
    assert isinstance(by_energy, RandomComponents)
    edited = (values.square() * squares).sum() / squares.sum()  # of the squared Frobenius norm
    assert by_energy.energy == pytest.approx(1 - float(edited), abs=1e-9)
    assert by_spectrum == RandomBasis(seed)


def test_random_directions_are_orthonormal_and_even_in_the_span() -> None:
    span = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64)).Q.mT
    generator = torch.Generator().manual_seed(0)
    drawn = [random_directions(span, 2, generator) for _ in range(400)]
    for directions in drawn[:5]:
        torch.testing.assert_close(directions @ directions.mT, torch.eye(2, dtype=torch.float64))
        torch.testing.assert_close(directions @ span.mT @ span, directions)
    # The mean projection on a uniform plane of a space of 4 dimensions is half of the identity.
    mean = torch.stack([span @ directions.mT @ directions @ span.mT for directions in drawn]).mean(0)
    torch.testing.assert_close(mean, torch.eye(4, dtype=torch.float64) / 2, atol=0.06, rtol=0)


def test_a_random_basis_keeps_the_spectrum_and_nothing_else() -> None:
    with borrowed("bridge gpt2") as model:
        site = "blocks.0.mlp.W_out"
        original = surgery.decompose(model, site)[site]
        full = (original.U * original.S) @ original.Vh
        drawn = []
        for seed in (0, 1):
            with surgery.apply(model, {site: RandomBasis(seed)}) as operation:
                drawn.append(operation.weight(site).clone())
            torch.testing.assert_close(
                torch.linalg.svdvals(drawn[-1]), torch.linalg.svdvals(full), rtol=1e-5, atol=1e-6
            )
        cosines = [
            float((a * b).sum() / (a.norm() * b.norm())) for a, b in ((drawn[0], full), (drawn[1], full), tuple(drawn))
        ]
        assert max(map(abs, cosines)) < 0.15
        with surgery.apply(model, {site: RandomBasis(0)}) as operation:
            assert torch.equal(operation.weight(site), drawn[0])


def test_parts_of_a_random_basis_take_the_matrix_s_place_too() -> None:
    with borrowed("bridge gpt2") as model:
        site = "blocks.0.mlp.W_out"
        with surgery.apply(model, {site: RandomBasis(3)}) as operation:
            whole = operation.weight(site).clone()
        with surgery.apply(model, {site: surgery.Drop([0], basis=HaarBasis(3))}) as operation:
            without = operation.weight(site).clone()
        S = torch.linalg.svdvals(whole)
        torch.testing.assert_close(
            torch.linalg.svdvals(without), torch.cat([S[1:], torch.zeros(1)]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 0}, "RandomComponents was given count=None and energy=None: give exactly one of them."),
        (
            {"seed": 0, "count": 1, "energy": 0.5},
            "RandomComponents was given count=1 and energy=0.5: give exactly one of them.",
        ),
        ({"seed": 0, "count": -1}, "RandomComponents was given count=-1: give a whole number, 0 or more."),
        ({"seed": 0, "energy": 1.5}, "RandomComponents was given energy=1.5: give a fraction, from 0 to 1."),
        ({"seed": 0, "energy": float("nan")}, "RandomComponents was given energy=nan: give a fraction, from 0 to 1."),
        (
            {"seed": -1, "count": 1},
            "RandomComponents was given seed=-1: give a whole number, from 0 to 9223372036854775807.",
        ),
    ],
)
def test_a_control_that_means_nothing_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        RandomComponents(**arguments)
    assert str(error.value) == message


def test_more_components_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        removed_by(RandomComponents(count=13, seed=0))
    assert str(error.value) == (
        "RandomComponents(seed=0, count=13) asks for more components than 'blocks.0.mlp.W_out' has: 12. "
        "Give a smaller count."
    )


def test_controls_are_values() -> None:
    assert RandomBasis(1) == RandomBasis(1) != RandomBasis(2)
    assert RandomBasis(1).basis == HaarBasis(1)
    assert repr(RandomBasis(1)) == "RandomBasis(seed=1)"
    assert repr(RandomComponents(count=2, seed=0)) == "RandomComponents(seed=0, count=2)"
