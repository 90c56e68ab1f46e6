"""The numbers that a rebuild must not change: written to a file before it, compared with that file after it.

python benchmarks/reference_numbers.py before.json              # writes
python benchmarks/reference_numbers.py now.json --against before.json

On one thread, with models that are trained with a seed: the demo's table; the recall scores; effects by each method of
attribution on every host that this TransformerLens has; LASER's exhaustive and screened search; a curve over ranks;
Eigenpruning. Ends with exit status 1 if a number differs by more than 1e-6 (relative to it where it is above 1).
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

import surgery
from analyses import arithmetic, attribution, eigenpruning, laser, metrics, recall
from surgery import Drop, KeepTop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `examples` is installed nowhere
from examples.demo.experiment import run as run_demo

CACHE = ".surgery-cache"
TOLERANCE = 1e-6
SITES = ["blocks.1.mlp.W_out", "blocks.1.attn.W_K"]
SPEC = {"blocks.1.mlp.W_out": Drop([0, 1, 2])}

FEW = attribution.Selection({SITES[0]: [0, 1, 2, 3]})

METHODS: dict[str, Callable[..., attribution.Effects]] = {
    "by_gradient": lambda m, t, metric: attribution.by_gradient(m, t, metric, SITES, progress=False),
    "by_fisher": lambda m, t, loss: attribution.by_fisher(m, t, loss.labels, SITES, progress=False),
    "by_curvature": lambda m, t, metric: attribution.by_curvature(m, t, metric, SITES, draws=2, progress=False),
    "by_exact_curvature": lambda m, t, metric: attribution.by_exact_curvature(m, t, metric, FEW, progress=False),
    "by_ablation": lambda m, t, metric: attribution.by_ablation(m, t, metric, SITES, progress=False),
    "by_path": lambda m, t, metric: attribution.by_path(m, t, metric, SPEC, progress=False),
    "by_shapley": lambda m, t, metric: attribution.by_shapley(m, t, metric, SPEC, draws=4, progress=False),
}


def of_the_demo() -> Iterator[tuple[str, list[float]]]:
    """Every cell of the demo's table."""
    found = run_demo(cache=CACHE, progress=False)
    for row in found.rows:
        for metric in ("p_correct", "p_noise", "accuracy"):
            yield f"demo: {row.label}, {row.control or 'the edit'}, {metric}", row.values(metric)


def of_attribution() -> Iterator[tuple[str, list[float]]]:
    """Recall scores, and the mean effects by each method, on each host with the same trained weights."""
    task = recall.RecallTask.synthetic()
    trained = recall.bridge(task)
    recall.train(trained, task, cache=CACHE, progress=False)
    for host, model in hosts(task, trained).items():
        scores = recall.evaluate(model, task, progress=False)
        yield f"{host}: recall", [scores.p_correct, scores.p_noise, scores.accuracy]
        tokens = task.sample(8, seed=1, alpha=0.0).tokens
        loss = metrics.loss(metrics.next_token_labels(tokens))
        for name, method in METHODS.items():
            effects = method(model, tokens, loss)
            for site in effects.sites:
                yield f"{host}: {name}, {site}", effects[site].nan_to_num(0.0).tolist()


def hosts(task: recall.RecallTask, trained: nn.Module) -> dict[str, nn.Module]:
    """The trained model on the bridge and, where transformer-lens has it, as HookedTransformer."""
    found = {"bridge": trained}
    with suppress(ImportError):
        found["hooked"] = recall.load(recall.model(task), recall.weights(trained))
    return found


def of_the_papers() -> Iterator[tuple[str, list[float]]]:
    """Searches, a curve over ranks and Eigenpruning on a model that learned a multiplication table with mistakes."""
    task = arithmetic.ArithmeticTask("x", limit=12)
    model = arithmetic.bridge(task)
    arithmetic.train(model, task, cache=CACHE, progress=False)
    items = task.items()
    for strategy in ("exhaustive", "screened"):
        frame = laser.search(model, items, seed=0, strategy=strategy, progress=False).to_dataframe()
        numbers = frame.select_dtypes("number").fillna(0.0)
        for column in numbers:
            yield f"laser, {strategy}: {column}", numbers[column].astype(float).tolist()
    curve = laser.rank_curve(model, items, "blocks.1.mlp.W_out", progress=False).to_dataframe()
    for column in curve.select_dtypes("number"):
        yield f"rank curve: {column}", curve[column].fillna(0.0).astype(float).tolist()
    pruned = eigenpruning.prune(model, items, progress=False)
    for name, scores in pruned.scores.items():
        yield f"eigenpruning: {name}", [scores.summary().accuracy, scores.summary().log_loss]
    with surgery.apply(model, {"blocks.*.mlp.W_*": KeepTop(rho=0.5)}, progress=False) as operation:
        report = operation.to_dataframe().select_dtypes("number")
    for column in report:
        yield f"report: {column}", report[column].fillna(0.0).astype(float).tolist()


def numbers() -> dict[str, list[float]]:
    """All of them by name."""
    return {
        name: list(map(float, values))
        for part in (of_the_demo, of_attribution, of_the_papers)
        for name, values in part()
    }


def differences(now: dict[str, list[float]], before: dict[str, list[float]]) -> list[str]:
    """A line for everything that is missing, new or not the same."""
    lines = [f"missing: {name}" for name in before if name not in now]
    lines += [f"new: {name}" for name in now if name not in before]
    for name in now.keys() & before.keys():
        a, b = now[name], before[name]
        if len(a) != len(b):
            lines.append(f"{name}: {len(a)} numbers instead of {len(b)}")
            continue
        apart = max((abs(x - y) / max(1.0, abs(y)) for x, y in zip(a, b, strict=True)), default=0.0)
        if not apart <= TOLERANCE:
            lines.append(f"{name}: differs by up to {apart:.3g}")
    return sorted(lines)


def main(argv: list[str] | None = None) -> int:
    """Writes the numbers and, if asked, compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    now = numbers()
    args.out.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    print(f"{len(now)} series, {sum(map(len, now.values()))} numbers: {args.out}")
    if args.against is None:
        return 0
    found = differences(now, json.loads(args.against.read_text(encoding="utf-8")))
    print("\n".join(found) or f"the same as {args.against}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
