"""That everything works where the model is not on the CPU, with the CPU's numbers.

On a pretended GPU always; on a real one with `SURGERY_CUDA=1 python -m pytest tests/test_house/test_devices.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import models
import numpy as np
import pandas as pd
import pytest
import torch
from pretend_cuda import pretend_cuda
from torch import nn

import surgery
from analyses import attribution, eigenpruning, laser, metrics, recall, scoring, tasks, truncation
from surgery import Drop, DropTop, KeepTop

OUT, KEYS = "blocks.1.mlp.W_out", "blocks.1.attn.W_K"
SITES = [OUT, KEYS]
TOKENS = models.tokens(4, 6)
LABELS = metrics.next_token_labels(TOKENS)
LOSS, LOGIT = metrics.loss(LABELS), metrics.logit(3)
TASK = tasks.Task("next", tuple(tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),), ((n + 4,),)) for n in range(24)))
RHOS = (0.5, 0.1)
Call = Callable[[nn.Module], object]


def searched(**settings: object) -> Call:
    return lambda model: laser.search(model, TASK, SITES[:1], rhos=RHOS, progress=False, **settings)  # type: ignore[arg-type]


def attributed(method: Callable, *given: object, **settings: object) -> Call:
    return lambda model: method(model, TOKENS, *given, progress=False, **settings)


def in_force(model: nn.Module) -> object:
    with surgery.apply(model, {"blocks.*": KeepTop(rho=0.5)}, progress=False) as operation:
        return operation.to_dataframe()


def committed(model: nn.Module) -> object:
    operation = surgery.commit(model, {OUT: DropTop(rank=1)}, progress=False)
    report = operation.to_dataframe()
    operation.undo()
    return report


def pruned(model: nn.Module) -> object:
    found = eigenpruning.prune(model, TASK, progress=False)
    return pd.DataFrame({name: [scores.accuracy, scores.summary().log_loss] for name, scores in found.scores.items()})


FAST: dict[str, Call] = {
    "decompose": lambda model: surgery.decompose(model, OUT, progress=False).to_dataframe(),
    "apply": in_force,
    "commit": committed,
    "by_gradient": attributed(attribution.by_gradient, LOSS, SITES),
    "by_readout, logit": attributed(attribution.by_readout, LOGIT, SITES),
    "by_ablation": attributed(attribution.by_ablation, LOSS, {OUT: [0, 1], KEYS: [0]}),
    "search": searched(),
}
SLOW: dict[str, Call] = {
    "by_fisher": attributed(attribution.by_fisher, LABELS, SITES),
    "by_readout, loss": attributed(attribution.by_readout, LOSS, SITES),
    "by_readout, log-probability": attributed(attribution.by_readout, metrics.log_prob(3), SITES),
    "by_curvature": attributed(attribution.by_curvature, LOSS, SITES, draws=2),
    "by_curvature for all": attributed(attribution.by_curvature, LOGIT, SITES, draws=2, share="all"),
    "by_exact_curvature": attributed(attribution.by_exact_curvature, LOSS, attribution.Selection({OUT: [0, 1]})),
    "by_ablation, mean": attributed(attribution.by_ablation, LOSS, SITES, replacement="mean"),
    "by_path": attributed(attribution.by_path, LOGIT, {OUT: Drop([0, 1])}),
    "by_shapley": attributed(attribution.by_shapley, LOGIT, {OUT: Drop([0, 1])}, draws=4),
    "screen": lambda model: attribution.screen(model, TOKENS, LOGIT, SITES, progress=False).exact,
    "screened search": searched(strategy="screened"),
    "search that generates": searched(rule=scoring.Contains(3)),
    "search by a margin": searched(rule=metrics.logit_difference()),
    "rank curve": lambda model: laser.rank_curve(model, TASK, OUT, rhos=RHOS, progress=False),
    "random controls": lambda model: laser.random_controls(model, TASK, {OUT: Drop([0])}, draws=2).to_dataframe(),
    "prune": pruned,
}


def numbers(found: object) -> np.ndarray:
    """Everything in a result that is a number."""
    frame = found if isinstance(found, pd.DataFrame) else found.to_dataframe()  # type: ignore[attr-defined]
    return frame.select_dtypes("number").to_numpy(dtype=float)


@pytest.fixture(scope="module", params=["pretended", *["cuda"] * torch.cuda.is_available()])
def device(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager]:
    """A context in which "cuda" can be used."""
    return pretend_cuda if request.param == "pretended" else nullcontext


@pytest.fixture(scope="module", params=models.ONE_OF_EACH)
def both(request: pytest.FixtureRequest, device: Callable[[], AbstractContextManager]) -> tuple[nn.Module, nn.Module]:
    """The same model on the CPU and on the device."""
    with device():
        there = models.build(request.param).to("cuda")
        assert next(there.parameters()).device.type == "cuda"
    return models.build(request.param), there


def agree(call: Call, both: tuple[nn.Module, nn.Module], device: Callable[[], AbstractContextManager]) -> None:
    here = numbers(call(both[0]))
    with device():
        there = numbers(call(both[1]))
    assert here.size > 0
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FAST)
def test_the_numbers_are_those_of_the_cpu(name: str, both, device) -> None:
    agree(FAST[name], both, device)


@pytest.mark.long
@pytest.mark.parametrize("name", SLOW)
def test_the_numbers_of_what_takes_longer_are_those_of_the_cpu(name: str, both, device) -> None:
    agree(SLOW[name], both, device)


def test_an_edit_is_undone_to_the_last_bit_and_moves_nothing(both, device) -> None:
    _, model = both
    with device():
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        tokens = TOKENS.to("cuda")
        with torch.no_grad():
            plain = model(tokens)
            with surgery.apply(model, {"blocks.*": KeepTop(rank=1)}, progress=False) as operation:
                assert not torch.equal(model(tokens), plain)
                assert operation.weight(OUT).device.type == "cuda"
            assert torch.equal(model(tokens), plain)
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
        assert {value.device.type for value in model.parameters()} == {"cuda"}


@pytest.mark.long
def test_the_toys_are_trained_where_they_are(device) -> None:
    task = recall.RecallTask.synthetic(d_vocab=12)
    with device():
        model = recall.bridge(task, device="cuda")
        recall.train(model, task, steps=3, progress=False)
        scores = recall.evaluate(model, task, progress=False)
        found = truncation.curve(model, TOKENS % 12, OUT, track={"correct": 1}, rhos=(0.5,), progress=False)
        assert 0 <= scores.p_correct <= 1 and len(numbers(found))
        assert {value.device.type for value in model.parameters()} == {"cuda"}


@pytest.fixture
def pretended() -> Iterator[None]:
    with pretend_cuda():
        yield


MISTAKES: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], object], str]] = {
    "a sum": (lambda there, here: there + here, "same device"),
    "an index": (lambda there, here: here[there.long()], "same device"),
    "a scatter": (lambda there, here: there.index_add(0, here.long(), there), "same device"),
    "scalars in a stack": (lambda there, here: torch.stack([there.sum(), here.sum()]), "same device"),
    "numpy": (lambda there, here: there.numpy(), "numpy"),
    "a generator": (
        lambda there, here: torch.randn(2, generator=torch.Generator().manual_seed(0), device="cuda"), "generator",
    ),
    "through a module": (lambda there, here: nn.Linear(2, 2)(there), "same device"),
    "a gradient": (
        lambda there, here: torch.autograd.grad((w := there.clone().requires_grad_()).square().sum(), w)[0] + here,
        "same device",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.usefixtures("pretended")
def test_the_pretended_gpu_refuses_what_a_real_one_would(name: str) -> None:
    mistake, text = MISTAKES[name]
    with pytest.raises((RuntimeError, TypeError), match=text):
        mistake(torch.ones(2, device="cuda"), torch.zeros(2))


@pytest.mark.usefixtures("pretended")
def test_the_pretended_gpu_takes_what_a_real_one_does() -> None:
    there, here = torch.ones(2, device="cuda"), torch.zeros(2)
    for found in (
        there * torch.tensor(2.0),
        there[torch.tensor([0])],
        there[:1],
        here.to(there),
        there.clone().copy_(here),
    ):
        assert found.device.type == "cuda"
    assert (here + there.cpu()).device.type == "cpu" and there.tolist() == [1.0, 1.0]
    weight = here.clone().requires_grad_()
    (slope,) = torch.autograd.grad((weight.to("cuda") * there).sum(), weight)
    assert slope.device.type == "cpu" and slope.tolist() == [1.0, 1.0]
    generator = torch.Generator("cuda").manual_seed(0)
    assert torch.randn(2, generator=generator, device=generator.device).is_cuda
