import models
import pytest
import torch

from hooks import host_of
from hooks.replay import Rows, has_hooks, is_position_wise_after, recorded, replayed


@pytest.mark.parametrize("kind", models.EVERY_KIND)
def test_replaying_gives_the_same_logits_from_every_matrix_on(kind: str):
    tokens = models.tokens(3)
    with models.borrowed(kind) as model, torch.no_grad():
        with recorded(model, range(host_of(model).n_layers)) as recording:
            logits = model(tokens)
        for site in host_of(model).joint_sites():
            columns = (2, 6) if is_position_wise_after(model, site) else None
            rows = Rows(torch.tensor([0, 2, 2, 1]), columns)
            same = (lambda x: x) if site.matrix in ("W_O", "W_out") else None
            fed = tokens[rows.examples] if columns is None else tokens[rows.examples, : len(columns)]
            with replayed(model, recording, site, rows, change=same):
                again = model(fed)
            torch.testing.assert_close(again, rows.take(logits), atol=1e-5, rtol=1e-5)


def test_what_comes_before_is_not_computed():
    tokens = models.tokens(2)
    with models.borrowed("bridge gpt2") as model, torch.no_grad():
        with recorded(model, range(2)) as recording:
            model(tokens)
        site = next(s for s in host_of(model).joint_sites() if str(s) == "blocks.1.mlp.W_in")
        ran: list[str] = []
        watched = [model.blocks[0].mlp, model.blocks[0].attn, model.blocks[1].attn, model.blocks[1].mlp]
        inner = [getattr(part, "out" if i in (0, 3) else "o").original_component for i, part in enumerate(watched)]
        handles = [m.register_forward_hook(lambda *_, i=i: ran.append(str(i))) for i, m in enumerate(inner)]
        with replayed(model, recording, site, Rows(torch.arange(2))):
            model(tokens)
        for handle in handles:
            handle.remove()
    assert ran == ["3"]


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_hooks_are_noticed(kind: str):
    with models.borrowed(kind) as model:
        assert not has_hooks(model)
        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda a, hook: a)]):
            assert has_hooks(model)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_what_we_attach_ourselves_is_nobodys_hook(kind: str):
    with models.borrowed(kind) as model:
        for site in host_of(model).joint_sites():
            place = host_of(model).place(site)
            with place.tapped(at_input=lambda x: None, at_output=lambda y: None):
                assert not has_hooks(model)
                with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda a, hook: a)]):
                    assert has_hooks(model)
