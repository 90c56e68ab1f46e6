"""Texts, token ids and masks in every form in which a user holds them, against the same examples one by one."""

import warnings
from collections.abc import Callable, Iterator

import models
import pytest
import tiny_tokenizers
import torch
from torch import Tensor, nn

from analyses import attribution, controls, metrics, patching
from analyses.attribution import Effects
from analyses.prompts import mask_of, read, warn_if_padded

TEXTS = ["The capital of Italy is", "One plus one", "When Mary and John went to the store, John gave a drink to"]
OTHERS = ["The capital of Peru is", "Two plus two", "When John and Mary went to the store, Mary gave a drink to"]
SITES = ["blocks.0.attn.W_K[1]", "blocks.1.mlp.W_out"]
KINDS = [pytest.param("hooked", marks=pytest.mark.hooked), "bridge"]
_models: dict[str, nn.Module] = {}


def reading(kind: str) -> nn.Module:
    """A model with a tokenizer whose padding token also begins and ends texts."""
    if kind not in _models:
        tokenizer = tiny_tokenizers.wrapped(tiny_tokenizers.byte_level())
        build = tiny_tokenizers.hooked_with if kind == "hooked" else tiny_tokenizers.bridge_with
        _models[kind] = build(tokenizer)
    return _models[kind]


def padded(model: nn.Module, side: str, texts: list[str] = TEXTS) -> tuple[Tensor, Tensor]:
    """Token ids and mask, padded as a tokenizer pads them."""
    rows = [model.to_tokens(text)[0] for text in texts]
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), model.tokenizer.pad_token_id)
    mask = torch.zeros_like(tokens)
    for n, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(len(row))
        tokens[n, where], mask[n, where] = row, 1
    return tokens, mask


def one_by_one(run: Callable[[str], Effects]) -> dict[str, Tensor]:
    found = [run(text) for text in TEXTS]
    return {site: torch.cat([effects.examples[site] for effects in found]) for site in found[0].sites}


def same(found: Effects, expected: dict[str, Tensor], what: object = None) -> None:
    for site, rows in expected.items():
        torch.testing.assert_close(found.examples[site], rows, atol=2e-5, rtol=1e-3, msg=lambda m: f"{what}: {m}")


ANALYSES: dict[str, Callable[..., Effects]] = {
    "gradient": attribution.by_gradient,
    "ablation": attribution.by_ablation,
    "exact curvature": lambda m, t, f, sites, **more: attribution.by_exact_curvature(
        m, t, f, {site: [0, 1] for site in sites}, **more
    ),
    "path": lambda m, t, f, sites, **more: attribution.by_path(m, t, f, {sites[1]: _drop()}, **more),
    "screen": lambda m, t, f, sites, **more: attribution.screen(m, t, f, {sites[1]: [0, 1]}, draws=0, **more).estimated,
}


