"""Figures: each takes a result and gives a plotly figure, which is yours to show, restyle or write to a file.

| function | of |
|---|---|
| `components` | effects of the components of one matrix, with their strengths |
| `attribution_map` | effects summed over each matrix of each layer |
| `agreement` | effects by one method against effects by another |
| `removal_curve` | `controls.compare`: removing the k most harmful, beside the controls |
| `interactions` | `attribution.interactions` |
| `patching` | `patching.by_component`, by component or by position and component |
| `spectrum` | singular values, with the edge of the noise |
| `operation` | what an applied spec leaves of each matrix |
| `laser_heatmap`, `layer_task` | `laser.search`, by layer and ρ; several searches, by layer and task |
| `rank_curve` | `laser.rank_curve`: both ends of the spectrum |
| `corrected_broken` | items that a reduction corrects, beside those it breaks |
| `eigenpruning.scores`, `.validation`, `.report` | `eigenpruning.prune`: scores, choice of the fraction, outcome |
| `truncation.dynamics`, `.training`, `.curve`, `.gradient_steps` | results of `truncation` |

All are drawn with `TEMPLATE`, 700 px wide. `figure.write_image("effects.png")` needs the package kaleido and Chromium.
"""

from analyses.plots import eigenpruning, truncation
from analyses.plots.effects import agreement, components, removal_curve
from analyses.plots.laser import corrected_broken, laser_heatmap, layer_task, rank_curve
from analyses.plots.maps import attribution_map, interactions, patching
from analyses.plots.style import TEMPLATE
from analyses.plots.weights import operation, spectrum

__all__ = [
    "TEMPLATE",
    "agreement",
    "attribution_map",
    "components",
    "corrected_broken",
    "eigenpruning",
    "interactions",
    "laser_heatmap",
    "layer_task",
    "operation",
    "patching",
    "rank_curve",
    "removal_curve",
    "spectrum",
    "truncation",
]
