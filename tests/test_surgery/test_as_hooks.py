"""The same edits as plain hooks for one call: equal to the edit of the weights, in the documented order, or refused."""

import pytest
import torch
from by_hand import addresses, head_count, low_rank, read, split, write
from models import (
    EVERY_KIND,
    MORE_ARCHITECTURES,
    ONE_OF_EACH,
    SOME_KINDS,
    borrowed,
    build,
    hidden_sites,
    hooked,
    tokens,
)
from torch import Tensor, nn

import surgery
from hooks import SiteError, place_of
from surgery import (
    Compensated,
    Drop,
    HaarBasis,
    Keep,
    KeepBottom,
    KeepTop,
    RandomBasis,
    RandomizedSVD,
    RowBlocks,
    Scale,
    Zero,
)

OUT = "blocks.0.mlp.W_out"


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(tokens())


def hooked_logits(model: nn.Module, hooks: list) -> Tensor:
    with torch.no_grad():
        return model.run_with_hooks(tokens(), fwd_hooks=hooks)


def agree(model: nn.Module, spec: dict, *, atol: float = 1e-5) -> None:
    with surgery.apply(model, spec, progress=False):
        edited = logits(model)
    assert not torch.allclose(edited, logits(model), atol=1e-4)
    torch.testing.assert_close(hooked_logits(model, surgery.fwd_hooks(model, spec)), edited, rtol=0, atol=atol)


@pytest.mark.parametrize("heads", [False, True], ids=["joint", "heads"])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_hooks_do_what_an_edit_of_the_weights_does(kind: str, heads: bool) -> None:
    sites = [a for a in addresses(kind) if a not in hidden_sites(kind)]
    if heads:
        sites = [f"{a}[{h}]" for a in sites if ".attn." in a for h in range(head_count(kind, split(a)[1]))]
    edits = [KeepTop(rank=4), Drop([0]), Scale({1: 1.5}), KeepBottom(rho=0.5)]
    with borrowed(kind) as model:
        agree(model, {site: edits[i % 4] for i, site in enumerate(sites)})
        surgery.forget(model)


