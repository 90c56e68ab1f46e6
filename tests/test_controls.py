"""Controls: as many components, or as much energy, or the same spectrum, and nothing in particular."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import borrowed

import surgery
from surgery import SVD, RandomBasis, RandomComponents
from surgery.bases import HaarBasis
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
def test_as_much_energy_is_removed_as_one_component_more_or_less_allows(energy: float, seed: int) -> None:
    share = torch.linalg.svdvals(W).square()
    share = share / share.sum()
    chosen = removed_by(RandomComponents(energy=energy, seed=seed))
    missed = abs(float(share[chosen].sum()) - energy)
    drawn_in_order = [removed_by(RandomComponents(count=count, seed=seed)) for count in range(N + 1)]
    assert chosen in drawn_in_order
    assert missed <= min(abs(float(share[part].sum()) - energy) for part in drawn_in_order) + 1e-12
    assert missed <= float(share.max()) / 2 + 1e-12


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
