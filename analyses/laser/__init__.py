"""LASER: searching the layer, the matrix and the rank whose reduction makes a model better at a task.

```python
result = laser.search(model, task, sites="blocks.*.mlp.W_{in,out}", rhos=laser.PAPER_RHOS, seed=0)
print(result)
with surgery.apply(model, result.spec):
    ...
```

Source: Sharma, Ash and Misra, "The Truth is in There" (arXiv:2312.13558). Candidates are chosen on validation items, by
accuracy and then log-loss; the test items are looked at once. What lies before an edited matrix is computed once.
"""

from analyses.laser.candidates import PAPER_RHOS, ByRho, Candidate, Family, Published
from analyses.laser.composition import Composition, Step, compose
from analyses.laser.curves import FINE_RHOS, Controls, RankCurve, random_controls, rank_curve
from analyses.laser.evaluation import MEMORY
from analyses.laser.log import LogError
from analyses.laser.race import Screened
from analyses.laser.reports import TextCost
from analyses.laser.results import SearchResult
from analyses.laser.searching import MLP, search
from analyses.laser.studies import (
    Robustness,
    by_frequency,
    effective_ranks,
    layer_task_map,
    paraphrase_robustness,
    published_distance,
)  # fmt: skip
from analyses.laser.trials import Trial

__all__ = [
    "FINE_RHOS", "MEMORY", "MLP", "PAPER_RHOS", "ByRho", "Candidate", "Composition", "Controls", "Family", "LogError",
    "Published", "RankCurve", "Robustness", "Screened", "SearchResult", "Step", "TextCost", "Trial", "by_frequency",
    "compose", "effective_ranks", "layer_task_map", "paraphrase_robustness", "published_distance", "random_controls",
    "rank_curve", "search",
]  # fmt: skip
