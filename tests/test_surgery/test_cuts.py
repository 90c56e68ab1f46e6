"""Keeping and dropping the ends of the spectrum, by rank, fraction, energy and rule."""

import pytest
import torch
from by_hand import low_rank, regained
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surgery import SVD, DropBottom, DropTop, KeepBottom, KeepTop, RandomizedSVD, RowBlocks
from surgery.bases import Basis
from surgery.decompositions import Decomposition
from surgery.specs import recompose

GENERATOR = torch.Generator().manual_seed(4)
W = torch.randn(20, 12, generator=GENERATOR, dtype=torch.float64)
N = 12
ALL = (KeepTop, KeepBottom, DropTop, DropBottom)


def decomposition_of(W: Tensor, basis: Basis | None = None) -> Decomposition:
    basis = basis or SVD()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False) if basis == SVD() else basis.decompose(W)
    return Decomposition("blocks.0.mlp.W_out", U, S, Vh, basis, "0" * 32, "raw")


def edited(edit: KeepTop, W: Tensor = W, basis: Basis | None = None) -> Tensor:
    parts = decomposition_of(W, basis)
    return recompose(W, parts, edit.gains(parts))


def kept_by(edit: KeepTop, W: Tensor = W) -> list[int]:
    return edit.gains(decomposition_of(W)).values.nonzero().flatten().tolist()


@given(st.integers(0, N))
def test_the_top_is_eckart_and_young_s_and_the_others_follow(rank: int) -> None:
    top = low_rank(W, rank)
    torch.testing.assert_close(edited(KeepTop(rank=rank)), top, rtol=0, atol=1e-12)
    torch.testing.assert_close(edited(DropTop(rank=rank)), W - top, rtol=0, atol=1e-12)
    without = low_rank(W, N - rank)
    torch.testing.assert_close(edited(KeepBottom(rank=rank)), W - without, rtol=0, atol=1e-12)
    torch.testing.assert_close(edited(DropBottom(rank=rank)), without, rtol=0, atol=1e-12)


choices = st.one_of(
    st.fixed_dictionaries({"rank": st.integers(0, N)}),
    st.fixed_dictionaries({"rho": st.floats(0, 1)}),
    st.fixed_dictionaries({"energy": st.floats(0, 1)}),
    st.fixed_dictionaries({"rule": st.sampled_from(["marchenko-pastur", "gavish-donoho", "effective-rank"])}),
)


@given(choices)
def test_keeping_and_dropping_the_same_are_exact_complements(choice: dict) -> None:
    parts = decomposition_of(W)
    for keep, drop in ((KeepTop, DropTop), (KeepBottom, DropBottom)):
        mine, theirs = keep(**choice).gains(parts), drop(**choice).gains(parts)
        assert torch.equal(mine.values + theirs.values, torch.ones_like(mine.values))
        assert mine.rest + theirs.rest == 1
        torch.testing.assert_close(edited(keep(**choice)) + edited(drop(**choice)), W, rtol=0, atol=1e-12)


@given(st.integers(0, N))
def test_top_and_bottom_of_two_ranks_that_add_up_are_the_matrix(rank: int) -> None:
    both = edited(KeepTop(rank=rank)) + edited(KeepBottom(rank=N - rank))
    torch.testing.assert_close(both, W, rtol=0, atol=1e-12)
    assert kept_by(KeepTop(rank=rank)) + kept_by(KeepBottom(rank=N - rank)) == list(range(N))


@pytest.mark.parametrize(
    ("d", "rho", "rank"),
    [
        (100, 0.29, 29),
        (100, 0.57, 57),
        (100, 0.999, 99),
        (768, 0.01, 7),
        (768, 0.001, 0),
        (768, 1.0, 768),
        (40, 0.05, 2),
    ],
)
def test_rho_rounds_down_the_full_rank(d: int, rho: float, rank: int) -> None:
    parts = Decomposition("blocks.0.mlp.W_in", torch.zeros(d, d), torch.ones(d), torch.zeros(d, d), SVD(), "", "raw")
    assert KeepTop(rho=rho).count(parts) == rank
    assert KeepBottom(rho=rho).gains(parts).values.tolist() == [0.0] * (d - rank) + [1.0] * rank


@given(st.one_of(st.floats(1e-6, 1 - 1e-6), st.sampled_from([0.0, 1.0])))
def test_energy_is_the_fewest_components_that_hold_it(energy: float) -> None:
    squares = torch.linalg.svdvals(W).square()
    total = float(squares.sum())

    def fewest(ordered: list[float]) -> int:
        for count in range(N + 1):
            if sum(ordered[:count]) >= (energy - 1e-12) * total:
                return count
        return N

    assert len(kept_by(KeepTop(energy=energy))) == fewest(squares.tolist())
    assert len(kept_by(KeepBottom(energy=energy))) == fewest(squares.flip(0).tolist())


