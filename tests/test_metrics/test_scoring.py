import math
import os
import random
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import bridge
from scipy import stats
from tiny_tokenizers import bridge_with, byte_level, hooked_with, sentence_piece, whole_words, wrapped
from torch import Tensor, nn

from analyses import scoring, tasks
from analyses.metrics.readings import log_probs, ranks
from analyses.prompts.continuations import shared as _share
from analyses.scoring import Contains, Likeliest, StartsWith
from analyses.scoring._scores import UNDECIDED
from analyses.tasks import AnswerItem, ChoiceItem, MinimalPair, Task
from hooks.inputs import Inputs
from hooks.running import run

N = 50
HOSTS: dict[str, Callable[[], nn.Module]] = {
    "bridge-rotary": partial(bridge_with, None),
    "bridge-absolute": partial(bridge_with, None, rotary=False),
    "hooked-rotary": partial(hooked_with, None),
    "hooked-absolute": partial(hooked_with, None, rotary=False),
}
HOST = [pytest.param(name, marks=pytest.mark.hooked) if "hooked" in name else name for name in HOSTS]


# Slow oracles: one sequence at a time, no padding, no mask, one token after the other.


def next_log_probs(model: nn.Module, ids: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), return_type="logits")[0, -1].double().log_softmax(-1)


def slow_log_prob(model: nn.Module, context: tuple[int, ...], ids: tuple[int, ...]) -> float:
    return sum(next_log_probs(model, context + ids[:k])[token].item() for k, token in enumerate(ids))


def slow_ranks(model: nn.Module, context: tuple[int, ...], ids: tuple[int, ...]) -> list[int]:
    found = []
    for k, token in enumerate(ids):
        values = next_log_probs(model, context + ids[:k]).tolist()
        found.append(sum(value > values[token] for value in values))
    return found


def slow_greedy(model: nn.Module, context: tuple[int, ...], n: int) -> tuple[int, ...]:
    said: tuple[int, ...] = ()
    for _ in range(n):
        said += (next_log_probs(model, context + said).argmax().item(),)
    return said


