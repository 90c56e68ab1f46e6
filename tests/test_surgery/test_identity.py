"""Which weights an edit is of: tied and shared ones, of compiled and offloaded models, under threads."""

import copy
import threading

import pytest
import torch
from models import (
    ONE_OF_EACH,
    State,
    borrowed,
    bridge,
    build,
    has_hooked_transformer,
    hugging_face,
    kinds,
    one_layer,
    tokens,
)
from torch import Tensor, nn

import surgery
from analyses import attribution, metrics
from hooks import EditedModelError, SiteError, host_of, place_of
from hooks.editor import editor_of
from surgery import Drop, KeepTop, Zero

FIRST, SECOND = "blocks.0.mlp.W_out", "blocks.1.mlp.W_out"


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(tokens())


def tied(kind: str) -> nn.Module:
    """A model with one parameter for the output matrices of both MLPs."""
    if kind.startswith("hooked"):
        model = build(kind)
        model.blocks[1].mlp.W_out = model.blocks[0].mlp.W_out
        return model
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    inner = hugging_face("gpt2")
    inner.transformer.h[1].mlp.c_proj.weight = inner.transformer.h[0].mlp.c_proj.weight
    return build_bridge_from_module(inner, type(inner).__name__, hf_config=inner.config)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("spec", [{FIRST: KeepTop(rank=2)}, {SECOND: Drop([0])}, {FIRST: Zero(), SECOND: Zero()}])
def test_commits_to_tied_weights_do_not_lose_the_original_but_are_refused(kind: str, spec: dict) -> None:
    model = tied(kind)
    before = State(model)
    with pytest.raises(ValueError) as error:
        surgery.commit(model, spec)
    here, there = (FIRST, SECOND) if FIRST in spec else (SECOND, FIRST)
    assert str(error.value) == (
        f"'{here}' and '{there}' share one parameter, so that writing an edit into '{here}' would change '{there}' "
        f"too: use surgery.apply, which edits '{here}' alone, or give it a parameter of its own."
    )
    assert surgery.active(model) == ()
    before.assert_unchanged(model)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("undone_first", [0, 1])
def test_tied_weights_are_edited_apart_and_undone_in_any_order(kind: str, undone_first: int) -> None:
    model = tied(kind)
    before = State(model)
    with surgery.apply(model, {}) as nothing:
        W = nothing.weight(FIRST).clone()
    operations = [surgery.apply(model, {FIRST: KeepTop(rank=2)}), surgery.apply(model, {SECOND: Drop([0])})]
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(operations[0].weight(FIRST), U[:, :2] * S[:2] @ Vh[:2])
    torch.testing.assert_close(operations[0].weight(SECOND), U[:, 1:] * S[1:] @ Vh[1:])
    operations[undone_first].undo()
    assert torch.equal(operations[0].weight((FIRST, SECOND)[undone_first]), W)
    operations[1 - undone_first].undo()
    before.assert_unchanged(model)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_block_that_is_used_twice_is_refused(kind: str) -> None:
    model = build(kind)
    model.blocks[1] = model.blocks[0]
    before = State(model)
    with pytest.raises(SiteError, match=r"blocks\.1\.mlp is used in several places of this model"):
        surgery.apply(model, {SECOND: Drop([0])})
    before.assert_unchanged(model)
    model.blocks[1] = copy.deepcopy(model.blocks[0])
    with surgery.apply(model, {SECOND: Drop([0])}):
        pass


@pytest.mark.hooked
def test_a_module_of_another_model_keeps_the_edit_it_has_there() -> None:
    first, second = build("hooked ln"), build("hooked ln")
    second.blocks[0].mlp = first.blocks[0].mlp
    before, operation = State(first), surgery.apply(first, {FIRST: Zero()})
    edited = logits(first)
    with pytest.raises(EditedModelError) as error:
        surgery.apply(second, {FIRST: Drop([0])})
    assert str(error.value) == (
        "'blocks.0.mlp.W_out' lies in a module that another model shares and that is edited there, and another edit "
        "cannot be combined with it: undo the other model's edit first, or give this model a copy of the module."
    )
    surgery.undo_all(second)
    assert operation.is_active
    assert torch.equal(logits(first), edited)
    operation.undo()
    before.assert_unchanged(first)


