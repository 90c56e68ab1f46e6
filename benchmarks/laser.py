"""How much faster `laser.search` is than a straightforward loop over the same candidates, in one run.

The loop does, for each candidate, what LASER's paper says and no more: it copies the model, puts a randomised
truncated SVD in place of the matrix, and runs all items through the whole copy. It is timed on a sample of candidates,
one of each ρ and spread over layers and matrices, and taken for all. Both sides score the same validation items; the
few test items are timed too, on the side of `laser.search` only.

    python benchmarks/laser.py                      # the shape of GPT-2 small, 256 items
    python benchmarks/laser.py --layers 4 --d-model 128 --d-vocab 2000 --items 64
"""

import argparse
import copy
import time
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

import surgery
from analyses import laser
from analyses.laser.candidates import MLP
from analyses.tasks import AnswerItem, Splits, Task
from hooks import match_sites, place_of
from surgery.ranks import rank_from_rho


def model_of(args: argparse.Namespace) -> nn.Module:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=args.layers, d_model=args.d_model, n_heads=max(1, args.d_model // 64), d_head=min(64, args.d_model),
        d_vocab=args.d_vocab, n_ctx=1024, act_fn="gelu_new", normalization_type="LN", seed=0,
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
    tokens = torch.tensor([item.context for item in validation.items])
    answers = torch.tensor([item.right[0][0] for item in validation.items])
    sites = [str(site) for site in match_sites(model, MLP)]
    sampled = [(sites[(i * len(sites)) // args.sample], laser.PAPER_RHOS[i % 7]) for i in range(args.sample)]
    one_candidate(model, *sampled[0], tokens[:4], answers[:4], 4)
    seconds = []
    for site, rho in sampled:
        start = now()
        one_candidate(model, site, rho, tokens, answers, args.batch_size)
        seconds.append(since(start))
        print(f"  loop: {site} ρ {rho}: {seconds[-1][0]:.2f} s, {seconds[-1][1]:.2f} s of processor time", flush=True)
    wall, processor = (sum(column) / len(seconds) for column in zip(*seconds, strict=True))
    return wall, processor


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    wall, processor = now()
    return wall - start[0], processor - start[1]


def timed(
    model: nn.Module, parts: Splits, strategy: Literal["exhaustive", "screened"]
) -> tuple[tuple[float, float], laser.SearchResult]:
    surgery.forget(model)
    start = now()
    result = laser.search(model, parts, strategy=strategy, progress=False)
    return since(start), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "layers": 12, "d-model": 768, "d-vocab": 50257, "items": 256, "pos": 16, "sample": 7, "batch-size": 32,
        "test-items": 16, "screen-items": 100,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only-screened", action="store_true", help="leave the exhaustive search out")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model = model_of(args)
    sizes = args.screen_items, args.items, args.test_items
    parts = Splits(*(items_of(n, args, seed) for seed, n in enumerate(sizes)))
    candidates = len(match_sites(model, MLP)) * len(laser.PAPER_RHOS)
    wall, processor = loop(model, parts.validation, args)
    print(f"loop: {wall:.2f} s a candidate ({processor:.2f} s of processor time), {candidates} candidates")
    for strategy in ("screened",) if args.only_screened else ("screened", "exhaustive"):
        seconds, result = timed(model, parts, strategy)
        print(
            f"{strategy} search: {seconds[0]:.1f} s, {wall * candidates / seconds[0]:.1f} times as fast; processor "
            f"time {seconds[1]:.1f} s, {processor * candidates / seconds[1]:.1f} times less, {result.items_run} runs",
            flush=True,
        )


if __name__ == "__main__":
    main()