def random_ids(generator: random.Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(generator.randrange(N) for _ in range(generator.randint(least, most)))


def answers_for(model: nn.Module, n: int = 14, seed: int = 0) -> Task:
    """Items of many lengths; for half of them the reference or an alternative is what the model says."""
    generator = random.Random(seed)
    items = []
    for number in range(n):
        prompt = random_ids(generator, 1, 12)
        texts = [random_ids(generator, 1, 3) for _ in range(4)]
        if number % 2:
            texts[number % 4 // 2] = slow_greedy(model, prompt, generator.randint(1, 3))
        right = tuple(dict.fromkeys(texts[:2]))
        wrong = tuple(text for text in dict.fromkeys(texts[2:]) if text not in right)
        items.append(AnswerItem(prompt, right, wrong))
    return Task("answers", tuple(items))


# Log-probabilities, ranks, padding


@pytest.mark.parametrize("host", HOST)
def test_scores_are_those_of_one_sequence_at_a_time_however_it_is_padded(host: str) -> None:
    model = HOSTS[host]()
    task = answers_for(model)
    reference = scoring.score(model, task, batch_size=1)
    wanted = [slow_log_prob(model, item.prompt, text) for item in task for text in (*item.right, *item.wrong)]
    assert reference.log_probs.tolist() == pytest.approx(wanted, abs=1e-4)
    worst = [min(max(slow_ranks(model, item.prompt, text)) for text in item.right) for item in task]
    assert reference.rank.tolist() == worst
    assert reference.correct.tolist() == [rank == 0 for rank in worst] and 0 < reference.accuracy < 1
    for padding, batch_size in product(("left", "right"), (2, 5, 100)):
        scores = scoring.score(model, task, batch_size=batch_size, padding=padding)
        torch.testing.assert_close(scores.log_probs, reference.log_probs, atol=1e-5, rtol=1e-5)
        assert torch.equal(scores.rank, reference.rank) and scores.prediction_ids == reference.prediction_ids


@pytest.mark.parametrize(
    ("architecture", "compatible"),
    [(name, False) for name in ("neox", "gptj", "mistral", "qwen2", "gemma2", "phi", "mixtral")]
    + [("gpt2", True), ("llama", True)],
)
def test_padding_changes_nothing_on_other_architectures(architecture: str, compatible: bool) -> None:
    model = bridge(architecture, compatible=compatible)
    task = answers_for(model, n=6)
    wanted = [slow_log_prob(model, item.prompt, text) for item in task for text in (*item.right, *item.wrong)]
    for padding in ("left", "right"):
        scores = scoring.score(model, task, padding=padding)
        assert scores.log_probs.tolist() == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("host", [bridge_with, pytest.param(hooked_with, marks=pytest.mark.hooked)])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_text_may_hold_the_token_that_pads(host: object, side: str, padding: str) -> None:
    # The end-of-text token is also what pads, and the first token: a mask made from the tokens would hide it.
    model = host(wrapped(byte_level()))
    model.tokenizer.padding_side = side
    end = model.tokenizer.eos_token
    texts = ["The capital of Peru is", f"One{end} plus one is{end}", end, "two"]
    task = Task("t", tuple(AnswerItem(text, (" Lima",)) for text in texts))
    scores = scoring.score(model, task, padding=padding)
    answer = tuple(model.tokenizer(" Lima", add_special_tokens=False)["input_ids"])
    contexts = (
        [tuple(model.tokenizer(text)["input_ids"]) for text in texts[:2]]
        + [(0,)]
        + [(0, *model.tokenizer("two")["input_ids"][1:])]
    )
    wanted = [slow_log_prob(model, context, answer) for context in contexts]
    assert scores.log_probs.tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_ids_after_a_prompt_that_ends_in_a_space_have_their_probability_there(make: object) -> None:
    model = bridge_with(wrapped(make()))
    prompt, token = "The capital of Peru is ", 12
    scores = scoring.score(model, Task("t", (AnswerItem(prompt, ((token,),)),)), prepend_bos=False)
    inner = model.original_model
    inputs = torch.tensor([model.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        wanted = inner(inputs).logits[0, -1].double().log_softmax(-1)[token].item()
    assert scores.log_probs.item() == pytest.approx(wanted, abs=1e-4)


def test_generation_goes_on_from_the_space_at_a_prompts_end() -> None:
    model = bridge_with(wrapped(byte_level()))
    prompt = "The capital of Peru is "
    scores = scoring.score(model, Task("t", (AnswerItem(prompt, ("Lima",)),)), rule=Contains(4))
    context = tuple(model.to_tokens(prompt)[0].tolist())
    assert scores.prediction_ids == (slow_greedy(model, context, 4),)
    # What comes before the answer as a string is the prompt without its space, as ever.
    before, ids = context[:-1], tuple(model.tokenizer(" Lima", add_special_tokens=False)["input_ids"])
    assert scores.log_probs.item() == pytest.approx(slow_log_prob(model, before, ids), abs=1e-4)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=20))
def test_rows_are_shared_by_everything_they_begin_with(sequences: list[tuple[int, ...]]) -> None:
    rows, place = _share(sequences)
    assert all(rows[at][: len(sequence)] == sequence for sequence, at in zip(sequences, place, strict=True))
    assert set(rows) == {s for s in sequences if not any(t != s and t[: len(s)] == s for t in sequences)}
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("targets", [1, 3, 400])
def test_ranks_count_what_is_likelier_and_ties_by_id(targets: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 6, (5, 40), generator=generator).float()
    at, target = (torch.randint(0, high, (targets,), generator=generator) for high in (5, 40))
    order = [sorted(range(40), key=lambda token: (-row[token], token)) for row in logits.tolist()]
    wanted = [order[place].index(token) for place, token in zip(at.tolist(), target.tolist(), strict=True)]
    assert ranks(logits, at, target).tolist() == wanted


def test_log_probabilities_are_wide_and_differentiable() -> None:
    at, target = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2])
    logits = torch.randn(2, 5, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda x: log_probs(x, at, target), logits.requires_grad_())
    half = logits.detach().bfloat16()
    assert log_probs(half, at, target).dtype == torch.float32
    wanted = [half.double()[i].log_softmax(-1)[t].item() for i, t in zip(at, target, strict=True)]
    assert log_probs(half, at, target).tolist() == pytest.approx(wanted, abs=1e-5)


def test_batches_hold_similar_lengths_and_no_more_rows_than_asked() -> None:
    model = bridge_with(None)
    task = answers_for(model, n=20)
    encoded = scoring.encode(model, task, batch_size=4)
    widths = [batch.inputs.tokens.shape for batch in encoded.batches]
    assert max(rows for rows, _ in widths) == 4 and [w for _, w in widths] == sorted(
        (w for _, w in widths), reverse=True
    )
    assert sorted(i for batch in encoded.batches for i in batch.index.tolist()) == list(range(encoded.n_targets))
    with pytest.raises(ValueError, match=r"batch_size=0: give a whole number, 1 or more"):
        scoring.encode(model, task, batch_size=0)


def test_another_forward_can_take_the_model_s_place() -> None:
    model = bridge_with(None)
    encoded = scoring.encode(model, answers_for(model))
    kept = {id(batch.inputs): run(model, batch.inputs) for batch in encoded.batches}
    replayed = scoring.score_encoded(encoded, lambda inputs: kept[id(inputs)])
    plain = scoring.score_encoded(encoded, partial(run, model))
    assert torch.equal(replayed.log_probs, plain.log_probs) and replayed.summary() == plain.summary()
    assert not plain.log_probs.requires_grad


# What counts: planted models


def says(logits_of: Callable[[tuple[int, ...]], Tensor]) -> scoring.Forward:
    """A model whose logits after a sequence are any function of it."""

    def forward(inputs: Inputs) -> Tensor:
        rows = []
        for row, pos in zip(*(x.tolist() for x in inputs.reads), strict=True):
            before = inputs.tokens[row, : pos + 1][inputs.mask[row, : pos + 1].bool()]
            rows.append(logits_of(tuple(before.tolist())))
        return torch.stack(rows)

    return forward


def spike(token: int, size: int = N) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(token), size).float() * 30


