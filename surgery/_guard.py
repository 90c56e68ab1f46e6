"""Notices a stranger's package before it is imported in place of one of ours.

`hooks`, `surgery` and `analyses` are common names. A file or a folder of that name beside a notebook comes first on the
import path, and unrelated packages called `surgery` and `hooks` can be installed. Nothing of a stranger's is run.
"""

import importlib.util
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path


def check_package(name: str) -> None:
    """Passes if `import name` gives the package installed beside this one.

    The packages lie side by side in every installation, editable or not, and that is how ours are told apart.

    Raises:
        ImportError: it is something else, or is missing. The message says what to do.
    """
    ours = _ours(name)
    found = _found(name)
    if found is None:
        raise ImportError(f"the package '{name}' is missing from '{ours.parent}': reinstall model-surgery.", name=name)
    if found.resolve() != ours:
        raise ImportError(_hidden(name, found), name=name, path=str(found))


def warn_if_hidden(name: str) -> None:
    """As `check_package`, but only a warning, for a package that nobody has asked for yet."""
    found = None if name in sys.modules else _found(name)
    if found is not None and found.resolve() != _ours(name):
        warnings.warn(_hidden(name, found), stacklevel=3)


def _ours(name: str) -> Path:
    return Path(__file__).resolve().parent.parent / name


def _hidden(name: str, found: Path) -> str:
    return (
        f"'{found}' hides the package '{name}' of model-surgery, '{_ours(name)}': rename it, or move your notebook or "
        "script to another folder. If pip put it there (the package index has unrelated packages called surgery and "
        "hooks), uninstall it and reinstall model-surgery. Then restart Python."
    )


def _found(name: str) -> Path | None:
    """The folder of the package, or the file of the module, that the name stands for; None for neither."""
    if name in sys.modules:
        module = sys.modules[name]
        return _place(getattr(module, "__path__", None), getattr(module, "__file__", None))
    spec = importlib.util.find_spec(name)
    return None if spec is None else _place(spec.submodule_search_locations, spec.origin)


def _place(folders: Iterable[str] | None, file: str | None) -> Path | None:
    place = next(iter(folders or ()), file)
    return None if place is None else Path(place)
