"""A linear associative memory that stores its noise as one component: the smallest model of what truncation removes.

Inputs x are uniform over n; the label is x with probability 1 − α, else the noise class n + 1. The logits of x are a
row of W: [n, n + 1] (orthonormal embeddings and unembedding change nothing), which starts at 0 and follows full-batch
gradient descent on the cross-entropy, summed over the inputs. By symmetry W has two singular values: the signal a, n −
1 times, in the inputs' differences, and the noise, once, in their sum. Which one is on top depends on n and α.

Chen, Bruna, Bietti (arXiv:2406.03068), the analysis of a linear associative memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log, sqrt
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from surgery.arguments import number, whole
from surgery.svd import degenerate_blocks


@final
@dataclass(frozen=True, slots=True)
class Memory:
    """A trained memory: its matrix, `[input, class]` in logits, the noise class last."""

    n: int
    alpha: float
    steps: int
    lr: float
    W: Float[Tensor, "input class_"]

    @property
    def signal(self) -> float:
        """a: an input's own class's logit over another input's, the singular value of multiplicity n − 1."""
        own = self.W.diagonal().sum()
        return float(own / self.n - (self.W[:, : self.n].sum() - own) / (self.n * (self.n - 1)))

    @property
    def noise(self) -> float:
        """The noise's singular value: ‖Σ_x W[x]‖ / √n, what W makes of the unit vector along the inputs' sum."""
        return float(self.W.sum(0).norm() / sqrt(self.n))

    @property
    def noise_component(self) -> int:
        """The index of the component that holds the noise, counting from 0: the one that reads all inputs alike.

        Where the noise is as strong as the signal (n = 3 with α = ½), singular vectors mix the two; the index is then
        that of the component that comes nearest.
        """
        return int(torch.linalg.svd(self.W, full_matrices=False).U.sum(0).abs().argmax())

    @property
    def probabilities(self) -> tuple[float, float]:
        """The probabilities of the correct class and of the noise class, means over the inputs."""
        p_correct, p_noise = _probabilities(self.W)
        return float(p_correct), float(p_noise)


def simulate(n: int, alpha: float, *, steps: int = 2000, lr: float = 1.0) -> Memory:
    """The memory after `steps` of full-batch gradient descent from zero, in float64.

    >>> from analyses import associative_memory
    >>> memory = associative_memory.simulate(5, 0.6)
    >>> memory.W.shape, memory.noise_component
    (torch.Size([5, 6]), 0)

    Raises:
        ValueError: if `n` is below 2, `alpha` not inside (0, 1), `steps` below 1, or `lr` not inside (0, 4), where it
        converges.
    """
    *_, (_, W) = _descend(n, alpha, steps, lr, every=steps)
    return Memory(n, alpha, steps, lr, W)


def dynamics(n: int, alpha: float, *, steps: int = 2000, lr: float = 1.0, every: int = 100) -> pd.DataFrame:
    """The memory during training: a row every `every` steps, and one for the last.

    >>> from analyses import associative_memory
    >>> associative_memory.dynamics(5, 0.6, steps=250)["step"].tolist()
    [100, 200, 250]

    Columns: step, signal, noise, closed_form (of the noise), p_correct, p_noise.

    Raises:
        ValueError: as `simulate` does, or if `every` is below 1.
    """
    whole(every, "every", least=1)
    memories = [Memory(n, alpha, step, lr, W) for step, W in _descend(n, alpha, steps, lr, every)]
    rows = [(m.steps, m.signal, m.noise, noise_singular_value(n, alpha, m.signal), *m.probabilities) for m in memories]
    return pd.DataFrame(rows, columns=["step", "signal", "noise", "closed_form", "p_correct", "p_noise"])


def noise_singular_value(n: int, alpha: float, signal: float) -> float:
    """The noise component's singular value, given the signal a: |a (n − 1) − n ln((1 − α)/α)| / √(n + 1).

    >>> from analyses import associative_memory
    >>> memory = associative_memory.simulate(5, 0.5)
    >>> abs(memory.noise - associative_memory.noise_singular_value(5, 0.5, memory.signal)) < 1e-6
    True

    Exact once p(noise)/p(correct) is α/(1 − α): always for α = ½, else the better the longer the training.

    Raises:
        ValueError: if `n` is below 2 or `alpha` not inside (0, 1).
    """
    _check(n, alpha)
    return abs(signal * (n - 1) - n * log((1 - alpha) / alpha)) / sqrt(n + 1)


