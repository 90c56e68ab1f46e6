"""What editing costs: a forward pass under an edit, putting an edit in and taking it out, and decomposing.

python benchmarks/foundation.py [--quick] [--device cuda] [sizes, see --help]
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import timing
import torch
from random_model import gpt2_shaped, shape_flags, shape_of
from torch import Tensor, nn

import surgery
from surgery import Decompositions, KeepTop
from surgery.svd import exact

MLP = "blocks.*.mlp.W_{in,out}"
KINDS = ("mlp.W_in", "mlp.W_out", "attn.W_Q", "attn.W_Q[*]")


def forward_under_an_edit(model: nn.Module, svds: Decompositions, tokens: Tensor, *, rounds: int, device: str) -> None:
    """A forward pass with every MLP matrix edited, against the same pass without."""

    @torch.no_grad()
    def forward() -> object:
        return model(tokens)

    def edited() -> surgery.Operation:
        return surgery.apply(model, {MLP: KeepTop(rho=0.1)}, svds=svds, progress=False)

    took = timing.in_turns(
        {"edited": forward, "unedited": forward}, rounds=rounds, device=device, around={"edited": edited}
    )
    ratio = took.ratio("edited", "unedited")
    print(f"\nForward pass of {tokens.shape[1]} tokens, medians of {rounds} rounds")
    print(f"  unedited                       {took.median('unedited'):8.3f} s")
    print(f"  all {len(svds)} MLP matrices edited     {took.median('edited'):8.3f} s")
    print(f"  ratio                          {ratio:8.3f} x   {timing.verdict(ratio, 1.02, at_most=True)}, "
          f"single rounds {took.spread('edited', 'unedited')}")  # fmt: skip


def apply_and_undo(model: nn.Module, svds: Decompositions, *, rounds: int, device: str) -> None:
    """Putting the edit in and taking it out, against the same products and copies written by hand."""

    def ours() -> None:
        surgery.apply(model, {MLP: KeepTop(rho=0.1)}, svds=svds, progress=False).undo()

    def by_hand() -> None:
        for site, parts in svds.items():
            weight = _stored(model, site)
            before, k = weight.clone(), int(0.1 * parts.n_components)
            weight.copy_((parts.U[:, :k] * parts.S[:k]) @ parts.Vh[:k])
            weight.copy_(before)

    took = timing.in_turns({"ours": ours, "by hand": by_hand}, rounds=rounds, device=device)
    peak = timing.peak_memory(ours, device=device)
    print(f"\nApply and undo keep-top (rho .1) on all {len(svds)} MLP matrices, SVDs ready")
    print(f"  surgery.apply(...).undo()      {took.median('ours'):8.3f} s{_memory(peak)}")
    print(f"  the same by hand, unchecked    {took.median('by hand'):8.3f} s")
    print(f"  ratio                          {took.ratio('ours', 'by hand'):8.2f} x   (checks of the weights included)")


def decomposing(model: nn.Module, layers: Sequence[int], *, rounds: int, device: str) -> None:
    """`surgery.decompose` against a plain loop of torch.linalg.svd over matrices as they are stored."""
    print(f"\nDecomposing, s per layer (layers {', '.join(map(str, layers))}); peak memory of one")
    print(f"  {'':14}{'decompose':>11}{'plain loop':>12}{'faster':>9}")
    totals = {"ours": 0.0, "plain": 0.0}
    for kind in KINDS:
        sites = [f"blocks.{layer}.{kind}" for layer in layers]
        ours: Callable[[], object] = partial(_decompose_anew, model, sites)
        plain: Callable[[], object] = partial(_plain_loop, model, sites)
        took = timing.in_turns({"ours": ours, "plain": plain}, rounds=rounds, device=device)
        peaks = [
            timing.peak_memory(partial(f, model, sites[:1]), device=device) for f in (_decompose_anew, _plain_loop)
        ]
        medians = {name: took.median(name) / len(layers) for name in totals}
        faster = took.ratio("plain", "ours")
        print(f"  {kind:14}{medians['ours']:11.3f}{medians['plain']:12.3f}{faster:8.2f}x"
              f"{_memory(peaks[0])}, plain loop{_memory(peaks[1])}")  # fmt: skip
        if kind.startswith("mlp"):
            totals = {name: totals[name] + medians[name] for name in totals}
    mine, theirs = totals["ours"], totals["plain"]
    print(
        f"  {'MLP together':14}{mine:11.3f}{theirs:12.3f}{theirs / mine:8.2f}x   {timing.verdict(theirs / mine, 1.3)}"
    )


def large_matrix(d_in: int, d_out: int, *, rounds: int, device: str) -> None:
    """One large matrix, both ways of storing it."""
    W = torch.randn(d_in, d_out, generator=torch.Generator().manual_seed(0)).to(device) / d_in**0.5
    print("\nDecomposing one large matrix, as a model may store it")
    totals = {"ours": 0.0, "plain": 0.0}
    for A in (W, W.mT.contiguous()):
        ours: Callable[[], object] = partial(exact, A)
        plain: Callable[[], object] = partial(torch.linalg.svd, A, full_matrices=False)
        took = timing.in_turns({"ours": ours, "plain": plain}, rounds=rounds, device=device)
        peak = timing.peak_memory(ours, device=device)
        totals = {name: totals[name] + took.median(name) for name in totals}
        print(f"  {A.shape[0]:6} x {A.shape[1]:6}: {took.median('ours'):7.2f} s{_memory(peak)}, "
              f"plain {took.median('plain'):7.2f} s, {took.ratio('plain', 'ours'):.2f}x faster")  # fmt: skip
    faster = totals["plain"] / totals["ours"]
    print(f"  both together   {totals['ours']:8.2f} s, plain {totals['plain']:7.2f} s, {faster:.2f}x faster   "
          f"{timing.verdict(faster, 2)}")  # fmt: skip


def _decompose_anew(model: nn.Module, sites: list[str]) -> object:
    return surgery.decompose(model, sites, svds=Decompositions(), progress=False)


def _plain_loop(model: nn.Module, sites: list[str]) -> object:
    return [torch.linalg.svd(matrix, full_matrices=False) for site in sites for matrix in _as_stored(model, site)]


def _as_stored(model: nn.Module, site: str) -> list[Tensor]:
    """The matrix in the orientation it is stored in; of an attention matrix the whole one, or one for each head."""
    weight = _stored(model, site.removesuffix("[*]"))
    if weight.ndim == 2:
        return [weight]
    return list(weight) if site.endswith("[*]") else [weight.permute(1, 0, 2).flatten(1)]


def _stored(model: nn.Module, site: str) -> Tensor:
    return model.get_parameter(site).detach()


def _memory(mib: float | None) -> str:
    return "" if mib is None else f" (peak {mib:.0f} MiB)"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    shape_flags(parser)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sampled-layers", type=int, default=2, help="how many layers to decompose for the comparison")
    parser.add_argument("--large", default="2048x8192", help="the large matrix, d_in x d_out; 0x0 for none")
    args = parser.parse_args(argv)
    shape, rounds = shape_of(args), 1 if args.quick else args.rounds
    model = gpt2_shaped(shape, args.device)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(shape.vocab, (1, shape.positions), generator=generator).to(args.device)
    print(f"Editing a model of {shape.layers} layers, d_model {shape.d_model}, d_mlp {shape.d_mlp}, "
          f"{shape.vocab} tokens: {timing.machine(args.device)}")  # fmt: skip
    decomposing(model, range(min(args.sampled_layers, shape.layers)), rounds=min(rounds, 3), device=args.device)
    svds = surgery.decompose(model, MLP, progress=False)
    forward_under_an_edit(model, svds, tokens, rounds=3 * rounds, device=args.device)
    apply_and_undo(model, svds, rounds=rounds, device=args.device)
    d_in, d_out = map(int, args.large.split("x"))
    if d_in and d_out and not args.quick:
        large_matrix(d_in, d_out, rounds=1, device=args.device)


if __name__ == "__main__":
    main()
