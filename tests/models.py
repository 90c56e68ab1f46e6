"""Tiny random models of every supported kind, built in memory: nothing is downloaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import pytest
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

MORE_ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=D_VOCAB, hidden_size=D_MODEL, n_layer=2, n_head=4)),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**_COMMON)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_GROUPED, head_dim=D_HEAD)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**_GROUPED)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**_COMMON, word_embed_proj_dim=D_MODEL, ffn_dim=64)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**_GROUPED, pad_token_id=0)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_GROUPED, head_dim=D_HEAD)),
    "stablelm": lambda: hf.StableLmForCausalLM(hf.StableLmConfig(**_GROUPED)),
}
"""Others that work because they are built from the same parts; tried in one test."""

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
    "experts": {"normalization_type": "RMS", "gated_mlp": True, "num_experts": 4, "experts_per_token": 2},
}
"""Settings of small HookedTransformers; the MLPs of "experts" cannot be edited."""

_HOOKED_NAMES = [f"hooked {kind}" for kind in HOOKED]
_BRIDGE_NAMES = [f"bridge {architecture}{form}" for form in ("", " compatible") for architecture in ARCHITECTURES]


def kinds(*names: str) -> list:
    """Names that `build` takes, as parameters; those of HookedTransformer are skipped where there is none."""
    return [pytest.param(name, marks=pytest.mark.hooked) if name.startswith("hooked") else name for name in names]


EVERY_KIND = kinds(*_HOOKED_NAMES, *_BRIDGE_NAMES)
"""Every supported kind of model."""
SOME_KINDS = kinds("hooked ln", "hooked rms-folded-grouped-rotary", "bridge gpt2", "bridge llama compatible")
"""A few that differ in everything: host, layout, gates, grouped heads, processed weights."""
ONE_OF_EACH = kinds("hooked ln", "bridge gpt2")
"""The two hosts."""


def build(kind: str, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A new model of a kind, such as "hooked ln", "bridge gpt2" or "bridge gpt2 compatible"."""
    host, name, *form = kind.split()
    if host == "hooked":
        return hooked(name, dtype=dtype)
    return bridge(name, compatible=bool(form), dtype=dtype)


_built: dict[str, nn.Module] = {}


@contextmanager
def borrowed(kind: str) -> Iterator[nn.Module]:
    """A model of this kind that tests share, and the check that it is given back as it was, to the last bit."""
    model = _built.pop(kind, None) or _warm(build(kind))
    before = State(model)
    yield model
    before.assert_unchanged(model)
    _built[kind] = model


def _warm(model: nn.Module) -> nn.Module:
    """The model after one use: a bridge sets up attributes and hooks of its own when it first runs."""
    with torch.no_grad():
        model.run_with_cache(tokens())
    return model


class State:
    """Everything of a model that has to be as it was after an edit."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = [(name, tensor, tensor.detach().clone()) for name, tensor in _tensors(model)]
        self.plain = [(key, tensor, tensor.detach().clone()) for key, tensor in _plain_tensors(model)]
        self.structure = _structure(model)
        self.ignored: set[int] = set()

    def ignore(self, part: str, model: nn.Module) -> None:
        """Leave the parameters of modules with this name out of the comparison."""
        ignored = {
            id(p) for name, m in model.named_modules() if part in name.split(".") for p in m._parameters.values()
        }
        self.ignored = ignored

    def assert_unchanged(self, model: nn.Module, *, same_tensors: bool = True) -> None:
        """Fails on any difference; with `same_tensors` the parameters have to be the same objects too."""
        assert _structure(model) == self.structure
        for (name, was, value), (_, tensor) in zip(self.tensors, _tensors(model), strict=True):
            assert tensor is was or not same_tensors, name
            assert (tensor.dtype, tensor.shape) == (value.dtype, value.shape), name
            assert id(was) in self.ignored or torch.equal(tensor, value), name
        for (key, was, value), (_, tensor) in zip(self.plain, _plain_tensors(model), strict=True):
            assert tensor is was or not same_tensors, key
            assert torch.equal(tensor, value), key


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    found = [(f"{i}.{name}", p) for i, module in enumerate(model.modules()) for name, p in module._parameters.items()]
    found += [(f"{i}.{name}", b) for i, module in enumerate(model.modules()) for name, b in module._buffers.items()]
    return [(name, tensor) for name, tensor in found if tensor is not None]


def _plain_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights that a bridge keeps as plain attributes, and whatever somebody has laid over a parameter."""
    held = [
        (i, m, key, v) for i, m in enumerate(model.modules()) for key, v in m.__dict__.items() if isinstance(v, Tensor)
    ]
    return [(f"{i}.{key}", value) for i, m, key, value in held if key.startswith("_processed_") or key in m._parameters]


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def _structure(model: nn.Module) -> list:
    modules = [
        (
            type(m).__name__,
            sorted(m.__dict__),
            list(m._parameters),
            list(m._buffers),
            [list(getattr(m, h)) for h in _HOOKS],
        )
        for m in model.modules()
    ]
    return [list(model.state_dict()), modules]


def hugging_face(architecture: str, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small random Hugging Face model, the one that `bridge` wraps."""
    torch.manual_seed(0)
    model = {**ARCHITECTURES, **MORE_ARCHITECTURES}[architecture]().to(dtype).eval()
    _unsettle(model)
    return model


def bridge(architecture: str, *, compatible: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A TransformerBridge around a small random Hugging Face model; with `compatible`, in compatibility mode."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = hugging_face(architecture, dtype=dtype)
    wrapped = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    if compatible:
        wrapped.enable_compatibility_mode(disable_warnings=True)
    return wrapped


def hooked(kind: str = "ln", **settings: object) -> nn.Module:
    """A small random HookedTransformer."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {
        "n_layers": N_LAYERS,
        "d_model": D_MODEL,
        "d_head": D_HEAD,
        "n_heads": N_HEADS,
        "n_ctx": N_CTX,
        "d_vocab": D_VOCAB,
        "device": "cpu",  # its own choice would be a GPU, if there is one
    }
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


def one_layer(kind: str) -> nn.Module:
    """A model of one layer, "hooked ln" or "bridge gpt2", for what takes long with every layer: torch.compile does."""
    if kind == "hooked ln":
        return hooked("ln", n_layers=1)
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    torch.manual_seed(0)
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**{**_GPT, "n_layer": 1})).eval()
    _unsettle(model)
    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def tokens(batch: int = 2, pos: int = 7) -> Tensor:
    """The same tokens every time."""
    return torch.randint(0, D_VOCAB, (batch, pos), generator=torch.Generator().manual_seed(1))


def hidden_sites(kind: str) -> set[str]:
    """What a second normalisation separates from the next hook point."""
    return (
        {f"blocks.{i}.{m}" for i in range(2) for m in ("attn.W_O", "mlp.W_out")}
        if kind == "hooked post-norm"
        else set()
    )


def _unsettle(model: nn.Module) -> None:
    """Biases, norms and gains away from 0 and 1, so that a test that forgets one of them fails."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.add_(0.05 * noise)
