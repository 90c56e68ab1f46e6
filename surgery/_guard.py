"""Notices a stranger's `hooks` before it is imported in place of ours.

`hooks` is a common name, and a file `hooks.py` or a folder `hooks/` beside a notebook comes first on the import path.
"""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path


def check_hooks_package() -> None:
    """Passes if `import hooks` gives the package installed beside this one; runs nothing of a stranger's.

    The two packages lie side by side in every installation, editable or not, and that is how ours is told apart.

    Raises:
        ImportError: `hooks` is something else, or is missing. The message says what to do.
    """
    ours = Path(__file__).resolve().parent.parent / "hooks"
    found = _already_imported() if "hooks" in sys.modules else _to_be_imported()
    if found is None:
        raise ImportError(
            f"the package 'hooks' is missing from '{ours.parent}': reinstall model-surgery.", name="hooks"
        )
    if found.resolve() != ours:
        raise ImportError(
            f"'{found}' hides the package 'hooks' that surgery needs, '{ours}': rename it, or move your notebook or "
            "script to another folder, then restart Python.",
            name="hooks",
            path=str(found),
        )


def _already_imported() -> Path | None:
    module = sys.modules["hooks"]
    return _place(getattr(module, "__path__", None), getattr(module, "__file__", None))


def _to_be_imported() -> Path | None:
    spec = importlib.util.find_spec("hooks")
    return None if spec is None else _place(spec.submodule_search_locations, spec.origin)


def _place(folders: Iterable[str] | None, file: str | None) -> Path | None:
    """The folder of a package, the file of a module, None for what has neither."""
    place = next(iter(folders or ()), file)
    return None if place is None else Path(place)
