import sys
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import surgery
from analyses import recall

HOSTS = [pytest.param(recall.model, marks=pytest.mark.hooked, id="hooked"), pytest.param(recall.bridge, id="bridge")]
TASK = recall.RecallTask.synthetic(d_vocab=9, triggers=2, noise_token=5, n_ctx=12)
FROZEN = {"embed.W_E", "pos_embed.W_pos", "unembed.W_U", "blocks.0.attn.W_Q", "blocks.1.attn.W_Q"}


def shaken(model: nn.Module) -> nn.Module:
    """The model with every matrix but W_Q moved, as training would, and with both MLPs on."""
    generator = torch.Generator().manual_seed(3)
    moved = {
        name: W if name.endswith("W_Q") else W + 0.2 * torch.randn(W.shape, generator=generator)
        for name, W in recall.weights(model).items()
    }
    return recall.load(model, moved)


def logits_by_hand(W: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """One sequence after the other, one query position after the other, in float64."""
    W = {name: matrix.double() for name, matrix in W.items()}
    rows = []
    for sequence in tokens.tolist():
        resid = [W["embed.W_E"][z] + W["pos_embed.W_pos"][t] for t, z in enumerate(sequence)]
        for layer in range(2):
            at = {m: W[f"blocks.{layer}.attn.W_{m}"] for m in "QKVO"}
            after = []
            for t, x in enumerate(resid):
                scores = torch.stack([(x @ at["Q"]) @ (y @ at["K"]) for y in resid[: t + 1]]) / sqrt(len(x))
                p = scores.exp() / scores.exp().sum()
                z = sum(weight * (y @ at["V"]) for weight, y in zip(p, resid, strict=False))
                after.append(x + z @ at["O"])
            W_in, W_out = W[f"blocks.{layer}.mlp.W_in"], W[f"blocks.{layer}.mlp.W_out"]
            resid = [x + (x @ W_in).clamp(min=0) @ W_out for x in after]
        rows.append(torch.stack([x @ W["unembed.W_U"] for x in resid]))
    return torch.stack(rows)


@pytest.mark.parametrize("make", HOSTS)
def test_the_model_computes_what_the_formulas_say(make) -> None:
    model = shaken(make(TASK, d_model=10, mlps=(True, True), seed=1))
    tokens = TASK.sample(3, seed=0).tokens
    expected = logits_by_hand(recall.weights(model), tokens)
    assert torch.allclose(model(tokens).double(), expected, atol=2e-5)
    assert expected.std() > 0.3


@pytest.mark.hooked
def test_both_hosts_start_with_the_same_weights_and_give_the_same_logits() -> None:
    tokens = TASK.sample(4, seed=0).tokens
    hooked, bridged = recall.model(TASK, d_model=16, seed=3), recall.bridge(TASK, d_model=16, seed=3)
    assert torch.equal(hooked(tokens), bridged(tokens))
    assert not torch.equal(hooked(tokens), recall.model(TASK, d_model=16, seed=4)(tokens))


@pytest.mark.parametrize("make", HOSTS)
def test_as_bridge_has_the_same_weights_and_logits_and_trains_the_same(make) -> None:
    model = shaken(make(TASK, d_model=16, mlps=(True, False)))
    before = recall.weights(model)
    bridged = recall.as_bridge(model)
    tokens = TASK.sample(4, seed=0).tokens
    assert type(bridged).__name__ == "TransformerBridge"
    assert torch.equal(bridged(tokens), model(tokens))
    assert trained_names(bridged) == trained_names(model)
    recall.load(bridged, {name: 2 * W for name, W in before.items()})
    assert all(torch.equal(W, before[name]) for name, W in recall.weights(model).items())


def trained_names(model: nn.Module) -> set[str]:
    """By trying: which matrices a gradient reaches."""
    model.zero_grad()
    model(TASK.sample(4, seed=0).tokens).square().sum().backward()
    with_gradient = {id(p) for p in model.parameters() if p.grad is not None}
    from hooks.weights import parameters

    return {name for name, p in parameters(model, recall.weights(model)).items() if id(p) in with_gradient}


@pytest.mark.parametrize("make", HOSTS)
@pytest.mark.parametrize("mlps", [(False, True), (True, True), (False, False), (True, False)])
def test_what_is_frozen_what_is_zero_and_what_is_trained(make, mlps: tuple[bool, bool]) -> None:
    model = make(TASK, d_model=16, mlps=mlps)
    W = recall.weights(model)
    on = {f"blocks.{layer}.mlp.{m}" for layer in (0, 1) for m in ("W_in", "W_out") if mlps[layer]}
    off = {f"blocks.{layer}.mlp.{m}" for layer in (0, 1) for m in ("W_in", "W_out")} - on
    assert trained_names(model) == set(W) - FROZEN - off
    assert {name for name, matrix in W.items() if not matrix.any()} == off
    assert torch.equal(W["blocks.0.attn.W_Q"], torch.eye(16))
    assert torch.equal(W["blocks.1.attn.W_Q"], torch.eye(16))
    assert not any(p.any() for name, p in model.named_parameters() if name.split(".")[-1].startswith("b"))
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.split(".")[-1].startswith("b"))
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.normalization_type) == (2, 1, None)


