"""Whether better scores prune better: the paper's against curvature, exact effects and controls, at one budget.

python benchmarks/eigenpruning_scores.py [--quick] [--models 5] [--splits 1]

Every score chooses as many components of the same matrices, found on the same items; accuracy is that on the other
half of the items. The models are trained here (once): products and sums with noisy labels, and noisy recall.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import table
import torch
from torch import Tensor, nn

import surgery
from analyses import arithmetic, attribution, eigenpruning, recall, tasks
from analyses.attribution import Effects
from analyses.eigenpruning import Compensation, Method
from analyses.statistics import bootstrap_interval

CACHE = Path(".surgery-cache")
PAPER = "the paper's: first order, maximum"


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model, its task, and for every prompt one in which the token that asks is another."""

    name: str
    model: nn.Module
    task: tasks.Task
    pairs: dict


@dataclass(frozen=True, slots=True)
class Budget:
    """What is removed, how much of it, and what is put in its place."""

    sites: str
    fraction: float
    compensation: Compensation


KEYS = Budget("blocks.*.attn.W_K[*]", 0.2, "mean")
OUTPUTS = Budget("blocks.*.mlp.W_out", 0.05, "none")


@dataclass(frozen=True, slots=True)
class Cell:
    """What a score's choice did to one model on one split."""

    accuracy: float
    base: float
    log_loss: float
    outcome: str


def joint(model: nn.Module, tokens: Tensor, metric: object, sites: Sequence[str], **settings: object) -> Effects:
    """Shares of what removing all of these matrices does, by integrated gradients."""
    settings.pop("basis")
    spec = {site: surgery.Zero() for site in sites}
    return attribution.by_path(model, tokens, metric, spec, steps=8, max_steps=8, **settings)  # type: ignore[arg-type]


def methods(budget: Budget, pairs: dict) -> dict[str, Method]:
    """Every score, by name."""
    made = partial(Method, compensation=budget.compensation)
    exact = partial(attribution.by_ablation, replacement="mean" if budget.compensation == "mean" else "zero")
    return {
        PAPER: made(reduce="max", corrupt="previous"),
        "first order, mean": made(reduce="mean", corrupt="previous"),
        "first order, mean of |score|": made(reduce="mean_abs", corrupt="previous"),
        "first order, mean, asking token replaced": made(reduce="mean", corrupt=pairs),
        "gradient of removal": made(reduce="mean", score=attribution.by_gradient),
        "Fisher": made(reduce="mean", score=attribution.by_fisher),
        "curvature": made(reduce="mean", score=attribution.by_curvature),
        "exact, one at a time": made(reduce="mean", score=exact),
        "joint, path to all removed": made(reduce="mean", score=joint),
    }


def cells(subject: Subject, budget: Budget, seed: int) -> Iterator[tuple[str, Cell]]:
    """What each score's choice, and each control, did on one split."""
    parts = subject.task.split(screen=0.5, validation=0.0, test=0.5, seed=seed)
    for name, method in methods(budget, subject.pairs).items():
        report = eigenpruning.Report(draws=3 if name == PAPER else 1)
        found = eigenpruning.prune(
            subject.model, parts, budget.sites, fraction=budget.fraction, method=method, report=report, seed=seed,
            progress=False,
        )  # fmt: skip
        base = found.scores["base"].accuracy

        def cell(*variants: str, outcome: str = "", found=found, base: float = base) -> Cell:
            scores = [found.scores[variant] for variant in variants]
            accuracy, loss = (sum(values) / len(scores) for values in (
                [s.accuracy for s in scores], [s.log_loss.mean().item() for s in scores],
            ))  # fmt: skip
            return Cell(accuracy, base, loss, outcome)

        yield name, cell("pruned", outcome=found.verdict().outcome)
        if name == PAPER:
            yield "control: its sign flipped", cell("sign flipped")
            yield "control: smallest singular values", cell("smallest s")
            yield "control: random, mean of three", cell("random 1", "random 2", "random 3")


def results(subjects: Sequence[Subject], budget: Budget, splits: int) -> pd.DataFrame:
    """A row for each score: accuracy, its change from the unpruned model, and its lead over the paper's score."""
    found: dict[str, list[Cell]] = {}
    for subject in subjects:
        for seed in range(splits):
            for name, cell in cells(subject, budget, seed):
                found.setdefault(name, []).append(cell)
    model = torch.arange(len(subjects)).repeat_interleave(splits)
    paper, rows = found[PAPER], {}
    for name, of in found.items():
        outcomes = Counter(cell.outcome for cell in of)
        rows[name] = {
            "accuracy": sum(cell.accuracy for cell in of) / len(of),
            "base": sum(cell.base for cell in of) / len(of),
            "change": interval([cell.accuracy - cell.base for cell in of], model),
            "lead over the paper's": "" if name == PAPER else interval(
                [cell.accuracy - other.accuracy for cell, other in zip(of, paper, strict=True)], model
            ),
            "ahead, behind": "" if name == PAPER else ahead(of, paper),
            "log-loss": f"{sum(cell.log_loss for cell in of) / len(of):.2f}",
            "beyond its controls": f"{outcomes['beyond']} of {len(of)}" if not outcomes[""] else "",
        }  # fmt: skip
    return pd.DataFrame(rows).T