def scored(task: Task, run: scoring.Forward, **settings: object) -> scoring.Scores:
    return scoring.score_encoded(scoring.encode(bridge_with(None), task, **settings), run)


def test_an_answer_is_right_if_and_only_if_generation_begins_with_it() -> None:
    table = {(1,): 5, (1, 5): 6, (1, 5, 6): 7, (2,): 5, (2, 5): 9}
    run = says(lambda before: spike(table.get(before, 0)))
    items = [
        ((1,), (5, 6, 7), True),
        ((1,), (5, 6, 8), False),
        ((1,), (5, 9, 7), False),
        ((2,), (5,), True),
        ((2,), (9,), False),
        ((3,), (0, 0), True),
    ]
    scores = scored(Task("t", tuple(AnswerItem(prompt, (answer,)) for prompt, answer, _ in items)), run)
    assert scores.correct.tolist() == [right for _, _, right in items]
    # What it said is known up to where it departs from the reference.
    assert scores.prediction_ids == ((5, 6, 7), (5, 6, 7), (5, 6), (5,), (5,), (0, 0))
    assert scores.predictions[1] == "5 6 7"


def test_any_accepted_answer_will_do_and_top_k_takes_the_best() -> None:
    logits = torch.arange(N, 0, -1).float()
    run = says(lambda before: logits)
    answers = [((20,), (0,)), ((7,), (30,)), ((3, 4),), ((1,),), ((5,), (6, 2)), ((10,),)]
    scores = scored(Task("t", tuple(AnswerItem((1,), right) for right in answers)), run)
    assert scores.rank.tolist() == [0, 7, 4, 1, 5, 10] and scores.correct.tolist() == [True] + [False] * 5
    assert [scores.top(k) for k in (1, 5, 10)] == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    summary = scores.summary()
    assert (summary.top1, summary.top5, summary.top10) == pytest.approx((1 / 6, 3 / 6, 5 / 6))


def test_log_loss_and_probabilities_add_up_over_accepted_answers() -> None:
    # After anything 5 has probability .4, 7 and 8 and 9 have .1 each; after 5 and after 8 comes 6 with .9.
    def logits(before: tuple[int, ...]) -> Tensor:
        p = torch.full((N,), 1e-9)
        if before[-1] in (5, 8):
            p[6] = 0.9
        else:
            p[5], p[7], p[8], p[9] = 0.4, 0.1, 0.1, 0.1
        p[40] = 1 - p.sum()
        return p.log()

    # (5, 6) begins with (5,) and (8, 6) with (8,): their probability is part of that one's.
    item = AnswerItem((1, 2), ((5, 6), (5,), (9, 9, 9)), ((7,), (8, 6), (8,)))
    scores = scored(Task("t", (item, AnswerItem((4,), ((9, 5, 6),)))), says(logits))
    right, alone = 0.4 + 0.1**3, 0.1 * 0.4 * 0.9
    assert scores.p_correct.tolist() == pytest.approx([right, alone], rel=1e-4)
    assert scores.p_wrong.tolist() == pytest.approx([0.1 + 0.1, 0.0], rel=1e-4)
    assert scores.log_loss.tolist() == pytest.approx([-math.log(right) / 2, -math.log(alone) / 3], rel=1e-4)
    assert scores.summary().log_loss == pytest.approx(sum(scores.log_loss.tolist()) / 2)


@pytest.mark.parametrize("per", ["sequence", "token", "byte"])
def test_a_choice_is_the_likeliest_label(per: str) -> None:
    model = bridge_with(wrapped(byte_level()))
    labels = ("yes", " no", " The capital of Peru", " one plus one is two")
    prompts = [
        "When",
        "The war",
        "A city",
        "3 x 4",
        "New York is",
        "of Japan",
        "drink",
        "year",
        "plus plus",
        "store. Mary",
    ]
    items = tuple(
        ChoiceItem(f"{p} n", labels, ((n % 4), (n + 1) % 4) if n % 3 == 0 else (n % 4,)) for n, p in enumerate(prompts)
    )
    scores = scoring.score(model, Task("t", items), rule=Likeliest(per))
    assert len({ids for ids in scores.prediction_ids}) > 1 or per == "sequence"
    for number, item in enumerate(items):
        context = tuple(model.to_tokens(item.prompt)[0].tolist())
        ids = [tuple(model.tokenizer(label, add_special_tokens=False)["input_ids"]) for label in labels]
        sums = [slow_log_prob(model, context, one) for one in ids]
        size = {"sequence": [1] * 4, "token": [len(one) for one in ids], "byte": [len(t.encode()) for t in labels]}[per]
        values = [total / divisor for total, divisor in zip(sums, size, strict=True)]
        chosen = max(range(4), key=values.__getitem__)
        best = max(values[index] for index in item.correct)
        assert scores.correct[number] == (chosen in item.correct)
        assert scores.prediction_ids[number] == ids[chosen]
        assert scores.rank[number] == sum(values[i] >= best for i in range(4) if i not in item.correct)
        share = sum(math.exp(values[i]) for i in item.correct) / sum(map(math.exp, values))
        assert scores.p_correct[number].item() == pytest.approx(share, rel=1e-3, abs=1e-9)
        assert scores.p_wrong[number].item() == pytest.approx(1 - share, rel=1e-3, abs=1e-9)
        loss = -math.log(sum(math.exp(sums[i]) for i in item.correct)) / len(ids[item.correct[0]])
        assert scores.log_loss[number].item() == pytest.approx(loss, rel=1e-4)


