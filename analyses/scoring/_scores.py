"""How a model did on a task, item by item and in sum."""

import math
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.scoring._batches import EncodedTask
from analyses.scoring._generating_rules import Contains
from analyses.tasks.items import Text
from analyses.tasks.task import Task
from analyses.tokens.tokenizer import Ids
from surgery.arguments import counted, whole

NO_CLASS = -1
"""A prediction that is none of the task's classes."""
UNDECIDED = -2
"""A prediction of which too little was generated to say."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A task's scores in sum: accuracies and probabilities as fractions, log-loss in nats per token.

    Args:
        task: its name.
        n_items: how many were scored.
        n_unscorable: how many had been left out because they cannot be.
        accuracy: fraction of items that are right by the task's rule.
        top1: fraction with the answer first under teacher forcing: all its tokens the likeliest.
        top5: fraction with all tokens of an accepted answer among the 5 likeliest (choices: a right label among 5).
        top10: the same for 10.
        balanced_accuracy: mean over the right answers' classes of the fraction right; not a number for pairs.
        majority_accuracy: what always giving the most frequent right answer would get; not a number for pairs.
        f1: mean over the right answers' classes of the harmonic mean of precision and recall. Not a number for pairs,
            and where a wrong multi-token answer is not generated far enough to say which it is: `Contains` does.
        log_loss: mean over items.
        p_correct: mean over items.
        p_wrong: mean over items.
        value: mean over items of the metric that was asked for in a rule's place; not a number where none was.
    """

    task: str
    n_items: int
    n_unscorable: int
    accuracy: float
    top1: float
    top5: float
    top10: float
    balanced_accuracy: float
    majority_accuracy: float
    f1: float
    log_loss: float
    p_correct: float
    p_wrong: float
    value: float = math.nan

    def as_row(self) -> dict[str, str | int | float]:
        """The fields by name; without a metric, without its value."""
        row = asdict(self)
        if math.isnan(self.value):
            del row["value"]
        return row


