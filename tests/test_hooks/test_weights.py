"""Weights by TransformerLens's names, in one layout on both hosts, against the models' own parameters."""

import pytest
import torch
from models import D_MODEL, D_VOCAB, N_CTX, ONE_OF_EACH, build

import surgery
from hooks import host_of, weights

SHAPES = {
    "embed.W_E": (D_VOCAB, D_MODEL),
    "pos_embed.W_pos": (N_CTX, D_MODEL),
    "unembed.W_U": (D_MODEL, D_VOCAB),
    "blocks.1.attn.W_K": (D_MODEL, D_MODEL),
    "blocks.0.mlp.W_out": (4 * D_MODEL, D_MODEL),
}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_written_is_read_and_is_what_the_model_multiplies(kind: str, name: str) -> None:
    model = build(kind)
    matrix = weights.read(model, [name])[name]
    assert tuple(matrix.shape) == SHAPES[name]
    parameter = weights.parameters(model, [name])[name]
    assert sum(p is parameter for p in model.parameters()) == 1
    assert sorted(matrix.flatten().tolist()) == sorted(parameter.flatten().tolist())
    with torch.no_grad():
        assert torch.equal(matrix, weights.read(model, [name])[name])
        before = parameter.clone()
        weights.write(model, {name: 2 * matrix})
        assert torch.equal(parameter, 2 * before)
    matrix.zero_()
    assert bool(weights.read(model, [name])[name].any())


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_embeddings_positions_and_unembedding_are_the_ones_of_the_forward_pass(kind: str) -> None:
    """Without blocks' outputs the logits are LayerNorm(W_E[token] + W_pos[0]) W_U, up to the biases."""
    model = build(kind)
    with torch.no_grad():
        outputs = weights.read(model, surgery.sites(model, ["blocks.*.attn.W_O", "blocks.*.mlp.W_out"]))
        weights.write(model, {name: 0 * matrix for name, matrix in outputs.items()})
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if last.startswith("b"):
                parameter.zero_()
            elif last in ("w", "weight") and parameter.ndim == 1:
                parameter.fill_(1.0)
        logits = model(torch.tensor([[3], [7]]))[:, 0]
    E, P, U = weights.read(model, ("embed.W_E", "pos_embed.W_pos", "unembed.W_U")).values()
    expected = torch.nn.functional.layer_norm(E[[3, 7]] + P[0], (D_MODEL,)) @ U
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_an_edit_is_neither_seen_nor_changed(kind: str) -> None:
    model, name = build(kind), "blocks.1.mlp.W_out"
    before = weights.read(model, [name])[name]
    with surgery.apply(model, {name: surgery.Zero()}, progress=False) as operation:
        assert torch.equal(weights.read(model, [name])[name], before)
        assert not operation.weight(name).any()


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_sizes_device_and_dtype(kind: str) -> None:
    model = build(kind, dtype=torch.float64)
    host = host_of(model)
    assert (host.d_model, host.d_vocab, host.n_ctx) == (D_MODEL, D_VOCAB, N_CTX)
    assert (host.device, host.dtype) == (torch.device("cpu"), torch.float64)
    assert weights.architecture(build(kind))["n_layers"] == 2


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name='W_E': there are embed\.W_E, pos_embed\.W_pos, unembed\.W_U and the"):
        weights.read(build("bridge gpt2"), ["W_E"])
