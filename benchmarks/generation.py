"""How much faster `laser.search` is with a rule that generates than a loop over the candidates with a key-value cache.

The loop does, for each candidate, what has to be done and no more: it puts a truncated matrix in place, has the model's
own `generate` continue every prompt with its key-value cache, and takes the log-loss of the answers in one more pass.
It is timed on a sample of candidates, spread over layers, matrices and ρ, and taken for all. Ratios are given with and
without that last pass. Both sides have the same rule, the same items and batches of the same size.

Two models of GPT-2 small's size. In the stable one every token has a successor, which its layers, random, seldom
outvote: an edit leaves most of what is said as it is. With weights all random nearly every edit changes everything
soon, which is the worst case. The table says which share of the tokens was that of the unedited model.

The exhaustive search is run on every third layer; the screened one on all matrices, against the loop over all, in the
nearly random model only by `--only random`: it takes over ten minutes there.

    python benchmarks/generation.py                # GPT-2 small's size, 32 items
    python benchmarks/generation.py --quick        # a first look, on a small model
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import table
import timing
import torch
from table import Against, Aim, Ratio
from torch import Tensor, nn

import surgery
from analyses import laser
from analyses.laser.candidates import MLP, PAPER_RHOS
from analyses.scoring import Contains
from analyses.tasks import AnswerItem, Splits, Task
from hooks import match_sites, place_of
from surgery.ranks import rank_from_rho


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds on the clock and of processor time, which other work on the machine disturbs less."""

    wall: float
    processor: float

    @classmethod
    def now(cls, device: str) -> "Clock":
        """The time, once the device has finished what it was given."""
        timing.synchronise(device)
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: "Clock") -> "Clock":
        return Clock(self.wall - other.wall, self.processor - other.processor)

    def __str__(self) -> str:
        return f"{self.wall:.1f} s ({self.processor:.1f} s of processor time)"

    def on(self, device: str) -> float:
        """Processor time where that is what works, else the time on the clock."""
        return self.processor if torch.device(device).type == "cpu" else self.wall


def model_of(args: argparse.Namespace, successor: Tensor | None) -> nn.Module:
    """A random model; with `successor`, one in which the residual stream of a token points at the next one."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=args.layers, d_model=args.d_model, n_heads=max(1, args.d_model // 64), d_head=min(64, args.d_model),
        d_vocab=args.d_vocab, n_ctx=256, act_fn="gelu_new", normalization_type="LN", seed=0, device=args.device,
    )  # fmt: skip
    model = HookedTransformer(cfg).eval().requires_grad_(False)
    if successor is not None:
        W_E = torch.randn(args.d_vocab, args.d_model, generator=torch.Generator().manual_seed(1)) * args.confidence
        W_E, successor = W_E.to(args.device), successor.to(args.device)
        model.embed.W_E.copy_(W_E)
        model.unembed.W_U[:, successor] = W_E.T / W_E.norm(dim=1)
    return model


def items_of(n: int, args: argparse.Namespace, successor: Tensor, seed: int) -> Task:
    """Prompts of equal length; the answer of every other one comes as the third token of the chain of successors."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(args.d_vocab, (n, args.pos), generator=generator).tolist()
    others = torch.randint(args.d_vocab, (n,), generator=generator).tolist()
    chain = successor[successor[successor[torch.tensor(prompts)[:, -1]]]].tolist()
    answers = [chain[at] if at % 2 else others[at] for at in range(n)]
    return Task("chains", tuple(AnswerItem(tuple(p), ((a,),)) for p, a in zip(prompts, answers, strict=True)))


@torch.no_grad()
def one_candidate(model: nn.Module, site: str, rho: float, task: Task, args: argparse.Namespace) -> tuple[Clock, Clock]:
    """Generation, and the pass for the log-loss, under one reduction, the straightforward way."""
    place = place_of(model, site)
    weight = place.slots[0].registered()
    assert weight is not None
    before = weight.clone()
    start = Clock.now(args.device)
    U, S, V = torch.svd_lowrank(W := place.matrix(), q=rank_from_rho(rho, min(W.shape)), niter=2)
    weight.copy_(place.stored((U * S) @ V.mT))
    tokens = torch.tensor([item.context for item in task.items], device=args.device)
    answers = torch.tensor([item.right[0][0] for item in task.items], device=args.device)
    settings = {"do_sample": False, "stop_at_eos": False, "verbose": False, "use_past_kv_cache": True}
    for rows, wanted in zip(tokens.split(args.batch_size), answers.split(args.batch_size), strict=True):
        said = model.generate(  # type: ignore[operator]
            rows, max_new_tokens=args.new_tokens, return_type="tokens", **settings
        )
        (said[:, args.pos :] == wanted[:, None]).any(1).sum()
    generated = Clock.now(args.device) - start
    for rows, wanted in zip(tokens.split(args.batch_size), answers.split(args.batch_size), strict=True):
        model(rows)[:, -1].log_softmax(-1).gather(1, wanted[:, None])
    both = Clock.now(args.device) - start
    weight.copy_(before)
    return generated, both


