"""Generation from keys and values against transformers' own, and against one pass after the other under edits."""

import random
from collections.abc import Sequence
from decimal import Decimal
from functools import partial

import models
import pytest
import torch
from tiny_tokenizers import bridge_with, byte_level, hooked_with, whole_words, wrapped
from torch import Tensor, nn

import surgery
from analyses import laser, scoring
from analyses.laser._trials import Setup
from analyses.scoring import Contains, LastNumber
from analyses.scoring._generation import speaker_of
from analyses.tasks import AnswerItem, Splits, Task
from hooks import place_of
from hooks.past import reads_on
from hooks.running import run
from surgery import KeepTop

N = 50
KINDS = models.kinds(
    "hooked ln", "hooked rms-folded-grouped-rotary", "hooked parallel-rotary", "bridge gpt2", "bridge llama",
    "bridge neox", "bridge gptj", "bridge gemma2", "bridge mixtral", "bridge qwen2 compatible",
)  # fmt: skip
NEVER = (49, 49, 49, 49)


def ragged(n: int = 8, seed: int = 0, longest: int = 9) -> list[tuple[int, ...]]:
    generator = random.Random(seed)
    return [tuple(generator.randrange(N) for _ in range(generator.randint(1, longest))) for _ in range(n)]


def asked(prompts: Sequence[tuple[int, ...]], answers: Sequence[tuple[int, ...]] = (NEVER,)) -> Task:
    return Task("t", tuple(AnswerItem(prompt, (answers[n % len(answers)],)) for n, prompt in enumerate(prompts)))


@torch.no_grad()
def greedy(model: nn.Module, prompt: tuple[int, ...], n: int) -> tuple[int, ...]:
    """One prompt alone, all of it read for every token; a tie that rounding may turn fails the test that meets it."""
    ids = list(prompt)
    for _ in range(n):
        logits = model(torch.tensor([ids]), return_type="logits")[0, -1]
        best = logits.topk(2)
        assert best.values[0] - best.values[1] > 1e-5
        ids.append(int(best.indices[0]))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_that_of_whole_passes(kind: str) -> None:
    model = models.build(kind)
    assert reads_on(model)
    prompts = ragged()
    wanted = tuple(greedy(model, prompt, 9) for prompt in prompts)
    for batch_size, padding in ((3, "right"), (100, "left")):
        scores = scoring.score(model, asked(prompts), rule=Contains(9), batch_size=batch_size, padding=padding)
        assert scores.prediction_ids == wanted


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "neox", "gptj"])
def test_every_token_is_that_of_transformers(architecture: str) -> None:
    theirs, prompts = models.hugging_face(architecture), ragged()
    wanted = []
    for prompt in prompts:
        tokens = torch.tensor([prompt])
        settings = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        said = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
        wanted.append(tuple(said[0, len(prompt) :].tolist()))
    scores = scoring.score(models.bridge(architecture), asked(prompts), rule=Contains(9), batch_size=3)
    assert scores.prediction_ids == tuple(wanted)


@pytest.mark.parametrize("kind", models.kinds("hooked ln", "bridge llama"))
def test_generation_may_fill_the_context(kind: str) -> None:
    model = models.build(kind)
    prompts = [tuple(n % N for n in range(models.N_CTX - 5)), (3,), (4, 5)]
    scores = scoring.score(model, asked(prompts), rule=Contains(6))
    assert scores.prediction_ids == tuple(greedy(model, prompt, 6) for prompt in prompts)
    with pytest.raises(scoring.UnscorableItems, match="it takes 65 tokens, and the model reads 64"):
        scoring.score(model, asked(prompts), rule=Contains(7))


