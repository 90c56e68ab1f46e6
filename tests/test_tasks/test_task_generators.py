import re
from itertools import product

import pytest
import torch

from analyses import scoring, tasks
from analyses.tasks._generators import NAMES, SCENES


def test_indirect_objects_are_the_name_said_once() -> None:
    task = tasks.ioi(60, seed=0)
    assert len(task) == len(set(item.prompt for item in task)) == 60
    for item in task:
        said = [word for word in re.findall(r"\w+", item.prompt) if word in NAMES]
        assert len(said) == 3
        once, twice = (next(name for name in said if said.count(name) == n) for n in (1, 2))
        assert (item.answers, item.distractors) == ((f" {once}",), (f" {twice}",))
        assert (item.metadata["io"], item.metadata["s"]) == (once, twice)
        assert said[0] == (once if item.metadata["order"] == "ABB" else twice)
        assert item.prompt[-1] != " " and "{" not in item.prompt


def test_both_orders_of_a_scene_come_together() -> None:
    task = tasks.ioi(40, seed=1)
    for first, second in zip(task[::2], task[1::2], strict=True):
        assert (first.metadata["order"], second.metadata["order"]) == ("ABB", "BAB")
        assert first.answers == second.answers and first.groups == second.groups
        assert sorted(first.prompt.split()) == sorted(second.prompt.split())
    assert len(task.clusters()) == 20
    assert len(tasks.ioi(5, seed=1)) == 5 and tasks.ioi(5, seed=1).items == task.items[:5]


def test_every_indirect_object_is_reached_once() -> None:
    rest = {"locations": ["park"], "things": ["ball", "ring"]}
    task = tasks.ioi(2 * 6 * 2 * 2, seed=3, names=["Ann", "Bob", "Cy"], templates=SCENES[:2], **rest)
    assert len({item.prompt for item in task}) == 48
    pairs = {(item.metadata["io"], item.metadata["s"], item.metadata["template"]) for item in task}
    assert pairs == {(a, b, t) for a, b in product(["Ann", "Bob", "Cy"], repeat=2) if a != b for t in (0, 1)}
    with pytest.raises(ValueError, match=r"n=49: this task has 48 different items, so n is 1 to 48\. Ask for fewer"):
        tasks.ioi(49, seed=3, names=["Ann", "Bob", "Cy"], templates=SCENES[:2], **rest)


def test_greater_than_accepts_exactly_the_later_years() -> None:
    task = tasks.greater_than(200, seed=0)
    assert len({item.prompt for item in task}) == 200
    for item in task:
        start, end = re.fullmatch(r"The \w+ lasted from the year (\d{4}) to the year (\d\d)", item.prompt).groups()
        assert start[:2] == end and 2 <= int(start[2:]) <= 98
        assert all(int(end + answer) > int(start) for answer in item.answers)
        assert all(int(end + answer) <= int(start) for answer in item.distractors)
        assert sorted(item.answers + item.distractors) == [f"{n:02d}" for n in range(100)]
        assert item.groups == (f"year {start}",)


def test_all_items_of_a_start_year_stay_together() -> None:
    task = tasks.greater_than(97, seed=0, nouns=["war"], centuries=[17])
    assert sorted(item.metadata["year"] for item in task) == list(range(2, 99))
    twice = tasks.greater_than(194, seed=0, nouns=["war", "trial"], centuries=[17])
    assert len(twice.clusters()) == 97 and {len(cluster) for cluster in twice.clusters()} == {2}


@pytest.mark.parametrize(
    ("make", "sign", "operation"), [(tasks.addition, "+", int.__add__), (tasks.multiplication, "x", int.__mul__)]
)
def test_arithmetic_is_right_and_symmetric(make: object, sign: str, operation: object) -> None:
    task = make(7)
    assert [(item.metadata["i"], item.metadata["j"]) for item in task] == list(product(range(7), repeat=2))
    for item in task:
        i, said, j, equals = item.prompt.split(" ")
        assert (said, equals) == (sign, "=")
        assert item.answers == (f" {operation(int(i), int(j))}",)
    assert {frozenset((task[a].prompt, task[b].prompt)) for a, b in (c for c in task.clusters() if len(c) == 2)} == {
        frozenset((f"{i} {sign} {j} =", f"{j} {sign} {i} =")) for i in range(7) for j in range(i)
    }


def test_arithmetic_can_be_drawn_and_put_differently() -> None:
    few = tasks.multiplication(20, n=80, seed=4)
    assert len({item.prompt for item in few}) == 80
    assert few == tasks.multiplication(20, n=80, seed=4) and few != tasks.multiplication(20, n=80, seed=5)
    assert tasks.addition(3, template="{i}+{j}=", separator="")[5].answers == ("3",)
    assert tasks.addition(3, template="{i}+{j}=", separator="")[5].prompt == "1+2="
    with pytest.raises(ValueError, match="n=5: this task has 4 different items"):
        tasks.addition(2, n=5)
    with pytest.raises(ValueError, match="n=0: give a whole number, 1 or more"):
        tasks.addition(2, n=0)


def test_recall_asks_at_every_scored_position() -> None:
    tokens = torch.tensor([[4, 2, 4, 2], [1, 1, 1, 3]])
    answers = torch.tensor([[2, -1, 2, -1], [5, 5, 5, -100]])
    task = tasks.recall(tokens, answers, distractors=[5, 6], name="r")
    assert [(item.prompt, item.answers, item.distractors) for item in task] == [
        ((4,), ((2,),), ((5,), (6,))),
        ((4, 2, 4), ((2,),), ((5,), (6,))),
        ((1,), ((5,),), ((6,),)),
        ((1, 1), ((5,),), ((6,),)),
        ((1, 1, 1), ((5,),), ((6,),)),
    ]
    assert task.clusters() == ((0, 1), (2, 3, 4))
    assert [item.metadata for item in task[:2]] == [{"sequence": 0, "pos": 0}, {"sequence": 0, "pos": 2}]
    scored = torch.tensor([[False, True, True, True], [False, False, True, True]])
    assert [item.prompt for item in tasks.recall(tokens, answers, scored=scored)] == [(4, 2, 4), (1, 1, 1)]
    with pytest.raises(
        ValueError, match="none of the 8 positions has an answer that is scored: a task has at least one"
    ):
        tasks.recall(tokens, answers, scored=torch.zeros_like(scored))


def test_all_positions_of_a_sequence_are_read_off_one_row() -> None:
    from tiny_tokenizers import bridge_with

    tokens = torch.randint(0, 50, (5, 20), generator=torch.Generator().manual_seed(0))
    task = tasks.recall(tokens, tokens.roll(-1, 1))
    encoded = scoring.encode(bridge_with(None), task, batch_size=8)
    assert len(task) == 100 and [batch.inputs.tokens.shape for batch in encoded.batches] == [(5, 20)]
