"""Edits as choices of gains: against Python's own indexing, and in every way they can be asked for wrongly."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from by_hand import regained
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from surgery import Compensated, Drop, Keep, RandomizedSVD, Scale, Zero
from surgery.bases import SVD, Basis
from surgery.decompositions import Decomposition
from surgery.specs import recompose

N = 6
W = torch.randn(9, N, generator=torch.Generator().manual_seed(3))


def decomposition_of(W: Tensor, basis: Basis | None = None) -> Decomposition:
    """By torch's own SVD, in the precision given."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return Decomposition("blocks.0.mlp.W_out", U, S, Vh, basis or SVD(), "0" * 32, "raw")


def gains_of(edit: Keep | Drop | Scale | Zero) -> list[float]:
    return edit.gains(decomposition_of(W)).values.tolist()


indices = st.integers(-N, N - 1)
bounds = st.one_of(st.none(), st.integers(-9, 9))
slices = st.builds(slice, bounds, bounds, st.one_of(st.none(), st.sampled_from([-3, -2, -1, 1, 2, 3])))


@given(st.lists(indices, unique_by=lambda i: i % N))
def test_indices_mean_what_they_do_in_python(chosen: list[int]) -> None:
    marked = np.zeros(N)
    marked[chosen] = 1
    assert gains_of(Keep(chosen)) == marked.tolist()
    assert gains_of(Drop(chosen)) == (1 - marked).tolist()


@given(slices)
def test_slices_mean_what_they_do_in_python(chosen: slice) -> None:
    marked = [0.0] * N
    for i in list(range(N))[chosen]:
        marked[i] = 1.0
    written = f"{'' if chosen.start is None else chosen.start}:{'' if chosen.stop is None else chosen.stop}"
    written += "" if chosen.step is None else f":{chosen.step}"
    for edit in (Keep(chosen), Keep([chosen]), Keep(written), Keep([written])):
        assert gains_of(edit) == marked
        assert edit == Keep(written)


@given(st.dictionaries(st.integers(0, N - 1), st.floats(0, 1e6)), st.booleans())
def test_a_mapping_of_gains_leaves_the_others(gains: dict[int, float], from_the_end: bool) -> None:
    expected = torch.ones(N)
    for i, gain in gains.items():
        expected[i] = gain
    given_as = {i - N if from_the_end else i: gain for i, gain in gains.items()}
    assert gains_of(Scale(given_as)) == expected.tolist()


def test_keep_and_drop_say_what_becomes_of_the_rest() -> None:
    parts = decomposition_of(W)
    assert Keep([0]).gains(parts).rest == 0
    assert Drop([0]).gains(parts).rest == 1
    assert Scale({0: 2.0}).gains(parts).rest == 1
    assert Zero().gains(parts).rest == 0
    assert gains_of(Zero()) == [0.0] * N
    assert Drop([]).gains(parts).values.tolist() == [1.0] * N
    assert Scale({}).gains(parts).values.tolist() == [1.0] * N


@pytest.mark.parametrize("make", [list, tuple, torch.tensor, np.array, iter])
def test_a_vector_of_gains_is_taken_as_it_is(make: Callable) -> None:
    gains = [0.0, 1.0, 2.0, 3.0, 4.0, 5.5]
    assert gains_of(Scale(make(gains))) == gains


