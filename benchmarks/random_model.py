"""A model of GPT-2's form with random weights, whose sizes a benchmark's command line sets."""

import argparse
from dataclasses import dataclass

import table
from torch import nn


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model with random weights; the defaults are GPT-2 small's."""

    layers: int = 12
    d_model: int = 768
    heads: int = 12
    d_mlp: int = 3072
    vocab: int = 50257
    positions: int = 256

    def __str__(self) -> str:
        return f"{self.layers} layers, d_model {self.d_model}, d_mlp {self.d_mlp}, {self.vocab} tokens"


SMALL = Shape(layers=4, d_model=128, heads=4, d_mlp=512, vocab=2000, positions=64)


def gpt2_shaped(shape: Shape, device: str) -> nn.Module:
    """A HookedTransformer like GPT-2, with random weights and frozen parameters."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=shape.layers, d_model=shape.d_model, n_heads=shape.heads, d_head=shape.d_model // shape.heads,
        d_mlp=shape.d_mlp, n_ctx=shape.positions, d_vocab=shape.vocab, act_fn="gelu_new", normalization_type="LNPre",
        seed=0, device=device,
    )  # fmt: skip
    return HookedTransformer(cfg).eval().requires_grad_(False)


def shape_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every size, those of every benchmark, and a quick run."""
    default = Shape()
    for name in ("layers", "d_model", "heads", "d_mlp", "vocab", "positions"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name))
    table.flags(parser)
    parser.add_argument("--quick", action="store_true", help="one round on a small model, for a first look")


def shape_of(args: argparse.Namespace) -> Shape:
    """The sizes that the flags were set to, or small ones for a first look."""
    if args.quick:
        return SMALL
    return Shape(args.layers, args.d_model, args.heads, args.d_mlp, args.vocab, args.positions)
