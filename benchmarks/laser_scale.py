"""LASER's search at the paper's scale: 385 candidates on 4,000 validation items, against the plain loop over them.

The candidates are every matrix of every block of a small pretrained story model at eleven rho; the items are minimal
pairs ("She fed this red bell." against "these", "I saw an old cup." against "a"). The loop puts a randomised truncated
SVD in place of the matrix, as LASER's published code does, and runs both sentences of all items through the whole
model; it is timed on a sample of candidates, spread over matrices and rho, and taken for all. A block pass is one item
through one block: a trial of the search runs from its own block to the last.

With `--exhaustive` every candidate is also run on all items of the pool, once, and the choice is set against the best
candidate on as many splits as `--splits` says. That takes hours on a small machine.

    SURGERY_STORY_MODEL=... OMP_NUM_THREADS=1 python benchmarks/laser_scale.py
    SURGERY_STORY_MODEL=... python benchmarks/laser_scale.py --quick
"""

import argparse
import itertools
import os
import random
import time
import warnings
from functools import partial

import torch
from timing import machine, verdict
from torch import Tensor, nn

import surgery
from analyses import laser, tasks
from analyses.laser._race import POOL
from hooks import host_of, match_sites, place_of
from surgery.ranks import rank_from_rho

SITES = "blocks.*.W_*"
RHOS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.4, 0.2, 0.1, 0.05, 0.03, 0.01)
BEGINS = (
    "I like", "Can you see", "We found", "She fed", "Do not touch", "He drew", "They love", "Look at", "He ran to",
    "Mom saw", "Dad has", "I want", "You can hold", "We met", "Tom hid", "Who took", "Sue liked", "He saw", "She got",
    "They hid",
)  # fmt: skip
NOUNS = (
    "goat", "tiger", "snake", "monkey", "turtle", "zebra", "bee", "worm", "spider", "crab", "whale", "owl", "cup",
    "flag", "drum", "wheel", "nurse", "book", "seed", "nut", "egg", "ring", "bell", "hat", "lamp",
)  # fmt: skip
KINDS = ("", "big ", "red ", "sad ", "new ")


def determiners(n: int) -> tasks.Task:
    """ "We met this goat." against "these goat", and the other way round."""
    items = []
    for begin, kind, noun, plural in itertools.product(BEGINS, KINDS, NOUNS, (False, True)):
        good, bad = ("these", "this") if plural else ("this", "these")
        said = f"{kind}{noun}{'s' * plural}."
        items.append(
            tasks.MinimalPair(f"{begin} {good} {said}", f"{begin} {bad} {said}", groups=(begin + kind + noun,))
        )
    random.Random(0).shuffle(items)
    return tasks.Task("determiners", tuple(items[:n]))


def articles(n: int) -> tasks.Task:
    """ "I saw an old cup." against "a old cup"."""
    things = (
        "cup",
        "flag",
        "drum",
        "wheel",
        "book",
        "seed",
        "nut",
        "ring",
        "bell",
        "goat",
        "bee",
        "worm",
        "crab",
        "bug",
    )
    vowel = ("old", "ugly", "empty", "angry", "orange", "evil", "odd", "open")
    other = ("big", "red", "new", "sad", "bad", "wet", "hot", "fat")
    begins = (*BEGINS, "There is", "This is")
    items = []
    for begin, kind, thing in itertools.product(begins, vowel + other, things):
        good, bad = ("an", "a") if kind in vowel else ("a", "an")
        pair = (f"{begin} {article} {kind} {thing}." for article in (good, bad))
        items.append(tasks.MinimalPair(*pair, groups=(begin + kind + thing,)))
    random.Random(0).shuffle(items)
    return tasks.Task("articles", tuple(items[:n]))


MADE = {"determiners": determiners, "articles": articles}
"""With the first many edits are nearly as good as the best, with the second few."""


def block_passes(model: nn.Module, result: laser.SearchResult) -> int:
    """How many blocks ran for an item, from the edited one to the last; a gradient counts as two passes more."""
    n_layers, n = host_of(model).n_layers, len(result.unedited.scores)
    tried = ((trial.candidate, len(trial.scores)) for trial in result.trials)
    trials = sum(items * (n_layers - candidate.site.layer) for candidate, items in tried if candidate is not None)
    return trials + n_layers * (n + min(n, POOL) + 3 * laser.Screened().items)


def padded(model: nn.Module, sentences: list[str]) -> Tensor:
    """Token ids after the token that begins a text, filled up with -1."""
    ids = [torch.tensor([1, *model.tokenizer.encode(one, add_special_tokens=False)]) for one in sentences]  # type: ignore[union-attr]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)


@torch.no_grad()
def one_candidate(model: nn.Module, site: str, rho: float, tokens: Tensor, batch_size: int) -> float:
    """The accuracy of one reduction, the straightforward way; right and wrong sentences stand in turn."""
    place = place_of(model, site)
    weight = place.slots[0].registered()
    assert weight is not None
    before, W = weight.clone(), place.matrix()
    U, S, V = torch.svd_lowrank(W, q=max(1, rank_from_rho(rho, min(W.shape))), niter=2)
    weight.copy_(place.stored((U * S) @ V.mT))
    said = []
    for rows in tokens.split(batch_size):
        wanted = rows[:, 1:]
        logs = model(rows.clamp_min(0))[:, :-1].log_softmax(-1).gather(2, wanted.clamp_min(0)[..., None])[..., 0]
        said.append((logs * (wanted >= 0)).sum(1))
    weight.copy_(before)
    scores = torch.cat(said).view(-1, 2)
    return float((scores[:, 0] > scores[:, 1]).double().mean())


