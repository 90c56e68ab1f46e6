"""One model at several steps of its training, as weights, models, or functions that load them."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import nn

from analyses.toys.recall_model import Weights
from analyses.toys.recall_training import TrainingRun

Checkpoint: TypeAlias = Weights | nn.Module | Callable[[], nn.Module]
Checkpoints: TypeAlias = TrainingRun | Mapping[int, Checkpoint]
"""Training steps and what the model was then: weights as `recall.train` keeps them, a model, or a function that loads
one."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def by_step(checkpoints: Checkpoints) -> dict[int, Checkpoint]:
    """The checkpoints, the earliest first.

    Raises:
        ValueError: if there are none.
    """
    steps = dict(checkpoints.checkpoints if isinstance(checkpoints, TrainingRun) else checkpoints)
    if not steps:
        raise ValueError(
            "there are no checkpoints: give {training step: weights or model}, or train with checkpoints=(0, 50, ...)."
        )
    return {step: steps[step] for step in sorted(steps)}


def model_of(checkpoint: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The model, loaded if it has to be."""
    return checkpoint if isinstance(checkpoint, nn.Module) else checkpoint()


def refuse_other_shapes(first: tuple[int, Shapes], step: int, shapes: Shapes) -> None:
    """Refuse a checkpoint whose matrices differ in shape from those of the first one.

    Raises:
        ValueError: if one does.
    """
    start, expected = first
    other = next((name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)), None)
    if other is not None:
        raise ValueError(
            f"checkpoint {step} has {other} of shape {shapes.get(other)}, checkpoint {start} {expected.get(other)}: "
            "the checkpoints of a sweep are one model at several steps. Sweep other models by themselves."
        )
