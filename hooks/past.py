"""What a model has read, as keys and values: a pass that is given a past reads on from there, and adds to it.

Tokens of a past stand at the right, so that the next tokens follow without a gap, as far away as they are in the text.
"""

# torch types every attribute of a module as `Tensor | Module`; here a stranger's modules are read by name.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from hooks.hooked_transformer import HookedTransformerHost
from hooks.hosts import host_of
from hooks.records import record_of

__all__ = ["Past", "joined", "read_on", "reads_on"]

KeysValues: TypeAlias = tuple[Float[Tensor, "row head pos d_head"], Float[Tensor, "row head pos d_head"]]


@final
@dataclass(slots=True)
class Past:
    """Keys and values of the tokens that a model has read, for each layer; of a layer that did not run there are none.

    `mask` is 1 on tokens and 0 on padding. The tokens of a row stand together, padding before or after them.

    >>> from hooks.inputs import Inputs
    >>> from hooks.running import run
    >>> past = Past.nothing(tokens[:, :0])
    >>> first = run(model, Inputs(tokens[:, :5], past=past))
    >>> rest = run(model, Inputs(tokens[:, 5:], past=past))
    >>> torch.allclose(torch.cat([first, rest], 1), run(model, Inputs(tokens)), atol=1e-4)
    True
    """

    mask: Int[Tensor, "row pos"]
    layers: dict[int, KeysValues] = field(default_factory=dict)

    @classmethod
    def nothing(cls, tokens: Int[Tensor, "row pos"]) -> "Past":
        """The past of rows that begin with these tokens."""
        return cls(tokens.new_zeros(len(tokens), 0))

    @property
    def n_pos(self) -> int:
        """How many columns there are, padding included."""
        return self.mask.shape[1]

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers.values())

    def skip(self, mask: Int[Tensor, "row pos"]) -> None:
        """Take note of tokens that were passed over: no layer has their keys and values."""
        self.mask, self.layers = torch.cat([self.mask, mask.to(self.mask)], 1), {}

    def at(self, rows: Sequence[int], lengths: Sequence[int]) -> "Past":
        """Of each of these rows the first so many tokens, aligned at the right."""
        device = self.mask.device
        row, length = torch.tensor(rows, device=device), torch.tensor(lengths, device=device)
        width = max(lengths)
        if width == 0:
            return Past.nothing(self.mask[row])
        everything = width == self.n_pos and list(rows) == list(range(len(self.mask))) and min(lengths) == width
        if everything:
            return Past(self.mask, dict(self.layers))
        start = self.mask.argmax(1)[row]
        column = start[:, None] + length[:, None] - width + torch.arange(width, device=device)
        mask = (column >= start[:, None]).to(self.mask.dtype)
        column = column.clamp_min(0)

        def chosen(x: Tensor) -> Tensor:
            return x.transpose(1, 2)[row[:, None].to(x.device), column.to(x.device)].transpose(1, 2)

        return Past(mask, {layer: (chosen(keys), chosen(values)) for layer, (keys, values) in self.layers.items()})


def joined(several: Sequence[Past]) -> Past:
    """The rows of several, all with the same layers and aligned at the right."""
    if len(several) == 1:
        return several[0]
    width = max(past.n_pos for past in several)

    def rows(layer: int, which: int) -> Tensor:
        return torch.cat([pad(past.layers[layer][which], (0, 0, width - past.n_pos, 0)) for past in several])

    mask = torch.cat([pad(past.mask, (width - past.n_pos, 0)) for past in several])
    return Past(mask, {layer: (rows(layer, 0), rows(layer, 1)) for layer in several[0].layers})


def read_on(
    model: nn.Module, tokens: Int[Tensor, "row pos"], mask: Int[Tensor, "row pos"] | None, past: Past
) -> Float[Tensor, "row2 pos2 d_vocab"]:
    """The logits after these tokens where they follow what was read before; `past` then ends with them."""
    now = torch.ones_like(tokens) if mask is None else mask.to(tokens)
    if isinstance(host_of(model), HookedTransformerHost):
        logits, layers = _on_hooked_transformer(model, tokens, now, past)
    else:
        logits, layers = _on_bridge(model, tokens, now, past)
    past.mask, past.layers = torch.cat([past.mask, now], 1), layers
    return logits


