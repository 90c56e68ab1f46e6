"""Eigenpruning against brute force: one component patched at one position, everything in memory, another length."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import D_VOCAB, ONE_OF_EACH, State, build
from tiny_tokenizers import bridge_with, sentence_piece, wrapped
from torch import Tensor, nn

import surgery
from analyses import attribution, eigenpruning, metrics, plots, recall, tasks
from analyses.attribution.passes import backward
from analyses.attribution.question import ask
from analyses.eigenpruning._pruning import _parts
from analyses.eigenpruning._reducers import running
from analyses.eigenpruning.examples import ScoredExamples, _partners, examples_of
from analyses.eigenpruning.scores import ComponentScores, _group
from hooks import Site, place_of

SOME = ["blocks.0.attn.W_K[1]", "blocks.1.attn.W_O[2]", "blocks.0.mlp.W_in", "blocks.1.mlp.W_out"]
EVERY = ["blocks.*.attn.W_[QKVO][*]", "blocks.*.mlp.W_*"]


@contextmanager
def borrowed(kind: str) -> Iterator[nn.Module]:
    """A model that tests share, and the check that it is given back as it was; it has met an attention mask before."""
    model = _built.pop(kind, None) or _warm(build(kind))
    before = State(model)
    yield model
    before.assert_unchanged(model)
    _built[kind] = model


_built: dict[str, nn.Module] = {}


def _warm(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model(torch.ones(1, 3, dtype=torch.long), attention_mask=torch.ones(1, 3, dtype=torch.long))
        model.run_with_cache(torch.ones(1, 3, dtype=torch.long))
    return model


def items(*lengths: int, seed: int = 0, answers: int = 1) -> tasks.Task:
    """A random prompt of each length, with a random answer of so many tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, D_VOCAB, (n,), generator=generator).tolist())

    return tasks.Task("random", tuple(tasks.AnswerItem(draw(n), (draw(answers),)) for n in lengths))


def answer_loss(model: nn.Module, item: tasks.AnswerItem) -> Tensor:
    """−log p of the answer, in nats per token, written out."""
    row = torch.tensor([*item.prompt, *item.answers[0]])
    log_p = model(row[None, :-1])[0].double().log_softmax(-1)
    start = len(item.prompt) - 1
    return -torch.stack([log_p[start + k, token] for k, token in enumerate(item.answers[0])]).mean()


def ends_of_a_matrix(model: nn.Module, item: tasks.AnswerItem, site: str) -> tuple[Tensor, Tensor]:
    """The input of a matrix and the gradient of the loss at its output, by autograd alone."""
    place, kept = place_of(model, site), {}

    def grab(x: Tensor) -> None:
        kept["x"] = place.read_input(x).detach()[0].double()

    def leaf(y: Tensor) -> Tensor:
        kept["y"] = y.detach().requires_grad_()
        return kept["y"]

    with place.tapped(at_input=grab, at_output=leaf):
        loss = answer_loss(model, item)
    (g,) = torch.autograd.grad(loss, kept["y"])
    return kept["x"], place.read_output(g)[0].double()


def in_memory(model: nn.Module, task: tasks.Task, partner: list[int], site: str) -> tuple[np.ndarray, np.ndarray]:
    """`E` of every example and position by loops, `[row component]`, and `g·(WᵀΔx)` of every row."""
    W = place_of(model, site).matrix().double()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    ends = [ends_of_a_matrix(model, item, site) for item in task.items]
    scores, totals = [], []
    for item, (x, g), other in zip(task.items, ends, partner, strict=True):
        shift = len(task.items[other].prompt) - len(item.prompt)
        for t in range(len(x)):
            if 0 <= t + shift < len(ends[other][0]):
                dx = ends[other][0][t + shift] - x[t]
                scores.append([float(S[i] * (dx @ U[:, i]) * (Vh[i] @ g[t])) for i in range(len(S))])
                totals.append(float(g[t] @ (dx @ W)))
    return np.array(scores), np.array(totals)


def partners(examples: ScoredExamples) -> list[int]:
    """Which example each corrupted row is."""
    rows = list(zip(examples.clean.tokens, examples.clean.mask.sum(1), strict=True))
    found = zip(examples.corrupted.tokens, examples.corrupted.mask.sum(1), strict=True)
    return [next(j for j, (row, n) in enumerate(rows) if n == m and torch.equal(row, c)) for c, m in found]


