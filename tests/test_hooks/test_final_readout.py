"""`hooks.readout` against the plain forward pass, and against its formula for the normalisation."""

import models
import pytest
import torch
from asked_models import borrowed
from torch import Tensor

from analyses import recall
from hooks.inputs import Inputs, Reads
from hooks.readout import Norm, read_out
from hooks.running import autograd

KINDS = {
    "hooked ln": Norm(True, 1e-5),
    "hooked ln-folded": Norm(True, 1e-5),
    "hooked rms-gated": Norm(False, 1e-5),
    "hooked rms-folded-grouped-rotary": Norm(False, 1e-5),
    "hooked no-norm": None,
    "bridge gpt2": Norm(True, 1e-5),
    "bridge gpt2 compatible": Norm(True, 1e-5),
    "bridge llama": Norm(False, 1e-6),
    "bridge llama compatible": Norm(False, 1e-6),
    "bridge gemma2": Norm(False, 1e-6),
    "bridge olmo2": Norm(False, 1e-5),
}
READS = Reads(torch.tensor([0, 1, 2, 2]), torch.tensor([3, 5, 1, 4]))


@pytest.mark.parametrize("kind", models.kinds(*KINDS))
def test_the_readout_gives_the_models_logits_and_its_norm(kind: str):
    tokens = models.tokens(3)
    with borrowed(kind) as model, autograd(False):
        expected = READS.of(model(tokens))
        readout = read_out(model, Inputs(tokens, reads=READS))
        stages = readout.stages(readout.at_reads)
        torch.testing.assert_close(stages.logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(readout.of_normalised(stages.normalised).logits, expected, atol=1e-5, rtol=1e-5)
        assert readout.norm() == KINDS[kind]


def test_a_final_module_that_hands_on_what_it_reads_is_no_normalisation():
    model = recall.bridge(recall.RecallTask.synthetic())
    with autograd(False):
        readout = read_out(model, Inputs(torch.randint(0, 20, (3, 7)), reads=READS))
        assert type(model.ln_final.original_component) is torch.nn.Identity and readout.norm() is None


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_users_hooks_take_part_and_see_whole_rows(kind: str):
    tokens, seen = models.tokens(3), []

    def halve(x: Tensor, hook: object) -> Tensor:
        seen.append(x.shape[:2])
        return x / 2

    with borrowed(kind) as model, autograd(False), model.hooks(fwd_hooks=[("ln_final.hook_normalized", halve)]):
        expected = READS.of(model(tokens))
        readout = read_out(model, Inputs(tokens, reads=READS))
        torch.testing.assert_close(readout.stages(readout.at_reads).logits, expected, atol=1e-5, rtol=1e-5)
    assert set(seen) == {tokens.shape}


def test_vectors_at_a_place_that_is_read_twice_are_added():
    with borrowed("bridge gpt2") as model, autograd(False):
        twice = Reads(torch.tensor([0, 0, 1]), torch.tensor([2, 2, 6]))
        readout = read_out(model, Inputs(models.tokens(2), reads=twice))
        spread = readout.spread(torch.ones(3, models.D_MODEL))
    assert spread.sum(-1).nonzero().tolist() == [[0, 2], [1, 6]]
    assert float(spread[0, 2, 0]) == 2


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_a_norm_of_another_kind_is_refused_by_name(kind: str):
    model = models.build(kind)
    model.ln_final.register_forward_hook(lambda _module, _args, output: output.tanh())
    with autograd(False):
        readout = read_out(model, Inputs(models.tokens(2)))
        with pytest.raises(ValueError, match="a LayerNorm, is neither a LayerNorm nor an RMSNorm as far as"):
            readout.norm()
