"""A small character language model to measure on: four layers, trained for a minute on text that this file makes up."""

import random
from pathlib import Path

import torch
from torch import Tensor, nn

from analyses.store import Store
from analyses.toys import training

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz.,?'"
_NAMES = ["anna", "ben", "clara", "david", "emma", "felix", "greta", "henry", "ida", "jonas"]
_THINGS = ["ball", "lamp", "boat", "stone", "letter", "basket", "ladder", "window", "garden", "apple"]
_ADJECTIVES = ["red", "small", "heavy", "old", "bright", "broken", "quiet", "warm", "strange", "empty"]
_VERBS = [("finds", "found"), ("carries", "carried"), ("paints", "painted"), ("hides", "hid"), ("sells", "sold")]
_PLACES = ["in the kitchen", "by the river", "under the table", "behind the barn", "on the hill"]


def story(seed: int, sentences: int) -> str:
    """Made-up text in which names, things and places recur, so that predicting it takes more than bigrams."""
    rng = random.Random(seed)
    lines = []
    for _ in range(sentences // 3):
        who, other = rng.sample(_NAMES, 2)
        thing, adjective, place = rng.choice(_THINGS), rng.choice(_ADJECTIVES), rng.choice(_PLACES)
        now, then = rng.choice(_VERBS)
        lines.append(f"{who} {now} the {adjective} {thing} {place}.")
        lines.append(f"{other} asks {who}, who {then} the {thing}?")
        lines.append(f"'{who} {then} it {place},' says {rng.choice([who, other])}.")
    return "\n".join(lines)


def encode(text: str) -> Tensor:
    """Characters as token ids."""
    return torch.tensor([ALPHABET.index(character) for character in text])


def batch(data: Tensor, n: int, pos: int, generator: torch.Generator) -> Tensor:
    """`n` random windows of the text."""
    starts = torch.randint(len(data) - pos, (n,), generator=generator)
    return torch.stack([data[start : start + pos] for start in starts.tolist()])


def trained(cache: Path, *, steps: int = 1500, seed: int = 0) -> nn.Module:
    """The model, trained or read from the cache."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=4, d_model=64, n_heads=4, d_head=16, d_mlp=256, n_ctx=64, d_vocab=len(ALPHABET),
        act_fn="gelu", normalization_type="LN", seed=seed, device="cpu",  # the same model, wherever it is measured
    )  # fmt: skip
    model = HookedTransformer(cfg)
    data, generator = encode(story(seed, 20000)), torch.Generator().manual_seed(seed)
    batches = [batch(data, 32, 64, generator) for _ in range(steps)]
    weights = dict(model.named_parameters())
    optimiser = torch.optim.AdamW(weights.values(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    store = Store.of(cache, "character-lm", settings={"steps": steps, "seed": seed}, tensors=weights)
    training.trained(
        weights, lambda step: model(batches[step - 1], return_type="loss"), optimiser, schedule=schedule,
        wanted=[steps], store=store,
    )  # fmt: skip
    return model.eval()


def held_out(n: int, pos: int = 32, *, seed: int = 1) -> Tensor:
    """Windows of a text that was not trained on."""
    return batch(encode(story(1000 + seed, 3000)), n, pos, torch.Generator().manual_seed(seed))