def test_a_minimal_pair_is_right_if_the_good_sentence_is_likelier() -> None:
    for model in (bridge_with(wrapped(byte_level())), bridge_with(wrapped(sentence_piece()), rotary=False)):
        words = ["Mary", "John", "went", "to", "the", "store", "is", "a", "city"]
        generator = random.Random(0)
        pairs = []
        while len(pairs) < 12:
            good, bad = (" ".join(generator.choices(words, k=generator.randint(2, 5))) for _ in range(2))
            if good != bad:
                pairs.append(MinimalPair(good, bad))
        scores = scoring.score(model, Task("t", tuple(pairs)), padding="left")
        values = []
        for pair in pairs:
            good, bad = (tuple(model.to_tokens(text)[0].tolist()) for text in (pair.good, pair.bad))
            values.append(
                (slow_log_prob(model, good[:1], good[1:]), slow_log_prob(model, bad[:1], bad[1:]), len(good) - 1)
            )
        assert scores.correct.tolist() == [good > bad for good, bad, _ in values]
        assert 0 < scores.accuracy < 1
        assert scores.log_loss.tolist() == pytest.approx([-good / length for good, _, length in values], rel=1e-4)
        sigmoids = [1 / (1 + math.exp(bad - good)) for good, bad, _ in values]
        assert scores.p_correct.tolist() == pytest.approx(sigmoids, rel=1e-3, abs=1e-9)
        summary = scores.summary()
        assert (
            math.isnan(summary.f1) and math.isnan(summary.balanced_accuracy) and math.isnan(summary.majority_accuracy)
        )


def test_indifference_is_not_knowledge() -> None:
    run = says(lambda before: torch.zeros(N))
    choices = Task("t", tuple(ChoiceItem((1,), ((2,), (3,), (4,)), (at,)) for at in range(3)))
    assert scored(choices, run).accuracy == 0 and scored(choices, run).rank.tolist() == [2, 2, 2]
    pairs = Task("t", (MinimalPair((1, 2), (1, 3)), MinimalPair((1, 3), (1, 2))))
    assert scored(pairs, run).accuracy == 0 and scored(pairs, run).p_correct.tolist() == pytest.approx([0.5, 0.5])
    # Among equals generation takes the first token, for which no more is claimed than that.
    answers = Task("t", tuple(AnswerItem((1,), ((token,),)) for token in (0, 1, 2)))
    assert scored(answers, run).correct.tolist() == [True, False, False]
    assert scored(answers, run).rank.tolist() == [0, 1, 2]


# Class metrics

said_and_true = st.lists(st.tuples(st.integers(2, 6), st.integers(2, 6)), min_size=1, max_size=30)


def slow_class_metrics(pairs: list[tuple[int, int]]) -> tuple[float, float, float]:
    classes = sorted({true for true, _ in pairs})
    recalls, scores = [], []
    for one in classes:
        hit = sum(true == said == one for true, said in pairs)
        missed = sum(true == one != said for true, said in pairs)
        alarm = sum(said == one != true for true, said in pairs)
        recalls.append(hit / (hit + missed))
        precision = hit / (hit + alarm) if hit + alarm else 0.0
        recall = hit / (hit + missed)
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    majority = max(sum(true == one for true, _ in pairs) for one in classes) / len(pairs)
    return sum(recalls) / len(recalls), majority, sum(scores) / len(scores)


@given(said_and_true)
def test_class_metrics_of_answers(pairs: list[tuple[int, int]]) -> None:
    run = says(lambda before: spike(pairs[before[0] - 10][1]))
    scores = scored(Task("t", tuple(AnswerItem((10 + n,), ((true,),)) for n, (true, _) in enumerate(pairs))), run)
    found = (scores.balanced_accuracy, scores.majority_accuracy, scores.f1)
    assert found == pytest.approx(slow_class_metrics(pairs))
    assert scores.accuracy == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


@given(said_and_true)
def test_class_metrics_of_choices(pairs: list[tuple[int, int]]) -> None:
    run = says(lambda before: spike(pairs[before[0] - 10][1]))
    labels = tuple((token,) for token in range(2, 7))
    items = tuple(ChoiceItem((10 + n,), labels, (true - 2,)) for n, (true, _) in enumerate(pairs))
    scores = scored(Task("t", items), run)
    found = (scores.balanced_accuracy, scores.majority_accuracy, scores.f1)
    assert found == pytest.approx(slow_class_metrics(pairs))


