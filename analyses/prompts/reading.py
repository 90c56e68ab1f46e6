"""What a model is asked on: token ids and which of them are real, from whatever a user holds."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, final
from warnings import warn

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from analyses.prompts.continuations import ItemRows, pad, rows_of_items
from analyses.tasks.items import Item, Kind
from analyses.tasks.task import Task, as_task
from analyses.tokens.items import TokenisedItem, UnscorableItems, tokenise
from analyses.tokens.tokenizer import vocabulary
from hooks import host_of
from hooks.vocabulary import token_ids, tokenizer_of
from surgery.arguments import counted, shown


@final
@dataclass(frozen=True, slots=True)
class Prompts:
    """Rows of tokens on the model's device, one an example, and which tokens are real (None: all).

    `items` are those of a task, of which the rows are the prompts.
    """

    tokens: Int[Tensor, "example pos"]
    mask: Bool[Tensor, "example pos"] | None
    items: tuple[TokenisedItem, ...] | None = None
    kind: Kind | None = None
    filler: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> "Prompts":
        """The same prompts on another device."""
        return replace(self, tokens=self.tokens.to(device), mask=None if self.mask is None else self.mask.to(device))

    def with_continuations(self) -> ItemRows:
        """The rows of a task's prompts together with what continues them.

        Raises:
            ValueError: if these are not the prompts of a task.
        """
        if self.items is None:
            raise ValueError(
                "the metric was made without answers, and these prompts are not those of a task, which has them: give "
                "the metric token ids or words, such as metrics.logit_difference(' Mary', ' John'), or give a task."
            )
        return rows_of_items(self.items, self.filler)


Tokens: TypeAlias = Tensor | str | Sequence[str] | Mapping[str, object] | Task | Sequence[Item] | Prompts
"""What can be read as prompts: token ids `[example pos]`; a text or a list of texts; a tokenizer's output, which has
`input_ids` and `attention_mask`; a task or a list of items; or what `read` gave before."""


def read(
    model: nn.Module, tokens: object, attention_mask: object = None, *, prepend_bos: bool | None = None
) -> Prompts:
    """The prompts as rows of tokens on the model's device, with a mask where some tokens are not real.

    Texts are tokenised by the model's tokenizer (`model.to_tokens`) one by one, and padded on the right to the longest;
    the mask follows from their lengths. Of a task the prompts are read, split from the answers where the tokenizer
    splits them; `prepend_bos` overrides `model.cfg.default_prepend_bos` for these.

    Raises:
        ValueError: if there are no tokens, they are not a batch of sequences, the model has no such tokens or reads
            fewer at a time, or the mask is not of their shape or not one of `mask_of`.
        UnscorableItems: if a task has items that this model cannot be asked.

    >>> prompts.read(model, tokens).tokens.shape
    torch.Size([3, 8])
    >>> item = tasks.AnswerItem((1, 2, 3), ((4,),), ((5,),))
    >>> prompts.read(model, [item, tasks.AnswerItem((6, 7), ((8,),))]).mask
    tensor([[ True,  True,  True],
            [ True,  True, False]])
    """
    if isinstance(tokens, Prompts):
        return tokens
    if isinstance(tokens, Task) or _is_items(tokens):
        return _of_task(model, as_task(tokens), attention_mask, prepend_bos)
    own: object = None
    if isinstance(tokens, str):
        tokens = [tokens]
    if isinstance(tokens, Mapping):
        tokens, own = _of_tokenizer(tokens)
    elif isinstance(tokens, list | tuple) and all(isinstance(text, str) for text in tokens) and tokens:
        tokens, own = _tokenised(model, list(tokens))
    ids = _checked(model, tokens)
    masks = [mask_of(mask, ids.shape) for mask in (attention_mask, own) if mask is not None]
    if len(masks) == 2 and not torch.equal(*masks):
        raise ValueError(
            "the attention_mask given beside the texts is not theirs: leave it out, for they bring their own, or give "
            "token ids with it."
        )
    return Prompts(ids, masks[0].to(ids.device) if masks else None)


def _is_items(tokens: object) -> bool:
    return isinstance(tokens, list | tuple) and any(isinstance(item, Item) for item in tokens)


def _of_task(model: nn.Module, task: Task, attention_mask: object, prepend_bos: bool | None) -> Prompts:
    if attention_mask is not None:
        raise ValueError(
            f"an attention_mask was given beside task {task.name!r}, whose prompts bring their own: leave it out."
        )
    if not len(task):
        raise ValueError(f"task {task.name!r} has no items: an analysis runs on one or more. Look at what was read.")
    words = vocabulary(model, prepend_bos=prepend_bos)
    items, problems = tokenise(words, task)
    if problems:
        raise UnscorableItems(task, problems)
    tokenised = tuple(item for item in items if item is not None)
    tokens, mask = pad([item.context for item in tokenised], "right", words.pad)
    device = host_of(model).device
    ragged = None if bool(mask.all()) else mask.bool().to(device)
    return Prompts(tokens.to(device), ragged, tokenised, task.kind, words.pad)


def mask_of(given: object, shape: tuple[int, ...] | None = None) -> Bool[Tensor, "example pos"]:
    """An attention mask as truth values: True on real tokens, False on padding.

    Raises:
        ValueError: if it is not `[example pos]`, of the shape where one is given, holds anything but 0 and 1 (an
            additive mask does), or leaves an example without a real token.
    """
    try:
        with torch.inference_mode(False):
            mask = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"attention_mask={shown(given)}: {_MASK}") from None
    if mask.ndim != 2:
        raise ValueError(f"an attention_mask of shape {tuple(mask.shape)}: {_MASK}")
    if shape is not None and mask.shape != shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, the tokens {tuple(shape)}: give one entry a token."
        )
    odd = mask[(mask != 0) & (mask != 1)]
    if len(odd):
        raise ValueError(
            f"the attention_mask holds {odd[0].item():g}: it is 1 on tokens and 0 on padding, nothing between or "
            "beyond. Turn an additive mask (0 and a large negative number) into (mask == 0)."
        )
    empty = (mask == 0).all(1).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"the attention_mask is 0 on every token of example {empty[0]}: every example has a real token. Leave out "
            "examples that have none."
        )
    with torch.inference_mode(False):
        return (mask != 0).cpu()


_MASK = "it is [batch pos], 1 on tokens and 0 on padding. Pass the one that goes with the tokens."


def warn_if_padded(model: nn.Module, tokens: Int[Tensor, "example pos"]) -> None:
    """Say so if tokens that came without a mask look padded: then padding is read as text.

    One token at the beginning or end that doubles as the one for padding (as in GPT-2's vocabulary) is none, unless
    other examples lack it at their end.
    """
    tokenizer = tokenizer_of(model)
    pad = getattr(tokenizer, "pad_token_id", None)
    if (
        tokenizer is None
        or pad is None
        or (pad == tokenizer.unk_token_id and tokenizer.pad_token != tokenizer.unk_token)
    ):
        return
    is_pad = tokens == pad
    real = ~is_pad
    before, after = real.int().cumsum(1).eq(0).sum(1), real.flip(1).int().cumsum(1).eq(0).sum(1)
    begins = before > (pad == tokenizer.bos_token_id)
    ends = (after > 1) | ((after > 0) & bool((after == 0).any())) if pad == tokenizer.eos_token_id else after > 0
    found = int((begins | ends).sum())
    if found:
        warn(
            f"{counted(found, 'example')} of {len(tokens)} {'begins or ends' if found == 1 else 'begin or end'} in "
            f"{tokenizer.pad_token!r}, the model's padding token, and no attention_mask was given: padding is read as "
            "text, and the last token may be padding. Pass attention_mask=, or the texts themselves.",
            UserWarning,
            stacklevel=_to_the_caller(),
        )


def _to_the_caller() -> int:
    """The `stacklevel` of the line outside these packages that led here: so a warning comes once for each such line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("analyses", "surgery", "hooks"):
        frame, level = frame.f_back, level + 1
    return level


def _of_tokenizer(given: Mapping) -> tuple[object, object]:
    if "input_ids" not in given:
        raise ValueError(
            f"the tokens are a mapping with {', '.join(map(str, given)) or 'nothing'}: a tokenizer's output has "
            "input_ids and attention_mask. Give that, token ids [example pos], or texts."
        )
    try:
        return torch.as_tensor(given["input_ids"]), given.get("attention_mask")
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            'the input_ids are not a batch of equally long rows: tokenise with return_tensors="pt", padding=True.'
        ) from None


