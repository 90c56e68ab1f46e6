"""Truncation over published checkpoints: against matrices cut by hand in Hugging Face's model, resumed, and refused."""

import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from models import kinds
from tiny_tokenizers import byte_level, wrapped
from torch import nn

from analyses import plots, tasks, truncation
from hooks import loading
from surgery import SVD

STEPS, SITE = (0, 64, 1000), "blocks.1.mlp.W_out"
PLACES = [("France", "Paris"), ("Italy", "Rome"), ("Peru", "Lima"), ("Japan", "Tokyo")]
QUIET = {"rhos": (0.25,), "progress": False}
HOSTS = [param for param in kinds("hooked", "bridge")]


def neox(seed: int, d_model: int = 32, d_vocab: int = 400) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": d_model, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.GPTNeoXConfig(vocab_size=d_vocab, max_position_embeddings=64, initializer_range=0.3, **sizes)
    return hf.GPTNeoXForCausalLM(config).eval()


@pytest.fixture(scope="module")
def task() -> tasks.Task:
    return truncation.facts(PLACES, templates=("The capital of {subject} is",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of one shape, and things beside them that are none."""
    folder = tmp_path_factory.mktemp("pythia")
    for seed, step in enumerate(STEPS):
        neox(seed).save_pretrained(folder / f"step{step}")
        wrapped(byte_level(400)).save_pretrained(folder / f"step{step}")
    (folder / "step7").mkdir()
    (folder / "notes.txt").write_text("not a checkpoint")
    return folder


@pytest.mark.parametrize("host", HOSTS)
def test_every_step_is_what_a_matrix_cut_by_hand_gives(folder: Path, task: tasks.Task, host: str) -> None:
    study = truncation.over_training(truncation.Revisions(folder, host=host), task, SITE, **QUIET)
    assert (study.sweep.steps, study.n_prompts, study.left_out) == (STEPS, 4, 0)
    frame = study.to_dataframe().set_index(["step", "end", "name", "quantity"])["value"]
    tokenizer = hf.AutoTokenizer.from_pretrained(folder / "step0")
    for step in STEPS:
        model = hf.GPTNeoXForCausalLM.from_pretrained(folder / f"step{step}").eval()
        W = model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight
        U, S, Vh = np.linalg.svd(W.detach().numpy().astype(float), full_matrices=False)
        top = torch.tensor((U[:, :8] * S[:8]) @ Vh[:8], dtype=torch.float32)
        whole = W.detach().clone()
        for end, weight in (("full", whole), ("keep top", top), ("drop top", whole - top)):
            values: dict[tuple[str, str], list[float]] = {}
            with torch.no_grad():
                W.copy_(weight)
            for item in task.items:
                ids = tokenizer(item.prompt, add_special_tokens=False, return_tensors="pt").input_ids
                with torch.no_grad():
                    logits = model(ids).logits[0, -1].double()
                words = {"correct": item.answers[0], "distractor": item.distractors[0], "generic": " the"}
                for name, word in words.items():
                    (token,) = tokenizer(word, add_special_tokens=False).input_ids
                    order = logits.argsort(descending=True).tolist()
                    for quantity, value in (
                        ("p", logits.softmax(0)[token].item()),
                        ("log_p", logits.log_softmax(0)[token].item()),
                        ("rank", 1.0 + order.index(token)),
                        ("likeliest", float(order[0] == token)),
                    ):
                        values.setdefault((name, quantity), []).append(value)
            for (name, quantity), each in values.items():
                # A rank moves by one where two tokens are equally likely up to rounding.
                close = {"abs": 0.3} if quantity == "rank" else {"rel": 2e-3, "abs": 2e-5}
                assert frame[step, end, name, quantity] == pytest.approx(np.mean(each), **close)


def test_a_killed_run_goes_on_where_it_was(
    folder: Path, task: tasks.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, earlier = [], []
    make = truncation.Revisions.load

    def load(revisions: truncation.Revisions, step: int) -> nn.Module:
        gc.collect()
        assert all(model() is None for model in earlier), "two checkpoints are in memory"
        if killed and step == 1000:
            raise KeyboardInterrupt
        loaded.append(step)
        model = make(revisions, step)
        earlier.append(weakref.ref(model))
        return model

    monkeypatch.setattr(truncation.Revisions, "load", load)
    killed = True
    with pytest.raises(KeyboardInterrupt):
        truncation.over_training(folder, task, SITE, cache=tmp_path, **QUIET)
    killed = False
    study = truncation.over_training(folder, task, SITE, cache=tmp_path, **QUIET)
    assert loaded == [0, 64, 1000]
    again = truncation.over_training(folder, task, SITE, cache=tmp_path, **QUIET)
    assert again.sweep.frame.equals(study.sweep.frame) and len(loaded) == 3
    fresh = truncation.over_training(folder, task, SITE, steps=[64], **QUIET)
    assert fresh.sweep.frame.equals(study.sweep.frame[study.sweep.frame["step"] == 64].reset_index(drop=True))
    # Another question, or other weights under the old name, are other work; the same files elsewhere are not.
    asked = {"steps": [64], "cache": tmp_path, **QUIET}
    truncation.over_training(folder, task, SITE, **{**asked, "rhos": (0.5,)})
    assert loaded[3:] == [64, 64]
    shutil.copytree(folder / "step64", tmp_path / "step64")
    truncation.over_training(tmp_path, task, SITE, **asked)
    assert loaded[5:] == []
    neox(9).save_pretrained(tmp_path / "step64")
    other = truncation.over_training(tmp_path, task, SITE, **asked)
    assert loaded[5:] == [64] and not other.sweep.frame.equals(fresh.sweep.frame)


def test_the_figure_has_layers_steps_matrices_and_fractions(folder: Path, task: tasks.Task) -> None:
    settings = {"steps": (0, 1000), "rhos": (0.5, 0.125), "progress": False}
    study = truncation.over_training(folder, task, **settings)
    frame = study.to_dataframe()
    frame = frame[(frame["name"] == "generic") & (frame["quantity"] == "p")]
    figure = plots.truncation.over_training(study, quantity="p", end="drop top")
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [f"{matrix}, ρ = {rho}" for rho in (0.125, 0.5) for matrix in ("W_in", "W_out")]
    for title, panel in zip(titles, figure.data, strict=True):
        assert panel.x == ("0", "1000") and list(panel.y) == [0, 1]
        matrix, rho = title.split(", ρ = ")
        for i, layer in enumerate(panel.y):
            for j, step in enumerate((0, 1000)):
                at = frame[frame["step"] == step]
                cut = at[(at["end"] == "drop top") & (at["matrix"] == matrix) & (at["layer"] == layer)]
                value = cut[cut["rho"] == float(rho)]["value"].item()
                assert panel.z[i][j] == pytest.approx(value - at[at["end"] == "full"]["value"].item())
    assert "change (probability)" in figure.layout.coloraxis.colorbar.title.text
    plain = plots.truncation.over_training(study, quantity="rank", change=False)
    assert min(map(np.min, (panel.z for panel in plain.data))) >= 1
    with pytest.raises(KeyError, match="no 'p' of 'noise' under 'keep top': names are correct, distractor, generic"):
        plots.truncation.over_training(study, "noise", quantity="p")
    assert "4 prompts; truncation at steps 0, 1000" in repr(study)
    title = plots.truncation.training(study.sweep, "log_p(generic)").layout.yaxis.title.text
    assert title == "log_p(generic) (nats)"


def test_words_of_several_tokens_are_refused_or_left_out(folder: Path, task: tasks.Task) -> None:
    asked = {"steps": [0], **QUIET}
    long = truncation.facts([*PLACES, ("Fiji", "Tokyor")], templates=("The capital of {subject} is",))
    with pytest.raises(ValueError, match=r"correct word ' Tokyor' after 'The capital of Fiji is' is \d tokens of this"):
        truncation.over_training(folder, long, SITE, **asked)
    study = truncation.over_training(folder, long, SITE, several="leave out", **asked)
    assert (study.n_prompts, study.left_out) == (3, 2)  # it is the rival of another one
    kept = task.take([0, 1, 2])
    same = truncation.over_training(folder, kept, SITE, **asked)
    assert study.sweep.frame.equals(same.sweep.frame)
    first = truncation.over_training(folder, long, SITE, several="first", **asked)
    assert (first.n_prompts, first.left_out) == (5, 0)
    for several in ("refuse", "leave out"):
        with pytest.raises(ValueError, match=r"the generic word ' furthermore' after .* is \d+ tokens of this model"):
            truncation.over_training(folder, task, SITE, generic=" furthermore", several=several, **asked)


def test_checkpoints_that_are_not_there_are_named(folder: Path, task: tasks.Task, tmp_path: Path) -> None:
    def ask(source: object, **settings: object) -> None:
        truncation.over_training(source, task, SITE, **{**QUIET, **settings})

    with pytest.raises(ValueError, match=r"has no 'step128': the nearest steps are 0, 64, 1000"):
        ask(folder, steps=[0, 128])
    with pytest.raises(ValueError, match=r"has no 'step7': the nearest"):  # an empty folder is no checkpoint
        ask(folder, steps=[7])
    with pytest.raises(ValueError, match=r"holds no checkpoint: each is a Hugging Face folder .* There is nothing"):
        ask(tmp_path)
    with pytest.raises(ValueError, match=r"holds no checkpoint.*'step1000', with config.json in it. There is 'config"):
        ask(folder / "step0")
    with pytest.raises(ValueError, match=r"there is no folder .*elsewhere"):
        ask(folder / "elsewhere", steps=[0])
    with pytest.raises(ValueError, match="'EleutherAI/pythia-70m' is no folder, and the hub has more steps"):
        ask("EleutherAI/pythia-70m")
    with pytest.raises(ValueError, match=r"has no 'step5': the nearest steps are 1, 2, 4, 8"):
        ask("EleutherAI/pythia-70m", steps=[5])
    with pytest.raises(ValueError, match=r"steps=\[\]: give one or more whole numbers"):
        ask(folder, steps=[])
    with pytest.raises(OSError, match=r"at revision 'step1000' is not in the local cache, and the hub cannot be reach"):
        ask("EleutherAI/pythia-70m", steps=[1000])
    with pytest.raises(ValueError, match=r"rhos=\(2,\): give one or more fractions"):
        ask("EleutherAI/pythia-70m", steps=[1000], rhos=(2,))
    with pytest.raises(ValueError, match="revision='main': it says where the number stands, as in"):
        truncation.Revisions(folder, revision="main")
    assert len(truncation.PYTHIA_STEPS) == 154


def test_folders_that_are_not_one_training_are_refused(folder: Path, task: tasks.Task, tmp_path: Path) -> None:
    for step, (model, words) in enumerate([(neox(0), 400), (neox(1, d_model=16), 400), (neox(2), 370)]):
        model.save_pretrained(tmp_path / f"step{step}")
        wrapped(byte_level(words)).save_pretrained(tmp_path / f"step{step}")
    with pytest.raises(ValueError, match=r"checkpoint 1 has blocks.1.mlp.W_out of shape \(64, 16\), checkpoint 0"):
        truncation.over_training(tmp_path, task, SITE, steps=(0, 1), **QUIET)
    with pytest.raises(ValueError, match="checkpoint 2 reads the prompts as other tokens than checkpoint 0"):
        truncation.over_training(tmp_path, task, SITE, steps=(0, 2), several="first", **QUIET)
    (tmp_path / "step3").mkdir()
    (tmp_path / "step3" / "config.json").write_text("{}")
    with pytest.raises(OSError, match=r"step3' is no model .*: it needs config.json, the weights and the tokenizer's"):
        truncation.over_training(tmp_path, task, SITE, steps=[3], **QUIET)


class RevisionNotFoundError(Exception):
    """As huggingface_hub calls it."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RevisionNotFoundError("404"), r"'a/b' has no revision 'step5' on the hub: Pythia's are called step0"),
        (OSError("a/b is not a valid model identifier"), "no model on the hub of the name 'a/b'"),
        (TimeoutError("slow"), r"'a/b' at revision 'step5' is not in the local cache"),
        (ValueError("no T5"), r"makes no model of 'a/b' at revision 'step5' \(no T5\): give one that it supports"),
    ],
)
def test_the_hubs_refusals_are_told_apart(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    def refuse(source: str, **settings: object) -> nn.Module:
        assert (source, settings["revision"]) == ("a/b", "step5")
        raise error if isinstance(error, ValueError) else OSError(str(error)) from error

    monkeypatch.setattr(TransformerBridge, "boot_transformers", refuse)
    with pytest.raises(OSError, match=told):
        truncation.Revisions("a/b").load(5)


@pytest.mark.hooked
def test_a_hooked_transformer_is_not_made_from_a_misleading_path(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    with pytest.raises(OSError, match="takes the architecture from the word 'llama' in the path"):
        loading.load(str(tmp_path / "llama"), host="hooked")
    with pytest.raises(OSError, match="makes no HookedTransformer of 'nobody/nothing'"):
        loading.load("nobody/nothing", host="hooked")


def test_the_weights_are_those_of_the_checkpoint(folder: Path) -> None:
    import surgery
    from hooks import place_of

    model = truncation.Revisions(folder).load(64)
    stored = hf.GPTNeoXForCausalLM.from_pretrained(folder / "step64").gpt_neox.layers[1].mlp.dense_4h_to_h.weight
    assert torch.equal(place_of(model, SITE).matrix(), stored.mT)
    assert surgery.decompose(model, SITE, basis=SVD(), progress=False)[SITE].n_components == 32
