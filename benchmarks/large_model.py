"""Time and memory of the common calls on a model of the shape of Pythia-1.4B with random weights.

python benchmarks/large_model.py [--quick] [--layers 24] [--dtype bfloat16] [--leading 64] [sizes, see --help]

Seconds are of processor time, so that who else uses the machine does not count. Memory is what a call needs at most
beyond what was held before it. Pages of mapped files are left out, since the system drops them when memory is short;
the components are kept in a folder of such files. With --leading everything is done with so many leading components of
each matrix. A random matrix is the hardest for these: its values lie close together.
"""

import argparse
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import TypeVar

import timing
import torch
from torch import Tensor, nn

import surgery
from analyses import attribution, laser, metrics, tasks
from hooks import Site, host_of
from hooks.fingerprints import fingerprint
from hooks.sizes import nbytes
from surgery import SVD, Basis, Decompositions, KeepTop, LeadingSVD

T = TypeVar("T")
MLP = "blocks.*.mlp.W_{in,out}"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    step: str
    seconds: float
    mib: float | None
    remark: str = ""


def measured(step: str, call: Callable[[], T]) -> tuple[Row, T]:
    """A call's time and memory, and what it returns."""
    returned: list[T] = []
    before = process_time()
    mib = peak(lambda: returned.append(call()))
    return Row(step, max(process_time() - before, 1e-6), mib), returned[0]


def peak(call: timing.Call) -> float | None:
    """MiB of memory of its own that a call needs at most beyond what was held; None where the system does not tell."""
    if not _STATM.exists():
        call()
        return None
    timing._give_back_freed_memory()
    before = highest = _own_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, _own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return (max(highest, _own_memory()) - before) / 2**20


def _own_memory() -> int:
    """Resident bytes without those of files."""
    pages = _STATM.read_text().split()
    return (int(pages[1]) - int(pages[2])) * timing._PAGE


