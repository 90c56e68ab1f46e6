"""How well a model does a task, and what it loses elsewhere.

Three steps, each usable alone: `encode` turns a task into batches once for a model; a *forward* gives the logits at a
batch's reads; `read` and `judge` turn logits into scores. Whoever can compute the same logits more cheaply passes
their own forward to `score_encoded`. The models are causal: what begins another sequence is read off that one.
"""

from analyses.metrics.readings import Readings as Readings
from analyses.prompts import Batch as Batch
from analyses.scoring._batches import EncodedTask as EncodedTask
from analyses.scoring._batches import encode as encode
from analyses.scoring._comparison import Change as Change
from analyses.scoring._comparison import Comparison, compare
from analyses.scoring._comparison import bootstrap as bootstrap
from analyses.scoring._comparison import mcnemar as mcnemar
from analyses.scoring._generating_rules import Contains, LastNumber
from analyses.scoring._generation import Saying as Saying
from analyses.scoring._generation import Speaker as Speaker
from analyses.scoring._generation import speaker_of as speaker_of
from analyses.scoring._logit_readings import Forward as Forward
from analyses.scoring._logit_readings import Outcome as Outcome
from analyses.scoring._logit_readings import generate as generate
from analyses.scoring._logit_readings import outcome as outcome
from analyses.scoring._performance import score, text_loss
from analyses.scoring._performance import score_encoded as score_encoded
from analyses.scoring._performance import score_model as score_model
from analyses.scoring._performance import text_loss_encoded as text_loss_encoded
from analyses.scoring._rules import Likeliest, StartsWith
from analyses.scoring._rules import Rule as Rule
from analyses.scoring._scores import Scores
from analyses.scoring._scores import Summary as Summary
from analyses.scoring._texts import EncodedText as EncodedText
from analyses.scoring._texts import encode_text as encode_text
from analyses.scoring._verdicts import judge as judge
from analyses.tokens.items import UnscorableItems as UnscorableItems
from analyses.tokens.items import scorable

__all__ = [
    "Comparison", "Contains", "LastNumber", "Likeliest", "Scores", "StartsWith", "compare", "scorable", "score",
    "text_loss",
]  # fmt: skip
