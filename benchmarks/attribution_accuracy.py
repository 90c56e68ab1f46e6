"""How well each attribution predicts what removing a component does, against removing it, on small trained models.

python benchmarks/attribution_accuracy.py [--quick] [--device cuda] [sizes, see --help]

The first model is a character model that this script trains (once). With SURGERY_STORY_MODEL set to a folder that
holds a transformers checkpoint, a second one is read from there and measured on text that it writes itself.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from math import isnan
from pathlib import Path
from statistics import median

import character_lm
import pandas as pd
import table
import timing
import torch
from table import Aim
from torch import Tensor, nn

import surgery
from analyses import attribution, metrics
from analyses.attribution import Effects, Selection
from analyses.metrics import Metric
from hooks import Site
from hooks.fingerprints import fingerprint
from surgery import Decompositions

CACHE = Path(".surgery-cache")
AIMS = {("loss", "mlp"): 0.95, ("loss", "attn"): 0.93, ("logit", "mlp"): 0.93, ("logit", "attn"): 0.95}
"""Spearman of `by_curvature` with 16 probes for each type of matrix, median over matrices."""

READOUT, READOUT_LOWEST = 0.95, 0.85
"""Spearman of `by_readout`, median over all matrices, and lowest."""

BUDGET, STRONGEST, FOUND = 0.05, 20, 19
"""Of the truly strongest components so many are to be ablated by a screening for this part of ablating everything."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, the text it is measured on, and a name for files."""

    name: str
    model: nn.Module
    tokens: Tensor
    device: str

    def metric(self, name: str) -> Metric:
        """The loss at every position, or the logit or log-probability of the true next token at the last one."""
        if name == "loss":
            return metrics.loss(metrics.next_token_labels(self.tokens[:, :-1]))
        return {"logit": metrics.logit, "log-probability": metrics.log_prob}[name](self.tokens[:, -1])


@dataclass(frozen=True, slots=True)
class Found:
    """What a method predicts, and what that took."""

    effects: Effects
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """How well a method did on one matrix."""

    method: str
    site: str
    spearman: float
    error: float

    @property
    def matrix(self) -> str:
        """Its type, such as W_out."""
        return Site.parse(self.site).matrix


def compare(subject: Subject, name: str, svds: Decompositions, *, probes: int, exact_curvature: int) -> None:
    """The table of one metric: every method against exact leave-one-out."""
    truth = _leave_one_out(subject, name, svds)
    n = sum(len(units) for units in truth.effects.units.values())
    print(f"\n{subject.name}, {name}: {n} components of {len(svds)} matrices, "
          f"{len(subject.tokens)} x {subject.tokens.shape[1] - 1} tokens. Exact leave-one-out: "
          f"{truth.effects.passes:.0f} passes, {truth.seconds:.0f} s")  # fmt: skip
    methods = dict(_methods(subject, name, svds, probes=probes, exact_curvature=exact_curvature))
    rows = [row for method, found in methods.items() for row in _scores(method, found.effects, truth.effects)]
    strengths = list(_strengths(truth.effects))
    _print_table([*rows, *strengths], methods)
    _record(f"{subject.name}, {name}", [*rows, *strengths], {**methods, "exact leave-one-out": truth})
    table.section(f"{subject.name}, {name}, aims", "over matrices")
    _print_verdict([row for row in rows if row.method == f"curvature, {probes} by type"], name)
    _print_readout([row for row in rows if row.method == f"readout, {8 if name == 'loss' else 4} draws"])


def screening(subject: Subject, name: str, svds: Decompositions) -> None:
    """How many of the strongest components a screening with a budget ablates, for three seeds of its estimate."""
    truth = _leave_one_out(subject, name, svds)
    strongest, total = truth.effects.top(STRONGEST), truth.effects.passes
    asked = subject.model, subject.tokens[:, :-1], subject.metric(name), list(svds)
    call, plain = partial(attribution.screen, *asked), attribution.by_readout(*asked, svds=svds, progress=False)
    n = sum(map(len, truth.effects.units.values()))
    table.section(
        f"{subject.name}, {name}, screening",
        f"how many of the strongest {STRONGEST} of {n} components are found for {BUDGET:.0%} of the {total:.0f} passes "
        "of ablating all; median, lowest and highest of three seeds",
    )
    print(f"  ablating the largest by readout: {_confirmed(strongest, plain, total)}")
    counts = []
    for seed in range(3):
        seconds, found = timing.timed(
            partial(call, budget=BUDGET, choose=0, seed=seed, svds=svds, progress=False), device=subject.device
        )
        counts.append(_in_both(strongest, Selection(found.exact.units)))
        spent = found.estimated.passes + found.exact.passes
        rounds = ", then ".join(f"{one.units} on {one.examples} examples" for one in found.rounds)
        print(f"  screen(budget={BUDGET}), seed {seed}: {counts[-1]}; {spent:.1f} passes, {spent / total:.1%}; "
              f"{seconds:.1f} s (ablating all took {truth.seconds:.0f} s, maybe another day); {rounds}")  # fmt: skip
    table.figure(
        f"found of {STRONGEST}", median(counts), "components", lowest=min(counts), highest=max(counts), aim=Aim(FOUND)
    )


