"""Where numbers come from: versions, weights, data, and the command that made them."""

import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import pandas as pd
from torch import nn

from analyses.papers._items import Items
from analyses.papers._models import steps_of
from analyses.papers._reports import Section
from analyses.papers._settings import Settings
from hooks import host_of
from hooks.sizes import device_in_words, nbytes
from surgery.arguments import counted

_PACKAGES = ("model-surgery", "torch", "transformer-lens", "transformers", "numpy")


def section(
    model: nn.Module, items: Items, settings: Settings, *, split: str, fingerprint: str, arguments: Sequence[str]
) -> Section:
    """The section of a report from which somebody else can repeat the run."""
    host = host_of(model)
    facts = {
        "command": f"`{command(arguments)}`",
        "model": f"`{settings.model}`"
        + (f" at revision `{settings.revision}`" if settings.revision else "")
        + (f" at the steps {', '.join(map(str, steps_of(settings)))}" if settings.steps is not None else ""),
        "host": f"{type(model).__name__}, {host.n_layers} layers, d_model {host.d_model}, "
        f"{nbytes(model) / 2**20:,.1f} MiB of weights in {str(host.dtype).removeprefix('torch.')}",
        "weight state": host.weight_state(),
        "fingerprint of the weights": f"`{fingerprint}`" + ("" if settings.steps is None else ", of the last step"),
        "task": f"{items.origin}, {counted(len(items.task), 'item')} of kind {items.task.kind}",
        "data": f"SHA-256 `{items.file_hash}`" if items.file_hash else "no file: the items are made or fetched",
        "items": f"SHA-256 `{items.items_hash}`",
        "split": split,
        "seed": str(settings.seed),
        "ran on": device_in_words(model),
        **{name: _version(name) for name in _PACKAGES},
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }
    return Section("How to repeat this", (), (pd.DataFrame(facts.items(), columns=["what", "value"]),))


def command(arguments: Sequence[str]) -> str:
    """The command line, as it can be typed again."""
    return shlex.join(["python", "-m", "analyses.papers", *arguments])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