REDUCED = {
    "max": lambda E: E.max(0),
    "mean": lambda E: E.mean(0),
    "mean_abs": lambda E: np.abs(E).mean(0),
    ("quantile", 0.9): lambda E: np.quantile(E, 0.9, axis=0, method="inverted_cdf"),
}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_streamed_scores_are_those_of_everything_in_memory(kind: str) -> None:
    task = items(5, 5, 4, 4, 4, 7, answers=2)
    with borrowed(kind) as model:
        partner = partners(examples_of(model, task, corrupt="shuffle", seed=3))
        assert [len(task.items[j].prompt) for j in partner][2:5] == [4, 4, 4]
        expected = {site: in_memory(model, task, partner, site)[0] for site in SOME}
        for reduce, by_hand in REDUCED.items():
            for size in (1, 4) if reduce == "max" else (4,):
                found = eigenpruning.attribute(
                    model, task, SOME, reduce=reduce, seed=3, batch_size=size, progress=False
                )
                for site, E in expected.items():
                    near = {"atol": 1e-4 * np.abs(E).max(), "err_msg": f"{reduce}, batch_size={size}"}
                    np.testing.assert_allclose(found[site].numpy(), by_hand(E), **near)
                    np.testing.assert_allclose(found.flipped[site].numpy(), by_hand(-E), **near)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_the_scores_of_a_matrix_sum_to_what_its_whole_output_does(kind: str) -> None:
    task = items(5, 5, 5)
    with borrowed(kind) as model:
        partner = partners(examples_of(model, task, corrupt="shuffle", seed=0))
        sites = surgery.sites(model, EVERY)
        found = eigenpruning.attribute(model, task, sites, reduce="mean", progress=False)
        for site in sites[::5]:
            _, totals = in_memory(model, task, partner, site)
            np.testing.assert_allclose(found[site].sum().item(), totals.mean(), rtol=1e-3, atol=1e-7)


