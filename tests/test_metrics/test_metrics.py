"""Oracle: the formulas, in numpy, one example and one position at a time."""

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analyses import metrics
from analyses.metrics import Metric
from hooks.inputs import Reads

BATCH, N_POS, D_VOCAB = 4, 5, 11
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
ANSWERS, WRONG = torch.tensor([1, 10, 0, 4]), torch.tensor([2, 3, 9, 5])
LABELS = torch.tensor([[1, 2, 3, 4, -100], [-100, 5, -100, 6, 0], [7, 8, -100, -100, -100], [-100, 10, 0, -100, -100]])
LOGITS = 2 * torch.randn(BATCH, N_POS, D_VOCAB, generator=torch.Generator().manual_seed(0))
REFERENCE = 2 * torch.randn(BATCH, N_POS, D_VOCAB, generator=torch.Generator().manual_seed(1))


def log_p(logits: np.ndarray) -> np.ndarray:
    return np.log(np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum())


def averaged(score: Callable[[int, np.ndarray, int], float], columns: list[list[int]]) -> list[float]:
    """The mean over each example's columns of `score(example, logits [d_vocab], column)`."""
    return [float(np.mean([score(b, LOGITS[b, t].double().numpy(), t) for t in at])) for b, at in enumerate(columns)]


LAST = [[N_POS - 1]] * BATCH
LAST_REAL = [[4], [4], [2], [3]]
REAL = [[0, 1, 2, 3, 4], [1, 2, 3, 4], [0, 1, 2], [1, 2, 3]]
WHERE = {
    "last": ({}, LAST),
    "last real": ({"attention_mask": MASK}, LAST_REAL),
    "column": ({"position": 2}, [[2]] * BATCH),
    "a column each": ({"position": torch.tensor([0, -1, 2, 3])}, [[0], [4], [2], [3]]),
    "all real": ({"position": slice(None), "attention_mask": MASK}, REAL),
    "slice": ({"position": slice(1, 3)}, [[1, 2]] * BATCH),
}
ANSWER_METRICS = {
    "logit": (metrics.logit, lambda x, a: x[a]),
    "log_prob": (metrics.log_prob, lambda x, a: log_p(x)[a]),
    "prob": (metrics.prob, lambda x, a: math.exp(log_p(x)[a])),
    "rank": (metrics.rank, lambda x, a: sorted(range(D_VOCAB), key=lambda v: -x[v]).index(a)),
    "accuracy": (metrics.accuracy, lambda x, a: float(max(range(D_VOCAB), key=lambda v: x[v]) == a)),
}


