"""The transformers of the toy tasks, as a HookedTransformer or a TransformerBridge, before they get their weights."""

import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Literal, final

import torch
from torch import nn


@final
@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a small transformer, by TransformerLens's names; its MLPs have 4 × d_model neurons."""

    n_layers: int
    n_heads: int
    d_model: int
    d_vocab: int
    n_ctx: int
    act_fn: Literal["relu", "gelu"]
    normalization_type: Literal["LN"] | None

    @property
    def settings(self) -> dict:
        """What the configuration of either host takes; the weights are left to whoever asked for the model."""
        derived = {"d_head": self.d_model // self.n_heads, "d_mlp": 4 * self.d_model, "init_weights": False}
        return {**asdict(self), **derived}


def hooked_transformer(shape: Shape, *, device: torch.device | str, instead: str) -> nn.Module:
    """A HookedTransformer of this shape; its weights have to be written.

    Raises:
        ImportError: on transformer-lens 4 and later, which has none; `instead` is the call that works there.
    """
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        raise ImportError(
            f"transformer-lens {version('transformer-lens')} has no HookedTransformer any more: install "
            f"'transformer-lens>=3.9,<4', or make the same model with {instead}."
        ) from error
    cfg = HookedTransformerConfig(**shape.settings, device=str(device))
    with warnings.catch_warnings():
        # 3.9 announces its own removal; whoever asks for this host does so by name, and the other one is there.
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        return HookedTransformer(cfg)


def transformer_bridge(shape: Shape, *, device: torch.device | str) -> nn.Module:
    """A TransformerBridge of this shape, on transformer-lens 3.9 and on 4; its weights have to be written."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    cfg = TransformerBridgeConfig(**shape.settings, device=str(device))
    with torch.random.fork_rng(devices=[]):  # torch's layers draw weights of their own when they are made
        return TransformerBridge.boot_native(cfg, device=device)