def rank_table(memory: Memory, *, draws: int = 256, seed: int = 0) -> pd.DataFrame:
    """What every cut in the spectrum leaves: a row for each number of components kept, and one for each number dropped.

    >>> from analyses import associative_memory
    >>> table = associative_memory.rank_table(associative_memory.simulate(3, 0.6))
    >>> table["edit"].value_counts().tolist()
    [4, 4]

    Columns: edit ("keep top" or "drop top"), components, p_correct, p_noise, and the lowest and highest of both. The n
    − 1 equal singular values have no vectors of their own, only a common space, so a cut inside them depends on the
    basis that an SVD happens to choose: its row is the mean over `draws` random bases, with their range.

    Raises:
        ValueError: if `draws` is below 1.
    """
    whole(draws, "draws", least=1)
    U, S, Vh = _rotated(memory.W, draws, seed)
    rows = []
    for edit in ("keep top", "drop top"):
        for k in range(len(S) + 1):
            kept = slice(0, k) if edit == "keep top" else slice(k, None)
            rows.append((edit, k, *_summary((U[..., kept] * S[kept]) @ Vh[..., kept, :])))
    columns = ["edit", "components", "p_correct", "p_noise"]
    columns += [f"{name}_{end}" for name in ("p_correct", "p_noise") for end in ("min", "max")]
    return pd.DataFrame(rows, columns=columns)


def _descend(n: int, alpha: float, steps: int, lr: float, every: int) -> Iterator[tuple[int, Tensor]]:
    """The matrix after every so many steps, and after the last."""
    _check(n, alpha)
    whole(steps, "steps", least=1)
    if not 0 < number(lr, "lr") < 4:
        raise ValueError(f"lr={lr!r}: gradient descent converges with lr between 0 and 4. Take 1.0.")
    labels = torch.zeros(n, n + 1, dtype=torch.float64)
    labels[:, :n] = (1 - alpha) * torch.eye(n, dtype=torch.float64)
    labels[:, n] = alpha
    W = torch.zeros_like(labels)
    for step in range(1, steps + 1):
        W = W + lr * (labels - W.softmax(1))
        if step % every == 0 or step == steps:
            yield step, W


def _probabilities(
    logits: Float[Tensor, "*many input class_"],
) -> tuple[Float[Tensor, "*many"], Float[Tensor, "*many"]]:
    p = logits.softmax(-1)
    n = p.shape[-2]
    return p[..., :n].diagonal(dim1=-2, dim2=-1).mean(-1), p[..., n].mean(-1)


def _summary(logits: Float[Tensor, "rotation input class_"]) -> tuple[float, ...]:
    p_correct, p_noise = _probabilities(logits)
    ends = (float(end) for p in (p_correct, p_noise) for end in (p.min(), p.max()))
    return float(p_correct.mean()), float(p_noise.mean()), *ends


def _rotated(
    W: Float[Tensor, "input class_"], draws: int, seed: int
) -> tuple[Float[Tensor, "rotation input k"], Float[Tensor, " k"], Float[Tensor, "rotation k class_"]]:
    """The SVD in many bases: equal singular values' vectors turned at random."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    generator = torch.Generator().manual_seed(seed)
    turn = torch.eye(len(S), dtype=W.dtype).repeat(draws, 1, 1)
    for block in degenerate_blocks(S):
        size = block.stop - block.start
        Q, R = torch.linalg.qr(torch.randn(draws, size, size, generator=generator, dtype=W.dtype))
        turn[:, block, block] = Q * R.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    return U @ turn, S, turn.mT @ Vh


def _check(n: int, alpha: float) -> None:
    whole(n, "n", least=2)
    if not 0 < number(alpha, "alpha") < 1:
        raise ValueError(f"alpha={alpha!r}: the probability of noise lies between 0 and 1. Take 0.6.")
