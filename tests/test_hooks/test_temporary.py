"""What is put on a model for a while: on inside the block, off after it, however it ends and whoever else works."""

import threading

import pytest
import torch
from torch import Tensor, nn

from hooks.temporary import Forward, Hook, Temporary, _in_use, remove_left_behind, together


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()


def doubled(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return 2 * output


def refused(thing: Forward) -> None:
    raise KeyError


def zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def test_hooks_and_forwards_are_on_inside_the_block_only(model: nn.Module) -> None:
    x = torch.ones(1, 2)
    plain = model(x)
    with together(Temporary([Hook(model[1], "output", doubled)]), Temporary([Forward(model[0], zeros)])):
        torch.testing.assert_close(model(x), 2 * model[1].bias[None])
    assert torch.equal(model(x), plain)
    assert "forward" not in model[0].__dict__
    assert not model[1]._forward_hooks


def test_a_value_goes_with_the_block_and_what_was_there_before_comes_back(model: nn.Module) -> None:
    own = model[0].forward
    object.__setattr__(model[0], "forward", own)
    with Temporary([Forward(model[0], zeros)], "a value") as value:
        assert (value, model[0].forward) == ("a value", zeros)
    assert model[0].__dict__["forward"] is own


@pytest.mark.parametrize("where", ["while putting on", "inside"])
def test_an_exception_takes_everything_off(monkeypatch: pytest.MonkeyPatch, model: nn.Module, where: str) -> None:
    things = [Hook(model[1], "output", doubled), Forward(model[0], zeros)]
    if where == "while putting on":
        monkeypatch.setattr(Forward, "put_on", refused)
    with pytest.raises(KeyError), Temporary(things):
        raise KeyError
    assert "forward" not in model[0].__dict__
    assert not model[1]._forward_hooks
    assert not _in_use


def test_what_was_left_behind_is_found_on_this_model_alone(model: nn.Module) -> None:
    other = nn.Sequential(nn.Linear(2, 2))
    left, theirs = Temporary([Forward(model[0], zeros)]), Temporary([Forward(other[0], zeros)])
    left.__enter__()
    with theirs:
        remove_left_behind(model)
        assert "forward" not in model[0].__dict__
        assert other[0].forward is zeros
    assert not _in_use


def test_what_another_thread_is_using_is_not_taken_for_left_behind(model: nn.Module) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def work(leave: bool) -> None:
        temporary = Temporary([Forward(model[0], zeros)])
        temporary.__enter__()
        entered.set()
        go_on.wait(60)
        if leave:
            temporary.__exit__(None, None, None)

    for leave in (True, False):
        entered.clear()
        go_on.clear()
        thread = threading.Thread(target=work, args=(leave,), daemon=True)
        thread.start()
        assert entered.wait(60)
        remove_left_behind(model)
        assert model[0].forward is zeros
        go_on.set()
        thread.join(60)
        assert ("forward" in model[0].__dict__) is not leave
        remove_left_behind(model)
        assert "forward" not in model[0].__dict__
