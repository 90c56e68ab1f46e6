"""Numbers from people, from numpy and from files: made plain, or refused in words."""

import numpy as np
import pytest
import torch

from surgery.arguments import counted, fraction, number, seed, shown, whole


@pytest.mark.parametrize("given", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_any_make_become_ints(given: object) -> None:
    assert whole(given, "rank") == 3
    assert type(whole(given, "rank")) is int


@pytest.mark.parametrize("given", [2.5, 3.0, True, "3", None, [3], -1, np.float64(3), torch.tensor([1, 2])])
def test_what_is_no_whole_number_is_refused(given: object) -> None:
    with pytest.raises(ValueError) as error:
        whole(given, "KeepTop was given rank")
    assert str(error.value) == f"KeepTop was given rank={shown(given)}: give a whole number, 0 or more."


def test_bounds_are_said() -> None:
    with pytest.raises(ValueError) as error:
        whole(0, "blocks", least=1)
    assert str(error.value) == "blocks=0: give a whole number, 1 or more."
    assert seed(2**63 - 1) == 2**63 - 1
    for bad in (2**63, -1, 10**400):
        with pytest.raises(ValueError) as error:
            seed(bad)
        assert str(error.value) == f"seed={shown(bad)}: give a whole number, from 0 to {2**63 - 1}."


@pytest.mark.parametrize("given", [0.25, np.float32(0.25), torch.tensor(0.25)])
def test_fractions_of_any_make_become_floats(given: object) -> None:
    assert fraction(given, "rho") == 0.25
    assert type(fraction(given, "rho")) is float


@pytest.mark.parametrize("given", [-0.01, 1.01, float("nan"), float("inf"), 10**30])
def test_what_is_no_fraction_is_refused(given: object) -> None:
    with pytest.raises(ValueError) as error:
        fraction(given, "rho")
    assert str(error.value) == f"rho={given!r}: give a fraction, from 0 to 1."


@pytest.mark.parametrize("given", [True, "0.5", b"1", None, [0.5], 10**400, 1j])
def test_what_is_no_number_is_refused(given: object) -> None:
    with pytest.raises(ValueError) as error:
        number(given, "gain")
    assert str(error.value) == f"gain={shown(given)}: give a number."


def test_long_values_are_cut_short() -> None:
    assert shown("x" * 1000) == "'" + "x" * 76 + "..."
    assert shown([1, 2]) == "[1, 2]"


def test_one_thing_is_not_several() -> None:
    assert [counted(n, "example") for n in (0, 1, 2)] == ["0 examples", "1 example", "2 examples"]
    assert counted(2, "matrix", "matrices") == "2 matrices"
