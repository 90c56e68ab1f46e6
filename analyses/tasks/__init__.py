"""Tasks: prompts with answers, choices among labels, minimal pairs; read from files, made, split, and checked.

```python
from analyses import scoring, tasks

task = tasks.from_jsonl("facts.jsonl")
parts = task.split(screen=0.1, validation=0.2, test=0.7, seed=0)
scores = scoring.score(model, parts.test)
```
"""

from analyses.tasks.files import TaskFileError
from analyses.tasks.formats import from_bigbench, from_blimp, from_counterfact, from_truthfulqa
from analyses.tasks.generators import addition, greater_than, ioi, multiplication, recall
from analyses.tasks.items import AnswerItem, ChoiceItem, Item, MinimalPair, Text, Unscorable
from analyses.tasks.readers import from_csv, from_datasets, from_jsonl, from_records
from analyses.tasks.task import Splits, Task

__all__ = [
    "AnswerItem",
    "ChoiceItem",
    "Item",
    "MinimalPair",
    "Splits",
    "Task",
    "TaskFileError",
    "Text",
    "Unscorable",
    "addition",
    "from_bigbench",
    "from_blimp",
    "from_counterfact",
    "from_csv",
    "from_datasets",
    "from_jsonl",
    "from_records",
    "from_truthfulqa",
    "greater_than",
    "ioi",
    "multiplication",
    "recall",
]