def _tokenised(model: nn.Module, texts: list[str]) -> tuple[Tensor, Tensor | None]:
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        raise ValueError(f"the model has no tokenizer, so it cannot read {shown(texts[0])}: give token ids.")
    tokens, mask = pad([tuple(token_ids(model, text).tolist()) for text in texts], "right", tokenizer.pad_token_id or 0)
    return tokens, None if bool(mask.all()) else mask


def _checked(model: nn.Module, given: object) -> Int[Tensor, "example pos"]:
    if not isinstance(given, Tensor):
        raise ValueError(f"the tokens are {shown(given)}: {_TOKENS}")
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if given.ndim != 2 or 0 in given.shape or not whole:
        raise ValueError(f"the tokens have shape {tuple(given.shape)}, {given.dtype}: {_TOKENS}")
    host = host_of(model)
    size, n_ctx = host.d_vocab, host.n_ctx
    outside = given[(given < 0) | (given >= size)]
    if len(outside):
        raise ValueError(
            f"token {int(outside[0])} is outside the model's vocabulary, 0 to {size - 1}: give ids of the model's own "
            "tokenizer."
        )
    if n_ctx is not None and given.shape[1] > n_ctx:
        raise ValueError(f"the texts have {given.shape[1]} tokens, and the model reads {n_ctx}: give shorter ones.")
    return given.to(host.device)


_TOKENS = (
    "give token ids [example pos], at least one example, or one string, a list of strings, or a tokenizer's output."
)
