"""What is measured on a model's output: from logits `[batch pos d_vocab]`, one number for each example.

A metric carries what it needs to know about every example (answers, labels, masks, a reference), and
`metric.select(indices)` gives the same metric for some of them, in any order and as often as wanted: analyses cut
examples into batches and repeat them. `metric.reads(n_rows, n_pos)` says which logits it reads, so that no others
need to be computed.

An answer is one token id for all examples, one an example (`[batch]`), or several an example (`[batch answers]`, or
`[1 answers]` for all alike; -100 fills rows up): their probabilities are added. Words stand for the one token by which
the model continues a text with them, `logit_difference(" Mary", " John")`; they get ids when the metric meets a model,
in an analysis or by `metric.bind(model)`. Without answers, `logit_difference()`, `log_prob()`, `loss()` and their like
take those of a task.

A position is None for the last real token (the last with `attention_mask` 1, on whichever side the padding is), a
column, one column an example, or a slice, over whose real tokens the mean is taken; an analysis that was given a mask
lends it to the metric. Everything is computed in fp32 or better.
"""

from analyses.metrics._factories import Answer as Answer
from analyses.metrics._factories import (
    accuracy,
    custom,
    kl_from,
    kl_from_run,
    log_prob,
    logit,
    logit_difference,
    loss,
    prob,
    rank,
)
from analyses.metrics._factories import (
    as_metric as as_metric,
)
from analyses.metrics._metric import IGNORED as IGNORED
from analyses.metrics._metric import Metric
from analyses.metrics._metric import check as check
from analyses.metrics.references import next_token_labels

__all__ = [
    "Metric", "accuracy", "custom", "kl_from", "kl_from_run", "log_prob", "logit", "logit_difference", "loss",
    "next_token_labels", "prob", "rank",
]  # fmt: skip