def loop(model: nn.Module, task: Task, args: argparse.Namespace) -> tuple[Clock, Clock]:
    """The mean over a sample of candidates."""
    sites = [str(site) for site in match_sites(model, MLP)]
    sampled = [(sites[((2 * i + 1) * len(sites)) // (2 * args.sample)], PAPER_RHOS[i % 7]) for i in range(args.sample)]
    one_candidate(model, *sampled[0], task[:2], args)
    taken = [one_candidate(model, *candidate, task, args) for candidate in sampled]
    mean = [
        Clock(sum(c.wall for c in column) / args.sample, sum(c.processor for c in column) / args.sample)
        for column in zip(*taken, strict=True)
    ]
    print(f"  loop: a candidate takes {mean[0]}, with its log-loss {mean[1]}", flush=True)
    return mean[0], mean[1]


def in_common(result: laser.SearchResult) -> float:
    """The share of the generated tokens before which, and at which, a trial says what the unedited model says."""
    plain = dict(zip(result.unedited.scores.task.items, result.unedited.outcome.generated, strict=True))
    same = total = 0
    for trial in result.trials:
        for item, said in zip(trial.scores.task.items, trial.outcome.generated, strict=True):
            pairs = zip(said, plain[item], strict=False)
            same += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            total += len(said)
    return same / total


def compare(name: str, args: argparse.Namespace) -> None:
    """The table of one model."""
    successor = torch.randperm(args.d_vocab, generator=torch.Generator().manual_seed(2))
    model = model_of(args, successor if name == "stable" else None)
    parts = Splits(*(items_of(n, args, successor, seed) for seed, n in enumerate((args.items, args.items, 8))))
    table.section(f"{name} model", f"{args.layers} layers of {args.d_model}, {args.items} items of {args.pos} tokens")
    generation, both = loop(model, parts.validation, args)
    every_third = "blocks.{" + ",".join(str(layer) for layer in range(1, args.layers, 3)) + "}.mlp.W_{in,out}"
    searches: dict[Literal["exhaustive", "screened"], tuple[str, tuple[float, ...]]] = {
        "exhaustive": (every_third, PAPER_RHOS[:: 1 if args.quick else 2]),
        "screened": (MLP, PAPER_RHOS),
    }
    if name == "random" and args.only is None:  # over ten minutes
        del searches["screened"]
    for strategy, (sites, rhos) in searches.items():
        surgery.forget(model)
        start = Clock.now(args.device)
        result = laser.search(
            model, parts, sites, rhos=rhos, strategy=strategy, rule=Contains(args.new_tokens),
            batch_size=args.batch_size, progress=False,
        )  # fmt: skip
        took = Clock.now(args.device) - start
        n = len(match_sites(model, sites)) * len(rhos)
        record(strategy, n, took, loops=(generation, both), result=result, args=args)


def record(
    strategy: str,
    n: int,
    took: Clock,
    *,
    loops: tuple[Clock, Clock],
    result: laser.SearchResult,
    args: argparse.Namespace,
) -> None:
    """The figures of one search: against the loop, with the log-loss and without, and how much stays as it was."""
    ours, (alone, both) = took.on(args.device), (n * loop.on(args.device) for loop in loops)
    unit = "s of processor time" if torch.device(args.device).type == "cpu" else "s"
    clock = f"{took.wall:.3g} s on the clock, {n * loops[1].wall / took.wall:.3g} x as fast"
    table.figure(
        f"{strategy}, {n} candidates", ours, unit, against=Against("loop with log-loss, extrapolated", both),
        ratio=Ratio(both / ours, "x as fast"), aim=Aim(5), remark=clock,
    )  # fmt: skip
    table.figure(
        f"{strategy}, against generation alone", ours, unit,
        against=Against("loop without log-loss, extrapolated", alone),
        ratio=Ratio(alone / ours, "x as fast"),
    )  # fmt: skip
    accuracy = result.unedited.scores.accuracy
    table.figure(
        f"{strategy}, share of tokens as without an edit", in_common(result), "of 1",
        remark=f"unedited accuracy {accuracy:.2f}",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, value in {
        "layers": 12, "d-model": 768, "d-vocab": 50257, "items": 32, "pos": 16, "new-tokens": 10, "batch-size": 32,
        "sample": 4,
    }.items():  # fmt: skip
        parser.add_argument(f"--{flag}", type=int, default=value)
    parser.add_argument("--confidence", type=float, default=2.0, help="how long the embeddings of the stable model are")
    parser.add_argument("--only", choices=["stable", "random"], help="one of the models")
    parser.add_argument("--quick", action="store_true", help="a small model, for a first look")
    table.flags(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.layers, args.d_model, args.d_vocab = 4, 128, 2000
    warnings.simplefilter("ignore")
    with table.recorded(__file__, args):
        for name in ("stable", "random") if args.only is None else (args.only,):
            compare(name, args)


if __name__ == "__main__":
    main()
