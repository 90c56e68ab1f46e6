"""Whether a screened search finds what an exhaustive one finds: best validation accuracy of both, on four tasks.

The noisy recall model is trained here. The other tasks are minimal pairs for a small pretrained story model, whose
folder the environment variable SURGERY_STORY_MODEL names; without it they are left out.

    SURGERY_STORY_MODEL=... python benchmarks/laser_screening.py
"""

import itertools
import os
import time
import warnings

from torch import nn

from analyses import laser, recall, tasks
from surgery import DropTop, KeepTop

THINGS = ("dog", "cat", "bird", "boy", "girl", "toy", "frog", "bear")
PLACES = (("box", "boxes"), ("tree", "trees"), ("car", "cars"), ("house", "houses"), ("park", "parks"))


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
    boys, girls = ("Tim", "Tom", "Ben", "Max", "Sam", "Jack"), ("Lily", "Mia", "Sue", "Anna", "Lucy", "Jane")
    scenes = (
        "{n} had a red ball. The ball was big. One day, {p} went to the park.",
        "{n} was sad because {p} lost the toy.",
        "The dog liked {n}. The dog was big and it ran. Every day {p} liked to play with the dog.",
        "{n} saw a big dog. The dog was not happy. Then {p} ran home.",
        "The bird and the frog saw {n}. It was a sunny day and {p} was happy.",
        "Mom asked {n} to help with the cake, and {p} did.",
    )
    items = []
    for scene, name in itertools.product(scenes, boys + girls):
        good, bad = ("he", "she") if name in boys else ("she", "he")
        items.append(tasks.MinimalPair(scene.format(n=name, p=good), scene.format(n=name, p=bad), groups=(name,)))
    return tasks.Task("pronouns", tuple(items))


def compared(model: nn.Module, task: tasks.Task, sites: str) -> None:
    parts = task.split(screen=0.3, validation=0.4, test=0.3, seed=0)
    best, seconds, runs = {}, {}, {}
    for strategy in ("exhaustive", "screened"):
        start = time.process_time()
        found = laser.search(model, parts, sites, edits=(KeepTop, DropTop), strategy=strategy, progress=False)
        seconds[strategy] = time.process_time() - start
        chosen = found.unedited if found.chosen is None else found.chosen
        best[strategy], runs[strategy] = chosen.summary.accuracy, found.items_run
    print(
        f"{task.name}, {len(parts.validation)} validation items: unedited {found.unedited.summary.accuracy:.3f}, "
        f"exhaustive {best['exhaustive']:.3f}, screened {best['screened']:.3f}; "
        f"{runs['exhaustive']} and {runs['screened']} items run, {seconds['exhaustive']:.1f} s and "
        f"{seconds['screened']:.1f} s of processor time",
        flush=True,
    )


def main() -> None:
    warnings.simplefilter("ignore")
    task = recall.RecallTask.synthetic()
    model = recall.bridge(task)
    recall.train(model, task, progress=False)
    clean = task.sample(60, seed=1, alpha=0.0)
    compared(model, tasks.recall(clean.tokens, clean.answers, scored=clean.scored), "blocks.*.W_*")
    folder = os.environ.get("SURGERY_STORY_MODEL")
    if folder is None:
        print("SURGERY_STORY_MODEL is not set: the tasks for a story model are left out")
        return
    from transformer_lens.model_bridge import TransformerBridge

    stories = TransformerBridge.boot_transformers(folder)
    for made in (agreement(False), agreement(True), pronouns()):
        compared(stories, made, "blocks.*.mlp.W_*")


if __name__ == "__main__":
    main()
