"""Which single components changed the output, and by how much.

| function | effect of removing one component | cost in forward passes |
|---|---|---|
| `by_gradient` | to first order, or clean to corrupted | about 2, for every component of every matrix |
| `by_readout` | blocks to first order, what comes after them exactly | 7 to 18, for every component of every matrix |
| `by_fisher` | on a loss, with the Fisher diagonal | 10, for every component of every matrix |
| `by_curvature` | to second order, estimated | about 200, for every component of every matrix |
| `by_exact_curvature` | to second order, exact diagonal | 2 for each component |
| `by_ablation` | exact, one at a time | part of 1 for each component |

and shares of what a whole spec changes, which sum to it: `by_path` (integrated gradients, with a certificate) and
`by_shapley`. `interactions` measures how pairs depend on each other; `screen` runs the cascade from cheap to exact.

**effect = metric with the component removed − metric now**, everywhere; where something else was done to it,
`effects.intervention` says so.

Examples are token ids, texts, or a tokenizer's output with its mask (`analyses.prompts`); a metric is one of
`analyses.metrics` or a plain function of the logits, which always sees the whole batch (`metrics.as_metric`).
"""

from analyses.attribution._cascade import Screening as Screening
from analyses.attribution._cascade import screen
from analyses.attribution._curvature import by_curvature, by_fisher
from analyses.attribution._curvature import by_exact_curvature as by_exact_curvature
from analyses.attribution._gradients import by_gradient
from analyses.attribution._paths import by_path
from analyses.attribution._readout import by_readout
from analyses.attribution.ablations import by_ablation
from analyses.attribution.effects import Effects, Shares
from analyses.attribution.effects import Measure as Measure
from analyses.attribution.selections import Selection
from analyses.attribution.shapley import Interactions as Interactions
from analyses.attribution.shapley import by_shapley, interactions

__all__ = [
    "Effects", "Selection", "Shares", "by_ablation", "by_curvature", "by_fisher", "by_gradient", "by_path",
    "by_readout", "by_shapley", "interactions", "screen",
]  # fmt: skip
