"""LASER: searching the layer, the matrix and the rank whose reduction makes a model better at a task.

```python
result = laser.search(model, task, sites="blocks.*.mlp.W_{in,out}", rhos=laser.PAPER_RHOS, seed=0)
print(result)
with surgery.apply(model, result.spec):
    ...
```

Candidates are compared on validation items, by accuracy and then log-loss, or by any metric; the test items are looked
at once. What lies before an edited matrix is computed once and reused.

These arguments mean the same in every function:

- `model`: a HookedTransformer or a TransformerBridge. It is as it was when the function returns or is interrupted.
- `task`: a task or a list of items. A search splits it into 10 % screen, 20 % validation and 70 % test items, or takes
  splits of your own; `rank_curve` and `random_controls` score all items.
- `sites`, `site`: a pattern of matrices or several; exactly one matrix or head.
- `rhos`: fractions of the full rank.
- `edits`: what to try. Cuts such as `KeepTop` or `DropTop`, and families such as `ByRho(KeepTop, RowBlocks(4))` or
  `Published(seed=0)`, are tried at every ρ; single edits such as `DropTop(rank=1)` once.
- `seed`: of the split, of the order of the items in a race, of the intervals and of random controls.
- `rule`: what counts as right, as in `scoring.score`; or a metric to choose by in the place of accuracy, such as
  `metrics.logit_difference()` (right against wrong) or `metrics.kl_from_run()` (least changed).
- `prepend_bos`: overrides the model's own setting.
- `text`: plain text on which the cost of the chosen edits is measured.
- `svds`: a store of decompositions; new ones are added.
- `batch_size`: sequences a pass; as many as the memory allows by default.
- `memory`: bytes for activations. Recordings of earlier layers take at most so much, a pass about a quarter of it.
- `log`: a file to which results go as they are finished, and from which the same search goes on after it was stopped.
  With more or other candidates it is another search, which needs a file of its own.
- `executor`: who tries the candidates: `analyses.engines.Workers`, or this process. The results are the same. Workers
  decompose by themselves, so that `svds` is left out, and each takes `memory` for itself.
- `progress`: whether to show progress bars.

Source: Sharma, Ash and Misra, "The Truth is in There" (arXiv:2312.13558).
"""

from analyses.laser import studies
from analyses.laser._race import Screened
from analyses.laser._resume import Log as Log
from analyses.laser._resume import LogError as LogError
from analyses.laser._resume import join_logs
from analyses.laser._resume import model_fingerprint as model_fingerprint
from analyses.laser._trials import MEMORY as MEMORY
from analyses.laser._trials import Trial as Trial
from analyses.laser.candidates import MLP as MLP
from analyses.laser.candidates import PAPER_RHOS, ByRho, Published
from analyses.laser.candidates import Candidate as Candidate
from analyses.laser.candidates import Family as Family
from analyses.laser.complements import Complement as Complement
from analyses.laser.complements import MinorAnswers as MinorAnswers
from analyses.laser.complements import Similarity as Similarity
from analyses.laser.complements import minor_answers as minor_answers
from analyses.laser.complements import similarity_of_embeddings as similarity_of_embeddings
from analyses.laser.complements import similarity_of_texts as similarity_of_texts
from analyses.laser.compose import Composition as Composition
from analyses.laser.compose import Step as Step
from analyses.laser.compose import compose
from analyses.laser.curves import FINE_RHOS as FINE_RHOS
from analyses.laser.curves import Controls as Controls
from analyses.laser.curves import RankCurve as RankCurve
from analyses.laser.curves import random_controls, rank_curve
from analyses.laser.search import SearchResult, search
from analyses.laser.search import TextCost as TextCost
from analyses.laser.studies import Robustness as Robustness
from analyses.laser.studies import by_frequency as by_frequency
from analyses.laser.studies import effective_ranks as effective_ranks
from analyses.laser.studies import layer_task_map as layer_task_map
from analyses.laser.studies import paraphrase_robustness as paraphrase_robustness
from analyses.laser.studies import published_distance as published_distance

__all__ = [
    "PAPER_RHOS", "ByRho", "Published", "Screened", "SearchResult", "compose", "join_logs", "random_controls",
    "rank_curve", "search", "studies",
]  # fmt: skip
