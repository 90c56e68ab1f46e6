"""Means, standard errors and bootstrap intervals against numpy, scipy and every draw there is."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
import torch

from analyses.statistics import bootstrap_interval, mean_and_stderr


@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 2, 3)])
def test_mean_and_standard_error_are_those_of_scipy(shape: tuple[int, ...]) -> None:
    rows = torch.randn(*shape, dtype=torch.double)
    mean, stderr = mean_and_stderr(rows)
    np.testing.assert_allclose(mean.numpy(), rows.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(stderr.numpy(), scipy.stats.sem(rows.numpy(), axis=0), rtol=1e-12)


def test_a_single_row_has_no_standard_error() -> None:
    mean, stderr = mean_and_stderr(torch.tensor([[3.0, 4.0]]))
    assert mean.tolist() == [3, 4] and stderr.isnan().all()


def test_the_interval_is_the_bootstrap_of_scipy() -> None:
    rows = torch.randn(40, 2, dtype=torch.double) * torch.tensor([1.0, 5.0]) + torch.tensor([0.0, 3.0])
    interval = bootstrap_interval(rows, level=0.9, resamples=20_000, seed=1).numpy()
    expected = scipy.stats.bootstrap(
        (rows.numpy(),), np.mean, axis=0, confidence_level=0.9, n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    width = expected.high - expected.low
    assert np.abs((interval - np.stack(expected)) / width).max() < 0.03


def test_rows_of_a_cluster_are_drawn_together() -> None:
    # Clusters {0, 2} and {6}: the four draws of two clusters have the means 1, 8/3, 8/3 and 6.
    rows, clusters = torch.tensor([[0.0], [2.0], [6.0]]), torch.tensor([0, 0, 1])
    members = [[0.0, 2.0], [6.0]]
    means = sorted(np.mean(members[a] + members[b]) for a, b in product((0, 1), repeat=2))
    low, high = bootstrap_interval(rows, clusters=clusters, level=0.9, resamples=2000)
    assert (low.item(), high.item()) == pytest.approx((means[0], means[-1]))
    low, high = bootstrap_interval(rows, clusters=clusters, level=0.2, resamples=2000)
    assert (low.item(), high.item()) == pytest.approx((8 / 3, 8 / 3))


def test_the_draws_do_not_depend_on_how_many_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(11, 3, dtype=torch.double)
    together = bootstrap_interval(rows, resamples=100, seed=2)
    monkeypatch.setattr("analyses.statistics._CHUNK", 33)
    torch.testing.assert_close(bootstrap_interval(rows, resamples=100, seed=2), together)
    assert not torch.equal(bootstrap_interval(rows, resamples=100, seed=3), together)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": 95.0}, r"level=95\.0: a confidence level lies between 0 and 1, such as 0\.95"),
        ({"level": math.nan}, "level=nan: a confidence level"),
        ({"resamples": 0}, "resamples=0: give a whole number, 1 or more"),
        ({"seed": -1}, "seed=-1: give a whole number"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(torch.ones(3, 1), **settings)


def test_there_is_something_to_draw_from() -> None:
    with pytest.raises(ValueError, match="there are no values to draw from"):
        bootstrap_interval(torch.ones(0, 1))
