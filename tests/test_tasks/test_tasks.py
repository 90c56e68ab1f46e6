import math
import os
import random
from itertools import product

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import (
    bridge_with,
    byte_level,
    characters,
    hooked_with,
    sentence_piece,
    whole_words,
    without_own_bos,
    wrapped,
)
from tokenizers import normalizers
from torch import nn

from analyses import tasks
from analyses.tasks import AnswerItem, ChoiceItem, MinimalPair, Task
from analyses.tokens.items import tokenise
from analyses.tokens.tokenizer import vocabulary

HOSTS = [bridge_with, pytest.param(hooked_with, marks=pytest.mark.hooked)]


def answer(prompt: tasks.Text, *answers: tasks.Text, **rest: object) -> AnswerItem:
    return AnswerItem(prompt, answers, **rest)


def one(model: nn.Module, item: tasks.Item, **settings: object) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The context and the continuations of one item."""
    (found,), problems = tokenise(vocabulary(model, **settings), Task("one", (item,)))
    assert problems == ()
    return found.context, [continuation.ids for continuation in found.continuations]


def reason(model: nn.Module, item: tasks.Item, **settings: object) -> str:
    found, problems = tokenise(vocabulary(model), Task("one", (item,)), **settings)
    assert found == (None,)
    return problems[0].reason


# Items


def test_an_item_says_what_is_right_and_wrong() -> None:
    fact = answer("in", " Paris", " paris", distractors=(" Rome",))
    assert (fact.kind, fact.context, fact.right, fact.wrong) == ("answer", "in", (" Paris", " paris"), (" Rome",))
    choice = ChoiceItem("q", ("a", "b", "c"), (2, 0))
    assert (choice.kind, choice.context, choice.right, choice.wrong) == ("choice", "q", ("c", "a"), ("b",))
    pair = MinimalPair("good", (1, 2))
    assert (pair.kind, pair.context, pair.right, pair.wrong) == ("pair", "", ("good",), ((1, 2),))
    assert len({fact, answer("in", " Paris", " paris", distractors=(" Rome",)), choice, pair}) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnswerItem("p", (), source="f:3"), "f:3: 0 answers given: an item of kind 'answer' has at least 1"),
        (
            lambda: answer("p", " a", ""),
            "one of the answers is empty: it needs a token to be scored. Remove or fill it",
        ),
        (lambda: answer("p", " a", " a"), "the answers (' a', ' a') are not all different: give each one once"),
        (lambda: answer("p", " a", distractors=(" a",)), "' a' is both an accepted answer and a distractor"),
        (lambda: ChoiceItem("p", ("a",), (0,)), "1 label given: an item of kind 'choice' has at least 2"),
        (
            lambda: ChoiceItem("p", ("a", "b"), (2,)),
            "correct=(2,) with 2 labels: it is a tuple of different positions from 0 to 1, at least one",
        ),
        (lambda: ChoiceItem("p", ("a", "b"), (0, 1)), "correct=(0, 1) with 2 labels"),
        (lambda: ChoiceItem("p", ("a", "b"), ()), "Give the positions of the right labels"),
        (lambda: MinimalPair("a", "a"), "the sentences ('a', 'a') are not all different"),
        (lambda: ChoiceItem("p", ("a", "b"), (True,)), "correct=(True,) with 2 labels: it is a tuple"),
    ],
)
def test_an_impossible_item_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


# Tasks


def numbered(n: int) -> Task:
    return Task("numbers", tuple(answer((number,), (number + 1,)) for number in range(1, n + 1)))


def test_a_task_is_cut_filtered_and_shown() -> None:
    task = numbered(6)
    assert len(task) == 6 and task[2].prompt == (3,) and task[-1].prompt == (6,)
    assert [item.prompt for item in task[1:4:2]] == [(2,), (4,)]
    assert [item.prompt for item in task.take([5, 0])] == [(6,), (1,)]
    assert [item.prompt for item in task.filter(lambda item: item.context[0] % 3 == 0)] == [(3,), (6,)]
    assert repr(task) == "Task('numbers', 6 items of kind 'answer')"
    assert repr(task[:0]) == "Task('numbers', 0 items)"
    left_out = Task("t", task.items, unscorable=(tasks.Unscorable("f:1", "no"),))
    assert repr(left_out[:2]) == "Task('t', 2 items of kind 'answer', 1 unscorable left out)"
    assert str(left_out.unscorable[0]) == "f:1: no"
    assert (task.where(3), Task("t", (answer("p", " a", source="f:9"),)).where(0)) == ("numbers, item 3", "f:9")


def test_a_task_has_items_of_one_kind() -> None:
    with pytest.raises(
        ValueError, match=r"holds items of the kinds answer, pair: a task has one kind.*Make a task of each"
    ):
        Task("mixed", (answer("p", " a"), MinimalPair("a", "b")))
    with pytest.raises(ValueError, match=r"task 'none' has no items: only a task with items has a kind"):
        _ = Task("none", ()).kind


def test_a_task_becomes_a_table() -> None:
    task = Task("t", (ChoiceItem("q", ("a", "b"), (1,), groups=("g",), metadata={"n": 3}, source="f:1"),))
    expected = {"task": "t", "kind": "choice", "context": "q", "reference": "b", "right": ("b",), "wrong": ("a",)}
    frame = task.to_dataframe()
    assert isinstance(frame, pd.DataFrame)
    assert frame.to_dict("records") == [{**expected, "groups": ("g",), "source": "f:1", "meta_n": 3}]


# Of each item its prompt and its groups.
Drawn = list[tuple[int, list[str]]]
drawn_items = st.lists(
    st.tuples(st.integers(0, 8), st.lists(st.sampled_from("abcdef"), max_size=2)), min_size=1, max_size=25
)


def numbered_with_groups(drawn: Drawn) -> tuple[AnswerItem, ...]:
    """Items that are told apart by where they stand."""
    return tuple(answer(f"{p}", "x", groups=tuple(groups), source=f"{n}") for n, (p, groups) in enumerate(drawn))


def components(items: tuple[AnswerItem, ...]) -> set[frozenset[int]]:
    """Groups grown until nothing more belongs to them."""
    left, found = set(range(len(items))), set()
    while left:
        members = {left.pop()}
        while True:
            groups = {group for member in members for group in items[member].groups}
            prompts = {items[member].prompt for member in members}
            more = {i for i in left if items[i].prompt in prompts or groups & set(items[i].groups)}
            if not more:
                break
            members |= more
            left -= more
        found.add(frozenset(members))
    return found


@given(drawn_items)
def test_clusters_are_what_is_linked_by_groups_and_prompts(drawn: Drawn) -> None:
    items = numbered_with_groups(drawn)
    clusters = Task("t", items).clusters()
    assert {frozenset(cluster) for cluster in clusters} == components(items)
    assert sum(map(len, clusters)) == len(items)
    assert [cluster[0] for cluster in clusters] == sorted(cluster[0] for cluster in clusters)


def test_items_without_a_prompt_do_not_all_belong_together() -> None:
    choices = tuple(ChoiceItem("", (f"{n}", "x"), (0,)) for n in range(3))
    pairs = tuple(MinimalPair(f"{n}", f"not {n}") for n in (1, 2, 1))
    assert Task("t", choices).clusters() == ((0,), (1,), (2,))
    assert Task("t", pairs).clusters() == ((0, 2), (1,))


def test_pairs_that_share_a_sentence_are_not_divided() -> None:
    pairs = (MinimalPair("a", "b"), MinimalPair("c", "d"), MinimalPair("e", "b"), MinimalPair("f", "e"))
    assert Task("t", pairs).clusters() == ((0, 2, 3), (1,))


def test_a_space_at_its_end_does_not_make_a_prompt_another_one() -> None:
    items = (answer("Paris is in", " France"), answer("Rome is in", " Italy"), answer("Paris is in ", "France"))
    assert Task("t", items).clusters() == ((0, 2), (1,))


def test_of_ids_only_groups_say_that_they_belong_together() -> None:
    items = tuple(answer((1, 2), (3,), groups=groups) for groups in [("a",), ("b",), (), ("a",)])
    assert Task("t", items).clusters() == ((0, 3), (1,), (2,))
    assert Task("t", (MinimalPair((1,), (2,)), MinimalPair((1,), (2,)))).clusters() == ((0,), (1,))


@given(drawn_items, st.integers(0, 2**32), st.integers(0, 10), st.integers(0, 10))
def test_a_split_divides_the_task_and_keeps_clusters_whole(
    drawn: Drawn, seed: int, screen: int, validation: int
) -> None:
    total = screen + validation + 5
    fractions = {"screen": screen / total, "validation": validation / total, "test": 5 / total}
    items = numbered_with_groups(drawn)
    task = Task("t", items)
    largest = max(map(len, task.clusters()))
    try:
        parts = task.split(**fractions, seed=seed)
    except ValueError as error:
        assert "every part with a fraction above 0 needs an item" in str(error)
        assert any(0 < fraction * len(task) < largest for fraction in fractions.values())
        return
    numbers = [{int(item.source) for item in part} for part in (parts.screen, parts.validation, parts.test)]
    assert sorted(n for part in numbers for n in part) == list(range(len(task)))
    for cluster in components(items):
        assert sum(bool(cluster & part) for part in numbers) == 1
    for part, fraction in zip(numbers, fractions.values(), strict=True):
        assert abs(len(part) - fraction * len(task)) <= largest
    again = task.split(**fractions, seed=seed)
    assert again == parts


def test_a_split_is_shuffled_exact_and_random() -> None:
    task = numbered(100)
    parts = task.split(seed=0)
    assert (len(parts.screen), len(parts.validation), len(parts.test)) == (10, 20, 70)
    drawn = [item.prompt[0] for item in parts.test]
    assert drawn != sorted(drawn)
    assert parts.test != task.split(seed=1).test
    half = task.split(screen=0.0, validation=0.5, test=0.5, seed=3)
    assert (len(half.screen), len(half.validation), len(half.test)) == (0, 50, 50)
    # Every item is as likely as any other to be validated on: over 120 seeds 24 ± 4.4 times.
    counts = torch.zeros(101)
    for seed in range(120):
        for item in task.split(seed=seed).validation:
            counts[item.prompt[0]] += 1
    assert (counts[1:] - 24).abs().max() < 4.5 * math.sqrt(120 * 0.2 * 0.8)


def test_symmetric_pairs_never_meet_across_a_split() -> None:
    parts = tasks.multiplication(12).split(screen=0.2, validation=0.3, test=0.5, seed=5)
    where = {}
    for name in ("screen", "validation", "test"):
        for item in getattr(parts, name):
            where[item.metadata["i"], item.metadata["j"]] = name
    assert len(where) == 144
    assert all(where[i, j] == where[j, i] for i, j in product(range(12), repeat=2))
    assert len(set(where.values())) == 3


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"screen": 0.5, "validation": 0.5, "test": 0.5}, "sum to 1.5: they are 0 or more and sum to 1. Change one"),
        ({"screen": -0.5, "validation": 0.5, "test": 1.0}, "screen=-0.5, validation=0.5, test=1.0 sum to 1"),
        (
            {"screen": 0.01, "validation": 0.5, "test": 0.49},
            "screen=0.01 of the 6 items of task 'numbers', in 6 clusters",
        ),
    ],
)
def test_impossible_fractions_are_refused(fractions: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as error:
        numbered(6).split(**fractions, seed=0)
    assert message in str(error.value)


# Tokens


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@pytest.mark.parametrize("own_bos", [True, False])
@pytest.mark.parametrize("prepend", [True, False])
def test_a_prompt_begins_as_the_host_would_begin_it(host: object, make: object, own_bos: bool, prepend: bool) -> None:
    model = host(wrapped(make()))
    if not own_bos:
        without_own_bos(model)
    model.cfg.default_prepend_bos = prepend
    prompt = "The capital of Peru is"
    wanted = tuple(model.to_tokens(prompt)[0].tolist())
    bos = model.tokenizer.bos_token_id
    assert wanted.count(bos) == int(prepend)
    context, _ = one(model, answer(prompt, " Lima"))
    assert context == wanted
    # A prompt that already has the token written out does not get a second one.
    written, _ = one(model, answer(model.tokenizer.bos_token + prompt, " Lima"))
    assert written.count(bos) == 1
    asked, _ = one(model, answer(prompt, " Lima"), prepend_bos=not prepend)
    assert asked.count(bos) == int(not prepend)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_prompt_and_answer_together_are_the_tokens_of_the_whole_text(make: object) -> None:
    model = bridge_with(wrapped(make()))
    for prompt, text in [("The capital of Peru is", " Lima"), ("One plus one is", " two; two"), ("3 x 4 =", " 12")]:
        context, (ids,) = one(model, answer(prompt, text))
        assert context + ids == tuple(model.to_tokens(prompt + text)[0].tolist())
        assert model.tokenizer.decode(ids).strip() == text.strip()


def test_spaces_at_the_end_of_a_prompt_go_to_the_answer() -> None:
    model = bridge_with(wrapped(byte_level()))
    tidy = one(model, answer("The capital of Peru is", " Lima"))
    assert one(model, answer("The capital of Peru is ", "Lima")) == tidy
    # The tokens that a careless reader would score: a lone space, and the name without its space.
    careless = model.tokenizer("The capital of Peru is ", add_special_tokens=False)["input_ids"]
    assert tuple(careless) != tidy[0][1:]


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_spaces_at_the_end_of_a_prompt_do_not_vanish_before_ids(make: object) -> None:
    model = bridge_with(wrapped(make()))
    for prompt in ("The capital of Peru is ", "The capital of Peru is  ", "The capital of Peru is"):
        whole = tuple(model.to_tokens(prompt)[0].tolist())
        assert one(model, AnswerItem(prompt, ((7,), (8, 9)), ((10,),))) == (whole, [(7,), (8, 9), (10,)])


def test_ids_and_strings_are_not_asked_at_two_places_of_one_prompt() -> None:
    model = bridge_with(wrapped(byte_level()))
    said = reason(model, ChoiceItem("Peru is ", ("Lima", (7,)), (0,)))
    assert said.startswith("the prompt ends in 'Peru is ': a string takes the spaces at its end over, token ids come")
    assert said.endswith("give all texts as strings, or all as ids")
    assert len(one(model, ChoiceItem("Peru is", (" Lima", (7,)), (0,)))[1]) == 2
    # A tokenizer that has no tokens for spaces asks both at the same place.
    words = bridge_with(wrapped(whole_words("a b")))
    assert one(words, ChoiceItem("a ", ("b", (3,)), (0,)))[1] == [(4,), (3,)]


def test_an_answer_that_would_merge_with_its_prompt_is_tokenised_apart() -> None:
    model = bridge_with(wrapped(byte_level()))
    prompt, text = "When Ma", "ry"
    before, after, both = model.tokenizer([prompt, text, prompt + text], add_special_tokens=False)["input_ids"]
    assert both[: len(before)] != before
    context, (ids,) = one(model, answer(prompt, text))
    assert (list(context[1:]), list(ids)) == (before, after)


def test_an_answer_that_cannot_be_told_from_its_prompt_is_unscorable() -> None:
    model = bridge_with(wrapped(sentence_piece()))
    said = reason(model, answer("When Ma", "ry"))
    assert said == "the tokenizer merges the end of 'When Ma' with 'ry': between the two is no token boundary"


def test_ids_are_taken_as_they_are() -> None:
    model = bridge_with(None)
    assert one(model, AnswerItem((3, 4), ((5, 6), (7,)), ((8,),))) == ((3, 4), [(5, 6), (7,), (8,)])
    (found,), _ = tokenise(vocabulary(model), Task("t", (MinimalPair((3, 4, 5), (9, 4, 5)),)))
    assert [(c.context, c.ids, c.right) for c in found.continuations] == [((3,), (4, 5), True), ((9,), (4, 5), False)]


def test_strings_continue_ids_where_that_is_exact() -> None:
    gpt = bridge_with(wrapped(byte_level()))
    prompt = tuple(gpt.to_tokens("The capital of Peru is")[0].tolist())
    assert one(gpt, answer(prompt, " Lima")) == one(gpt, answer("The capital of Peru is", " Lima"))
    llama = bridge_with(wrapped(sentence_piece()))
    prompt = tuple(llama.to_tokens("The capital of Peru is")[0].tolist())
    assert reason(llama, answer(prompt, " Lima")).endswith("which is ids, differently: give ids for both")


def test_a_sentence_is_scored_from_its_first_word_after_the_special_token() -> None:
    model = bridge_with(wrapped(byte_level()))
    whole = tuple(model.to_tokens("Mary and John went")[0].tolist())
    pair = MinimalPair("Mary and John went", "Mary and John goes")
    assert one(model, pair)[1][0] == whole[1:]
    assert one(model, pair, prepend_bos=False)[1][0] == whole[2:]


def test_answers_that_are_the_same_tokens_count_once() -> None:
    model = bridge_with(wrapped(whole_words("a b c")))
    assert one(model, answer("a", " b", "  b", " c"))[1] == [(4,), (5,)]


@pytest.mark.parametrize(
    ("make", "item", "message"),
    [
        (
            sentence_piece,
            answer("The capital is", " Łódź"),
            "the tokenizer does not know a part of ' Łódź', which becomes",
        ),
        (sentence_piece, MinimalPair("Rome", "Ωome"), "the tokenizer does not know a part of 'Ωome'"),
        (
            characters,
            answer("The capital is", " Limaé"),
            "no tokens for a part of ' Limaé', which it reads as ' Lima'",
        ),
        (
            characters,
            answer("The capital is", " é"),
            "the tokenizer has no tokens for a part of ' é', which",
        ),
        (
            lambda: whole_words("a b"),
            answer("a", " z"),
            "the tokenizer does not know a part of ' z', which becomes '<unk>'",
        ),
        (lambda: whole_words("a b"), answer("a", "  "), "the tokenizer has no tokens for '  '"),
        (
            lambda: whole_words("a b"),
            ChoiceItem("a", (" b", "  b"), (0,)),
            "one right and one wrong, are the same tokens (4,)",
        ),
        (lambda: whole_words("a b"), answer("a", (99,)), "token 99 in (99,) is outside the model's vocabulary of 5"),
        (lambda: whole_words("a b"), answer((-1,), (4,)), "token -1 in (-1,) is outside the model's vocabulary"),
        (lambda: whole_words("a b"), answer("a " * 96, " b"), "it takes 97 tokens, and the model reads 96"),
        (lambda: whole_words("a b"), MinimalPair((3,), (4,)), "(3,) is a single token with nothing before it"),
    ],
)
def test_what_cannot_be_scored_is_reported(make: object, item: tasks.Item, message: str) -> None:
    assert message in reason(bridge_with(wrapped(make())), item)


def test_a_tokenizer_that_raises_only_costs_the_items_it_raises_at() -> None:
    model = bridge_with(wrapped(whole_words("a b", special=["<s>", "</s>"]), unk_token=None))
    task = Task("t", (answer("a", " b"), answer("a", " z"), answer("b", " a")))
    found, problems = tokenise(vocabulary(model), task)
    assert [item is None for item in found] == [False, True, False]
    assert problems[0].where == "t, item 1" and "the tokenizer refuses 'a z'" in problems[0].reason


def test_a_tokenizer_may_normalise_a_text() -> None:
    lower = byte_level()
    lower.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    plain, normalising = bridge_with(wrapped(byte_level())), bridge_with(wrapped(lower))
    same = one(plain, answer("one", " fi lima"))[1]
    assert one(normalising, answer("One", " \ufb01 Lima"))[1] == same


def test_a_tokenizer_need_not_know_its_own_unknown_token() -> None:
    # The configuration does not name it, but it is what comes out.
    model = bridge_with(wrapped(whole_words("a b"), unk_token=None))
    assert model.tokenizer.unk_token_id is None
    assert "the tokenizer does not know a part of ' z'" in reason(model, answer("a", " z"))


def test_an_empty_prompt_needs_a_special_token() -> None:
    model = bridge_with(wrapped(byte_level()))
    assert one(model, answer("", "Rome"))[0] == (model.tokenizer.bos_token_id,)
    model.cfg.default_prepend_bos = False
    assert reason(model, answer("", "Rome")).startswith("nothing comes before the answer: the prompt is empty")


def test_generated_tokens_have_to_fit_too() -> None:
    model = bridge_with(None)
    item = answer(tuple([1] * 90), (2,))
    assert one(model, item)[0] == item.prompt
    assert tokenise(vocabulary(model), Task("t", (item,)), new_tokens=7)[1] == ()
    assert reason(model, item, new_tokens=8) == "it takes 97 tokens, and the model reads 96"


def test_a_model_without_a_tokenizer_reads_no_text() -> None:
    assert (
        reason(bridge_with(None), answer("a", " b"))
        == "the model has no tokenizer, so it reads token ids and not the text 'a'"
    )


def test_special_tokens_that_the_vocabulary_lacks_are_not_used() -> None:
    # What TransformerLens sets on a tokenizer that has neither: it is looked up as the unknown token.
    model = bridge_with(wrapped(whole_words("a b"), bos_token="<|endoftext|>", eos_token="<|endoftext|>"))
    model.tokenizer.backend_tokenizer.post_processor = whole_words("a").post_processor
    words = vocabulary(model)
    assert words.bos is None or words.bos < words.size
    assert one(model, answer("a", " b"))[1] == [(4,)]


def test_nothing_unscorable_is_dropped_in_silence() -> None:
    from analyses import scoring

    model = bridge_with(wrapped(whole_words("a b c")))
    task = Task("t", tuple(answer("a", f" {word}", source=f"f:{n}") for n, word in enumerate("bzcyxwvuq")))
    with pytest.raises(scoring.UnscorableItems) as error:
        scoring.score(model, task)
    assert str(error.value).startswith(
        "7 of the 9 items of task 't' cannot be scored with this model:\n  f:1: the tokenizer"
    )
    assert "\n  and 2 more\nEvery item of a task is scored. Correct them, or leave them out in the open" in str(
        error.value
    )
    assert [item.where for item in error.value.items] == ["f:1", "f:3", "f:4", "f:5", "f:6", "f:7", "f:8"]
    rest = scoring.scorable(model, task)
    assert [item.source for item in rest] == ["f:0", "f:2"] and rest.unscorable == error.value.items
    summary = scoring.score(model, rest).summary()
    assert (summary.n_items, summary.n_unscorable) == (2, 7)
    assert scoring.scorable(model, rest) == rest


@pytest.mark.skipif("SURGERY_STORY_MODEL" not in os.environ, reason="SURGERY_STORY_MODEL names no model")
def test_a_real_tokenizer_splits_prompt_and_answer_where_the_text_does() -> None:
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(os.environ["SURGERY_STORY_MODEL"])
    generator = random.Random(0)
    words = ["Once", "upon", "time", "there", "was", "little", "girl", "Lily", "She", "loved", "to", "play", "park"]
    for _ in range(20):
        prompt, text = " ".join(generator.choices(words, k=6)), " " + generator.choice(words)
        context, (ids,) = one(model, answer(prompt, text))
        assert context + ids == tuple(model.to_tokens(prompt + text)[0].tolist())
        assert context[0] == model.tokenizer.bos_token_id and context.count(context[0]) == 1
