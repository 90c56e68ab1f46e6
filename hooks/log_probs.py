"""The log-probability of one token at each read, for which no row of logits has to be kept.

Where a model ends in `logits = v W + b`, `ln p = l − ln Σ exp` is summed over slices of the vocabulary that stay in the
processor's cache. The logits of many reads do not fit there, and to write, normalise and read them again takes about a
third as long as to compute them.
"""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooks.recording import has_hooks
from hooks.running import autograd
from hooks.temporary import Forward, Temporary

__all__ = ["Unembedding", "unembedding_of"]

_SLICE = 2**21
"""So many logits are computed at a time: 8 MiB in fp32."""


@final
@dataclass(frozen=True, slots=True)
class Unembedding:
    """The end of a model whose logits are `v W + b`; from `unembedding_of`."""

    module: nn.Module
    W: Float[Tensor, "d_model d_vocab"]
    b: Float[Tensor, " d_vocab"]
    biased: bool

    @property
    def d_vocab(self) -> int:
        """How many tokens have logits."""
        return self.W.shape[1]

    def log_probs(self, v: Float[Tensor, "read d_model"], tokens: Int[Tensor, " read"]) -> Float[Tensor, " read"]:
        """The log-probability of each read's token, in nats, in at least float32."""
        wide = torch.promote_types(v.dtype, torch.float32)
        n_vocab, tokens = self.d_vocab, tokens.to(v.device)
        width = min(n_vocab, max(1, _SLICE // max(1, len(v))))
        room, own = v.new_empty(len(v) * width), v.new_empty(len(v), dtype=wide)
        tops, sums = [], []
        for start in range(0, n_vocab, width):
            end = min(start + width, n_vocab)
            logits = torch.mm(v, self.W[:, start:end], out=room[: len(v) * (end - start)].view(len(v), -1))
            logits = logits.add_(self.b[start:end]).to(wide) if self.biased else logits.to(wide)
            here = ((tokens >= start) & (tokens < end)).nonzero().squeeze(1)
            own[here] = logits[here, tokens[here] - start]
            # In place: a tensor of its own for every slice would cost as much as the exponentials.
            top = logits.amax(-1, keepdim=True).clamp_min(torch.finfo(wide).min)
            tops.append(top.squeeze(1))
            sums.append(logits.sub_(top).exp_().sum(-1))
        slices = torch.stack(tops)
        largest = slices.amax(0)
        return own - largest - ((slices - largest).exp() * torch.stack(sums)).sum(0).log()

    def instead_of_logits(self, tokens: Int[Tensor, " read"]) -> Temporary[Callable[[], Tensor]]:
        """Inside the `with` block a run of the model gives the tokens' log-probabilities for its logits, `[read 1]`.

        What `as` gives says what they were when the unembedding gave them: if the run gave others, as where a model
        caps its logits, they are no log-probabilities.
        """
        given = [torch.empty(0)]

        def forward(residual: Tensor, *_args: object, **_kwargs: object) -> Tensor:
            v = residual.flatten(0, -2)
            values = self.log_probs(v, tokens) if len(v) else v.new_empty(0)
            given[:] = [values.clone()]
            return values.view(*residual.shape[:-1], 1)

        return Temporary([Forward(self.module, forward)], lambda: given[0])


def unembedding_of(model: nn.Module) -> Unembedding | None:
    """The model's unembedding, if it is `v W + b` as far as one vector shows; None under hooks of the user's.

    Whether the model does something more to its logits, a run `instead_of_logits` shows.

    >>> end = unembedding_of(model)
    >>> v, labels = torch.randn(2, 16), torch.tensor([3, 5])
    >>> torch.allclose(end.log_probs(v, labels), (v @ end.W + end.b).log_softmax(-1)[[0, 1], labels], atol=1e-5)
    True
    """
    unembed = model.unembed
    assert isinstance(unembed, nn.Module)
    W, b = getattr(unembed, "W_U", None), getattr(unembed, "b_U", None)
    watched = any(module._forward_hooks or module._forward_pre_hooks for module in unembed.modules())
    if has_hooks(model) or watched or not isinstance(W, Tensor) or not isinstance(b, Tensor):
        return None
    W, b = W.detach(), b.detach()
    v = torch.randn(1, len(W), generator=torch.Generator().manual_seed(0)).to(W)
    with autograd(False):
        logits = unembed(v.unsqueeze(0)).flatten(0, 1)
    expected = v @ W + b
    rounding = 20 * torch.finfo(W.dtype).eps * float(expected.abs().max())
    if logits.shape != expected.shape or float((logits - expected).abs().max()) > rounding:
        return None
    return Unembedding(unembed, W, b, bool(b.any()))
