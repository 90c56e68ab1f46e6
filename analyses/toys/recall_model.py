"""The two-block model of the noisy recall task, as a HookedTransformer or a TransformerBridge with the same weights.

One head a block, no normalisation, no biases; W_Q = I, embeddings, positions and unembedding are frozen, the rest is
trained.

Chen, Bruna, Bietti (arXiv:2406.03068).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from analyses.toys.factory import Shape, hooked_transformer, transformer_bridge
from analyses.toys.recall_task import RecallTask
from hooks.weights import EMBED, POSITIONS, UNEMBED, architecture, parameters, read, write
from surgery.arguments import positive, whole
from surgery.files import whole_file

Weights = Mapping[str, Float[Tensor, "row column"]]
"""The model's matrices by TransformerLens's names, each as `[d_in, d_out]`: what `weights` gives and `load` takes."""

TRAINED = tuple(f"blocks.{layer}.attn.{matrix}" for layer in (0, 1) for matrix in ("W_K", "W_V", "W_O"))
MLPS = tuple((f"blocks.{layer}.mlp.W_in", f"blocks.{layer}.mlp.W_out") for layer in (0, 1))
QUERIES = ("blocks.0.attn.W_Q", "blocks.1.attn.W_Q")
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

    >>> from analyses import recall
    >>> type(recall.model(recall.RecallTask.synthetic(), d_model=8)).__name__  # transformer-lens 3
    'HookedTransformer'

    `mlps` says which block has an MLP; one that has none gets a zero one, frozen. Embeddings and positions are N(0,
    1), the unembedding N(0, unembed_scale²), 1/√(3 d_model) unless given, and a trained matrix is uniform within
    ±1/√d_in.

    Raises:
        ImportError: on transformer-lens 4 and later, which has no HookedTransformer; `bridge` makes the same model
        there.
        ValueError: if `d_model` or `unembed_scale` is not positive.
    """
    initial = _initial_weights(task, d_model, mlps, unembed_scale, seed)
    empty = hooked_transformer(_shape(initial), device=device, instead="recall.bridge(task)")
    return _loaded(empty, initial, mlps)


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

    >>> from analyses import recall
    >>> type(recall.bridge(recall.RecallTask.synthetic(), d_model=8)).__name__
    'TransformerBridge'

    Trained weights go into it with `load(bridge(task), path)`.

    Raises:
        ValueError: if `d_model` or `unembed_scale` is not positive.
    """
    initial = _initial_weights(task, d_model, mlps, unembed_scale, seed)
    return _loaded(transformer_bridge(_shape(initial), device=device), initial, mlps)


def as_bridge(model: nn.Module) -> nn.Module:
    """A TransformerBridge with the weights of a recall model, trained or not; the model is left as it is.

    >>> from analyses import recall
    >>> small = recall.bridge(recall.RecallTask.synthetic(), d_model=8)
    >>> recall.as_bridge(small) is small
    False
    """
    copies = weights(model)
    first, second = (any(p.requires_grad for p in parameters(model, names).values()) for names in MLPS)
    empty = transformer_bridge(_shape(copies), device=copies[EMBED].device)
    return _loaded(empty, copies, (first, second))


def weights(model: nn.Module) -> dict[str, Float[Tensor, "row column"]]:
    """Copies of the model's matrices by name, each as `[d_in, d_out]`, behind any edit; the biases are all zero.

    >>> from analyses import recall
    >>> recall.weights(recall.bridge(recall.RecallTask.synthetic(), d_model=8))["blocks.1.mlp.W_out"].shape
    torch.Size([32, 8])

    Raises:
        ValueError: if the model is not of the kind that `recall.model` and `recall.bridge` make.
    """
    _check_kind(model)
    return read(model, NAMES)


def load(model: nn.Module, source: Weights | str | Path) -> nn.Module:
    """The model, with the weights of a file of `save` or of a mapping written into it.

    >>> from analyses import recall
    >>> task = recall.RecallTask.synthetic()
    >>> other = recall.load(recall.bridge(task, d_model=8, seed=1), recall.weights(recall.bridge(task, d_model=8)))

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or its matrices are not this model's; nothing was written then.
    """
    _check_kind(model)
    matrices = source if isinstance(source, Mapping) else _from_file(Path(source))
    shapes = {name: tuple(matrix.shape) for name, matrix in read(model, NAMES).items()}
    if {name: tuple(tensor.shape) for name, tensor in matrices.items()} != shapes:
        wrong = sorted(set(matrices) ^ set(NAMES)) or [n for n in NAMES if tuple(matrices[n].shape) != shapes[n]]
        there = f"{wrong[0]} of shape {tuple(matrices[wrong[0]].shape)}" if wrong[0] in matrices else f"no {wrong[0]}"
        raise ValueError(
            f"the weights hold {there}, this model has {shapes.get(wrong[0], 'none')}: make the model with the "
            f"d_model and the task that the weights were trained with."
        )
    write(model, matrices)
    return model


def save(model: nn.Module, path: str | Path) -> None:
    """Write the model's matrices to a safetensors file that `load` reads, on any version of transformer-lens.

    >>> from analyses import recall
    >>> small = recall.bridge(recall.RecallTask.synthetic(), d_model=8)
    >>> recall.save(small, "small.safetensors")
    >>> again = recall.load(recall.bridge(recall.RecallTask.synthetic(), d_model=8, seed=1), "small.safetensors")
    >>> all(torch.equal(x, y) for x, y in zip(recall.weights(small).values(), recall.weights(again).values()))
    True
    """
    with whole_file(path) as file:
        save_file({name: matrix.cpu() for name, matrix in weights(model).items()}, str(file))


def _initial_weights(
    task: RecallTask, d_model: int, mlps: tuple[bool, bool], unembed_scale: float | None, seed: int
) -> dict[str, Tensor]:
    whole(d_model, "d_model", least=1)
    scale = (3 * d_model) ** -0.5 if unembed_scale is None else positive(unembed_scale, "unembed_scale")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(d_in: int, d_out: int) -> Tensor:
        return (2 * torch.rand(d_in, d_out, generator=generator) - 1) * d_in**-0.5

    initial = {EMBED: normal(task.d_vocab, d_model), POSITIONS: normal(task.n_ctx, d_model)}
    initial[UNEMBED] = normal(d_model, task.d_vocab) * scale
    initial |= {name: torch.eye(d_model) for name in QUERIES}
    initial |= {name: uniform(d_model, d_model) for name in TRAINED}
    for names, has_mlp in zip(MLPS, mlps, strict=True):
        # Drawn for a block without an MLP too, so that all other weights of a seed are the same with and without it.
        drawn = uniform(d_model, 4 * d_model), uniform(4 * d_model, d_model)
        initial |= {name: matrix * has_mlp for name, matrix in zip(names, drawn, strict=True)}
    return initial


def _shape(weights: Weights) -> Shape:
    """The shape of the model that these weights fit into."""
    (d_vocab, d_model), n_ctx = weights[EMBED].shape, len(weights[POSITIONS])
    return Shape(2, 1, d_model, d_vocab, n_ctx, act_fn="relu", normalization_type=None)


def _loaded(model: nn.Module, initial: Weights, mlps: tuple[bool, bool]) -> nn.Module:
    """The model with these weights, every bias zero, and only what is trained left to train."""
    for weight in model.parameters():
        weight.requires_grad_(False).zero_()
    load(model, initial)
    of_mlps = [name for names, has_mlp in zip(MLPS, mlps, strict=True) if has_mlp for name in names]
    for weight in parameters(model, [*TRAINED, *of_mlps]).values():
        weight.requires_grad_(True)
    return model.eval()


def _check_kind(model: nn.Module) -> None:
    kind = tuple(architecture(model).values())
    if kind != (2, 1, "relu", None):
        raise ValueError(
            f"this model has (n_layers, n_heads, act_fn, normalization_type) = {kind!r}, the recall task's model has "
            "(2, 1, 'relu', None): make one with recall.model(task) or recall.bridge(task)."
        )


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}): save the trained model again."
        ) from error