@torch.no_grad()
def reads_on(model: nn.Module) -> bool:
    """Whether the model, reading on from a past, says what it says when it reads everything at once.

    It is tried out on a few tokens, once a model. A model whose memory is not keys and values does not, nor one that
    counts padding when it numbers positions.
    """
    return record_of(model).of(_Tried, lambda: _Tried(_reads_on(model))).reads_on


@dataclass(frozen=True)
class _Tried:
    reads_on: bool


def _reads_on(model: nn.Module) -> bool:
    host = host_of(model)
    tokens = (torch.arange(10, device=host.device) % host.d_vocab).reshape(2, 5)
    if host.n_ctx is not None and host.n_ctx < 5:
        return False
    past = Past.nothing(tokens)
    first, then = torch.ones_like(tokens[:, :3]), torch.ones_like(tokens[:, :2])
    first[1, 2] = 0  # one row is shorter than the other
    rest = torch.stack([tokens[0, 3:], tokens[1, 2:4]])
    try:
        whole = model(tokens, attention_mask=torch.ones_like(tokens), return_type="logits")
        read_on(model, tokens[:, :3], first, past)
        past = past.at([0, 1], [3, 2])
        got = read_on(model, rest, then, past)
    except Exception:  # a stranger's forward pass may refuse a past in any way it likes
        return False
    wanted = torch.stack([whole[0, 3:], whole[1, 2:4]])
    exact = whole.dtype in (torch.float32, torch.float64)
    return bool((got - wanted).abs().max() <= (1e-3 if exact else 5e-2) * wanted.abs().max())


class _Entry:
    """A layer's past as attention of HookedTransformer asks for it, `[row pos head d_head]`."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.past_keys, self.past_values = keys, values
        self.has_run = False

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, with these."""
        self.past_keys = torch.cat([self.past_keys, keys], 1)
        self.past_values = torch.cat([self.past_values, values], 1)
        self.has_run = True
        return self.past_keys, self.past_values


class _Entries(list[_Entry]):
    """The past of all layers as HookedTransformer asks for it."""

    def __init__(self, entries: Sequence[_Entry], mask: Tensor) -> None:
        super().__init__(entries)
        self.mask = mask

    def append_attention_mask(self, mask: Tensor) -> Tensor:
        """The mask of all tokens so far, with these."""
        return torch.cat([self.mask.to(mask), mask], 1)


def _on_hooked_transformer(
    model: nn.Module, tokens: Tensor, now: Tensor, past: Past
) -> tuple[Tensor, dict[int, KeysValues]]:
    host, cfg = host_of(model), model.cfg
    absent = torch.empty((), dtype=cfg.dtype, device=tokens.device)
    absent = absent.expand(len(tokens), past.n_pos, host.n_heads("W_K"), cfg.d_head)
    entries = []
    for layer in range(host.n_layers):
        keys, values = past.layers.get(layer, (absent.transpose(1, 2), absent.transpose(1, 2)))
        entries.append(_Entry(keys.transpose(1, 2), values.transpose(1, 2)))
    cache = _Entries(entries, past.mask)
    logits = model(tokens, attention_mask=now, past_kv_cache=cache, return_type="logits")
    ran = ((layer, entry) for layer, entry in enumerate(entries) if entry.has_run)
    return logits, {layer: (entry.past_keys.transpose(1, 2), entry.past_values.transpose(1, 2)) for layer, entry in ran}


def _on_bridge(model: nn.Module, tokens: Tensor, now: Tensor, past: Past) -> tuple[Tensor, dict[int, KeysValues]]:
    # What a bridge wraps is a model of transformers, which is loaded therefore.
    theirs = sys.modules["transformers.cache_utils"]
    # Of a layer that will not run only the length is asked.
    absent = torch.empty((), dtype=host_of(model).dtype, device=tokens.device).expand(len(tokens), 1, past.n_pos, 1)
    cache = theirs.DynamicCache()
    for layer in range(host_of(model).n_layers if past.n_pos else 0):
        keys, values = past.layers.get(layer, (absent, absent))
        held = theirs.DynamicLayer()
        held.lazy_initialization(keys, values)
        held.keys, held.values = keys, values
        cache.layers.append(held)
    mask = torch.cat([past.mask, now], 1)
    logits = model(tokens, attention_mask=mask, past_key_values=cache, use_cache=True, return_type="logits")
    width = mask.shape[1]
    ran = ((layer, held) for layer, held in enumerate(cache.layers) if held.is_initialized)
    return logits, {layer: (held.keys, held.values) for layer, held in ran if held.keys.shape[2] == width}
