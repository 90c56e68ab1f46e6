"""How much faster `laser.search` is than a straightforward loop over the same candidates, in one run.

The loop does, for each candidate, what LASER's paper says and no more: it copies the model, puts a randomised
truncated SVD in place of the matrix, and runs all items through the whole copy. It is timed on a sample of candidates,
one of each ρ and spread over layers and matrices, and taken for all; the exhaustive search is run on every third layer.
Both sides score the same validation items; the
few test items are timed too, on the side of `laser.search` only.

    python benchmarks/laser.py                      # the shape of GPT-2 small, 256 items
    python benchmarks/laser.py --every 1            # the exhaustive search on all layers
    python benchmarks/laser.py --quick              # a first look, on a small model
"""

import argparse
import copy
import time
import warnings
from collections.abc import Sequence
from typing import Literal

import table
import timing
import torch
from table import Against, Aim, Ratio
from torch import Tensor, nn

import surgery
from analyses import laser
from analyses.laser.candidates import MLP
from analyses.tasks import AnswerItem, Splits, Task
from hooks import match_sites, place_of
from surgery.ranks import rank_from_rho

Strategy = Literal["exhaustive", "screened"]
AIMS: dict[Strategy, Aim] = {"exhaustive": Aim(2.5), "screened": Aim(20)}


def model_of(args: argparse.Namespace) -> nn.Module:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=args.layers, d_model=args.d_model, n_heads=max(1, args.d_model // 64), d_head=min(64, args.d_model),
        d_vocab=args.d_vocab, n_ctx=1024, act_fn="gelu_new", normalization_type="LN", seed=0,
        device=args.device,
    )  # fmt: skip
    return HookedTransformer(cfg).eval()


def items_of(n: int, args: argparse.Namespace, seed: int) -> Task:
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(args.d_vocab, (n, args.pos), generator=generator).tolist()
    answers = torch.randint(args.d_vocab, (n,), generator=generator).tolist()
    pairs = zip(prompts, answers, strict=True)
    return Task("random", tuple(AnswerItem(tuple(prompt), ((answer,),)) for prompt, answer in pairs))


@torch.no_grad()
def one_candidate(model: nn.Module, site: str, rho: float, tokens: Tensor, answers: Tensor, batch_size: int) -> float:
    """The accuracy of one reduction, the straightforward way."""
    edited = copy.deepcopy(model)
    place = place_of(edited, site)
    W = place.matrix()
    U, S, V = torch.svd_lowrank(W, q=rank_from_rho(rho, min(W.shape)), niter=2)
    weight = place.slots[0].registered()
    assert weight is not None
    weight.copy_(place.stored((U * S) @ V.mT))
    right = 0
    for rows, wanted in zip(tokens.split(batch_size), answers.split(batch_size), strict=True):
        logits = edited(rows)[:, -1]
        right += int((logits.argmax(-1) == wanted).sum())
        logits.log_softmax(-1).gather(1, wanted[:, None])
    return right / len(tokens)


def loop(model: nn.Module, validation: Task, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds a candidate, on the clock and of processor time, from a stratified sample."""
    tokens = torch.tensor([item.context for item in validation.items], device=args.device)
    answers = torch.tensor([item.right[0][0] for item in validation.items], device=args.device)
    sites = [str(site) for site in match_sites(model, MLP)]
    sampled = [(sites[(i * len(sites)) // args.sample], laser.PAPER_RHOS[i % 7]) for i in range(args.sample)]
    one_candidate(model, *sampled[0], tokens[:4], answers[:4], 4)
    seconds = []
    for site, rho in sampled:
        start = now(args.device)
        one_candidate(model, site, rho, tokens, answers, args.batch_size)
        seconds.append(since(start, args.device))
        print(f"  loop: {site} ρ {rho}: {seconds[-1][0]:.2f} s, {seconds[-1][1]:.2f} s of processor time", flush=True)
    wall, processor = (sum(column) / len(seconds) for column in zip(*seconds, strict=True))
    return wall, processor


def now(device: str) -> tuple[float, float]:
    timing.synchronise(device)
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float], device: str) -> tuple[float, float]:
    wall, processor = now(device)
    return wall - start[0], processor - start[1]


def compare(
    model: nn.Module,
    parts: Splits,
    strategy: Strategy,
    sites: str,
    *,
    each: tuple[float, float],
    args: argparse.Namespace,
) -> None:
    """The figures of one search, against a loop that takes so many seconds a candidate."""
    surgery.forget(model)
    candidates = len(match_sites(model, sites)) * len(laser.PAPER_RHOS)
    start = now(args.device)
    result = laser.search(model, parts, sites, strategy=strategy, progress=False)
    wall, processor = since(start, args.device)
    table.figure(
        f"{strategy}, {candidates} candidates", wall, "s", against=Against("loop, extrapolated", each[0] * candidates),
        ratio=Ratio(each[0] * candidates / wall, "x as fast"), aim=AIMS[strategy],
        remark=f"{result.items_run} items run",
    )  # fmt: skip
    if torch.device(args.device).type != "cpu":
        return
    table.figure(
        f"{strategy}, processor time", processor, "s of processor time",
        against=Against("loop, extrapolated", each[1] * candidates),
        ratio=Ratio(each[1] * candidates / processor, "x less"),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "layers": 12, "d-model": 768, "d-vocab": 50257, "items": 256, "pos": 16, "sample": 7, "batch-size": 32,
        "test-items": 16, "screen-items": 100,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--every", type=int, default=3, help="the exhaustive search takes every so many layers; 1 for all"
    )
    parser.add_argument("--only-screened", action="store_true", help="leave the exhaustive search out")
    parser.add_argument("--quick", action="store_true", help="a small model, for a first look")
    table.flags(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.layers, args.d_model, args.d_vocab, args.items = 4, 128, 2000, 64
    warnings.simplefilter("ignore")
    with table.recorded(__file__, args):
        model = model_of(args)
        sizes = args.screen_items, args.items, args.test_items
        parts = Splits(*(items_of(n, args, seed) for seed, n in enumerate(sizes)))
        table.section("Search", f"{args.layers} layers of {args.d_model}, {args.items} items of {args.pos} tokens; "
                      f"the exhaustive one on every {args.every}. layer")  # fmt: skip
        each = loop(model, parts.validation, args)
        compare(model, parts, "screened", MLP, each=each, args=args)
        if not args.only_screened:
            layers = ",".join(str(layer) for layer in range((args.every - 1) // 2, args.layers, args.every))
            compare(model, parts, "exhaustive", f"blocks.{{{layers}}}.mlp.W_{{in,out}}", each=each, args=args)


if __name__ == "__main__":
    main()
