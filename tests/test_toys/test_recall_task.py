from collections import Counter
from itertools import pairwise
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from analyses.recall import RandomTriggers, RecallBatch, RecallTask, TriggersPerSequence

TRIGGERS = [2, (1, 6), RandomTriggers(3, seed=4), TriggersPerSequence(2)]


def task(**settings) -> RecallTask:
    return RecallTask.synthetic(**{"d_vocab": 9, "triggers": 2, "noise_token": 5, "n_ctx": 24, **settings})


def rows(batch: RecallBatch):
    """Each sequence with the token after its last one, and what the batch says of every position."""
    for tokens, targets, answers, scored in zip(
        batch.tokens.tolist(), batch.targets.tolist(), batch.answers.tolist(), batch.scored.tolist(), strict=True
    ):
        yield [*tokens, targets[-1]], targets, answers, scored


def fits(counts: np.ndarray, expected: np.ndarray) -> float:
    """The p-value of Pearson's χ², rare cells put together; cells of probability 0 must be empty."""
    assert (counts[expected == 0] == 0).all()
    common = expected >= 5
    if (expected[~common]).sum() > 0:
        counts = np.append(counts[common], counts[~common].sum())
        expected = np.append(expected[common], expected[~common].sum())
    else:
        counts, expected = counts[common], expected[common]
    return float(chisquare(counts, expected * counts.sum() / expected.sum()).pvalue) if len(counts) > 1 else 1.0


@pytest.mark.parametrize("triggers", TRIGGERS, ids=str)
@given(seed=st.integers(0, 2**31), alpha=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=10)
def test_every_position_is_marked_as_a_loop_would(triggers, seed: int, alpha: float) -> None:
    made = task(triggers=triggers)
    for z, targets, answers, scored in rows(made.sample(5, seed=seed, alpha=alpha)):
        assert targets == z[1:]
        seen, known = Counter(), {}
        for t, answer in enumerate(answers):
            is_trigger = answer >= 0
            if isinstance(made.triggers, tuple):
                assert is_trigger == (z[t] in made.triggers)
            seen[z[t]] += 1
            assert scored[t] == (is_trigger and seen[z[t]] >= 2)
            if is_trigger:
                assert known.setdefault(z[t], answer) == answer != made.noise_token
                assert z[t + 1] in (answer, made.noise_token)
        assert len(known) <= (made.triggers.k if isinstance(made.triggers, TriggersPerSequence) else len(made.triggers))


@pytest.fixture(scope="module")
def many() -> tuple[RecallTask, RecallBatch]:
    made = RecallTask.synthetic(d_vocab=12, triggers=3, alpha=0.35, n_ctx=32, seed=3)
    return made, made.sample(20_000, seed=11)


def test_what_follows_other_tokens_is_the_bigram(many: tuple[RecallTask, RecallBatch]) -> None:
    made, batch = many
    pairs = np.zeros((12, 12))
    others = (batch.answers < 0).numpy()
    np.add.at(pairs, (batch.tokens.numpy()[others], batch.targets.numpy()[others]), 1)
    tested = [z for z in range(12) if z not in made.triggers]
    p_values = [fits(pairs[z], pairs[z].sum() * made.bigram[z].numpy()) for z in tested]
    assert pairs[tested].sum(1).min() > 500
    assert min(p_values) > 0.01 / len(tested)


def test_the_first_token_is_drawn_from_the_unigram(many: tuple[RecallTask, RecallBatch]) -> None:
    made, batch = many
    counts = np.bincount(batch.tokens[:, 0].numpy(), minlength=12)
    assert fits(counts, 20_000 * made.unigram.numpy()) > 0.01


def test_noise_follows_a_trigger_with_probability_alpha_each_time_anew(many: tuple[RecallTask, RecallBatch]) -> None:
    made, batch = many
    at_trigger = batch.answers >= 0
    noise = batch.targets == made.noise_token
    assert binomtest(int(noise[at_trigger].sum()), int(at_trigger.sum()), 0.35).pvalue > 0.01
    # Two triggers in a row in one sequence (the answer of the first is a trigger): both coins are independent.
    pairs = at_trigger[:, :-1] & batch.scored[:, 1:]
    both = int((noise[:, 1:] & pairs).sum())
    assert binomtest(both, int(pairs.sum()), 0.35).pvalue > 0.01


