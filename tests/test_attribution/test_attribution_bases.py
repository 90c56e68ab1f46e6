"""Components of other bases than the singular ones: attributed as what they are, and cut in the basis they are of."""

from pathlib import Path

import asked_models
import models
import pytest
import torch
from torch import Tensor, nn

import surgery
from analyses import attribution, controls, eigenpruning, metrics, patching
from analyses.attribution import Effects, Selection
from analyses.tasks import AnswerItem, Task
from hooks import place_of
from surgery import SVD, Decompositions, Drop, HaarBasis, Keep, RandomizedSVD, RowBlocks

SITES = ["blocks.*.mlp.W_*", "blocks.1.attn.W_O", "blocks.0.attn.W_Q[1]"]
BASIS = RowBlocks(2)


def metric() -> metrics.Metric:
    return metrics.logit_difference(torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5]))


def block_component(model: nn.Module, site: str, component: int) -> Tensor:
    """One component of the two halves of the rows, pooled by strength, from LAPACK's singular vectors."""
    W = place_of(model, site).matrix().double()
    found = []
    for rows in torch.arange(len(W)).chunk(2):
        U, S, Vh = torch.linalg.svd(W[rows], full_matrices=False)
        for i in range(len(S)):
            one = torch.zeros_like(W)
            one[rows] = S[i] * torch.outer(U[:, i], Vh[i])
            found.append((float(S[i]), one))
    return sorted(found, key=lambda pair: -pair[0])[component][1]


def change_of_metric(model: nn.Module, site: str, step: Tensor) -> Tensor:
    """By how much the metric of each example changes when this is added to the stored matrix."""
    place, tokens = place_of(model, site), models.tokens(3)
    (slot,) = place.slots
    before = metric()(model(tokens))
    with torch.no_grad():
        held, was = slot.registered(), slot.registered().detach().clone()
        held.copy_(place.stored(place.matrix() + step.to(was)))
        after = metric()(model(tokens))
        held.copy_(was)
    return (after - before).detach()


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_ablation_and_gradient_are_of_the_components_of_the_blocks(kind: str) -> None:
    tokens = models.tokens(3)
    with models.borrowed(kind) as model:
        svds = Decompositions(basis=BASIS)
        exact = attribution.by_ablation(model, tokens, metric(), SITES[:1], basis=BASIS, svds=svds, progress=False)
        slopes = attribution.by_gradient(model, tokens, metric(), SITES[:1], basis=BASIS, svds=svds, progress=False)
        for site in exact.sites:
            for component in (0, 5):
                one = block_component(model, site, component)
                torch.testing.assert_close(
                    exact.examples[site][:, component], change_of_metric(model, site, -one), atol=1e-4, rtol=1e-3
                )
                step = 3e-2
                up, down = (change_of_metric(model, site, sign * step * one) for sign in (1, -1))
                torch.testing.assert_close(
                    slopes.examples[site][:, component], (down - up) / (2 * step), atol=3e-3, rtol=3e-3
                )


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_a_selection_is_cut_in_the_basis_it_was_found_in(kind: str, tmp_path: Path) -> None:
    tokens = models.tokens(3)
    with models.borrowed(kind) as model:
        svds = Decompositions(basis=BASIS)
        found = attribution.by_ablation(model, tokens, metric(), SITES, basis=BASIS, svds=svds, progress=False)
        ((site, edit),) = found.drop(1).items()
        assert isinstance(edit, Drop) and edit.basis == BASIS
        assert all(isinstance(kept, Keep) and kept.basis == BASIS for kept in found.keep(3).values())
        before = metric()(model(tokens))
        with surgery.apply(model, {site: edit}, progress=False):
            change = metric()(model(tokens)) - before
        ((component,),) = found.top(1)[site]
        torch.testing.assert_close(found.examples[site][:, component], change.detach(), atol=1e-4, rtol=1e-3)
        found.save(tmp_path / "effects.safetensors")
        assert Effects.load(tmp_path / "effects.safetensors").drop(1) == found.drop(1)
        assert controls.by_strength(found, 2).basis == BASIS
        assert controls.random_selection(found, found.top(2), seed=0).basis == BASIS
        again = attribution.by_gradient(model, tokens, metric(), found.top(2), basis=BASIS, svds=svds, progress=False)
        assert again.basis == BASIS and again.top(1).basis == BASIS