@pytest.mark.parametrize("form", ["", " compatible"])
@pytest.mark.parametrize("architecture", MORE_ARCHITECTURES)
def test_other_architectures_work_alike(architecture: str, form: str) -> None:
    """Each matrix by itself, and against its weight overwritten by hand."""
    kind = f"bridge {architecture}{form}"
    twin = build(kind)
    with borrowed(kind) as model:
        sites = surgery.sites(model)
        assert len(sites) in (12, 14)
        for site in sites[len(sites) // 2 :]:
            agree(model, {site: KeepTop(rank=1)}, atol=5e-5)  # queries are normalised after some of them
        for site in sites:
            write(twin, site, low_rank(read(twin, site), 3).float())
        with surgery.apply(model, {"*": KeepTop(rank=3)}):
            torch.testing.assert_close(logits(model), logits(twin), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize(
    "edit",
    [
        KeepTop(rank=3, basis=RandomizedSVD(3, 0)),
        Drop([0, 1], basis=RandomizedSVD(3, 0)),
        RandomBasis(1),
        Drop([0], basis=HaarBasis(2)),
        KeepTop(rank=5, basis=RowBlocks(2)),
        Zero(),
        Compensated(Drop([0, 2]), [0.5] * 32),
        Compensated(Drop([0, 2], basis=RandomizedSVD(5, 0)), [0.5] * 5),
    ],
)
def test_every_basis_and_compensation(kind: str, edit: KeepTop) -> None:
    with borrowed(kind) as model:
        agree(model, {OUT: edit})


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("act", [surgery.apply, surgery.commit])
def test_gains_multiply_with_those_in_force(kind: str, act: object) -> None:
    pairs = [
        ({OUT: Drop([0])}, {OUT: KeepTop(rank=5)}),
        ({OUT: Compensated(Drop([0]), [0.5] * 32)}, {OUT: Compensated(Drop([1]), [0.25] * 32)}),
        ({OUT: Compensated(Scale({0: 0.5}), [0.5] * 32)}, {OUT: Compensated(Scale({0: 0.5}), [0.5] * 32)}),
        ({OUT: Drop([0], basis=RandomizedSVD(4, 0))}, {OUT: Keep([0, 1], basis=RandomizedSVD(4, 0))}),
        ({OUT: RandomBasis(1)}, {OUT: Drop([0], basis=HaarBasis(1))}),
        ({"blocks.0.attn.W_Q[1]": Drop([0])}, {"blocks.0.attn.W_Q[*]": Drop([1])}),
    ]
    with borrowed(kind) as model:
        for present, added in pairs:
            if act is surgery.commit and isinstance(present.get(OUT), Compensated) and "llama" in kind:
                continue  # no bias to write to
            with act(model, present):
                hooks = surgery.fwd_hooks(model, added)
                together = hooked_logits(model, hooks)
                with surgery.apply(model, added):
                    torch.testing.assert_close(together, logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_several_edits_of_one_matrix_multiply(kind: str) -> None:
    with borrowed(kind) as model:
        agree(model, {OUT: Drop([0]), "blocks.*.mlp.W_out": KeepTop(rank=6), "*W_out": Scale({3: 2.0})})


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_hooks_come_as_a_reader_and_a_writer_at_named_points(kind: str) -> None:
    with borrowed(kind) as model:
        place = place_of(model, OUT)
        (read_at, read), (write_at, write) = surgery.fwd_hooks(model, {OUT: Zero()})
        assert (read_at, write_at) == (place.input.hook, place.output.hook)
        assert {read_at, write_at} <= set(model.hook_dict)
        assert callable(read)
        assert callable(write)


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_after_the_users_hooks_on_the_input_and_before_those_on_the_output(kind: str) -> None:
    """The documented order gives what an edit of the weights gives under the same patches."""
    with borrowed(kind) as model:
        place = place_of(model, OUT)
        noise = torch.randn(2, 7, place.d_in, generator=torch.Generator().manual_seed(0))

        def patch(activation: Tensor, hook: object) -> Tensor:
            return activation + noise

        def double(activation: Tensor, hook: object) -> Tensor:
            return 2 * activation

        def elsewhere(activation: Tensor, hook: object) -> Tensor:
            return activation * 0.5

        before, after = [(place.input.hook, patch)], [(place.output.hook, double)]
        rest = [("blocks.1.hook_resid_pre", elsewhere)]
        spec = {OUT: KeepTop(rank=3)}
        hooks = surgery.fwd_hooks(model, spec)
        with surgery.apply(model, spec):
            expected = hooked_logits(model, [*before, *after, *rest])
        for order in ([*before, *hooks, *after, *rest], [*rest, *before, *hooks, *after]):
            torch.testing.assert_close(hooked_logits(model, order), expected, rtol=0, atol=1e-5)
        wrong = hooked_logits(model, [*hooks, *before, *after, *rest])
        assert not torch.allclose(wrong, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_hooks_serve_more_than_one_call_and_a_call_that_stopped_short(kind: str) -> None:
    model = build(kind)
    spec = {OUT: KeepTop(rank=3), "blocks.1.attn.W_V[0]": Zero()}
    hooks = surgery.fwd_hooks(model, spec)
    with surgery.apply(model, spec):
        expected = logits(model)
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        for _ in range(2):
            torch.testing.assert_close(model(tokens()), expected, rtol=0, atol=1e-5)
        model(tokens(), stop_at_layer=1)
        torch.testing.assert_close(model(tokens()), expected, rtol=0, atol=1e-5)
        assert model(tokens(batch=1, pos=3)).shape == (1, 3, 50)

    def fail(activation: Tensor, hook: object) -> Tensor:
        raise RuntimeError("between")

    (read, write), *others = [hooks[i : i + 2] for i in (0, 2)]
    with pytest.raises(RuntimeError, match="between"):
        hooked_logits(model, [read, (read[0], fail), write, *others[0]])
    model.reset_hooks()
    torch.testing.assert_close(hooked_logits(model, hooks), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_gradients_flow_to_the_gains_and_through(kind: str) -> None:
    with borrowed(kind) as model:
        gains = torch.full((32,), 0.7, requires_grad=True)
        hooks = surgery.fwd_hooks(model, {OUT: Scale(gains)})
        loss = model.run_with_hooks(tokens(), fwd_hooks=hooks).square().mean()
        (through_hooks,) = torch.autograd.grad(loss, gains)
        with surgery.apply(model, {OUT: Scale(gains)}):
            (through_weights,) = torch.autograd.grad(model(tokens()).square().mean(), gains)
        torch.testing.assert_close(through_hooks, through_weights, rtol=1e-3, atol=1e-6)


def test_hooks_made_in_inference_mode_work_outside() -> None:
    with borrowed("bridge gpt2") as model:
        surgery.forget(model)
        with torch.inference_mode():
            hooks = surgery.fwd_hooks(model, {OUT: Compensated(Drop([0]), [1.0] * 32)})
        model.run_with_hooks(tokens(), fwd_hooks=hooks).sum().backward()
        model.zero_grad(set_to_none=True)


def test_making_hooks_touches_nothing() -> None:
    with borrowed("bridge gpt2") as model:
        surgery.fwd_hooks(model, {"*": Zero()})
        assert surgery.active(model) == ()


def refusal(site: str, end: str, why: str) -> str:
    return (
        f"the {end} of '{site}' is at no hook point of this model: {why}. Use surgery.apply(model, spec), which always "
        "works."
    )


def test_what_lies_before_another_normalisation_is_refused(hooked_transformer: type) -> None:
    with borrowed("hooked post-norm") as model:
        for site, hook in (("blocks.0.attn.W_O", "hook_attn_out"), (OUT, "hook_mlp_out")):
            with pytest.raises(SiteError) as error:
                surgery.fwd_hooks(model, {"blocks.0.attn.W_Q": Zero(), site: Zero()})
            assert str(error.value) == refusal(site, "output", f"{hook} lies after another normalisation")


def test_modes_that_hide_an_end_are_refused(hooked_transformer: type) -> None:
    for mode, site, end, why in (
        (
            "use_split_qkv_input",
            "blocks.0.attn.W_Q",
            "input",
            "use_split_qkv_input gives every head an input of its own",
        ),
        ("use_attn_in", "blocks.0.attn.W_V[1]", "input", "use_attn_in gives every head an input of its own"),
        (
            "use_attn_result",
            "blocks.0.attn.W_O",
            "output",
            "use_attn_result shows the result of each head before they are summed",
        ),
    ):
        with pytest.raises(SiteError) as error:
            surgery.fwd_hooks(hooked("ln", **{mode: True}), {site: Zero()})
        assert str(error.value) == refusal(site, end, why)


@pytest.mark.parametrize("mode", ["use_split_qkv_input", "use_attn_in", "use_attn_result"])
def test_modes_that_bypass_a_projection_are_refused_on_the_bridge(mode: str) -> None:
    model = build("bridge gpt2 compatible")
    getattr(model, f"set_{mode}")(True)
    with pytest.raises(SiteError) as error:
        surgery.fwd_hooks(model, {"blocks.0.attn.W_Q": Zero()})
    assert str(error.value) == refusal("blocks.0.attn.W_Q", "input", f"{mode} bypasses blocks.0.attn.q")
    agree(model, {OUT: KeepTop(rank=2)})


def test_a_bad_spec_is_refused_before_any_hook_is_made() -> None:
    with borrowed("bridge gpt2") as model:
        with pytest.raises(SiteError, match="no matrix is named"):
            surgery.fwd_hooks(model, {OUT: Zero(), "blocks.5.mlp.W_out": Zero()})
        with pytest.raises(ValueError, match="overlap"):
            surgery.fwd_hooks(model, {"blocks.0.attn.W_Q": Zero(), "blocks.0.attn.W_Q[1]": Zero()})
