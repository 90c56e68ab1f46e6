"""Leading components alone: as in the whole decomposition, or not handed out, against numpy in fp64."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from by_hand import read
from models import ONE_OF_EACH, borrowed, build, tokens
from torch import Tensor

import surgery
from analyses import attribution, metrics
from analyses.laser import Candidate
from analyses.laser._promises import _removed
from hooks import Site
from surgery import SVD, Drop, DropTop, Keep, KeepBottom, KeepTop, LeadingSVD, Scale, leading_svd, svd
from surgery.leading_svd import TOLERANCE, _bounds, _is_all, leading

SITE, RANK = "blocks.0.mlp.W_out", 12
GENERATOR = torch.Generator().manual_seed(7)
LEFT = torch.linalg.qr(torch.randn(520, 300, generator=GENERATOR, dtype=torch.float64)).Q
RIGHT = torch.linalg.qr(torch.randn(300, 300, generator=GENERATOR, dtype=torch.float64)).Q
INDEX = torch.arange(1.0, 301, dtype=torch.float64)
SPECTRA = {
    "falls": INDEX**-1.0,
    "spikes in noise": torch.cat([torch.linspace(9, 3, 40), torch.linspace(1, 0.5, 260)]).double(),
    "equal values among the leading ones": torch.cat([torch.full((6,), 4.0), INDEX[6:] ** -0.7]).double(),
    "more equal ones than a block holds": torch.cat([torch.full((10,), 4.0), INDEX[10:] ** -0.7]).double(),
    "weak but apart": torch.cat([torch.ones(1), 0.05 * INDEX[:-1] ** -1.0]).double(),
}


def matrix(S: Tensor) -> Tensor:
    return ((LEFT * S) @ RIGHT.T).float()


@pytest.fixture
def only_iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole decomposition is a failure from here on, and so is a warning of one."""

    def refuse(*_: object) -> None:
        raise AssertionError("everything was decomposed")

    monkeypatch.setattr(svd, "exact", refuse)
    monkeypatch.setattr(svd, "gram_route", refuse)


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "tall") for name in SPECTRA), *(("falls", form) for form in ("wide", "strided", "bf16"))],
)
def test_the_matrix_cut_after_any_component_is_that_of_the_whole_decomposition(
    name: str, form: str, only_iterated: None
) -> None:
    W = matrix(SPECTRA[name])
    W = {"tall": W, "wide": W.T.contiguous(), "strided": W.T, "bf16": W.bfloat16()}[form]
    found = leading(W, RANK)
    U, S, Vh = np.linalg.svd(W.double().numpy(), full_matrices=False)
    assert [part.shape for part in found] == [(W.shape[0], RANK), (RANK,), (RANK, W.shape[1])]
    assert {part.dtype for part in found} == {torch.float32} and all(part.is_contiguous() for part in found)
    np.testing.assert_allclose(found.S.numpy(), S[:RANK], rtol=0, atol=3e-7 * S[0])
    tried = 0
    for cut in range(1, RANK + 1):
        if S[cut - 1] - S[cut] <= 1e-5 * S[0]:
            continue
        ours = (found.U[:, :cut].double() * found.S[:cut]) @ found.Vh[:cut].double()
        exact = (U[:, :cut] * S[:cut]) @ Vh[:cut]
        # What rounding U, S and Vh to fp32 adds is no part of the bound.
        assert np.linalg.norm(ours.numpy() - exact, 2) <= (TOLERANCE + 2e-6) * S[0], cut
        tried += 1
    assert tried >= 3
    for part in (found.U.T, found.Vh):
        torch.testing.assert_close(part @ part.T, torch.eye(RANK), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "S",
    [
        torch.where(INDEX <= 30, 2.0, 1.0).double(),  # a cut between equal values
        torch.where(INDEX <= 10, 12.0 - INDEX, 0.0).double(),  # fewer components than are asked for
        torch.zeros(300, dtype=torch.float64),
        torch.linspace(1, 0.999, 300, dtype=torch.float64),  # nothing stands apart
    ],
    ids=["tied", "deficient", "zero", "flat"],
)
def test_where_the_bound_does_not_hold_everything_is_decomposed_and_that_is_said(S: Tensor) -> None:
    W = matrix(S).T.contiguous()
    with pytest.warns(UserWarning, match="the leading 12 components of a .* matrix lie too close to those after them"):
        found = leading(W, RANK)
    U, S, Vh = svd.exact(W)
    for ours, exact in zip(found, (U[:, :RANK], S[:RANK], Vh[:RANK]), strict=True):
        assert torch.equal(ours, exact)