@pytest.mark.hooked
@pytest.mark.parametrize("second_act", [surgery.apply, surgery.commit])
def test_commits_to_a_module_of_two_models_do_not_lose_the_original(second_act) -> None:
    first, second = build("hooked ln"), build("hooked ln")
    second.blocks[0].mlp = first.blocks[0].mlp
    before, operation = State(first), surgery.commit(first, {FIRST: KeepTop(rank=2)})
    with pytest.raises(EditedModelError, match="lies in a module that another model shares and that is edited there"):
        second_act(second, {FIRST: Drop([0])})
    operation.undo()
    before.assert_unchanged(first)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_commit_to_parameters_made_in_inference_mode_is_refused_before_anything_is_done(kind: str) -> None:
    with torch.inference_mode():
        model = build(kind)
    with pytest.raises(ValueError, match="was made in inference mode, and cannot be written to"):
        surgery.commit(model, {FIRST: Drop([0])})
    assert surgery.active(model) == ()
    with surgery.apply(model, {FIRST: Drop([0])}):
        pass


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_weights_loaded_into_a_part_of_the_model_under_an_edit_are_refused(kind: str) -> None:
    model = build(kind)
    before = State(model)
    state = {name: value.clone() for name, value in model.blocks.state_dict().items()}
    with surgery.apply(model, {FIRST: KeepTop(rank=3)}):
        with pytest.raises(EditedModelError, match=r"^load_state_dict\(\) would rewrite the weights of a"):
            model.blocks.load_state_dict(state)
        copied = copy.deepcopy(model)
    model.blocks.load_state_dict(state)
    before.assert_unchanged(model)
    surgery.undo_all(copied)
    copied.blocks.load_state_dict(state)


@pytest.mark.parametrize("kind", [*kinds("hooked ln"), pytest.param("bridge gpt2", marks=pytest.mark.long)])
def test_what_was_compiled_before_an_edit_sees_it_and_commit_takes_its_handle(kind: str) -> None:
    model = one_layer(kind)
    weights, compiled = copy.deepcopy(model.state_dict()), torch.compile(model, backend="eager")
    spec, other = {"blocks.*.mlp.W_out": KeepTop(rank=2)}, {"blocks.*.mlp.W_out": Zero()}
    torch._dynamo.reset()
    with torch.no_grad():
        plain = compiled(tokens())  # every call after a change compiles anew, for seconds
        operation = surgery.commit(compiled, spec)
        assert surgery.active(compiled) == surgery.active(model) == (operation,)
        committed = compiled(tokens())
        torch.testing.assert_close(committed, model(tokens()))
        assert not torch.allclose(committed, plain, atol=1e-3)
        surgery.undo_all(compiled)
        with surgery.apply(model, other):
            applied = compiled(tokens())
            torch.testing.assert_close(applied, model(tokens()))
            assert not any(torch.allclose(applied, before, atol=1e-3) for before in (plain, committed))
        torch.testing.assert_close(compiled(tokens()), plain)
    with pytest.raises(TypeError, match=r"^a compiled model \(OptimizedModule\) would ignore an edit"):
        surgery.apply(compiled, spec)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    torch._dynamo.reset()


def test_a_compiled_function_that_calls_the_model_sees_an_edit() -> None:
    model = one_layer("hooked ln" if has_hooked_transformer() else "bridge gpt2")  # the quicker to compile
    compiled = torch.compile(lambda x: model(x), backend="eager")
    torch._dynamo.reset()
    with torch.no_grad():
        plain = compiled(tokens())
        with surgery.apply(model, {"blocks.*.mlp.W_out": KeepTop(rank=2)}):
            edited = compiled(tokens())
            torch.testing.assert_close(edited, model(tokens()))
            assert not torch.allclose(edited, plain, atol=1e-3)
        torch.testing.assert_close(compiled(tokens()), plain)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_matrix_on_the_meta_device_is_refused_by_a_sentence(kind: str) -> None:
    model = build(kind).to("meta")
    for act in (surgery.apply, surgery.commit):
        with pytest.raises(SiteError, match="its weight is on the meta device, which holds no numbers"):
            act(model, {FIRST: Zero()})
    assert surgery.active(model) == ()


