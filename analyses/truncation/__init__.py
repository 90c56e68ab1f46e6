"""Truncation and distributional associations: what cutting a matrix down takes out of a model, now and over training.

    curve = truncation.curve(model, prompts, "blocks.1.mlp.W_in", track={"correct": " Paris", "generic": " the"})
    sweep = truncation.sweep(checkpoints, task, "blocks.1.mlp.W_out", rhos=(0.05, 0.2))
    pythia = truncation.over_training("EleutherAI/pythia-70m", tasks.ioi(200), steps=(0, 512, 4000, 143000))
    study = truncation.study(recall.RecallTask.synthetic(), seeds=(0, 1, 2), cache=".surgery-cache")

Feed-forward layers store distributional associations ("the" is likely anywhere), attention the reasoning in context.
Removing part of the feed-forward weights lowers the generic answer and lifts the one in context.

Chen, Bruna, Bietti, "Distributional associations vs in-context reasoning" (arXiv:2406.03068).
"""

from analyses.truncation._checkpoints import Checkpoints
from analyses.truncation._cuts import RHOS as RHOS
from analyses.truncation._cuts import Cut as Cut
from analyses.truncation._gradient_steps import gradient_steps as gradient_steps
from analyses.truncation._over_training import TrainingStudy as TrainingStudy
from analyses.truncation._over_training import over_training
from analyses.truncation._prompts import PLACES as PLACES
from analyses.truncation._prompts import Prompts as Prompts
from analyses.truncation._prompts import facts, prompts
from analyses.truncation._recall_sweeps import RECALL_SITES as RECALL_SITES
from analyses.truncation._recall_sweeps import RECALL_STEPS as RECALL_STEPS
from analyses.truncation._recall_sweeps import recall_sweep, study
from analyses.truncation._revisions import PYTHIA_STEPS as PYTHIA_STEPS
from analyses.truncation._revisions import Revisions as Revisions
from analyses.truncation._sweeps import sweep
from analyses.truncation.curves import Curve as Curve
from analyses.truncation.curves import curve
from analyses.truncation.results import Study as Study
from analyses.truncation.results import Sweep as Sweep

__all__ = [
    "Checkpoints", "curve", "facts", "over_training", "prompts", "recall_sweep", "study", "sweep",
]  # fmt: skip
