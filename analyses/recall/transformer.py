"""The two-block model of the noisy recall task, as a HookedTransformer or a TransformerBridge with the same weights.

One head a block, no normalisation, no biases; W_Q = I, embeddings, positions and unembedding are frozen, the rest is
trained.

Chen, Bruna, Bietti (arXiv:2406.03068).
"""

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from analyses.recall.task import RecallTask
from hooks import Site, host_of
from surgery.files import whole_file

Weights = Mapping[str, Float[Tensor, "row column"]]
"""The model's matrices by TransformerLens's names, each as `[d_in, d_out]`: what `weights` gives and `load` takes."""

TRAINED = tuple(f"blocks.{layer}.attn.{matrix}" for layer in (0, 1) for matrix in ("W_K", "W_V", "W_O"))
MLPS = tuple((f"blocks.{layer}.mlp.W_in", f"blocks.{layer}.mlp.W_out") for layer in (0, 1))
QUERIES = ("blocks.0.attn.W_Q", "blocks.1.attn.W_Q")
EMBED, POSITIONS, UNEMBED = "embed.W_E", "pos_embed.W_pos", "unembed.W_U"
NAMES = (EMBED, POSITIONS, *QUERIES, *TRAINED, *MLPS[0], *MLPS[1], UNEMBED)


