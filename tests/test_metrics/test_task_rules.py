"""The rule that goes with a task, and the readings of an answer that the papers' tasks ask for."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from tiny_tokenizers import bridge_with, byte_level, sentence_piece, wrapped
from torch import nn

from analyses import laser, metrics, scoring, tasks
from analyses.scoring import Contains, Likeliest, SaysNext, StartsWith
from analyses.tasks import AnswerItem, ChoiceItem, NamedRule, Task


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return bridge_with(wrapped(byte_level()))


PROMPTS = ("The capital of France is", "The capital of Italy is", "Mary and John went to", "One plus one is", "3 x 4 =")


def next_logits(model: nn.Module, prompt: str) -> torch.Tensor:
    return model(model.to_tokens(prompt), return_type="logits")[0, -1]


def test_a_task_is_scored_by_its_own_rule_unless_another_is_given(model: nn.Module) -> None:
    items = tuple(AnswerItem(prompt, (" Rome",)) for prompt in PROMPTS)
    task = Task("capitals", items, rule=NamedRule("Contains", {"n_tokens": 3, "whole_words": False}))
    ruled = scoring.score(model, task)
    assert ruled.encoded.rule == Contains(3, whole_words=False)
    plain = scoring.score(model, dataclasses.replace(task, rule=None), rule=Contains(3, whole_words=False))
    assert torch.equal(ruled.correct, plain.correct) and ruled.prediction_ids == plain.prediction_ids
    assert scoring.score(model, task, rule=StartsWith()).encoded.rule == StartsWith()
    # A metric in the rule's place leaves the task's rule.
    measured = scoring.score(model, task, rule=metrics.log_prob())
    assert measured.encoded.rule == ruled.encoded.rule and measured.values is not None


def test_laser_searches_by_the_rule_of_the_task_and_remembers_it(model: nn.Module, tmp_path: Path) -> None:
    items = tuple(AnswerItem(f"{prompt} {n}", (" Rome",)) for prompt in PROMPTS for n in range(2))
    task = Task("capitals", items, rule=NamedRule("SaysNext"))
    search = {"sites": "blocks.1.mlp.W_out", "rhos": (0.5,), "progress": False, "log": tmp_path / "log.jsonl"}
    result = laser.search(model, task.split(screen=0.0, validation=0.5, test=0.5), **search)
    assert result.test.before.encoded.rule == SaysNext()
    again = laser.search(model, task.split(screen=0.0, validation=0.5, test=0.5), **search)
    assert again.test.accuracy == result.test.accuracy
    other = dataclasses.replace(task, rule=None).split(screen=0.0, validation=0.5, test=0.5)
    with pytest.raises(laser.LogError):
        laser.search(model, other, **search)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            NamedRule("Guesses"),
            r"by Guesses\(\), and there is no rule 'Guesses': there are Contains, LastNumber, Likeliest",
        ),
        (NamedRule("Contains", {"tokens": 3}), r"scored by Contains\(tokens=3\): .*unexpected keyword argument"),
        (NamedRule("Likeliest"), "whose items are of kind 'answer'"),
    ],
)
def test_a_rule_that_does_not_fit_the_task_is_refused(model: nn.Module, rule: NamedRule, message: str) -> None:
    task = Task("capitals", (AnswerItem("The capital of Italy is", (" Rome",)),), rule=rule)
    with pytest.raises(ValueError, match=message):
        scoring.score(model, task)


def test_every_recipe_names_a_rule_that_there_is(model: nn.Module) -> None:
    for name in tasks.recipes()["name"]:
        rule = tasks.recipe(name).rule
        made = getattr(scoring, rule.name)(**rule.settings)
        assert {setting: getattr(made, setting) for setting in rule.settings} == dict(rule.settings)


def test_gsm8k_is_scored_by_its_last_number(model: nn.Module) -> None:
    said: dict[str, str] = {}
    for n in range(12):
        question, ids = f"{n} x 4 =", model.to_tokens(f"{n} x 4 =")
        start = ids.shape[1]
        for _ in range(24):
            ids = torch.cat([ids, model(ids, return_type="logits")[0, -1].argmax().view(1, 1)], 1)
        said[question] = model.tokenizer.decode(ids[0, start:])
    numbers = {question: re.findall(r"[0-9]+", text) for question, text in said.items()}
    ending = [question for question, found in numbers.items() if found]
    assert len(ending) > 4 and any(len(numbers[question]) > 1 for question in ending)
    # Every second one is asked for the number that the model ends in, the others for another.
    rows = [{"question": question, "answer": f"So.\n#### {int(numbers[question][-1]) + n % 2:,}"}
            for n, question in enumerate(ending)]  # fmt: skip
    rows += [{"question": question, "answer": "#### 0"} for question, found in numbers.items() if not found]
    options = {"n_examples": 0, "prompt": "{question}", "n_tokens": 24}
    scores = scoring.score(model, tasks.recipe("gsm8k").task(rows, **options))
    assert scores.correct.tolist() == [n < len(ending) and not n % 2 for n in range(12)]
    assert scores.encoded.rule == scoring.LastNumber(24, stop=("Question",))


def test_several_samples_of_gsm8k_are_options_of_the_recipe(model: nn.Module) -> None:
    rows = [{"question": f"{n} x 4 =", "answer": f"#### {4 * n}"} for n in range(3)]
    options = {"n_examples": 0, "prompt": "{question}", "n_tokens": 8}
    drawn = tasks.recipe("gsm8k").task(rows, **options, samples=3, temperature=0.7, seed=2)
    scores = scoring.score(model, drawn)
    assert scores.encoded.rule == scoring.LastNumber(8, stop=("Question",), samples=3, temperature=0.7, seed=2)
    with pytest.raises(ValueError, match="samples=3 at temperature 0"):
        scoring.score(model, tasks.recipe("gsm8k").task(rows, **options, samples=3))
    with pytest.raises(ValueError, match="temperature=-1"):
        tasks.recipe("gsm8k").task(rows, **options, temperature=-1)


def test_says_next_compares_the_text_of_the_likeliest_token_alone(model: nn.Module) -> None:
    tokenizer = model.tokenizer
    prompts = [f"The capital of {chr(a)}{chr(b)} is" for a in range(65, 75) for b in range(97, 101)]
    said = {prompt: tokenizer.decode([int(next_logits(model, prompt).argmax())]).strip() for prompt in prompts}
    whole = [prompt for prompt in prompts if said[prompt] and said[prompt].isascii()]
    assert len(whole) > 2 and any(said[prompt].swapcase() != said[prompt] for prompt in whole)
    # What is said in another case and with a space is right; with more after it, it is not.
    right = [AnswerItem(prompt, (f" {said[prompt].swapcase()}",)) for prompt in whole]
    wrong = [AnswerItem(prompt, (f" {said[prompt]}{said[prompt]}",)) for prompt in whole]
    scores = scoring.score(model, [*right, *wrong], rule=SaysNext())
    assert scores.correct.tolist() == [True] * len(right) + [False] * len(wrong)
    assert [text.strip() for text in scores.predictions] == [said[prompt] for prompt in whole] * 2
    assert scores.predicted[: len(right)].tolist() == scores.truth[: len(right)].tolist()
    assert not (scores.predicted == scores.truth)[len(right) :].any()
    with pytest.raises(ValueError, match="compares the text of the likeliest token"):
        SaysNext().quantity(scores.encoded.continuations, _readings(model, scores.encoded))


def test_ids_say_what_they_are() -> None:
    model = bridge_with(None)
    tokens = (3, 4, 5)
    top = int(model(torch.tensor([tokens]))[0, -1].argmax())
    other = (top + 1) % 40
    items = [AnswerItem(tokens, ((top,),)), AnswerItem(tokens, ((other,),)), AnswerItem(tokens, ((other,), (top,)))]
    assert scoring.score(model, items, rule=SaysNext()).correct.tolist() == [True, False, True]


def test_starts_with_looks_at_the_first_tokens_that_count() -> None:
    model = bridge_with(None)
    tokens = (3, 4, 5)
    first = int(model(torch.tensor([tokens]))[0, -1].argmax())
    second = int(model(torch.tensor([[*tokens, first]]))[0, -1].argmax())
    off = (second + 1) % 40
    items = [AnswerItem(tokens, (answer,)) for answer in ((first, off), (first, second), (off, second))]
    whole, by_first = (scoring.score(model, items, rule=StartsWith(per)) for per in ("sequence", "first"))
    assert by_first.correct.tolist() == [True, True, off == first] and by_first.rank[:2].tolist() == [0, 0]
    assert whole.correct.tolist() == [False, True, False]
    assert by_first.prediction_ids == ((first,),) * 3
    quantity = StartsWith(per="first").quantity(by_first.encoded.continuations, _readings(model, by_first.encoded))
    assert quantity.tolist() == by_first.correct.float().tolist()
    # The rank of the second token does not count.
    assert by_first.rank[2] == int((_logits(model, tokens) > _logits(model, tokens)[off]).sum())
    assert repr(StartsWith()) == "StartsWith()" and repr(StartsWith(per="first")) == "StartsWith(per='first')"


def _logits(model: nn.Module, tokens: tuple[int, ...]) -> torch.Tensor:
    return model(torch.tensor([tokens]))[0, -1]


def _readings(model: nn.Module, encoded: scoring.EncodedTask) -> scoring.Readings:
    from functools import partial

    from hooks.running import run

    return scoring.outcome(encoded, partial(run, model)).readings


def test_labels_of_several_tokens_compare_by_sum_mean_or_first_token() -> None:
    model = bridge_with(None)
    tokens = (3, 4, 5)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(1, 40, (30, 5), generator=generator).tolist()
    pairs = [((a, b), (c, d, e)) for a, b, c, d, e in draws if a != c]
    items = [ChoiceItem(tokens, pair, (0,)) for pair in pairs]

    @torch.no_grad()
    def log_p(text: tuple[int, ...]) -> list[float]:
        logits = model(torch.tensor([[*tokens, *text]]))[0].log_softmax(-1)
        return [float(logits[len(tokens) - 1 + at, token]) for at, token in enumerate(text)]

    expected = {
        "sequence": [sum(log_p(a)) > sum(log_p(b)) for a, b in pairs],
        "token": [sum(log_p(a)) / 2 > sum(log_p(b)) / 3 for a, b in pairs],
        "first": [log_p(a)[0] > log_p(b)[0] for a, b in pairs],
    }
    assert len({tuple(verdicts) for verdicts in expected.values()}) == 3
    for per, verdicts in expected.items():
        scores = scoring.score(model, items, rule=Likeliest(per=per))
        assert scores.correct.tolist() == verdicts
        quantity = Likeliest(per=per).quantity(scores.encoded.continuations, _readings(model, scores.encoded))
        assert quantity.tolist() == scores.correct.float().tolist()


def test_texts_that_begin_alike_are_refused_where_only_their_beginning_counts() -> None:
    model = bridge_with(None)
    choice = [ChoiceItem((1, 2), ((5, 6), (7, 8)), (0,)), ChoiceItem((1, 2), ((5, 6), (5, 8)), (0,))]
    with pytest.raises(ValueError, match=r"cannot judge 1 of the 2 items .*item 1: \(5, 6\), which is right, and"):
        scoring.score(model, choice, rule=Likeliest(per="first"))
    assert len(scoring.score(model, choice)) == 2
    answer = [AnswerItem((1, 2), ((5, 6),), ((5, 8),))]
    with pytest.raises(ValueError, match=r"begin with the same tokens \(5,\)\. .* such as StartsWith\(\)"):
        scoring.score(model, answer, rule=StartsWith(per="first"))
    assert len(scoring.score(model, answer, rule=StartsWith())) == 1


def test_a_first_token_of_white_space_is_no_answer() -> None:
    model = bridge_with(wrapped(sentence_piece()))
    ids = model.tokenizer.encode("3 x 4 = 7", add_special_tokens=False)[-2:]
    task = Task("product", (AnswerItem("3 x 4 =", (" 7",)),))
    before = scoring.score(model, task)
    assert before.encoded.items[0].continuations[0].ids == tuple(ids) and not model.tokenizer.decode(ids[:1]).strip()
    with pytest.raises(ValueError, match="' 7' begins with a token of white space, which says nothing of the rest"):
        scoring.score(model, task, rule=StartsWith(per="first"))
