"""From whatever a user holds to what a model reads: rows of tokens, and which of them are real.

`read` takes one text, several, token ids `[example pos]`, a tokenizer's output with its mask, or a task, of which the
prompts are read; what a task asks after them, `continuations` holds.
"""

from analyses.prompts.continuations import Batch as Batch
from analyses.prompts.continuations import Continuations as Continuations
from analyses.prompts.continuations import ItemRows as ItemRows
from analyses.prompts.continuations import pad as pad
from analyses.prompts.continuations import rows_of_items as rows_of_items
from analyses.prompts.continuations import table_of as table_of
from analyses.prompts.reading import Prompts, read
from analyses.prompts.reading import Tokens as Tokens
from analyses.prompts.reading import mask_of as mask_of
from analyses.prompts.reading import warn_if_padded as warn_if_padded

__all__ = [
    "Prompts", "read",
]  # fmt: skip
