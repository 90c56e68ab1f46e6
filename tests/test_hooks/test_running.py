"""`hooks.running` against the plain forward pass of every kind of model."""

import models
import pytest
import torch
from asked_models import borrowed
from models import EVERY_KIND, ONE_OF_EACH
from torch import Tensor, nn

import surgery
from hooks import Site, host_of, match_sites
from hooks.inputs import Inputs, Reads
from hooks.recording import has_hooks
from hooks.running import nbytes, record, rerun, run
from surgery import KeepTop


def ragged() -> Inputs:
    """Five sequences, two of them padded on the right; two reads of one row."""
    tokens = models.tokens(5, 7)
    mask = torch.ones_like(tokens)
    mask[0, 5:], mask[2, 4:] = 0, 0
    row, pos = torch.tensor([0, 1, 2, 3, 4, 4]), torch.tensor([4, 6, 3, 6, 6, 2])
    return Inputs(tokens, mask, Reads(row, pos))


@torch.no_grad()
def plain(model: nn.Module, inputs: Inputs) -> Tensor:
    """The same logits by TransformerLens alone."""
    logits = model(inputs.tokens, attention_mask=inputs.mask, return_type="logits")
    assert inputs.reads is not None
    return inputs.reads.of(logits)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_starts_at_any_matrix_equals_the_plain_forward_pass(kind: str) -> None:
    inputs = ragged()
    with borrowed(kind) as model, torch.no_grad():
        sites = match_sites(model, "*")
        recording, logits = record(model, inputs, sites)
        unedited = plain(model, inputs)
        torch.testing.assert_close(logits, unedited, atol=1e-5, rtol=0)
        torch.testing.assert_close(run(model, inputs), unedited, atol=1e-5, rtol=0)
        for site in sites:
            with surgery.apply(model, {str(site): KeepTop(rho=0.3)}, progress=False):
                edited, found = plain(model, inputs), rerun(model, inputs, recording, site)
            assert (edited - unedited).abs().max() > 1e-3, site
            torch.testing.assert_close(found, edited, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_edits_behind_the_start_take_part(kind: str) -> None:
    inputs, spec = ragged(), {"blocks.1.attn.W_O": KeepTop(rho=0.2), "blocks.0.mlp.W_out": KeepTop(rho=0.2)}
    with borrowed(kind) as model, torch.no_grad():
        recording, _ = record(model, inputs, [Site(0, "W_in")])
        with surgery.apply(model, spec, progress=False):
            torch.testing.assert_close(
                rerun(model, inputs, recording, Site(0, "W_in")), plain(model, inputs), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_users_hook_behind_the_start_takes_part_and_sees_the_whole_batch(kind: str) -> None:
    inputs, seen = ragged(), []

    def scale(activation: Tensor, hook: object) -> Tensor:
        seen.append(tuple(activation.shape[:2]))
        return activation * 0.5

    with borrowed(kind) as model, torch.no_grad():
        recording, _ = record(model, inputs, [Site(1, "W_in")])
        with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", scale)]):
            found, wanted = rerun(model, inputs, recording, Site(1, "W_in")), plain(model, inputs)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert seen == [(5, 7), (5, 7)]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_what_lies_before_the_start_is_not_computed(kind: str) -> None:
    inputs, ran = ragged(), []
    with borrowed(kind) as model, torch.no_grad():
        recording, _ = record(model, inputs, [Site(1, "W_out")])
        watched = {"0 attn": model.blocks[0].attn, "0 mlp": model.blocks[0].mlp, "1 mlp": model.blocks[1].mlp}
        handles = [
            part.register_forward_hook(lambda _m, _a, _o, name=name: ran.append(name)) for name, part in watched.items()
        ]
        rerun(model, inputs, recording, Site(1, "W_out"))
        for handle in handles:
            handle.remove()
    assert ran == ["1 mlp"]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_recording_holds_what_the_sites_need_and_no_more(kind: str) -> None:
    inputs = ragged()
    one = 5 * 7 * models.D_MODEL * 4
    with borrowed(kind) as model, torch.no_grad():
        assert nbytes(record(model, inputs, [Site(1, "W_Q")])[0]) == one
        assert nbytes(record(model, inputs, [Site(1, "W_in"), Site(1, "W_out")])[0]) == 2 * one
        assert nbytes(record(model, inputs, [Site(0, "W_in"), Site(1, "W_Q")])[0]) == 3 * one


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_an_interrupted_run_leaves_the_model_as_it_was(kind: str) -> None:
    inputs = ragged()

    def interrupt(_module: nn.Module, _args: object) -> None:
        raise KeyboardInterrupt

    with borrowed(kind) as model, torch.no_grad():
        recording, _ = record(model, inputs, [Site(0, "W_in")])
        for part in (model.blocks[1].attn, model.blocks[1].mlp, model.unembed):
            handle = part.register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                rerun(model, inputs, recording, Site(0, "W_in"))
            handle.remove()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_is_added_to_a_matrix_equals_a_hook_on_its_output(kind: str) -> None:
    rows = torch.tensor([3, 0, 0, 4])
    with borrowed(kind) as model, torch.no_grad():
        whole = Inputs(models.tokens(5, 7))
        recording, _ = record(model, whole)
        inputs = whole.take(rows).read_at(Reads(torch.tensor([0, 1, 3]), torch.tensor([6, 2, 5])))
        for site in match_sites(model, "*"):
            place = host_of(model).place(site)
            change = torch.randn(4, 7, place.d_out)

            def added(reads: Reads | None, change: Tensor = change) -> Tensor:
                return change if reads is None else reads.of(change).unsqueeze(1)

            with place.tapped(at_output=lambda y, p=place, c=change: p.add_to_output(y, c)):
                expected = plain(model, inputs)
            found = rerun(model, inputs, recording, site, rows=rows, added=(place, added))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_hooks_are_noticed(kind: str):
    with borrowed(kind) as model:
        assert not has_hooks(model)
        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda a, hook: a)]):
            assert has_hooks(model)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_what_we_attach_ourselves_is_nobodys_hook(kind: str):
    with borrowed(kind) as model:
        for site in host_of(model).joint_sites():
            place = host_of(model).place(site)
            with place.tapped(at_input=lambda x: None, at_output=lambda y: None):
                assert not has_hooks(model)
                with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda a, hook: a)]):
                    assert has_hooks(model)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_users_hooks_on_the_unembedding_see_whole_rows(kind: str) -> None:
    inputs, seen = Inputs(models.tokens(2), reads=Reads(torch.tensor([0, 1]), torch.tensor([3, 1]))), []
    with borrowed(kind) as model, torch.no_grad():
        with model.hooks(fwd_hooks=[("unembed.hook_out", lambda x, hook: seen.append(tuple(x.shape[:2])))]):
            logits = run(model, inputs)
        torch.testing.assert_close(logits, plain(model, inputs))
    assert seen == [tuple(inputs.tokens.shape)]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_gradients_through_the_reads_are_those_of_the_whole_model(kind: str) -> None:
    inputs = Inputs(models.tokens(2), reads=Reads(torch.tensor([0, 1]), torch.tensor([3, 3])))
    with borrowed(kind) as model:
        parameter = next(p for name, p in model.named_parameters() if "mlp" in name and p.ndim == 2)
        (slope,) = torch.autograd.grad(model(inputs.tokens)[:, 3].logsumexp(-1).sum(), parameter)
        (cut,) = torch.autograd.grad(run(model, inputs).logsumexp(-1).sum(), parameter)
        torch.testing.assert_close(cut, slope)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_failing_run_leaves_no_trace(kind: str) -> None:
    with borrowed(kind) as model:
        before = model(models.tokens(2))
        with pytest.raises(IndexError):
            run(model, Inputs(models.tokens(2), reads=Reads(torch.tensor([0]), torch.tensor([99]))))
        assert torch.equal(model(models.tokens(2)), before)


@pytest.mark.hooked
def test_an_unembedding_of_the_users_own_is_called_as_it_is() -> None:
    model = models.hooked("ln")

    class Capped(type(model.unembed)):
        def forward(self, residual: Tensor) -> Tensor:
            return super().forward(residual).tanh()

    model.unembed.__class__ = Capped
    reads = Reads(torch.tensor([0, 1]), torch.tensor([3, 3]))
    with torch.no_grad():
        cut = run(model, Inputs(models.tokens(2), reads=reads))
    torch.testing.assert_close(cut, model(models.tokens(2))[:, 3].detach())
    assert cut.abs().max() <= 1


@pytest.mark.hooked
def test_the_unembedding_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.hooked("ln")
    model.unembed.W_U.requires_grad_(False)
    copied, contiguous = [], Tensor.contiguous

    def watched(tensor: Tensor) -> Tensor:
        copied.append(tuple(tensor.shape))
        return contiguous(tensor)

    monkeypatch.setattr(Tensor, "contiguous", watched)
    run(model, Inputs(models.tokens(2), reads=Reads(torch.tensor([0]), torch.tensor([1]))))
    assert tuple(model.unembed.W_U.T.shape) not in copied
