"""The editor of a model: what is shown, what is written, what is given back, and how the model is guarded meanwhile."""

import copy

import pytest
import torch
from models import ONE_OF_EACH, SOME_KINDS, borrowed, build, tokens
from torch import Tensor

from hooks import EditedModelError, place_of
from hooks.editor import editor_of, guard, strip, unguard
from hooks.shadows import Slot

SITES = ("blocks.0.attn.W_Q", "blocks.1.attn.W_K", "blocks.1.attn.W_O", "blocks.0.mlp.W_out")


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(tokens())


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("address", SITES)
def test_shown_then_hidden_leaves_no_trace(kind: str, address: str) -> None:
    with borrowed(kind) as model:
        editor, place = editor_of(model), place_of(model, address)
        original, before = editor.original(place).clone(), logits(model)
        new = torch.randn_like(original)
        for slot in place.slots:
            editor.show(slot, place.stored(new))
        assert torch.equal(editor.current(place), new)
        assert torch.equal(editor.original(place), original)
        assert torch.equal(place.matrix(), original)
        assert not torch.allclose(logits(model), before)
        assert not editor.is_idle
        for slot in place.slots:
            editor.show(slot, place.stored(2 * new))
        assert torch.equal(editor.current(place), 2 * new)
        for slot in place.slots:
            editor.hide(slot)
            editor.hide(slot)
        assert editor.is_idle
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("address", SITES)
def test_written_then_restored_leaves_no_trace(kind: str, address: str) -> None:
    with borrowed(kind) as model:
        editor, place = editor_of(model), place_of(model, address)
        original, before, objects = editor.original(place).clone(), logits(model), list(model.parameters())
        new = torch.randn_like(original)
        editor.write((slot, place.stored(new)) for slot in place.slots)
        editor.write((slot, place.stored(3 * new)) for slot in place.slots)
        assert torch.equal(place.matrix(), 3 * new)
        assert torch.equal(editor.original(place), original)
        assert all(a is b for a, b in zip(objects, model.parameters(), strict=True))
        for slot in place.slots:
            editor.restore(slot)
            editor.restore(slot)
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("hide_first", [True, False])
def test_shown_over_written_come_off_in_any_order(kind: str, hide_first: bool) -> None:
    with borrowed(kind) as model:
        editor, place = editor_of(model), place_of(model, "blocks.0.mlp.W_out")
        original, before = editor.original(place).clone(), logits(model)
        shown, written = torch.randn_like(original), torch.randn_like(original)
        for slot in place.slots:
            editor.show(slot, place.stored(shown))
        editor.write((slot, place.stored(written)) for slot in place.slots)
        assert torch.equal(editor.current(place), shown)
        assert torch.equal(editor.original(place), original)
        for slot in place.slots:
            editor.hide(slot) if hide_first else editor.restore(slot)
        assert torch.equal(editor.current(place), written if hide_first else shown)
        for slot in place.slots:
            editor.restore(slot) if hide_first else editor.hide(slot)
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_tensor_that_does_not_fit_changes_nothing(kind: str) -> None:
    with borrowed(kind) as model:
        editor = editor_of(model)
        (first,), (second,) = (place_of(model, address).slots for address in SITES[2:])
        for act in (
            lambda: editor.show(second, torch.ones(1, 1)),
            lambda: editor.write([(first, torch.zeros_like(first.registered())), (second, torch.ones(1, 1))]),
        ):
            with pytest.raises(
                ValueError, match=r"cannot lay a tensor of shape \(1, 1\), float32 on cpu over blocks\.0\.mlp\."
            ):
                act()
            for slot in (first, second):
                editor.restore(slot)
        assert editor.is_idle


def test_a_missing_bias_cannot_be_written() -> None:
    with borrowed("bridge llama") as model:
        bias = place_of(model, "blocks.0.mlp.W_out").bias
        with pytest.raises(ValueError) as error:
            editor_of(model).write([(bias, torch.zeros(32))])
        assert str(error.value) == (
            "blocks.0.mlp.out.original_component.bias holds no parameter to write to: use a temporary edit instead."
        )