@pytest.mark.hooked
def test_on_a_linear_read_out_a_score_is_the_effect_of_a_patch() -> None:
    """The last W_out of a model without normalisation, and a logit: one component patched at one position."""
    model, site = build("hooked no-norm"), "blocks.1.mlp.W_out"
    clean, other = torch.randint(1, D_VOCAB, (2, 1, 6), generator=torch.Generator().manual_seed(4))
    question = ask(model, clean, metrics.logit(7, position=3), [site], progress=False)
    target = question.targets[Site.parse(site)]
    _, cache = model.run_with_cache(other)
    x2, x = cache["blocks.1.mlp.hook_post"], model.run_with_cache(clean)[1]["blocks.1.mlp.hook_post"]
    found = backward(question, question.examples).score(target, x2)
    W = model.blocks[1].mlp.W_out.detach()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    before = model(clean)[0, 3, 7]
    for t in (3, 5):
        for i in (0, 4, 20):

            def patch(y: Tensor, hook: object, t: int = t, i: int = i) -> Tensor:
                y[0, t] += S[i] * ((x2 - x)[0, t] @ U[:, i]) * Vh[i]
                return y

            after = model.run_with_hooks(clean, fwd_hooks=[("blocks.1.hook_mlp_out", patch)])[0, 3, 7]
            assert found[0, t, i].item() == pytest.approx((after - before).item(), abs=2e-5)
    assert found[0, 3].abs().max() > 1e-2


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_the_compensation_is_the_mean_input_at_a_length_that_was_not_scored(kind: str, tmp_path: Path) -> None:
    task, long = items(5, 5, 4, 4), torch.randint(1, D_VOCAB, (2, 11), generator=torch.Generator().manual_seed(9))
    site = "blocks.1.attn.W_V[2]"
    with borrowed(kind) as model:
        scores = eigenpruning.attribute(model, task, [site, "blocks.0.mlp.W_out"], progress=False)
        chosen = scores.lowest(0.4, budget="matrix")
        surgery.save(scores.spec(chosen), tmp_path / "spec.json", model=model)
        spec = surgery.load(tmp_path / "spec.json", model=model)
        place = place_of(model, site)
        U, S, Vh = torch.linalg.svd(place.matrix(), full_matrices=False)
        mean = torch.cat([ends_of_a_matrix(model, item, site)[0] for item in task.items]).mean(0).float()
        gone = [i for unit in chosen[site] for i in unit]
        kept: dict[str, Tensor] = {}

        def grab(x: Tensor) -> None:
            kept["x"] = place.read_input(x)

        def by_hand(y: Tensor) -> Tensor:
            change = ((mean - kept["x"]) @ U[:, gone] * S[gone]) @ Vh[gone]
            return place.add_to_output(y, change)

        with place.tapped(at_input=grab, at_output=by_hand):
            expected = model(long)
        plain = model(long)
        with surgery.apply(model, {site: spec[site]}, progress=False):
            edited = model(long)
        assert len(gone) == 3
        torch.testing.assert_close(edited, expected, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(edited, plain, atol=1e-4)
        assert torch.equal(model(long), plain)


def test_a_model_is_left_as_it_was_and_the_report_has_every_variant() -> None:
    report = eigenpruning.Report(finetune=eigenpruning.FineTuning(steps=3, lr=1e-3))
    with borrowed("bridge gpt2") as model:
        result = eigenpruning.prune(model, items(*[5] * 12), SOME, report=report, progress=False)
    controls = ["random 1", "random 2", "random 3", "smallest s", "sign flipped"]
    of_copy = [f"fine-tuned + {name}" for name in ("pruned", *controls)]
    assert list(result.scores) == ["base", "pruned", *controls, "fine-tuned", *of_copy]
    frame = result.to_dataframe()
    assert list(frame["variant"]) == list(result.scores)
    assert (frame["n_items"] == 6).all()
    assert frame["accuracy_change"][0] == 0
    assert result.chosen.n_components == int(0.2 * result.attribution.n_components)
    text = repr(result)
    assert all(name in text for name in result.scores)
    assert "reported on 6 others" in text
    assert max(map(len, text.splitlines())) < 110  # no line wraps in the middle of a number
    assert result.fine_tuned is not None
    assert result.fine_tuned.spec.keys() <= set(SOME)
    with pytest.raises(KeyError, match="'nothing' is no variant of this result; there are base, pruned"):
        result.compare("nothing")


def test_the_pruned_scores_are_those_of_the_model_under_the_spec() -> None:
    task = items(*[5] * 10)
    parts = tasks.Splits(task.take(range(4)), task.take(()), task.take(range(4, 10)))
    with borrowed("bridge gpt2") as model:
        result = eigenpruning.prune(
            model, parts, SOME, fraction=0.5, report=eigenpruning.Report(draws=0), progress=False
        )
        with surgery.apply(model, result.spec, progress=False):
            by_hand = torch.stack([answer_loss(model, item) for item in parts.test.items])
        torch.testing.assert_close(result.scores["pruned"].log_loss, by_hand.detach(), atol=1e-5, rtol=1e-4)
        assert (result.scores["pruned"].log_loss - result.scores["base"].log_loss).abs().max() > 1e-3


def test_fine_tuning_lowers_the_loss_on_the_items_that_are_scored() -> None:
    task = items(*[5] * 6)
    parts = tasks.Splits(task.take(range(4)), task.take(()), task.take((4, 5)))
    tuning = eigenpruning.FineTuning(steps=12, lr=3e-3)
    method, report = eigenpruning.Method(compensation="none"), eigenpruning.Report(draws=0, finetune=tuning)
    with borrowed("bridge gpt2") as model:
        result, again = (
            eigenpruning.prune(model, parts, SOME[0], method=method, report=report, progress=False).fine_tuned
            for _ in range(2)
        )
    assert result is not None and again is not None

    def loss(of: nn.Module) -> float:
        return float(torch.stack([answer_loss(of, item) for item in parts.screen.items]).mean().detach())

    assert loss(result.model) < loss(model) - 0.5
    assert loss(again.model) == loss(result.model)


def test_the_fraction_is_chosen_on_the_validation_part() -> None:
    task = items(*[5] * 20)
    with borrowed("bridge gpt2") as model:
        few = eigenpruning.Report(draws=0)
        result = eigenpruning.prune(
            model, task, SOME, fraction=eigenpruning.Best((0.0, 0.3, 0.9)), report=few, progress=False
        )
        assert result.validation is not None
        parts = task.split(screen=0.4, validation=0.2, test=0.4, seed=0)
        for row in result.validation.itertuples():
            spec = result.attribution.spec(result.attribution.lowest(row.fraction))
            with surgery.apply(model, spec, progress=False):
                losses = [answer_loss(model, item).item() for item in parts.validation.items]
            assert row.log_loss == pytest.approx(np.mean(losses), abs=1e-4)
        ranked = result.validation.sort_values(["accuracy", "log_loss"], ascending=[False, True])
        assert result.fraction == ranked["fraction"].iloc[0]
        assert ranked["rank"].tolist() == [0, 1, 2]
        default = eigenpruning.prune(model, task, fraction="validation", report=few, progress=False)
        assert default.validation is not None
        assert len(default.validation) == 8


def test_mirrored_products_are_never_scored_and_reported_on() -> None:
    parts = _parts(tasks.multiplication(8), 0, 0.5, choosing=False)

    def pairs(part: tasks.Task) -> set[frozenset]:
        return {frozenset((item.metadata["i"], item.metadata["j"])) for item in part.items}

    scored, reported = pairs(parts.screen), pairs(parts.test)
    assert not scored & reported
    assert len(parts.screen) + len(parts.test) == 64


def made_up(seed: int) -> ComponentScores:
    generator = torch.Generator().manual_seed(seed)
    ranks = {"blocks.0.attn.W_K[0]": 7, "blocks.0.attn.W_K[1]": 7, "blocks.1.attn.W_V": 11, "blocks.1.mlp.W_in": 5}
    score, flipped, strength, constant = (
        {site: torch.randn(n, generator=generator) for site, n in ranks.items()} for _ in range(4)
    )
    measure = attribution.Measure("loss", "nats", False, torch.zeros(3))
    units = {site: tuple((i,) for i in range(n)) for site, n in ranks.items()}
    rows = {site: values[None] for site, values in score.items()}
    effects = attribution.Effects("gradient", measure, units, rows, strength, "raw", 3.0)
    return ComponentScores(effects, flipped, constant, "max")


@given(st.integers(0, 50), st.floats(0, 1), st.sampled_from(["global", "type", "matrix"]))
def test_the_lowest_of_every_group_are_chosen(seed: int, fraction: float, budget: eigenpruning.Budget) -> None:
    scores = made_up(seed)
    chosen = scores.lowest(fraction, budget=budget)
    name = {"global": lambda s: 0, "type": lambda s: s.rsplit(".", 1)[1][:3], "matrix": lambda s: s}[budget]
    for group in {name(site) for site in scores.sites}:
        members = [s for s in scores.sites if name(s) == group]
        inside = [float(scores[s][i]) for s in members for (i,) in chosen.get(s, ())]
        everything = sorted(float(v) for s in members for v in scores[s])
        assert sorted(inside) == everything[: int(fraction * len(everything) + 1e-9)]


def test_controls_remove_as_many_by_another_order() -> None:
    scores = made_up(1)
    every = [(s, i) for s in scores.sites for i in range(len(scores[s]))]
    flat = {(s, i): (float(scores.effects.strengths[s][i]), float(scores.flipped[s][i])) for s, i in every}
    for column, by in enumerate(("strength", "flipped")):
        expected = sorted(flat, key=lambda key: flat[key][column])[:6]
        found = scores.lowest(0.2, by=by)
        assert sorted(expected) == sorted((s, i) for s in found for (i,) in found[s])
    drawn = [scores.lowest(0.2, by="random", seed=seed) for seed in (0, 0, 1)]
    assert [d.n_components for d in drawn] == [6, 6, 6]
    assert dict(drawn[0]) == dict(drawn[1]) != dict(drawn[2])


def test_a_reduction_holds_no_more_after_many_scores_than_after_few() -> None:
    for reduce in REDUCED:
        sizes = []
        for n in (2, 200):
            state = running(reduce, 4)
            for _ in range(n):
                state.update(torch.randn(9, 4))
            sizes.append(sum(v.numel() for v in vars(state).values() if isinstance(v, Tensor)))
        assert sizes[0] == sizes[1]


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
def test_a_streamed_quantile_is_exact(n: int, q: float, seed: int) -> None:
    values = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    state = running(("quantile", q), 3)
    for _ in range(state.passes):
        for part in values.split(7):
            state.update(part)
        state.end_of_pass()
    ranked = values.sort(0).values
    smallest_enough = next(k for k in range(n) if k + 1 >= q * n - 1e-9)
    assert torch.equal(state.result(), ranked[smallest_enough])


@given(st.lists(st.integers(1, 6), min_size=2, max_size=25), st.integers(0, 5))
def test_every_example_gets_another_one_of_its_length_where_there_is_one(lengths: list[int], seed: int) -> None:
    partner = _partners(lengths, "shuffle", seed).tolist()
    assert sorted(partner) == list(range(len(lengths)))
    assert all(i != j for i, j in enumerate(partner))
    assert partner == _partners(lengths, "shuffle", seed).tolist()
    if all(lengths.count(n) > 1 for n in lengths):
        assert all(lengths[i] == lengths[j] for i, j in enumerate(partner))


def test_identical_inputs_score_nothing() -> None:
    task = items(5, 5, 4)
    same = {item.prompt: item.prompt for item in task.items}
    with borrowed("bridge gpt2") as model:
        scores = eigenpruning.attribute(model, task, EVERY, reduce="mean_abs", corrupt=same, progress=False)
        assert all(not bool(scores[site].any()) for site in scores.sites)


def test_given_pairs_are_what_is_compared_with() -> None:
    task = items(5, 5)
    first, second = task.items
    with borrowed("bridge gpt2") as model:
        swapped = [(first.prompt, second.prompt), (second.prompt, first.prompt)]
        by_pairs = eigenpruning.attribute(model, task, SOME, corrupt=swapped, progress=False)
        by_partner = eigenpruning.attribute(model, task, SOME, corrupt="previous", progress=False)
        for site in SOME:
            torch.testing.assert_close(by_pairs[site], by_partner[site])


@pytest.mark.parametrize("prepend", [True, False])
def test_texts_begin_as_they_are_told_to(prepend: bool) -> None:
    model = bridge_with(wrapped(sentence_piece()))
    prompts, bos = [f"The capital of {land} is" for land in ("France", "Peru", "Italy", "Japan")], [1] * prepend
    texts = tasks.Task("texts", tuple(tasks.AnswerItem(prompt, (" Paris", " Rome")) for prompt in prompts))
    ids = [bos + model.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    assert model.tokenizer.bos_token_id == 1
    paris, rome = (tuple(model.tokenizer(name, add_special_tokens=False)["input_ids"]) for name in ("Paris", "Rome"))
    written = tasks.Task("ids", tuple(tasks.AnswerItem(tuple(row), (paris, rome)) for row in ids))
    scored = eigenpruning.attribute(model, texts, SOME[-1], prepend_bos=prepend, progress=False)
    wanted = eigenpruning.attribute(model, written, SOME[-1], progress=False)
    torch.testing.assert_close(scored[SOME[-1]], wanted[SOME[-1]])
    for run in (eigenpruning.prune, eigenpruning.published):
        if run is eigenpruning.published:
            more = {"finetune": eigenpruning.FineTuning(steps=1)}
            begun = {"prepend_bos": prepend}
        else:
            more, begun = {}, {"method": eigenpruning.Method(prepend_bos=prepend)}
        result = run(model, texts, SOME[-1], progress=False, **more, **begun)
        by_ids = run(model, written, SOME[-1], progress=False, **more).scores["pruned"]
        pruned = result.scores["pruned"]
        torch.testing.assert_close(pruned.log_probs.sort().values, by_ids.log_probs.sort().values)


def test_a_long_answer_scores_the_mean_over_its_tokens() -> None:
    task = items(5, 5, answers=3)
    with borrowed("bridge gpt2") as model:
        examples = examples_of(model, task, corrupt="previous", seed=0)
        loss = metrics.loss(examples.clean.labels)(model(examples.clean.tokens)).tolist()
        assert loss == pytest.approx([answer_loss(model, item).item() for item in task.items], abs=1e-5)


def test_sentences_can_be_scored_too() -> None:
    pairs = tuple(tasks.MinimalPair((1, 2, 3, n), (1, 2, 4, n)) for n in (5, 6, 7, 8))
    with borrowed("bridge gpt2") as model:
        task = tasks.Task("pairs", pairs)
        scores = eigenpruning.attribute(model, task, SOME, corrupt={p.good: p.bad for p in pairs}, progress=False)
        assert bool(scores["blocks.1.mlp.W_out"].any())
        result = eigenpruning.prune(model, task, SOME, report=eigenpruning.Report(draws=0), progress=False)
        assert len(result.scores["base"]) == 2


TUNED = eigenpruning.Report(finetune=eigenpruning.FineTuning())
BAD_PRUNE = {
    "alone": (
        dict(task=items(5)),
        "1 example with corrupt='shuffle': .* one alone would score everything 0. Give two items",
    ),
    "missing": (dict(corrupt={(1,): (2,)}), "no corrupted prompt is given for .*names each of them. Add it"),
    "uneven": (
        dict(corrupt={i.prompt: i.prompt[1:] for i in items(5, 5).items}),
        "makes 4 tokens and the clean one .* 5: a pair has the same length",
    ),
    "reduce": (dict(reduce=("quantile", 2.0)), r"reduce=\('quantile', 2.0\): scores are reduced by 'max'"),
}


@pytest.mark.parametrize("case", BAD_PRUNE)
def test_what_cannot_be_scored_is_refused(case: str) -> None:
    settings, message = BAD_PRUNE[case]
    with borrowed("bridge gpt2") as model:
        task = settings.get("task", items(5, 5))
        rest = {k: v for k, v in settings.items() if k != "task"}
        with pytest.raises(ValueError, match=message):
            eigenpruning.attribute(model, task, SOME, progress=False, **rest)


def test_words_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="corrupt='noise': corrupted inputs are 'shuffle'"):
        _partners([5, 5], "noise", 0)
    with pytest.raises(ValueError, match="budget='layer': it is one of 'global', 'type', 'matrix'"):
        _group("blocks.0.mlp.W_in", "layer")
    with pytest.raises(ValueError, match="compensation='zero': it is one of 'mean', 'none'"):
        eigenpruning.Method(compensation="zero")


def test_what_cannot_be_pruned_is_refused() -> None:
    task = items(*[5] * 8)
    with borrowed("bridge gpt2") as model:
        for bad in (1.5, -0.1):
            with pytest.raises(ValueError, match=f"fraction={bad}.*from 0 to 1, or 'validation'"):
                eigenpruning.prune(model, task, SOME, fraction=bad, progress=False)
        parts = task.split(screen=0.5, validation=0.0, test=0.5, seed=0)
        with pytest.raises(ValueError, match="the part 'validation' of the task has no items"):
            eigenpruning.prune(model, parts, SOME, fraction="validation", progress=False)
        scores = made_up(0)
        with pytest.raises(ValueError, match="fraction=2: give a fraction, from 0 to 1"):
            scores.lowest(2)
        with pytest.raises(KeyError, match=r"'blocks.9.mlp.W_in' was not attributed; there are blocks.0"):
            scores["blocks.9.mlp.W_in"]
        with (
            surgery.apply(model, {"blocks.0.mlp.W_out": surgery.Drop([0])}, progress=False),
            pytest.raises(ValueError, match="fine-tuning would not see it: undo it first"),
        ):
            eigenpruning.prune(model, task, SOME, report=TUNED, progress=False)
    with pytest.raises(ValueError, match="FineTuning was given steps=0: give a whole number, 1 or more"):
        eigenpruning.FineTuning(steps=0)
    frozen = build("bridge gpt2").requires_grad_(False)
    with pytest.raises(ValueError, match="nothing can be fine-tuned"):
        eigenpruning.prune(frozen, task, SOME, report=TUNED, progress=False)


@pytest.mark.hooked
def test_a_gated_input_has_no_place_for_a_compensation() -> None:
    task = items(*[5] * 8)
    with borrowed("hooked rms-gated") as model:
        with pytest.raises(ValueError, match=r"'blocks.0.mlp.W_in' cannot be compensated.*or give compensation='none'"):
            eigenpruning.prune(model, task, "blocks.*.mlp.W_in", progress=False)
        plain = eigenpruning.Method(compensation="none")
        result = eigenpruning.prune(model, task, "blocks.*.mlp.W_in", method=plain, progress=False)
        assert result.chosen.n_components == int(0.2 * result.attribution.n_components)


def test_published_takes_the_papers_settings() -> None:
    task = items(*[5] * 12)
    with borrowed("bridge gpt2") as model:
        tuning = eigenpruning.FineTuning(steps=1)
        found = eigenpruning.published(model, task, finetune=tuning, progress=False)
        method = eigenpruning.Method(reduce="max", corrupt="previous")
        a_fifth = eigenpruning.Report(test=0.2)
        asked = eigenpruning.prune(model, task, fraction=0.2, method=method, report=a_fifth, progress=False)
        assert dict(found.chosen) == dict(asked.chosen)
        assert "fine-tuned + pruned" in found.scores
        assert "max over 10 examples" in repr(found.attribution)
        assert found.attribution["blocks.0.attn.W_K[*]"].shape == (4, 8)


@pytest.fixture(scope="module")
def recalled(trained: Path) -> tuple[nn.Module, recall.RecallTask]:
    task = recall.RecallTask.synthetic()
    model = recall.bridge(task)
    recall.train(model, task, cache=trained, progress=False)
    return model, task


def test_pruning_with_the_mlp_output_takes_the_noise_out_of_the_recall_model(
    recalled: tuple[nn.Module, recall.RecallTask],
) -> None:
    model, task = recalled
    batch = task.sample(40, seed=5, alpha=0.0)
    asked = tasks.recall(batch.tokens, batch.answers, scored=batch.scored, distractors=[task.noise_token])
    others = [t for t in range(task.d_vocab) if t not in (*task.triggers, task.noise_token)]
    pairs = {item.prompt: (*item.prompt[:-1], others[n % len(others)]) for n, item in enumerate(asked.items)}
    sites = ["blocks.*.attn.W_[KVO][*]", "blocks.1.mlp.W_*"]
    method = eigenpruning.Method(reduce="mean", corrupt=pairs, compensation="none")
    result = eigenpruning.prune(model, asked, sites, fraction=0.02, method=method, progress=False)
    assert (0,) in result.chosen["blocks.1.mlp.W_out"]
    with surgery.apply(model, result.spec, progress=False):
        pruned = recall.evaluate(model, task, sequences=256, seed=11)
    full = recall.evaluate(model, task, sequences=256, seed=11)
    assert full.p_noise > 0.4
    assert full.accuracy < 0.75
    assert pruned.p_noise < 0.02
    assert pruned.accuracy >= 0.95
    assert result.compare().accuracy.low > 0.2
    assert result.scores["sign flipped"].accuracy < result.scores["base"].accuracy - 0.2


def test_the_interval_of_a_change_is_not_drawn_on_an_accuracy() -> None:
    with borrowed("bridge gpt2") as model:
        result = eigenpruning.prune(model, items(*[5] * 20), SOME, fraction=0.4, progress=False)
    accuracies, changes = plots.eigenpruning.report(result).data
    assert accuracies.error_x.array is None
    frame = result.to_dataframe().set_index("variant").loc[list(changes.y)]
    assert "base" not in changes.y
    assert list(changes.x) == frame["accuracy_change"].tolist()
    ends = [x + e for x, e in zip(changes.x, changes.error_x.array, strict=True)]
    assert ends == pytest.approx(frame["accuracy_high"].tolist())
    ends = [x - e for x, e in zip(changes.x, changes.error_x.arrayminus, strict=True)]
    assert ends == pytest.approx(frame["accuracy_low"].tolist())


def test_pictures_show_what_was_removed_and_what_it_did() -> None:
    with borrowed("bridge gpt2") as model:
        result = eigenpruning.prune(
            model, items(*[5] * 20), SOME, fraction=eigenpruning.Best((0.1, 0.4)), progress=False
        )
    kept, removed = plots.eigenpruning.scores(result).data
    assert (kept.name, removed.name) == ("kept", "removed")
    assert len(removed.x) == result.chosen.n_components
    assert len(kept.x) + len(removed.x) == result.attribution.n_components
    lowest = sorted(float(v) for site in SOME for v in result.attribution[site])[: len(removed.y)]
    assert sorted(removed.y) == pytest.approx(lowest)
    report = plots.eigenpruning.report(result)
    assert list(report.data[0].y) == list(result.scores)
    assert list(report.data[0].x) == pytest.approx([scores.accuracy for scores in result.scores.values()])
    assert [note.text for note in report.layout.annotations] == [
        "accuracy (fraction)",
        "change from base, 95 % interval",
    ]
    validation = plots.eigenpruning.validation(result)
    assert list(validation.data[0].x) == [0.1, 0.4]
    assert validation.layout.yaxis2.tickmode == "auto"
    given = eigenpruning.Pruning(**{f: getattr(result, f) for f in result.__slots__ if f != "validation"})
    with pytest.raises(ValueError, match="the fraction was given, not chosen"):
        plots.eigenpruning.validation(given)