@pytest.mark.parametrize(
    ("W", "rank"),
    [
        (torch.randn(40, 30), 5),
        (torch.randn(40, 30), 99),
        (matrix(SPECTRA["falls"]), 31),
        (matrix(SPECTRA["falls"]).double(), 5),
        (torch.randn(3, 40, 30), 5),
    ],
    ids=["small", "all", "a large share", "fp64", "heads"],
)
def test_what_is_not_worth_iterating_is_the_whole_decomposition_cut(W: Tensor, rank: int) -> None:
    U, S, Vh = svd.exact(W)
    for ours, exact in zip(leading(W, rank), (U[..., :rank], S[..., :rank], Vh[..., :rank, :]), strict=True):
        assert torch.equal(ours, exact)


def test_it_is_the_same_every_time_and_leaves_the_global_seed_alone() -> None:
    torch.manual_seed(0)
    first = leading(matrix(SPECTRA["falls"]), RANK)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert all(map(torch.equal, first, leading(matrix(SPECTRA["falls"]), RANK)))


def test_a_component_that_was_missed_is_noticed() -> None:
    G = torch.diag(torch.tensor([10.0, 9.0, 8.0, 1.0, 0.5], dtype=torch.float64))
    eye = torch.eye(5, dtype=torch.float64)
    values = torch.tensor([10.0, 9.0, 8.0], dtype=torch.float64)
    assert _is_all(G, values, eye[:, [0, 1]])
    assert not _is_all(G, values[[0, 2, 2]], eye[:, [0, 2]])