@given(st.lists(st.floats(0, 100, width=32), min_size=N, max_size=N).filter(lambda gains: sum(gains) > 1e-3))
def test_keeping_the_nuclear_norm(gains: list[float]) -> None:
    parts = decomposition_of(W.double())
    values = Scale(gains, keep_nuclear_norm=True).gains(parts).values
    W_new = regained(W, values)
    nuclear = torch.linalg.svdvals(W_new).sum()
    torch.testing.assert_close(nuclear, torch.linalg.svdvals(W.double()).sum(), rtol=1e-10, atol=0)
    reference = next(i for i, gain in enumerate(gains) if gain > 0)
    ratio = values / values[reference]
    torch.testing.assert_close(
        ratio, torch.tensor(gains, dtype=torch.float64) / gains[reference], rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("gain", [2.0, 2, torch.tensor(2.0)])
def test_one_gain_scales_every_component(gain: object) -> None:
    assert gains_of(Scale(gain)) == [2.0] * N
    assert Scale(gain).gains(decomposition_of(W)).rest == 1


def test_one_gain_that_is_learned_stays_in_the_graph() -> None:
    gain = torch.tensor(0.5, requires_grad=True)
    Scale(gain).gains(decomposition_of(W)).values.sum().backward()
    assert gain.grad == N


def test_gains_that_are_learned_stay_in_the_graph() -> None:
    gain = torch.full((N,), 0.5, requires_grad=True)
    for keep in (False, True):
        gain.grad = None
        (Scale(gain, keep_nuclear_norm=keep).gains(decomposition_of(W)).values * torch.arange(N)).sum().backward()
        assert gain.grad.abs().sum() > 0


def test_compensation_carries_its_constants() -> None:
    edit = Compensated(Drop([1]), torch.arange(N) * 0.5)
    values, rest, constants = edit.gains(decomposition_of(W))
    assert (values.tolist(), rest) == ([1, 0, 1, 1, 1, 1], 1)
    assert constants.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert edit.basis == SVD()
    assert Compensated(Drop([0], basis=RandomizedSVD(2, 0)), [0.0, 0.0]).basis == RandomizedSVD(2, 0)


def test_edits_are_values() -> None:
    assert Keep([0, slice(2, 4)]) == Keep((0, "2:4"))
    assert Drop([3]) == Drop(np.array([3])) == Drop(torch.tensor([3])) == Drop((np.int64(3),))
    assert Drop(range(3)) == Drop([0, 1, 2]) != Drop("0:3")
    assert Keep([0]) != Drop([0])
    assert Drop([0]) != Drop([0], basis=RandomizedSVD(2, 0))
    assert Scale({0: 2.0}) == Scale({0: 2.0}) != Scale({0: 2.0}, keep_nuclear_norm=True)
    assert Scale(torch.ones(2)) == Scale(torch.ones(2)) == Scale([1.0, 1.0]) != Scale(torch.zeros(2))
    assert Scale(2.0) == Scale(2) == Scale(torch.tensor(2.0)) != Scale([2.0])
    assert Scale([1.0]) != Zero()
    assert len({Keep([0]), Keep([0]), Drop([0]), Zero(), Zero(), Scale({0: 1.0}), Scale({0: 1.0})}) == 4
    with pytest.raises(AttributeError):
        Keep([0]).components = ()


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (Keep([0, 3]), "Keep(components=[0, 3])"),
        (Drop("1:3"), "Drop(components=['1:3'])"),
        (Scale({4: 2.0}), "Scale(gain={4: 2.0})"),
        (Scale(torch.ones(768)), "Scale(gain=tensor of 768)"),
        (
            Scale([1.0] * 9, keep_nuclear_norm=True),
            "Scale(gain=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, … 9 in all], keep_nuclear_norm=True)",
        ),
        (Scale({i: 0.0 for i in range(9)}), "Scale(gain={0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.0, … 9 in all})"),
        (Zero(), "Zero()"),
        (Drop([0], basis=RandomizedSVD(2, 7)), "Drop(components=[0], basis=RandomizedSVD(rank=2, seed=7, n_iter=2))"),
        (Compensated(Zero(), [0.0]), "Compensated(edit=Zero(), constants=[0.0])"),
    ],
)
def test_an_edit_reads_as_it_was_written(edit: object, text: str) -> None:
    assert repr(edit) == text