def _drop() -> object:
    import surgery

    return surgery.Drop([0, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mask_of_an_analysis_reaches_a_metric_that_reads_the_last_token(
    analysis: str, side: str, kind: str
) -> None:
    model, run = reading(kind), ANALYSES[analysis]
    metric = metrics.logit_difference(30, 40)
    tokens, mask = padded(model, side)
    expected = one_by_one(lambda text: run(model, model.to_tokens(text), metric, SITES, progress=False))
    same(run(model, tokens, metric, SITES, attention_mask=mask, progress=False), expected, side)


def ways(model: nn.Module) -> Iterator[tuple[str, object, metrics.Metric, object]]:
    """The same examples and question, said in other ways: tokens, metric, the analysis's mask."""
    plain = metrics.logit_difference(30, 40)
    for side in ("left", "right"):
        tokens, mask = padded(model, side)
        own = metrics.logit_difference(30, 40, attention_mask=mask)
        yield f"{side}, the metric's mask", tokens, own, None
        yield f"{side}, both", tokens, own, mask
        yield f"{side}, truth values", tokens, plain, mask.bool()
        yield f"{side}, floats", tokens, plain, mask.float()
        yield f"{side}, lists", tokens, plain, mask.tolist()
        yield f"{side}, a tokenizer's output", {"input_ids": tokens, "attention_mask": mask}, plain, None
        yield f"{side}, lists in it", {"input_ids": tokens.tolist(), "attention_mask": mask.tolist()}, plain, None
        yield f"{side}, a slice", tokens, metrics.logit_difference(30, 40, position=slice(-1, None)), mask
    yield "texts", TEXTS, plain, None
    yield "texts and their mask", TEXTS, plain, padded(model, "right")[1]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_masks_in_every_form_are_the_same_question(kind: str) -> None:
    model, metric = reading(kind), metrics.logit_difference(30, 40)
    expected = one_by_one(lambda text: attribution.by_gradient(model, text, metric, SITES, progress=False))
    for what, tokens, asked, mask in ways(model):
        if what == "right, a slice":  # the last column is padding there
            with pytest.raises(ValueError, match=r"^position=slice\(-1, None, None\) leaves examples 0, 1 no real"):
                attribution.by_gradient(model, tokens, asked, SITES, attention_mask=mask, progress=False)
            continue
        found = attribution.by_gradient(model, tokens, asked, SITES, attention_mask=mask, progress=False)
        same(found, expected, what)


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_token_between_others_is_as_if_it_were_not_there(kind: str) -> None:
    model, metric = reading(kind), metrics.logit_difference(30, 40)
    tokens = model.to_tokens(TEXTS[0])
    longer = torch.cat([tokens[:, :3], tokens[:, :1], tokens[:, 3:]], 1)
    mask = torch.ones_like(longer)
    mask[:, 3] = 0
    plain = attribution.by_gradient(model, tokens, metric, SITES, progress=False)
    holed = attribution.by_gradient(model, longer, metric, SITES, attention_mask=mask, progress=False)
    same(holed, {site: plain.examples[site] for site in SITES})
    own = metrics.logit_difference(30, 40, attention_mask=mask)
    with pytest.raises(ValueError, match=r"^the metric's attention_mask is 0 between tokens, and the analysis was"):
        attribution.by_gradient(model, longer, own, SITES, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_patching_and_controls_ask_about_the_last_real_token_too(kind: str) -> None:
    model, metric = reading(kind), metrics.logit_difference(30, 40)
    tokens, mask = padded(model, "right")
    others, _ = padded(model, "right", OTHERS)
    assert others.shape == tokens.shape
    expected = [
        patching.by_component(model, a, b, metric, SITES, progress=False).effects
        for a, b in zip(TEXTS, OTHERS, strict=True)
    ]
    rows = {site: torch.cat([one.examples[site] for one in expected]) for site in SITES}
    for clean, corrupted, given in ((tokens, others, mask), (TEXTS, OTHERS, None), (tokens, OTHERS, mask)):
        found = patching.by_component(
            model, clean, corrupted, metric, SITES, attention_mask=given, progress=False
        ).effects
        same(found, rows)
        moved = attribution.by_ablation(
            model, clean, metric, SITES, replacement="resample", corrupted=corrupted, attention_mask=given,
            progress=False,
        )  # fmt: skip
        noised = patching.by_component(
            model, clean, corrupted, metric, SITES, direction="noising", attention_mask=given, progress=False
        )
        same(moved, noised.effects.examples)
    effects = attribution.by_gradient(model, TEXTS, metric, SITES, progress=False)
    compared = [
        controls.compare(model, *given, effects, ks=[1], draws=1, progress=False, attention_mask=more)
        for given, more in (((tokens, metric), mask), ((TEXTS, metric), None))
    ]
    expected = [attribution.by_gradient(model, text, metric, SITES, progress=False).measure.baseline for text in TEXTS]
    for one in compared:
        torch.testing.assert_close(one.measure.baseline, torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_pairs_of_texts_of_different_lengths_are_refused() -> None:
    model, metric = reading("bridge"), metrics.logit_difference(30, 40)
    assert padded(model, "right")[0].shape == padded(model, "right", [TEXTS[0], TEXTS[0], TEXTS[2]])[0].shape
    for run in (
        lambda: patching.by_component(model, TEXTS, [TEXTS[0], TEXTS[0], TEXTS[2]], metric, SITES, progress=False),
        lambda: attribution.by_gradient(
            model, TEXTS, metric, SITES, corrupted=[TEXTS[0], TEXTS[0], TEXTS[2]], progress=False
        ),
    ):
        with pytest.raises(ValueError, match=r"^the corrupted text of example 1 has other real tokens than the clean"):
            run()


def test_a_metric_with_another_mask_than_the_analysis_is_refused() -> None:
    model = reading("bridge")
    tokens, mask = padded(model, "right")
    other = torch.ones_like(mask)
    with pytest.raises(ValueError, match=r"^the metric was made with another attention_mask than the analysis was"):
        attribution.by_gradient(
            model, tokens, metrics.logit(3, attention_mask=other), SITES, attention_mask=mask, progress=False
        )
    with pytest.raises(ValueError, match=r"^the metric's mask does not go with the tokens: attention_mask has shape"):
        attribution.by_gradient(model, tokens[:, :-1], metrics.logit(3, attention_mask=mask), SITES, progress=False)


def test_a_reference_that_was_read_at_padding_is_refused() -> None:
    model = reading("bridge")
    tokens, mask = padded(model, "right")
    with pytest.warns(UserWarning, match="2 examples of 3 begin or end in"):
        unmasked = metrics.kl_from_run(model, tokens)
    with pytest.raises(ValueError, match=r"^KL divergence: the reference of examples 0, 1 was read at padding, or"):
        attribution.by_gradient(model, tokens, unmasked, SITES, attention_mask=mask, progress=False)
    masked = metrics.kl_from_run(model, tokens, attention_mask=mask)
    found = attribution.by_ablation(model, tokens, masked, SITES, progress=False)
    assert float(found.measure.baseline.abs().max()) < 1e-5
    read_as_text = metrics.kl_from_run(model, TEXTS)
    assert float((read_as_text(model(tokens, attention_mask=mask))).abs().max()) < 1e-5


def test_labels_on_padding_or_of_the_token_itself_are_refused() -> None:
    model = reading("bridge")
    tokens, mask = padded(model, "right")
    for wrong in (metrics.next_token_labels(tokens), metrics.next_token_labels(tokens[:2, :-1])):
        some, given = tokens[: len(wrong), : wrong.shape[1]], mask[: len(wrong), : wrong.shape[1]]
        with pytest.raises(ValueError, match=r"^loss: examples 0, 1 have labels on padding or for it"):
            attribution.by_gradient(model, some, metrics.loss(wrong), SITES, attention_mask=given, progress=False)
    one = padded(model, "right", ["One plus one", "One plus"])
    assert int((one[1] == 0).sum()) < 3
    with pytest.raises(ValueError, match=r"^loss: examples 1 have labels on padding or for it"):
        metrics.loss(metrics.next_token_labels(one[0])).bind(model, *one)
    metrics.loss(metrics.next_token_labels(*one)).bind(model, *one)
    with pytest.raises(ValueError, match=r"^loss: each label is the token at its own position, which the model has"):
        attribution.by_fisher(model, tokens[:, :4], tokens[:, :4], SITES, progress=False)
    single = torch.full_like(tokens[:, :4], metrics.IGNORED)
    single[:, -1] = tokens[:, 3]
    assert metrics.loss(single).bind(model, tokens[:, :4]) is not None


def test_a_last_column_that_is_padding_is_refused_where_a_metric_reads_nothing_else() -> None:
    model = reading("bridge")
    tokens, mask = padded(model, "right")
    metric = metrics.custom(
        lambda logits: logits[:, -1, 0], name="mine", unit="logits", higher_is_better=None, last_only=True
    )
    with pytest.raises(ValueError, match=r"^mine reads the last column only, which is padding in examples 0, 1"):
        attribution.by_gradient(model, tokens, metric, SITES, attention_mask=mask, progress=False)


def tokens_of(model: nn.Module, *rows: str) -> Tensor:
    """A letter a token, `.` for the token that begins and ends texts and pads."""
    pad = model.tokenizer.pad_token_id
    return torch.tensor([[pad if letter == "." else 5 + ord(letter) - ord("a") for letter in row] for row in rows])


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ((".ab", ".cd"), 0),
        (("abc",), 0),
        ((".ab.", ".cd."), 0),  # both end
        ((".ab.", ".cde"), 1),
        ((".a..", ".cde"), 1),
        ((".ab..", ".cd.."), 2),
        (("..ab", ".cde"), 1),
        ((".",), 0),
    ],
)
def test_tokens_that_look_padded_and_come_without_a_mask_are_warned_of(rows: tuple[str, ...], found: int) -> None:
    model = reading("bridge")
    tokens = tokens_of(model, *rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_padded(model, tokens)
    assert len(caught) == bool(found)
    if found:
        assert str(caught[0].message).startswith(
            f"{found} example{'s' if found > 1 else ''} of {len(rows)} {'begin' if found > 1 else 'begins'} or end"
        )


def test_an_analysis_warns_of_padding_where_its_user_stands_and_not_where_a_mask_is_given() -> None:
    model, metric = reading("bridge"), metrics.logit(3)
    tokens, mask = padded(model, "right")
    with pytest.warns(
        UserWarning, match=r"^2 examples of 3 begin or end in '<\|endoftext\|>', .* Pass attention_mask="
    ):
        attribution.by_gradient(model, tokens, metric, SITES, progress=False)
    for given in ({"attention_mask": mask}, {"attention_mask": torch.ones_like(mask)}):
        attribution.by_gradient(model, tokens, metric, SITES, progress=False, **given)
    every = metrics.logit(3, attention_mask=torch.ones_like(mask))
    attribution.by_gradient(model, tokens, every, SITES, progress=False)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.tensor([[0.0, -1e9]]),
            r"^the attention_mask holds -1e\+09: it is 1 on tokens and 0 on padding.*additive",
        ),
        (torch.tensor([[1.0, 0.5]]), r"^the attention_mask holds 0.5: "),
        (torch.tensor([[1.0, torch.nan]]), r"^the attention_mask holds nan: "),
        (torch.tensor([[1, 2]]), r"^the attention_mask holds 2: "),
        (torch.ones(2), r"^an attention_mask of shape \(2,\): it is \[batch pos\], 1 on tokens and 0"),
        (torch.tensor([[1, 1], [0, 0]]), r"^the attention_mask is 0 on every token of example 1: every example has"),
        ([[1, 1], [1]], r"^attention_mask=\[\[1, 1\], \[1\]\]: it is \[batch pos\]"),
        ("11", r"^attention_mask='11': it is \[batch pos\]"),
    ],
)
def test_masks_that_are_not_of_zeros_and_ones_are_refused(mask: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_of(mask)
    if isinstance(mask, Tensor):
        for make in (
            lambda: metrics.logit(1, attention_mask=mask),
            lambda: metrics.kl_from(torch.zeros(1, 2, 3), attention_mask=mask),
        ):
            with pytest.raises(ValueError, match=message):
                make()


def test_a_mask_for_other_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^attention_mask has shape \(1, 2\), the tokens \(1, 3\): give one entry a"):
        mask_of(torch.ones(1, 2), (1, 3))
    with pytest.raises(ValueError, match=r"^attention_mask has shape \(1, 2\), the tokens \(1, 3\)"):
        metrics.next_token_labels(torch.tensor([[1, 2, 3]]), torch.ones(1, 2))


def test_tokens_that_a_model_does_not_read_are_refused() -> None:
    model = reading("bridge")
    size = model.cfg.d_vocab
    for tokens, message in (
        (torch.tensor([[1, -1]]), rf"^token -1 is outside the model's vocabulary, 0 to {size - 1}: give ids"),
        (torch.tensor([[1, size]]), rf"^token {size} is outside the model's vocabulary"),
        (torch.ones(1, 97).long(), r"^the texts have 97 tokens, and the model reads 96: give shorter ones"),
        ("a" * 400, r"^the texts have \d+ tokens, and the model reads 96"),
        (torch.ones(1, 2).bool(), r"^the tokens have shape \(1, 2\), torch.bool: give token ids"),
        ([], r"^the tokens are \[\]: give token ids"),
        ([[1, 2]], r"^the tokens are \[\[1, 2\]\]: give token ids"),
        (["a", 1], r"^the tokens are \['a', 1\]: give token ids"),
        (None, r"^the tokens are None: give token ids"),
        ({"ids": 1}, r"^the tokens are a mapping with ids: a tokenizer's output has input_ids and attention_mask"),
        ({"input_ids": [[1], [2, 3]]}, r"^the input_ids are not a batch of equally long rows: tokenise with"),
    ):
        with pytest.raises(ValueError, match=message):
            read(model, tokens)
    with pytest.raises(ValueError, match=r"^the attention_mask given beside the texts is not theirs"):
        read(model, TEXTS, torch.ones(3, padded(model, "right")[0].shape[1]))
    with pytest.raises(ValueError, match=r"^the model has no tokenizer, so it cannot read 'a': give token ids"):
        read(models.build("bridge gpt2"), "a")


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_answers_once_a_metric_meets_a_model(kind: str) -> None:
    model = reading(kind)
    the, mary = (model.tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" the", " Mary"))
    assert len(the) == len(mary) == 1
    by_words, by_ids = metrics.logit_difference(" the", " Mary"), metrics.logit_difference(the[0], mary[0])
    for run in (attribution.by_gradient, attribution.by_ablation):
        found, expected = (run(model, TEXTS, metric, SITES, progress=False) for metric in (by_words, by_ids))
        assert found.measure.label == "logit difference [logits]"
        for site in SITES:
            assert torch.equal(found.examples[site], expected.examples[site])
    each = metrics.prob([" the", " Mary", " the"], position=1)
    ids = metrics.prob(torch.tensor([the[0], mary[0], the[0]]), position=1)
    logits = torch.randn(3, 2, model.cfg.d_vocab)
    assert torch.equal(each.bind(model)(logits), ids(logits))
    mixed = metrics.logit_difference(" the", torch.tensor([1, 2, 3]))
    assert mixed.n_examples == 3
    assert torch.equal(mixed.bind(model)(logits), metrics.logit_difference(the[0], torch.tensor([1, 2, 3]))(logits))


