"""Work on any engine: processes of this machine or of many, each of which loads the model by itself.

```python
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

load = engines.Loader("my_models:load", "gpt2")
with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
    result = laser.search(model, task, executor=engines.Workers(pool, load), log="search.jsonl")
```

A worker is sent a *piece* of work: the loader, what is asked (a task, tokens, a metric) and which part of it is its
own, never a model. It keeps the model that it has loaded, and shows by a fingerprint that the weights are those of the
caller's model. Results come back as they are finished, and only the caller writes them to a log. Without an executor
the same pieces are worked on here, one after the other, so that both ways give the same numbers to the last bit where
torch has as many threads, on the same kind of machine.
"""

from analyses.engines.identity import digest as digest
from analyses.engines.identity import model_fingerprint as model_fingerprint
from analyses.engines.loaders import Loader, WorkerError
from analyses.engines.work import Executor as Executor
from analyses.engines.work import Part as Part
from analyses.engines.work import PartDone as PartDone
from analyses.engines.work import Work as Work
from analyses.engines.work import carry_out as carry_out
from analyses.engines.work import run_part
from analyses.engines.workers import Workers

__all__ = ["Loader", "WorkerError", "Workers", "run_part"]