def rotated() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A matrix, its leading right vectors, and others near them."""
    for seed, size in enumerate((1e-3, 1e-5, 1e-7, 1e-9)):
        A = matrix(SPECTRA["falls"]).double()
        V = torch.linalg.svd(A, full_matrices=False).Vh[:RANK].T
        noise = torch.randn(V.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        turned = torch.linalg.qr(V + size * noise).Q
        # Rayleigh and Ritz, as the vectors of an iteration are.
        _, Y = torch.linalg.eigh((A @ turned).T @ (A @ turned))
        yield A, V, turned @ Y.flip(-1)


def test_the_bound_holds_for_vectors_that_are_off() -> None:
    for A, V, turned in rotated():
        G = A.T @ A
        values = torch.cat([(A @ turned).square().sum(0), torch.linalg.eigvalsh(G).flip(0)[RANK : RANK + 1]])
        bounds = _bounds(values, (G @ turned - turned * values[:-1]).norm(dim=0))
        s_1 = torch.linalg.matrix_norm(A, 2)
        for cut in range(1, RANK + 1):
            off = A @ (turned[:, :cut] @ turned[:, :cut].T - V[:, :cut] @ V[:, :cut].T)
            assert float(torch.linalg.matrix_norm(off) / s_1) <= float(bounds[cut - 1])
    assert float(bounds.max()) < 1e-4  # of the vectors that are least off


def test_what_is_not_finite_or_no_matrix_is_refused() -> None:
    W = matrix(SPECTRA["falls"])
    W[3, 4] = float("nan")
    for bad in (W, torch.randn(5), torch.ones(300, 300, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"finite|has no SVD here"):
            leading(bad, RANK)
    for rank in (0, -1):
        with pytest.raises(ValueError, match=r"LeadingSVD was given rank=.*: give a whole number, 1 or more"):
            LeadingSVD(rank)


EDITS = [
    lambda basis: KeepTop(rank=3, basis=basis),
    lambda basis: KeepTop(rho=0.1, basis=basis),
    lambda basis: DropTop(rank=2, basis=basis),
    lambda basis: KeepBottom(rank=30, basis=basis),
    lambda basis: Keep([0, 4], basis=basis),
    lambda basis: Drop([1, 3], basis=basis),
    lambda basis: Scale({0: 0.5, 2: 3.0}, basis=basis),
]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_and_its_report_are_those_of_all_components(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype=dtype)
    before = read(model, SITE).clone()
    for make in EDITS:
        shown, tables = [], []
        for basis in (SVD(), LeadingSVD(5)):
            with surgery.apply(model, {SITE: make(basis)}) as operation:
                shown.append(operation.weight(SITE).clone())
                tables.append(operation.to_dataframe()[["energy", "relative_error"]].astype(float))
            assert torch.equal(read(model, SITE), before)
        torch.testing.assert_close(*shown, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-2)
        np.testing.assert_allclose(*tables, rtol=0, atol=1e-5)
    for too_far in (KeepTop(rank=6, basis=LeadingSVD(5)), KeepTop(energy=0.9, basis=LeadingSVD(5))):
        with pytest.raises(ValueError, match=r"LeadingSVD\(rank=5\) holds"):
            surgery.apply(model, {SITE: too_far})


def test_energies_are_shares_of_the_whole_matrix_and_what_needs_all_values_is_not_told(tmp_path) -> None:
    with borrowed("bridge gpt2") as model:
        every, some = (surgery.decompose(model, SITE, basis=basis) for basis in (SVD(), LeadingSVD(5)))
        torch.testing.assert_close(some[SITE].energy, every[SITE].energy[:5], rtol=1e-5, atol=0)
        ranks = [svds.ranks_to_dataframe().iloc[0] for svds in (every, some)]
        assert np.isnan(ranks[1].effective_rank) and not np.isnan(ranks[0].effective_rank)
        assert ranks[1].stable_rank == pytest.approx(ranks[0].stable_rank, rel=1e-5)
        some.save(tmp_path / "some.safetensors")
        assert torch.equal(surgery.Decompositions.load(tmp_path / "some.safetensors")[SITE].energy, some[SITE].energy)
        surgery.forget(model)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_effects_of_leading_components_are_those_that_they_have_among_all(kind: str) -> None:
    metric = metrics.logit_difference(3, 5)
    with borrowed(kind) as model:
        for method in (attribution.by_gradient, attribution.by_ablation):
            every = method(model, tokens(), metric, SITE, progress=False)
            some = method(model, tokens(), metric, SITE, basis=LeadingSVD(5), progress=False)
            torch.testing.assert_close(some[SITE], every[SITE][:5], rtol=1e-3, atol=1e-6)
        chosen = some.top(2)
        with surgery.apply(model, chosen.drop()):
            dropped = surgery.weight(model, SITE).clone()
        with surgery.apply(model, {SITE: Drop([i for unit in chosen[SITE] for i in unit])}):
            torch.testing.assert_close(dropped, surgery.weight(model, SITE), rtol=0, atol=1e-6)
        surgery.forget(model)


def test_a_race_knows_what_an_edit_of_leading_components_takes_away() -> None:
    with borrowed("bridge gpt2") as model:
        every = surgery.decompose(model, SITE)[SITE]
        for make in EDITS:
            wanted, found = (
                _removed(Candidate(Site.parse(SITE), make(basis), None), every) for basis in (SVD(), LeadingSVD(5))
            )
            torch.testing.assert_close(found, wanted)
        surgery.forget(model)


def test_the_bound_is_what_is_stated() -> None:
    assert TOLERANCE == 1e-6 and "1e-6 of the largest singular value" in (LeadingSVD.__doc__ or "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert leading_svd.leading(matrix(SPECTRA["falls"]), RANK).S.shape == (RANK,)