def _confirmed(strongest: Selection, estimated: Effects, total: float) -> int:
    """How many of these are ablated, where an estimate says in which order, until the budget is spent."""
    n_layers = 1 + max(Site.parse(site).layer for site in estimated.sites)
    left, k, ordered = BUDGET * total - 1 - estimated.passes, 0, estimated.to_dataframe()
    ordered = ordered.sort_values("effect", key=lambda effect: -effect.abs(), kind="stable")
    for layer in ordered["layer"]:
        left -= (n_layers - layer) / n_layers
        if left < 0:
            break
        k += 1
    return _in_both(strongest, estimated.top(k))


def _in_both(one: Selection, other: Selection) -> int:
    return sum(unit in other.get(site, ()) for site, units in one.items() for unit in units)


def _methods(
    subject: Subject, name: str, svds: Decompositions, *, probes: int, exact_curvature: int
) -> Iterator[tuple[str, Found]]:
    model, tokens, metric = subject.model, subject.tokens[:, :-1], subject.metric(name)

    def run(method: Callable[..., Effects], *given: object, sites: object = None, **options: object) -> Found:
        call = partial(method, model, tokens, *given, sites or list(svds), svds=svds, progress=False, **options)
        seconds, effects = timing.timed(call, device=subject.device)
        return Found(effects, seconds)

    yield "gradient", run(attribution.by_gradient, metric)
    for draws in (4, 8) if name == "loss" else (4,):
        yield f"readout, {draws} draws", run(attribution.by_readout, metric, draws=draws)
    if name == "loss":
        yield "Fisher, 4 draws", run(attribution.by_fisher, metrics.next_token_labels(tokens))
    yield f"curvature, {probes} by type", run(attribution.by_curvature, metric, draws=probes, share="type")
    yield f"curvature, {probes} for all", run(attribution.by_curvature, metric, draws=probes, share="all")
    if exact_curvature:
        some = _spaced(svds, exact_curvature)
        yield f"exact curvature of {exact_curvature}", run(attribution.by_exact_curvature, metric, sites=some)


def _leave_one_out(subject: Subject, name: str, svds: Decompositions) -> Found:
    """Exact effects, which take minutes: kept for the next time, together with how long they took."""
    tokens = subject.tokens
    marks = "".join([fingerprint(tokens.float().cpu()), *(parts.fingerprint for parts in svds.values())])
    path = CACHE / f"leave-one-out-{name}-{sha256(marks.encode()).hexdigest()[:16]}.safetensors"
    if path.exists():
        kept = Effects.load(path)
        return Found(kept, float(kept.method.split()[-2]))
    call = partial(attribution.by_ablation, subject.model, tokens[:, :-1], subject.metric(name), list(svds), svds=svds)
    seconds, effects = timing.timed(call, device=subject.device)
    effects = replace(effects, method=f"{effects.method}, took {seconds:.0f} s")
    CACHE.mkdir(parents=True, exist_ok=True)
    effects.save(path)
    return Found(effects, seconds)


def _scores(method: str, found: Effects, truth: Effects) -> Iterator[Row]:
    """A row for each matrix: Spearman and relative L2 error of the components that the method attributed."""
    for site in found.sites:
        kept = ~found[site].isnan()
        predicted, exact = found[site][kept].double(), truth[site][kept].double()
        error = float((predicted - exact).norm() / exact.norm())
        yield Row(method, site, spearman(predicted, exact), error)


def _strengths(truth: Effects) -> Iterator[Row]:
    """Singular values have no sign, so they are set against the size of the effects."""
    for site, S in truth.strengths.items():
        yield Row("s_i alone (sizes)", site, spearman(S.double(), truth[site].abs().double()), float("nan"))


def spearman(a: Tensor, b: Tensor) -> float:
    """The correlation of the ranks, equal values sharing theirs."""
    ranks = torch.tensor([pd.Series(x.tolist()).rank().tolist() for x in (a, b)], dtype=torch.float64)
    return float(torch.corrcoef(ranks)[0, 1])


def _spaced(svds: Decompositions, n: int) -> Selection:
    """Components of every matrix from the strongest to the weakest, evenly spaced."""
    return Selection({
        site: sorted({round(float(i)) for i in torch.linspace(0, parts.n_components - 1, min(n, parts.n_components))})
        for site, parts in svds.items()
    })  # fmt: skip


