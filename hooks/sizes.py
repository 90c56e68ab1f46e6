"""What a model weighs and where it runs."""

import torch
from torch import nn

from hooks.hosts import host_of

__all__ = ["device_in_words", "nbytes"]


def nbytes(model: nn.Module) -> int:
    """The bytes of the model's parameters, each counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def device_in_words(model: nn.Module) -> str:
    """What the model runs on: the device, its name where it is a CUDA device, and on a CPU the number of threads."""
    device, threads = host_of(model).device, torch.get_num_threads()
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, {threads} thread{'s' if threads != 1 else ''}"
