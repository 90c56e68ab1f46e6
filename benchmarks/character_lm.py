"""A small character language model to measure on: four layers, trained for a minute on text that this file makes up."""

import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

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
        act_fn="gelu", normalization_type="LN", seed=seed,
    )  # fmt: skip
    model = HookedTransformer(cfg)
    path = cache / f"character-lm-{steps}-{seed}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    data, generator = encode(story(seed, 20000)), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="training a character model", unit="step"):
        loss = model(batch(data, 32, 64, generator), return_type="loss")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    cache.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model.eval()


def held_out(n: int, pos: int = 32, *, seed: int = 1) -> Tensor:
    """Windows of a text that was not trained on."""
    return batch(encode(story(1000 + seed, 3000)), n, pos, torch.Generator().manual_seed(seed))