def test_another_basis_than_the_selections_is_refused() -> None:
    tokens = models.tokens(3)
    with models.borrowed("bridge gpt2") as model:
        chosen = Selection({"blocks.0.mlp.W_in": [0]}, basis=BASIS)
        assert attribution.by_gradient(model, tokens, metric(), chosen, progress=False).basis == BASIS
        for basis, svds in ((SVD(), None), (None, Decompositions())):
            with pytest.raises(ValueError, match=r"basis=?.*RowBlocks\(blocks=2\)"):
                attribution.by_gradient(model, tokens, metric(), chosen, basis=basis, svds=svds, progress=False)
        with pytest.raises(ValueError, match=r"svds is in the basis RowBlocks.*no basis= was given, which means SVD"):
            attribution.by_ablation(
                model, tokens, metric(), {"blocks.0.mlp.W_in": [0]}, svds=Decompositions(basis=BASIS), progress=False
            )


@pytest.mark.parametrize("basis", [HaarBasis(0), RandomizedSVD(2, seed=0)])
def test_components_that_do_not_sum_to_the_matrix_are_refused(basis: surgery.Basis) -> None:
    tokens, svds = models.tokens(3), Decompositions(basis=basis)
    with models.borrowed("bridge gpt2") as model:
        for work in (
            lambda: attribution.by_gradient(model, tokens, metric(), "W_in", basis=basis, svds=svds, progress=False),
            lambda: patching.by_component(
                model, tokens, tokens.flip(1), metric(), "W_in", basis=basis, svds=svds, progress=False
            ),
        ):
            with pytest.raises(ValueError, match=r"its components do not sum to the matrix.* Attribute in SVD"):
                work()


def test_eigenpruning_removes_in_the_basis_that_it_scored() -> None:
    ids = models.tokens(6).tolist()
    task = Task("answers", tuple(AnswerItem(tuple(row[:5]), ((row[5],),)) for row in ids))
    with asked_models.borrowed("bridge gpt2") as model:
        svds = Decompositions(basis=BASIS)
        found = eigenpruning.attribute(model, task, "blocks.*.mlp.W_out", basis=BASIS, svds=svds, progress=False)
        assert found.basis == BASIS != SVD()
        assert {edit.basis for edit in found.lowest(0.2).drop().values()} == {BASIS}


@pytest.mark.parametrize("site", ["blocks.0.mlp.W_in", "blocks.1.mlp.W_out"])
@pytest.mark.parametrize("shares", [attribution.by_path, attribution.by_shapley])
def test_shares_of_an_edit_of_block_components_sum_to_the_change(site: str, shares) -> None:
    tokens = models.tokens(3)
    with models.borrowed("bridge gpt2") as model:
        spec = {site: Drop([0, 1, 2], basis=BASIS)}
        found = shares(model, tokens, metric(), spec, svds=Decompositions(basis=BASIS), progress=False)
        before = metric()(model(tokens))
        with surgery.apply(model, spec, progress=False):
            change = (metric()(model(tokens)) - before).mean().item()
        assert found.examples[site].sum(1).mean().item() == pytest.approx(change, abs=2e-3)
        assert shares(model, tokens, metric(), spec, progress=False).basis == BASIS


def test_screening_stays_in_its_basis() -> None:
    tokens = models.tokens(3)
    with models.borrowed("bridge gpt2") as model:
        svds = Decompositions(basis=BASIS)
        found = attribution.screen(model, tokens, metric(), "blocks.*.mlp.W_*", basis=BASIS, svds=svds, progress=False)
        assert {edit.basis for edit in found.spec.values()} == {BASIS}


def test_directions_are_rotated_among_singular_vectors_only() -> None:
    tokens = models.tokens(3)
    with models.borrowed("bridge gpt2") as model:
        svds = Decompositions(basis=BASIS)
        effects = attribution.by_ablation(
            model, tokens, metric(), "blocks.1.mlp.W_*", basis=BASIS, svds=svds, progress=False
        )
        compared = controls.compare(model, tokens, metric(), effects, ks=(1,), draws=1, svds=svds, progress=False)
        assert "no directions were rotated: components in RowBlocks(blocks=2) are not orthogonal" in repr(compared)
        chosen = effects.top(1)
        with pytest.raises(ValueError, match="they are rotated among singular vectors only"):
            controls.rotated(model, chosen, chosen, seed=0, svds=svds, progress=False)
        with pytest.raises(ValueError, match=r"in the basis SVD\(\), the effects are of components in RowBlocks"):
            controls.random_selection(effects, Selection(dict(chosen)), seed=0)
    assert Selection({"a": [0]}) == Selection({"a": [0]}) != Selection({"a": [0]}, basis=BASIS)
