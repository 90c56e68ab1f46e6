"""Tasks: prompts with answers, choices among labels, minimal pairs; read from files, made, split, and checked.

```python
from analyses import scoring, tasks

task = tasks.from_jsonl("facts.jsonl")
parts = task.split(screen=0.1, validation=0.2, test=0.7, seed=0)
scores = scoring.score(model, parts.test)
```

`from_jsonl`, `from_csv`, `from_records` and `from_datasets` read the same fields; `from_counterfact`, `from_bigbench`,
`from_truthfulqa` and `from_blimp` read published files. `ioi`, `greater_than`, `addition`, `multiplication` and
`recall` make a task. `recipes()` lists the papers' own tasks, and `recipe("bios-gender").task(file)` reads one as the
paper does, with the rule that it is scored by. What every item has is told by `tasks.Item`; a file that cannot be read
raises `tasks.TaskFileError`.
"""

from analyses.tasks._benchmarks import from_bigbench, from_blimp, from_counterfact, from_truthfulqa
from analyses.tasks._generators import addition, greater_than, ioi, multiplication, recall
from analyses.tasks._json_csv import TaskFileError as TaskFileError
from analyses.tasks._readers import from_csv, from_datasets, from_jsonl, from_records
from analyses.tasks.items import AnswerItem, ChoiceItem, MinimalPair
from analyses.tasks.items import Item as Item
from analyses.tasks.items import Text as Text
from analyses.tasks.items import Unscorable as Unscorable
from analyses.tasks.published import Recipe as Recipe
from analyses.tasks.published import recipe, recipes
from analyses.tasks.rules import NamedRule as NamedRule
from analyses.tasks.task import Splits, Task

__all__ = [
    "AnswerItem", "ChoiceItem", "MinimalPair", "Splits", "Task", "addition", "from_bigbench", "from_blimp",
    "from_counterfact", "from_csv", "from_datasets", "from_jsonl", "from_records", "from_truthfulqa",
    "greater_than", "ioi", "multiplication", "recall", "recipe", "recipes",
]  # fmt: skip
