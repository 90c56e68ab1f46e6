"""How well a model does a task, and what it loses elsewhere.

Three steps, each usable alone: `encode` turns a task into batches once for a model; a *forward* gives the logits at a
batch's places; `read` and `judge` turn logits into scores. Whoever can compute the same logits more cheaply passes
their own forward to `score_encoded`. The models are causal: what begins another sequence is read off that one.
"""

from analyses.metrics.readings import Readings
from analyses.prompts import Batch
from analyses.scoring.batches import EncodedTask, encode
from analyses.scoring.comparison import Change, Comparison, bootstrap, compare, mcnemar
from analyses.scoring.logit_readings import Forward, Outcome, generate, outcome
from analyses.scoring.performance import score, score_encoded, text_loss, text_loss_encoded
from analyses.scoring.rules import Contains, Likeliest, Rule, StartsWith
from analyses.scoring.scores import Scores, Summary
from analyses.scoring.texts import EncodedText, encode_text
from analyses.scoring.verdicts import judge
from analyses.tokens.items import UnscorableItems, scorable

__all__ = [
    "Batch",
    "Change",
    "Comparison",
    "Contains",
    "EncodedTask",
    "EncodedText",
    "Forward",
    "Likeliest",
    "Outcome",
    "Readings",
    "Rule",
    "Scores",
    "StartsWith",
    "Summary",
    "UnscorableItems",
    "bootstrap",
    "compare",
    "encode",
    "encode_text",
    "generate",
    "judge",
    "mcnemar",
    "outcome",
    "scorable",
    "score",
    "score_encoded",
    "text_loss",
    "text_loss_encoded",
]