def test_f1_is_not_claimed_where_a_wrong_answer_is_not_known_to_its_end() -> None:
    items = (AnswerItem((1,), ((5, 6),)), AnswerItem((2,), ((7,),)), AnswerItem((3,), ((5, 8),)))
    # The first says 5 6, the second 5 and something: (5, 6) or (5, 8) or neither.
    run = says(lambda before: spike({(1,): 5, (1, 5): 6, (2,): 5}.get(before, 40)))
    scores = scored(Task("t", items), run)
    assert scores.correct.tolist() == [True, False, False]
    assert scores.predicted.tolist() == [0, UNDECIDED, -1] and math.isnan(scores.f1)
    assert scores.balanced_accuracy == pytest.approx(1 / 3)
    # Generated to their end, all are known: 5 6, 5 40, 40 40.
    longer = scored(Task("t", items), run, rule=Contains(2))
    assert longer.predicted.tolist() == [0, -1, -1] and longer.f1 == pytest.approx(1 / 3)


def test_a_wrong_answer_counts_for_the_class_that_it_is() -> None:
    items = (AnswerItem((1,), ((5, 6),)), AnswerItem((2,), ((5,),)), AnswerItem((3,), ((9,), (5,))))
    # 5 40 is "5", which is a class of its own; of the accepted answers of the last item 9 is the class.
    run = says(lambda before: spike(5 if len(before) == 1 else 40))
    scores = scored(Task("t", items), run)
    assert scores.classes == ((5, 6), (5,), (9,))
    assert scores.truth.tolist() == [0, 1, 2] and scores.predicted.tolist() == [1, 1, 2]
    # 5 6 40 begins with two classes, of which it is the longer.
    nested = (AnswerItem((1,), ((5, 6, 7),)), AnswerItem((2,), ((5,),)), AnswerItem((3,), ((5, 6),)))
    run = says(lambda before: spike({(1,): 5, (1, 5): 6}.get(before, 40)))
    assert scored(Task("t", nested), run).predicted.tolist()[0] == 2


# Generation


def texts_task(model: nn.Module) -> Task:
    prompts = [
        "The",
        "One plus one is",
        "When Mary and John went to",
        "York",
        "3 x 4 =",
        "The war lasted from the year 1732",
    ]
    return Task("t", tuple(AnswerItem(prompt, (" Lima", " two")) for prompt in prompts))


@pytest.mark.parametrize("host", [bridge_with, pytest.param(hooked_with, marks=pytest.mark.hooked)])
@pytest.mark.parametrize("rotary", [True, False])
def test_generation_is_that_of_one_prompt_at_a_time(host: object, rotary: bool) -> None:
    model = host(wrapped(byte_level()), rotary=rotary)
    task = texts_task(model)
    for batch_size, padding in [(1, "right"), (4, "left"), (100, "right")]:
        scores = scoring.score(model, task, rule=Contains(6), batch_size=batch_size, padding=padding)
        for item, ids in zip(task, scores.prediction_ids, strict=True):
            tokens = model.to_tokens(item.context)
            slow = slow_greedy(model, tuple(tokens[0].tolist()), 6)
            assert ids == (slow[: slow.index(0)] if 0 in slow else slow)
            settings = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
            theirs = model.generate(tokens, **settings, return_type="tokens")
            assert tuple(theirs[0, tokens.shape[1] :].tolist()) == slow


def test_only_new_text_is_searched_and_only_up_to_its_end() -> None:
    words = "in Rome Paris the cat sat said"
    tokenizer = wrapped(whole_words(words))
    model = bridge_with(tokenizer)
    id_of = tokenizer.get_vocab()
    plans = {"Rome": "the cat sat", "in": "the Paris cat", "cat": "</s> Paris Paris", "sat": "said Rome the"}

    def plan(before: tuple[int, ...]) -> Tensor:
        said = plans[tokenizer.decode(before[1])].split()
        return spike(id_of[said[min(len(before) - 2, 2)]], len(tokenizer))

    items = [("Rome", " Rome"), ("in", " Paris"), ("cat", " Paris"), ("sat", " Paris"), ("sat", " ROME")]
    task = Task("t", tuple(AnswerItem(prompt, (answer,)) for prompt, answer in items[:4]))
    scores = scoring.score_encoded(scoring.encode(model, task, rule=Contains(3)), says(plan))
    assert scores.correct.tolist() == [False, True, False, False]
    assert scores.predictions == ("the cat sat", "the Paris cat", "", "said Rome the")
    # The last one named the answer of the first: that is its class.
    assert scores.predicted.tolist() == [-1, scores.truth[1].item(), -1, scores.truth[0].item()]
    short = scoring.score_encoded(scoring.encode(model, task, rule=Contains(1)), says(plan))
    assert short.correct.tolist() == [False] * 4


def test_ids_are_searched_as_ids() -> None:
    run = says(lambda before: spike(before[-1] + 1))
    items = tuple(AnswerItem((1,), (answer,)) for answer in [(3, 4), (2,), (6,), (3, 5), (7,)])
    scores = scored(Task("t", items), run, rule=Contains(5))
    assert scores.prediction_ids == ((2, 3, 4, 5, 6),) * 5
    assert scores.correct.tolist() == [True, True, True, False, False]
    assert scores.top(1) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("rule", "answer", "text", "found"),
    [
        (Contains(), " he", "the end", None),
        (Contains(), " he", "then he said", 5),
        (Contains(whole_words=False), " he", "the end", 1),
        (Contains(), " Paris", "in PARIS.", 3),
        (Contains(ignore_case=False), " Paris", "in PARIS.", None),
        (Contains(), " U.S.", "the U.S. and", 4),
        (Contains(), " 1", "12 1", 3),
        (Contains(), " a.b", "axb", None),
    ],
)
def test_an_answer_is_found_as_a_word(rule: Contains, answer: str, text: str, found: int | None) -> None:
    assert rule.find(answer, text) == found


