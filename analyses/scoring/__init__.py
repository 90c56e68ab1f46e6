"""How well a model does a task, and what it loses elsewhere.

Three steps, each usable alone: `encode` turns a task into batches once for a model; a *forward* gives the logits at a
batch's places; `read` and `judge` turn logits into scores. Whoever can compute the same logits more cheaply passes
their own forward to `score_encoded`. The models are causal: what begins another sequence is read off that one.
"""

from analyses.scoring.batches import Batch, EncodedTask, encode
from analyses.scoring.comparison import Change, Comparison, bootstrap, compare, mcnemar
from analyses.scoring.logit_readings import Forward, Readings, forward, generate, log_probs, ranks, read
from analyses.scoring.performance import score, score_encoded, text_loss, text_loss_encoded
from analyses.scoring.rules import Contains, Likeliest, Rule, StartsWith
from analyses.scoring.scores import Scores, Summary
from analyses.scoring.texts import EncodedText, encode_text
from analyses.scoring.tokens import UnscorableItems, scorable
from analyses.scoring.verdicts import judge

__all__ = [
    "Batch",
    "Change",
    "Comparison",
    "Contains",
    "EncodedTask",
    "EncodedText",
    "Forward",
    "Likeliest",
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
    "forward",
    "generate",
    "judge",
    "log_probs",
    "mcnemar",
    "ranks",
    "read",
    "scorable",
    "score",
    "score_encoded",
    "text_loss",
    "text_loss_encoded",
]
