"""Progress bars: silent within the first second, without `progress`, and where the environment sets TQDM_DISABLE."""

from collections.abc import Iterable
from functools import partial

from tqdm.auto import tqdm

__all__ = ["progress_bar"]


def progress_bar(
    doing: str,
    items: Iterable[object] | None = None,
    *,
    progress: bool,
    total: float | None = None,
    unit: str = "it",
    unit_scale: bool = False,
    initial: int = 0,
    leave: bool = True,
) -> tqdm:
    """A bar over items, or up to a total that its caller counts with `update`; the other arguments are tqdm's."""
    # Where `disable=False` is given, tqdm does not look at TQDM_DISABLE.
    make = tqdm if progress else partial(tqdm, disable=True)
    return make(items, desc=doing, total=total, unit=unit, unit_scale=unit_scale, initial=initial, leave=leave, delay=1)
