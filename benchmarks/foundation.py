"""What editing costs: a forward pass under an edit, putting an edit in and taking it out, and decomposing.

python benchmarks/foundation.py [--quick] [--device cuda] [sizes, see --help]
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import table
import timing
import torch
from random_model import gpt2_shaped, shape_flags, shape_of
from table import Against, Aim, Ratio
from torch import Tensor, nn

import surgery
from surgery import Decompositions, KeepTop
from surgery.svd import exact

MLP = "blocks.*.mlp.W_{in,out}"
PLAIN = "torch.linalg.svd"
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
    table.section("Forward pass", f"{tokens.shape[1]} tokens, medians of {rounds} rounds")
    aim = Aim(1.02, at_most=True)
    table.compared(f"{len(svds)} MLP matrices edited", took, "edited", "unedited", words="x as long", aim=aim)


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

    took = timing.in_turns({"ours": ours, "by hand, unchecked": by_hand}, rounds=rounds, device=device)
    table.section("Apply and undo", f"keep-top (rho .1) on all {len(svds)} MLP matrices, SVDs ready; weights checked")
    table.compared("surgery.apply(...).undo()", took, "ours", "by hand, unchecked", words="x as long")
    table.memory("its peak memory", ours, by_hand, name="by hand", device=device)


def decomposing(model: nn.Module, layers: Sequence[int], *, rounds: int, device: str) -> None:
    """`surgery.decompose` against a plain loop of torch.linalg.svd over matrices as they are stored."""
    table.section("Decomposing", f"a layer's matrix; layers {', '.join(map(str, layers))}; medians of {rounds} rounds")
    totals = {"ours": 0.0, PLAIN: 0.0}
    for kind in KINDS:
        sites = [f"blocks.{layer}.{kind}" for layer in layers]
        ours: Callable[[], object] = partial(_decompose_anew, model, sites)
        plain: Callable[[], object] = partial(_plain_loop, model, sites)
        took = timing.in_turns({"ours": ours, PLAIN: plain}, rounds=rounds, device=device)
        table.compared(_shaped(model, kind), took, "ours", PLAIN, words="x as fast", share=1 / len(layers))
        one, other = (partial(f, model, sites[:1]) for f in (_decompose_anew, _plain_loop))
        table.memory(f"{_shaped(model, kind)}, peak memory", one, other, name=PLAIN, device=device)
        if kind.startswith("mlp"):
            totals = {name: totals[name] + took.median(name) / len(layers) for name in totals}
    _together("mlp.W_in and mlp.W_out", totals, Aim(1.3))


def large_matrix(d_in: int, d_out: int, *, rounds: int, device: str) -> None:
    """One large matrix, both ways of storing it."""
    W = torch.randn(d_in, d_out, generator=torch.Generator().manual_seed(0)).to(device) / d_in**0.5
    table.section("Decomposing a large matrix", f"medians of {rounds} rounds")
    totals = {"ours": 0.0, PLAIN: 0.0}
    for A in (W, W.mT.contiguous()):
        ours: Callable[[], object] = partial(exact, A)
        plain: Callable[[], object] = partial(torch.linalg.svd, A, full_matrices=False)
        took = timing.in_turns({"ours": ours, PLAIN: plain}, rounds=rounds, device=device)
        shape = " x ".join(map(str, A.shape))
        table.compared(shape, took, "ours", PLAIN, words="x as fast")
        table.memory(f"{shape}, peak memory", ours, device=device)
        totals = {name: totals[name] + took.median(name) for name in totals}
    _together("stored either way, both together", totals, Aim(2))


def _together(what: str, seconds: dict[str, float], aim: Aim) -> None:
    """What several matrices take in sum, against the other side's sum."""
    ours, plain = seconds["ours"], seconds[PLAIN]
    table.figure(what, ours, "s", against=Against(PLAIN, plain), ratio=Ratio(plain / ours, "x as fast"), aim=aim)


def _shaped(model: nn.Module, kind: str) -> str:
    """The name of a kind of matrix with its shape."""
    matrices = _as_stored(model, f"blocks.0.{kind}")
    count = f"{len(matrices)} heads, " if len(matrices) > 1 else ""
    return f"{kind}, {count}{' x '.join(map(str, matrices[0].shape))}"


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    shape_flags(parser)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sampled-layers", type=int, default=2, help="how many layers to decompose for the comparison")
    parser.add_argument("--large", default="2048x8192", help="the large matrix, d_in x d_out; 0x0 for none")
    args = parser.parse_args(argv)
    shape, rounds = shape_of(args), 1 if args.quick else args.rounds
    with table.recorded(__file__, args):
        model = gpt2_shaped(shape, args.device)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(shape.vocab, (1, shape.positions), generator=generator).to(args.device)
        print(f"Editing a model of {shape}")
        decomposing(model, range(min(args.sampled_layers, shape.layers)), rounds=min(rounds, 3), device=args.device)
        svds = surgery.decompose(model, MLP, progress=False)
        forward_under_an_edit(model, svds, tokens, rounds=3 * rounds, device=args.device)
        apply_and_undo(model, svds, rounds=rounds, device=args.device)
        d_in, d_out = map(int, args.large.split("x"))
        if d_in and d_out and not args.quick:
            large_matrix(d_in, d_out, rounds=1, device=args.device)


if __name__ == "__main__":
    main()
