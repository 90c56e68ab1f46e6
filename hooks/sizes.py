"""What a model weighs and where it runs."""

from pathlib import Path

import torch
from torch import nn

from hooks.hosts import host_of

__all__ = ["device_in_words", "free_memory", "nbytes"]

_MEMINFO = Path("/proc/meminfo")


def nbytes(model: nn.Module) -> int:
    """The bytes of the model's parameters, each counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def device_in_words(model: nn.Module) -> str:
    """What the model runs on: the device, its name where it is a CUDA device, and on a CPU the number of threads."""
    device, threads = host_of(model).device, torch.get_num_threads()
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, {threads} thread{'s' if threads != 1 else ''}"


def free_memory(device: torch.device) -> int | None:
    """The bytes that can be allocated on a device now; None where the system does not tell."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, free for us
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    lines = _MEMINFO.read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
