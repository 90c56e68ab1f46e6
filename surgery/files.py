"""Files that are written whole: a reader finds the old one or the new one, never half of either."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copymode
from uuid import uuid4

__all__ = ["whole_file"]


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
