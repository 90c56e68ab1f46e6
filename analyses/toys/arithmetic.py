"""A small transformer that learns "i x j =" or "i + j =" from answers some of which are wrong, always in the same way.

In training an answer is replaced, with probability α and a fresh coin every time, by one of the most frequent right
answers. So the model learns the right answers and, like the noise token of `recall`, a wrong association "= is
followed by a frequent answer", which pruning may or may not find.

The task of Eigenpruning (arXiv:2404.03147) at a scale that trains in a minute on one core; the noise is
ours.
"""

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from analyses.store import Store
from analyses.tasks.items import AnswerItem
from analyses.tasks.task import Task
from analyses.toys.factory import Shape, hooked_transformer, transformer_bridge
from analyses.toys.training import refuse_edited, trained
from surgery.arguments import fraction, number, one_of, positive, whole
from surgery.arguments import seed as checked_seed


@final
@dataclass(frozen=True, slots=True)
class ArithmeticTask:
    """All i and j below `limit`; with probability `alpha` a training answer is one of the `frequent` commonest ones.

    Tokens are the whole numbers up to the largest answer, then the sign, then "=": a prompt is four tokens, an answer
    is one. Which of several commonest answers takes the place of the right one is drawn in proportion to their counts.

    >>> from analyses import arithmetic
    >>> task = arithmetic.ArithmeticTask("+", limit=4)
    >>> task.prompts.shape, task.d_vocab, task.wrong
    (torch.Size([16, 4]), 9, (3,))

    Raises:
        ValueError: if a number is out of its range.
    """

    operation: Literal["x", "+"] = "x"
    limit: int = 12
    alpha: float = 0.5
    frequent: int = 1

    _OPERATIONS: ClassVar[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {"x": operator.mul, "+": operator.add}

    def __post_init__(self) -> None:
        one_of(self.operation, "operation", self._OPERATIONS)
        whole(self.limit, "limit", least=2)
        fraction(self.alpha, "alpha")
        # Each answer that takes the place of right ones is a different one.
        whole(self.frequent, "frequent", least=1, most=len(set(self.answers.tolist())))

    @property
    def pairs(self) -> Int[Tensor, "item two"]:
        """Every (i, j), in order."""
        numbers = torch.arange(self.limit)
        return torch.cartesian_prod(numbers, numbers)

    @property
    def answers(self) -> Int[Tensor, " item"]:
        """The right answer of every pair."""
        i, j = self.pairs.unbind(1)
        return self._OPERATIONS[self.operation](i, j)

    @property
    def prompts(self) -> Int[Tensor, "item pos"]:
        """The tokens of "i x j =" for every pair."""
        i, j = self.pairs.unbind(1)
        sign, equals = (torch.full_like(i, token) for token in (self.d_vocab - 2, self.d_vocab - 1))
        return torch.stack([i, sign, j, equals], 1)

    @property
    def d_vocab(self) -> int:
        """The number of tokens."""
        return int(self.answers.max()) + 3

    @property
    def wrong(self) -> tuple[int, ...]:
        """The answers that take the place of right ones, most frequent first; at equal counts the smaller one."""
        counts = Counter(self.answers.tolist())
        return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[: self.frequent])

    def sample(self, generator: torch.Generator) -> Int[Tensor, " item"]:
        """An answer for every pair, right or not, as training draws them."""
        right = self.answers
        counts = torch.bincount(right)[list(self.wrong)].double()
        drawn = torch.tensor(self.wrong)[counts.multinomial(len(right), replacement=True, generator=generator)]
        return torch.where(torch.rand(len(right), generator=generator) < self.alpha, drawn, right)

    def items(self) -> Task:
        """The task with its right answers; i·j and j·i form a group, the answers that took their place are distractors.

        Pairs whose right answer is one of these are left out: for them there is no wrong association to remove.
        """
        rows = zip(self.pairs.tolist(), self.prompts.tolist(), self.answers.tolist(), strict=True)
        items = tuple(
            AnswerItem(
                tuple(prompt),
                ((answer,),),
                tuple((token,) for token in self.wrong),
                groups=(f"{min(i, j)} and {max(i, j)}",),
                metadata={"i": i, "j": j},
            )
            for (i, j), prompt, answer in rows
            if answer not in self.wrong
        )
        return Task(f"noisy arithmetic, i {self.operation} j", items)


