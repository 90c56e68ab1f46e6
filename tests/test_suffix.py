"""`hooks.suffix` against the plain forward pass of every kind of model."""

import models
import pytest
import torch
from asked_models import borrowed
from models import EVERY_KIND, ONE_OF_EACH
from torch import Tensor, nn

import surgery
from hooks import Site, match_sites
from hooks.suffix import Passage, nbytes, record, rerun, run
from surgery import KeepTop


def ragged() -> Passage:
    """Five sequences, two of them padded on the right; places in any order, two in one sequence."""
    tokens = models.tokens(5, 7)
    mask = torch.ones_like(tokens)
    mask[0, 5:], mask[2, 4:] = 0, 0
    row, pos = torch.tensor([0, 4, 1, 2, 3, 4]), torch.tensor([4, 6, 6, 3, 6, 2])
    return Passage(tokens, mask, row, pos)


@torch.no_grad()
def plain(model: nn.Module, passage: Passage) -> Tensor:
    """The same logits by TransformerLens alone."""
    logits = model(passage.tokens, attention_mask=passage.mask, return_type="logits")
    return logits[passage.row, passage.pos]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_starts_at_any_matrix_equals_the_plain_forward_pass(kind: str) -> None:
    passage = ragged()
    with borrowed(kind) as model, torch.no_grad():
        sites = match_sites(model, "*")
        recording, logits = record(model, passage, sites)
        unedited = plain(model, passage)
        torch.testing.assert_close(logits, unedited, atol=1e-5, rtol=0)
        torch.testing.assert_close(run(model, passage), unedited, atol=1e-5, rtol=0)
        for site in sites:
            with surgery.apply(model, {str(site): KeepTop(rho=0.3)}, progress=False):
                edited, found = plain(model, passage), rerun(model, passage, recording, site)
            assert (edited - unedited).abs().max() > 1e-3, site
            torch.testing.assert_close(found, edited, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_edits_behind_the_start_take_part(kind: str) -> None:
    passage, spec = ragged(), {"blocks.1.attn.W_O": KeepTop(rho=0.2), "blocks.0.mlp.W_out": KeepTop(rho=0.2)}
    with borrowed(kind) as model, torch.no_grad():
        recording, _ = record(model, passage, [Site(0, "W_in")])
        with surgery.apply(model, spec, progress=False):
            torch.testing.assert_close(
                rerun(model, passage, recording, Site(0, "W_in")), plain(model, passage), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_users_hook_behind_the_start_takes_part_and_sees_the_whole_batch(kind: str) -> None:
    passage, seen = ragged(), []

    def scale(activation: Tensor, hook: object) -> Tensor:
        seen.append(tuple(activation.shape[:2]))
        return activation * 0.5

    with borrowed(kind) as model, torch.no_grad():
        recording, _ = record(model, passage, [Site(1, "W_in")])
        with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", scale)]):
            found, wanted = rerun(model, passage, recording, Site(1, "W_in")), plain(model, passage)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert seen == [(5, 7), (5, 7)]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_what_lies_before_the_start_is_not_computed(kind: str) -> None:
    passage, ran = ragged(), []
    with borrowed(kind) as model, torch.no_grad():
        recording, _ = record(model, passage, [Site(1, "W_out")])
        watched = {"0 attn": model.blocks[0].attn, "0 mlp": model.blocks[0].mlp, "1 mlp": model.blocks[1].mlp}
        handles = [
            part.register_forward_hook(lambda _m, _a, _o, name=name: ran.append(name)) for name, part in watched.items()
        ]
        rerun(model, passage, recording, Site(1, "W_out"))
        for handle in handles:
            handle.remove()
    assert ran == ["1 mlp"]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_recording_holds_what_the_sites_need_and_no_more(kind: str) -> None:
    passage = ragged()
    one = 5 * 7 * models.D_MODEL * 4
    with borrowed(kind) as model, torch.no_grad():
        assert nbytes(record(model, passage, [Site(1, "W_Q")])[0]) == one
        assert nbytes(record(model, passage, [Site(1, "W_in"), Site(1, "W_out")])[0]) == 2 * one
        assert nbytes(record(model, passage, [Site(0, "W_in"), Site(1, "W_Q")])[0]) == 3 * one


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_an_interrupted_run_leaves_the_model_as_it_was(kind: str) -> None:
    passage = ragged()

    def interrupt(_module: nn.Module, _args: object) -> None:
        raise KeyboardInterrupt

    with borrowed(kind) as model, torch.no_grad():
        recording, _ = record(model, passage, [Site(0, "W_in")])
        for part in (model.blocks[1].attn, model.blocks[1].mlp, model.unembed):
            handle = part.register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                rerun(model, passage, recording, Site(0, "W_in"))
            handle.remove()
