"""Where every kind of model keeps its matrices, what flows in and out of each, and what is refused."""

import pytest
import torch
from by_hand import addresses, bias, head_count, read, split
from models import EVERY_KIND, ONE_OF_EACH, borrowed, bridge, build, hidden_sites, hooked, kinds, tokens
from torch import Tensor, nn

import surgery
from hooks import Place, SiteError, host_of, place_of
from hooks.ends import Hidden
from hooks.temporary import together
from surgery import Zero

SPLIT_MODES = ("use_split_qkv_input", "use_attn_in", "use_attn_result")


def places(kind: str, model: nn.Module) -> list[Place]:
    """Every matrix of the model, joint and per head."""
    joint = addresses(kind)
    heads = [f"{a}[{h}]" for a in joint if ".attn." in a for h in range(head_count(kind, split(a)[1]))]
    return [place_of(model, address) for address in (*joint, *heads)]


def observed(model: nn.Module, places: list[Place]) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes through the two ends of every place in one forward pass."""
    seen: dict[tuple[str, str], Tensor] = {}

    def keep(place: Place, end: str):
        def look(activation: Tensor) -> None:
            seen[str(place.site), end] = activation.detach().clone()

        return look

    taps = [place.tapped(at_input=keep(place, "in"), at_output=keep(place, "out")) for place in places]
    with together(*taps), torch.no_grad():
        model(tokens())
    return {
        str(p.site): (p.read_input(seen[str(p.site), "in"]), p.read_output(seen[str(p.site), "out"])) for p in places
    }


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_all_matrices_are_found_in_the_order_of_the_forward_pass(kind: str) -> None:
    with borrowed(kind) as model:
        assert surgery.sites(model) == addresses(kind)
        heads = [f"{a}[{h}]" for a in addresses(kind) if ".attn." in a for h in range(head_count(kind, split(a)[1]))]
        assert surgery.sites(model, "blocks.*.attn.*[*]") == heads


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_matrix_is_the_one_that_was_read_by_hand(kind: str) -> None:
    with borrowed(kind) as model:
        for place in places(kind, model):
            by_hand = read(model, str(place.site))
            assert torch.equal(place.matrix(), by_hand), place.site
            assert (place.d_in, place.d_out) == tuple(by_hand.shape)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_output_is_input_times_matrix_plus_bias(kind: str) -> None:
    with borrowed(kind) as model:
        everywhere = places(kind, model)
        seen = observed(model, everywhere)
        for place in everywhere:
            address = str(place.site)
            x, y = seen[address]
            if place.site.matrix == "W_O" and place.site.head is not None:
                continue  # the heads of W_O share one output: see the next test
            expected = x @ read(model, address) + bias(model, address)
            torch.testing.assert_close(y, expected, atol=2e-6, rtol=1e-5, msg=lambda m, a=address: f"{a}: {m}")


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_heads_of_W_O_sum_to_the_output(kind: str) -> None:
    with borrowed(kind) as model:
        everywhere = [place for place in places(kind, model) if place.site.matrix == "W_O"]
        seen = observed(model, everywhere)
        for layer in range(2):
            joint = f"blocks.{layer}.attn.W_O"
            heads = [f"{joint}[{h}]" for h in range(4)]
            total = sum(seen[head][0] @ read(model, head) for head in heads) + bias(model, joint)
            torch.testing.assert_close(seen[joint][1], total, atol=2e-6, rtol=1e-5)
            assert all(torch.equal(seen[head][1], seen[joint][1]) for head in heads)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_named_hook_points_show_the_same_activations(kind: str) -> None:
    with borrowed(kind) as model:
        everywhere = places(kind, model)
        named = [p for p in everywhere if isinstance(p.input.hook, str) and isinstance(p.output.hook, str)]
        assert {str(p.site.joint) for p in everywhere} - {str(p.site.joint) for p in named} == hidden_sites(kind)
        names = {end.hook for place in named for end in (place.input, place.output)}
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens(), names_filter=lambda name: name in names)
        seen = observed(model, named)
        for place in named:
            x = place.read_input(place.input.from_hook(cache[place.input.hook]))
            y = place.read_output(cache[place.output.hook])
            torch.testing.assert_close(x, seen[str(place.site)][0], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(y, seen[str(place.site)][1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_change_reaches_the_matrix_after_the_users_hooks_and_its_output_before_them(kind: str) -> None:
    with borrowed(kind) as model:
        place = place_of(model, "blocks.0.mlp.W_out")
        seen: dict[str, Tensor] = {}
        patched = torch.randn_like(observed(model, [place])["blocks.0.mlp.W_out"][0])
        given = torch.randn(*tokens().shape, place.d_out)
        user = [
            (place.input.hook, lambda activation, hook: patched),
            (place.output.hook, lambda activation, hook: seen.update(written=activation)),
        ]
        tapped = place.tapped(at_input=lambda x: seen.update(read=x), at_output=lambda y: given)
        with torch.no_grad(), model.hooks(fwd_hooks=user), tapped:
            model(tokens())
        assert torch.equal(seen["read"], patched)
        assert torch.equal(seen["written"], given)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_is_added_to_an_output_goes_to_this_matrix_alone(kind: str) -> None:
    with borrowed(kind) as model:
        for place in places(kind, model):
            width = place.d_out * (1 if place.site.head is None or place.site.matrix == "W_O" else place.n_heads)
            stored = torch.randn(2, 7, width)
            change = torch.randn(2, 7, place.d_out)
            expected = stored.clone()
            h = place.site.head
            at = (
                slice(None)
                if h is None or place.site.matrix == "W_O"
                else slice(h * place.d_out, (h + 1) * place.d_out)
            )
            expected[..., at] += change
            before = stored.clone()
            assert torch.equal(place.add_to_output(stored, change), expected)
            assert torch.equal(stored, before)


@pytest.mark.parametrize("mode", ["use_split_qkv_input", "use_attn_in"])
def test_heads_with_inputs_of_their_own_are_read_one_by_one(hooked_transformer: type, mode: str) -> None:
    grouped = ["rms-folded-grouped-rotary"] if mode == "use_split_qkv_input" else []  # the other raises in the library
    for kind in ("ln", *grouped):
        model = hooked(kind, **{mode: True})
        heads = [f"blocks.1.attn.W_{m}[{h}]" for m in "QKV" for h in range(head_count(f"hooked {kind}", f"W_{m}"))]
        everywhere = [place_of(model, head) for head in heads]
        for site, (x, y) in observed(model, everywhere).items():
            torch.testing.assert_close(y, x @ read(model, site) + bias(model, site), atol=2e-6, rtol=1e-5)
        joint = place_of(model, "blocks.1.attn.W_Q")
        with pytest.raises(SiteError) as error:
            joint.read_input(torch.zeros(2, 7, 4, 32))
        assert str(error.value) == (
            "blocks.1.attn.W_Q has no single input: the model gives every head an input of its own "
            "(use_split_qkv_input or use_attn_in). Name the heads, 'blocks.1.attn.W_Q[*]', or switch that off."
        )
        assert joint.input.hook == Hidden(f"{mode} gives every head an input of its own")
        assert place_of(model, "blocks.1.mlp.W_in").input.hook == "blocks.1.ln2.hook_normalized"


def test_repeated_key_value_heads_are_not_taken_for_the_matrix_s_own(hooked_transformer: type) -> None:
    model = hooked("rms-folded-grouped-rotary", ungroup_grouped_query_attention=True)
    place = place_of(model, "blocks.0.attn.W_K")
    with pytest.raises(SiteError) as error:
        place.read_output(torch.zeros(2, 7, 4, 8))
    assert str(error.value) == (
        "blocks.0.attn.W_K has 16 output columns, but the model shows 32 (ungroup_grouped_query_attention repeats "
        "key-value heads). Switch that off to work on activations."
    )


def test_without_normalisation_the_residual_stream_is_the_input(hooked_transformer: type) -> None:
    model = hooked("no-norm")
    assert place_of(model, "blocks.1.attn.W_Q").input.hook == "blocks.1.hook_resid_pre"
    assert place_of(model, "blocks.1.mlp.W_in").input.hook == "blocks.1.hook_resid_mid"
    model.set_use_attn_in(True)
    assert place_of(model, "blocks.1.mlp.W_in").input.hook == "blocks.1.hook_resid_mid"
    model.set_use_attn_in(False)
    model.set_use_hook_mlp_in(True)
    assert place_of(model, "blocks.1.attn.W_Q").input.hook == "blocks.1.hook_resid_pre"
    expected = Hidden("use_hook_mlp_in copies the input before the matrix reads it")
    assert place_of(model, "blocks.1.mlp.W_in").input.hook == expected


@pytest.mark.parametrize("mode", SPLIT_MODES)
def test_the_bridge_says_which_mode_bypasses_a_projection(mode: str) -> None:
    model = build("bridge gpt2 compatible")
    getattr(model, f"set_{mode}")(True)
    assert place_of(model, "blocks.0.attn.W_Q").input.hook == Hidden(f"{mode} bypasses blocks.0.attn.q")
    assert place_of(model, "blocks.0.mlp.W_in").input.hook == "blocks.0.mlp.in.hook_in"


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        *[pytest.param(f"hooked {k}", "raw", marks=pytest.mark.hooked) for k in ("ln", "rms-gated", "no-norm")],
        pytest.param("hooked ln-folded", "LayerNorm folded (LNPre or RMSPre)", marks=pytest.mark.hooked),
        pytest.param(
            "hooked rms-folded-grouped-rotary", "LayerNorm folded (LNPre or RMSPre)", marks=pytest.mark.hooked
        ),
        ("bridge gpt2", "raw"),
        ("bridge gpt2 compatible", "processed (LayerNorm folded or weights centred)"),
        ("bridge llama compatible", "processed (LayerNorm folded or weights centred)"),
    ],
)
def test_the_state_of_the_weights_is_known(kind: str, state: str) -> None:
    with borrowed(kind) as model:
        assert host_of(model).weight_state() == state


REFUSALS = [
    ("bridge mixtral", "blocks.0.mlp.W_in", "blocks.0.mlp is a MoEBridge, whose weights are not one matrix per layer"),
    (
        "bridge mixtral",
        "blocks.*.mlp.W_{in,out}",
        "blocks.0.mlp is a MoEBridge, whose weights are not one matrix per layer",
    ),
    ("hooked attention-only", "blocks.1.mlp.W_out", "this model is attention-only, so blocks.1 has no mlp"),
    ("hooked attention-only", "blocks.*.mlp.W_out", "this model is attention-only, so blocks.0 has no mlp"),
    (
        "hooked experts",
        "blocks.0.mlp.W_in",
        "blocks.0.mlp is a MoE, which holds no matrix of its own but experts, W_gate, hook_expert_weights, "
        "hook_expert_indices",
    ),
    ("hooked ln", "blocks.0.mlp.W_gate", "blocks.0.mlp is a MLP, which holds W_in, W_out"),
    ("bridge gpt2", "blocks.0.mlp.W_gate", "blocks.0.mlp is a MLPBridge, which holds W_in, W_out"),
]


@pytest.mark.parametrize(
    ("kind", "pattern", "reason"),
    [pytest.param(*case, marks=pytest.mark.hooked if case[0].startswith("hooked") else ()) for case in REFUSALS],
)
def test_what_cannot_be_edited_is_refused_with_what_the_model_has(kind: str, pattern: str, reason: str) -> None:
    with borrowed(kind) as model:
        for act in (surgery.sites, surgery.decompose, lambda m, p: surgery.apply(m, {p: Zero()})):
            with pytest.raises(SiteError) as error:
                act(model, pattern)
            assert f"no matrix is named {pattern!r}: {reason}" in str(error.value)
            assert "surgery.sites(model)" in str(error.value)
        if "*" not in pattern:
            with pytest.raises(SiteError) as error:
                place_of(model, pattern)
            assert str(error.value) == (
                f"'{pattern}' cannot be edited: {reason}. List what can with surgery.sites(model)."
            )


def test_quantised_weights_are_refused_on_both_hosts() -> None:
    model = bridge("llama")
    layer = model.blocks[0].mlp.out.original_component
    layer.weight = nn.Parameter(torch.zeros(32, 64, dtype=torch.int8), requires_grad=False)
    with pytest.raises(SiteError) as error:
        surgery.apply(model, {"blocks.0.mlp.W_out": Zero()})
    assert str(error.value) == (
        "spec['blocks.0.mlp.W_out']: no matrix is named 'blocks.0.mlp.W_out': its weight is stored as int8 of shape "
        "(32, 64) (quantised, or one tensor for many experts), not as a matrix of floats. "
        "List what can be edited with surgery.sites(model)."
    )
    assert "blocks.0.mlp.W_out" not in surgery.sites(model)
    assert "blocks.1.mlp.W_out" in surgery.sites(model)


def test_quantised_weights_of_a_hooked_transformer_are_refused(hooked_transformer: type) -> None:
    model = hooked("rms-gated")
    model.blocks[1].attn.W_Q = nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(SiteError, match=r"its weight is stored as uint8 of shape \(16, 1\)"):
        surgery.sites(model, "blocks.1.attn.W_Q")


def test_a_layer_that_is_not_linear_is_refused() -> None:
    model = bridge("gpt2")
    model.blocks[0].mlp.out.set_original_component(nn.Bilinear(2, 2, 2))
    with pytest.raises(SiteError, match=r"mlp\.out is a torch\.nn\.\S+\.Bilinear, not a plain linear layer\."):
        surgery.sites(model, "blocks.0.mlp.W_out")


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_addresses_beyond_the_model_are_refused_with_its_numbers(kind: str) -> None:
    with borrowed(kind) as model:
        with pytest.raises(SiteError) as error:
            place_of(model, "blocks.9.mlp.W_out")
        assert str(error.value) == (
            "no matrix is named 'blocks.9.mlp.W_out': this model has 2 layers, blocks.0 to blocks.1. "
            "List all with surgery.sites(model)."
        )
        with pytest.raises(SiteError) as error:
            place_of(model, "blocks.1.attn.W_Q[4]")
        assert str(error.value) == (
            "no head is named 'blocks.1.attn.W_Q[4]': blocks.1.attn.W_Q has 4 heads, 0 to 3. "
            "List all with surgery.sites(model)."
        )


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError) as error:
        surgery.sites(nn.Linear(2, 2))
    assert str(error.value) == (
        "cannot operate on a Linear: a transformer_lens HookedTransformer or TransformerBridge is needed. "
        "Wrap a Hugging Face model with TransformerBridge.boot_transformers or build_bridge_from_module."
    )


@pytest.mark.parametrize("kind", kinds("hooked ln", "bridge gpt2"))
def test_compiled_models_are_refused(kind: str) -> None:
    model = build(kind)
    for act in (
        surgery.sites,
        surgery.decompose,
        lambda m: surgery.apply(m, {"*": Zero()}),
        lambda m: surgery.fwd_hooks(m, {"*": Zero()}),
    ):
        with pytest.raises(TypeError) as error:
            act(torch.compile(model, backend="eager"))
        assert str(error.value) == (
            "a compiled model (OptimizedModule) would ignore an edit that is laid over its weights. Write the edit "
            "into the weights of the model that was compiled, surgery.commit(model, spec), or apply it without "
            "compiling."
        )
    model.compile(backend="eager")
    for act in (surgery.apply, surgery.fwd_hooks):
        with pytest.raises(TypeError, match=f"a compiled model \\({type(model).__name__}\\) would ignore an edit"):
            act(model, {"*": Zero()})