def model(
    task: ArithmeticTask,
    *,
    d_model: int = 64,
    n_layers: int = 2,
    n_heads: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """An untrained HookedTransformer for the task, with LayerNorm, absolute positions and GELU MLPs of 4 × d_model.

    Raises:
        ImportError: on transformer-lens 4 and later, which has no HookedTransformer; `bridge` makes one there.

    >>> from analyses import arithmetic
    >>> task = arithmetic.ArithmeticTask("x", limit=6)
    >>> len(arithmetic.model(task, d_model=8).blocks)  # transformer-lens 3
    2
    """
    shape = _shape(task, d_model, n_layers, n_heads)
    return _initialised(hooked_transformer(shape, device=device, instead="arithmetic.bridge(task)"), d_model, seed)


def bridge(
    task: ArithmeticTask,
    *,
    d_model: int = 64,
    n_layers: int = 2,
    n_heads: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """As `model`, a TransformerBridge: on transformer-lens 3.9 and on 4. It starts from other random weights.

    >>> from analyses import arithmetic
    >>> len(arithmetic.bridge(arithmetic.ArithmeticTask("x", limit=6), d_model=8).blocks)
    2
    """
    shape = _shape(task, d_model, n_layers, n_heads)
    return _initialised(transformer_bridge(shape, device=device), d_model, seed)


def train(
    model: nn.Module,
    task: ArithmeticTask,
    *,
    steps: int = 600,
    lr: float = 3e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Float[Tensor, " step"]:
    """Train the model in place, by AdamW on the noisy answer of every pair at once; the loss of every step, in nats.

    >>> from analyses import arithmetic
    >>> task = arithmetic.ArithmeticTask("x", limit=3)
    >>> losses = arithmetic.train(arithmetic.bridge(task, d_model=8), task, steps=2, progress=False)
    >>> losses.shape
    torch.Size([2])

    `cache` is a folder: weights and the optimiser's state go there every 100 steps and at the end, under a hash of all
    settings and initial weights. The same call then ends at once, an interrupted one goes on where it stopped.

    Raises:
        ValueError: if a number is out of its range, an edit is in force, a file of the cache is damaged, or the loss
            diverges.
    """
    whole(steps, "steps", least=1)
    checked_seed(seed)
    positive(lr, "lr")
    number(weight_decay, "weight_decay", least=0)
    refuse_edited(model)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    settings = {**asdict(task), "steps": steps, "lr": lr, "weight_decay": weight_decay, "seed": seed}
    store = None if cache is None else Store.of(cache, "arithmetic", settings=settings, tensors=weights)
    optimizer = torch.optim.AdamW(weights.values(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    device = next(iter(weights.values())).device
    prompts, generator, answers = task.prompts.to(device), torch.Generator().manual_seed(seed), []

    def loss(step: int) -> Tensor:
        while len(answers) < step:  # one generator draws all answers: a run that goes on draws those before it again
            answers.append(task.sample(generator))
        return cross_entropy(model(prompts, return_type="logits")[:, -1], answers[step - 1].to(device))

    run = trained(weights, loss, optimizer, schedule=schedule, wanted=[steps], store=store, progress=progress)
    return run[steps].losses


def _shape(task: ArithmeticTask, d_model: int, n_layers: int, n_heads: int) -> Shape:
    for name, size in (("d_model", d_model), ("n_layers", n_layers), ("n_heads", n_heads)):
        whole(size, name, least=1)
    if d_model % n_heads:
        raise ValueError(f"d_model={d_model!r}, n_heads={n_heads!r}: the heads divide d_model. Take 64 and 4.")
    return Shape(n_layers, n_heads, d_model, task.d_vocab, n_ctx=8, act_fn="gelu", normalization_type="LN")


def _initialised(model: nn.Module, d_model: int, seed: int) -> nn.Module:
    """Matrices N(0, 1/d_model), gains 1, biases 0."""
    generator = torch.Generator().manual_seed(checked_seed(seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if last.startswith("W_") or (last == "weight" and parameter.ndim > 1):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * d_model**-0.5)
            else:
                parameter.fill_(1.0 if last in ("w", "weight") else 0.0)
    return model.eval()