# Comparison


def compared(
    was: list[bool], now: list[bool], groups: list[str] | None = None, **settings: object
) -> scoring.Comparison:
    names = groups or [f"{n}" for n in range(len(was))]
    task = Task("t", tuple(AnswerItem((n % N,), ((1,),), groups=(g,)) for n, g in enumerate(names)))
    encoded = scoring.encode(bridge_with(None), task)
    none = torch.zeros(len(was))
    readings = [
        scoring.Readings(none.double() - 1 - torch.arange(len(was)) * shift, (~torch.tensor(right)).long(), none.long())
        for right, shift in ((was, 0.0), (now, 0.1))
    ]
    before, after = (scoring.judge(encoded, scoring.Outcome(one)) for one in readings)
    return scoring.compare(before, after, **settings)


def test_a_comparison_names_what_was_corrected_and_what_was_broken() -> None:
    was, now = [True, False, True, False, True], [True, True, False, False, True]
    result = compared(was, now, resamples=50)
    assert (result.corrected, result.broken) == ((1,), (2,))
    assert result.accuracy.difference == 0 and result.accuracy.covers_zero
    assert result.log_loss.difference == pytest.approx(0.2)
    frame = result.to_dataframe()
    assert frame["change"].tolist() == ["stays right", "corrected", "broken", "stays wrong", "stays right"]
    assert frame["correct_before"].tolist() == was and frame["correct_after"].tolist() == now
    assert frame["log_loss_after"].tolist() == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])
    assert frame["reference"].tolist() == [(1,)] * 5
    shown = repr(result)
    assert "accuracy 0.600 → 0.600, +0.0000 [" in shown and "which covers 0: no evidence of a change" in shown
    assert "1 corrected, 1 broken, McNemar p = 1; log-loss +0.2000 [" in shown


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(corrected: int, broken: int) -> None:
    n = corrected + broken
    wanted = stats.binomtest(corrected, n).pvalue if n else 1.0
    assert scoring.mcnemar(corrected, broken) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_of_many_items_does_not_overflow() -> None:
    assert scoring.mcnemar(10_500, 10_000) == pytest.approx(stats.binomtest(10_500, 20_500).pvalue, rel=1e-9)
    assert scoring.mcnemar(3000, 0) == 0.0


