"""What can be chosen in Eigenpruning: how components are scored and removed, how many, and what is reported."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec, TypeVar, final, get_args

from analyses.eigenpruning._finetuning import FineTuning
from analyses.eigenpruning._given import Score
from analyses.eigenpruning._reducers import Reduce, check_reduce
from analyses.eigenpruning.examples import Corrupt, Per
from analyses.eigenpruning.scores import Budget, Compensation
from analyses.scoring import Rule
from surgery.arguments import by_name_only, fraction, one_of, shown, whole

P = ParamSpec("P")
R = TypeVar("R")


@final
@by_name_only('reduce="mean"')
@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How components are scored, and what takes their place. The paper's choices, but for the corrupted example.

    Args:
        reduce: one number from all examples and positions.
        per: what an answer of several tokens is asked by: its mean cross-entropy per "token", that of the "sequence",
            which is their sum, or that of the "first" token alone, as in the released script.
        score: None for the paper's; or an attribution such as `attribution.by_ablation`, which is asked for the effects
            of all components on the answers' loss, lowest first; or the effects themselves, found on the items that are
            scored. Then nothing is corrupted, and `reduce` is over examples: take "mean" for the mean effect.
        corrupt: another example's prompt, or given pairs {clean prompt: corrupted prompt}; the paper's is "previous".
        budget: where the fraction of removed components is counted.
        compensation: "mean" puts the mean of a removed component's input in its place, at every position alike and at
            any sequence length; it travels with the spec.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.

    Raises:
        ValueError: if one of them does not exist, or corrupted examples are named for a score that has none.

    >>> eigenpruning.Method(reduce=("quantile", 0.9)).budget
    'global'
    >>> items = [tasks.AnswerItem((n, n + 1), ((n + 2,),)) for n in range(20)]
    >>> exact = eigenpruning.Method(score=attribution.by_ablation, reduce="mean")
    >>> eigenpruning.prune(model, items, method=exact, progress=False).attribution.effects.method
    'ablation (zero)'
    """

    reduce: Reduce = "max"
    corrupt: Corrupt = "shuffle"
    budget: Budget = "global"
    compensation: Compensation = "mean"
    prepend_bos: bool | None = None
    per: Per = "token"
    score: Score | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_reduce(self.reduce)
        one_of(self.per, "per", get_args(Per))
        if self.score is not None and self.corrupt != "shuffle":
            raise ValueError(
                f"corrupt={shown(self.corrupt)} with a score of your own: only the paper's score corrupts examples. "
                "Leave corrupt= or score= out, or corrupt in the score, as attribution.by_gradient(corrupted=) does."
            )
        one_of(self.budget, "budget", get_args(Budget))
        one_of(self.compensation, "compensation", get_args(Compensation))


@final
@dataclass(frozen=True, slots=True)
class Best:
    """The fraction, among these, that is most accurate on the validation part; at equal accuracy, of lower log-loss.

    0 leaves the model as it is, which may be the best.

    Raises:
        ValueError: if there is none, or one is not from 0 to 1.

    >>> eigenpruning.Best(of=(0, 0.1)).of
    (0.0, 0.1)
    """

    of: Iterable[float | int] = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)

    def __post_init__(self) -> None:
        several = isinstance(self.of, Iterable) and not isinstance(self.of, str)
        if not several or not (of := tuple(fraction(f, "Best was given of") for f in self.of)):
            raise ValueError(f"Best(of={shown(self.of)}): give fractions to choose among, such as (0, 0.1, 0.2).")
        object.__setattr__(self, "of", of)


@final
@by_name_only("draws=3")
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is reported on the test part, beside the model as it is and pruned.

    Args:
        draws: how many random removals of the same size.
        finetune: also a copy that is fine-tuned on the scored items, and that copy pruned.
        rule: what counts as right, as in `scoring.score`.
        test: the fraction of a task's items that is reported on, where the task is split here; the others are scored.
            Where items also choose the fraction to remove, 0.2 of all do that, and this is the fraction of the rest.

    Raises:
        ValueError: if `draws` is not a number of draws, or `test` leaves no items on one side.

    >>> eigenpruning.Report(draws=1)
    Report(draws=1, finetune=None, rule=None, test=0.5)
    """

    draws: int = 3
    finetune: FineTuning | None = None
    rule: Rule | None = None
    test: float = 0.5

    def __post_init__(self) -> None:
        whole(self.draws, "draws")
        if not 0 < fraction(self.test, "test") < 1:
            raise ValueError(
                f"test={self.test!r}: some items are scored and others reported on. Give 0.2, for instance."
            )


def as_fraction(given: object) -> float | Best:
    """The fraction of components to remove, or those to choose among.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(given, Best) or given == "validation":
        return given if isinstance(given, Best) else Best()
    try:
        return fraction(given, "fraction")
    except ValueError:
        raise ValueError(
            f"fraction={shown(given)}: a fraction of the components to remove is from 0 to 1, or 'validation' or "
            "Best(of=(0, 0.1, 0.2)) to choose among fractions. Give for instance 0.2."
        ) from None


_SETTINGS = {
    "fractions": "fraction=Best(of={})",
    **{name: f"method=Method({name}={{}})" for name in Method.__dataclass_fields__},
    "finetune": "report=Report(finetune={})",
    "rule": "report=Report(rule={})",
    "draws": "report=Report(draws={})",
    "test": "report=Report(test={})",
    "random_controls": "report=Report(draws={})",
}


def says_where_settings_are(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: a setting that is given by itself raises a TypeError that shows how it is written."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in kwargs.items():
            if name in _SETTINGS:
                written = _SETTINGS[name].format(shown(value))
                raise TypeError(f"{function.__name__}(..., {name}={shown(value)}): write {written}.")
        return function(*args, **kwargs)

    return called