def loop(model: nn.Module, validation: tasks.Task, args: argparse.Namespace) -> tuple[int, float]:
    """Block passes and seconds of the loop over all candidates, the seconds from a stratified sample."""
    tokens = padded(model, [str(text) for item in validation.items for text in (item.right[0], item.wrong[0])])
    sites = [str(site) for site in match_sites(model, SITES)]
    sampled = [(sites[((2 * i + 1) * len(sites)) // (2 * args.sample)], RHOS[i % 11]) for i in range(args.sample)]
    one_candidate(model, *sampled[0], tokens[:64], args.batch_size)
    start = time.process_time()
    for site, rho in sampled:
        one_candidate(model, site, rho, tokens, args.batch_size)
    seconds = (time.process_time() - start) / len(sampled)
    print(f"loop: {seconds:.2f} s of processor time a candidate, {len(sampled)} of them timed")
    candidates = len(sites) * len(RHOS)
    return candidates * host_of(model).n_layers * len(validation), candidates * seconds


def screened(model: nn.Module, parts: tasks.Splits, seed: int) -> tuple[float, laser.SearchResult]:
    """Seconds of the search with all that belongs to it, from the text of the items to the look at the test items."""
    surgery.forget(model)
    start = time.process_time()
    result = laser.search(model, parts, SITES, rhos=RHOS, strategy="screened", seed=seed, progress=False)
    return time.process_time() - start, result


def report(model: nn.Module, seconds: float, result: laser.SearchResult, looped: tuple[int, float]) -> None:
    """One search against the loop."""
    chosen, n = result.unedited if result.chosen is None else result.chosen, len(result.unedited.scores)
    in_full, passes = sum(len(trial.scores) == n for trial in result.trials), block_passes(model, result)
    print(
        f"{n} items, seed {result.seed}: {passes} block passes, {seconds:.1f} s of processor time; "
        f"{len(result.trials)} candidates tried, {in_full} in full; accuracy {result.unedited.scores.accuracy:.4f} -> "
        f"{chosen.scores.accuracy:.4f} by {chosen.candidate}"
    )
    fewer, less = looped[0] / passes, looped[1] / seconds
    print(f"  block passes: {fewer:.1f} x fewer than the loop, {verdict(fewer, 50)}")
    print(f"  processor time: {less:.1f} x less than the loop, {verdict(less, 50)}", flush=True)


def exhausted(model: nn.Module, pool: tasks.Task) -> laser.SearchResult:
    """Every candidate on every item of the pool."""
    others = tasks.Task("others", (tasks.MinimalPair("A dog ran.", "A dog run."),))
    parts = tasks.Splits(pool[:0], pool, others)
    return laser.search(model, parts, SITES, rhos=RHOS, progress=False)


def missed(whole: laser.SearchResult, part: laser.SearchResult) -> float:
    """How much less accurate the choice is than the best candidate, on the validation items of the search."""
    at = {item: number for number, item in enumerate(whole.unedited.scores.task.items)}
    items = [at[item] for item in part.unedited.scores.task.items]
    accuracy = {trial.candidate: float(trial.scores.correct[items].double().mean()) for trial in whole.trials}
    accuracy[None] = float(whole.unedited.scores.correct[items].double().mean())
    return max(accuracy.values()) - accuracy[None if part.chosen is None else part.chosen.candidate]


def compared(model: nn.Module, pool: tasks.Task, args: argparse.Namespace) -> None:
    """The loop, the search, and on request the exhaustive search, on one task."""
    print(f"{pool.name}, {len(pool)} items in all")
    split = partial(pool.split, screen=0.5 / 6, validation=5 / 6, test=0.5 / 6)
    looped = loop(model, split(seed=0).validation, args)
    results = []
    for seed in range(args.splits):
        seconds, result = screened(model, split(seed=seed), seed)
        report(model, seconds, result, looped)
        results.append(result)
    if args.exhaustive:
        whole = exhausted(model, pool)
        lost = [missed(whole, result) for result in results]
        close = sum(one <= 0.01 for one in lost)
        print(f"below the best candidate by {', '.join(f'{one:.4f}' for one in lost)}: within .01 on {close} splits,")
        print(f"  {verdict(close, 0.9 * len(lost))}")


def main() -> None:
    """Both tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, value in {"items": 4000, "sample": 11, "batch-size": 64, "splits": 1}.items():
        parser.add_argument(f"--{flag}", type=int, default=value)
    parser.add_argument("--tasks", nargs="+", choices=list(MADE), default=list(MADE))
    parser.add_argument("--exhaustive", action="store_true", help="also run every candidate on all items")
    parser.add_argument("--quick", action="store_true", help="400 items, for a first look that should not be quoted")
    args = parser.parse_args()
    if args.quick:
        args.items, args.sample = 400, 3
    folder = os.environ.get("SURGERY_STORY_MODEL")
    if folder is None:
        print("SURGERY_STORY_MODEL is not set: this benchmark needs a small trained model")
        return
    from transformer_lens.model_bridge import TransformerBridge

    warnings.simplefilter("ignore")
    print(machine("cpu"))
    model = TransformerBridge.boot_transformers(folder)
    for name in args.tasks:
        compared(model, MADE[name](round(args.items * 1.2)), args)


if __name__ == "__main__":
    main()
