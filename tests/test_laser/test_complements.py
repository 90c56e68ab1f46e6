"""What the removed components say, against a matrix written by hand, and its likeness against cosines by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import ONE_OF_EACH, build
from tiny_tokenizers import bridge_with, byte_level, wrapped

import surgery
from analyses import laser, plots, scoring, tasks
from hooks import place_of
from surgery import KeepTop

SITE = "blocks.1.mlp.W_out"


def items(n: int = 12) -> list[tasks.AnswerItem]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 50, (n, 5), generator=generator).tolist()
    return [tasks.AnswerItem(tuple(row[:4]), ((row[4],),), groups=(f"{at // 2}",)) for at, row in enumerate(rows)]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_minor_answers_are_those_of_the_rest_of_the_matrix(kind: str) -> None:
    model, asked = build(kind), items()
    held = place_of(model, SITE)
    W = held.matrix().clone()
    said = laser.minor_answers(model, asked, {SITE: KeepTop(rank=3)})
    U, S, Vh = np.linalg.svd(W.double().numpy(), full_matrices=False)
    top = torch.tensor((U[:, :3] * S[:3]) @ Vh[:3], dtype=torch.float32)
    parameter = held.slots[0].registered()
    for scores, weight in ((said.unedited, W), (said.edited, top), (said.minor, W - top)):
        with torch.no_grad():
            parameter.copy_(held.stored(weight))
            logits = torch.stack([model(torch.tensor([item.prompt]))[0, -1] for item in asked])
            parameter.copy_(held.stored(W))
        assert [ids[0] for ids in scores.prediction_ids] == logits.argmax(1).tolist()
        answers = torch.tensor([item.answers[0][0] for item in asked])
        torch.testing.assert_close(
            scores.log_loss, -logits.double().log_softmax(1)[range(12), answers], atol=1e-4, rtol=1e-4
        )
    frame = said.to_dataframe()
    assert list(frame.columns[2:]) == [f"{n}{x}" for n in ("unedited", "edited", "minor") for x in ("", "_correct")]
    assert said.wrong == tuple(n for n in range(12) if not frame["minor_correct"][n])
    fixed = ~frame["unedited_correct"] & frame["edited_correct"]
    assert said.corrected == tuple(np.flatnonzero(fixed))
    assert "12 items, accuracy: unedited" in repr(said)


def test_the_complement_takes_every_gain_from_one() -> None:
    model = build("bridge gpt2")
    edit = {SITE: laser.Complement(surgery.Scale({0: 0.25, 1: 0.0}))}
    with surgery.apply(model, edit, progress=False) as operation:
        assert operation.changes[0].gains.values[:3].tolist() == [0.75, 1.0, 0.0]
    with pytest.raises(ValueError, match="the spec is empty: an edit removes something"):
        laser.minor_answers(model, items(), {})


def test_likeness_by_input_embeddings_is_the_mean_cosine() -> None:
    model, asked = build("bridge gpt2"), items()
    said = laser.minor_answers(model, asked, {SITE: KeepTop(rank=3)})
    W_E = model.embed.W_E.detach().double().numpy()
    pairs = [(ids[0], item.answers[0][0]) for ids, item in zip(said.minor.prediction_ids, asked, strict=True)]

    def cosine(a: int, b: int) -> float:
        return float(W_E[a] @ W_E[b] / np.linalg.norm(W_E[a]) / np.linalg.norm(W_E[b]))

    found = laser.similarity_of_embeddings(said, model, draws=4000)
    assert found.cosine == pytest.approx(np.mean([cosine(a, b) for a, b in pairs]), abs=1e-6)
    # The mean over all deals is the mean over all pairs of a said and a right answer.
    everyone = np.mean([cosine(a, b) for a, _ in pairs for _, b in pairs])
    spread = found.chance[2] - found.chance[1]
    assert found.chance[0] == pytest.approx(everyone, abs=spread / 20)
    assert found.low < found.cosine < found.high and found.items == 12
    part = laser.similarity_of_embeddings(said, model, items=[0, 3, 4], draws=50)
    assert part.cosine == pytest.approx(np.mean([cosine(*pairs[at]) for at in (0, 3, 4)]), abs=1e-6)
    with pytest.raises(ValueError, match="1 item on which something was said: to deal right answers out anew takes 2"):
        laser.similarity_of_embeddings(said, model, items=[0])
    with pytest.raises(ValueError, match="a position of items=12: give a whole number, from 0 to 11"):
        laser.similarity_of_embeddings(said, model, items=[12])


def test_what_is_said_rightly_is_more_alike_than_chance_and_noise_is_not() -> None:
    model, asked = build("bridge gpt2"), items()
    said = laser.minor_answers(model, asked, {SITE: KeepTop(rank=3)})
    right = replace(said, minor=replace(said.minor, prediction_ids=tuple(item.answers[0] for item in asked)))
    found = laser.similarity_of_embeddings(right, model, draws=500)
    assert found.cosine == pytest.approx(1) and found.chance[2] < 0.9 and found.p_value < 0.01
    same = replace(said, minor=replace(said.minor, prediction_ids=tuple((7,) for _ in asked)))
    constant = laser.similarity_of_embeddings(same, model, draws=500)
    assert constant.p_value == 1 and constant.chance[0] == pytest.approx(constant.cosine)  # every deal is the same


def test_likeness_by_an_encoder_of_texts_is_the_mean_cosine() -> None:
    model = bridge_with(wrapped(byte_level()))
    facts = [("France", " Paris"), ("Italy", " Rome"), ("Peru", " Lima"), ("Japan", " Tokyo")]
    asked = [tasks.AnswerItem(f"The capital of {place} is", (city,)) for place, city in facts]
    said = laser.minor_answers(model, asked, {SITE: KeepTop(rank=3)}, rule=scoring.Contains(4))
    seen: list[list[str]] = []

    def encode(texts: list[str]) -> np.ndarray:
        seen.append(texts)
        return np.array([[1.0, len(text), text.count("a")] for text in texts], dtype=np.float32)

    found = laser.similarity_of_texts(said, encode, draws=50)
    texts = [(text, city) for text, (_, city) in zip(said.minor.predictions, facts, strict=True) if text.strip()]
    assert found.items == len(texts) >= 2
    rows = [encode([a.strip(), b.strip()]) for a, b in texts]
    assert found.cosine == pytest.approx(
        np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows]), abs=1e-5
    )
    assert len(seen[0]) == len(set(seen[0])) and "Paris" in seen[0]
    tensors = laser.similarity_of_texts(said, lambda texts: torch.tensor(encode(texts)), draws=50)
    assert tensors.cosine == found.cosine
    for wrong, shape in ((np.ones(3), r"\(3,\)"), (np.ones((1, 3)), r"\(1, 3\)")):
        with pytest.raises(ValueError, match=rf"the encoder gave {shape} for \d texts: it gives a row"):
            laser.similarity_of_texts(said, lambda _texts, wrong=wrong: wrong)


def test_accuracy_by_frequency_has_intervals_and_a_figure() -> None:
    model, asked = build("bridge gpt2"), items(24)
    said = laser.minor_answers(model, asked, {SITE: KeepTop(rank=3)})
    before, after = (
        replace(said.unedited, correct=torch.tensor(values, dtype=torch.bool))
        for values in ([1, 1, 0, 0] * 6, [1, 0, 1, 1] * 6)
    )
    change = scoring.compare(before, after)
    table = laser.by_frequency(change, [float(n) for n in range(24)], bins=2)
    for n, rows in enumerate((slice(0, 12), slice(12, 24))):
        row = table.iloc[n]
        for side, scores in (("before", before), ("after", after)):
            # A percentile interval of six pairs, drawn by numpy.
            pairs = scores.correct[rows].double().view(-1, 2).mean(1).numpy()
            draws = np.random.default_rng(0).choice(pairs, (20_000, len(pairs))).mean(1)
            low, high = np.quantile(draws, [0.025, 0.975])
            assert row[f"accuracy_{side}_low"] == pytest.approx(low, abs=0.05)
            assert row[f"accuracy_{side}_high"] == pytest.approx(high, abs=0.05)
        assert row["change"] == pytest.approx(row["accuracy_after"] - row["accuracy_before"])
        assert row["change_low"] <= row["change"] <= row["change_high"]
    narrow = laser.by_frequency(change, [float(n) for n in range(24)], bins=2, level=0.5)
    assert (narrow["accuracy_before_low"] > table["accuracy_before_low"]).all()
    figure = plots.laser.frequency(table)
    assert [trace.name for trace in figure.data] == ["before", "after"]
    assert list(figure.data[0].x) == ["0 to 11<br>12 items", "12 to 23<br>12 items"]
    for trace, side in zip(figure.data, ("before", "after"), strict=True):
        assert list(trace.y) == table[f"accuracy_{side}"].tolist()
        ends = [y + up for y, up in zip(trace.y, trace.error_y.array, strict=True)]
        assert ends == pytest.approx(table[f"accuracy_{side}_high"].tolist())
    alone = laser.by_frequency(change, [float(n == 0) for n in range(24)], bins=24)
    assert plots.laser.frequency(alone).data[0].error_y.array.max() <= 1  # one item: an interval without ends