def test_the_number_of_noise_tokens_of_a_sequence_is_binomial() -> None:
    made = RecallTask(torch.tensor([1.0, 0.0, 0.0]), torch.eye(3), (0,), 2, alpha=0.3, n_ctx=2)
    # Every sequence starts at the trigger 0 and stays there while the answer is 0: compare those with 0, 1, 2 noise.
    batch = made.sample(40_000, seed=5)
    stays = batch.answers[:, 0] == 0
    first = (batch.targets[stays, 0] == 2).numpy()
    again = (batch.targets[stays, 1] == 2).numpy() & (batch.tokens[stays, 1] == 0).numpy()
    counts = np.array([(~first & ~again).sum(), (~first & again).sum(), first.sum()])
    assert fits(counts, stays.sum().item() * np.array([0.7**2, 0.7 * 0.3, 0.3])) > 0.01


def test_answers_are_uniform_over_all_tokens_but_the_noise(many: tuple[RecallTask, RecallBatch]) -> None:
    made, batch = many
    expected = np.full(12, 1 / 11)
    expected[made.noise_token] = 0
    for trigger in made.triggers:
        here = batch.tokens == trigger
        with_it = here.any(1)
        drawn = batch.answers[with_it].gather(1, here[with_it].int().argmax(1, keepdim=True))
        # What precedes a trigger's first occurrence does not depend on its own answer.
        assert fits(np.bincount(drawn.flatten().numpy(), minlength=12), len(drawn) * expected) > 0.003


def test_triggers_per_sequence_are_drawn_from_the_unigram_without_the_noise() -> None:
    unigram = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0])
    made = RecallTask(unigram, torch.full((5, 5), 0.2), TriggersPerSequence(2), 1, n_ctx=200, alpha=1.0)
    batch = made.sample(3000, seed=2)
    chosen = Counter(
        frozenset(z for z, answer in zip(tokens, answers, strict=True) if answer >= 0)
        for tokens, answers in zip(batch.tokens.tolist(), batch.answers.tolist(), strict=True)
    )
    # Two of the tokens 0, 2, 3 with weights 4, 2, 1, one after the other; token 4 never occurs, token 1 is the noise.
    p = {a: w / 7 for a, w in ((0, 4), (2, 2), (3, 1))}
    expected = {
        frozenset({a, b}): p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]) for a, b in ((0, 2), (0, 3), (2, 3))
    }
    assert set(chosen) == set(expected)
    counts = np.array([chosen[pair] for pair in expected])
    assert fits(counts, 3000 * np.array(list(expected.values()))) > 0.01


def test_random_triggers_are_the_same_in_every_sequence_and_follow_their_seed() -> None:
    chosen = {task(triggers=RandomTriggers(2, seed=s)).triggers for s in range(30)}
    assert all(len(set(pair)) == 2 and 5 not in pair for pair in chosen)
    assert len(chosen) > 5
    assert task(triggers=RandomTriggers(2, seed=1)).triggers == task(triggers=RandomTriggers(2, seed=1)).triggers


def test_a_number_of_triggers_means_the_most_frequent_but_the_noise() -> None:
    assert task(triggers=4).triggers == (0, 1, 2, 3)
    assert task(triggers=4, noise_token=1).triggers == (0, 2, 3, 4)
    assert len(task(triggers=4).triggers) == 4