def close(values: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(values.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", ANSWER_METRICS)
def test_answer_metrics_are_their_formulas(name: str, where: str) -> None:
    factory, formula = ANSWER_METRICS[name]
    options, columns = WHERE[where]
    each = factory(ANSWERS, **options)
    close(each(LOGITS), averaged(lambda b, x, t: formula(x, int(ANSWERS[b])), columns))
    close(factory(7, **options)(LOGITS), averaged(lambda b, x, t: formula(x, 7), columns))
    assert torch.equal(factory(ANSWERS.tolist(), **options)(LOGITS), each(LOGITS))


@pytest.mark.parametrize("where", WHERE)
def test_logit_difference_is_its_formula(where: str) -> None:
    options, columns = WHERE[where]
    values = metrics.logit_difference(ANSWERS, WRONG, **options)(LOGITS)
    close(values, averaged(lambda b, x, t: x[ANSWERS[b]] - x[WRONG[b]], columns))


@pytest.mark.parametrize("where", WHERE)
def test_kl_is_its_formula_and_zero_for_its_reference(where: str) -> None:
    options, columns = WHERE[where]

    def divergence(b: int, x: np.ndarray, t: int) -> float:
        p, q = log_p(REFERENCE[b, t].double().numpy()), log_p(x)
        return sum(math.exp(a) * (a - c) for a, c in zip(p, q, strict=True))

    metric = metrics.kl_from(REFERENCE, **options)
    close(metric(LOGITS), averaged(divergence, columns))
    assert torch.equal(metric(REFERENCE), torch.zeros(BATCH))


def test_kl_of_tokens_ruled_out_is_finite() -> None:
    reference = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    model = torch.tensor([[[1.0, 0.0, -torch.inf]]], requires_grad=True)
    values = metrics.kl_from(reference)(model)
    close(values, [math.log(0.5) - 0.5 * (1 - 2 * math.log(math.e + 1))])
    (gradient,) = torch.autograd.grad(values.sum(), model)
    close(gradient.flatten(), [math.e / (math.e + 1) - 0.5, 1 / (math.e + 1) - 0.5, 0])


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("labels", [LABELS, torch.where(LABELS < 0, 3, LABELS)], ids=["few", "all"])
def test_loss_is_the_mean_over_its_labels(where: str, labels: Tensor) -> None:
    columns = [[t for t in range(N_POS) if labels[b, t] >= 0] for b in range(BATCH)]
    close(metrics.loss(labels)(LOGITS), averaged(lambda b, x, t: -log_p(x)[labels[b, t]], columns))


def test_several_answers_add_their_probabilities() -> None:
    several = torch.tensor([[1, 2, 3], [4, -100, -100], [5, 6, -100], [-100, 7, 0]])
    p = [np.exp(log_p(LOGITS[b, -1].numpy())) for b in range(BATCH)]
    sums = [sum(p[b][a] for a in several[b].tolist() if a >= 0) for b in range(BATCH)]
    close(metrics.prob(several)(LOGITS), sums)
    close(metrics.log_prob(several)(LOGITS), [math.log(s) for s in sums])
    odds = [math.log(s / p[b][ANSWERS[b]]) for b, s in enumerate(sums)]
    close(metrics.logit_difference(several, ANSWERS)(LOGITS), odds)
    ranks = torch.stack(
        [
            metrics.rank(int(a))(LOGITS[[b]])[0] if a >= 0 else torch.tensor(99.0)
            for b in range(BATCH)
            for a in several[b]
        ]
    ).view(BATCH, 3)
    assert torch.equal(metrics.rank(several)(LOGITS), ranks.amin(1))
    assert torch.equal(metrics.accuracy(several)(LOGITS), (ranks.amin(1) == 0).float())
    alike = torch.tensor([[1, 2]])
    close(metrics.prob(alike)(LOGITS), [p[b][1] + p[b][2] for b in range(BATCH)])


def test_of_equal_logits_one_alone_is_the_top() -> None:
    flat = torch.zeros(1, 1, D_VOCAB)
    assert [int(metrics.rank(a)(flat)) for a in range(D_VOCAB)] == list(range(D_VOCAB))
    assert [int(metrics.accuracy(a)(flat)) for a in range(D_VOCAB)] == [1] + [0] * (D_VOCAB - 1)
    assert int(metrics.rank(torch.tensor([[5, 3]]))(flat)) == 3


ALL = {
    "logit": metrics.logit(ANSWERS),
    "logit difference": metrics.logit_difference(ANSWERS, 3, attention_mask=MASK),
    "log_prob": metrics.log_prob(ANSWERS, position=slice(1, None), attention_mask=MASK),
    "prob": metrics.prob(torch.tensor([[1, 2]]), position=[0, 1, 2, 3]),
    "loss": metrics.loss(LABELS),
    "kl": metrics.kl_from(REFERENCE),
    "kl over positions": metrics.kl_from(REFERENCE, position=slice(None), attention_mask=MASK),
    "rank": metrics.rank(3, attention_mask=MASK),
    "accuracy": metrics.accuracy(ANSWERS, position=-2),
    "constant": metrics.logit(2),
    "custom": metrics.custom(
        lambda logits, a: logits[:, -1].gather(1, a[:, None])[:, 0],
        ANSWERS,
        name="mine",
        unit="logits",
        higher_is_better=True,
    ),
    "custom last": metrics.custom(
        lambda logits: logits[:, -1].amax(-1), name="mine", unit="logits", higher_is_better=None, last_only=True
    ),
    "custom of logits": metrics.custom(
        lambda logits: logits.square().mean((1, 2)), name="mine", unit="", higher_is_better=None
    ),
}


@pytest.mark.parametrize("name", ALL)
@given(rows=st.lists(st.integers(-BATCH, BATCH - 1), min_size=1, max_size=8))
def test_a_selection_measures_the_selected_examples(name: str, rows: list[int]) -> None:
    metric, at = ALL[name], torch.tensor(rows)
    torch.testing.assert_close(metric.select(at)(LOGITS[at]), metric(LOGITS)[at])
    torch.testing.assert_close(metric.select(rows).select([0, -1])(LOGITS[at[[0, -1]]]), metric(LOGITS)[at[[0, -1]]])


@pytest.mark.parametrize("name", ALL)
def test_a_batch_of_none_or_by_truth_values_can_be_selected(name: str) -> None:
    keep = torch.tensor([True, False, True, True])
    torch.testing.assert_close(ALL[name].select(keep)(LOGITS[keep]), ALL[name](LOGITS)[keep])


@pytest.mark.parametrize("name", ALL)
def test_only_the_logits_that_are_read_matter(name: str) -> None:
    metric = ALL[name]
    reads = metric.reads(BATCH, N_POS) or Reads(*torch.ones(BATCH, N_POS).nonzero(as_tuple=True))
    elsewhere = torch.ones(BATCH, N_POS, dtype=torch.bool)
    elsewhere[reads.row, reads.pos] = False
    changed = LOGITS.clone()
    changed[elsewhere] = 100
    assert torch.equal(metric(changed), metric(LOGITS))
    assert reads.row.tolist() == sorted(reads.row.tolist())
    # Whether an answer comes first may stay as it is when logits change.
    moves = metric.n_examples and metric.unit and name not in ("custom", "accuracy")
    for row, pos in zip(*reads, strict=True) if moves else ():
        changed = LOGITS.clone()  # and each of them does
        changed[row, pos] = -changed[row, pos]
        assert not torch.equal(metric(changed), metric(LOGITS))


@pytest.mark.parametrize("name", ALL)
def test_a_selection_reads_where_its_examples_are_read(name: str) -> None:
    metric, at = ALL[name], [2, 0, 0]
    chosen = metric.select(at)
    reads = chosen.reads(3, N_POS)
    logits = LOGITS[at]
    found = chosen.checked(logits if reads is None else reads.of(logits), 3, N_POS)
    torch.testing.assert_close(found, metric(LOGITS)[at])


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_central_differences_where_promised(name: str) -> None:
    metric, logits = ALL[name], LOGITS.double().requires_grad_()
    if not metric.differentiable:
        assert not metric(logits).requires_grad
        return
    direction = torch.randn(LOGITS.shape, dtype=torch.float64)
    with torch.no_grad():
        difference = (metric(logits + 1e-4 * direction) - metric(logits - 1e-4 * direction)) / 2e-4
    for b in range(BATCH):
        (gradient,) = torch.autograd.grad(metric(logits)[b], logits)
        assert float((gradient * direction).sum()) == pytest.approx(float(difference[b]), rel=1e-5, abs=1e-7)
        assert not gradient[[i for i in range(BATCH) if i != b]].any()


@pytest.mark.parametrize("name", ["logit difference", "log_prob", "prob", "loss", "kl", "kl over positions"])
def test_second_derivatives_are_differences_of_first_ones(name: str) -> None:
    """Curvature estimates differentiate twice."""
    metric, logits = ALL[name], LOGITS.double().requires_grad_()
    direction = torch.randn(LOGITS.shape, dtype=torch.float64)

    def slope(at: Tensor) -> Tensor:
        return torch.autograd.grad(metric(at).sum(), at, create_graph=True)[0]

    if not slope(logits).requires_grad:  # linear
        assert name == "logit difference"
        return
    (twice,) = torch.autograd.grad((slope(logits) * direction).sum(), logits)
    ahead, behind = (logits.detach() + step * direction for step in (1e-4, -1e-4))
    difference = (slope(ahead.requires_grad_()) - slope(behind.requires_grad_())).detach() / 2e-4
    torch.testing.assert_close(twice, difference, rtol=1e-5, atol=1e-7)


def test_what_each_metric_says_of_itself() -> None:
    said = {n: (m.name, m.unit, m.higher_is_better, m.differentiable, m.n_examples) for n, m in ALL.items()}
    assert said == {
        "logit": ("logit", "logits", None, True, BATCH),
        "logit difference": ("logit difference", "logits", True, True, BATCH),
        "log_prob": ("log-probability", "nats", True, True, BATCH),
        "prob": ("probability", "probability", True, True, BATCH),
        "loss": ("loss", "nats", False, True, BATCH),
        "kl": ("KL divergence", "nats", False, True, BATCH),
        "kl over positions": ("KL divergence", "nats", False, True, BATCH),
        "rank": ("rank", "rank", False, False, BATCH),
        "accuracy": ("accuracy", "fraction", True, False, BATCH),
        "constant": ("logit", "logits", None, True, None),
        "custom": ("mine", "logits", True, True, BATCH),
        "custom last": ("mine", "logits", None, True, None),
        "custom of logits": ("mine", "", None, True, None),
    }
    noise = metrics.prob(4, name="p(noise)", higher_is_better=False)
    assert (noise.name, noise.higher_is_better) == ("p(noise)", False)
    with pytest.raises(FrozenInstanceError):
        noise.name = "p"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", [n for n in ALL if "custom" not in n])
def test_half_precision_is_widened_before_it_is_summed(name: str, dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    values = ALL[name](logits)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(values.double(), ALL[name](logits.double()).double(), rtol=1e-5, atol=1e-6)


def test_next_token_labels_skip_padding_on_either_side() -> None:
    tokens = torch.arange(BATCH * N_POS).view(BATCH, N_POS)
    labels = metrics.next_token_labels(tokens, MASK)
    for b in range(BATCH):
        for t in range(N_POS):
            scored = t + 1 < N_POS and MASK[b, t] and MASK[b, t + 1]
            assert labels[b, t] == (tokens[b, t + 1] if scored else -100)
    assert torch.equal(metrics.next_token_labels(tokens)[:, :-1], tokens[:, 1:])
    assert bool((metrics.next_token_labels(tokens)[:, -1] == -100).all())


class Lookup(torch.nn.Module):
    """Logits that depend on the token and on whether it is real."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(50, D_VOCAB))
        self.calls: list[int] = []

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        assert not torch.is_grad_enabled()
        self.calls.append(len(tokens))
        return self.table[tokens] + (0 if attention_mask is None else attention_mask.unsqueeze(-1))


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize(("batch_size", "calls"), [(None, [4]), (3, [3, 1]), (1, [1, 1, 1, 1])])
@pytest.mark.parametrize("position", [None, slice(1, 3)])
def test_kl_from_run_is_kl_from_the_models_logits(
    mask: Tensor | None, batch_size: int | None, calls: list[int], position: slice | None
) -> None:
    model, tokens = Lookup(), torch.randint(50, (BATCH, N_POS))
    options = {"position": position, "attention_mask": mask}
    with torch.inference_mode():
        metric = metrics.kl_from_run(model, tokens, batch_size=batch_size, **options)
    assert model.calls == calls
    with torch.no_grad():
        logits = model(tokens, mask)
    assert torch.equal(metric(LOGITS), metrics.kl_from(logits, **options)(LOGITS))


def test_metrics_made_in_inference_mode_enter_autograd() -> None:
    with torch.inference_mode():
        made = [
            metrics.kl_from(REFERENCE * 1, attention_mask=MASK * 1),
            metrics.kl_from_run(Lookup(), torch.ones(BATCH, N_POS).long(), position=slice(None)),
            metrics.log_prob(ANSWERS * 1, position=torch.tensor([0, 1, 2, 2])),
            metrics.prob([1, 2, 3, 4]),
            metrics.loss(LABELS * 1),
            mine(lambda x, a: x[:, -1].gather(1, a[:, None])[:, 0], ANSWERS * 1),
        ]
        made += [metric.select(torch.tensor([3, 2, 1, 0])) for metric in made]
    for metric in made:
        logits = LOGITS.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(metric(logits).sum(), logits)
        assert bool(gradient.any())


def test_functions_become_metrics() -> None:
    def surprise(logits: Tensor) -> Tensor:
        return -logits.log_softmax(-1)[:, -1, 0]

    metric = metrics.as_metric(surprise)
    assert (metric.name, metrics.as_metric(metric)) == ("surprise", metric)
    assert torch.equal(metric(LOGITS), surprise(LOGITS))
    right = metrics.as_metric(lambda logits: logits[:, -1].argmax(-1) == ANSWERS)
    assert right(LOGITS).dtype == torch.float32
    assert torch.equal(right(LOGITS), metrics.accuracy(ANSWERS)(LOGITS))
    with pytest.raises(TypeError, match=r"^7 is no metric: a metric is made by one of logit, .*For a token id write"):
        metrics.as_metric(7)


def mine(function: Callable[..., Tensor], *per_example: Tensor) -> Metric:
    return metrics.custom(function, *per_example, name="mine", unit="logits", higher_is_better=None)


NAN = LOGITS.clone()
NAN[1, -1, 3] = torch.nan


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: metrics.logit(1)(LOGITS[0]),
            r"^logit: torch.float32 logits of shape \(5, 11\); a metric reads .* Pass the",
        ),
        (
            lambda: metrics.logit(1)(LOGITS[:0]),
            r"^logit: torch.float32 logits of shape \(0, 5, 11\); .* at least one example",
        ),
        (lambda: metrics.logit(1)(LOGITS.long()), r"^logit: torch.int64 logits of shape"),
        (
            lambda: metrics.logit(ANSWERS)(LOGITS[:3]),
            r"^logit: logits of 3 examples, while the metric was made for 4.*select",
        ),
        (
            lambda: metrics.logit(11)(LOGITS),
            r"^logit: answer 11 is outside the vocabulary of these logits, 0 to 10: pass",
        ),
        (lambda: metrics.logit(-1), r"^answers \[\[-1\]\]: every example needs a token id from 0 up, .* Pass the ids"),
        (
            lambda: metrics.logit(torch.tensor([[1, 2], [-100, -100]])),
            r"^answers \[\[1, 2\], \[-100, -100\]\]: every example",
        ),
        (
            lambda: metrics.logit(torch.ones(4)),
            r"^answers of dtype torch.float32 and shape \(4,\): they are token ids.* Pass one",
        ),
        (lambda: metrics.logit(torch.ones(4, 1, 1).long()), r"^answers of dtype torch.int64 and shape \(4, 1, 1\)"),
        (
            lambda: metrics.logit_difference(ANSWERS, [1, 2]),
            r"^the answers and positions are for 2 and 4 examples: they have",
        ),
        (lambda: metrics.logit([1, 2], attention_mask=MASK), r"^the answers and positions are for 2 and 4 examples"),
        (
            lambda: metrics.loss(LABELS[0]),
            r"^labels of dtype torch.int64 and shape \(5,\): they are token ids \[batch pos\].*Pass",
        ),
        (lambda: metrics.loss(LABELS.float()), r"^labels of dtype torch.float32 and shape \(4, 5\)"),
        (
            lambda: metrics.loss(LABELS[:, 2:]),
            r"^loss: examples 2 have no label that is not -100 .* Leave these examples out",
        ),
        (
            lambda: metrics.loss(LABELS - 1),
            r"^loss: label -101: labels are token ids, or -100 where none is scored. Use -100",
        ),
        (
            lambda: metrics.loss(LABELS[:, :4])(LOGITS),
            r"^loss: labels \[4, 4\] for logits of 5 positions: .* Align them",
        ),
        (lambda: metrics.loss(LABELS).reads(4, 6), r"^loss: labels \[4, 5\] for logits of 6 positions"),
        (
            lambda: metrics.loss(LABELS + (LABELS > 9))(LOGITS),
            r"^loss: label 11 is outside the vocabulary .* 0 to 10: pass",
        ),
        (
            lambda: metrics.kl_from(REFERENCE[0]),
            r"^torch.float32 reference logits of shape \(5, 11\): they are .* Pass a model",
        ),
        (lambda: metrics.kl_from(NAN), r"^the reference is NaN for examples 1: .* Look for NaN or infinite logits"),
        (
            lambda: metrics.kl_from(REFERENCE)(LOGITS[..., :9]),
            r"^KL divergence: logits over 9 tokens, .* reference has 11",
        ),
        (
            lambda: metrics.kl_from(REFERENCE)(LOGITS[:, :3]),
            r"^logits of 3 positions, while this metric was made for 5",
        ),
        (
            lambda: metrics.kl_from(REFERENCE, position=[1, 2]),
            r"^the reference and the positions are for 2 and 4 examples",
        ),
        (lambda: metrics.log_prob(1)(NAN), r"^log-probability is NaN for examples 1: values are numbers. Look for NaN"),
        (lambda: metrics.accuracy(1)(NAN), r"^accuracy is NaN for examples 1"),
        (
            lambda: mine(lambda x: x[:, -1])(LOGITS),
            r"^mine returned torch.float32 of shape \(4, 11\): allowed is .* reduce",
        ),
        (
            lambda: mine(lambda x: x.mean())(LOGITS),
            r"^mine returned torch.float32 of shape \(\): allowed is a tensor with one real number",
        ),
        (
            lambda: mine(lambda x: 1.0)(LOGITS),
            r"^mine returned float: allowed is a tensor .* Leave out .item\(\)",
        ),
        (lambda: mine(lambda x: x[:, 0, 0] * 1j)(LOGITS), r"^mine returned torch.complex64 of shape \(4,\)"),
        (lambda: mine(lambda x: x[:, -1].sum(-1))(NAN), r"^mine is NaN for examples 1"),
        (
            lambda: mine(len, ANSWERS, LABELS[:2]),
            r"^mine: per_example tensors with 2 and 4 rows: .* Repeat or cut them",
        ),
        (lambda: mine(len, ANSWERS)(LOGITS[:2]), r"^mine: logits of 2 examples, while the metric was made for 4"),
    ],
)
def test_each_mistake_has_its_message(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attempt()


def test_check_returns_good_values_and_infinite_ones() -> None:
    values = torch.tensor([1.0, -torch.inf])
    assert metrics.check(values, 2) is values
    with pytest.raises(ValueError, match=r"^the metric returned torch.float32 of shape \(2,\): .* shape \(3,\)"):
        metrics.check(values, 3)


def test_a_reference_computed_without_the_mask_of_left_padding_is_refused() -> None:
    tokens, mask = torch.ones(2, 4, dtype=torch.long), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    reference = torch.randn(2, 4, 9)
    with pytest.raises(ValueError, match="or computed without the mask of the padding before them"):
        metrics.kl_from(reference).bind(torch.nn.Identity(), tokens, mask)
    metrics.kl_from(reference, attention_mask=mask).bind(torch.nn.Identity(), tokens, mask)
    last = torch.tensor([1, 3])  # padding on the right changes nothing before it
    metrics.kl_from(reference, position=last).bind(torch.nn.Identity(), tokens, mask.flip(1))
