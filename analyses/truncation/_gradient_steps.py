"""Single gradient steps on one half of the noisy recall model: which half learns the noise, and when.

Chen, Bruna, Bietti (arXiv:2406.03068).
"""

from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.toys.recall_model import MLPS, TRAINED, Weights
from analyses.toys.recall_task import RecallBatch, RecallTask
from analyses.toys.recall_training import scored_logits, training_loss
from analyses.truncation._checkpoints import by_step
from hooks.running import autograd
from hooks.weights import EMBED
from surgery.arguments import positive, whole
from surgery.arguments import seed as checked_seed


def gradient_steps(
    checkpoints: Mapping[int, Weights],
    task: RecallTask,
    *,
    lr: float = 0.03,
    batch_size: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """What one gradient step on the feed-forward or on the attention matrices alone teaches, from each checkpoint.

    >>> from analyses import recall, truncation
    >>> task = recall.RecallTask.synthetic(d_vocab=9, n_ctx=16)
    >>> untrained = recall.weights(recall.bridge(task, d_model=8))
    >>> truncation.gradient_steps({0: untrained}, task, batch_size=8)["part"].tolist()
    ['feed-forward', 'attention']

    The gradient of the training loss (noisy sequences) is taken once; a step of `lr` then changes one half of the
    model, and fresh noisy sequences tell what it learned. Columns: step, part, gradient_norm, and the changes of
    noise_logit and answer_logit (logits over the mean logit), p_noise and p_correct, means over the scored positions.

    Source: the comparison of first gradient steps in arXiv:2406.03068, here with all matrices of both
    halves.

    Raises:
        ValueError: if there are no checkpoints, or a number is out of its range.
    """
    checked_seed(seed)
    positive(lr, "lr")
    whole(batch_size, "batch_size", least=1)
    rows: list[tuple] = []
    for step in by_step(checkpoints):
        rows += _one_step(step, checkpoints[step], task, lr, batch_size, seed)
    columns = ["step", "part", "gradient_norm", "noise_logit", "answer_logit", "p_noise", "p_correct"]
    return pd.DataFrame(rows, columns=columns)


def _one_step(step: int, weights: Weights, task: RecallTask, lr: float, batch_size: int, seed: int) -> list[tuple]:
    with_mlp = [names for names in MLPS if any(bool(weights[name].any()) for name in names)]
    parts = {"feed-forward": [name for names in with_mlp for name in names], "attention": list(TRAINED)}
    device = weights[EMBED].device
    with autograd(True):
        moving = {name for names in parts.values() for name in names}
        W = {name: weight.detach().clone().requires_grad_(name in moving) for name, weight in weights.items()}
        noisy = task.sample(batch_size, seed=seed).to(device)
        training_loss(W, noisy, f"checkpoint {step}").backward()
    fresh = task.sample(batch_size, seed=seed + 1).to(device)
    before = _learned(weights, fresh, task.noise_token)
    rows = []
    for part, names in parts.items():
        if not names:
            continue
        gradients = {name: gradient for name in names if (gradient := W[name].grad) is not None}
        norm = float(sum(g.double().square().sum() for g in gradients.values()) ** 0.5)
        moved = {**weights, **{name: weights[name] - lr * gradient for name, gradient in gradients.items()}}
        rows.append((step, part, norm, *(_learned(moved, fresh, task.noise_token) - before).tolist()))
    return rows


@torch.no_grad()
def _learned(weights: Weights, batch: RecallBatch, noise_token: int) -> Float[Tensor, " quantity"]:
    """The noise's and the answer's logit over the mean logit, and their probabilities, at the scored positions."""
    logits = scored_logits(weights, batch).double()
    answers = batch.answers[batch.scored][:, None]
    above, p = logits - logits.mean(1, keepdim=True), logits.softmax(1)
    quantities = [above[:, noise_token], above.gather(1, answers)[:, 0], p[:, noise_token], p.gather(1, answers)[:, 0]]
    return torch.stack([quantity.mean() for quantity in quantities])
