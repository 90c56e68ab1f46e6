"""Truncation and distributional associations: what cutting a matrix down takes out of a model, now and over training.

    curve = truncation.curve(model, prompts, "blocks.1.mlp.W_in", track={"correct": " Paris", "generic": " the"})
    sweep = truncation.sweep(checkpoints, task, "blocks.1.mlp.W_out", rhos=(0.05, 0.2))
    study = truncation.study(recall.RecallTask.synthetic(), seeds=(0, 1, 2), cache=".surgery-cache")

Feed-forward layers store distributional associations ("the" is likely anywhere), attention the reasoning in context.
Removing part of the feed-forward weights lowers the generic answer and lifts the one in context.

Chen, Bruna, Bietti, "Distributional associations vs in-context reasoning" (arXiv:2406.03068).
"""

from analyses.truncation.checkpoints import Checkpoints
from analyses.truncation.curves import Curve, curve
from analyses.truncation.cuts import RHOS, Cut
from analyses.truncation.gradient_steps import gradient_steps
from analyses.truncation.prompts import PLACES, Prompts, facts, prompts
from analyses.truncation.recall_sweeps import RECALL_SITES, RECALL_STEPS, recall_sweep, study
from analyses.truncation.results import Study, Sweep
from analyses.truncation.sweeps import sweep

__all__ = [
    "PLACES", "RECALL_SITES", "RECALL_STEPS", "RHOS", "Checkpoints", "Curve", "Cut", "Prompts", "Study", "Sweep",
    "curve", "facts", "gradient_steps", "prompts", "recall_sweep", "study", "sweep",
]  # fmt: skip
