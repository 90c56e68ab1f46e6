"""Noisy in-context recall: a task, a model trained in seconds, and what truncation does to answer and noise.

    task = recall.RecallTask.synthetic()
    model = recall.bridge(task)  # on transformer-lens 3 recall.model(task), a HookedTransformer, as well
    recall.train(model, task, cache=".surgery-cache")
    with surgery.apply(model, {"blocks.1.mlp.W_out": DropTop(rank=1)}):
        print(recall.evaluate(model, task))

Feed-forward layers store the distributional association "noise follows a trigger", attention does the recall, so
removing part of the second MLP lifts the answer. The control is `accuracy_without_noise`: near 1 for the full model
already, so what is removed is noise, and no ability is added.

Chen, Bruna, Bietti (arXiv:2406.03068).
"""

from analyses.toys.recall_model import as_bridge as as_bridge
from analyses.toys.recall_model import bridge, load, model, save, weights
from analyses.toys.recall_scores import AttentionProbes as AttentionProbes
from analyses.toys.recall_scores import RecallScores as RecallScores
from analyses.toys.recall_scores import attention_probes, evaluate
from analyses.toys.recall_task import RecallBatch as RecallBatch
from analyses.toys.recall_task import RecallTask
from analyses.toys.recall_training import TrainingRun as TrainingRun
from analyses.toys.recall_training import train
from analyses.toys.recall_triggers import RandomTriggers
from analyses.toys.recall_triggers import TriggersPerSequence as TriggersPerSequence

__all__ = [
    "RandomTriggers", "RecallTask", "attention_probes", "bridge", "evaluate", "load", "model", "save", "train",
    "weights",
]  # fmt: skip
