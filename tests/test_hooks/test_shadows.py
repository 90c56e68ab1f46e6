"""Shadows: a tensor laid over a parameter, and the parameter as it was when it is taken out."""

import pickle

import pytest
import torch
from torch import nn

from hooks import EditedModelError
from hooks.shadows import Shadow, Slot, check_fits, refuse_moved_shadow


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(3, 2)


def slot_of(layer: nn.Linear, name: str = "weight") -> Slot:
    return Slot(layer, name, f"somewhere.{name}")


def test_a_shadow_is_what_everybody_reads_and_nothing_else_changes(layer: nn.Linear) -> None:
    parameter, x, shown = layer.weight, torch.randn(5, 3), torch.randn(2, 3)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    shadow = Shadow(slot_of(layer), shown)
    shadow.install()
    assert layer.weight is shown
    assert torch.equal(layer(x), nn.functional.linear(x, shown, layer.bias))
    assert dict(layer.named_parameters())["weight"] is parameter
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert (shadow.is_in_place, shadow.slot.current(), shadow.slot.registered()) == (True, shown, parameter)
    shadow.remove()
    assert layer.weight is parameter
    assert "weight" not in layer.__dict__


def test_a_replaced_shadow_is_taken_out_like_the_first(layer: nn.Linear) -> None:
    shadow, second = Shadow(slot_of(layer), torch.ones(2, 3)), torch.zeros(2, 3)
    shadow.install()
    shadow.replace(second)
    assert layer.weight is second
    shadow.remove()
    shadow.remove()
    assert isinstance(layer.weight, nn.Parameter)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_assigning_a_parameter_throws_the_shadow_out_for_good(layer: nn.Linear, name: str) -> None:
    shadow = Shadow(slot_of(layer, name), torch.ones_like(getattr(layer, name)))
    shadow.install()
    new = nn.Parameter(torch.randn_like(layer._parameters[name]))
    setattr(layer, name, new)
    assert not shadow.is_in_place
    shadow.replace(torch.zeros_like(new))
    assert getattr(layer, name) is new
    shadow.remove()
    assert getattr(layer, name) is new


def test_a_shadow_over_a_missing_bias_gives_one_for_a_while() -> None:
    layer, x = nn.Linear(3, 2, bias=False), torch.randn(4, 3)
    bare = layer(x)
    shadow = Shadow(Slot(layer, "bias", "somewhere.bias"), torch.ones(2))
    shadow.install()
    torch.testing.assert_close(layer(x), bare + 1)
    shadow.remove()
    assert layer.bias is None
    assert torch.equal(layer(x), bare)


def test_a_plain_attribute_is_put_back(layer: nn.Linear) -> None:
    plain = torch.randn(2, 3)
    layer.copy_of_weight = plain
    slot = Slot(layer, "copy_of_weight", "somewhere", mirrors=slot_of(layer))
    shadow = Shadow(slot, torch.ones(2, 3))
    shadow.install()
    assert shadow.covered is plain
    assert slot.registered() is layer.weight
    shadow.remove()
    assert layer.copy_of_weight is plain


def test_a_strangers_shadow_can_be_stripped(layer: nn.Linear) -> None:
    parameter = layer.weight
    object.__setattr__(layer, "weight", torch.ones(2, 3))
    slot_of(layer).strip()
    assert layer.weight is parameter
    slot_of(layer).strip()
    assert layer.weight is parameter
    layer.copy_of_weight = torch.ones(2, 3)
    Slot(layer, "copy_of_weight", "somewhere", mirrors=slot_of(layer)).strip()
    assert torch.equal(layer.copy_of_weight, parameter)


@pytest.mark.parametrize(
    ("tensor", "given"),
    [
        (torch.ones(3, 2), "shape (3, 2), float32 on cpu"),
        (torch.ones(2, 3, dtype=torch.float64), "shape (2, 3), float64 on cpu"),
        (torch.ones(2, 3, dtype=torch.bfloat16), "shape (2, 3), bfloat16 on cpu"),
        (torch.ones(2, 3, device="meta"), "shape (2, 3), float32 on meta"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(layer: nn.Linear, tensor: torch.Tensor, given: str) -> None:
    with pytest.raises(ValueError) as error:
        check_fits(slot_of(layer), tensor)
    assert str(error.value) == (
        f"cannot lay a tensor of {given} over somewhere.weight: it holds (2, 3), float32 on cpu. "
        "Reshape, cast or move the tensor first."
    )


def test_what_fits_passes_and_a_missing_bias_takes_anything(layer: nn.Linear) -> None:
    check_fits(slot_of(layer), torch.ones(2, 3))
    check_fits(Slot(nn.Linear(3, 2, bias=False), "bias", "somewhere"), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_forward_pass_after_a_cast_is_refused(layer: nn.Linear, dtype: torch.dtype) -> None:
    shadow = Shadow(slot_of(layer), torch.ones(2, 3))
    shadow.install()
    layer.register_forward_pre_hook(refuse_moved_shadow)
    layer(torch.ones(1, 3))
    layer.to(dtype)
    for module in (layer, pickle.loads(pickle.dumps(layer))):
        with pytest.raises(EditedModelError) as error:
            module(torch.ones(1, 3, dtype=dtype))
        assert str(error.value) == (
            "the model was moved or cast while an edit was active: Linear.weight is now "
            f"{str(dtype).removeprefix('torch.')} on cpu, its edited version float32 on cpu. "
            "Undo the edit first (operation.undo() or surgery.undo_all(model)), move the model, and apply it again."
        )
    shadow.remove()
    assert layer(torch.ones(1, 3, dtype=dtype)).dtype == dtype


def test_a_reader_notices_for_its_parts(layer: nn.Linear) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.part.weight)

    reader = Reader()
    reader.register_forward_pre_hook(refuse_moved_shadow)
    Shadow(Slot(layer, "weight", "somewhere", reader), torch.ones(2, 3)).install()
    assert torch.equal(reader(torch.ones(1, 3)), torch.full((1, 2), 3.0))
    reader.to(torch.float64)
    with pytest.raises(EditedModelError, match=r"Linear\.weight is now float64"):
        reader(torch.ones(1, 3, dtype=torch.float64))