def _print_table(rows: Sequence[Row], methods: dict[str, Found]) -> None:
    types = list(dict.fromkeys(row.matrix for row in rows))
    print(
        "  Spearman over a matrix's components, median (lowest) over matrices; below it the relative L2 error, median"
    )
    print(f"  {'':24}" + "".join(f"{name:>16}" for name in types) + f"{'passes':>9}{'seconds':>9}")
    for method in dict.fromkeys(row.method for row in rows):
        cost = "" if method not in methods else f"{methods[method].effects.passes:9.0f}{methods[method].seconds:9.1f}"
        cells = [[row for row in rows if (row.method, row.matrix) == (method, name)] for name in types]
        correlations = [[row.spearman for row in cell] for cell in cells]
        print(f"  {method:24}" + "".join(f"{median(c):.3f} ({min(c):.2f})".rjust(16) for c in correlations) + cost)
        errors = [median(row.error for row in cell) for cell in cells]
        if not any(isnan(error) for error in errors):
            print(f"  {'':24}" + "".join(f"{error:16.2f}" for error in errors))


def _record(name: str, rows: Sequence[Row], methods: dict[str, Found]) -> None:
    """A figure for each method, the median over all matrices with the range of the types' medians; and its passes."""
    units: dict[str, table.Unit] = {"": "Spearman", ", relative error": "of 1"}
    for quantity, unit in units.items():
        table.section(name + quantity, "median over all matrices; lowest and highest median of a type of matrix")
        for method in dict.fromkeys(row.method for row in rows):
            among = [row for row in rows if row.method == method]
            values = {row.site: row.error if quantity else row.spearman for row in among}
            if quantity and any(isnan(value) for value in values.values()):  # a strength predicts no size
                continue
            by_type = [
                median(values[row.site] for row in among if row.matrix == of) for of in {r.matrix for r in among}
            ]
            table.figure(method, median(values.values()), unit, lowest=min(by_type), highest=max(by_type))
    table.section(f"{name}, passes")
    for method, found in methods.items():
        table.figure(method, found.effects.passes, "passes")


def _print_verdict(rows: Sequence[Row], name: str) -> None:
    """Whether the aims were met, and every matrix that is ranked worse than its aim."""
    for part, words in (("mlp", "MLP"), ("attn", "attention")) if (name, "mlp") in AIMS else ():
        aim, among = AIMS[name, part], [row for row in rows if Site.parse(row.site).part == part]
        middle = median(row.spearman for row in among)
        table.figure(f"{words} matrices by {among[0].method}: median", middle, "Spearman", aim=Aim(aim))
        poor = sorted((row for row in among if row.spearman < aim), key=lambda row: row.spearman)
        if poor:
            listed = ", ".join(f"{row.site} {row.spearman:.2f} (error {row.error:.2f})" for row in poor)
            print(f"    below that, confirm these exactly: {listed}")


def _print_readout(rows: Sequence[Row]) -> None:
    """Whether the readout met its aims, over all matrices."""
    found = [row.spearman for row in rows]
    for words, value, aim in (("median", median(found), READOUT), ("lowest", min(found), READOUT_LOWEST)):
        table.figure(f"all matrices by {rows[0].method}: {words}", value, "Spearman", aim=Aim(aim))


def character_model(*, steps: int, n: int, pos: int, device: str) -> Subject:
    """The character model on held-out text of its kind; the last token of a row is only a label."""
    model = character_lm.trained(CACHE, steps=steps).to(device)
    return Subject("character model", model, character_lm.held_out(n, pos + 1).to(device), device)


def story_model(folder: str, *, n: int, pos: int, device: str) -> Subject:
    """A pretrained model on text drawn from itself."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(folder, device=device)
    return Subject("story model", model, _own_text(model, n, pos + 1, device), device)


@torch.no_grad()
def _own_text(model: nn.Module, n: int, pos: int, device: str) -> Tensor:
    """Samples at temperature 1 from the beginning-of-text token on, which is token 1 in Llama's vocabulary."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.ones(n, 1, dtype=torch.long, device=device)
    while tokens.shape[1] < pos:
        prediction = model(tokens)[:, -1].float().softmax(-1).cpu()
        tokens = torch.cat([tokens, torch.multinomial(prediction, 1, generator=generator).to(device)], dim=1)
    return tokens


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=800, help="training steps of the character model")
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--positions", type=int, default=32)
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument(
        "--exact-curvature", type=int, default=0, help="components of each matrix to do exactly, 0 for none"
    )
    parser.add_argument("--sites", default="*", help="which matrices")
    table.flags(parser)
    parser.add_argument("--screen", action="store_true", help="only how many of the strongest a screening finds")
    parser.add_argument("--quick", action="store_true", help="8 examples, 100 steps, a few matrices")
    args = parser.parse_args(argv)
    n, sites = (8, "blocks.1.*") if args.quick else (args.examples, args.sites)
    steps = min(args.steps, 100) if args.quick else args.steps
    with table.recorded(__file__, args):
        subjects = [character_model(steps=steps, n=n, pos=args.positions, device=args.device)]
        if folder := os.environ.get("SURGERY_STORY_MODEL"):
            subjects.append(story_model(folder, n=n, pos=args.positions, device=args.device))
        for subject in subjects:
            svds = surgery.decompose(subject.model, sites, progress=False)
            for name in ("loss", "logit", "log-probability"):
                if not args.screen:
                    compare(subject, name, svds, probes=args.probes, exact_curvature=args.exact_curvature)
                screening(subject, name, svds)


if __name__ == "__main__":
    main()