@pytest.mark.parametrize("host", [bridge_with, pytest.param(hooked_with, marks=pytest.mark.hooked)])
def test_a_text_ends_with_the_token_that_ends_it(host: object) -> None:
    model = host(wrapped(byte_level()))
    prompts = ["The capital", "One plus one is ", "York", "3 x 4 ="]
    free = scoring.score(model, Task("t", tuple(AnswerItem(p, (" Lima",)) for p in prompts)), rule=Contains(8))
    ends = free.prediction_ids[0][3]
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(ends)
    scores = scoring.score(model, Task("t", tuple(AnswerItem(p, (" Lima",)) for p in prompts)), rule=Contains(8))
    cut = [ids[: ids.index(ends)] if ends in ids else ids for ids in free.prediction_ids]
    assert list(scores.prediction_ids) == cut and len(cut[0]) <= 3


def test_generation_ends_where_the_verdict_is_sure_and_not_before() -> None:
    model, prompt = bridge_with(None), (7, 3)
    said = greedy(model, prompt, 9)
    assert said[2] not in said[:2]
    items = [AnswerItem(prompt, ((said[2],),)), AnswerItem(prompt, (said[:1], NEVER)), AnswerItem((1, 2), (NEVER,))]
    sure = scoring.score(model, Task("t", tuple(items)), rule=Contains(9))
    # The first two are asked the same: the one that is sure waits for the other.
    assert sure.prediction_ids[:2] == (said[:3],) * 2 and len(sure.prediction_ids[2]) == 9
    assert sure.correct.tolist() == [True, True, False]


