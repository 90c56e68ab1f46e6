"""Oracle: plain loops over examples and columns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analyses.metrics.positions import Position, positions

N_POS = 6
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0]])


def columns_of(position: Position, mask: Tensor | None, example: int) -> list[int]:
    """The columns read in one example, by the words of the documentation."""
    real = [c for c in range(N_POS) if mask is None or mask[example, c]]
    match position:
        case None:
            return [max(real)]
        case int():
            return [range(N_POS)[position]]
        case slice():
            return [c for c in range(N_POS)[position] if c in real]
        case _:
            return [range(N_POS)[int(position[example])]]


def read(position: Position, mask: Tensor | None, example: int) -> list[int]:
    chosen = positions(position, mask).resolve(N_POS)
    row = example if len(chosen.index) > 1 else 0
    return chosen.index[row][chosen.weight[row]].tolist()


CASES = [
    (None, None),
    (None, MASK),
    (None, MASK.bool()),
    (-1, None),
    (2, None),
    (3, MASK[[0, 1, 3]].repeat(2, 1)),
    (slice(None), MASK),
    (slice(1, 5), MASK),
    (slice(-2, None), None),
    (slice(None, None, -2), None),
    ([0, -1, 3, 2], None),
    (torch.tensor([0, -1, 2, 4]), MASK),
]


@pytest.mark.parametrize(("position", "mask"), CASES, ids=str)
def test_the_columns_read_are_those_described(position: Position, mask: Tensor | None) -> None:
    examples = range(4 if mask is None else len(mask))
    assert [read(position, mask, e) for e in examples] == [columns_of(position, mask, e) for e in examples]
    chosen = positions(position, mask).resolve(N_POS)
    columns = {e: set(columns_of(position, mask, e)) for e in examples}
    reads = chosen.reads(len(examples))
    assert {e: {int(p) for r, p in zip(*reads, strict=True) if r == e} for e in examples} == columns


@pytest.mark.parametrize(("position", "mask"), CASES, ids=str)
def test_values_are_averaged_over_the_columns_read(position: Position, mask: Tensor | None) -> None:
    examples = range(4 if mask is None else len(mask))
    logits = torch.randn(len(examples), N_POS, 3)
    if mask is not None:
        logits[~mask.bool()] = torch.nan  # nothing on padding is read, whatever is there
    chosen = positions(position, mask).resolve(N_POS)
    expected = torch.stack([logits[e, columns_of(position, mask, e)].sum(-1).mean() for e in examples])
    read = chosen.by_row(chosen.reads(len(examples)).of(logits))
    torch.testing.assert_close(chosen.mean(read.sum(-1)), expected)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
    st.sampled_from([None, slice(0, 5), torch.tensor([3, 2, 1, 4])]),
)
def test_selected_rows_are_read_like_the_originals(rows: list[int], position: Position) -> None:
    mask = MASK if not isinstance(position, Tensor) else None
    selected = positions(position, mask).select(torch.tensor(rows))
    chosen = selected.resolve(N_POS)
    assert selected.n_examples == (len(rows) if len(rows) != 1 else None)
    assert [chosen.index[i][chosen.weight[i]].tolist() for i in range(len(rows))] == [
        columns_of(position, mask, row) for row in rows
    ]


@pytest.mark.parametrize(
    ("position", "mask", "message"),
    [
        (
            6,
            None,
            r"^positions from 6 to 6 in logits of 6: columns go from 0 to 5, or from -6 to -1 .* Choose among them",
        ),
        ([-7, 1], None, r"^positions from -7 to 1 in logits of 6"),
        (1.5, None, r"^positions of dtype torch.float32 and shape \(\): they are a column.* Pass one of these"),
        (torch.ones(2, 2).long(), None, r"^positions of dtype torch.int64 and shape \(2, 2\): they are a column"),
        (None, torch.ones(6), r"^an attention_mask of shape \(6,\): it is \[batch pos\], 1 on tokens.* Pass the one"),
        (
            None,
            torch.ones(2, 5),
            r"^an attention_mask of 5 positions for logits of 6: they have to agree. Pass the mask",
        ),
        (
            5,
            MASK,
            r"^position=5 leaves examples 2, 3 no real token: every example is read at one .* leave these examples",
        ),
        (slice(0, 2), MASK, r"^position=slice\(0, 2, None\) leaves examples 1 no real token"),
        (slice(3, 3), None, r"^position=slice\(3, 3, None\) leaves examples 0 no real token"),
        (
            0,
            torch.eye(6).flip(1)[[0] * 12].long(),
            r"^position=0 leaves examples 0, 1, 2, 3, 4, 5, 6, 7 and 4 more no real token",
        ),
        (
            [1, 2],
            MASK,
            r"^positions and attention_mask are for 2 and 4 examples: they have to agree, or be one for all",
        ),
    ],
)
def test_positions_that_cannot_be_read_are_refused(position: object, mask: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        where = positions(torch.tensor(position) if isinstance(position, float) else position, mask)
        _ = where.n_examples
        where.resolve(N_POS)


def test_rows_outside_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^select\(indices from 0 to 4\) of 4 examples: they are counted from 0 to 3. Choose"
    ):
        positions(None, MASK).select([0, 4])
