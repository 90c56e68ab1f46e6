"""Tasks made rather than read: indirect objects, greater-than, arithmetic, and recall of tokens."""

import operator
import random
from collections.abc import Callable, Sequence
from itertools import product

from jaxtyping import Bool, Int
from torch import Tensor

from analyses.tasks._parsing import joined
from analyses.tasks.items import AnswerItem
from analyses.tasks.task import Task
from surgery.arguments import counted, whole
from surgery.arguments import seed as checked_seed

NAMES = (
    "Alice", "Amy", "Anna", "Ben", "Brian", "Carl", "Chris", "Dan", "David", "Emma", "Eric", "Frank", "George",
    "Grace", "Jack", "James", "Jane", "Jason", "John", "Kate", "Kevin", "Laura", "Lisa", "Luke", "Mark", "Mary",
    "Max", "Michael", "Paul", "Peter", "Rachel", "Robert", "Rose", "Ruth", "Sam", "Sarah", "Simon", "Steve", "Susan",
    "Tom",
)  # fmt: skip
"""First names that common tokenizers hold as one token after a space."""

SCENES = (
    "When {a} and {b} went to the {location}, {s} gave a {thing} to",
    "Then {a} and {b} were talking at the {location}. {s} handed a {thing} to",
    "After {a} and {b} left the {location}, {s} passed a {thing} to",
    "While {a} and {b} sat near the {location}, {s} showed a {thing} to",
    "{a} and {b} worked at the {location} today. In the end {s} sold a {thing} to",
    "Since {a} and {b} met in the {location}, {s} sent a {thing} to",
)
LOCATIONS = ("store", "park", "school", "station", "office", "garden", "market", "house")
THINGS = ("book", "drink", "letter", "ring", "ball", "card", "basket", "picture")
NOUNS = (
    "war", "siege", "voyage", "reign", "famine", "trial", "dispute", "reform", "drought", "campaign", "project",
    "strike",
)  # fmt: skip


def ioi(
    n: int,
    *,
    seed: int = 0,
    names: Sequence[str] = NAMES,
    templates: Sequence[str] = SCENES,
    locations: Sequence[str] = LOCATIONS,
    things: Sequence[str] = THINGS,
) -> Task:
    """Indirect object identification: who receives what the repeated name gives away.

    Each scene comes in both orders of the two names, one after the other, and the two form a group. The answer is the
    name said once, the distractor the name said twice; the metadata hold `io`, `s`, `order` (`ABB` if the subject is
    named second) and `template`.

    Args:
        n: the number of items, all different.
        seed: the same seed gives the same items.
        names: at least two.
        templates: with `{a}` and `{b}` for both names, `{s}` for the repeated one, `{location}` and `{thing}`; the
            answer follows.
        locations: what fills `{location}`.
        things: what fills `{thing}`.

    Source: Wang et al., "Interpretability in the Wild" (arXiv:2211.00593).

    Raises:
        ValueError: if there are fewer than n such items.

    >>> item = tasks.ioi(2, seed=0)[0]
    >>> item.answers == (f" {item.metadata['io']}",), item.prompt.count(item.metadata["s"])
    (True, 2)
    """
    _check_several(names=names, templates=templates, locations=locations, things=things)
    pairs = [(first, second) for first, second in product(names, names) if first != second]
    items = []
    for number in _draw(2 * len(pairs) * len(templates) * len(locations) * len(things), n, seed, unit=2):
        # The number is the item's address: its digits, each in another base, choose order, names, template and so on.
        scene, order = divmod(number, 2)
        scene, pair = divmod(scene, len(pairs))
        scene, template = divmod(scene, len(templates))
        thing, location = divmod(scene, len(locations))
        io, s = pairs[pair]
        a, b = (io, s) if order == 0 else (s, io)
        fill = {"a": a, "b": b, "s": s, "location": locations[location], "thing": things[thing]}
        items.append(
            AnswerItem(
                templates[template].format(**fill),
                (f" {io}",),
                (f" {s}",),
                groups=(f"scene {number // 2}",),
                metadata={"io": io, "s": s, "order": "ABB" if order == 0 else "BAB", "template": template},
            )
        )
    return Task("indirect object", tuple(items), {"seed": seed})


def greater_than(
    n: int,
    *,
    seed: int = 0,
    nouns: Sequence[str] = NOUNS,
    centuries: Sequence[int] = tuple(range(11, 18)),
    template: str = "The {noun} lasted from the year {century}{year:02d} to the year {century}",
) -> Task:
    """Greater-than: the two digits of an end year, of which all above the start year's are accepted.

    Those up to the start year's are distractors, so that `p_correct` and the distractors' probability give the paper's
    difference. Start years run from 02 to 98; all items of a start year form a group.

    Args:
        n: the number of items, all different.
        seed: the same seed gives the same items.
        nouns: what fills `{noun}`.
        centuries: the first two digits of both years.
        template: with `{noun}`, `{century}` and `{year}`; the two digits follow.

    Source: Hanna, Liu, Variengien, "How does GPT-2 compute greater-than?" (arXiv:2305.00586).

    Raises:
        ValueError: if there are fewer than n such items.

    >>> item = tasks.greater_than(1, seed=0)[0]
    >>> len(item.answers) == 99 - item.metadata["year"]
    True
    """
    _check_several(nouns=nouns)
    cases = list(product(nouns, centuries, range(2, 99)))
    two_digits = tuple(f"{end:02d}" for end in range(100))
    items = []
    for number in _draw(len(cases), n, seed):
        noun, century, year = cases[number]
        items.append(
            AnswerItem(
                template.format(noun=noun, century=century, year=year),
                two_digits[year + 1 :],
                two_digits[: year + 1],
                groups=(f"year {century}{year:02d}",),
                metadata={"noun": noun, "century": century, "year": year},
            )
        )
    return Task("greater-than", tuple(items), {"seed": seed})