def test_whole_texts_are_generated_where_they_are_asked_for() -> None:
    model, prompt = bridge_with(None), (7, 3)
    said = greedy(model, prompt, 9)
    task = Task("t", (AnswerItem(prompt, ((said[2],),)), AnswerItem((1, 2), (said[:1],))))
    scores = scoring.score(model, task, rule=Contains(9, complete=True))
    assert scores.prediction_ids[0] == said and len(scores.prediction_ids[1]) == 9
    assert scores.correct.tolist() == scoring.score(model, task, rule=Contains(9)).correct.tolist()


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        (" Lima, in Peru", (" Lima",), (1 / 4, 1, 2 / 5)),
        (" lima LIMA lima", (" Lima",), (1, 1, 1)),  # distinct words, whatever their case
        (" Oslo", (" Lima",), (0, 0, 0)),
        ("", (" Lima",), (0, 0, 0)),
        (" the river", (" Lima", " the Amazon river"), (1, 2 / 3, 4 / 5)),  # the answer with the highest F1
        (" Lima.\nQuestion", (" Lima",), (1 / 2, 1, 2 / 3)),  # what comes after the stop is not said
    ],
)
def test_words_are_shared_with_an_answer(
    text: str, answers: tuple[str, ...], expected: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bridge_with(wrapped(byte_level()))
    task = Task("t", (AnswerItem("Which", answers),))
    scores = scoring.score(model, task, rule=Contains(1, complete=True, stop=("\n",)))
    monkeypatch.setattr(scoring.Scores, "predictions", property(lambda _: (text,)))
    assert scores.word_overlap().iloc[0].tolist() == pytest.approx(list(expected))


def test_words_of_texts_that_end_early_are_not_compared() -> None:
    scores = scoring.score(bridge_with(None), Task("t", (AnswerItem((1, 2), ((3,),)),)), rule=Contains(2))
    with pytest.raises(ValueError, match=r"scored by Contains\(n_tokens=2.*Score them with rule=Contains\(complete"):
        scores.word_overlap()


@pytest.mark.parametrize(
    ("rule", "answers", "text", "sure"),
    [
        (Contains(), (" Paris",), "in Paris", False),  # "Parisian" may come
        (Contains(), (" Paris",), "in Paris\ufffd", False),  # the beginning of a letter may be one
        (Contains(), (" Paris",), "in Paris.", True),
        (Contains(), (" Paris",), "in Parisian", False),
        (Contains(whole_words=False), (" Paris",), "in Parisian", True),
        (Contains(), (" Rome", " Paris"), "in Paris and", True),
        (Contains(stop=("is no",)), (" Paris",), "in Paris n", False),  # the stop may begin within the answer
        (Contains(stop=("is no",)), (" Paris",), "in Paris, not", True),
        (LastNumber(), ("7",), "it is 7 ", False),
    ],
)
def test_what_is_sure(rule: scoring.Rule, answers: tuple[str, ...], text: str, sure: bool) -> None:
    assert rule.settled(answers, (), text) is sure


def test_an_early_end_changes_no_verdict() -> None:
    model = bridge_with(wrapped(byte_level()))
    texts = ["The capital of", "When Mary and", "York", "3 x 4 =", "The war lasted", "two"]
    whole = scoring.score(model, Task("t", tuple(AnswerItem(p, (" Lima",)) for p in texts)), rule=Contains(12))
    words = [(text, piece) for text, said in zip(texts, whole.predictions, strict=True) for piece in said.split()]
    items = (*(AnswerItem(text, (word,)) for text, word in words), AnswerItem("York", (" Lima",)))
    assert len(items) > 5
    for rule in (Contains(12), Contains(12, whole_words=False), Contains(12, stop=(words[0][1],))):
        encoded = scoring.encode(model, Task("t", items), rule=rule)
        plain = scoring.score_encoded(encoded, partial(run, model))
        early = scoring.score_model(model, encoded)
        assert torch.equal(early.correct, plain.correct) and torch.equal(early.predicted, plain.predicted)
        lengths = [list(map(len, scores.prediction_ids)) for scores in (early, plain)]
        assert all(a <= b for a, b in zip(*lengths, strict=True))
    assert 0 < plain.accuracy < 1


def test_hooks_of_the_user_and_models_that_cannot_read_on_get_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = models.build("bridge gpt2"), asked(ragged())
    free = scoring.score(model, task, rule=Contains(5))
    widths: list[int] = []

    def zero_the_first(resid: Tensor, hook: object) -> Tensor:
        widths.append(resid.shape[1])
        return resid

    with model.hooks(fwd_hooks=[("blocks.0.hook_out", zero_the_first)]):
        hooked = scoring.score(model, task, rule=Contains(5))
    assert hooked.prediction_ids == free.prediction_ids
    assert 1 not in widths and len(widths) > 5
    monkeypatch.setattr("analyses.scoring._generation.reads_on", lambda model: False)
    encoded = scoring.encode(model, task, rule=Contains(5))
    assert speaker_of(model, encoded) is None
    assert scoring.score_model(model, encoded).prediction_ids == free.prediction_ids


def test_a_model_that_loses_its_past_is_found_out() -> None:
    model = models.build("bridge gpt2")
    for block in model.blocks:
        block.attn._update_kv_cache = lambda k, v, **_: (k, v)
    assert not reads_on(model)
    task = asked(ragged(3))
    said = scoring.score(model, task, rule=Contains(4)).prediction_ids
    assert said == tuple(greedy(model, item.context, 4) for item in task.items)


# Under edits

SITES = {"mlp": "blocks.*.mlp.W_{in,out}", "attention": "blocks.*.attn.W_{K,O}", "a head": "blocks.*.attn.W_O[1]"}


@pytest.mark.parametrize(
    "kind", models.kinds("hooked rms-folded-grouped-rotary", "hooked parallel-rotary", "bridge gpt2")
)
@pytest.mark.parametrize(
    "sites", ["mlp", *(pytest.param(name, marks=pytest.mark.long) for name in ("attention", "a head"))]
)
def test_a_search_generates_what_the_edited_model_says(kind: str, sites: str) -> None:
    model = models.build(kind)
    prompts = ragged(8)
    said = greedy(model, prompts[0], 6)
    task = asked([*prompts, prompts[0]], [(said[3],), NEVER, (5,)])
    other = asked(ragged(2, seed=1))
    settings = {"rhos": (0.9, 0.1), "rule": Contains(6), "batch_size": 5, "progress": False}
    result = laser.search(model, Splits(task[:0], task, other), SITES[sites], **settings)
    same = 0
    for trial in result.trials:
        with surgery.apply(model, trial.candidate.spec):
            wanted = [greedy(model, item.context, 6) for item in task.items]
        for said, whole in zip(trial.outcome.generated, wanted, strict=True):
            assert said == whole[: len(said)]
        same += sum(a == b for a, b in zip(trial.outcome.generated, result.unedited.outcome.generated, strict=True))
    # Some continuations stay as they are, and some do not: both ways through a draft are taken.
    assert 0 < same < len(result.trials) * len(task)


@pytest.mark.parametrize("memory", [1, 40_000, 2**31])
def test_little_memory_changes_nothing(memory: int) -> None:
    model, task = models.build("bridge gpt2"), asked(ragged(12))
    rule, sites = Contains(6), "blocks.*.mlp.W_out"
    wanted = laser.search(
        model, Splits(task[:0], task[:8], task[8:]), sites, rhos=(0.5, 0.1), rule=rule, progress=False
    )
    got = laser.search(
        model, Splits(task[:0], task[:8], task[8:]), sites, rhos=(0.5, 0.1), rule=rule, memory=memory, progress=False,
        batch_size=3,
    )  # fmt: skip
    assert [trial.outcome.generated for trial in got.trials] == [trial.outcome.generated for trial in wanted.trials]


def test_a_pass_may_give_few_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = models.build("bridge gpt2"), asked(ragged(12))
    parts = Splits(task[:0], task[:8], task[8:])
    search = partial(laser.search, model, parts, "blocks.*.mlp.W_in", rhos=(0.9, 0.1), rule=Contains(6), progress=False)
    wanted = [trial.outcome.generated for trial in search().trials]
    monkeypatch.setattr("analyses.scoring._generation._LOGITS", 4 * N * 8 * 2)  # two tokens of eight rows
    assert [trial.outcome.generated for trial in search().trials] == wanted


def test_what_agrees_with_a_draft_is_read_from_the_edited_matrix_on() -> None:
    model, task = models.build("bridge gpt2"), asked(ragged(6))
    site = place_of(model, "blocks.1.mlp.W_out").site
    bench = Setup(model, rule=Contains(6), progress=False).bench("t", task, [site])
    bench.try_spec({str(site): KeepTop(rho=0.5)}, key="first", first=site)
    passes: list[int] = []
    handle = model.unembed.register_forward_hook(lambda *_: passes.append(1))
    trial = bench.try_spec({str(site): KeepTop(rho=1.0)}, key="nothing is cut", first=site)
    handle.remove()
    assert trial.outcome.generated == bench.unedited().outcome.generated
    assert all(len(ids) == 6 for ids in trial.outcome.generated)
    assert len(passes) == 2  # one for the logits of the answers, one for all tokens of the draft


def test_a_resumed_search_has_the_same_trials(tmp_path) -> None:
    model, task = models.build("bridge gpt2"), asked(ragged(12))
    parts, log = Splits(task[:0], task[:8], task[8:]), tmp_path / "log"
    search = partial(laser.search, model, parts, "blocks.*.mlp.W_in", rhos=(0.9, 0.1), rule=Contains(6), progress=False)
    whole = search(log=log)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4]))
    again = search(log=log)
    assert [trial.outcome.generated for trial in again.trials] == [trial.outcome.generated for trial in whole.trials]
    assert log.read_bytes().splitlines() == [line.rstrip() for line in lines]


