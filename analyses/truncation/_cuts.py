"""The cuts of the truncation study: a matrix loses components from one end of its spectrum or the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

from surgery import DropTop, Edit, KeepTop, Zero
from surgery.arguments import shown

End = Literal["full", "keep top", "drop top", "top component dropped", "MLP dropped"]
"""What a cut does, in this order: nothing; keeps only the top ρ; drops the top ρ; drops the strongest component alone;
drops the whole output of an MLP."""

RHOS = (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


@final
@dataclass(frozen=True, slots=True)
class Cut:
    """An edit of one matrix (or none, with the site ""), and its names in a table."""

    end: End
    site: str
    rho: float
    edit: Edit | None

    @property
    def spec(self) -> dict[str, Edit]:
        """The spec that makes the cut."""
        return {} if self.edit is None else {self.site: self.edit}


def cuts_of(sites: Sequence[str], rhos: Sequence[float | int]) -> Iterator[Cut]:
    """Nothing first; then each MLP dropped, and every site at both ends and every ρ, and without its top component.

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
