from collections.abc import Callable

import by_hand
import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from hooks import SiteError, coordinates, place_of


def svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(W.double(), full_matrices=False)


def axes(model: nn.Module, site: str, components: list[int] | None = None) -> coordinates.Axes:
    U, S, Vh = (part.float() for part in svd(by_hand.read(model, site)))
    chosen = list(range(len(S))) if components is None else components
    return coordinates.axes_of(place_of(model, site), chosen, U, S, Vh)


def every_site(kind: str) -> list[str]:
    whole = by_hand.addresses(kind)
    return [*whole, *(f"{site}[1]" for site in whole if ".attn." in site)]


def overwritten(model: nn.Module, site: str, gains: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """`run()` with the singular values multiplied in the weight itself."""
    W = by_hand.read(model, site)
    U, S, Vh = svd(W)
    by_hand.write(model, site, ((U * (gains.double() * S)) @ Vh).to(W.dtype))
    try:
        return run()
    finally:
        by_hand.write(model, site, W)


@pytest.mark.parametrize("kind", models.EVERY_KIND)
def test_scaling_coordinates_is_scaling_singular_values_in_the_weight(kind: str):
    tokens = models.tokens(2, 5)
    with models.borrowed(kind) as model, torch.no_grad():
        for site in every_site(kind):
            gains = 2 * torch.rand(min(by_hand.read(model, site).shape))
            hook = axes(model, site).hook(lambda now, gains=gains: (gains - 1) * now)
            expected = overwritten(model, site, gains, lambda: model(tokens))
            actual = model.run_with_hooks(tokens, fwd_hooks=[hook])
            torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4, msg=lambda m, site=site: f"{site}: {m}")


OUTPUTS = {
    "hooked ln": ("attn.hook_v", "hook_attn_out", "mlp.hook_pre", "hook_mlp_out"),
    "bridge gpt2": ("attn.v.hook_out", "attn.o.hook_out", "mlp.in.hook_out", "mlp.out.hook_out"),
}


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_coordinates_and_bias_make_up_the_output(kind: str):
    sites = ("blocks.1.attn.W_V", "blocks.1.attn.W_O", "blocks.1.mlp.W_in", "blocks.1.mlp.W_out")
    with models.borrowed(kind) as model, torch.no_grad():
        _, cache = model.run_with_cache(models.tokens())
        for site, name in zip(sites, OUTPUTS[kind], strict=True):
            Vh = svd(by_hand.read(model, site))[2].float()
            read = axes(model, site).read(cache[coordinates.hook_point(place_of(model, site))])
            y = cache[f"blocks.1.{name}"]
            y = y.flatten(2) if y.ndim == 4 else y
            torch.testing.assert_close(read @ Vh + by_hand.bias(model, site), y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
@pytest.mark.parametrize("site", ["blocks.0.attn.W_K[2]", "blocks.0.attn.W_O[3]", "blocks.0.mlp.W_out"])
def test_moved_coordinates_are_read_back_and_nothing_else_moves(kind: str, site: str):
    with models.borrowed(kind) as model:
        some, every = axes(model, site, [0, 3]), axes(model, site)
        name = coordinates.hook_point(some.place)
        _, cache = model.run_with_cache(models.tokens())
        by = torch.randn(*models.tokens().shape, 2)
        before, after = every.read(cache[name]), every.read(some.move(cache[name], by))
    expected = before.detach().clone()
    expected[..., [0, 3]] += by
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "site", ["blocks.0.attn.W_Q", "blocks.1.attn.W_O[1]", "blocks.0.mlp.W_in", "blocks.1.mlp.W_out"]
)
def test_half_precision_stays_and_agrees(dtype: torch.dtype, site: str):
    tokens = models.tokens()
    half, full = models.build("bridge gpt2", dtype=dtype), models.build("bridge gpt2")
    gains = torch.ones(min(by_hand.read(full, site).shape))
    gains[:6] = 6.0
    with torch.no_grad():
        # What the edit does, against the same edit of the fp32 model; weights agree to 2⁻⁸ only.
        hook = axes(half, site).hook(lambda now: (gains - 1) * now)
        change = half.run_with_hooks(tokens, fwd_hooks=[hook]) - half(tokens)
        expected = overwritten(full, site, gains, lambda: full(tokens)) - full(tokens)
    assert change.dtype == dtype
    assert float((change.float() - expected).norm()) < 0.15 * float(expected.norm())


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
@pytest.mark.parametrize("site", ["blocks.0.attn.W_V[1]", "blocks.0.mlp.W_out"])
def test_gradients_flow_into_what_the_change_is_made_from(kind: str, site: str):
    tokens = models.tokens()

    def value(gain: Tensor) -> Tensor:
        hook = axes(model, site, [1]).hook(lambda now: (gain - 1) * now)
        return model.run_with_hooks(tokens, fwd_hooks=[hook])[:, -1, 3].sum()

    with models.borrowed(kind) as model:
        gain = torch.tensor(1.0, requires_grad=True)
        slope = torch.autograd.grad(value(gain), gain)[0]
        with torch.no_grad():
            difference = (value(torch.tensor(1.01)) - value(torch.tensor(0.99))) / 0.02
    torch.testing.assert_close(slope, difference, atol=1e-4, rtol=1e-2)