def test_initial_weights_have_the_scales_that_are_promised() -> None:
    task = recall.RecallTask.synthetic(d_vocab=200, n_ctx=200)
    W = recall.weights(recall.bridge(task, d_model=96, mlps=(True, True)))
    assert W["embed.W_E"].std().item() == pytest.approx(1, abs=0.02)
    assert W["pos_embed.W_pos"].std().item() == pytest.approx(1, abs=0.02)
    assert W["unembed.W_U"].std().item() == pytest.approx(1 / sqrt(3 * 96), rel=0.02)
    for name in set(W) - FROZEN:
        bound = 1 / sqrt(len(W[name]))
        assert 0.99 * bound < W[name].abs().max().item() <= bound
        assert W[name].std().item() == pytest.approx(bound / sqrt(3), rel=0.02)
    wide = recall.weights(recall.bridge(task, d_model=96, unembed_scale=0.5))
    assert wide["unembed.W_U"].std().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("make", HOSTS)
def test_making_a_model_leaves_the_global_random_state_alone(make) -> None:
    before = torch.get_rng_state()
    make(TASK, d_model=8)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", HOSTS)
def test_saved_weights_load_bit_for_bit_into_either_host(make, tmp_path: Path) -> None:
    model = shaken(make(TASK, d_model=16))
    recall.save(model, tmp_path / "model.safetensors")
    read = recall.load(recall.bridge(TASK, d_model=16, seed=9), tmp_path / "model.safetensors")
    tokens = TASK.sample(4, seed=0).tokens
    assert torch.equal(read(tokens), model(tokens))
    assert all(torch.equal(W, recall.weights(model)[name]) for name, W in recall.weights(read).items())


def test_weights_are_copies_and_those_behind_an_edit() -> None:
    model = recall.bridge(TASK, d_model=16)
    before = recall.weights(model)
    with surgery.apply(model, {"blocks.1.mlp.W_out": surgery.Zero()}):
        assert torch.equal(recall.weights(model)["blocks.1.mlp.W_out"], before["blocks.1.mlp.W_out"])
    before["embed.W_E"].zero_()
    assert recall.weights(model)["embed.W_E"].any()


def test_weights_that_do_not_fit_are_refused_and_change_nothing(tmp_path: Path) -> None:
    model = recall.bridge(TASK, d_model=16)
    before = recall.weights(model)
    recall.save(recall.bridge(TASK, d_model=8), tmp_path / "small.safetensors")
    with pytest.raises(
        ValueError, match=r"the weights hold embed.W_E of shape \(9, 8\), this model has \(9, 16\): make"
    ):
        recall.load(model, tmp_path / "small.safetensors")
    missing = {name: 2 * W for name, W in before.items() if name != "unembed.W_U"}
    with pytest.raises(
        ValueError, match=r"the weights hold no unembed.W_U, this model has \(16, 9\): make the model with"
    ):
        recall.load(model, missing)
    with pytest.raises(ValueError, match=r"the weights hold blocks.2 of shape \(1, 1\), this model has none: make"):
        recall.load(model, {**before, "blocks.2": torch.ones(1, 1)})
    assert all(torch.equal(W, before[name]) for name, W in recall.weights(model).items())


def test_a_damaged_file_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    model, path = recall.bridge(TASK, d_model=8), tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError):
        recall.load(model, path)
    recall.save(model, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        ValueError, match=r"model\.safetensors is damaged or no safetensors file .*: save the trained model"
    ):
        recall.load(model, path)


def test_another_model_is_refused() -> None:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    cfg = TransformerBridgeConfig(
        d_model=8, d_head=8, n_layers=1, n_ctx=4, n_heads=1, d_vocab=9, act_fn="relu", normalization_type=None
    )
    with pytest.raises(
        ValueError, match=r"\(1, 1, 'relu', None\), the recall task's model has \(2, 1, 'relu', None\): make"
    ):
        recall.weights(TransformerBridge.boot_native(cfg))


@pytest.mark.parametrize("wrong", [{"d_model": 0}, {"unembed_scale": 0.0}, {"unembed_scale": -1.0}])
def test_sizes_and_scales_are_positive(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"d_model=0: give a whole|unembed_scale=.*: give a number above 0"):
        recall.bridge(TASK, **wrong)


def test_without_hooked_transformer_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens", ModuleType("transformer_lens"))
    with pytest.raises(ImportError) as error:
        recall.model(TASK)
    assert str(error.value) == (
        f"transformer-lens {version('transformer-lens')} has no HookedTransformer any more: install "
        "'transformer-lens>=3.9,<4', or make the same model with recall.bridge(task)."
    )