def pythia_shaped(args: argparse.Namespace) -> nn.Module:
    """A HookedTransformer in Pythia's form: attention and MLP in parallel, rotary over a quarter of a head."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    d_head = args.d_model // args.heads
    cfg = HookedTransformerConfig(
        n_layers=args.layers, d_model=args.d_model, n_heads=args.heads, d_head=d_head, d_mlp=args.d_mlp,
        n_ctx=args.positions, d_vocab=args.vocab, act_fn="gelu", normalization_type="LN", parallel_attn_mlp=True,
        positional_embedding_type="rotary", rotary_dim=max(2, d_head // 4), init_weights=False, device="cpu",
        dtype=DTYPES[args.dtype],
    )  # fmt: skip
    model = HookedTransformer(cfg).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=args.d_model**-0.5, generator=generator)
    return model


def editing(model: nn.Module, basis: Basis, folder: str, spec: surgery.Spec) -> Iterator[Row]:
    """Decompose while applying, apply again from the folder, undo."""

    def edited() -> surgery.Operation:
        return surgery.apply(model, spec, svds=Decompositions(basis=basis, folder=folder), progress=False)

    marks, before = measured("fingerprints of these matrices", lambda: _fingerprints(model))
    yield marks
    matrices = [_matrix(model, site) for site in surgery.sites(model, MLP)]
    row, operation = measured("apply, which decomposes all MLP matrices", edited)
    share = marks.seconds / row.seconds
    said = timing.verdict(share, 0.02, at_most=True)
    yield replace(row, remark=f"{len(matrices)} matrices, fingerprints {share:.2%} of it: {said}")
    operation.undo()
    del operation
    row, operation = measured("apply, components from the folder", edited)
    made, one = sum(W.nbytes for W in matrices), max(W.numel() for W in matrices) * 4
    if row.mib is not None:
        beyond = (row.mib * 2**20 - made) / one
        said = f"and {beyond:.2f} matrices in fp32: {timing.verdict(beyond, 2, at_most=True)}"
        row = replace(row, remark=f"edited weights {made / 2**20:.0f} MiB, {said}")
    yield row
    row, _ = measured("undo", operation.undo)
    assert _fingerprints(model) == before, "undo has to be exact"
    yield replace(row, remark="bit for bit")


def asking(model: nn.Module, basis: Basis, folder: str, tokens: Tensor) -> Iterator[Row]:
    """A gradient of every component, ten exact ablations, and a search of LASER with one candidate."""
    metric, svds = metrics.logit_difference(3, 5), Decompositions(basis=basis, folder=folder)
    forward, _ = measured("forward pass", lambda: _forward(model, tokens))
    yield forward
    plain, _ = measured("forward and backward pass", lambda: _backward(model, tokens))
    yield plain
    row, effects = measured(
        "by_gradient, every component",
        lambda: attribution.by_gradient(model, tokens, metric, MLP, basis=basis, svds=svds, progress=False),
    )
    yield replace(row, remark=f"{row.seconds / plain.seconds:.1f} x forward and backward")
    row, _ = measured(
        "ten exact ablations",
        lambda: attribution.by_ablation(model, tokens, metric, effects.top(10), svds=svds, progress=False),
    )
    yield replace(row, remark=f"{row.seconds / forward.seconds:.1f} x forward")
    items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(40)]
    site = f"blocks.{host_of(model).n_layers - 1}.mlp.W_in"
    every = svds if basis == SVD() else None
    row, _ = measured(
        "one candidate of LASER, screened and tested",
        lambda: laser.search(model, items, site, rhos=(0.02,), strategy="screened", svds=every, progress=False),
    )
    yield replace(row, remark=f"{len(items)} items" + ("" if every is not None else ", decomposing the matrix"))


def leading(args: argparse.Namespace) -> Iterator[Row]:
    """The leading components of one matrix against all of them: of a random one, and of one whose values fall."""
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(args.d_model, args.d_mlp, generator=generator) * args.d_model**-0.5
    every, (U, _, Vh) = measured("all components of one matrix", partial(SVD().decompose, random))
    yield every
    falling = (U * torch.arange(1, len(Vh) + 1) ** -0.3) @ Vh
    for name, W in (("random", random), ("values ∝ i^-0.3", falling)):
        for rank in (16, 64):
            row, _ = measured(f"leading {rank} of one matrix, {name}", partial(LeadingSVD(rank).decompose, W))
            yield replace(row, remark=f"{every.seconds / row.seconds:.1f} x as fast as all")


def _fingerprints(model: nn.Module) -> list[str]:
    return [fingerprint(_matrix(model, site)) for site in surgery.sites(model, MLP)]


def _matrix(model: nn.Module, site: str) -> Tensor:
    return host_of(model).place(Site.parse(site)).matrix()


@torch.no_grad()
def _forward(model: nn.Module, tokens: Tensor) -> None:
    model(tokens)


def _backward(model: nn.Module, tokens: Tensor) -> None:
    embedded: list[Tensor] = []

    def keep(activation: Tensor, hook: object) -> Tensor:
        embedded.append(activation.detach().requires_grad_())
        return embedded[0]

    with model.hooks(fwd_hooks=[("hook_embed", keep)]):  # type: ignore[operator]
        logits = model(tokens)[:, -1].float()
    torch.autograd.grad((logits[:, 3] - logits[:, 5]).sum(), embedded)


def printed(title: str, rows: Iterable[Row], weights_mib: float) -> None:
    """The table, a line as soon as it is known."""
    print(f"\n{title}")
    for row in rows:
        memory = "" if row.mib is None else f"{row.mib:8.0f} MiB {row.mib / weights_mib:6.2f} x weights"
        print(f"  {row.step:48}{row.seconds:9.2f} s {memory}   {row.remark}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"layers": 24, "d_model": 2048, "heads": 16, "d_mlp": 8192, "vocab": 50304, "positions": 128}
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--leading", type=int, default=0, help="so many components of each matrix; 0 for all")
    parser.add_argument("--quick", action="store_true", help="a quarter of the layers, a quarter of the width")
    args = parser.parse_args(argv)
    if args.quick:
        for name in ("layers", "d_model", "heads", "d_mlp"):
            setattr(args, name, max(1, getattr(args, name) // 4))
    model = pythia_shaped(args)
    weights_mib = nbytes(model) / 2**20
    print(
        f"{args.layers} layers, d_model {args.d_model}, d_mlp {args.d_mlp}, {args.vocab} tokens, {args.dtype}, weights "
        f"{weights_mib:.0f} MiB: {timing.machine('cpu')}"
    )
    basis = LeadingSVD(args.leading) if args.leading else SVD()
    kept = KeepTop(rank=args.leading, basis=basis) if args.leading else KeepTop(rho=0.1)
    tokens = torch.randint(args.vocab, (1, args.positions), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        printed(f"Editing every MLP matrix, {kept!r}", editing(model, basis, folder, {MLP: kept}), weights_mib)
        printed(f"Asking, {tokens.numel()} tokens", asking(model, basis, folder, tokens), weights_mib)
    printed("Decomposing", leading(args), weights_mib)


if __name__ == "__main__":
    main()
