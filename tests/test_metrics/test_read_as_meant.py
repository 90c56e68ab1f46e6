"""Patterns, masks, prompts and specs drawn from a grammar, each read a second time by slow code that shares nothing."""

import json
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import ONE_OF_EACH, build
from pattern_grammar import Paper, by_hand, patterns
from test_scoring import bridge_with, wrapped
from tiny_tokenizers import byte_level, sentence_piece
from torch import Tensor, nn

import surgery
from analyses import attribution, metrics, scoring
from analyses.tasks import AnswerItem, Task
from hooks import SiteError, place_of
from hooks.patterns import match_on
from surgery import Drop, Edit, Keep, KeepBottom, KeepTop, Scale, Zero

CASES = 2500 if "SURGERY_THOROUGH" in os.environ else 40
"""Of each grammar."""
drawn = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))

SITE, N_POS, ANSWER = "blocks.1.mlp.W_out", 6, 3


@drawn
@given(patterns)
def test_a_pattern_is_read_as_by_hand(pattern: str) -> None:
    expected = by_hand(pattern)
    if expected:
        assert [str(site) for site in match_on(Paper(), pattern)] == expected
    else:
        with pytest.raises(SiteError):
            match_on(Paper(), pattern)


# --- Masks ------------------------------------------------------------------------------------------------------------

Row = tuple[int, ...]
rows = st.tuples(st.integers(1, N_POS), st.booleans()).map(
    lambda drawn: (
        (1,) * drawn[0] + (0,) * (N_POS - drawn[0]) if drawn[1] else (0,) * (N_POS - drawn[0]) + (1,) * drawn[0]
    )
)
FORMS: dict[str, tuple[Callable[[Tensor], object], bool]] = {
    "whole numbers": (lambda m: m, True),
    "booleans": (lambda m: m.bool(), True),
    "0.0 and 1.0": (lambda m: m.double(), True),
    "lists": (lambda m: m.tolist(), True),
    "additive": (lambda m: (1 - m.float()) * -1e9, False),
    "fractions": (lambda m: m.float() * 0.5, False),
    "upside down, as -1": (lambda m: -m, False),
    "one entry short": (lambda m: m[:, 1:], False),
    "an empty row": (lambda m: m * (torch.arange(len(m)) > 0).long()[:, None], False),
    "nan": (lambda m: torch.where(m > 0, torch.nan, 0.0), False),
}
_models: dict[str, nn.Module] = {}


def model_of(kind: str) -> nn.Module:
    return _models.setdefault(kind, build(kind))


