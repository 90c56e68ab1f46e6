"""From whatever a user holds to what a model reads: rows of tokens, and which of them are real.

`read` takes one text, several, token ids `[example pos]`, a tokenizer's output with its mask, or a task, of which the
prompts are read; what a task asks after them, `continuations` holds.
"""

from analyses.prompts.continuations import Batch, Continuations, ItemRows, pad, rows_of_items, table_of
from analyses.prompts.reading import Prompts, Tokens, mask_of, read, warn_if_padded

__all__ = [
    "Batch", "Continuations", "ItemRows", "Prompts", "Tokens", "mask_of", "pad", "read", "rows_of_items", "table_of",
    "warn_if_padded",
]  # fmt: skip
