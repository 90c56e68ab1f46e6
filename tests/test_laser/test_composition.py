"""What a user of TransformerLens does next works under an edit, exactly as on a model whose weights were written by "
"hand."""

from collections.abc import Callable

import pytest
import torch
from by_hand import addresses, read, regained, write
from models import ONE_OF_EACH, SOME_KINDS, borrowed, build, kinds, tokens
from torch import Tensor, nn
from transformer_lens import patching

import surgery
from surgery import Drop, KeepTop, Scale

SPEC = {
    "blocks.0.attn.W_Q[1]": Drop([0]),
    "blocks.*.attn.W_K": KeepTop(rank=3),
    "blocks.1.attn.W_V[0]": Scale({0: 3.0}),
    "blocks.*.attn.W_O": Drop([1, 2]),
    "blocks.0.mlp.W_in": KeepTop(rho=0.3),
    "blocks.1.mlp.W_out": Drop("2:"),
}
TOKENS, OTHER_TOKENS = tokens(), tokens().flip(0, 1)


def written_by_hand(kind: str) -> nn.Module:
    """A model with the weights that SPEC shows, put into its parameters one by one."""
    twin = build(kind)
    with borrowed(kind) as model, surgery.apply(model, SPEC, progress=False) as operation:
        for address in addresses(kind):
            write(twin, address, operation.weight(address))
    return twin


def patch(activation: Tensor, hook: object) -> Tensor:
    activation = activation.clone()
    activation[:, 2] = activation[:, 3]
    return activation


def with_hooks(model: nn.Module) -> list[Tensor]:
    return [
        model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_resid_pre", patch), ("blocks.0.hook_mlp_out", patch)])
    ]


def with_a_patched_input(model: nn.Module) -> list[Tensor]:
    name = "blocks.1.attn.hook_z"
    return [model.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda activation, hook: activation * 0.5)])]


def with_cache(model: nn.Module) -> list[Tensor]:
    out, cache = model.run_with_cache(TOKENS)
    return [out, *(value for _, value in sorted(cache.items()) if isinstance(value, Tensor))]


def with_a_context(model: nn.Module) -> list[Tensor]:
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", patch)]):
        return [model(TOKENS), model(OTHER_TOKENS)]


def with_a_loss(model: nn.Module) -> list[Tensor]:
    return [model(TOKENS, return_type="loss")]


def with_generation(model: nn.Module) -> list[Tensor]:
    return [model.generate(TOKENS, max_new_tokens=6, do_sample=False, stop_at_eos=False, verbose=False)]


def with_activation_patching(model: nn.Module) -> list[Tensor]:
    _, clean = model.run_with_cache(TOKENS)
    return [
        patch_all(model, OTHER_TOKENS, clean, lambda out: out[0, -1, 3] - out[0, -1, 4])
        for patch_all in (
            patching.get_act_patch_resid_pre,
            patching.get_act_patch_attn_out,
            patching.get_act_patch_mlp_out,
        )
    ]


def with_stop_at_layer(model: nn.Module) -> list[Tensor]:
    return [model(TOKENS, stop_at_layer=1)]


USES = [
    with_hooks,
    with_a_patched_input,
    with_cache,
    with_a_context,
    with_a_loss,
    with_generation,
    with_activation_patching,
    with_stop_at_layer,
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", SOME_KINDS)
def test_it_is_as_if_written_by_hand(kind: str, use: Callable) -> None:
    twin = written_by_hand(kind)
    with torch.no_grad():
        expected = use(twin)
        model = build(kind)
        before = use(model)
        with surgery.apply(model, SPEC):
            edited = use(model)
        after = use(model)
    assert len(edited) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(edited, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, edited, strict=True))