def addition(
    limit: int, *, n: int | None = None, seed: int = 0, template: str = "{i} + {j} =", separator: str = " "
) -> Task:
    """Sums of two whole numbers from 0 to limit − 1; i + j and j + i form a group.

    Args:
        limit: one more than the largest number.
        n: how many of the limit² items to draw, all different; all of them, in order, by default.
        seed: the same seed draws the same items.
        template: with `{i}` and `{j}`; the answer follows.
        separator: what stands before the answer.

    Raises:
        ValueError: if there are fewer than n such items.

    >>> task = tasks.addition(3)
    >>> len(task), task[5].prompt, task[5].answers
    (9, '1 + 2 =', (' 3',))
    """
    return _arithmetic("addition", operator.add, limit, n, seed, template, separator)


def multiplication(
    limit: int = 20, *, n: int | None = None, seed: int = 0, template: str = "{i} x {j} =", separator: str = " "
) -> Task:
    """Products of two whole numbers from 0 to limit − 1; i × j and j × i form a group.

    Args:
        limit: one more than the largest number.
        n: how many of the limit² items to draw, all different; all of them, in order, by default.
        seed: the same seed draws the same items.
        template: with `{i}` and `{j}`; the answer follows.
        separator: what stands before the answer.

    Source: the task of Eigenpruning (arXiv:2404.03147), whose split leaks j × i; a `split` of this one does
    not.

    Raises:
        ValueError: if there are fewer than n such items.

    >>> task = tasks.multiplication(20, n=5)
    >>> len(task), task[0].metadata["i"] < 20
    (5, True)
    """
    return _arithmetic("multiplication", operator.mul, limit, n, seed, template, separator)


def recall(
    tokens: Int[Tensor, "sequence pos"],
    answers: Int[Tensor, "sequence pos"],
    *,
    scored: Bool[Tensor, "sequence pos"] | None = None,
    distractors: Sequence[int] = (),
    name: str = "recall",
) -> Task:
    """An item for every position that has an answer: the tokens up to it, and the token that should come next.

    The positions of a sequence form a group; scoring reads all of them off one row. A batch of `analyses.recall` fits:
    `tasks.recall(batch.tokens, batch.answers, scored=batch.scored, distractors=[noise_token])`.

    Args:
        tokens: sequences as a model without a tokenizer reads them.
        answers: the right next token at every position; negative where there is none.
        scored: which of the positions with an answer to ask; all by default.
        distractors: wrong tokens whose probability is of interest, such as the noise token; left out where one is
            right.
        name: the task's name.

    Source: the noisy in-context recall of arXiv:2406.03068.

    Raises:
        ValueError: if no position is asked.

    >>> rows, following = torch.tensor([[4, 2, 4]]), torch.tensor([[2, -1, 2]])
    >>> [(item.prompt, item.answers) for item in tasks.recall(rows, following)]
    [((4,), ((2,),)), ((4, 2, 4), ((2,),))]
    """
    asked = answers >= 0 if scored is None else (answers >= 0) & scored
    if not asked.any():
        raise ValueError(
            f"none of the {counted(answers.numel(), 'position')} has an answer that is scored: a task has at least one "
            "item. Give the right next token, 0 or more, wherever one is asked."
        )
    rows = [tuple(row) for row in tokens.tolist()]
    items = []
    for sequence, pos in asked.nonzero().tolist():
        answer = int(answers[sequence, pos])
        items.append(
            AnswerItem(
                rows[sequence][: pos + 1],
                ((answer,),),
                tuple((token,) for token in dict.fromkeys(distractors) if token != answer),
                groups=(f"sequence {sequence}",),
                metadata={"sequence": sequence, "pos": pos},
            )
        )
    return Task(name, tuple(items))


def _arithmetic(
    name: str, operation: Callable[[int, int], int], limit: int, n: int | None, seed: int, template: str, separator: str
) -> Task:
    whole(limit, "limit", least=1)
    numbers = range(limit**2) if n is None else _draw(limit**2, n, seed)
    items = []
    for i, j in (divmod(number, limit) for number in numbers):
        prompt = template.format(i=i, j=j)
        items.append(
            AnswerItem(
                prompt,
                (joined(prompt, str(operation(i, j)), separator),),
                groups=(f"{min(i, j)} and {max(i, j)}",),
                metadata={"i": i, "j": j},
            )
        )
    return Task(name, tuple(items), {"seed": seed, "limit": limit})


def _draw(total: int, n: int, seed: int, *, unit: int = 1) -> list[int]:
    """n different numbers below total, in runs of `unit` that begin at its multiples."""
    whole(n, "n", least=1)
    if n > total:
        raise ValueError(
            f"n={n}: this task has {counted(total, 'different item')}, so n is 1 to {total}. Ask for fewer, or add "
            "material."
        )
    # Whole runs are drawn, so that both orders of a scene come together; the last run may be cut.
    starts = random.Random(checked_seed(seed)).sample(range(total // unit), -(-n // unit))
    return [unit * start + step for start in starts for step in range(unit)][:n]


def _check_several(**lists: object) -> None:
    """Refuse one string where several are meant: its characters would be taken for them."""
    for name, value in lists.items():
        if isinstance(value, str):
            raise ValueError(f"{name}={value!r} is one string: give a list of strings, such as [{value!r}].")
