"""Whether a screened search finds what an exhaustive one finds: best validation accuracy of both, on six tasks.

The noisy recall model is trained here. The other tasks are minimal pairs for a small pretrained story model, whose
folder the environment variable SURGERY_STORY_MODEL names; without it they are left out.

    SURGERY_STORY_MODEL=... python benchmarks/laser_screening.py
"""

import argparse
import itertools
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import table
from table import Against
from torch import nn

from analyses import laser, recall, tasks
from surgery import DropTop, KeepTop

CACHE = Path(".surgery-cache")
HOW = "best validation accuracy by the screened search"
THINGS = (
    "dog", "cat", "bird", "boy", "girl", "toy", "frog", "bear", "man", "ball", "flower", "friend", "duck", "rabbit",
)  # fmt: skip
PLACES = (
    ("box", "boxes"), ("tree", "trees"), ("car", "cars"), ("house", "houses"), ("park", "parks"), ("river", "rivers"),
    ("door", "doors"), ("chair", "chairs"),
)  # fmt: skip
BOYS = ("Tim", "Tom", "Ben", "Max", "Sam", "Jack", "John", "Bob")
GIRLS = ("Lily", "Mia", "Sue", "Anna", "Lucy", "Jane", "Sara", "Emma")


def agreement(attractor: bool) -> tasks.Task:
    """ "The dog near the boxes was" against "were"; with an attractor the noun in between has the other number."""
    items = []
    for thing, place, plural in itertools.product(THINGS, PLACES, (False, True)):
        between = place[int(plural != attractor)]
        text = f"The {thing}{'s' * plural} near the {between}"
        verbs = ("were", "was") if plural else ("was", "were")
        good, bad = (f"{text} {verb} very happy." for verb in verbs)
        items.append(tasks.MinimalPair(good, bad, groups=(f"{thing} {place[0]}",)))
    return tasks.Task("agreement across another number" if attractor else "agreement", tuple(items))


def pronouns() -> tasks.Task:
    """ "Tim was sad because he" against "she"."""
    scenes = (
        "{n} had a red ball. The ball was big. One day, {p} went to the park.",
        "{n} was sad because {p} lost the toy.",
        "The dog liked {n}. The dog was big and it ran. Every day {p} liked to play with the dog.",
        "{n} saw a big dog. The dog was not happy. Then {p} ran home.",
        "The bird and the frog saw {n}. It was a sunny day and {p} was happy.",
        "Mom asked {n} to help with the cake, and {p} did.",
        "{n} and the dog played all day. At night {p} slept.",
        "When {n} saw the rain, {p} took a hat.",
        "{n} went to bed. In the morning {p} was hungry.",
        "The cake was for {n}. It was big, so {p} smiled.",
        "{n} wanted a cookie, but {p} had to wait.",
        "At the park, {n} saw a frog and {p} laughed.",
        "{n} and Dad made a cake. Then {p} ate it.",
        "Grandma told {n} a story before {p} fell asleep.",
    )
    items = []
    for scene, name in itertools.product(scenes, BOYS + GIRLS):
        good, bad = ("he", "she") if name in BOYS else ("she", "he")
        items.append(tasks.MinimalPair(scene.format(n=name, p=good), scene.format(n=name, p=bad), groups=(name,)))
    return tasks.Task("pronouns", tuple(items))


def articles() -> tasks.Task:
    """ "Tim saw an apple." against "a apple"."""
    begins = (
        "Tim saw", "Lily had", "Mom gave him", "The bear found", "She wanted", "There was", "They played with",
        "It was", "A boy held", "Mia drew", "The girl wants", "I see", "The cat saw", "Dad made", "Sam liked",
        "Sue found",
    )  # fmt: skip
    vowel = ("apple", "egg", "orange", "owl", "ant", "elephant", "old dog", "ugly duck", "empty box", "ice cream")
    other = ("dog", "cat", "ball", "tree", "car", "bird", "big dog", "red hat", "toy", "happy boy")
    items = []
    for begin, thing in itertools.product(begins, vowel + other):
        good, bad = ("an", "a") if thing in vowel else ("a", "an")
        items.append(tasks.MinimalPair(f"{begin} {good} {thing}.", f"{begin} {bad} {thing}.", groups=(thing,)))
    return tasks.Task("articles", tuple(items))


