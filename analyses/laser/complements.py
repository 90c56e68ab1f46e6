"""What the removed part of a matrix says by itself, and whether that is like the right answer.

LASER (arXiv:2312.13558) finds that the components it removes answer with frequent words, or with wrong ones of the
right kind.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias, final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

import surgery
from analyses.metrics import Metric
from analyses.scoring import Contains, Rule, Scores, rule_for, score
from analyses.statistics import bootstrap_interval
from analyses.tasks.items import Item
from analyses.tasks.rules import NamedRule
from analyses.tasks.task import Task, as_task
from hooks import weights
from surgery import Decomposition, Decompositions, Edit, Gains
from surgery.arguments import counted, shown, whole
from surgery.arguments import seed as checked_seed
from surgery.bases import Basis

Encoder: TypeAlias = Callable[[list[str]], "Tensor | np.ndarray"]
"""From texts to vectors, a row for each: for instance the `encode` of a model of sentence-transformers."""


@final
@dataclass(frozen=True)
class Complement(Edit):
    """What another edit removes, and nothing of what it keeps: its gains taken from 1."""

    edit: Edit

    @property
    def basis(self) -> Basis:  # type: ignore[override]
        """That of the other edit."""
        return self.edit.basis

    def gains(self, decomposition: Decomposition) -> Gains:
        """One minus the gains of the other edit; what it puts in the place of what it removes is left out."""
        gains = self.edit.gains(decomposition)
        return Gains(1 - gains.values, 1 - gains.rest)


@final
@dataclass(frozen=True, slots=True, repr=False)
class MinorAnswers:
    """How a model answers as it was, under an edit, and with only what the edit removes of its matrices.

    Args:
        unedited: the scores of the model as it was given.
        edited: those under the edit.
        minor: those with the removed components alone; all other matrices are whole.
    """

    unedited: Scores
    edited: Scores
    minor: Scores

    @property
    def corrected(self) -> tuple[int, ...]:
        """Positions of the items that the edit corrected."""
        return tuple((~self.unedited.correct & self.edited.correct).nonzero().flatten().tolist())

    @property
    def wrong(self) -> tuple[int, ...]:
        """Positions of the items on which the removed components are wrong."""
        return tuple((~self.minor.correct).nonzero().flatten().tolist())

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each item: its context and reference, and what each of the three says and whether it is right."""
        items = self.unedited.task.to_dataframe()
        frame = pd.DataFrame({"context": items["context"], "reference": items["reference"]})
        for name in ("unedited", "edited", "minor"):
            scores: Scores = getattr(self, name)
            frame[name], frame[f"{name}_correct"] = list(scores.predictions), scores.correct.tolist()
        return frame

    def __repr__(self) -> str:
        accuracies = ", ".join(f"{n} {getattr(self, n).accuracy:.3f}" for n in ("unedited", "edited", "minor"))
        said = self.to_dataframe()["minor"].value_counts().head(3)
        common = ", ".join(f"{text!r} {n} times" for text, n in said.items())
        return f"{counted(len(self.minor), 'item')}, accuracy: {accuracies}; the minor components say {common}"


@final
@dataclass(frozen=True, slots=True, repr=False)
class Similarity:
    """How like the right answers what was said is, beside the same answers dealt out at random.

    Args:
        cosine: the mean over items of the cosine of said and right answer.
        low: of its bootstrap interval over items; paraphrases are drawn together.
        high: the other end.
        chance: the mean cosine after dealing the right answers out anew, and the quantiles that hold `level` of it.
        p_value: how often a deal is at least as similar, the true one counted among them.
        items: how many items there are; those on which nothing was said are left out.
    """

    cosine: float
    low: float
    high: float
    chance: tuple[float, float, float]
    p_value: float
    items: int

    def __repr__(self) -> str:
        mean, low, high = self.chance
        return (
            f"cosine {self.cosine:.3f} [{self.low:.3f}, {self.high:.3f}], shuffled {mean:.3f} [{low:.3f}, {high:.3f}], "
            f"p = {self.p_value:.3g}; {counted(self.items, 'item')}"
        )


def minor_answers(
    model: nn.Module,
    task: Task | Sequence[Item],
    spec: Mapping[str, Edit],
    *,
    rule: Rule | Metric | None = None,
    prepend_bos: bool | None = None,
    svds: Decompositions | None = None,
    batch_size: int = 32,
) -> MinorAnswers:
    """What the components that an edit removes answer by themselves, beside the model before and after the edit.

    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> said = laser.minor_answers(model, items, {"blocks.1.mlp.W_out": surgery.KeepTop(rank=2)})
    >>> list(said.to_dataframe().columns[2:4]), len(said.minor)
    (['unedited', 'unedited_correct'], 30)

    Args:
        spec: an edit, such as `search(...).spec`; of all its matrices only what it removes stays.
        rule: what counts as right, as in `scoring.score`; by `Contains` the texts are generated whole.

    Raises:
        SiteError: if a pattern of the spec names no editable matrix.
        ValueError: if the spec is empty, or as `scoring.score`.

    Source: arXiv:2312.13558.
    """
    if not spec:
        raise ValueError("the spec is empty: an edit removes something of one matrix or more. Give {site: edit}.")
    task, scored = as_task(task), []
    asked, metric = rule_for(task, rule)
    if isinstance(asked, Contains):
        task, rule = replace(task, rule=NamedRule("Contains", asdict(replace(asked, complete=True)))), metric
    for edits in ({}, dict(spec), {site: Complement(edit) for site, edit in spec.items()}):
        with surgery.apply(model, edits, svds=svds, progress=False):
            scored.append(score(model, task, rule=rule, batch_size=batch_size, prepend_bos=prepend_bos))
    return MinorAnswers(*scored)


