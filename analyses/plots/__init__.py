"""Figures: each function takes a result and gives a plotly figure, which is yours to show, restyle or write to a file.

Results of any kind have their figure here; those of a paper's method in a module named after the method's package.

| function | of |
|---|---|
| `components` | effects of the components of one matrix, with their strengths |
| `attribution_map` | effects summed over each matrix of each layer |
| `agreement` | effects by one method against effects by another |
| `removal_curve` | `controls.compare`: removing the k most harmful, beside the controls |
| `interactions` | `attribution.interactions` |
| `patching` | `patching.by_component`, by component or by position and component |
| `spectrum` | singular values, of decompositions or of a model, with the edge of the noise |
| `operation` | what an applied spec leaves of each matrix |
| `laser.laser_heatmap`, `laser.layer_task` | `laser.search`, by layer and ρ; several searches, by layer and task |
| `laser.rank_curve` | `laser.rank_curve`: both ends of the spectrum |
| `laser.corrected_broken` | items that a reduction corrects, beside those it breaks |
| `laser.frequency` | `laser.by_frequency`: accuracy before and after in ranges of training frequency |
| `eigenpruning.scores`, `.validation`, `.report` | `eigenpruning.prune`: scores, choice of the fraction, outcome |
| `truncation.dynamics`, `.training`, `.curve`, `.gradient_steps` | results of `truncation` |
| `truncation.over_training` | `truncation.over_training`: layer by step, for each matrix and ρ |

All are drawn with `TEMPLATE`, 700 px wide. `figure.write_image("effects.png")` needs the package kaleido and Chromium.
LASER's figures are found here too, as `plots.laser_heatmap` and so on.
"""

from analyses.plots import eigenpruning, laser, truncation
from analyses.plots._effects import agreement, components, removal_curve
from analyses.plots._maps import attribution_map, interactions, patching
from analyses.plots._style import TEMPLATE as TEMPLATE
from analyses.plots._weights import operation, spectrum
from analyses.plots.laser import corrected_broken as corrected_broken
from analyses.plots.laser import laser_heatmap as laser_heatmap
from analyses.plots.laser import layer_task as layer_task
from analyses.plots.laser import rank_curve as rank_curve

__all__ = [
    "agreement", "attribution_map", "components", "eigenpruning", "interactions", "laser", "operation",
    "patching", "removal_curve", "spectrum", "truncation",
]  # fmt: skip
