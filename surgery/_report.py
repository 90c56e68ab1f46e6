"""The table of an operation: what became of each matrix."""

from collections.abc import Callable, Sequence
from math import sqrt

import pandas as pd
import torch
from torch import Tensor

from hooks import Place
from surgery.specs import Change, recompose

_COLUMNS = ["site", "edit", "kept", "of", "energy", "relative_error", "parameters", "parameters_factored", "weights"]


def table(changes: Sequence[Change], original: Callable[[Place], Tensor], *, readable: bool = False) -> pd.DataFrame:
    """A row for each change, where `original` gives a place's matrix before any edit.

    `kept` counts the components with a gain above 0. `energy` is the fraction of the squared Frobenius norm that the
    gains leave, `relative_error` the Frobenius norm of what is taken away over that of the matrix; both compare with
    the matrix before any edit. `parameters_factored` is what U, S and Vh of the kept components would take.
    """
    frame = pd.DataFrame([_row(change, original) for change in changes], columns=_COLUMNS)
    if readable:
        frame["energy"] = frame["energy"].map("{:.1%}".format)
        frame["relative_error"] = frame["relative_error"].map("{:.3f}".format)
        for column in ("parameters", "parameters_factored"):
            frame[column] = frame[column].map("{:,}".format)
    return frame


def _row(change: Change, original: Callable[[Place], Tensor]) -> tuple:
    decomposition, gains = change.decomposition, change.gains.values.detach().double()
    d_in, d_out = decomposition.shape
    kept = int((gains > 0).sum())
    energy, error = _left(change, gains, original)
    return (
        str(change.site),
        repr(change.edit),
        kept,
        decomposition.n_components,
        energy,
        error,
        d_in * d_out,
        kept * (d_in + 1 + d_out),
        decomposition.weight_state,
    )


def _left(change: Change, gains: Tensor, original: Callable[[Place], Tensor]) -> tuple[float, float]:
    """Energy and relative error, from the gains alone where the components (and the rest) are orthogonal."""
    decomposition = change.decomposition
    if decomposition.basis.complete or decomposition.basis.leading:
        energy = decomposition.energy.to(gains.device)
        rest = max(0.0, 1 - float(energy.sum())) if decomposition.basis.leading else 0.0
        left = float((energy * gains.square()).sum()) + rest * change.gains.rest**2
        return left, sqrt(float((energy * (1 - gains).square()).sum()) + rest * (1 - change.gains.rest) ** 2)
    W = original(change.place).to(decomposition.S)
    norm = float(torch.linalg.matrix_norm(W))
    if norm == 0:
        return 0.0, 0.0
    edited = recompose(W, decomposition, change.gains._replace(values=gains.to(W)))
    return float(torch.linalg.matrix_norm(edited) / norm) ** 2, float(torch.linalg.matrix_norm(edited - W) / norm)