def names() -> tasks.Task:
    """ "Tim and Lily went to the park. Tim gave a ball to Lily." against "to Tim": who has not just been named."""
    scenes = (
        "{a} and {b} went to the park. {a} gave a ball to {x}.",
        "{a} and {b} were friends. One day, {a} made a cake for {x}.",
        "{a} had a toy. {b} was sad. {a} gave the toy to {x}.",
        "{b} and {a} played. {a} said sorry to {x}.",
    )
    items = []
    for scene, boy, girl in itertools.product(scenes, BOYS[:6], GIRLS[:6]):
        for a, b in ((boy, girl), (girl, boy)):
            good, bad = scene.format(a=a, b=b, x=b), scene.format(a=a, b=b, x=a)
            items.append(tasks.MinimalPair(good, bad, groups=(f"{boy} {girl}",)))
    return tasks.Task("names", tuple(items))


def compared(model: nn.Module, task: tasks.Task, sites: str, seed: int) -> None:
    parts = task.split(screen=0.2, validation=0.6, test=0.2, seed=seed)
    best, seconds, runs = {}, {}, {}
    for strategy in ("exhaustive", "screened"):
        start = time.process_time()
        found = laser.search(
            model, parts, sites, edits=(KeepTop, DropTop), strategy=strategy, seed=seed, progress=False
        )
        seconds[strategy] = time.process_time() - start
        chosen = found.unedited if found.chosen is None else found.chosen
        best[strategy], runs[strategy] = chosen.summary.accuracy, found.items_run
    share = runs["screened"] / runs["exhaustive"]
    table.figure(
        f"split {seed}, {len(parts.validation)} items", best["screened"], "accuracy",
        against=Against("exhaustive", best["exhaustive"]),
        remark=f"unedited {found.unedited.summary.accuracy:.3f}; {share:.0%} of the items run; "
        f"{seconds['exhaustive']:.1f} s and {seconds['screened']:.1f} s of processor time",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the splits")
    parser.add_argument("--quick", action="store_true", help="one split, and of the story model's tasks one")
    table.flags(parser)
    args = parser.parse_args(argv)
    seeds = args.seeds[:1] if args.quick else args.seeds
    warnings.simplefilter("ignore")
    with table.recorded(__file__, args):
        recalled(seeds, args.device)
        if folder := os.environ.get("SURGERY_STORY_MODEL"):
            stories(folder, seeds, args)
        else:
            print("SURGERY_STORY_MODEL is not set: the tasks for a story model are left out")


def recalled(seeds: Sequence[int], device: str) -> None:
    """Noisy recall, which is trained here, in all its matrices."""
    task = recall.RecallTask.synthetic()
    model = recall.bridge(task)
    recall.train(model, task, cache=CACHE, progress=False)
    clean = task.sample(60, seed=1, alpha=0.0)
    items = tasks.recall(clean.tokens, clean.answers, scored=clean.scored)
    table.section("noisy recall", HOW)
    if device != "cpu":  # trained on the CPU, so that it is the same model on every device
        model = model.to(device)
    for seed in seeds:
        compared(model, items, "blocks.*.W_*", seed)


def stories(folder: str, seeds: Sequence[int], args: argparse.Namespace) -> None:
    """Minimal pairs for the story model, in its MLPs."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(folder, device=args.device)
    made = (agreement(False), agreement(True), articles(), pronouns(), names())
    for task in made[:1] if args.quick else made:
        table.section(task.name, HOW)
        for seed in seeds:
            compared(model, task, "blocks.*.mlp.W_*", seed)


if __name__ == "__main__":
    main()