def record(frame: pd.DataFrame) -> None:
    """A figure for each score; what else is known of it stands in the remark."""
    rows = frame.to_dict("index")
    table.figure("nothing removed", rows[PAPER]["base"], "accuracy")
    for name, row in rows.items():
        lead, ahead = row["lead over the paper's"], row["ahead, behind"]
        words = [f"lead {lead}", "ahead in {}, behind in {}".format(*ahead.split(", "))] if lead else []
        words += [f"log-loss {row['log-loss']}"]
        words += [f"beyond its controls in {row['beyond its controls']}"] if row["beyond its controls"] else []
        table.figure(str(name), row["accuracy"], "accuracy", remark="; ".join(words))


def ahead(of: Sequence[Cell], paper: Sequence[Cell]) -> str:
    """In how many cells a score is ahead of the paper's, and in how many behind."""
    leads = [cell.accuracy - other.accuracy for cell, other in zip(of, paper, strict=True)]
    return f"{sum(lead > 0 for lead in leads)}, {sum(lead < 0 for lead in leads)}"


def interval(values: Sequence[float], model: Tensor) -> str:
    """The mean, and its 95 % interval over models: all splits of a model are drawn as one."""
    rows = torch.tensor(values, dtype=torch.double)[:, None]
    low, high = bootstrap_interval(rows, clusters=model).flatten().tolist()
    return f"{float(rows.mean()):+.2f} [{low:+.2f}, {high:+.2f}]"


def calculators(models: int, steps: int) -> Iterator[Subject]:
    """Transformers that learned products or sums from labels of which half are wrong."""
    for operation in ("x", "+"):
        for seed in range(models):
            task = arithmetic.ArithmeticTask(operation, limit=12)
            model = arithmetic.bridge(task, seed=seed)
            arithmetic.train(model, task, steps=steps, seed=seed, cache=CACHE, progress=False)
            items = task.items()
            pairs = {prompt: (*prompt[:-1], task.d_vocab - 2) for prompt in map(tuple, task.prompts.tolist())}
            yield Subject(f"i {operation} j", model, items, pairs)


def recallers(models: int, steps: int) -> Iterator[Subject]:
    """Models of noisy recall; what asks is the trigger at the end."""
    task = recall.RecallTask.synthetic()
    for seed in range(models):
        model = recall.bridge(task, seed=seed)
        recall.train(model, task, steps=steps, seed=seed, cache=CACHE, progress=False)
        batch = task.sample(16, seed=5, alpha=0.0)
        items = tasks.recall(batch.tokens, batch.answers, scored=batch.scored, distractors=[task.noise_token])
        triggers = task.triggers if isinstance(task.triggers, tuple) else ()
        others = [t for t in range(task.d_vocab) if t not in (*triggers, task.noise_token)]
        prompts = [item.prompt for item in items.items if isinstance(item, tasks.AnswerItem)]
        pairs = {prompt: (*prompt[:-1], others[n % len(others)]) for n, prompt in enumerate(prompts)}
        yield Subject("recall", model, items, pairs)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=5, help="of products and of sums each; 2 of recall at most")
    parser.add_argument("--splits", type=int, default=1, help="of the items of each model")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--quick", action="store_true", help="one model of each, one split")
    table.flags(parser)
    args = parser.parse_args(argv)
    models, splits = (1, 1) if args.quick else (args.models, args.splits)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    several: list[tuple[str, Callable[[], Iterator[Subject]], dict[str, Budget]]] = [
        ("products and sums", partial(calculators, models, args.steps), {"W_K": KEYS, "W_out": OUTPUTS}),
        ("noisy recall", partial(recallers, min(models, 2), args.steps), {"W_out": OUTPUTS}),
    ]
    with table.recorded(__file__, args):
        for name, made, budgets in several:
            subjects = list(made())
            if args.device != "cpu":  # trained on the CPU, so that they are the same models on every device
                subjects = [replace(subject, model=subject.model.to(args.device)) for subject in subjects]
            for matrix, budget in budgets.items():
                table.section(
                    f"{name}, {budget.fraction:.0%} of {matrix}",
                    f"components of {budget.sites}, compensation {budget.compensation}; {len(subjects)} models, "
                    f"{splits} splits each, mean accuracy, 95 % intervals over models",
                )
                record(results(subjects, budget, splits))


if __name__ == "__main__":
    main()
