"""Tiny random models of every supported kind, built in memory: nothing is downloaded."""

from collections.abc import Callable
from functools import cache

import torch
import transformers as hf
from torch import Tensor, nn

D_MODEL, D_HEAD, N_HEADS, N_LAYERS, D_VOCAB, N_CTX = 32, 8, 4, 2, 50, 64

_COMMON = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "intermediate_size": 64}
_GPT = {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "vocab_size": D_VOCAB, "n_positions": N_CTX}

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT)),
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_COMMON, intermediate_size=64)),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**_GPT, rotary_dim=4)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_GROUPED)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_GROUPED, head_dim=D_HEAD)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_GROUPED)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**_GROUPED, head_dim=D_HEAD)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**_COMMON, intermediate_size=64)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**_GROUPED, num_local_experts=4)),
}
"""Hugging Face architectures that a TransformerBridge wraps; Mixtral's MLPs are experts and cannot be edited."""

HOOKED: dict[str, dict] = {
    "ln": {"normalization_type": "LN"},
    "ln-folded": {"normalization_type": "LNPre"},
    "rms-gated": {"normalization_type": "RMS", "gated_mlp": True},
    "rms-folded-grouped-rotary": {
        "normalization_type": "RMSPre",
        "gated_mlp": True,
        "n_key_value_heads": 2,
        "positional_embedding_type": "rotary",
        "rotary_dim": D_HEAD,
    },
    "no-norm": {"normalization_type": None, "act_fn": "relu"},
    "attention-only": {"normalization_type": "LN", "attn_only": True},
    "parallel-rotary": {
        "normalization_type": "LN",
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
    },
    "post-norm": {"normalization_type": "RMS", "use_normalization_before_and_after": True, "gated_mlp": True},
}
"""Settings of small HookedTransformers."""


def bridge(architecture: str, *, compatible: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A TransformerBridge around a small random Hugging Face model; with `compatible`, in compatibility mode (processed)."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    torch.manual_seed(0)
    model = ARCHITECTURES[architecture]().to(dtype).eval()
    _unsettle(model)
    wrapped = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    if compatible:
        wrapped.enable_compatibility_mode(disable_warnings=True)
    return wrapped


def hooked(kind: str = "ln", **settings: object) -> nn.Module:
    """A small random HookedTransformer."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {"n_layers": N_LAYERS, "d_model": D_MODEL, "d_head": D_HEAD, "n_heads": N_HEADS, "n_ctx": N_CTX, "d_vocab": D_VOCAB}
    cfg = HookedTransformerConfig(**{**shape, "act_fn": "gelu", "seed": 0, **HOOKED[kind], **settings})
    model = HookedTransformer(cfg).eval()
    _unsettle(model)
    return model


@cache
def has_hooked_transformer() -> bool:
    """Whether this transformer-lens still has HookedTransformer (3.x)."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def tokens(batch: int = 2, pos: int = 7) -> Tensor:
    """The same tokens every time."""
    return torch.randint(0, D_VOCAB, (batch, pos), generator=torch.Generator().manual_seed(1))


def _unsettle(model: nn.Module) -> None:
    """Biases, norms and gains away from 0 and 1, so that a test that forgets one of them fails."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.add_(0.05 * noise)