def test_the_bootstrap_draws_whole_clusters() -> None:
    values = torch.tensor([[1.0, 0.0, 5.0, 2.0, 7.0, -3.0], [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]).double()
    cluster = torch.tensor([0, 0, 1, 2, 2, 2])
    members = [[0, 1], [2], [3, 4, 5]]
    for quantity, level in product((0, 1), (0.6, 0.8)):
        exact = []
        for drawn in product(range(3), repeat=3):
            items = [values[quantity, i].item() for c in drawn for i in members[c]]
            exact.append(sum(items) / len(items))
        low, high = torch.tensor(exact).quantile(torch.tensor([0.5 - level / 2, 0.5 + level / 2])).tolist()
        found = scoring.bootstrap(values, cluster, level=level, resamples=50_000)[quantity]
        assert found.difference == pytest.approx(values[quantity].mean().item())
        # With three clusters the means take few values: both quantiles lie within one step of them.
        steps = sorted(exact)
        assert abs(_below(steps, found.low) - _below(steps, low)) <= 3
        assert abs(_below(steps, found.high) - _below(steps, high)) <= 3


def _below(ascending: list[float], value: float) -> int:
    return sum(entry < value - 1e-6 for entry in ascending)


def test_the_bootstrap_agrees_with_the_normal_interval_and_with_its_seed() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(1, 2000, generator=generator, dtype=torch.double) + 0.3
    cluster = torch.arange(2000)
    (found,) = scoring.bootstrap(values, cluster, seed=3)
    half = 1.96 * values.std().item() / math.sqrt(2000)
    assert found.low == pytest.approx(values.mean().item() - half, abs=0.05 * half)
    assert found.high == pytest.approx(values.mean().item() + half, abs=0.05 * half)
    assert scoring.bootstrap(values, cluster, seed=3) == (found,) != scoring.bootstrap(values, cluster, seed=4)
    # Ten copies of each item say no more than one of it.
    (copies,) = scoring.bootstrap(values.repeat(1, 10), cluster.repeat(10), seed=3)
    assert (copies.low, copies.high) == pytest.approx((found.low, found.high), rel=1e-9)


def test_the_interval_of_pure_noise_covers_zero_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    cluster = torch.arange(120)
    covered = 0
    for seed in range(300):
        change = torch.randint(0, 2, (2, 120), generator=generator).double().diff(dim=0)
        (found,) = scoring.bootstrap(change, cluster, resamples=400, seed=seed)
        covered += found.covers_zero
    # 95 % of 300, give or take four standard errors.
    assert 270 <= covered <= 300


def test_groups_widen_the_interval() -> None:
    was, now = [False] * 40, [n % 4 < 2 for n in range(40)]
    alone = compared(was, now)
    together = compared(was, now, groups=[f"{n // 20}" if n % 4 < 2 else f"w{n // 20}" for n in range(40)])
    assert together.accuracy.high - together.accuracy.low > 1.5 * (alone.accuracy.high - alone.accuracy.low)


def test_only_the_same_items_by_the_same_rule_are_compared() -> None:
    model = bridge_with(None)
    one, other = (Task(name, (AnswerItem((n,), ((1,),)),)) for n, name in enumerate("ab"))
    with pytest.raises(
        ValueError, match=r"the scores are of Task.*whose items differ: only the same items in the same order"
    ):
        scoring.compare(scoring.score(model, one), scoring.score(model, other))
    with pytest.raises(
        ValueError, match=r"by StartsWith\(\) and Contains\(.*only scores by the same rule can be compared"
    ):
        scoring.compare(scoring.score(model, one), scoring.score(model, one, rule=Contains(1)))
    scores = scoring.score(model, one)
    with pytest.raises(ValueError, match=r"level=1\.0: a confidence level lies between 0 and 1, such as 0\.95"):
        scoring.compare(scores, scores, level=1.0)
    with pytest.raises(ValueError, match=r"resamples=0: give a whole number, 1 or more"):
        scoring.compare(scores, scores, resamples=0)
    values, cluster = torch.ones(1, 3), torch.tensor([0, 1, 1])
    for name, bad in (("level", 1.5), ("level", math.nan), ("resamples", 0), ("resamples", True)):
        with pytest.raises(ValueError, match=f"{name}={bad}: "):
            scoring.bootstrap(values, cluster, **{name: bad})


def test_one_cluster_alone_is_no_evidence_of_a_change() -> None:
    task = Task("t", tuple(AnswerItem((n,), ((n,),), groups=("all",)) for n in range(1, 6)))
    wrong, right = scored(task, says(lambda _: spike(0))), scored(task, says(lambda before: spike(before[-1])))
    change = scoring.compare(wrong, right)
    assert (change.accuracy.difference, change.accuracy.covers_zero) == (1.0, True)
    assert "covers 0: no evidence of a change" in repr(change)


def test_a_list_of_items_is_scored_as_a_task() -> None:
    model, task = bridge_with(None), answers_for(bridge_with(None))
    assert scoring.score(model, list(task.items)).log_probs.tolist() == scoring.score(model, task).log_probs.tolist()
    assert len(scoring.scorable(model, list(task.items))) == len(task)


# Plain text


def slow_text_loss(model: nn.Module, windows: list[tuple[int, ...]]) -> float:
    losses = [-next_log_probs(model, w[:k])[w[k]].item() for w in windows for k in range(1, len(w))]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("host", [bridge_with, pytest.param(hooked_with, marks=pytest.mark.hooked)])
def test_the_loss_on_a_text_predicts_every_token_once(host: object) -> None:
    model = host(wrapped(byte_level()))
    text = "The capital of France is Paris. The capital of Italy is Rome."
    bos, *ids = model.to_tokens(text)[0].tolist()
    windows = [(bos, *ids[start : start + 7]) for start in range(0, len(ids), 7)]
    loss = scoring.text_loss(model, text, context=8, batch_size=2)
    assert loss == pytest.approx(slow_text_loss(model, windows), rel=1e-5)
    assert loss == pytest.approx(scoring.text_loss(model, text, context=8, batch_size=100), rel=1e-6)
    # One window is what the model itself calls its loss.
    whole = scoring.text_loss(model, text)
    assert whole == pytest.approx(model(model.to_tokens(text), return_type="loss").item(), rel=1e-5)
    stream = [tuple(ids[start : start + 8]) for start in range(0, len(ids) - 1, 7)]
    assert scoring.text_loss(model, torch.tensor(ids), context=8) == pytest.approx(
        slow_text_loss(model, stream), rel=1e-5
    )
    assert scoring.text_loss(model, text, context=8, prepend_bos=False) == pytest.approx(
        slow_text_loss(model, stream), rel=1e-5
    )
    rows = torch.tensor(ids[:12]).reshape(3, 4)
    by_hand = slow_text_loss(model, [tuple(row) for row in rows.tolist()])
    assert scoring.text_loss(model, rows) == pytest.approx(by_hand, rel=1e-5)


@given(st.integers(2, 40), st.integers(2, 12), st.booleans())
def test_windows_cover_a_text_exactly(length: int, context: int, begins: bool) -> None:
    from analyses.scoring._texts import _windows

    ids = tuple(range(10, 10 + length))
    windows = _windows(ids, context, 1 if begins else None)
    asked = [token for window in windows for token in window[1:]]
    assert asked == list(ids if begins else ids[1:])
    assert max(map(len, windows)) <= context
    assert all((window[0] == 1) if begins else (window[0] in ids) for window in windows)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {}, "the text has nothing to predict: it takes at least one token after the first. Give a longer text"),
        (torch.tensor([3]), {}, "the text has nothing to predict"),
        (
            torch.tensor([3, 4, 400]),
            {},
            "token 400 in the text is outside the model's vocabulary of 320: ids run from 0 to 319",
        ),
        (
            "The city",
            {"context": 1},
            "context=1: give a whole number, 2 or more.",
        ),
        ("The city", {"context": 97}, "windows of 97 tokens"),
        (torch.ones(2, 97, dtype=torch.long), {}, "windows of 97 tokens"),
    ],
)
def test_impossible_texts_are_refused(text: str | Tensor, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        scoring.text_loss(bridge_with(wrapped(byte_level())), text, **settings)
    assert message in str(error.value)


def test_a_model_without_a_tokenizer_has_no_loss_on_a_string() -> None:
    with pytest.raises(ValueError, match=r"this text cannot be read: the model has no tokenizer.*Give token ids"):
        scoring.text_loss(bridge_with(None), "text")


# What is refused, and what is shown


def test_a_rule_is_for_its_kind_of_item() -> None:
    model = bridge_with(None)
    answers, pairs = Task("a", (AnswerItem((1,), ((2,),)),)), Task("p", (MinimalPair((1, 2), (2, 1)),))
    with pytest.raises(ValueError) as error:
        scoring.score(model, answers, rule=Likeliest())
    assert str(error.value) == (
        "Likeliest(per='sequence') is given for task 'a', whose items are of kind 'answer': it is for the kinds "
        "choice and pair. StartsWith, SaysNext and Contains are for answer."
    )
    with pytest.raises(ValueError, match=r"StartsWith\(\) is given for task 'p'.*Likeliest is for pair"):
        scoring.score(model, pairs, rule=StartsWith())
    with pytest.raises(
        ValueError, match=r"which has token ids: only strings have a length in bytes\. Take per='token'"
    ):
        scoring.score(model, pairs, rule=Likeliest("byte"))
    with pytest.raises(ValueError, match="task 'a' has no items"):
        scoring.score(model, answers[:0])
    with pytest.raises(ValueError, match="n_tokens=0: give a whole number, 1 or more"):
        Contains(0)


@pytest.mark.parametrize("rule", [None, Contains(2)])
def test_logits_that_are_not_numbers_are_refused(rule: scoring.Rule | None) -> None:
    task = Task("t", (AnswerItem((1,), ((2,),)),))
    with pytest.raises(FloatingPointError, match=r"logits of torch\.float32 contain 50 values that are not numbers"):
        scored(task, says(lambda before: torch.full((N,), math.nan)), rule=rule)


def test_scores_become_a_table_and_a_row() -> None:
    task = Task("t", (AnswerItem((1,), ((2,),), metadata={"year": 3}, source="f:1"), AnswerItem((4,), ((9,),))))
    scores = scored(task, says(lambda before: spike(2)))
    frame = scores.to_dataframe()
    assert frame["correct"].tolist() == [True, False] and frame["prediction"].tolist() == ["2", "2"]
    assert frame["meta_year"].tolist()[0] == 3 and frame["source"].tolist() == ["f:1", ""]
    assert {"rank", "log_loss", "p_correct", "p_wrong", "reference"} <= set(frame.columns)
    row = scores.summary().as_row()
    assert row["task"] == "t" and row["accuracy"] == 0.5 and row["n_items"] == 2 and row["majority_accuracy"] == 0.5
    assert repr(scores).startswith("Scores('t', 2 items, accuracy 0.500, log-loss ")
    assert repr(scores).endswith(" nats per token)")


def test_scoring_is_the_same_every_time_and_leaves_the_model_as_it_was() -> None:
    model = bridge_with(None)
    task = answers_for(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = scoring.score(model, task), scoring.score(model, task)
    assert torch.equal(first.log_probs, second.log_probs) and first.summary() == second.summary()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# A real model


@pytest.mark.skipif("SURGERY_STORY_MODEL" not in os.environ, reason="SURGERY_STORY_MODEL names no model")
def test_a_story_model_tells_its_story_and_knows_its_grammar() -> None:
    from transformer_lens.model_bridge import TransformerBridge

    folder = Path(os.environ["SURGERY_STORY_MODEL"])
    model = TransformerBridge.boot_transformers(str(folder))
    task = Task(
        "story", (AnswerItem("", ("Once",)), AnswerItem("Once upon a time, there was a little girl named", (" Lily",)))
    )
    scores = scoring.score(model, task, rule=Contains(100))
    assert scores.accuracy == 1.0
    golden = folder / "golden_greedy_200.txt"
    if golden.exists():
        assert golden.read_text().startswith(scores.predictions[0].strip())
    assert scoring.score(model, task).summary().f1 == 1.0
    good = ["She was very happy.", "The dog was big.", "They went to the park.", "He said he was sorry."]
    bad = ["She were very happy.", "The dog were big.", "They goes to the park.", "Him said he was sorry."]
    pairs = Task("grammar", tuple(map(MinimalPair, good, bad)))
    assert scoring.score(model, pairs).accuracy == 1.0
    assert scoring.text_loss(model, " ".join(good)) < scoring.text_loss(model, " ".join(bad))
    facts = scoring.scorable(model, tasks.ioi(20, seed=0))
    assert len(facts) + len(facts.unscorable) == 20