# The last number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 72.", "72"),
        ("72. Then 5 more make 77.\nQuestion: 3", "77"),
        ("$1,234.50 in all", "1234.50"),
        ("a loss of -$5", "-5"),
        ("a loss of $-5.", "-5"),
        ("from 10-3", "3"),
        ("= -0.25", "-0.25"),
        ("\u22124", "-4"),
        ("wait...5", "5"),
        ("about .5", "0.5"),
        ("1, 2, 3", "3"),
        ("1,2", "2"),
        ("12,345,678", "12345678"),
        ("1,2345", "2345"),
        ("50% of x", "50"),
        ("none", None),
        ("", None),
        ("\nQuestion 9", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    assert LastNumber().number(text) == (None if number is None else Decimal(number))


def test_a_majority_of_samples_decides_and_of_equals_the_first() -> None:
    rule = LastNumber(samples=4, temperature=1.0)
    five, six = Decimal("5.0"), Decimal("6")
    assert rule.vote([six, five, None, Decimal("5")]) == 5
    assert rule.vote([six, five, None, None]) == 6
    assert rule.vote([None] * 4) is None


def numbers_model() -> tuple[nn.Module, Task]:
    tokenizer = wrapped(whole_words(" ".join(map(str, range(40))) + " and . = Question"))
    model = bridge_with(tokenizer)
    return model, Task("sums", tuple(AnswerItem(f"{n} and {n + 1} =", (f" {2 * n + 1}",)) for n in range(9)))


def test_last_numbers_are_judged_as_numbers() -> None:
    model, task = numbers_model()
    first = scoring.score(model, task, rule=LastNumber(6, stop=("Question",)))
    said = [LastNumber(stop=("Question",)).number(text) for text in first.predictions]
    assert any(number is not None for number in said)
    assert 39 not in said
    given = [f" {number}" if n % 2 and number is not None else " 39" for n, number in enumerate(said)]
    items = tuple(AnswerItem(item.context, (text,)) for item, text in zip(task, given, strict=True))
    scores = scoring.score(model, Task("t", items), rule=LastNumber(6, stop=("Question",)))
    assert scores.correct.tolist() == [n % 2 == 1 and number is not None for n, number in enumerate(said)]


def test_samples_depend_on_the_seed_and_on_nothing_else() -> None:
    model, task = numbers_model()
    rule = LastNumber(6, stop=("Question",), samples=3, temperature=1.5, seed=4)
    generated = {}
    for batch_size, order in ((2, range(9)), (50, range(8, -1, -1))):
        encoded = scoring.encode(model, task.take(order), rule=rule, batch_size=batch_size)
        outcome = scoring.outcome(encoded, partial(run, model), speaker=speaker_of(model, encoded))
        plain = scoring.generate(encoded, partial(run, model))
        assert outcome.generated == plain and len(plain) == 27
        for n, index in enumerate(order):
            texts = outcome.generated[3 * n : 3 * n + 3]
            assert generated.setdefault(index, texts) == texts
    assert any(len(set(texts)) > 1 for texts in generated.values())
    other = scoring.score(model, task, rule=LastNumber(6, stop=("Question",), temperature=1.5, seed=5))
    assert list(other.prediction_ids) != [texts[0] for texts in generated.values()]


def test_samples_are_drawn_with_the_models_probabilities() -> None:
    from analyses.scoring._choosing import chosen

    logits = torch.tensor([0.0, 1.0, 2.0]).expand(4000, 3)
    draws = chosen(LastNumber(temperature=2.0), logits, [(((n,), 0), 0) for n in range(4000)])
    wanted = torch.tensor([0.0, 0.5, 1.0]).softmax(0)
    found = torch.tensor(draws).bincount(minlength=3) / 4000
    assert (found - wanted).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_a_sampled_search_generates_what_the_edited_model_says() -> None:
    model, task = numbers_model()
    rule = LastNumber(5, stop=("Question",), samples=2, temperature=1.0)
    result = laser.search(
        model, Splits(task[:0], task[:6], task[6:]), "blocks.*.mlp.W_out", rhos=(0.9, 0.2), rule=rule, progress=False
    )
    for trial in result.trials:
        with surgery.apply(model, trial.candidate.spec):
            plain = scoring.generate(scoring.encode(model, task[:6], rule=rule), partial(run, model))
        assert trial.outcome.generated == plain


def test_rules_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"samples=3 at temperature 0, where all of them are the same: give a"):
        LastNumber(samples=3)
    with pytest.raises(ValueError, match=r"Contains was given stop=\(''\,\): give a tuple of texts"):
        Contains(stop=("",))
    with pytest.raises(ValueError, match="LastNumber was given temperature=-1"):
        LastNumber(temperature=-1.0)
    model, _ = numbers_model()
    task = Task("t", (AnswerItem("1 and", (" 2",)), AnswerItem("1 and", (" two",))))
    with pytest.raises(ValueError, match=r"t, item 1: the answer ' two' is no number, and LastNumber\("):
        scoring.score(model, task, rule=LastNumber())
