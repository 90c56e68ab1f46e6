"""A task whose best edit is known, because what is wrong with the model was put there."""

from dataclasses import dataclass

import models
import torch
from torch import Tensor, nn

from analyses.tasks import AnswerItem, Task
from hooks import place_of

WRONG = 7


@dataclass(frozen=True)
class Planted:
    """A model that answered every item right until a rank-one component was added to some of its W_out."""

    model: nn.Module
    task: Task


def planted(kind: str, *, layers: tuple[int, ...] = (1,), items: int = 100, strength: float = 60) -> Planted:
    """What is added reads the mean activation of the layer's MLP and writes the token WRONG, over everything else.

    The matrix is made orthogonal to it before, so that it is a singular component of its own, and without it the model
    is to the letter the one that gave the answers.
    """
    model, generator = models.build(kind), torch.Generator().manual_seed(0)
    prompts = torch.randint(8, models.D_VOCAB, (items, 6), generator=generator)
    added = {}
    with torch.no_grad():
        _sharpen(model, generator)
        writes = _unit(model.unembed.W_U[:, WRONG] - model.unembed.W_U.mean(1))
        for layer in layers:
            mean = _activations(model, kind, layer, prompts).flatten(0, 1).mean(0)
            reads, place = _unit(mean), place_of(model, f"blocks.{layer}.mlp.W_out")
            W = place.matrix().clone()
            W -= torch.outer(reads, reads @ W)
            W -= torch.outer(W @ writes, writes)
            _write(model, layer, W)
            added[layer] = W + strength / float(mean.norm()) * torch.outer(reads, writes)
        answers = model(prompts)[:, -1].index_fill(1, torch.tensor([WRONG]), -torch.inf).argmax(-1)
        for layer, W in added.items():
            _write(model, layer, W)
    pairs = zip(prompts.tolist(), answers.tolist(), strict=True)
    return Planted(model, Task("planted", tuple(AnswerItem(tuple(prompt), ((answer,),)) for prompt, answer in pairs)))


def _sharpen(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights large enough that what the model says depends on what it reads."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "pos" not in name and "wpe" not in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)


def _activations(model: nn.Module, kind: str, layer: int, prompts: Tensor) -> Tensor:
    name = f"blocks.{layer}.mlp.hook_post" if "hooked" in kind else f"blocks.{layer}.mlp.out.hook_in"
    return model.run_with_cache(prompts)[1][name]


def _write(model: nn.Module, layer: int, W: Tensor) -> None:
    place = place_of(model, f"blocks.{layer}.mlp.W_out")
    place.slots[0].registered().data.copy_(place.stored(W))


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()
