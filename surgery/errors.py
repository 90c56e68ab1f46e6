"""What the functions of this package raise beside ValueError and TypeError, for callers who catch it."""

from hooks import EditedModelError, SiteError

__all__ = ["EditedModelError", "SiteError", "SpecFileError", "StaleDecompositionError"]


class SpecFileError(ValueError):
    """A file that does not hold a spec, or holds one for other weights."""


class StaleDecompositionError(ValueError):
    """The weights are not the ones that were decomposed."""