BAD_AT_ONCE = [
    (lambda: Drop([True]), "Drop was given True as a component: components are integers or slices such as '5:8'."),
    (lambda: Keep(torch.tensor([True, False])), "Keep was given True as a component"),
    (lambda: Keep(["abc"]), "Keep was given 'abc' as a component"),
    (lambda: Scale(torch.tensor([True, False])), "Scale was given a tensor of shape (2,) and type bool: give one"),
    (lambda: Scale(-1.0), "Scale was given gain=-1.0: give a finite number, 0 or more"),
    (lambda: Keep("5"), "Keep was given '5' as a component"),
    (lambda: Keep("--5:"), "Keep was given '--5:' as a component"),
    (lambda: Keep("²:"), "Keep was given '²:' as a component"),
    (lambda: Keep("0:5:0"), "Keep was given '0:5:0' as a component"),
    (lambda: Keep("0:5:00"), "Keep was given '0:5:00' as a component"),
    (lambda: Keep("9" * 5000 + ":"), "as a component"),
    (lambda: Keep(slice(0.5, 2)), "Keep was given '0.5:2' as a component"),
    (
        lambda: Scale(torch.ones(2, 2)),
        "Scale was given a tensor of shape (2, 2) and type float32: give one number, or a vector, one gain for each "
        "component.",
    ),
    (
        lambda: Scale({0: -0.1}),
        "Scale was given gain=-0.1: give a finite number, 0 or more.",
    ),
    (lambda: Scale([1.0, float("nan")]), "Scale was given gain=nan: give a finite number, 0 or more"),
    (lambda: Scale(torch.tensor([1.0, float("inf")])), "Scale was given gain=inf: give a finite number, 0 or more"),
    (lambda: Scale(torch.tensor([1.0, -2.0], requires_grad=True)), "Scale was given gain=-2.0"),
    (
        lambda: Compensated(Drop([0]), [float("nan")]),
        "Compensated was given constant=nan: give a finite number.",
    ),
    (
        lambda: Compensated(Compensated(Drop([0]), [0.0]), [0.0]),
        "Compensated was given Compensated(edit=Drop(components=[0]), constants=[0.0]) as its edit: give a plain "
        "edit such as Drop([0]).",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD_AT_ONCE, ids=[message[:40] for _, message in BAD_AT_ONCE])
def test_what_can_be_refused_at_once_is(make: object, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


BAD_FOR_THE_MATRIX = [
    (
        Keep([0, N]),
        f"Keep(components=[0, 6]) names component 6, but 'blocks.0.mlp.W_out' has {N} components, 0 to 5: name one "
        "of these",
    ),
    (Drop([-N - 1]), "Drop(components=[-7]) names component -7, but 'blocks.0.mlp.W_out' has 6 components, 0 to 5"),
    (Drop([1, 1]), "Drop(components=[1, 1]) names component 1 of 'blocks.0.mlp.W_out' more than once: name each once."),
    (Drop([5, -1]), "names component 5 of 'blocks.0.mlp.W_out' more than once: name each once."),
    (Drop([2, "1:4"]), "names component 2 of 'blocks.0.mlp.W_out' more than once: name each once."),
    (Scale({5: 1.0, -1: 2.0}), "names component 5 of 'blocks.0.mlp.W_out' more than once"),
    (Scale({9: 1.0}), "Scale(gain={9: 1.0}) names component 9, but 'blocks.0.mlp.W_out' has 6 components"),
    (
        Scale([1.0, 2.0]),
        "Scale was given 2 gains, but 'blocks.0.mlp.W_out' has 6 components: give one each, or a mapping {index: "
        "gain}.",
    ),
    (
        Scale([0.0] * N, keep_nuclear_norm=True),
        "leaves nothing of 'blocks.0.mlp.W_out', so its nuclear norm cannot be kept: use Zero().",
    ),
    (
        Compensated(Drop([0]), [0.0, 1.0]),
        "Compensated was given 2 constants, but 'blocks.0.mlp.W_out' has 6 components: give one each.",
    ),
]


@pytest.mark.parametrize(
    ("edit", "message"), BAD_FOR_THE_MATRIX, ids=[message[:40] for _, message in BAD_FOR_THE_MATRIX]
)
def test_what_does_not_fit_the_matrix_is_refused_by_its_name(edit: Keep, message: str) -> None:
    with pytest.raises(ValueError) as error:
        edit.gains(decomposition_of(W))
    assert message in str(error.value)


@given(st.lists(st.floats(0, 3, width=32), min_size=N, max_size=N))
def test_the_matrix_comes_out_as_written_by_hand(gains: list[float]) -> None:
    parts = decomposition_of(W.double())
    new = recompose(W.double(), parts, Scale(gains).gains(parts))
    torch.testing.assert_close(new, regained(W, torch.tensor(gains)), rtol=0, atol=1e-12)
