import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import surgery
from analyses import recall
from analyses.recall import RecallTask
from analyses.toys import training
from analyses.toys.recall_model import NAMES
from analyses.toys.recall_training import scored_logits

HOSTS = [pytest.param(recall.model, marks=pytest.mark.hooked, id="hooked"), pytest.param(recall.bridge, id="bridge")]
TASK = RecallTask.synthetic(d_vocab=9, triggers=2, noise_token=5, n_ctx=16)
MATRICES = [
    f"blocks.{layer}.{m}" for layer in (0, 1) for m in ("attn.W_K", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.W_out")
]


def small(seed: int = 0, **settings) -> nn.Module:
    return recall.bridge(TASK, d_model=12, seed=seed, **settings)


def train(model: nn.Module, **settings) -> recall.TrainingRun:
    return recall.train(model, TASK, **{"steps": 6, "batch_size": 8, "progress": False, **settings})


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(W, two[name]) for name, W in one.items())


def files(folder: Path) -> list[int]:
    """The steps that a folder holds snapshots of."""
    return sorted(int(path.name[-len("000000.safetensors") :][:6]) for path in folder.iterdir())


def forward(W: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The whole model in the plain way, for gradients."""
    pos = tokens.shape[1]
    visible = torch.ones(pos, pos, dtype=torch.bool).tril()
    resid = W["embed.W_E"][tokens] + W["pos_embed.W_pos"][:pos]
    for layer in range(2):
        K, V, O = (W[f"blocks.{layer}.attn.W_{m}"] for m in "KVO")  # noqa: E741
        scores = torch.einsum("btd,bsd->bts", resid, resid @ K) / resid.shape[-1] ** 0.5
        pattern = scores.masked_fill(~visible, -1e9).softmax(-1)
        resid = resid + pattern @ (resid @ V) @ O
        resid = resid + torch.relu(resid @ W[f"blocks.{layer}.mlp.W_in"]) @ W[f"blocks.{layer}.mlp.W_out"]
    return resid @ W["unembed.W_U"]


def sgd_by_hand(
    W: dict[str, Tensor], batches: list[recall.RecallBatch], trained: list[str]
) -> tuple[dict, list[float]]:
    """v ← 0.9 v + g + λ w, w ← w − η v, on the mean of −log p(next token) over the scored positions, in float64."""
    W, velocity, losses = {name: matrix.double() for name, matrix in W.items()}, {}, []
    for batch in batches:
        leaves = {name: W[name].clone().requires_grad_() for name in trained}
        log_p = forward({**W, **leaves}, batch.tokens).log_softmax(-1)
        where = batch.scored.nonzero().tolist()
        loss = -sum(log_p[b, t, batch.targets[b, t]] for b, t in where) / len(where)
        losses.append(loss.item())
        for name, g in zip(trained, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            velocity[name] = 0.9 * velocity.get(name, 0) + g + 1e-2 * W[name]
            W[name] = W[name] - 0.1 * velocity[name]
    return W, losses


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[recall.RecallBatch]:
    """The sequences that are drawn while the test runs."""
    batches, original = [], RecallTask.sample

    def sample(self: RecallTask, *args, **settings) -> recall.RecallBatch:
        batches.append(original(self, *args, **settings))
        return batches[-1]

    monkeypatch.setattr(RecallTask, "sample", sample)
    return batches


@pytest.mark.parametrize("make", HOSTS)
@pytest.mark.parametrize("mlps", [(False, True), (True, True), (False, False), (True, False)])
def test_the_short_cut_gives_the_models_logits(make, mlps: tuple[bool, bool]) -> None:
    model = make(TASK, d_model=12, mlps=mlps, unembed_scale=1.0)
    batch = TASK.sample(6, seed=0)
    expected = model(batch.tokens)[batch.scored]
    found = scored_logits(recall.weights(model), batch)
    assert torch.allclose(found, expected, atol=1e-5)
    assert expected.std() > 1


@pytest.mark.parametrize("make", HOSTS)
@pytest.mark.parametrize("mlps", [(False, True), (True, True)])
def test_training_is_sgd_with_momentum_on_the_scored_positions(make, mlps: tuple[bool, bool], recorded) -> None:
    model = make(TASK, d_model=12, mlps=mlps)
    before = recall.weights(model)
    run = train(model, steps=5, lr=0.1, weight_decay=1e-2)
    trained = [name for name in MATRICES if mlps[0] or not name.startswith("blocks.0.mlp")]
    expected, losses = sgd_by_hand(before, recorded, trained)
    assert len(recorded) == 5
    assert torch.allclose(run.losses.double(), torch.tensor(losses).double(), atol=1e-5)
    after = recall.weights(model)
    for name in trained:
        assert torch.allclose(after[name].double(), expected[name], atol=1e-6)
        assert not torch.allclose(after[name], before[name], atol=1e-3)
    assert all(torch.equal(after[name], before[name]) for name in set(NAMES) - set(trained))


@pytest.mark.hooked
def test_both_hosts_train_to_the_same_bits() -> None:
    hooked, bridged = recall.model(TASK, d_model=12), recall.bridge(TASK, d_model=12)
    train(hooked)
    train(bridged)
    assert same(recall.weights(hooked), recall.weights(bridged))


def test_the_user_may_freeze_more() -> None:
    model = small()
    model.blocks[0].attn.v.original_component.weight.requires_grad_(False)
    before = recall.weights(model)
    train(model)
    moved = {name for name, W in recall.weights(model).items() if not torch.equal(W, before[name])}
    assert moved == set(MATRICES) - {"blocks.0.attn.W_V", "blocks.0.mlp.W_in", "blocks.0.mlp.W_out"}


def test_a_seed_gives_the_same_bits_and_another_seed_shares_no_sequence(recorded) -> None:
    before = torch.get_rng_state()
    models = [small(), small(), small()]
    runs = [train(model, seed=seed) for model, seed in zip(models, (0, 0, 1), strict=True)]
    assert torch.equal(torch.get_rng_state(), before)
    assert same(recall.weights(models[0]), recall.weights(models[1]))
    assert torch.equal(runs[0].losses, runs[1].losses)
    assert not torch.equal(runs[0].losses, runs[2].losses)
    sequences = [
        {tuple(row) for batch in recorded[6 * i : 6 * i + 6] for row in batch.tokens.tolist()} for i in range(3)
    ]
    assert sequences[0] == sequences[1]
    assert len(sequences[0]) > 40
    assert not sequences[0] & sequences[2]


def test_checkpoints_are_the_weights_on_the_way(recorded) -> None:
    model, initial = small(), recall.weights(small())
    run = train(model, checkpoints=(0, 2, 4))
    assert list(run.checkpoints) == [0, 2, 4, 6]
    assert same(run.checkpoints[0], initial)
    assert same(run.checkpoints[6], recall.weights(model))
    shorter = small()
    train(shorter, steps=2)
    assert same(run.checkpoints[2], recall.weights(shorter))
    recall.load(model, run.checkpoints[2])
    assert same(recall.weights(model), recall.weights(shorter))
    frame = run.to_dataframe()
    assert frame["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert frame["loss"].tolist() == run.losses.tolist()


def test_a_cached_run_is_read_and_not_trained_again(tmp_path: Path, recorded) -> None:
    first, second = small(), small()
    run = train(first, cache=tmp_path / "cache", checkpoints=(2,))
    assert len(recorded) == 6
    again = train(second, cache=tmp_path / "cache", checkpoints=(2,))
    assert len(recorded) == 6
    assert same(recall.weights(first), recall.weights(second))
    assert torch.equal(run.losses, again.losses)
    assert same(run.checkpoints[2], again.checkpoints[2])


def test_a_longer_run_goes_on_to_the_same_bits(tmp_path: Path, recorded) -> None:
    whole, resumed = small(), small()
    run = train(whole, steps=7, checkpoints=(3, 5))
    del recorded[:]
    train(small(), steps=4, checkpoints=(3,), cache=tmp_path)
    assert len(recorded) == 4
    # 5 is not there, 3 is: 4 steps are known, so the run goes on after the fourth.
    again = train(resumed, steps=7, checkpoints=(3, 5), cache=tmp_path)
    assert len(recorded) == 7
    assert same(recall.weights(whole), recall.weights(resumed))
    assert torch.equal(run.losses, again.losses)
    assert all(same(run.checkpoints[step], again.checkpoints[step]) for step in (3, 5, 7))
    assert files(tmp_path) == [3, 4, 5, 7]


def test_a_checkpoint_that_was_not_kept_is_trained_again(tmp_path: Path, recorded) -> None:
    train(small(), steps=4, checkpoints=(1,), cache=tmp_path)
    del recorded[:]
    fresh = train(small(), steps=4, checkpoints=(1, 2))
    del recorded[:]
    run = train(small(), steps=4, checkpoints=(1, 2), cache=tmp_path)
    assert len(recorded) == 3  # from 1 on
    assert all(same(run.checkpoints[step], fresh.checkpoints[step]) for step in (1, 2, 4))


def test_an_interrupted_run_loses_no_finished_part(tmp_path: Path, recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EVERY", 2)
    whole, model = small(), small()
    run = train(whole, steps=9)
    del recorded[:]
    before, original = recall.weights(model), RecallTask.sample

    def impatient(self: RecallTask, *args, **settings) -> recall.RecallBatch:
        if len(recorded) == 7:
            raise KeyboardInterrupt
        return original(self, *args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(RecallTask, "sample", impatient)
        with pytest.raises(KeyboardInterrupt):
            train(model, steps=9, checkpoints=(3,), cache=tmp_path)
    assert files(tmp_path) == [3, 6]  # the last of the regular ones, and what was asked for
    assert same(recall.weights(model), before)
    again = train(model, steps=9, checkpoints=(3,), cache=tmp_path)
    assert len(recorded) == 7 + 3
    assert same(recall.weights(model), recall.weights(whole))
    assert torch.equal(again.losses, run.losses)
    assert files(tmp_path) == [3, 6, 9]  # where the interrupted run ended is kept


def test_another_setting_is_another_run(tmp_path: Path) -> None:
    other_task = RecallTask.synthetic(d_vocab=9, triggers=2, noise_token=5, n_ctx=16, alpha=0.4)
    runs = [
        lambda: train(small(), steps=2, cache=tmp_path),
        lambda: train(small(seed=1), steps=2, cache=tmp_path),
        lambda: train(small(mlps=(True, True)), steps=2, cache=tmp_path),
        lambda: train(small(), steps=2, cache=tmp_path, seed=1),
        lambda: train(small(), steps=2, cache=tmp_path, lr=0.02),
        lambda: train(small(), steps=2, cache=tmp_path, momentum=0.8),
        lambda: train(small(), steps=2, cache=tmp_path, weight_decay=0.0),
        lambda: train(small(), steps=2, cache=tmp_path, batch_size=9),
        lambda: recall.train(small(), other_task, steps=2, batch_size=8, cache=tmp_path, progress=False),
    ]
    results = [run().losses for run in runs]
    assert len(list(tmp_path.iterdir())) == len(runs)
    assert all(torch.equal(run().losses, losses) for run, losses in zip(runs, results, strict=True))
    assert len(list(tmp_path.iterdir())) == len(runs)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty])
def test_a_damaged_cache_is_named_and_never_used(damage, tmp_path: Path) -> None:
    train(small(), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    model = small()
    before = recall.weights(model)
    with pytest.raises(ValueError) as error:
        train(model, cache=tmp_path)
    assert str(error.value).startswith(f"the stored work {path} is damaged (")
    assert str(error.value).endswith("): delete it, and it is done again.")
    assert same(recall.weights(model), before)
    path.unlink()
    train(model, cache=tmp_path)


def test_a_renamed_snapshot_is_not_taken_for_another(tmp_path: Path) -> None:
    train(small(), steps=4, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    os.rename(path, path.with_name(path.name.replace("000004", "000006")))
    with pytest.raises(
        ValueError, match=r"is damaged \(its piece differ from what was written\): delete it, and it is"
    ):
        train(small(), cache=tmp_path)


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    train(small(), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.with_name(f"{path.name}.123.part").write_bytes(b"half a file")
    (tmp_path / "notes.txt").write_text("mine")
    assert len(train(small(), cache=tmp_path).losses) == 6


def test_training_works_whatever_the_grad_mode() -> None:
    plain = small()
    train(plain)
    for mode in (torch.no_grad, torch.inference_mode):
        model = small()
        with mode():
            train(model)
        assert same(recall.weights(model), recall.weights(plain))


def test_a_diverging_run_says_so_and_leaves_the_model_alone() -> None:
    model = small()
    before = recall.weights(model)
    with pytest.raises(
        ValueError, match=r"the loss is (nan|inf) at step \d+: training diverged\. Lower lr, or the scale of"
    ):
        train(model, lr=1e6)
    assert same(recall.weights(model), before)


def test_a_model_under_an_edit_is_not_trained() -> None:
    model = small()
    with (
        surgery.apply(model, {"blocks.1.mlp.W_out": surgery.Zero()}),
        pytest.raises(
            ValueError, match=r"an edit is in force on this model, and training would not see it: undo it first"
        ),
    ):
        train(model)


def test_what_this_does_not_train_is_refused() -> None:
    model = small()
    model.requires_grad_(True)
    with pytest.raises(
        ValueError, match=r"would be trained, by requires_grad: this trains W_K, W_V, W_O, W_in and W_out"
    ):
        train(model)
    model.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"nothing would be trained, by requires_grad: .* Set requires_grad_\(True\) on these"
    ):
        train(model)
    for change, name in (("q", "a W_Q"), ("o", "bias")):
        model = small()
        layer = getattr(model.blocks[0].attn, change).original_component
        with torch.no_grad():
            (layer.weight if change == "q" else layer.bias).add_(1)
        with pytest.raises(
            ValueError, match=rf"{name} is not what this trains around: biases are zero and W_Q is the ident"
        ):
            train(model)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0: give a whole number, 1 or more."),
        ({"checkpoints": (7,)}, "a checkpoint=7: give a whole number, from 0 to 6."),
        ({"checkpoints": (-1,)}, "a checkpoint=-1: give a whole number"),
        ({"batch_size": 0}, "batch_size=0: give a whole number, 1 or more."),
        ({"lr": 0.0}, "lr=0.0: give a number above 0."),
        ({"lr": float("nan")}, "lr=nan: give a number above 0"),
        ({"momentum": 1.0}, "momentum=1.0: give a number from 0 to below 1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: give a number, 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        train(small(), **wrong)
    assert message in str(error.value)


def test_a_model_for_another_task_is_refused() -> None:
    longer = RecallTask.synthetic(d_vocab=9, triggers=2, noise_token=5, n_ctx=17)
    with pytest.raises(
        ValueError, match="the model has 9 tokens and 16 positions, the task 9 and 17: make the model with"
    ):
        recall.train(small(), longer, progress=False)


def test_triggers_that_never_occur_twice_are_named() -> None:
    task = RecallTask(torch.tensor([0.0, 0.5, 0.5]), torch.tensor([[0, 0.5, 0.5]] * 3), (0,), 2, n_ctx=16)
    model = recall.bridge(task, d_model=8)
    with pytest.raises(
        ValueError, match=r"no trigger occurs twice in any of the 4 sequences of step 1: nothing can be scored"
    ):
        recall.train(model, task, batch_size=4, progress=False)
