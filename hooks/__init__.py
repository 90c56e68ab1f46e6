"""Where a TransformerLens model keeps its matrices, and how a weight or an activation is changed and restored.

The only package that touches a model; `surgery` and `analyses` build on it. Importing it does nothing.
"""

from hooks.ends import End
from hooks.hosts import Host, host_of
from hooks.patterns import match_each, match_sites, place_of
from hooks.places import Place
from hooks.shadows import EditedModelError
from hooks.sites import Site, SiteError

__all__ = [
    "EditedModelError", "End", "Host", "Place", "Site", "SiteError", "host_of", "match_each", "match_sites",
    "place_of",
]  # fmt: skip
