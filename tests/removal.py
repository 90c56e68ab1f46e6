"""The effect of removing components, the slow way: the weight overwritten by hand, the whole model run again."""

from collections.abc import Callable, Sequence

import by_hand
import torch
from torch import Tensor, nn


def effect(model: nn.Module, address: str, components: Sequence[int], value: Callable[[], Tensor]) -> Tensor:
    """`value()` with these components of the matrix gone, minus `value()` now. The model is left as it was."""
    return regained_effect(model, {address: dict.fromkeys(components, 0.0)}, value)


def regained_effect(
    model: nn.Module, gains: dict[str, dict[int, float]], value: Callable[[], Tensor], *, step: float = 1.0
) -> Tensor:
    """`value()` with singular values multiplied by gains (a part `step` of the way), minus `value()` now."""
    with torch.no_grad():
        before = value()
        kept = {address: by_hand.read(model, address) for address in gains}
        for address, chosen in gains.items():
            W = by_hand.read(model, address)
            U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
            changed = W.double()
            for i, gain in chosen.items():
                changed = changed + step * (gain - 1) * S[i] * torch.outer(U[:, i], Vh[i])
            by_hand.write(model, address, changed.to(W.dtype))
        after = value()
        for address, W in kept.items():
            by_hand.write(model, address, W)
        return (after - before).float()


def slope(model: nn.Module, address: str, component: int, value: Callable[[], Tensor], *, h: float = 1e-2) -> Tensor:
    """`∂ value / ∂ γ` by a central difference."""
    up = regained_effect(model, {address: {component: 1 + h}}, value)
    down = regained_effect(model, {address: {component: 1 - h}}, value)
    return (up - down) / (2 * h)
