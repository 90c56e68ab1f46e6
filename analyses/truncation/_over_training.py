"""Truncation over the training of a language model whose checkpoints are published: Pythia, or a folder of one's own.

Chen, Bruna, Bietti (arXiv:2406.03068), on pretrained models: what a layer, a matrix and a fraction ρ do to the generic,
the right and the rival word, at every step.
"""

import gc
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import final

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.store import Store, digest
from analyses.tasks.items import Item, Text
from analyses.tasks.task import Task
from analyses.truncation._checkpoints import Shapes, refuse_other_shapes
from analyses.truncation._cuts import RHOS, cuts_of
from analyses.truncation._prompts import Several, Tracked, one_token_each, tracked
from analyses.truncation._revisions import Revisions
from analyses.truncation._sweeps import long_form, shapes_of
from analyses.truncation.curves import curve
from analyses.truncation.results import Sweep
from hooks import Site
from surgery.arguments import counted, whole
from surgery.progress import progress_bar

MLP = "blocks.*.mlp.W_{in,out}"
_PIECE = "table"


@final
@dataclass(frozen=True, slots=True, repr=False)
class TrainingStudy:
    """What the cuts do to the tracked words at every step of a model's training.

    Args:
        source: the model's name on the hub, or the folder.
        sweep: the numbers; `sweep.of("p(generic)", end="keep top", site="blocks.3.mlp.W_in", rho=0.1)` is one line.
        n_prompts: how many prompts the means are over.
        left_out: how many were left out because a word is not one token.
    """

    source: str
    sweep: Sweep
    n_prompts: int
    left_out: int

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each step, cut, tracked name and quantity: value, and its standard error over prompts.

        Columns: step, end, site, layer, matrix, rho, name, quantity, value, stderr. Without a cut, and where a whole
        MLP is dropped, the matrix is empty. Quantities: p (probability), log_p (nats), rank (1 is the likeliest token),
        margin (logits of "correct" over the name), likeliest (fraction of prompts).
        """
        frame = self.sweep.to_dataframe()
        parts = frame["metric"].str.extract(r"(?P<quantity>\w+)\((?P<name>.*)\)")
        sites = frame["site"].tolist()
        layers = {site: Site.parse(site).layer if site else pd.NA for site in set(sites)}
        frame["layer"] = pd.array([layers[site] for site in sites], dtype="Int64")
        # The matrix with its head, if it is of one.
        whole_mlp = (frame["end"] == "MLP dropped").tolist()
        matrices = zip(sites, whole_mlp, strict=True)
        frame["matrix"] = ["" if all_of_it else site.rpartition(".")[2] for site, all_of_it in matrices]
        columns = ["step", "end", "site", "layer", "matrix", "rho", "name", "quantity", "value", "stderr"]
        return pd.DataFrame(frame.assign(**parts), columns=columns)

    def __repr__(self) -> str:
        left_out = f", {self.left_out} left out" if self.left_out else ""
        return f"{self.source}, {counted(self.n_prompts, 'prompt')}{left_out}; {self.sweep!r}"


def over_training(
    source: str | Path | Revisions,
    task: Task | str | Sequence[Text] | Sequence[Item] | Int[Tensor, "example pos"],
    sites: str | Iterable[str] = MLP,
    *,
    steps: Sequence[int] | None = None,
    rhos: Sequence[float | int] = RHOS,
    track: Mapping[str, Tracked] | None = None,
    generic: str | int | None = " the",
    several: Several = "refuse",
    prepend_bos: bool | None = None,
    batch_size: int = 128,
    cache: str | Path | None = None,
    progress: bool = True,
) -> TrainingStudy:
    """What truncation does to the right, the rival and the generic word at every step of a published training.

    >>> import tempfile, transformers
    >>> sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    >>> neox = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes, intermediate_size=32))
    >>> folder = tempfile.mkdtemp()
    >>> for step in (0, 1000): neox.save_pretrained(f"{folder}/step{step}")
    >>> asked = {"track": {"correct": 1}, "generic": 2, "rhos": (0.5,), "progress": False}
    >>> truncation.over_training(folder, tokens, "blocks.1.mlp.W_in", **asked).sweep.steps
    (0, 1000)

    One checkpoint is in memory at a time. `cache` is a folder that keeps what is finished, so that a run that was
    stopped goes on, and more steps cost only themselves. A revision on the hub is taken to stay what it is.

    Args:
        source: such as "EleutherAI/pythia-70m", a folder that holds a folder for each step, or `Revisions`.
        task: answers, such as `tasks.ioi(200)`; they and their distractors are tracked. Or prompts with `track`.
        steps: by default all of a folder; those of Pythia on the hub are `PYTHIA_STEPS`.
        generic: the frequent word that competes; None for none.
        several: what to do with words of several tokens.

    Raises:
        OSError: if the hub is out of reach, or has no such revision.
        ValueError: if a word is several tokens, the checkpoints differ in shape or in tokens, or as `curve`.
    """
    checkpoints = Revisions.of(source)
    patterns = [sites] if isinstance(sites, str) else [str(site) for site in sites]
    contexts, words = tracked(task, track, generic)
    list(cuts_of((), rhos))  # refuses what is no fraction before anything is loaded
    asked = _Asked(patterns, [float(rho) for rho in rhos], contexts, words, several, prepend_bos)
    whole(batch_size, "batch_size", least=1)
    done: dict[int, _Finished] = {}
    for step in progress_bar("checkpoints", checkpoints.steps(steps), progress=progress):
        store = None if cache is None else asked.store(cache, checkpoints.identity(step))
        done[step] = _finished(store) or _kept(_measured(asked, checkpoints, step, batch_size), store)
        _refuse_others(done, step)
    sweep = Sweep.joined({step: finished.frame for step, finished in done.items()})
    first = next(iter(done.values()))
    return TrainingStudy(str(checkpoints.source), sweep, first.n_prompts, first.left_out)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of every checkpoint."""

    patterns: list[str]
    rhos: list[float]
    contexts: list[Text]
    words: dict[str, list[Text]]
    several: Several
    prepend_bos: bool | None

    def store(self, folder: str | Path, checkpoint: Mapping[str, str]) -> Store:
        """Where the answer of this checkpoint is kept."""
        asked = json.dumps([self.contexts, self.words])
        settings = {
            "checkpoint": dict(checkpoint),
            "sites": self.patterns,
            "rhos": self.rhos,
            "several": self.several,
            "prepend_bos": self.prepend_bos,
            "prompts": sha256(asked.encode()).hexdigest(),
        }
        return Store.of(folder, "truncation", settings=settings, tensors={})


