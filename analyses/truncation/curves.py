"""What a model says after its prompts as a matrix loses components, from the one end of its spectrum or the other.

Chen, Bruna, Bietti (arXiv:2406.03068): cutting the feed-forward weights down lowers the generic answer and lifts the
one that the context asks for; which matrix, and which end of its spectrum, decides the sign.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, final

import pandas as pd
import torch
from hooks.replay import Recording, Rows, has_hooks, recorded, replayed
from hooks.unembedding import unembedding_only
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

import surgery
from analyses.tasks.items import Item
from analyses.tasks.task import Task
from analyses.truncation.prompts import CORRECT, Prompts, Tracked, prompts
from hooks import Site, host_of
from hooks.temporary import Temporary, together
from surgery import Decompositions, DropTop, Edit, KeepTop, Zero
from surgery.arguments import counted, shown, whole

Source: TypeAlias = Prompts | Task | str | Sequence[str] | Sequence[Item] | Int[Tensor, "example pos"]
"""Prompts made before, or what `prompts` makes them from."""
End = Literal["full", "keep top", "drop top", "top component dropped", "MLP dropped"]
"""What was cut: nothing, all but the top ρ, the top ρ, the strongest component alone, or everything an MLP writes."""

RHOS = (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


@final
@dataclass(frozen=True, slots=True)
class Cut:
    """An edit of one matrix (or none), and how it is called in a table."""

    end: End
    site: str
    rho: float
    edit: Edit | None

    @property
    def spec(self) -> dict[str, Edit]:
        """The spec that makes it."""
        return {} if self.edit is None else {self.site: self.edit}


@final
@dataclass(frozen=True, slots=True, repr=False)
class Curve:
    """Mean probabilities and margins (logits) after the prompts, one row for each cut and tracked name.

    Columns of `frame`: end, site, rho, name, p, p_stderr, margin (logit of "correct" minus the name's), margin_stderr,
    likeliest (the fraction of prompts after which the name is the argmax). Errors are standard errors over prompts.
    """

    frame: pd.DataFrame
    n_prompts: int

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.frame.copy()

    def of(self, name: str = CORRECT, *, end: End = "keep top", site: str | None = None) -> pd.DataFrame:
        """The rows of one tracked name and end of the spectrum, by site and ρ.

        Raises:
            KeyError: if there are none.
        """
        frame = self.frame
        rows = frame.loc[(frame["name"] == name) & (frame["end"] == end)]
        rows = rows if site is None else rows.loc[rows["site"] == site]
        if rows.empty:
            names, ends, sites = (", ".join(map(str, frame[c].unique())) for c in ("name", "end", "site"))
            raise KeyError(
                f"there is no curve of {name!r}, {end!r}, {site!r}: names are {names}; ends {ends}; sites {sites}."
            )
        return rows.sort_values(["site", "rho"]).reset_index(drop=True)

    def __repr__(self) -> str:
        wide = self.frame.pivot_table(index=["site", "end", "rho"], columns="name", values="p", sort=False)
        table = wide.to_string(float_format="{:.3f}".format)
        return f"probabilities after {counted(self.n_prompts, 'prompt')}\n{table}"


def curve(
    model: nn.Module,
    source: Source,
    site: str | Iterable[str],
    track: Mapping[str, Tracked] | None = None,
    rhos: Sequence[float | int] = RHOS,
    *,
    generic: str | int | None = None,
    prepend_bos: bool | None = None,
    svds: Decompositions | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Curve:
    """How probable the tracked tokens are after the prompts when one matrix at a time is cut to a fraction ρ.

    Every matrix is cut at both ends, keeping the top ρ of its components and keeping all others, and loses its
    strongest component alone; MLP matrices also come with everything their MLP writes set to zero (its bias stays).

    Args:
        model: a HookedTransformer or a TransformerBridge; edits in force stay.
        source: prompts, texts, token ids, or a task whose answers and distractors are tracked by themselves.
        site: one pattern or several; heads work as elsewhere.
        track: names and tokens, such as `{"correct": " Paris", "generic": " the"}`.
        rhos: fractions of the full rank, 0 to 1.
        generic: short for `track={"generic": ...}`.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.

    Raises:
        ValueError: if a ρ is not from 0 to 1, or as `prompts`.
        SiteError: if a pattern names no editable matrix.
    """
    if isinstance(source, Prompts) and (track or generic is not None or prepend_bos is not None):
        raise ValueError(
            "track, generic and prepend_bos are part of prompts made before: give them to truncation.prompts(...), or "
            "pass texts."
        )
    asked = (
        source
        if isinstance(source, Prompts)
        else prompts(model, source, track, generic=generic, prepend_bos=prepend_bos)
    )
    whole(batch_size, "batch_size", least=1)
    asked.check(int(model.cfg.d_vocab))  # type: ignore[union-attr, arg-type]
    cuts = list(cuts_of(surgery.sites(model, site), rhos))
    readings: list[list[_Reading]] = [[] for _ in cuts]
    batches = torch.arange(len(asked)).split(batch_size)
    with tqdm(total=len(cuts) * len(batches), desc="truncation", delay=1, disable=not progress) as bar:
        for at in batches:
            batch = _Batch(model, asked, at)
            for cut, parts in zip(cuts, readings, strict=True):
                with surgery.apply(model, cut.spec, svds=svds, progress=False):
                    parts.append(batch.read(cut))
                bar.update()
    rows = [row for cut, parts in zip(cuts, readings, strict=True) for row in _rows(cut, _joined(parts), asked)]
    return Curve(pd.DataFrame(rows), len(asked))


def cuts_of(sites: Sequence[str], rhos: Sequence[float | int]) -> Iterator[Cut]:
    """Nothing first; then every site at both ends and every ρ, without its top component, and each MLP dropped.

    Raises:
        ValueError: if a ρ is not from 0 to 1, or there is none.
    """
    several = isinstance(rhos, Sequence) and not isinstance(rhos, str)
    if not several or not rhos or any(isinstance(rho, str | bool) or not 0 <= rho <= 1 for rho in rhos):
        raise ValueError(f"rhos={shown(rhos)}: give one or more fractions of the full rank, from 0 to 1, such as 0.05.")
    yield Cut("full", "", 1.0, None)
    for mlp in dict.fromkeys(site.rpartition(".")[0] for site in sites if ".mlp." in site):
        yield Cut("MLP dropped", f"{mlp}.W_out", 0.0, Zero())
    for site in sites:
        for rho in map(float, rhos):
            yield Cut("keep top", site, rho, KeepTop(rho=rho))
            yield Cut("drop top", site, rho, DropTop(rho=rho))
        yield Cut("top component dropped", site, 0.0, DropTop(rank=1))


class _Reading(NamedTuple):
    """Log-probabilities and logits of what is tracked, and the likeliest token, after each prompt."""

    log_p: Float[Tensor, "name example"]
    logit: Float[Tensor, "name example"]
    top: Int[Tensor, " example"]


class _Batch:
    """Some prompts, with what the uncut model computed for them: a cut runs only what comes after its matrix."""

    def __init__(self, model: nn.Module, asked: Prompts, at: Int[Tensor, " example"]) -> None:
        device = next(model.parameters()).device
        self.model, self.tokens, self.mask = model, asked.tokens[at].to(device), asked.mask[at].to(device)
        self.last = asked.last[at]
        self.ids = torch.stack([one[at] for one in asked.track.values()])
        self.recording: Recording | None = None

    @torch.no_grad()
    def read(self, cut: Cut) -> _Reading:
        """What the model says under the edit in force, which is this cut."""
        columns = tuple(self.last.unique().tolist())
        around: list[Temporary] = []
        if cut.edit is None and not has_hooks(self.model):
            recording = recorded(self.model, range(host_of(self.model).n_layers))
            around.append(recording)
            self.recording = recording.value
        elif self.recording is not None:
            rows = Rows(torch.arange(len(self.tokens)))
            around.append(replayed(self.model, self.recording, Site.parse(cut.site), rows))
        with together(*around, unembedding_only(self.model, columns)):
            found = self.model(self.tokens, attention_mask=self.mask, return_type="logits")
        at = torch.tensor([columns.index(column) for column in self.last.tolist()], device=found.device)
        logits = found[torch.arange(len(at), device=found.device), at].double().cpu()
        ids = self.ids.mT
        return _Reading(logits.log_softmax(1).gather(1, ids).mT, logits.gather(1, ids).mT, logits.argmax(1))


def _joined(parts: Sequence[_Reading]) -> _Reading:
    return _Reading(*(torch.cat(part, -1) for part in zip(*parts, strict=True)))


def _rows(cut: Cut, reading: _Reading, asked: Prompts) -> list[dict[str, str | float]]:
    names = list(asked.track)
    margin = reading.logit[names.index(CORRECT)] - reading.logit
    found = []
    for n, name in enumerate(names):
        (p, p_stderr), (gap, gap_stderr) = mean_and_stderr(reading.log_p[n].exp()), mean_and_stderr(margin[n])
        likeliest = (reading.top == asked.track[name]).double().mean().item()
        found.append({
            "end": cut.end, "site": cut.site, "rho": cut.rho, "name": name, "p": p, "p_stderr": p_stderr, "margin": gap,
            "margin_stderr": gap_stderr, "likeliest": likeliest,
        })  # fmt: skip
    return found


def mean_and_stderr(values: Float[Tensor, " example"]) -> tuple[float, float]:
    """The mean and its standard error, NaN for one value."""
    return values.mean().item(), (values.std() / len(values) ** 0.5).item() if len(values) > 1 else float("nan")
