"""What a model says after its prompts as a matrix loses components, from the one end of its spectrum or the other.

Chen, Bruna, Bietti (arXiv:2406.03068): cutting the feed-forward weights down lowers the generic answer and lifts the
one that the context asks for; which matrix, and which end of its spectrum, decides the sign.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import surgery
from analyses.statistics import mean_and_stderr
from analyses.tasks.items import Item
from analyses.tasks.task import Task
from analyses.truncation._cuts import RHOS, Cut, End, cuts_of
from analyses.truncation._prompts import CORRECT, Prompts, Tracked, prompts
from hooks import Site, host_of
from hooks.inputs import Inputs, Reads
from hooks.running import record, rerun
from surgery import Decompositions
from surgery.arguments import counted, whole
from surgery.progress import progress_bar

Source: TypeAlias = Prompts | Task | str | Sequence[str] | Sequence[Item] | Int[Tensor, "example pos"]
"""Prompts made before, or what `prompts` makes them from."""
QUANTITIES = ("p", "log_p", "rank", "margin")
"""What has a standard error over prompts."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Curve:
    """Mean probabilities, ranks and margins after the prompts, one row for each cut and tracked name.

    Columns of `frame`: end, site, rho, name; p; log_p in nats; rank, which is 1 for the likeliest token; margin, the
    logit of "correct" minus the name's; each with its standard error over prompts in a column such as p_stderr; and
    likeliest, the fraction of prompts after which the name is the argmax.
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
            names, ends, sites = (", ".join(map(str, frame[column].unique())) for column in ("name", "end", "site"))
            raise KeyError(
                f"there is no curve of {name!r}, {end!r}, {site!r}: names are {names}; ends {ends}; sites {sites}."
            )
        return rows.sort_values(["site", "rho"]).reset_index(drop=True)

    def __repr__(self) -> str:
        wide = self.frame.pivot_table(index=["site", "end", "rho"], columns="name", values="p", sort=False)
        table = wide.to_string(float_format="{:.3f}".format)
        return f"probabilities after {counted(self.n_prompts, 'prompt')}\n{table}"


@torch.no_grad()
def curve(
    model: nn.Module,
    source: Source,
    sites: str | Iterable[str],
    *,
    track: Mapping[str, Tracked] | None = None,
    rhos: Sequence[float | int] = RHOS,
    generic: str | int | None = None,
    prepend_bos: bool | None = None,
    svds: Decompositions | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Curve:
    """How probable the tracked tokens are after the prompts when one matrix at a time is cut to a fraction ρ.

    >>> from analyses import truncation
    >>> asked = {"track": {"correct": 1, "generic": 2}, "rhos": (0.25, 1.0), "progress": False}
    >>> curve = truncation.curve(model, tokens, "blocks.1.mlp.W_out", **asked)
    >>> curve.of("generic", end="keep top")["rho"].tolist()
    [0.25, 1.0]

    Every matrix is cut at both ends, keeping the top ρ of its components and keeping all others, and loses its
    strongest component alone; MLP matrices also come with everything their MLP writes set to zero (its bias stays).

    Args:
        model: a HookedTransformer or a TransformerBridge; edits in force stay.
        source: prompts, texts, token ids, or a task whose answers and distractors are tracked by themselves.
        sites: a pattern of matrices, or several; heads work as elsewhere.
        track: names and tokens, such as `{"correct": " Paris", "generic": " the"}`.
        rhos: fractions of the full rank, 0 to 1.
        generic: short for `track={"generic": ...}`.
        prepend_bos: overrides `model.cfg.default_prepend_bos`.

    Raises:
        ValueError: if a ρ is not from 0 to 1, or as `prompts`.
        SiteError: if a pattern names no editable matrix.
    """
    asked = _prompts(model, source, track, generic, prepend_bos)
    whole(batch_size, "batch_size", least=1)
    cuts = list(cuts_of(surgery.sites(model, sites), rhos))
    readings: list[list[_Reading]] = [[] for _ in cuts]
    batches = torch.arange(len(asked)).split(batch_size)
    with progress_bar("truncation", progress=progress, total=len(cuts) * len(batches)) as bar:
        for examples in batches:
            inputs, ids = _inputs(model, asked, examples), torch.stack([ids[examples] for ids in asked.track.values()])
            recording, full = record(model, inputs, [Site.parse(cut.site) for cut in cuts if cut.site])
            for cut, of_cut in zip(cuts, readings, strict=True):
                with surgery.apply(model, cut.spec, svds=svds, progress=False):
                    logits = rerun(model, inputs, recording, Site.parse(cut.site)) if cut.site else full
                of_cut.append(_read(logits, ids))
                bar.update()
    tables = [_table(cut, torch.cat(of_cut), list(asked.track)) for cut, of_cut in zip(cuts, readings, strict=True)]
    return Curve(pd.concat(tables, ignore_index=True), len(asked))


_Reading: TypeAlias = Float[Tensor, "example quantity name"]
"""Of each tracked token after each prompt: its logit, 1 if it is the likeliest, else 0, and the `QUANTITIES`."""


def _prompts(
    model: nn.Module,
    source: Source,
    track: Mapping[str, Tracked] | None,
    generic: str | int | None,
    prepend_bos: bool | None,
) -> Prompts:
    if not isinstance(source, Prompts):
        return prompts(model, source, track, generic=generic, prepend_bos=prepend_bos)
    if track or generic is not None or prepend_bos is not None:
        raise ValueError(
            "track, generic and prepend_bos are part of prompts made before: give them to truncation.prompts(...), or "
            "pass texts."
        )
    source.check(host_of(model).d_vocab)
    return source


def _inputs(model: nn.Module, asked: Prompts, examples: Int[Tensor, " example"]) -> Inputs:
    """Some of the prompts on the model's device, read at their last tokens."""
    device, rows, reads = host_of(model).device, asked.inputs.take(examples), asked.inputs.reads
    assert reads is not None, "prompts are read at their last tokens"
    mask = None if rows.mask is None else rows.mask.to(device)
    return Inputs(rows.tokens.to(device), mask, Reads(torch.arange(len(examples)), reads.pos[examples]))


def _read(logits: Float[Tensor, "example d_vocab"], ids: Int[Tensor, "name example"]) -> _Reading:
    logits, ids = logits.double().cpu(), ids.mT
    log_p, logit = logits.log_softmax(1).gather(1, ids), logits.gather(1, ids)
    likeliest = (logits.argmax(1, keepdim=True) == ids).double()
    rank = 1 + torch.stack([(logits > each.unsqueeze(1)).sum(1) for each in logit.unbind(1)], 1).double()
    # Of logits that are not numbers nothing is likeliest, nor has a rank.
    return torch.stack([logit, likeliest, log_p.exp(), log_p, rank], 1).where(~log_p.isnan().unsqueeze(1), torch.nan)


def _table(cut: Cut, reading: _Reading, names: list[str]) -> pd.DataFrame:
    """A row for each tracked name: means over the prompts, with their standard errors."""
    logit, likeliest, *measured = reading.unbind(1)
    margin = logit[:, [names.index(CORRECT)]] - logit
    columns: dict[str, Tensor] = {}
    for quantity, values in zip(QUANTITIES, (*measured, margin), strict=True):
        columns |= dict(zip((quantity, f"{quantity}_stderr"), mean_and_stderr(values), strict=True))
    columns["likeliest"] = likeliest.mean(0)
    numbers = {name: column.numpy() for name, column in columns.items()}
    return pd.DataFrame({"end": cut.end, "site": cut.site, "rho": cut.rho, "name": names, **numbers})