@pytest.mark.parametrize("kind", ["bridge llama", "bridge llama compatible"])
def test_a_missing_bias_can_be_shown(kind: str) -> None:
    with borrowed(kind) as model:
        editor, bias = editor_of(model), place_of(model, "blocks.0.mlp.W_out").bias
        before = logits(model)
        assert editor.original_bias(bias) is None
        editor.show(bias, torch.full((32,), 0.5))
        with torch.no_grad():
            at = "blocks.0.mlp.out.hook_out"
            shifted = model.run_with_cache(tokens(), names_filter=lambda name: name == at)[1][at]
        assert not torch.equal(logits(model), before)
        editor.hide(bias)
        with torch.no_grad():
            plain = model.run_with_cache(tokens(), names_filter=lambda name: name == at)[1][at]
        torch.testing.assert_close(shifted, plain + 0.5)


def test_there_is_one_editor_for_a_model() -> None:
    first, second = build("bridge gpt2"), build("bridge gpt2")
    assert editor_of(first) is editor_of(first)
    assert editor_of(first) is not editor_of(second)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_guarded_model_refuses_to_process_its_weights(kind: str) -> None:
    with borrowed(kind) as model:
        guard(model)
        guard(model)
        known = "enable_compatibility_mode", "process_weights", "process_weights_", "load_and_process_state_dict"
        names = ["load_state_dict", *(name for name in known if hasattr(type(model), name))]
        assert len(names) > 1
        for name in names:
            with pytest.raises(EditedModelError) as error:
                getattr(model, name)()
            assert str(error.value) == (
                f"{name}() would rewrite the weights under an active edit, which was made for the weights as they are. "
                "Undo the edit first (operation.undo() or surgery.undo_all(model)), rewrite the weights, and apply "
                "it again."
            )
        unguard(model)
        unguard(model)


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_deep_copy_keeps_a_shadow_and_can_be_stripped_of_it(kind: str) -> None:
    model = build(kind)
    before, editor = logits(model), editor_of(model)
    for address in SITES:
        place = place_of(model, address)
        for slot in place.slots:
            editor.show(slot, place.stored(torch.randn_like(editor.original(place))))
    bias = place_of(model, SITES[-1]).bias
    editor.show(bias, torch.ones(32))
    guard(model)
    edited, twin = logits(model), copy.deepcopy(model)
    assert torch.equal(logits(twin), edited)
    strip(twin)
    assert torch.equal(logits(twin), before)
    assert torch.equal(logits(model), edited)
    strip(twin)
    assert torch.equal(logits(twin), before)
    if hasattr(twin, "process_weights"):
        assert "process_weights" not in twin.__dict__
    assert all(not module._forward_pre_hooks for block in twin.blocks for module in (block.attn, block.mlp))


def test_what_was_written_survives_the_model_s_journey_to_another_dtype_and_back() -> None:
    model = build("bridge gpt2")
    editor, place = editor_of(model), place_of(model, SITES[0])
    original = editor.original(place).clone()
    editor.write((slot, place.stored(torch.zeros_like(original))) for slot in place.slots)
    model.to(torch.float64)
    assert editor.original(place).dtype == torch.float64
    model.to(torch.float32)
    for slot in place.slots:
        editor.restore(slot)
    assert torch.equal(place.matrix(), original)


def test_slots_of_one_model_are_told_apart_by_owner_and_name() -> None:
    model = build("bridge gpt2")
    slots = [slot for address in SITES for slot in (*place_of(model, address).slots, place_of(model, address).bias)]
    assert len({slot.key for slot in slots}) == len(slots)
    again = [slot for address in SITES for slot in (*place_of(model, address).slots, place_of(model, address).bias)]
    assert [slot.key for slot in slots] == [slot.key for slot in again]
    assert all(isinstance(slot, Slot) for slot in slots)
