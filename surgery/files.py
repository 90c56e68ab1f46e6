"""Files that are written whole: a reader finds the old one or the new one, never half of either."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import copymode
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["read_header", "read_tensors", "whole_file"]


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to, which replaces `path` when the block ends; if the block fails, `path` stays as it was.

    Of a symbolic link the target is replaced.

    Raises:
        FileNotFoundError: if the folder does not exist.
        IsADirectoryError: if `path` is a folder.
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder: give the name of a file in it.")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"'{path}' cannot be written, since there is no folder '{target.parent}': make it first."
        )
    if target.exists() and not target.is_file():  # a pipe or a device, which must not be replaced
        yield target
        return
    unfinished = target.with_name(f".{uuid4().hex}.part")
    try:
        yield unfinished
        if target.exists():
            copymode(target, unfinished)
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def read_tensors(
    path: str | Path, header: tuple[str, str], what: str, *, device: str | torch.device = "cpu"
) -> Iterator[tuple[Mapping[str, str], dict[str, Tensor]]]:
    """The metadata and the tensors of a safetensors file of this format and version; on a CPU they are mapped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or another one, or what the `with` block makes of it fails.
    """
    with _opened(path, header, what, device=device) as (metadata, file):
        yield metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


@contextmanager
def read_header(path: str | Path, header: tuple[str, str], what: str) -> Iterator[Mapping[str, str]]:
    """The metadata alone, without reading a tensor.

    Raises:
        as `read_tensors`.
    """
    with _opened(path, header, what) as (metadata, _):
        yield metadata


@contextmanager
def _opened(
    path: str | Path, header: tuple[str, str], what: str, *, device: str | torch.device = "cpu"
) -> Iterator[tuple[Mapping[str, str], safe_open]]:
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if (metadata.get("format"), metadata.get("version")) != header:
                raise ValueError(f"not one that this release wrote, version {header[1]}")
            yield metadata, file
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or not a file of {what} ({str(error)[:200]}): make them anew and save."
        ) from error
