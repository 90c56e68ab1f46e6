"""The table of an operation: against the matrices themselves."""

import pandas as pd
import pytest
import torch
from by_hand import read
from models import borrowed, build

import surgery
from surgery import Drop, HaarBasis, KeepBottom, KeepTop, RandomBasis, RandomizedSVD, RowBlocks, Scale, Zero
from surgery.bases import Basis

OUT = "blocks.0.mlp.W_out"
COLUMNS = ["site", "edit", "kept", "of", "energy", "relative_error", "parameters", "parameters_factored", "weights"]

EDITS = [
    (KeepTop(rank=3), 3, 32),
    (KeepBottom(rank=3), 3, 32),
    (Drop([0, 5]), 30, 32),
    (Scale({0: 2.0, 1: 0.5, 2: 0.0}), 31, 32),
    (Zero(), 0, 32),
    (KeepTop(rank=3, basis=RandomizedSVD(4, 0)), 3, 4),
    (Drop([0], basis=RandomizedSVD(4, 0)), 3, 4),
    (RandomBasis(1), 32, 32),
    (Drop([0], basis=HaarBasis(1)), 31, 32),
    (KeepTop(rank=40, basis=RowBlocks(2)), 40, 64),
]


@pytest.mark.parametrize(("edit", "kept", "of"), EDITS, ids=[repr(edit) for edit, *_ in EDITS])
def test_a_row_says_what_became_of_the_matrix(edit: KeepTop, kept: int, of: int) -> None:
    with borrowed("bridge gpt2") as model:
        W = read(model, OUT).double()
        with surgery.apply(model, {OUT: edit}) as operation:
            new = operation.weight(OUT).double()
            (row,) = operation.to_dataframe().to_dict("records")
        energy, error = float(new.norm() / W.norm()) ** 2, float((new - W).norm() / W.norm())
        assert row["energy"] == pytest.approx(energy, abs=1e-5)
        assert row["relative_error"] == pytest.approx(error, abs=1e-5)
        assert (row["site"], row["edit"], row["kept"], row["of"]) == (OUT, repr(edit), kept, of)
        assert (row["parameters"], row["parameters_factored"]) == (128 * 32, kept * (128 + 1 + 32))
        assert row["weights"] == "raw"
        surgery.forget(model)


@pytest.mark.parametrize("basis", [surgery.SVD(), RandomizedSVD(2, 0), HaarBasis(0)])
def test_a_matrix_of_zeros_has_no_energy_to_lose(basis: Basis) -> None:
    model = build("bridge gpt2")
    model.blocks[0].mlp.out.original_component.weight.data.zero_()
    with surgery.apply(model, {OUT: Drop([0], basis=basis)}) as operation:
        (row,) = operation.to_dataframe().to_dict("records")
    assert (row["energy"], row["relative_error"]) == (0, 0)


def test_the_table_has_a_row_for_every_edit_of_every_matrix_and_outlives_the_edit() -> None:
    with borrowed("bridge gpt2 compatible") as model:
        spec = {
            "blocks.*.mlp.W_out": KeepTop(rank=3),
            "blocks.1.attn.W_Q[2]": Drop([0]),
            "blocks.1.mlp.*": Scale({0: 0.5}),
        }
        with surgery.apply(model, spec) as operation, surgery.apply(model, {"*W_out": Zero()}):
            frame = operation.to_dataframe()
        assert isinstance(frame, pd.DataFrame)
        assert list(frame.columns) == COLUMNS
        assert list(frame["site"]) == [
            "blocks.0.mlp.W_out",
            "blocks.1.mlp.W_out",
            "blocks.1.attn.W_Q[2]",
            "blocks.1.mlp.W_in",
            "blocks.1.mlp.W_out",
        ]
        assert set(frame["weights"]) == {"processed (LayerNorm folded or weights centred)"}
        assert frame["energy"].dtype.kind == frame["relative_error"].dtype.kind == "f"
        pd.testing.assert_frame_equal(frame, operation.to_dataframe())


def test_printing_an_operation() -> None:
    with borrowed("bridge gpt2") as model:
        W = read(model, OUT).double()
        share = float(torch.linalg.svdvals(W)[:3].square().sum() / W.norm().square())
        with surgery.apply(model, {OUT: KeepTop(rank=3)}) as operation:
            lines = str(operation).splitlines()
            assert lines[0] == "operation applied to TransformerBridge, 1 matrix"
            assert lines[1].split() == COLUMNS
            assert lines[2].split() == [
                OUT,
                "KeepTop(rank=3)",
                "3",
                "32",
                f"{share:.1%}",
                f"{(1 - share) ** 0.5:.3f}",
                "4,096",
                "483",
                "raw",
            ]
        assert str(operation).startswith("operation undone on TransformerBridge, 1 matrix")
        with surgery.commit(model, {OUT: Zero()}) as operation:
            assert str(operation).startswith("operation written into TransformerBridge, 1 matrix")


def test_an_empty_spec_changes_nothing_and_prints() -> None:
    with borrowed("bridge gpt2") as model, surgery.apply(model, {}) as operation:
        assert operation.is_active
        assert list(operation.to_dataframe().columns) == COLUMNS
        assert "0 matrices" in str(operation)


def test_gains_that_are_learned_are_reported_as_numbers() -> None:
    with borrowed("bridge gpt2") as model:
        gains = torch.full((32,), 0.5, requires_grad=True)
        for edit in (Scale(gains), Scale(torch.full((4,), 0.5, requires_grad=True), basis=RandomizedSVD(4, 0))):
            with surgery.apply(model, {OUT: edit}) as operation:
                (row,) = operation.to_dataframe().to_dict("records")
                new = operation.weight(OUT)
            W = read(model, OUT)
            assert row["energy"] == pytest.approx(float(new.norm() / W.norm()) ** 2, rel=1e-5)
            assert row["relative_error"] == pytest.approx(float((new - W).norm() / W.norm()), rel=1e-5)
