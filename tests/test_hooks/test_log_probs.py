"""`hooks.log_probs` against the log-softmax of the model's own logits."""

import models
import pytest
import torch
from asked_models import borrowed

from hooks import log_probs
from hooks.fused import fused
from hooks.inputs import Inputs, Reads
from hooks.running import autograd, run
from hooks.temporary import Forward, Temporary

READS = Reads(torch.tensor([0, 1, 2, 2]), torch.tensor([3, 5, 1, 4]))
ASKED = torch.tensor([3, 0, models.D_VOCAB - 1, 7])


@pytest.mark.parametrize("kind", models.SOME_KINDS)
@pytest.mark.parametrize("logits_at_a_time", [2**21, 4 * 7])
def test_a_run_gives_the_log_probabilities_of_the_tokens_asked_for(
    kind: str, logits_at_a_time: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log_probs, "_SLICE", logits_at_a_time)
    inputs = Inputs(models.tokens(3), reads=READS)
    with borrowed(kind) as model, autograd(False):
        expected = READS.of(model(inputs.tokens)).double().log_softmax(-1)[torch.arange(4), ASKED].float()
        end = log_probs.unembedding_of(model)
        with end.instead_of_logits(ASKED) as given:
            found = run(model, inputs)
        assert torch.equal(given(), found.flatten())
        torch.testing.assert_close(found, expected.unsqueeze(1), atol=1e-5, rtol=1e-5)
        assert run(model, inputs).shape == (4, models.D_VOCAB)


def test_large_logits_and_a_bias_do_no_harm():
    v, W, b = torch.eye(2), torch.tensor([[900.0, 0, -900], [-900, -900, -900]]), torch.tensor([0.0, 5, -3])
    end = log_probs.Unembedding(torch.nn.Identity(), W, b, biased=True)
    expected = (v.double() @ W.double() + b).log_softmax(-1)[[0, 1], [1, 2]].float()
    torch.testing.assert_close(end.log_probs(v, torch.tensor([1, 2])), expected)


def test_logits_to_which_the_model_does_more_are_found_out():
    inputs = Inputs(models.tokens(3), reads=READS)
    with borrowed("bridge gemma2") as model, autograd(False):  # which caps its logits
        end = log_probs.unembedding_of(model)
        with end.instead_of_logits(ASKED) as given:
            found = run(model, inputs)
    assert not torch.equal(given(), found.flatten())


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_hooks_of_the_users_get_their_logits(kind: str):
    with borrowed(kind) as model, model.hooks(fwd_hooks=[("unembed.hook_out", lambda x, hook: x / 2)]):
        assert log_probs.unembedding_of(model) is None


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_a_plain_hook_on_the_unembedding_gets_its_logits(kind: str):
    with borrowed(kind) as model:
        watch = model.unembed.register_forward_hook(lambda _module, _args, logits: logits / 2)
        assert log_probs.unembedding_of(model) is None
        watch.remove()
        assert log_probs.unembedding_of(model) is not None


def test_an_unembedding_that_is_no_product_is_left_alone():
    with (
        borrowed("bridge gpt2") as model,
        Temporary([Forward(model.unembed, lambda x: x @ model.unembed.W_U + 1)]),
    ):
        assert log_probs.unembedding_of(model) is None


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_the_activation_is_the_models_own_up_to_rounding(kind: str):
    tokens = models.tokens(3)
    model = models.hooked("ln", act_fn="gelu_new") if kind == "hooked ln" else models.build(kind)
    with autograd(False):
        expected = model(tokens)
        before = models.State(model)
        with fused(model):
            torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)
    assert len(fused(model).things) == models.N_LAYERS
    before.assert_unchanged(model)


def test_other_activations_stay():
    with borrowed("bridge llama") as model:
        assert fused(model).things == ()
