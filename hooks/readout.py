"""The readout: what a model does to the last residual stream, from the final normalisation to the logits.

It is run by itself, on vectors of one's choice, by a pass in which every block is skipped: whatever the model does
there (a gain, a bias, a soft cap, a scale) is done by the model.
"""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooks.hosts import host_of
from hooks.inputs import Inputs, Reads
from hooks.recording import has_hooks, hidden, skipped
from hooks.running import run
from hooks.temporary import Hook, Temporary

__all__ = ["Norm", "Readout", "Stages", "read_out"]


@final
@dataclass(frozen=True, slots=True)
class Norm:
    """What a normalisation divides by, `n(x) = √(|x|²/d + ε)`, x less its mean where it is `centred`."""

    centred: bool
    eps: float

    def centre(self, x: Float[Tensor, "*at d"]) -> Float[Tensor, "*at d"]:
        """What is divided: x, or x less its mean."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*at d"]) -> Float[Tensor, "*at 1"]:
        """n(x)."""
        return (self.centre(x).square().mean(-1, keepdim=True) + self.eps).sqrt()


class Stages(NamedTuple):
    """One run of the readout: after the final normalisation, after the unembedding, and at the end."""

    normalised: Float[Tensor, "read d_model"]
    unembedded: Float[Tensor, "read d_vocab"]
    logits: Float[Tensor, "read d_vocab"]


@final
@dataclass(frozen=True, slots=True)
class Readout:
    """The readout of a model on some inputs; from `read_out`.

    `residual` is what the final normalisation read in the pass (the unembedding, where there is none), with its graph.
    """

    model: nn.Module
    inputs: Inputs
    reads: Reads
    residual: Float[Tensor, "row pos d_model"]
    forms: dict[int, object]

    @property
    def at_reads(self) -> Float[Tensor, "read d_model"]:
        """The residual where logits are read, without a graph."""
        return _wide(self.reads.of(self.residual).detach())

    def spread(self, vectors: Float[Tensor, "read d_model"]) -> Float[Tensor, "row pos d_model"]:
        """Vectors of the reads at their rows and positions, 0 elsewhere; where one is read twice, their sum."""
        device = self.residual.device
        at = self.reads.row.to(device), self.reads.pos.to(device)
        return torch.zeros_like(self.residual).index_put(at, vectors.to(self.residual), accumulate=True)

    def stages(self, residual: Float[Tensor, "read d_model"]) -> Stages:
        """The readout of other residuals; differentiable."""
        return self._run(_first(self.model), residual)

    def of_normalised(self, normalised: Float[Tensor, "read d_model"]) -> Stages:
        """The same with other outputs of the final normalisation."""
        return self._run(self.model.unembed, normalised)

    @torch.no_grad()
    def norm(self) -> Norm | None:
        """The final normalisation's kind and ε, tried out on residuals of these inputs; None where there is none.

        Raises:
            ValueError: if it is neither `x / n(x)`, nor `(x − mean) / n(x)`, times a gain and plus a bias.
        """
        final = getattr(self.model, "ln_final", None)
        if final is None:
            return None
        x = self.at_reads[:64]
        r = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x) * x.std(-1, keepdim=True)
        part = Readout(self.model, self.inputs, Reads(*(at[:64] for at in self.reads)), self.residual, self.forms)
        zero, at_x, at_r, at_sum = (part.stages(y).normalised for y in (torch.zeros_like(x), x, r, x + r))
        loosest = 20 * torch.finfo(host_of(self.model).dtype).eps ** 0.75
        if float((at_sum - x - r).norm()) < loosest * float(at_sum.norm()):
            return None  # a module stands there, and hands on what it reads
        for norm in _kinds(self.model, final):
            n_x, n_r, n_sum = (norm.scale(y) for y in (x, r, x + r))
            expected = zero + ((at_x - zero) * n_x + (at_r - zero) * n_r) / n_sum
            if float((expected - at_sum).norm()) < loosest * float(at_sum.norm()):
                return norm
        raise ValueError(
            f"the final normalisation, a {_kind_of(final)}, is neither a LayerNorm nor an RMSNorm as far as its "
            "outputs show, and no formula is known for it. Use by_curvature or by_gradient."
        )

    def _run(self, module: nn.Module, activation: Float[Tensor, "read d_model"]) -> Stages:
        """Run what comes from `module` on, on these activations at its input."""
        model, alone = self.model, not has_hooks(self.model)
        # Hooks of the user's may expect whole rows.
        inputs = Inputs(self.reads.of(self.inputs.tokens).unsqueeze(1)) if alone else self.inputs.read_at(None)
        kept: dict[str, Tensor] = {}

        def feed(_module: nn.Module, args: tuple) -> tuple:
            whole = activation.unsqueeze(1).to(args[0].dtype) if alone else self._put(args[0], activation)
            return (whole, *args[1:])

        def keep(name: str) -> Hook:
            def on_output(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
                kept[name] = _wide(output.squeeze(1) if alone else self.reads.of(output))
                # What follows reads what was kept, so that it can be differentiated there.
                return kept[name].unsqueeze(1).to(output.dtype) if alone else self._put(output, kept[name])

            at = _first(model) if name == "normalised" else model.unembed
            return Hook(at, "output", on_output)

        skips = [skipped(model.blocks[layer], form) for layer, form in self.forms.items()]
        stages = [] if _first(model) is model.unembed else [keep("normalised")]
        with Temporary([*skips, Hook(module, "input", feed), *stages, keep("unembedded")]):
            logits = run(model, inputs)
        logits = _wide(logits.squeeze(1) if alone else self.reads.of(logits))
        return Stages(kept.get("normalised", activation), kept["unembedded"], logits)

    def _put(self, whole: Float[Tensor, "row pos d"], vectors: Float[Tensor, "read d"]) -> Tensor:
        at = self.reads.row.to(whole.device), self.reads.pos.to(whole.device)
        return whole.detach().index_put(at, vectors.to(whole))


def read_out(model: nn.Module, inputs: Inputs) -> Readout:
    """The readout, after one pass through the model, which keeps a graph where autograd is on.

    >>> from hooks.inputs import Inputs, Reads
    >>> readout = read_out(model, Inputs(tokens, reads=Reads(torch.arange(3), torch.tensor([7, 7, 5]))))
    >>> torch.allclose(readout.stages(readout.at_reads).logits[2], model(tokens)[2, 5], atol=1e-5)
    True
    """
    reads = inputs.reads
    if reads is None:
        row, pos = torch.ones_like(inputs.tokens).nonzero(as_tuple=True)
        reads = Reads(row, pos)
    kept: list[Tensor] = []
    forms: dict[int, object] = {}

    def keep(_module: nn.Module, args: tuple) -> None:
        kept.append(args[0])

    nothing = torch.empty(0, dtype=torch.long)
    with Temporary([Hook(_first(model), "input", keep), *_forms(model, forms)]):
        run(model, inputs.read_at(Reads(nothing, nothing)))
    return Readout(model, inputs, reads, kept[0], forms)


def _wide(x: Tensor) -> Tensor:
    """x in fp32, or fp64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