def test_a_component_without_strength_cannot_be_set_where_only_the_input_is_its_own():
    with models.borrowed("bridge gpt2") as model:
        for site, expected in (("blocks.0.mlp.W_out", (2,)), ("blocks.0.attn.W_O[0]", (2,)), ("blocks.0.mlp.W_in", ())):
            U, S, Vh = (part.float() for part in svd(by_hand.read(model, site)))
            S[2] = 0
            at = coordinates.axes_of(place_of(model, site), [0, 2], U, S, Vh)
            assert at.unreachable == expected
            _, cache = model.run_with_cache(models.tokens())
            moved = at.move(cache[coordinates.hook_point(at.place)], torch.ones(2, 7, 2))
            assert bool(moved.isfinite().all())


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_hook_points_that_the_model_hides_are_refused_with_the_reason(kind: str):
    model = models.build(kind)
    name = {"hooked ln": "blocks.0.attn.hook_z", "bridge gpt2": "blocks.0.attn.o.hook_in"}[kind]
    assert coordinates.hook_point(place_of(model, "blocks.0.attn.W_O")) == name
    if kind.startswith("bridge"):
        model.cfg.use_split_qkv_input = True
        with pytest.raises(SiteError) as caught:
            coordinates.hook_point(place_of(model, "blocks.0.attn.W_Q[0]"))
        assert str(caught.value) == (
            "the output of 'blocks.0.attn.W_Q[0]' is at no hook point of this model: use_split_qkv_input bypasses "
            "blocks.0.attn.q. Switch that off."
        )


@pytest.mark.hooked
def test_one_hook_works_where_the_model_shows_only_one_end_of_a_matrix():
    with models.borrowed("hooked post-norm") as model, torch.no_grad():
        site = "blocks.0.mlp.W_out"
        with pytest.raises(SiteError, match="lies after another normalisation"):
            surgery.fwd_hooks(model, {site: surgery.Drop([0])}, progress=False)
        without = model.run_with_hooks(models.tokens(), fwd_hooks=[axes(model, site, [0]).hook(lambda now: -now)])
        with surgery.apply(model, {site: surgery.Drop([0])}, progress=False):
            torch.testing.assert_close(without, model(models.tokens()), atol=1e-5, rtol=1e-4)


@given(data=st.data(), n_examples=st.integers(1, 4), n_pos=st.integers(1, 6))
def test_positions_are_what_python_indexing_chooses(data: st.DataObject, n_examples: int, n_pos: int):
    column = st.integers(-n_pos, n_pos - 1)
    bound = st.none() | st.integers(-n_pos - 1, n_pos + 1)
    own = st.lists(column, min_size=n_examples, max_size=n_examples)
    some = st.lists(column, min_size=1)
    where = data.draw(st.one_of(column, some, st.builds(slice, bound, bound), own.map(torch.tensor)))
    expected = torch.zeros(n_examples, n_pos, dtype=torch.bool)
    for n in range(n_examples):
        match where:
            case torch.Tensor():
                expected[n][int(where[n])] = True
            case list():
                for at in where:
                    expected[n][at] = True
            case _:
                expected[n][where] = True
    actual = coordinates.positions(where, n_examples, n_pos, device=torch.device("cpu"))
    assert torch.equal(actual.expand(n_examples, n_pos), expected)


def test_positions_may_be_all_or_any():
    cpu, mask = torch.device("cpu"), torch.rand(3, 4) > 0.5
    assert bool(coordinates.positions("all", 3, 4, device=cpu).all())
    assert torch.equal(coordinates.positions(mask, 3, 4, device=cpu), mask)
    assert torch.equal(coordinates.positions(mask[:1], 3, 4, device=cpu), mask[:1])


def test_positions_that_do_not_fit_are_refused():
    def choose(where: coordinates.Where) -> Tensor:
        return coordinates.positions(where, 3, 4, device=torch.device("cpu"))

    for where in (4, [0, 4], torch.tensor([0, 4, 1])):
        with pytest.raises(ValueError) as caught:
            choose(where)
        assert str(caught.value) == (
            "positions name column 4, but this run has 4, 0 to 3, or -4 to -1 counted from the end. Choose among them."
        )
    own, mask = torch.tensor([0, 1]), torch.ones(2, 4).bool()
    for where in (own, mask, torch.ones(3, 5).bool()):
        with pytest.raises(
            ValueError, match=r"in a run of \[example pos\] of shape \(3, 4\): it is 'all', a column, a slice or"
        ):
            choose(where)
