"""Truncation and distributional associations: what cutting a matrix down takes out of a model, now and over training.

    curve = truncation.curve(model, prompts, site="blocks.1.mlp.W_in", track={"correct": " Paris", "generic": " the"})
    sweep = truncation.sweep(checkpoints, task, sites="blocks.1.mlp.W_out", rhos=(0.05, 0.2))
    study = truncation.study(recall.RecallTask.synthetic(), seeds=(0, 1, 2), cache=".surgery-cache")

Feed-forward layers store distributional associations ("the" is likely anywhere), attention the reasoning in context.
Removing part of the feed-forward weights lowers the generic answer and lifts the one in context.

Chen, Bruna, Bietti, "Distributional associations vs in-context reasoning" (arXiv:2406.03068).
"""

from analyses.truncation.curves import RHOS, Curve, Cut, curve
from analyses.truncation.prompts import PLACES, Prompts, facts, prompts
from analyses.truncation.recall import gradient_steps
from analyses.truncation.sweeps import RECALL_SITES, RECALL_STEPS, Checkpoints, Study, Sweep, study, sweep

__all__ = [
    "PLACES", "RECALL_SITES", "RECALL_STEPS", "RHOS", "Checkpoints", "Curve", "Cut", "Prompts", "Study", "Sweep",
    "curve", "facts", "gradient_steps", "prompts", "study", "sweep",
]  # fmt: skip