def test_an_offloaded_model_is_refused_by_a_sentence() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = bridge("llama")
    accelerate.cpu_offload(model.original_model, execution_device="cpu")
    with pytest.raises(SiteError, match="load the whole model onto devices, without offloading"):
        surgery.apply(model, {FIRST: Zero()})


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_model_with_some_matrices_elsewhere_is_edited_where_it_is(kind: str) -> None:
    model, other = build(kind), "blocks.1.mlp.W_out"
    owner = place_of(model, other).slots[0].owner
    name = place_of(model, other).slots[0].name
    owner._parameters[name] = nn.Parameter(owner._parameters[name].to("meta"), requires_grad=False)
    assert other not in surgery.sites(model)
    for act in (surgery.decompose, lambda m, site: surgery.apply(m, {site: Zero()})):
        with pytest.raises(SiteError, match=rf"'{other}': its weight is on the meta device, which holds no numbers"):
            act(model, other)
    before = surgery.weight(model, FIRST).clone()
    with surgery.apply(model, {FIRST: Zero()}):
        assert not surgery.weight(model, FIRST).any()
    assert torch.equal(surgery.weight(model, FIRST), before)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_model_whose_embedding_is_offloaded_has_no_device_to_be_asked_on(kind: str) -> None:
    model = build(kind)
    assert host_of(model).device == torch.device("cpu")
    model.to("meta")
    with pytest.raises(ValueError, match="the model's embedding is on the meta device, which holds no numbers"):
        _ = host_of(model).device
    with pytest.raises((ValueError, SiteError), match=r"meta device|no matrix"):
        attribution.by_gradient(model, tokens(), metrics.logit_difference(3, 5), progress=False)


def test_what_accelerate_leaves_on_a_device_is_edited_and_asked_as_without_it() -> None:
    accelerate = pytest.importorskip("accelerate")
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    plain, inner = bridge("llama"), hugging_face("llama")  # loaded with a device map first, and wrapped then
    accelerate.cpu_offload(inner.model.layers[1], execution_device="cpu")
    accelerate.hooks.attach_align_device_hook(inner.model.layers[0], execution_device="cpu", offload=False)
    model = build_bridge_from_module(inner, type(inner).__name__, hf_config=inner.config)
    assert surgery.sites(model) == [site for site in surgery.sites(plain) if site.startswith("blocks.0.")]
    metric, site = metrics.logit_difference(3, 5), "blocks.0.mlp.W_out"
    with torch.no_grad():
        before = model(tokens())
        torch.testing.assert_close(before, plain(tokens()))
        shown = []
        for each in (model, plain):
            with surgery.apply(each, {"blocks.0.*": KeepTop(rank=3)}):
                shown.append(each(tokens()))
        assert torch.equal(*shown) and torch.equal(model(tokens()), before)
    for method in (attribution.by_gradient, attribution.by_ablation):
        effects = [method(each, tokens(), metric, site, progress=False) for each in (model, plain)]
        torch.testing.assert_close(effects[0][site], effects[1][site])


def test_a_layer_with_an_adapter_says_how_to_merge_it() -> None:
    class Linear(nn.Module):
        __module__ = "peft.tuners.lora.layer"
        weight = None

    model = bridge("llama")
    model.blocks[0].mlp.out.set_original_component(Linear())
    with pytest.raises(
        SiteError, match=r"is a peft\.tuners\.lora\.layer\.Linear, not a plain linear layer \(merge an "
    ):
        surgery.sites(model, FIRST)


def from_threads(act, n: int) -> list[BaseException]:
    failures: list[BaseException] = []

    def run(i: int) -> None:
        try:
            act(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    return failures


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("same", [False, True], ids=["disjoint", "same matrix"])
def test_threads_lose_no_operation(kind: str, same: bool) -> None:
    with borrowed(kind) as model:
        before = State(model)
        surgery.decompose(model, "blocks.*.mlp.*", progress=False)

        def edit(i: int) -> None:
            site = FIRST if same else ("blocks.0.mlp.W_in", FIRST, "blocks.1.mlp.W_in", SECOND)[i]
            for _ in range(30):
                with surgery.apply(model, {site: Drop([i])}, progress=False) as operation:
                    assert operation.is_active

        assert from_threads(edit, 4) == []
        assert (surgery.active(model), editor_of(model).is_idle) == ((), True)
        before.assert_unchanged(model)


def test_an_edit_of_what_is_decomposed_takes_no_lock_of_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress bar takes one; an interrupt while it is taken would leave every other thread waiting."""

    def taken(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a progress bar was made")

    with borrowed("bridge gpt2") as model:
        surgery.forget(model)
        monkeypatch.setattr("surgery.progress.tqdm", taken)
        surgery.apply(model, {FIRST: Zero()}, progress=False).undo()
        surgery.apply(model, {FIRST: Zero()}).undo()