@dataclass(frozen=True, slots=True)
class _Finished:
    """The answer of one checkpoint; `tokens` is a hash of what the model read."""

    frame: pd.DataFrame
    shapes: Shapes
    tokens: str
    n_prompts: int
    left_out: int


def _measured(asked: _Asked, checkpoints: Revisions, step: int, batch_size: int) -> _Finished:
    """The answer of one checkpoint, whose model is gone when this returns."""
    model = checkpoints.load(step)
    prompts, left_out = one_token_each(
        model, asked.contexts, asked.words, generic=None, prepend_bos=asked.prepend_bos, several=asked.several
    )
    result = curve(model, prompts, asked.patterns, rhos=asked.rhos, batch_size=batch_size, progress=False)
    read = {"tokens": prompts.inputs.tokens, **prompts.track}
    shapes, tokens = shapes_of(model, asked.patterns), digest(read, {})
    del model
    gc.collect()  # a model is a ring of references: without this two of them would be in memory
    return _Finished(long_form(result), shapes, tokens, len(prompts), left_out)


def _kept(finished: _Finished, store: Store | None) -> _Finished:
    """The answer, written to the store if there is one."""
    if store is not None:
        fields = {name: getattr(finished, name) for name in ("shapes", "tokens", "n_prompts", "left_out")}
        text = json.dumps({**fields, "frame": finished.frame.to_dict("list")})  # numbers to their last bit
        store.write(_PIECE, {"json": torch.tensor(list(text.encode()), dtype=torch.uint8)})
    return finished


def _finished(store: Store | None) -> _Finished | None:
    """The answer that an earlier run wrote."""
    piece = None if store is None else store.read(_PIECE)
    if piece is None:
        return None
    fields = json.loads(bytes(piece["json"].tolist()))
    shapes = {name: tuple(shape) for name, shape in fields.pop("shapes").items()}
    return _Finished(frame=pd.DataFrame(fields.pop("frame")), shapes=shapes, **fields)


def _refuse_others(done: Mapping[int, _Finished], step: int) -> None:
    """Refuse a checkpoint that is not the same model, or reads the prompts as other tokens, as the first.

    Raises:
        ValueError: in each of these cases.
    """
    start, first = next(iter(done.items()))
    refuse_other_shapes((start, first.shapes), step, done[step].shapes)
    if done[step].tokens != first.tokens:
        raise ValueError(
            f"checkpoint {step} reads the prompts as other tokens than checkpoint {start}: their tokenizers differ. "
            "Put the same tokenizer into every folder."
        )