# GPT-J has none of these modes, and use_attn_in raises with grouped queries on a HookedTransformer.
@pytest.mark.parametrize("mode", ["use_attn_result", "use_split_qkv_input", "use_attn_in"])
@pytest.mark.parametrize(
    "kind",
    kinds(
        "hooked ln",
        "hooked rms-folded-grouped-rotary",
        "bridge gpt2 compatible",
        "bridge neox compatible",
        "bridge llama compatible",
        "bridge phi compatible",
    ),
)
def test_modes_that_take_attention_apart_read_the_edit(kind: str, mode: str) -> None:
    if mode == "use_attn_in" and "grouped" in kind:
        return
    twin, model = written_by_hand(kind), build(kind)
    getattr(twin, f"set_{mode}")(True)
    with torch.no_grad():
        expected = with_cache(twin)
        with surgery.apply(model, SPEC):
            getattr(model, f"set_{mode}")(True)
            edited = with_cache(model)
    assert len(edited) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(edited, expected, strict=True))


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_an_edit_may_come_and_go_while_hooks_are_on(kind: str) -> None:
    twin, model = written_by_hand(kind), build(kind)
    hooks = [("blocks.1.hook_resid_pre", patch)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        before = model(TOKENS)
        operation = surgery.apply(model, SPEC)
        assert torch.equal(model(TOKENS), twin.run_with_hooks(TOKENS, fwd_hooks=hooks))
        operation.undo()
        assert torch.equal(model(TOKENS), before)


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_gradients_of_activations_are_those_of_the_edited_model(kind: str) -> None:
    def gradient(model: nn.Module) -> list[Tensor]:
        kept: list[Tensor] = []

        def keep(activation: Tensor, hook: object) -> None:
            activation.retain_grad()
            kept.append(activation)

        out = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_resid_post", keep)])
        out.square().mean().backward()
        return [out.detach(), kept[0].grad]

    twin, model = written_by_hand(kind), build(kind)
    with surgery.apply(model, SPEC):
        edited = gradient(model)
    assert all(torch.equal(a, b) for a, b in zip(edited, gradient(twin), strict=True))


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_gradients_of_other_parameters_flow_under_an_edit(kind: str) -> None:
    twin, model = written_by_hand(kind), build(kind)
    with surgery.apply(model, SPEC):
        model(TOKENS).square().mean().backward()
    twin(TOKENS).square().mean().backward()
    embeddings = [m.embed.W_E if hasattr(m.embed, "W_E") else m.embed.weight for m in (model, twin)]
    assert torch.equal(embeddings[0].grad, embeddings[1].grad)


@pytest.mark.parametrize(
    "site", ["blocks.0.attn.W_Q", "blocks.1.attn.W_V[2]", "blocks.0.attn.W_O", "blocks.1.mlp.W_out"]
)
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_gradients_in_the_gains_are_central_differences(kind: str, site: str) -> None:
    model, twin = build(kind, dtype=torch.float64), build(kind, dtype=torch.float64)
    W = read(twin, site)
    gains = torch.linspace(0.5, 1.5, min(W.shape), dtype=torch.float64)

    def loss(m: nn.Module) -> Tensor:
        return m(TOKENS).double().square().mean()

    def by_hand(values: Tensor) -> float:
        write(twin, site, regained(W, values))
        with torch.no_grad():
            return float(loss(twin))

    learned = gains.clone().requires_grad_()
    with surgery.apply(model, {site: Scale(learned)}):
        value = loss(model)
        (gradient,) = torch.autograd.grad(value, learned)
    assert float(value) == pytest.approx(by_hand(gains), rel=1e-9)
    step = 1e-4
    for i in (0, 1, len(gains) // 2, len(gains) - 1):
        up, down = (gains + sign * step * torch.eye(len(gains), dtype=torch.float64)[i] for sign in (1, -1))
        assert float(gradient[i]) == pytest.approx((by_hand(up) - by_hand(down)) / (2 * step), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_inference_mode_sees_the_edit(kind: str) -> None:
    twin = written_by_hand(kind)
    with borrowed(kind) as model, torch.inference_mode():
        expected = twin(TOKENS)
        with surgery.apply(model, SPEC):
            assert torch.equal(model(TOKENS), expected)
        assert not torch.equal(model(TOKENS), expected)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_autocast_sees_the_edit(kind: str) -> None:
    twin, model = written_by_hand(kind), build(kind)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = twin(TOKENS)
        with surgery.apply(model, SPEC):
            assert torch.equal(model(TOKENS), expected)


def test_a_native_toy_bridge_can_be_operated_on() -> None:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    cfg = TransformerBridgeConfig(
        d_model=16, d_head=4, n_heads=4, n_layers=2, n_ctx=16, d_vocab=20, d_mlp=32, act_fn="relu"
    )
    model = TransformerBridge.boot_native(cfg)
    ids = torch.arange(8)[None] % 20
    with torch.no_grad():
        before = model(ids)
        with surgery.apply(
            model, {"blocks.*.mlp.W_out": KeepTop(rank=1), "blocks.0.attn.W_Q[1]": Drop([0])}
        ) as operation:
            assert not torch.equal(model(ids), before)
            assert int((torch.linalg.svdvals(operation.weight("blocks.1.mlp.W_out")) > 1e-5).sum()) == 1
        assert torch.equal(model(ids), before)
