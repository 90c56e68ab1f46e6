"""Shared tiny models that have been asked with an attention mask before, as scoring asks them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import models
import torch
from torch import nn


@cache
def _asked(kind: str) -> nn.Module:
    """A bridge sets an attribute of its own when it first gets a mask, which no check should blame on an edit."""
    model, tokens = models.build(kind), models.tokens()
    with torch.no_grad():
        model(tokens, attention_mask=torch.ones_like(tokens))
    return model


@contextmanager
def borrowed(kind: str) -> Iterator[nn.Module]:
    """A model of this kind that tests share, and the check that it is given back as it was, to the last bit."""
    model = _asked(kind)
    before = models.State(model)
    yield model
    before.assert_unchanged(model)