def test_a_seed_gives_the_same_sequences_and_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    one, two = task().sample(4, seed=7), task().sample(4, seed=torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("tokens", "targets", "answers", "scored"):
        assert torch.equal(getattr(one, name), getattr(two, name))
        assert torch.equal(getattr(one[1:3], name), getattr(one, name)[1:3])
        assert torch.equal(getattr(one.to("cpu"), name), getattr(one, name))
    assert not torch.equal(one.tokens, task().sample(4, seed=8).tokens)
    assert len(one[1:3]) == 2


def test_without_noise_the_answer_follows_and_with_nothing_else_the_noise() -> None:
    clean, noisy = task().sample(50, seed=0, alpha=0.0), task().sample(50, seed=0, alpha=1.0)
    at = clean.answers >= 0
    assert torch.equal(clean.targets[at], clean.answers[at])
    assert set(noisy.targets[noisy.answers >= 0].tolist()) == {5}


def test_synthetic_statistics_have_the_moments_of_their_definition() -> None:
    V = 33
    weights = [1 / rank for rank in range(1, V + 1)]
    pi_u = np.array(weights) / sum(weights)
    concentration = 0.1 * V * pi_u + 1e-3
    bigrams = np.stack([RecallTask.synthetic(d_vocab=V, seed=s).bigram.numpy() for s in range(60)]).reshape(-1, V)
    total = concentration.sum()
    mean = concentration / total
    variance = mean * (1 - mean) / (total + 1)
    assert np.allclose(RecallTask.synthetic(d_vocab=V).unigram.numpy(), pi_u)
    assert (np.abs(bigrams.mean(0) - mean) < 4.5 * np.sqrt(variance / len(bigrams))).all()
    assert np.allclose(bigrams.var(0), variance, rtol=0.35)
    assert not np.array_equal(RecallTask.synthetic(seed=0).bigram.numpy(), RecallTask.synthetic(seed=1).bigram.numpy())


def test_a_text_is_counted_as_a_loop_would() -> None:
    text = "the cat sat on the mat; the end!"
    made = RecallTask.from_text(text, triggers=3, n_ctx=20)
    assert made.vocabulary == (*sorted(set(text)), "<noise>")
    count, pairs = Counter(text), Counter(pairwise(text))
    frequent = {made.vocabulary[q] for q in made.triggers}
    assert min(count[c] for c in frequent) >= max(n for c, n in count.items() if c not in frequent)
    for i, a in enumerate(made.vocabulary[:-1]):
        assert made.unigram[i].item() == pytest.approx(count[a] / len(text))
        total = sum(n for (first, _), n in pairs.items() if first == a)
        for j, b in enumerate(made.vocabulary[:-1]):
            expected = pairs[a, b] / total if total else count[b] / len(text)
            assert made.bigram[i, j].item() == pytest.approx(expected)
    assert torch.allclose(made.bigram[-1], made.unigram)
    assert made.unigram[-1].item() == 0
    assert made.noise_token == len(set(text))


def test_the_noise_can_be_a_character() -> None:
    made = RecallTask.from_text("abracadabra", noise="b", triggers=2)
    assert made.vocabulary == ("a", "b", "c", "d", "r")
    assert (made.noise_token, made.triggers) == (1, (0, 4))


def test_the_fingerprint_tells_every_setting() -> None:
    tasks = [
        task(),
        task(triggers=3),
        task(triggers=TriggersPerSequence(2)),
        task(noise_token=6),
        task(alpha=0.4),
        task(n_ctx=25),
        task(seed=1),
        task(d_vocab=10),
    ]
    assert len({t.fingerprint for t in tasks}) == len(tasks)
    assert task().fingerprint == task().fingerprint


def test_a_task_shows_its_settings() -> None:
    assert repr(task()) == "RecallTask(9 tokens, n_ctx=24, triggers=(0, 1), noise_token=5, alpha=0.5)"


def test_rare_tokens_come_as_often_as_they_should() -> None:
    """One token in a row of 10,000 with probability 1e-4 each: the cumulative sums must not lose them."""
    V = 2000
    made = RecallTask(torch.full((V,), 1 / V), torch.full((V, V), 1 / V), (0,), 1, n_ctx=64)
    counts = np.bincount(made.sample(2000, seed=1).targets.flatten().numpy(), minlength=V)
    assert fits(counts[2:], np.full(V - 2, counts[2:].mean())) > 0.01


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_draw_tokens_that_can_follow(
    draw: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest and the largest number that torch.rand can give, which meet the edges of the cumulative sums."""
    bigram = torch.tensor([[0, 0.5, 0.5, 0], [0, 0, 1, 0], [0, 0.25, 0.75, 0], [1.0, 0, 0, 0]])
    made = RecallTask(torch.full((4,), 0.25), bigram, (0,), 3, n_ctx=12)
    monkeypatch.setattr(torch, "rand", lambda *shape, generator, device: torch.full(shape, draw, device=device))
    batch = made.sample(200, seed=0, alpha=0.0)
    others = batch.answers < 0
    assert (bigram[batch.tokens[others], batch.targets[others]] > 0).all()
    assert set(batch.tokens[others].tolist()) >= {1, 2, 3}


UNIFORM = torch.full((4,), 0.25), torch.full((4, 4), 0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task(alpha=1.2), "alpha=1.2: give a fraction, from 0 to 1."),
        (lambda: task(alpha=-0.1), "alpha=-0.1: give a fraction"),
        (lambda: task(alpha=float("nan")), "alpha=nan: give a fraction"),
        (lambda: task().sample(2, seed=0, alpha=2.0), "alpha=2.0: give a fraction"),
        (lambda: task().sample(0, seed=0), "sequences=0: give a whole number, 1 or more."),
        (lambda: task(triggers=9), "the number of triggers=9: give a whole number, from 1 to 8."),
        (lambda: task(triggers=0), "the number of triggers=0: give"),
        (lambda: task(triggers=RandomTriggers(40, seed=0)), "the number of triggers=40: give"),
        (lambda: task(triggers=TriggersPerSequence(9)), "the number of triggers=9: give"),
        (lambda: task(triggers=(1, 1)), "triggers=(1, 1): name 1 to 8 different tokens of the vocabulary, each from"),
        (lambda: task(triggers=(9,)), "triggers=(9,): name 1 to 8 different tokens"),
        (lambda: task(triggers=()), "triggers=(): name 1 to 8 different tokens"),
        (lambda: task(noise_token=9), "noise_token=9: give a whole number, from 0 to 8."),
        (lambda: task(noise_token=-1, triggers=(0,)), "noise_token=-1: give a whole number"),
        (
            lambda: task(noise_token=1, triggers=(0, 1)),
            "noise_token=1 is one of the triggers (0, 1): what follows it would be noise and answer at once. Ch",
        ),
        (lambda: task(n_ctx=1), "n_ctx=1: give a whole number, 2 or more."),
        (lambda: task(d_vocab=1), "d_vocab=1: give a whole number, 2 or more."),
        (lambda: RecallTask.from_text("aaa"), "the text holds 1 different characters: give one with 2 or more."),
        (
            lambda: RecallTask.from_text("abc", noise="d", triggers=1),
            "noise='d' is not one of the 3 characters of the text: choose one of them, or None for a token of its own.",
        ),
        (
            lambda: RecallTask(UNIFORM[0], torch.full((4, 3), 1 / 3), (0,), 1),
            "bigram has the shape (4, 3), unigram (4,): give one row and one column of bigram for each token, (4, 4)",
        ),
        (
            lambda: RecallTask(UNIFORM[0] * 2, UNIFORM[1], (0,), 1),
            "row 0 of unigram sums to 2: a distribution has values from 0 up that sum to 1; clip it and divide by",
        ),
        (
            lambda: RecallTask(UNIFORM[0], torch.eye(4) * 3 - 0.5, (0,), 1),
            "row 0 of bigram holds negative values: a distribution",
        ),
        (
            lambda: RecallTask(UNIFORM[0], UNIFORM[1] + torch.tensor([0, 0, 0, torch.inf]).diag(), (0,), 1),
            "row 3 of bigram holds values that are not finite: a distribution",
        ),
        (
            lambda: RecallTask(*UNIFORM, (0,), 1, vocabulary=("a", "b")),
            "vocabulary names 2 tokens of 4: name all of them, or none.",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_task_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


def test_the_oracle_for_shares_sees_a_wrong_one() -> None:
    rng = np.random.default_rng(0)
    expected = np.array([comb(8, k) * 0.5**8 for k in range(9)])
    assert fits(np.bincount(rng.binomial(8, 0.5, 5000), minlength=9), 5000 * expected) > 0.01
    assert fits(np.bincount(rng.binomial(8, 0.53, 5000), minlength=9), 5000 * expected) < 1e-6