@dataclass(frozen=True, slots=True, repr=False)
class Scores:
    """How a model did on every item of a task.

    Args:
        encoded: the task as it was asked.
        log_probs: of each continuation, summed over its tokens, in nats.
        correct: whether the item is right by the task's rule.
        rank: answers: the rank of the worst token of the best accepted answer, 0 if all are the likeliest; choices and
            pairs: how many wrong texts are at least as likely as the best right one.
        log_loss: −log p of an accepted answer coming next, in nats per token of the reference. With one accepted answer
            this is −(sum of its tokens' log p)/length, as in LASER; the probabilities of several add up.
        p_correct: answers: the probability that an accepted answer comes next; choices and pairs: the share of the
            right texts among all, by the score that decides.
        p_wrong: the same for the distractors, or for the wrong texts.
        truth: the class of the reference: the same answer or label is the same class.
        predicted: the class of what the model said, or `NO_CLASS`, or `UNDECIDED`.
        prediction_ids: what the model said: the tokens up to the first that departs from the reference, the generated
            tokens, or the tokens of the likeliest label or sentence.
        classes: the answers or labels that are the reference of an item.
        values: the metric that was asked for in a rule's place; None where none was.
    """

    encoded: EncodedTask
    log_probs: Float[Tensor, " continuation"]
    correct: Bool[Tensor, " item"]
    rank: Int[Tensor, " item"]
    log_loss: Float[Tensor, " item"]
    p_correct: Float[Tensor, " item"]
    p_wrong: Float[Tensor, " item"]
    truth: Int[Tensor, " item"]
    predicted: Int[Tensor, " item"]
    prediction_ids: tuple[Ids, ...]
    classes: tuple[Text, ...]
    values: Float[Tensor, " item"] | None = None

    @property
    def task(self) -> Task:
        """The task."""
        return self.encoded.task

    @property
    def clusters(self) -> Int[Tensor, " item"]:
        """Of each item, the number of the cluster that it belongs to, from 0."""
        number = {item: at for at, members in enumerate(self.task.clusters()) for item in members}
        return torch.tensor([number[item] for item in range(len(self))])

    def __len__(self) -> int:
        return len(self.correct)

    def __repr__(self) -> str:
        short = self.summary()
        scored = f"accuracy {short.accuracy:.3f}, log-loss {short.log_loss:.3f} nats per token"
        if self.encoded.metric is not None:
            scored = f"{self.encoded.metric.name} {short.value:.4g}, {scored}"
        return f"Scores({self.task.name!r}, {counted(len(self), 'item')}, {scored})"

    @property
    def accuracy(self) -> float:
        """The fraction of items that are right by the task's rule."""
        return self.correct.double().mean().item()

    def top(self, k: int) -> float:
        """The fraction of items whose rank is below k."""
        return (self.rank < whole(k, "k", least=1)).double().mean().item()

    @property
    def predictions(self) -> tuple[str, ...]:
        """What the model said, as text; ids where the model has no tokenizer."""
        return tuple(self.encoded.vocabulary.decode(ids) for ids in self.prediction_ids)

    @property
    def balanced_accuracy(self) -> float:
        """The mean over classes of the fraction of its items that are right; not a number for pairs."""
        return (self._hits() / self._sizes()).mean().item() if self._has_classes else math.nan

    @property
    def majority_accuracy(self) -> float:
        """The fraction of items in the largest class; not a number for pairs."""
        return (self._sizes().max() / len(self)).item() if self._has_classes else math.nan

    @property
    def f1(self) -> float:
        """The mean over classes of 2 · hits/(items + predictions) of the class; not a number where that is unknown."""
        if not self._has_classes or bool((self.predicted == UNDECIDED).any()):
            return math.nan
        said = torch.bincount(self.predicted[self.predicted != NO_CLASS], minlength=len(self.classes))
        return (2 * self._hits() / (self._sizes() + said)).mean().item()

    def word_overlap(self) -> pd.DataFrame:
        """How far the words of each generated text are those of the item's answer: `precision`, `recall` and `f1`.

        precision = |said ∩ answer|/|said|, recall = |said ∩ answer|/|answer|, over the distinct words and punctuation
        marks of the whole generated text and of the answer, and F1 their harmonic mean; of several accepted answers
        that with the highest F1. LASER reports them for HotPotQA; its released code divides 2PR by max(1, P + R), and
        so gives a smaller F1 wherever P + R < 1.

        >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(4)]
        >>> scores = scoring.score(model, items, rule=scoring.Contains(3, complete=True))
        >>> list(scores.word_overlap().columns)
        ['precision', 'recall', 'f1']

        Raises:
            ValueError: if the texts may have been cut off: the rule is not `Contains(complete=True)`.

        Source: arXiv:2312.13558.
        """
        rule, decode = self.encoded.rule, self.encoded.vocabulary.decode
        if not isinstance(rule, Contains) or not rule.complete:
            raise ValueError(
                f"the items were scored by {rule!r}, which does not have the model say whole texts. Score them with "
                "rule=Contains(complete=True)."
            )
        best = []
        for item, text in zip(self.task.items, self.predictions, strict=True):
            answers = (answer if isinstance(answer, str) else decode(answer) for answer in item.right)
            best.append(max((rule.overlap(answer, text) for answer in answers), key=lambda found: found[2]))
        return pd.DataFrame(best, columns=["precision", "recall", "f1"])

    def summary(self) -> Summary:
        """The scores in sum."""
        rates = ("accuracy", "balanced_accuracy", "majority_accuracy", "f1")
        return Summary(
            task=self.task.name,
            n_items=len(self),
            n_unscorable=len(self.task.unscorable),
            value=math.nan if self.values is None else self.values.mean().item(),
            **{f"top{k}": self.top(k) for k in (1, 5, 10)},
            **{name: getattr(self, name) for name in rates},
            **{name: getattr(self, name).mean().item() for name in ("log_loss", "p_correct", "p_wrong")},
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row an item: the task's columns, then what the model said and how it scored."""
        names = ["correct", "rank", "log_loss", "p_correct", "p_wrong"]
        frame = self.task.to_dataframe().assign(prediction=list(self.predictions))
        frame = frame.assign(**{name: getattr(self, name).tolist() for name in names})
        return frame if self.values is None else frame.assign(value=self.values.tolist())

    @property
    def _has_classes(self) -> bool:
        return self.task.kind != "pair"

    def _sizes(self) -> Float[Tensor, " class"]:
        return torch.bincount(self.truth, minlength=len(self.classes)).double()

    def _hits(self) -> Float[Tensor, " class"]:
        return torch.bincount(self.truth[self.correct], minlength=len(self.classes)).double()