def model(
    task: RecallTask,
    *,
    d_model: int = 128,
    mlps: tuple[bool, bool] = (False, True),
    unembed_scale: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """An untrained HookedTransformer for the task: two blocks, one head, MLPs of 4 × d_model with ReLU.

    `mlps` says which block has an MLP; one that has none gets a zero one, frozen. Embeddings and positions are N(0,
    1), the unembedding N(0, unembed_scale²), 1/√(3 d_model) unless given, and a trained matrix is uniform within
    ±1/√d_in.

    Raises:
        ImportError: on transformer-lens 4 and later, which has no HookedTransformer; `bridge` makes the same model
        there.
        ValueError: if `d_model` or `unembed_scale` is not positive.
    """
    initial = _initial_weights(task, d_model, mlps, unembed_scale, seed)
    return _loaded(_empty_hooked(task, d_model, device), initial, mlps)


def bridge(
    task: RecallTask,
    *,
    d_model: int = 128,
    mlps: tuple[bool, bool] = (False, True),
    unembed_scale: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The model that `model` makes, weight for weight, as a TransformerBridge: on transformer-lens 3.9 and on 4.

    Trained weights go into it with `load(bridge(task), path)`.

    Raises:
        ValueError: if `d_model` or `unembed_scale` is not positive.
    """
    initial = _initial_weights(task, d_model, mlps, unembed_scale, seed)
    return _loaded(_empty_bridge(task.d_vocab, task.n_ctx, d_model, device), initial, mlps)


def as_bridge(model: nn.Module) -> nn.Module:
    """A TransformerBridge with the weights of a model of `model`, trained or not; the model is left as it is."""
    held = weights(model)
    (d_vocab, d_model), n_ctx = held[EMBED].shape, len(held[POSITIONS])
    bridged = _empty_bridge(d_vocab, n_ctx, d_model, held[EMBED].device)
    return _loaded(bridged, held, _trained_mlps(model))


def weights(model: nn.Module) -> dict[str, Float[Tensor, "row column"]]:
    """Copies of the model's matrices by name, each as `[d_in, d_out]`, behind any edit; the biases are all zero.

    Raises:
        ValueError: if the model is not of the kind that `model` and `bridge` make.
    """
    _check_kind(model)
    return {name: _matrix(model, name).detach().clone(memory_format=torch.contiguous_format) for name in NAMES}


def load(model: nn.Module, source: Weights | str | Path) -> nn.Module:
    """The model, with the weights of a file of `save` or of a mapping written into it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or its matrices are not this model's; nothing was written then.
    """
    _check_kind(model)
    given = source if isinstance(source, Mapping) else _read(Path(source))
    shapes = {name: tuple(_matrix(model, name).shape) for name in NAMES}
    if {name: tuple(tensor.shape) for name, tensor in given.items()} != shapes:
        wrong = sorted(set(given) ^ set(NAMES)) or [n for n in NAMES if tuple(given[n].shape) != shapes[n]]
        there = f"{wrong[0]} of shape {tuple(given[wrong[0]].shape)}" if wrong[0] in given else f"no {wrong[0]}"
        raise ValueError(
            f"the weights hold {there}, this model has {shapes.get(wrong[0], 'none')}: make the model with the "
            f"d_model and the task that the weights were trained with."
        )
    with torch.no_grad():
        for name in NAMES:
            _write(model, name, given[name])
    return model


def save(model: nn.Module, path: str | Path) -> None:
    """Write the model's matrices to a safetensors file that `load` reads, on any version of transformer-lens."""
    with whole_file(path) as file:
        save_file({name: matrix.cpu() for name, matrix in weights(model).items()}, str(file))


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter that stores a matrix of `NAMES`."""
    if name.startswith("blocks"):
        held = host_of(model).place(Site.parse(name)).slots[0].registered()
    else:
        part, own_name = name.split(".")
        module = getattr(model, part)
        held = module._parameters.get(own_name)
        held = module.original_component.weight if held is None else held
    assert isinstance(held, nn.Parameter)
    return held


def _matrix(model: nn.Module, name: str) -> Float[Tensor, "row column"]:
    if name.startswith("blocks"):
        return host_of(model).place(Site.parse(name)).matrix()
    stored = parameter(model, name)
    return stored.mT if _is_transposed(model, name) else stored


def _write(model: nn.Module, name: str, matrix: Float[Tensor, "row column"]) -> None:
    held = parameter(model, name)
    if name.startswith("blocks"):
        held.copy_(host_of(model).place(Site.parse(name)).stored(matrix))
    else:
        held.copy_(matrix.mT if _is_transposed(model, name) else matrix)


def _is_transposed(model: nn.Module, name: str) -> bool:
    """A bridge keeps the unembedding as `[d_vocab, d_model]`."""
    return name == UNEMBED and "W_U" not in model.unembed._parameters  # type: ignore[union-attr]


def _initial_weights(
    task: RecallTask, d_model: int, mlps: tuple[bool, bool], unembed_scale: float | None, seed: int
) -> dict[str, Tensor]:
    scale = (3 * max(d_model, 1)) ** -0.5 if unembed_scale is None else unembed_scale
    if d_model < 1 or not scale > 0:
        raise ValueError(f"d_model={d_model!r}, unembed_scale={unembed_scale!r}: both are above 0; take 128 and None.")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(d_in: int, d_out: int) -> Tensor:
        return (2 * torch.rand(d_in, d_out, generator=generator) - 1) * d_in**-0.5

    made = {EMBED: normal(task.d_vocab, d_model), POSITIONS: normal(task.n_ctx, d_model)}
    made[UNEMBED] = normal(d_model, task.d_vocab) * scale
    made |= {name: torch.eye(d_model) for name in QUERIES}
    made |= {name: uniform(d_model, d_model) for name in TRAINED}
    for (W_in, W_out), wanted in zip(MLPS, mlps, strict=True):
        drawn = uniform(d_model, 4 * d_model), uniform(4 * d_model, d_model)
        made[W_in], made[W_out] = (matrix * wanted for matrix in drawn)
    return made


def _empty_hooked(task: RecallTask, d_model: int, device: torch.device | str) -> nn.Module:
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        raise ImportError(
            f"transformer-lens {version('transformer-lens')} has no HookedTransformer any more: install "
            "'transformer-lens>=3.9,<4', or make the same model with recall.bridge(task)."
        ) from error
    cfg = HookedTransformerConfig(
        n_layers=2, n_heads=1, d_model=d_model, d_head=d_model, d_mlp=4 * d_model, d_vocab=task.d_vocab,
        n_ctx=task.n_ctx, act_fn="relu", normalization_type=None, init_weights=False, device=str(device),
    )  # fmt: skip
    with warnings.catch_warnings():
        # 3.9 announces its own removal; whoever calls `model` asks for it by name, and `bridge` is there.
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        return HookedTransformer(cfg)


def _empty_bridge(d_vocab: int, n_ctx: int, d_model: int, device: torch.device | str) -> nn.Module:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    cfg = TransformerBridgeConfig(
        n_layers=2, n_heads=1, d_model=d_model, d_head=d_model, d_mlp=4 * d_model, d_vocab=d_vocab, n_ctx=n_ctx,
        act_fn="relu", normalization_type=None, init_weights=False, device=str(device),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # torch's layers draw weights of their own when they are made
        return TransformerBridge.boot_native(cfg, device=device)


def _loaded(model: nn.Module, initial: Weights, mlps: tuple[bool, bool]) -> nn.Module:
    """The model with these weights, every bias zero, and only what is trained left to train."""
    trained = {*TRAINED, *(name for names, wanted in zip(MLPS, mlps, strict=True) if wanted for name in names)}
    for held in model.parameters():
        held.requires_grad_(False).zero_()
    load(model, initial)
    for name in trained:
        parameter(model, name).requires_grad_(True)
    return model.eval()


def _trained_mlps(model: nn.Module) -> tuple[bool, bool]:
    first, second = (any(parameter(model, name).requires_grad for name in names) for names in MLPS)
    return first, second


def _check_kind(model: nn.Module) -> None:
    cfg = getattr(model, "cfg", None)
    held = tuple(getattr(cfg, name, None) for name in ("n_layers", "n_heads", "act_fn", "normalization_type"))
    if held != (2, 1, "relu", None):
        raise ValueError(
            f"this model has (n_layers, n_heads, act_fn, normalization_type) = {held!r}, the recall task's model has "
            "(2, 1, 'relu', None): make one with recall.model(task) or recall.bridge(task)."
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}): save the trained model again."
        ) from error
