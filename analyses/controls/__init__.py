"""What an attribution is held against: components removed by strength alone, at random, or in rotated directions.

Components that an attribution names should do more, when they are removed, than as many strong ones, than random ones
of the same count or energy from the same matrices, and than random directions among them. `compare` measures all of
these in one call. Give it examples that were not used to find the components. How chance draws is defined in
`surgery.controls`.
"""

from analyses.controls._comparing import compare
from analyses.controls._draws import by_strength, random_selection
from analyses.controls._rotations import Directions as Directions
from analyses.controls._rotations import rotated
from analyses.controls.removals import Removals as Removals

__all__ = [
    "by_strength", "compare", "random_selection", "rotated",
]  # fmt: skip