def _first(model: nn.Module) -> nn.Module:
    """The first module of the readout."""
    final = getattr(model, "ln_final", None)
    return model.unembed if final is None else final  # type: ignore[return-value]


def _forms(model: nn.Module, forms: dict[int, object]) -> Iterator[Hook]:
    """Hooks that keep the form in which each block returns its output."""
    for layer in range(host_of(model).n_layers):

        def keep(_module: nn.Module, _args: tuple, output: object, layer: int = layer) -> None:
            empty = hidden(output).new_empty(0).detach()
            forms[layer] = (empty, *(None for _ in output[1:])) if isinstance(output, tuple) else empty

        yield Hook(model.blocks[layer], "output", keep)


def _kinds(model: nn.Module, final: nn.Module) -> Iterator[Norm]:
    """What the final normalisation may be: with and without a mean, and with every ε that somebody names."""
    inner = getattr(final, "original_component", None)
    named = [getattr(module, name, None) for module in (inner, final) for name in ("eps", "variance_epsilon")]
    for eps in dict.fromkeys(float(eps) for eps in (*named, getattr(model.cfg, "eps", None)) if eps is not None):
        yield from (Norm(True, eps), Norm(False, eps))


def _kind_of(final: nn.Module) -> str:
    return type(getattr(final, "original_component", None) or final).__name__
