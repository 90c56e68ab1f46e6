"""Where a TransformerLens model keeps its matrices, and how a weight or an activation is changed and restored.

The only package that touches a model; `surgery` and `analyses` build on it. Importing it does nothing.
"""

from hooks.hosts import Host, host_of
from hooks.patterns import match_each, match_sites, place_of
from hooks.places import Place
from hooks.sites import Site, SiteError
from hooks.slots import EditedModelError
from hooks.wires import Wire

__all__ = [
    "EditedModelError", "Host", "Place", "Site", "SiteError", "Wire", "host_of", "match_each", "match_sites",
    "place_of",
]  # fmt: skip