def alone(model: nn.Module, tokens: list[int]) -> float:
    """The answer's logit after these tokens, by themselves."""
    with torch.no_grad():
        return float(model(torch.tensor([tokens]))[0, -1, ANSWER])


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@settings(drawn, max_examples=CASES // 2)
@given(st.lists(rows, min_size=1, max_size=3), st.sampled_from(list(FORMS)), st.booleans(), st.integers(0, 99))
def test_a_mask_is_read_as_real_tokens_or_refused(
    kind: str, masks: list[Row], form: str, of_metric: bool, seed: int
) -> None:
    model, real = model_of(kind), torch.tensor(masks)
    tokens = torch.randint(0, 50, real.shape, generator=torch.Generator().manual_seed(seed))
    make, is_mask = FORMS[form]
    one_sided = {row[0] for row in masks if 0 in row}  # a mask without zeros says nothing of the side

    def ask() -> Tensor:
        given = {"attention_mask": make(real)}
        metric = metrics.logit(ANSWER, **given) if of_metric else metrics.logit(ANSWER)
        asked = {} if of_metric else given
        return attribution.by_ablation(model, tokens, metric, {SITE: [0]}, progress=False, **asked).examples[SITE][:, 0]

    if not is_mask:
        with pytest.raises((ValueError, TypeError)) as error:
            ask()
        assert "mask" in str(error.value)
        return
    found = ask()
    texts = [
        [t for t, here in zip(row, mask, strict=True) if here] for row, mask in zip(tokens.tolist(), masks, strict=True)
    ]
    if kind.startswith("hooked") and len(one_sided) > 1:
        return  # HookedTransformer counts positions from the side that the tokenizer pads, for all examples
    if kind.startswith("hooked") and one_sided == {0}:
        return
    W = place_of(model, SITE).matrix()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    before = torch.tensor([alone(model, text) for text in texts])
    with torch.no_grad():
        W.sub_(S[0] * U[:, :1] @ Vh[:1])
        after = torch.tensor([alone(model, text) for text in texts])
        W.add_(S[0] * U[:, :1] @ Vh[:1])
    torch.testing.assert_close(found, after - before, atol=2e-4, rtol=1e-3)


# --- Prompts ----------------------------------------------------------------------------------------------------------

words = st.sampled_from(["The", "capital", "of", "Peru", "is", "Mary", "12", "x", "=", "New York", "é", "."])
gaps = st.sampled_from([" ", " ", "  ", "\n", "\t", " \n "])
ends = st.sampled_from(["", "", " ", "  ", "\n", "\nA: "])
prompts = st.tuples(words, st.lists(st.tuples(gaps, words), max_size=4), ends).map(
    lambda drawn: drawn[0] + "".join(gap + word for gap, word in drawn[1]) + drawn[2]
)
_readers: dict[str, nn.Module] = {}


def reader(make: Callable) -> nn.Module:
    return _readers.setdefault(make.__name__, bridge_with(wrapped(make())))


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@settings(drawn, max_examples=CASES // 2)
@given(prompts, st.integers(5, 60))
def test_ids_are_asked_for_where_the_prompt_ends(make: Callable, prompt: str, token: int) -> None:
    model = reader(make)
    ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if model.tokenizer.unk_token_id in ids:
        return  # refused, and tested elsewhere
    scores = scoring.score(model, Task("t", (AnswerItem(prompt, ((token,),)),)), prepend_bos=False)
    with torch.no_grad():
        expected = model.original_model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token]
    assert scores.log_probs.item() == pytest.approx(float(expected), abs=1e-4)


# --- Specs ------------------------------------------------------------------------------------------------------------

RANK = 32
index = st.integers(-RANK, RANK - 1)
spans = st.tuples(*[st.one_of(st.none(), st.integers(-40, 40))] * 2)
gain = st.floats(0, 4, width=32)


def written(bounds: tuple) -> str:
    return ":".join("" if bound is None else str(bound) for bound in bounds)


def ones_but(at: object, value: object) -> np.ndarray:
    gains = np.ones(RANK)
    gains[at] = value
    return gains


edits = st.one_of(
    st.integers(0, RANK).map(lambda k: (KeepTop(rank=k), np.arange(RANK) < k)),
    st.integers(0, RANK).map(lambda k: (KeepBottom(rank=k), np.arange(RANK) >= RANK - k)),
    st.integers(0, RANK).map(lambda k: (KeepTop(rho=k / RANK), np.arange(RANK) < k)),
    st.sets(st.integers(0, RANK - 1)).map(lambda c: (Drop(sorted(c)), ones_but(sorted(c), 0.0))),
    index.map(lambda i: (Drop([i]), ones_but(i, 0.0))),
    spans.map(lambda b: (Drop(written(b)), ones_but(slice(*b), 0.0))),
    spans.map(lambda b: (Keep(written(b)), 1 - ones_but(slice(*b), 0.0))),
    st.tuples(index, gain).map(lambda g: (Scale({g[0]: g[1]}), ones_but(*g))),
    st.lists(gain, min_size=RANK, max_size=RANK).map(lambda g: (Scale(g), np.array(g))),
    gain.map(lambda g: (Scale(g), np.full(RANK, g))),
    st.just((Zero(), np.zeros(RANK))),
)
places = st.sampled_from(
    [
        ("blocks.*.mlp.W_{in,out}", (0, 1), ("W_in", "W_out")),
        ("blocks.[0-1].mlp.W_in", (0, 1), ("W_in",)),
        ("blocks.1.mlp.*", (1,), ("W_in", "W_out")),
        ("blocks.-1.mlp.W_out", (1,), ("W_out",)),
        ("blocks.[:1].mlp.W_out", (0,), ("W_out",)),
        ("blocks.{0,1}.mlp.W_out", (0, 1), ("W_out",)),
        ("U_out", (0, 1), ("W_out",)),
    ]
)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@settings(drawn, max_examples=CASES // 2)
@given(st.lists(st.tuples(places, edits), max_size=4, unique_by=lambda entry: entry[0][0]))
def test_a_spec_is_the_product_of_its_gains_and_survives_json(kind: str, tmp_path_factory, entries: list) -> None:
    model, path = model_of(kind), tmp_path_factory.getbasetemp() / "spec.json"
    spec: dict[str, Edit] = {pattern: edit for (pattern, _, _), (edit, _) in entries}
    surgery.save(spec, path, model=model)
    loaded = surgery.load(path, model=model)
    assert loaded == spec
    assert list(json.loads(path.read_text())["edits"]) == list(spec)
    raw = {f"blocks.{layer}.mlp.{m}": None for layer in (0, 1) for m in ("W_in", "W_out")}
    raw = {site: place_of(model, site).matrix().double().numpy().copy() for site in raw}
    with surgery.apply(model, loaded, progress=False) as operation:
        for site, W in raw.items():
            _, layer, _, matrix = site.split(".")
            gains = [g for (_, layers, names), (_, g) in entries if int(layer) in layers and matrix in names]
            U, S, Vh = np.linalg.svd(W, full_matrices=False)
            expected = (U * (S * np.prod([np.ones(RANK), *gains], axis=0))) @ Vh
            np.testing.assert_allclose(operation.weight(site).double().numpy(), expected, atol=3e-5)
    assert all(np.array_equal(place_of(model, site).matrix().double().numpy(), W) for site, W in raw.items())