@pytest.mark.parametrize("rule", ["marchenko-pastur", "gavish-donoho"])
def test_a_rule_keeps_planted_components(rule: str) -> None:
    noise = torch.randn(200, 120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spikes = regained(noise, torch.tensor([20.0, 15.0, 10.0] + [0.0] * 117))
    assert 3 <= len(kept_by(KeepTop(rule=rule), noise + spikes)) <= 5
    assert len(kept_by(DropTop(rule=rule), noise + spikes)) == 120 - len(kept_by(KeepTop(rule=rule), noise + spikes))


def test_the_effective_rank_of_equal_strengths_is_their_number() -> None:
    Q = torch.linalg.qr(torch.randn(20, 5, generator=GENERATOR, dtype=torch.float64)).Q
    assert len(kept_by(KeepTop(rule="effective-rank"), Q @ Q.T)) == 5


class TestLeadingComponentsOnly:
    """A randomised basis holds the first few components; the rest of the matrix is there all the same."""

    basis = RandomizedSVD(rank=8, seed=0, n_iter=200)

    @pytest.mark.parametrize(("edit", "rank"), [(KeepTop, 5), (DropBottom, 7), (DropBottom, 12), (KeepTop, 8)])
    def test_keeping_the_top(self, edit: type[KeepTop], rank: int) -> None:
        top = low_rank(W, rank if edit is KeepTop else N - rank)
        torch.testing.assert_close(edited(edit(rank=rank, basis=self.basis), basis=self.basis), top, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("edit", "rank"), [(DropTop, 5), (KeepBottom, 7), (KeepBottom, 12), (DropTop, 8)])
    def test_keeping_the_bottom(self, edit: type[KeepTop], rank: int) -> None:
        rest = W - low_rank(W, rank if edit is DropTop else N - rank)
        torch.testing.assert_close(edited(edit(rank=rank, basis=self.basis), basis=self.basis), rest, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("edit", "after"),
        [(KeepTop(rho=0.9, basis=basis), 10), (DropTop(rank=9, basis=basis), 9), (KeepBottom(rank=1, basis=basis), 11)],
    )
    def test_a_cut_beyond_them_is_refused(self, edit: KeepTop, after: int) -> None:
        with pytest.raises(ValueError) as error:
            edit.gains(decomposition_of(W, self.basis))
        assert str(error.value) == (
            f"{edit!r} cuts 'blocks.0.mlp.W_out' after component {after}, but RandomizedSVD(rank=8, seed=0, "
            "n_iter=200) "
            "holds the leading 8 only: choose a basis of a larger rank."
        )

    @pytest.mark.parametrize("choice", [{"energy": 0.5}, {"rule": "gavish-donoho"}])
    def test_what_needs_the_whole_spectrum_is_refused(self, choice: dict) -> None:
        for cut in ALL:
            edit = cut(**choice, basis=self.basis)
            with pytest.raises(ValueError) as error:
                edit.gains(decomposition_of(W, self.basis))
            assert str(error.value) == (
                f"{edit!r} needs the whole spectrum of 'blocks.0.mlp.W_out', of which {self.basis!r} holds 8 of 12 "
                "components: give a rank or rho, or use SVD()."
            )


def test_row_blocks_have_more_components_than_the_rank() -> None:
    basis = RowBlocks(2)
    parts = decomposition_of(W, basis)
    assert parts.n_components == 20
    torch.testing.assert_close(edited(KeepTop(rank=20, basis=basis), basis=basis), W, rtol=0, atol=1e-12)
    top = edited(KeepTop(rank=3, basis=basis), basis=basis)
    blocks = [torch.linalg.svd(rows, full_matrices=False) for rows in (W[:10], W[10:])]
    ranked = sorted(((float(s), b, i) for b, (_, S, _) in enumerate(blocks) for i, s in enumerate(S)), reverse=True)
    by_hand = torch.zeros_like(W)
    for s, b, i in ranked[:3]:
        U, _, Vh = blocks[b]
        by_hand[10 * b : 10 * b + 10] += s * torch.outer(U[:, i], Vh[i])
    torch.testing.assert_close(top, by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", ALL)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {},
            "was given no rank: give exactly one of rank=, rho=, energy= or rule= (marchenko-pastur, gavish-donoho, "
            "effective-rank).",
        ),
        ({"rank": 1, "rho": 0.5}, "was given rank and rho: give exactly one of rank=, rho=, energy= or rule="),
        ({"rho": -0.1}, "was given rho=-0.1: give a fraction, from 0 to 1."),
        ({"rho": 1.5}, "was given rho=1.5: give a fraction, from 0 to 1."),
        ({"rho": float("nan")}, "was given rho=nan: give a fraction, from 0 to 1."),
        ({"energy": 2.0}, "was given energy=2.0: give a fraction, from 0 to 1."),
        ({"rank": -1}, "was given rank=-1: give a whole number, 0 or more."),
        (
            {"rule": "elbow"},
            "was given rule='elbow': it is one of 'marchenko-pastur', 'gavish-donoho', '",
        ),
    ],
)
def test_a_cut_that_means_nothing_is_refused(cut: type[KeepTop], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        cut(**arguments)
    assert f"{cut.__name__} {message}" in str(error.value)


@pytest.mark.parametrize("cut", ALL)
def test_a_rank_above_the_maximum_is_refused(cut: type[KeepTop]) -> None:
    with pytest.raises(ValueError) as error:
        cut(rank=13).gains(decomposition_of(W))
    assert str(error.value) == (
        f"{cut.__name__}(rank=13) asks for more components than 'blocks.0.mlp.W_out' has: 12 (it is 20 x 12). "
        "Give a smaller rank, or rho, a fraction."
    )


def test_cuts_are_values() -> None:
    assert KeepTop(rank=3) == KeepTop(rank=3) != KeepBottom(rank=3)
    assert len({KeepTop(rho=0.1), KeepTop(rho=0.1), KeepTop(energy=0.1)}) == 2
    assert repr(KeepTop(rho=0.05)) == "KeepTop(rho=0.05)"
    assert repr(DropBottom(rank=2, basis=RowBlocks(3))) == "DropBottom(rank=2, basis=RowBlocks(blocks=3))"