TOKENIZERS = {
    "bytes": tiny_tokenizers.byte_level,
    "pieces": tiny_tokenizers.sentence_piece,
    "words": lambda: tiny_tokenizers.whole_words(tiny_tokenizers.CORPUS),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_words_token_is_the_one_that_continues_a_text_by_it(name: str) -> None:
    model = tiny_tokenizers.bridge_with(tiny_tokenizers.wrapped(TOKENIZERS[name]()))
    id = int(metrics.logit(" the").bind(model).answers[0])
    before = model.tokenizer("is", add_special_tokens=False)["input_ids"]
    text = model.tokenizer.decode(before)
    assert model.tokenizer.decode([*before, id]) == f"{text} the"


def test_words_that_are_no_answer_are_refused() -> None:
    model = reading("bridge")

    def refused(message: str, make: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match=message):
            make()

    for word, message in (
        (
            " Lily",
            r"^the answer ' Lily' is 4 tokens of this model \(' ', 'Li', 'l', 'y'\), and an answer is one token: g",
        ),
        ("the", r"^the answer 'the' is 2 tokens .* With a space before it, ' the', it is another word"),
        ("", r"^the model's tokenizer has no tokens that continue a text by exactly ''"),
    ):
        refused(message, lambda word=word: metrics.logit(word).bind(model))
    unknown = tiny_tokenizers.bridge_with(tiny_tokenizers.wrapped(tiny_tokenizers.whole_words(tiny_tokenizers.CORPUS)))
    refused(
        r"^the model's tokenizer has no tokens that continue .* ' Lily'", lambda: metrics.logit(" Lily").bind(unknown)
    )
    refused(
        r"^the model has no tokenizer, so the answer ' a' has no id",
        lambda: metrics.logit(" a").bind(tiny_tokenizers.bridge_with(None)),
    )
    words = metrics.logit([" a", " b"])
    for use in (lambda: words(torch.zeros(2, 3, 4)),):
        refused(r"^logit was made from words \(' a', ' b'\), which have ids in a model only. Give the metric", use)
    refused(r"^answers \[' a', 3\]: some are words and some are not", lambda: metrics.logit([" a", 3]))
    refused(r"^the answers and positions are for 2 and 3 examples", lambda: metrics.logit_difference([1, 2], [3, 4, 5]))
    assert words.n_examples == 2
