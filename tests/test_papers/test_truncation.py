"""Truncation against edits written by hand, and the claims of the recall experiment on three seeds, with margins."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from models import D_VOCAB, ONE_OF_EACH, bridge, build
from tiny_tokenizers import bridge_with, byte_level, sentence_piece, wrapped
from torch import Tensor, nn

import surgery
from analyses import plots, recall, tasks, truncation
from analyses.truncation._cuts import cuts_of
from hooks import place_of
from surgery import DropTop, KeepTop, Zero

W_IN, W_OUT = "blocks.1.mlp.W_in", "blocks.1.mlp.W_out"


def rows(*lengths: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(1, D_VOCAB, (n,), generator=generator).tolist()) for n in lengths]


def answered(prompts: list[tuple[int, ...]], *, distractors: bool = True) -> tasks.Task:
    """Token 1 is right, token 2 its rival."""
    return tasks.Task("ids", tuple(tasks.AnswerItem(p, ((1,),), ((2,),) if distractors else ()) for p in prompts))


def by_hand(model: nn.Module, site: str, W: Tensor, prompts: list[tuple[int, ...]]) -> Tensor:
    """The logits after each prompt with this matrix in the model, one prompt at a time, written into its parameter."""
    place = place_of(model, site)
    held = place.slots[0].registered()
    before = held.detach().clone()
    joint = place.layout.to_matrix(before).clone()
    place.part_of(joint).copy_(W)
    with torch.no_grad():
        held.copy_(place.stored(joint))
        found = torch.stack([model(torch.tensor([p]))[0, -1] for p in prompts])
        held.copy_(before)
    return found.double()


def test_where_logits_are_no_numbers_nothing_is_likeliest_nor_has_a_rank() -> None:
    model = build("bridge gpt2")
    with torch.no_grad():
        place_of(model, W_OUT).slots[0].registered()[0, 0] = torch.nan
    frame = truncation.curve(model, answered(rows(3, 5)), "blocks.0.mlp.W_in", rhos=(0.5,), progress=False).frame
    assert frame[["p", "log_p", "rank", "margin", "likeliest"]].isna().all(axis=None)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("site", [W_OUT, "blocks.0.mlp.W_in", "blocks.0.attn.W_V[2]", "blocks.1.attn.W_O"])
def test_a_curve_is_what_matrices_cut_by_hand_give(kind: str, site: str) -> None:
    prompts = rows(5, 3, 7, 5)
    model = build(kind)
    task = answered(prompts)
    curve = truncation.curve(model, task, site, rhos=(0.0, 0.3, 1.0), generic=4, batch_size=3, progress=False)
    W = place_of(model, site).matrix().clone()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    for rho in (0.0, 0.3, 1.0):
        r = int(rho * len(S) + 1e-9)
        top = (U[:, :r] * S[:r]) @ Vh[:r]
        for end, matrix in (("keep top", top), ("drop top", W - top)):
            logits = by_hand(model, site, matrix, prompts)
            p = logits.softmax(1)
            for name, token in {"correct": 1, "distractor": 2, "generic": 4}.items():
                row = curve.of(name, end=end).set_index("rho").loc[rho]
                assert row["p"] == pytest.approx(p[:, token].mean().item(), abs=2e-5)
                assert row["p_stderr"] == pytest.approx((p[:, token].std() / 2).item(), abs=2e-5)
                assert row["margin"] == pytest.approx((logits[:, 1] - logits[:, token]).mean().item(), abs=2e-4)
                assert row["likeliest"] == (logits.argmax(1) == token).double().mean().item()
    strongest = by_hand(model, site, W - S[0] * U[:, :1] * Vh[:1], prompts).softmax(1)[:, 1].mean().item()
    assert curve.of("correct", end="top component dropped")["p"][0] == pytest.approx(strongest, abs=2e-5)
    full = by_hand(model, site, W, prompts).softmax(1)[:, 1].mean().item()
    assert curve.of("correct", end="full")["p"][0] == pytest.approx(full, abs=2e-5)
    assert curve.of("correct", end="keep top")["p"].iloc[-1] == pytest.approx(full, abs=2e-5)
    assert ("MLP dropped" in set(curve.frame["end"])) == (".mlp." in site)


def test_a_users_hook_takes_part_in_a_curve() -> None:
    """Where hooks are on the model nothing is replayed: what they change counts."""
    model, prompts = build("bridge gpt2"), torch.tensor(rows(5, 5))
    plain = truncation.curve(model, prompts, W_OUT, track={"correct": 1}, rhos=(0.5,), progress=False)

    def silence(z: Tensor, hook: object) -> Tensor:
        return torch.zeros_like(z)

    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", silence)]):
        hooked = truncation.curve(model, prompts, W_OUT, track={"correct": 1}, rhos=(0.5,), progress=False)
        with surgery.apply(model, {W_OUT: KeepTop(rho=0.5)}, progress=False):
            expected = model(prompts)[:, -1].softmax(1)[:, 1].mean().item()
    assert hooked.of("correct")["p"][0] == pytest.approx(expected, abs=1e-6)
    assert abs(plain.of("correct")["p"][0] - expected) > 1e-5


def test_a_curve_keeps_no_graph() -> None:
    def keep(_activation: Tensor) -> object:
        raise AssertionError("an activation was kept for a backward pass that nobody asked for")

    model = build("bridge gpt2")
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        truncation.curve(model, torch.tensor([[1, 2, 3]]), W_OUT, track={"correct": 1}, rhos=(0.5,), progress=False)


def test_texts_are_tracked_by_the_token_that_continues_them() -> None:
    model = bridge_with(wrapped(sentence_piece()))
    asked = ["The capital of France is", "The capital of Peru is"]
    found = truncation.prompts(model, asked, {"correct": [" Paris", " Lima"], "generic": " the"})
    for row, answer in enumerate(("Paris", "Lima")):
        whole = model.tokenizer.encode(f"{asked[row]} {answer}", add_special_tokens=False)
        n = int(found.inputs.reads.pos[row]) + 1
        assert found.inputs.tokens[row, 1:n].tolist() == whole[: n - 1]
        assert found.track["correct"][row] == whole[n - 1]
    curve = truncation.curve(model, found, "blocks.*.mlp.W_out", rhos=(0.1, 0.5), progress=False)
    assert set(curve.frame["site"]) == {"", "blocks.0.mlp.W_out", "blocks.1.mlp.W_out"}
    assert "probabilities after 2 prompts" in repr(curve)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_ids_tracked_after_a_prompt_that_ends_in_a_space_are_asked_there(make: object) -> None:
    model = bridge_with(wrapped(make()))
    prompt, token = "The capital of Peru is ", 12
    found = truncation.curve(
        model, prompt, W_OUT, track={"correct": token}, rhos=(1.0,), progress=False, prepend_bos=False
    )
    inputs = torch.tensor([model.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        wanted = model.original_model(inputs).logits[0, -1].softmax(-1)[token].item()
    assert found.of("correct", end="full")["p"][0] == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(
        ValueError, match=r"'The capital of Peru is ' ends in spaces, .* 'correct' and 'generic' are not"
    ):
        truncation.curve(model, prompt, W_OUT, track={"correct": token, "generic": "the"}, progress=False)


def test_one_prompt_is_not_read_as_its_characters() -> None:
    model = bridge_with(wrapped(sentence_piece()))
    made = truncation.prompts(model, "The capital of Peru is", {"correct": " Lima"})
    assert len(made) == 1
    assert made.inputs.tokens.tolist() == model.to_tokens("The capital of Peru is").tolist()


def test_a_word_is_not_tracked_by_a_space_before_it() -> None:
    model = bridge_with(wrapped(byte_level()))
    with pytest.raises(ValueError, match=r"' the' after 'is ' begins with token \d+, which is white space only"):
        truncation.prompts(model, "is ", {"correct": " the"})
    truncation.prompts(model, "is ", {"correct": "the"})


@pytest.mark.parametrize("prepend", [True, False])
def test_prompts_begin_as_they_are_told_to(prepend: bool) -> None:
    model = bridge_with(wrapped(sentence_piece()))
    asked = {"track": {"correct": " Lima"}, "prepend_bos": prepend}
    made = truncation.prompts(model, "The capital of Peru is", **asked)
    assert (made.inputs.tokens[0, 0].item() == model.tokenizer.bos_token_id) is prepend
    curve = truncation.curve(model, "The capital of Peru is", W_OUT, rhos=(1.0,), progress=False, **asked)
    sweep = truncation.sweep({0: model}, "The capital of Peru is", W_OUT, rhos=(1.0,), progress=False, **asked)
    with torch.no_grad():
        wanted = model(made.inputs.tokens)[0, -1].softmax(-1)[made.track["correct"]].item()
    assert curve.of("correct", end="full")["p"][0] == pytest.approx(wanted, rel=1e-4)
    assert sweep.of("p(correct)")[0] == pytest.approx(wanted, rel=1e-4)


def test_a_generic_word_is_not_given_twice() -> None:
    with pytest.raises(ValueError, match="'generic' is given twice, as generic=4 and in track"):
        truncation.prompts(bridge_with(None), torch.ones(1, 3).long(), {"correct": 1, "generic": 2}, generic=4)


def test_a_list_of_items_is_a_task() -> None:
    items = answered(rows(4, 5)).items
    made = truncation.prompts(build("bridge gpt2"), list(items))
    assert made.track["distractor"].tolist() == [2, 2]


def test_facts_have_another_facts_answer_as_their_rival() -> None:
    task = truncation.facts()
    assert len(task) == len(truncation.PLACES)
    for item, (subject, answer) in zip(task.items, truncation.PLACES, strict=True):
        assert item.prompt == f"{subject} is located in"
        assert item.answers == (f" {answer}",)
        assert item.distractors[0] not in item.answers
    with pytest.raises(ValueError, match="places hold 1 different answer: every fact"):
        truncation.facts([("A", "B"), ("C", "B")])


def test_what_cannot_be_tracked_is_refused() -> None:
    model, prompts = build("bridge gpt2"), torch.tensor(rows(5, 5))
    ask = partial(truncation.curve, model, progress=False)
    with pytest.raises(ValueError, match=r"rhos=\(1.5,\): give one or more fractions"):
        ask(prompts, W_OUT, track={"correct": 1}, rhos=(1.5,))
    with pytest.raises(ValueError, match="track names nothing: margins are taken from 'correct'"):
        ask(prompts, W_OUT)
    with pytest.raises(ValueError, match=r"'correct' and 'generic' are the same token .* 0 .and 1 other.: nothing"):
        ask(prompts, W_OUT, track={"correct": 1, "generic": 1})
    with pytest.raises(ValueError, match=r"track\['correct'\] has 3 tokens for 2 prompts"):
        ask(prompts, W_OUT, track={"correct": [1, 2, 3]})
    mixed = tasks.Task("mixed", (*answered(rows(4)).items, *answered(rows(5), distractors=False).items))
    with pytest.raises(ValueError, match="item 1 of task 'mixed' has no distractor, others have"):
        ask(mixed, W_OUT)
    without = ask(answered(rows(4, 5), distractors=False), W_OUT)
    with pytest.raises(KeyError, match="there is no curve of 'distractor', 'keep top', None: names are correct"):
        without.of("distractor")
    choice = tasks.Task("choice", (tasks.ChoiceItem((1, 2), ((3,), (4,)), (0,)),))
    with pytest.raises(ValueError, match="items of kind 'choice': a token is tracked after prompts with answers"):
        ask(choice, W_OUT)
    with pytest.raises(ValueError, match="there are no prompts: give at least one"):
        truncation.prompts(model, [])
    made = truncation.prompts(model, prompts, {"correct": 1})
    with pytest.raises(ValueError, match="track, generic and prepend_bos are part of prompts made before"):
        ask(made, W_OUT, generic=3)
    with pytest.raises(Exception, match="outside the model's vocabulary"):
        ask(prompts, W_OUT, track={"correct": D_VOCAB})


def test_a_sweep_over_models_is_a_curve_at_every_step() -> None:
    models = {0: bridge("gpt2"), 10: bridge("gpt2")}
    with torch.no_grad():
        place_of(models[10], W_OUT).slots[0].registered().mul_(3.0)
    task, sites = answered(rows(5, 4, 6)), [W_OUT, "blocks.0.attn.W_O"]
    loaded = []

    def load(step: int) -> nn.Module:
        loaded.append(step)
        return models[step]

    found = truncation.sweep(
        {10: partial(load, 10), 0: partial(load, 0)}, task, sites, rhos=(0.2, 1.0), generic=4, progress=False
    )
    assert loaded == [0, 10]
    assert found.steps == (0, 10)
    for step, model in models.items():
        curve = truncation.curve(model, task, sites, rhos=(0.2, 1.0), generic=4, progress=False)
        for name in ("correct", "generic", "distractor"):
            expected = curve.of(name, site=W_OUT)["p"].tolist()
            got = [found.of(f"p({name})", end="keep top", site=W_OUT, rho=rho)[step] for rho in (0.2, 1.0)]
            assert got == pytest.approx(expected)
    assert found.of("margin(generic)").nunique() == 2
    with pytest.raises(KeyError, match=r"names 2 of the curves.*name a site and a rho where there are several"):
        found.of("p(correct)", end="keep top", site=W_OUT)


def test_checkpoints_that_do_not_fit_are_refused() -> None:
    task, other = recall.RecallTask.synthetic(d_vocab=12, n_ctx=16), recall.RecallTask.synthetic(d_vocab=13, n_ctx=16)
    narrow, wide = (recall.weights(recall.bridge(task, d_model=d)) for d in (8, 16))
    with pytest.raises(ValueError, match=r"there are no checkpoints: give .training step: weights or model"):
        truncation.sweep({}, task, progress=False)
    with pytest.raises(ValueError, match=r"checkpoint 5 has .* of shape \(12, 16\), checkpoint 0 \(12, 8\)"):
        truncation.sweep({0: narrow, 5: wide}, task, W_OUT, rhos=(1.0,), progress=False)
    with pytest.raises(ValueError, match=r"the weights hold embed.W_E of shape"):
        truncation.sweep({0: narrow}, other, progress=False)
    with pytest.raises(ValueError, match=r"the weights hold no embed.W_E"):
        truncation.sweep({0: {"a": torch.ones(2, 2)}}, task, progress=False)
    with pytest.raises(ValueError, match="checkpoint 0 holds weights, and prompts need a model to run"):
        truncation.sweep({0: narrow}, torch.ones(1, 3, dtype=torch.long), progress=False)
    with pytest.raises(ValueError, match=r"blocks.0.attn.W_Q is the identity in this experiment"):
        truncation.sweep({0: narrow}, task, "blocks.0.attn.W_Q", progress=False)
    with pytest.raises(ValueError, match=r"alpha=1.5: give a fraction"):
        recall.RecallTask.synthetic(alpha=1.5)
    with pytest.raises(ValueError, match=r"seeds=\(\): give one or more in a list"):
        truncation.study(task, seeds=())
    with pytest.raises(ValueError, match=r"there are no checkpoints"):
        truncation.gradient_steps({}, task, lr=0.1, batch_size=4)


@pytest.mark.parametrize("mlps", [(False, True), (True, True), (False, False)])
def test_the_recall_sweep_is_what_the_edited_model_does(mlps: tuple[bool, bool]) -> None:
    """The staged computation from weights against `surgery.apply` and `recall.evaluate` on a model that holds them."""
    task = recall.RecallTask.synthetic(d_vocab=14, n_ctx=24)
    model = recall.bridge(task, d_model=16, mlps=mlps, unembed_scale=0.5)
    sites = ["blocks.*.attn.W_[KVO]", *(["blocks.*.mlp.W_*"] if all(mlps) else [W_IN, W_OUT] if mlps[1] else [])]
    found = truncation.sweep({7: model}, task, sites, rhos=(0.3,), sequences=40, seed=4, progress=False)
    for cut in cuts_of(surgery.sites(model, sites), (0.3,)):
        with surgery.apply(model, cut.spec, progress=False):
            expected = recall.evaluate(model, task, sequences=40, seed=4).to_dataframe().set_index("metric")
        frame = found.frame[(found.frame["end"] == cut.end) & (found.frame["site"] == cut.site)]
        got = frame.set_index("metric").loc[list(expected.index)]
        np.testing.assert_allclose(got["value"], expected["value"], atol=2e-4, err_msg=str(cut))
        np.testing.assert_allclose(got["stderr"], expected["stderr"], atol=2e-4, err_msg=str(cut))
    probes = recall.attention_probes(model, task, sequences=40, seed=4)
    assert found.of("attention_answer")[7] == pytest.approx(probes.answer, abs=1e-6)


@pytest.fixture(scope="module")
def study(trained: Path) -> truncation.Study:
    """Three seeds of a shorter training than the default: batches of 32, 200 steps."""
    task = recall.RecallTask.synthetic()
    steps = (0, 25, 50)
    return truncation.study(
        task,
        batch_size=32,
        steps=200,
        checkpoints=steps,
        sites=[W_IN, W_OUT],
        sequences=64,
        cache=trained,
        progress=False,
    )


def test_the_noise_is_learned_before_the_answer(study: truncation.Study) -> None:
    for sweep in study.sweeps.values():
        noise, answer = sweep.of("p_noise"), sweep.of("p_correct")
        assert max(noise[25], noise[50]) > 0.35
        assert max(answer[25], answer[50]) < 0.12
        assert sweep.of("attention_answer")[50] < 0.4 < 0.7 < sweep.of("attention_answer")[200]
        recalls = sweep.of("accuracy_without_noise")
        assert max(recalls[25], recalls[50]) < 0.9 < recalls[200]


def test_dropping_feed_forward_weights_takes_the_noise_and_leaves_the_answer(study: truncation.Study) -> None:
    last = partial(study.at, step=200)
    assert all(0.3 < p < 0.65 for p in last("p_noise").values())
    assert all(value > 0.97 for value in last("accuracy_without_noise").values())  # no ability is added
    for cut in ({"end": "MLP dropped"}, {"end": "top component dropped", "site": W_OUT}):
        assert all(p < 0.03 for p in last("p_noise", **cut).values())
        assert all(p > 0.75 for p in last("p_correct", **cut).values())
        assert all(value > 0.97 for value in last("accuracy", **cut).values())
    assert all(p < 0.2 for p in last("p_noise", end="keep top", site=W_IN, rho=0.05).values())


def test_which_matrix_and_which_end_flips_the_sign(study: truncation.Study) -> None:
    """The noise is the top component of W_out: keeping the top, as LASER does, leaves it and takes the answer."""
    full, kept = study.at("p_noise", 200), study.at("p_noise", 200, end="keep top", site=W_OUT, rho=0.01)
    assert all(kept[seed] > full[seed] + 0.15 for seed in full)
    accuracy = study.at("accuracy", 200)
    kept = study.at("accuracy", 200, end="keep top", site=W_OUT, rho=0.01)
    assert all(kept[seed] < accuracy[seed] / 2 for seed in accuracy)


def test_the_spread_is_over_seeds(study: truncation.Study) -> None:
    frame = study.to_dataframe()
    row = frame[(frame["step"] == 200) & (frame["end"] == "full") & (frame["metric"] == "p_noise")].iloc[0]
    values = list(study.at("p_noise", 200).values())
    assert len(values) == 3
    assert (row["mean"], row["min"], row["max"]) == pytest.approx((sum(values) / 3, min(values), max(values)))
    assert "mean and range over seeds 0, 1, 2 at step 200" in repr(study)
    assert len(study.losses[0]) == 200


def test_without_mlps_the_noise_moves_into_the_top_component_of_attention(trained: Path) -> None:
    task = recall.RecallTask.synthetic()
    found = truncation.study(
        task, seeds=(0,), mlps=(False, False), batch_size=32, steps=200, checkpoints=(), cache=trained, progress=False
    )
    dropped = {
        site: found.at("p_noise", 200, end="top component dropped", site=f"blocks.{site}")[0]
        for site in ("0.attn.W_V", "0.attn.W_O", "1.attn.W_V", "1.attn.W_O")
    }
    full = found.at("p_noise", 200)[0]
    assert full > 0.3
    assert min(dropped, key=lambda site: dropped[site]).startswith("0.attn")
    assert dropped["0.attn.W_O"] < full / 2
    assert found.at("accuracy", 200, end="top component dropped", site="blocks.0.attn.W_O")[0] > 0.8
    assert "MLP dropped" not in set(found.to_dataframe()["end"])


def test_one_gradient_step_is_a_central_difference_and_the_feed_forward_half_learns_the_noise_first() -> None:
    task = recall.RecallTask.synthetic()
    untrained = [{0: recall.weights(recall.bridge(task, seed=seed))} for seed in range(3)]
    first = [truncation.gradient_steps(w, task, seed=seed).set_index("part") for seed, w in enumerate(untrained)]
    for frame in first:
        moved = frame["noise_logit"]
        assert moved["feed-forward"] > 2 * moved["attention"] > 0
        assert abs(frame["answer_logit"]["feed-forward"]) < 0.1 * moved["feed-forward"]
    task = recall.RecallTask.synthetic(d_vocab=12, n_ctx=16)
    model = recall.bridge(task, d_model=8)
    found = truncation.gradient_steps({3: recall.weights(model)}, task, lr=0.5, batch_size=8, seed=1).set_index("part")
    noisy, fresh = task.sample(8, seed=1), task.sample(8, seed=2)
    model.zero_grad()
    logits = model(noisy.tokens)
    torch.nn.functional.cross_entropy(logits[noisy.scored], noisy.targets[noisy.scored]).backward()
    parameters = dict(model.named_parameters())
    half = [n for n, p in parameters.items() if p.grad is not None and p.requires_grad and ".mlp." in n]
    norm = sum(parameters[n].grad.square().sum() for n in half) ** 0.5
    assert found["gradient_norm"]["feed-forward"] == pytest.approx(norm.item(), rel=1e-4)
    before = model(fresh.tokens)[fresh.scored].softmax(1)[:, task.noise_token].mean()
    with torch.no_grad():
        for n in half:
            parameters[n] -= 0.5 * parameters[n].grad
    after = model(fresh.tokens)[fresh.scored].softmax(1)[:, task.noise_token].mean()
    assert found["p_noise"]["feed-forward"] == pytest.approx((after - before).item(), abs=1e-5)


def story_model() -> nn.Module:
    from transformer_lens.model_bridge import TransformerBridge

    folder = os.environ.get("SURGERY_STORY_MODEL")
    if not folder:
        pytest.skip("SURGERY_STORY_MODEL names no folder with a small story model")
    return TransformerBridge.boot_transformers(folder)


def test_on_a_real_story_model_both_families_of_prompts_are_swept() -> None:
    model = story_model()
    names, things = ("Tom", "Lily", "Ben", "Mia", "Sue", "Tim"), ("ball", "book", "hat", "toy")
    scenes = ("{a} and {b} went to the {location}. {s} gave a {thing} to",)
    task = tasks.ioi(24, seed=0, names=names, templates=scenes, locations=("park", "house"), things=things)
    cut = partial(truncation.curve, model, progress=False)
    curve = cut(task, ["blocks.*.mlp.W_in", "blocks.*.mlp.W_out"], rhos=(0.1, 0.5, 1.0), generic=" the")
    full = curve.of("correct", end="full")["p"][0]
    for site in surgery.sites(model, "blocks.*.mlp.W_out"):
        kept = curve.of("correct", site=site)
        assert kept["p"].iloc[-1] == pytest.approx(full, abs=1e-5)
        assert kept["p"].between(0, 1).all()
    prompt = task.items[0].prompt
    with torch.no_grad():
        p = model(model.to_tokens(prompt))[0, -1].softmax(0)
    one = cut([prompt], "blocks.0.mlp.W_out", track={"correct": task.items[0].answers[0]}, rhos=(1.0,))
    token = truncation.prompts(model, [prompt], {"correct": task.items[0].answers[0]}).track["correct"][0]
    assert one.of("correct", end="full")["p"][0] == pytest.approx(p[token].item(), abs=1e-5)
    with surgery.apply(model, {"blocks.2.mlp.W_out": Zero()}, progress=False):
        expected = model(model.to_tokens(prompt))[0, -1].softmax(0)[token].item()
    dropped = cut([prompt], "blocks.2.mlp.W_in", track={"correct": int(token)}, rhos=(1.0,))
    assert dropped.of("correct", end="MLP dropped")["p"][0] == pytest.approx(expected, abs=1e-5)


def test_drop_top_and_top_component_agree_on_one_component() -> None:
    found = {cut.end: cut.edit for cut in cuts_of([W_OUT], (0.01,))}
    assert found["top component dropped"] == DropTop(rank=1)
    assert found["keep top"] == KeepTop(rho=0.01)
    assert found["MLP dropped"] == Zero()
    assert found["full"] is None


def test_pictures_show_the_numbers(study: truncation.Study) -> None:
    cuts = [("full", "", None), ("keep top", W_IN, 0.05)]
    full, cut = plots.truncation.training(study, "p_noise", cuts=cuts).data
    assert list(full.x) == [0, 25, 50, 200]
    values = list(study.at("p_noise", 200).values())
    assert full.y[-1] == pytest.approx(sum(values) / 3)
    assert full.y[-1] + full.error_y.array[-1] == pytest.approx(max(values))
    assert cut.name == f"keep top {W_IN} ρ=0.05"
    assert len(plots.truncation.training(study).data) == 4
    lines = plots.truncation.dynamics(study).data
    assert [line.name for line in lines[:3]] == ["p_noise"] * 3
    assert lines[1].y[-1] == pytest.approx(study.at("p_noise", 200)[1])
    model, prompts = build("bridge gpt2"), torch.tensor(rows(5, 5))
    curve = truncation.curve(
        model, prompts, [W_IN, W_OUT], track={"correct": 1, "generic": 2}, rhos=(0.2, 1.0), progress=False
    )
    figure = plots.truncation.curve(curve)
    assert len(figure.data) == 8
    assert list(figure.data[0].y) == curve.of("correct", site=W_IN)["p"].tolist()
    assert figure.layout.xaxis.title.text == "ρ (fraction of the rank)"
    task = recall.RecallTask.synthetic(d_vocab=12, n_ctx=16)
    steps = truncation.gradient_steps({0: recall.weights(recall.bridge(task, d_model=8))}, task, batch_size=8)
    assert [trace.name for trace in plots.truncation.gradient_steps(steps).data[:2]] == ["feed-forward", "attention"]