def similarity_of_texts(
    answers: MinorAnswers,
    encode: Encoder,
    *,
    items: Iterable[int] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Similarity:
    """Whether what the removed components say means something like the right answer, by an encoder of texts.

    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> said = laser.minor_answers(model, items, {"blocks.1.mlp.W_out": surgery.KeepTop(rank=2)})
    >>> digits = lambda texts: torch.tensor([[1.0 + text.count(digit) for digit in "0123456789"] for text in texts])
    >>> laser.similarity_of_texts(said, digits, draws=100).items
    30

    Args:
        answers: from `minor_answers`.
        encode: from a list of texts to a row for each, such as `SentenceTransformer(name).encode`.
        items: positions of the items to look at, such as `answers.wrong`, where a right answer cannot help; all by
            default.
        draws: how many times the right answers are dealt out anew.
        level: of both intervals.
        seed: of the draws.

    Raises:
        ValueError: if fewer than two items said something, or the encoder gives no row of numbers for each text.

    Source: arXiv:2312.13558.
    """
    said, right = answers.minor.predictions, answers.minor.task.to_dataframe()["reference"].tolist()
    at = [n for n in _chosen(answers, items) if said[n].strip()]
    right = [text if isinstance(text, str) else answers.minor.encoded.vocabulary.decode(text) for text in right]
    texts = list(dict.fromkeys(text.strip() for n in at for text in (said[n], right[n])))
    rows = _encoded(encode, texts)
    row_of = {text: row for row, text in enumerate(texts)}
    said_rows, right_rows = (rows[[row_of[side[n].strip()] for n in at]] for side in (said, right))
    return _similarity(said_rows, right_rows, _clusters(answers, at), draws=draws, level=level, seed=seed)


def similarity_of_embeddings(
    answers: MinorAnswers,
    model: nn.Module,
    *,
    items: Iterable[int] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Similarity:
    """The same by the model's own input embeddings: the cosine of their means over the tokens of each answer.

    >>> items = [tasks.AnswerItem((n, n + 1, n + 2), ((n + 3,),)) for n in range(30)]
    >>> said = laser.minor_answers(model, items, {"blocks.1.mlp.W_out": surgery.KeepTop(rank=2)})
    >>> -1 <= laser.similarity_of_embeddings(said, model, draws=100).cosine <= 1
    True

    The arguments are those of `similarity_of_texts`.

    Raises:
        ValueError: if fewer than two items said something.

    Source: arXiv:2312.13558.
    """
    W_E = weights.read(model, [weights.EMBED])[weights.EMBED].double().cpu()
    said = answers.minor.prediction_ids
    at = [n for n in _chosen(answers, items) if said[n]]
    right = [answers.minor.encoded.items[n].continuations[0].ids for n in at]
    said_rows, right_rows = (
        torch.stack([W_E[list(ids)].mean(0) for ids in side]) if side else W_E[:0]
        for side in ([said[n] for n in at], right)
    )
    return _similarity(said_rows, right_rows, _clusters(answers, at), draws=draws, level=level, seed=seed)


def _similarity(
    said: Float[Tensor, "item dim"],
    right: Float[Tensor, "item dim"],
    clusters: Tensor,
    *,
    draws: int,
    level: float,
    seed: int,
) -> Similarity:
    whole(draws, "draws", least=1)
    if len(said) < 2:
        raise ValueError(
            f"{counted(len(said), 'item')} on which something was said: to deal right answers out anew takes 2 or "
            "more. Give more items."
        )
    said, right = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (said, right))
    cosines = (said * right).sum(1)
    low, high = bootstrap_interval(cosines.unsqueeze(1), clusters=clusters, level=level, resamples=draws, seed=seed)
    generator = torch.Generator().manual_seed(checked_seed(seed))
    shuffled = torch.stack(
        [(said * right[torch.randperm(len(said), generator=generator)]).sum(1).mean() for _ in range(draws)]
    ).numpy()
    tail = (1 - level) / 2
    least, most = np.quantile(shuffled, [tail, 1 - tail])
    chance = (float(shuffled.mean()), float(least), float(most))
    # 1e-12: a shuffle that deals everybody an equal answer differs by rounding alone.
    as_similar = int((shuffled >= cosines.mean().item() - 1e-12).sum())
    return Similarity(cosines.mean().item(), low.item(), high.item(), chance, (1 + as_similar) / (1 + draws), len(said))


def _encoded(encode: Encoder, texts: list[str]) -> Float[Tensor, "text dim"]:
    if not texts:
        return torch.zeros(0, 1)
    given = encode(texts)
    rows = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
    if rows.ndim != 2 or len(rows) != len(texts) or not rows.double().isfinite().all():
        raise ValueError(
            f"the encoder gave {shown(tuple(rows.shape))} for {counted(len(texts), 'text')}: it gives a row of finite "
            "numbers for each, [text dim]. Look at what it returns."
        )
    return rows.detach().double().cpu()


def _chosen(answers: MinorAnswers, items: Iterable[int] | None) -> list[int]:
    n = len(answers.minor)
    return list(range(n)) if items is None else [whole(at, "a position of items", most=n - 1) for at in items]


def _clusters(answers: MinorAnswers, at: Sequence[int]) -> Tensor:
    """The number of each of these items' cluster, counted from 0."""
    return answers.minor.clusters[list(at)].unique(return_inverse=True)[1]
