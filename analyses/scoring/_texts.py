"""Plain texts as batches, for the loss that an edit costs where it was not meant to change anything."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from analyses.prompts import Batch, pad
from analyses.tokens.tokenizer import Ids, text_ids, vocabulary
from hooks import host_of
from hooks.inputs import Inputs, Reads
from surgery.arguments import shown, whole


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text made ready for one model: every token but the first is a target once.

    Args:
        batches: what the model reads, on its device.
        n_targets: how many next tokens are asked about.
    """

    batches: tuple[Batch, ...]
    n_targets: int


def encode_text(
    model: nn.Module,
    text: str | Int[Tensor, " pos"] | Int[Tensor, "batch pos"],
    *,
    context: int | None = None,
    batch_size: int = 4,
    prepend_bos: bool | None = None,
) -> EncodedText:
    """A text as windows of equal length, in which every token is predicted exactly once.

    A string is cut into windows that each begin with the beginning-of-sequence token, if the model wants one; without
    one, and for a row of ids, a window begins with the last token of the one before. Two-dimensional ids are windows
    already.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        text: a string, one long row of token ids, or rows of them.
        context: tokens a window; 512, or what the model reads if that is less, by default.
        batch_size: windows a batch.
        prepend_bos: overrides `model.cfg.default_prepend_bos` for a string.

    Raises:
        ValueError: if there is nothing to predict, or a window is longer than the model reads.
    """
    whole(batch_size, "batch_size", least=1)
    _check_form(text, context)
    words = vocabulary(model, prepend_bos=prepend_bos)
    width = min(512, words.n_ctx) if context is None else context
    if isinstance(text, Tensor) and text.ndim == 2:
        windows = [tuple(row) for row in text.tolist()]
        width = text.shape[1]
    elif isinstance(text, Tensor):
        windows = _windows(tuple(text.tolist()), width, None)
    else:
        windows = _windows(text_ids(words, text), width, words.bos)
    _check(windows, width, words.size, words.n_ctx)
    batches = [_batch(windows[start : start + batch_size], words.pad) for start in range(0, len(windows), batch_size)]
    device = host_of(model).device
    return EncodedText(tuple(batch.to(device) for batch in batches), sum(len(window) - 1 for window in windows))


def _check_form(text: object, context: object) -> None:
    ids = isinstance(text, Tensor) and text.ndim in (1, 2) and not text.is_floating_point() and text.dtype != torch.bool
    if not isinstance(text, str) and not ids:
        raise ValueError(f"text={shown(text)}: give a string, a tensor of token ids [pos], or rows of them.")
    if context is not None:
        whole(context, "context", least=2)
        if isinstance(text, Tensor) and text.ndim == 2:
            raise ValueError(
                f"context={context!r} is given with rows of {text.shape[1]} token ids, which are windows already. "
                "Leave it out, or give one long row."
            )


def _windows(ids: Ids, width: int, bos: int | None) -> list[Ids]:
    if bos is not None and ids[:1] == (bos,):
        ids = ids[1:]
    step = max(1, width - 1)
    if bos is not None:
        return [(bos, *ids[start : start + step]) for start in range(0, len(ids), step)]
    return [ids[start : start + step + 1] for start in range(0, len(ids) - 1, step)]


def _check(windows: Sequence[Ids], width: int, size: int, n_ctx: int) -> None:
    if not 2 <= width <= n_ctx:
        raise ValueError(
            f"windows of {width} tokens: a window has at least 2 and at most the {n_ctx} that the model reads. "
            "Choose another `context`."
        )
    if not windows or max(map(len, windows)) < 2:
        raise ValueError(
            "the text has nothing to predict: it takes at least one token after the first. Give a longer text."
        )
    outside = next((id for window in windows for id in window if not 0 <= id < size), None)
    if outside is not None:
        raise ValueError(
            f"token {outside} in the text is outside the model's vocabulary of {size}: ids run from 0 to {size - 1}. "
            "Tokenise the text with the model's tokenizer."
        )


def _batch(windows: list[Ids], filler: int) -> Batch:
    tokens, mask = pad(windows, "right", filler)
    row, pos = mask[:, 1:].nonzero(as_tuple=True)
    every = torch.arange(len(row))
    return Batch(Inputs(tokens, mask, Reads(row, pos)), at=every, target=tokens[row, pos + 1], index=every)
