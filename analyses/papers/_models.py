"""The model of a run, by its name or its folder."""

import json
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from analyses.papers._settings import Settings
from analyses.truncation import Revisions
from hooks.loading import load
from surgery.arguments import shown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelError(ValueError):
    """A model that cannot be loaded, with the reason and what to do."""


def check(settings: Settings) -> None:
    """Refuse, before anything is loaded, a folder without a model and a device that is not there.

    Raises:
        ModelError: saying which.
    """
    name, path = settings.model, Path(settings.model).expanduser()
    if settings.dtype not in DTYPES:
        raise ModelError(f"--dtype {shown(settings.dtype)}: it is one of {', '.join(DTYPES)}. Choose one.")
    if settings.steps is not None:
        steps_of(settings)
    elif path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(
            f"the folder '{name}' holds no config.json: a model's folder is what save_pretrained writes, config.json, "
            "the weights and the tokenizer's files. Give that folder, or a name on the hub."
        )
    if path.is_file():
        raise ModelError(f"--model '{name}' is a file: give the folder that holds the model, or a name on the hub.")
    if not path.exists() and (not name or name[0] in "./~" or name.count("/") > 1):
        raise ModelError(f"there is no folder '{name}': give a folder that holds a model, or a name on the hub.")
    if settings.device is not None:
        _check_device(settings.device)


def checkpoints(settings: Settings) -> Revisions:
    """The checkpoints of the training that the settings name.

    Raises:
        ValueError: if the revision does not say where the step stands.
    """
    path = Path(settings.model).expanduser()
    source = path if path.is_dir() else settings.model
    return Revisions(source, settings.revision or "step{step}", settings.host, DTYPES[settings.dtype], settings.device)


def steps_of(settings: Settings) -> tuple[int, ...]:
    """The steps that are asked about, the earliest first.

    Raises:
        ValueError: if one cannot be there, or there are none.
    """
    return checkpoints(settings).steps(settings.steps or None)


def hash_of_steps(settings: Settings) -> str:
    """What tells these checkpoints from any others: a hash of their files, or of their names on the hub."""
    revisions = checkpoints(settings)
    told = json.dumps([revisions.identity(step) for step in steps_of(settings)])
    return sha256(told.encode()).hexdigest()


def loaded(settings: Settings) -> nn.Module:
    """The model that the settings ask for, its weights as the checkpoint has them; of a training the last one.

    Raises:
        ModelError: if it cannot be loaded.
    """
    path = Path(settings.model).expanduser()
    source = str(path) if path.is_dir() else settings.model
    try:
        if settings.steps is not None:
            return checkpoints(settings).load(steps_of(settings)[-1])
        return load(source, settings.revision, host=settings.host, dtype=DTYPES[settings.dtype], device=settings.device)
    except (OSError, ImportError) as error:
        raise ModelError(f"the model cannot be loaded: {error}") from error


def short_name(model: str) -> str:
    """The last part of a model's name or folder."""
    return Path(model).expanduser().name or model


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
        have = f"cpu and cuda:0 to cuda:{n - 1}" if n else "the cpu only"
        first = str(error).strip().splitlines()[0][:150]
        raise ModelError(f"--device {device} cannot be used ({first}): there is {have}. Give one of these.") from error
