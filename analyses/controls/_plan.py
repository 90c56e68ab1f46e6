"""Which removals are compared: that of a selection, and its controls."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from analyses.attribution.effects import Effects
from analyses.attribution.question import Question
from analyses.attribution.selections import Selection
from analyses.controls._draws import Match, members, random_selection, twice
from analyses.controls._rotations import Directions, rotated
from hooks import Site
from surgery import Decompositions, Edit, apply


@final
@dataclass(frozen=True, slots=True)
class Removal:
    """Specs to apply together, each with its store of decompositions.

    `components` is how many components they remove, `energy` the share of the energy of all attributed matrices.
    """

    specs: tuple[tuple[dict[str, Edit], Decompositions | None], ...]
    components: int
    energy: float

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model under all of the specs, inside the `with` block."""
        with ExitStack() as stack:
            for spec, svds in self.specs:
                stack.enter_context(apply(model, spec, svds=svds, progress=False))
            yield

    @property
    def first(self) -> Site | None:
        """The first matrix that is edited; None if nothing is removed."""
        return min((Site.parse(address) for spec, _ in self.specs for address in spec), default=None)


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """Removals from the matrices of one question, by the effects of their components."""

    question: Question
    effects: Effects
    svds: Decompositions | None

    def selected(self, selection: Selection) -> Removal:
        """The selected components removed."""
        strengths = [self.effects.strengths[site][members(selection, site)] for site in selection]
        specs = ((selection.drop(), self.svds),) if selection else ()
        return Removal(specs, selection.n_components, self._share(strengths))

    def random(self, selection: Selection, match: Match, seed: int) -> Removal:
        """Random components of the same matrices removed."""
        return self.selected(random_selection(self.effects, selection, match=match, seed=seed))

    def rotated(self, selection: Selection, seed: int) -> Removal:
        """As many random directions removed, in the span of the selected components and as many of the next in line."""
        among = twice(self.effects, selection)
        spec = rotated(self.question.model, selection, among, seed=seed, svds=self.svds, progress=False)
        decompositions = {str(site): target.components for site, target in self.question.targets.items()}
        specs, written = [], []
        for site, edit in spec.items():
            assert isinstance(edit.basis, Directions)
            # What a matrix writes along a direction d is Σ s_i (v_i·d) u_i, and the u_i are orthonormal.
            SVh = decompositions[site].S.unsqueeze(1) * decompositions[site].Vh
            written.append(SVh @ edit.basis.directions.mT)
            # Such a basis is used here only: its components are kept beside it, not in the model's memory.
            specs.append(({site: edit}, Decompositions(basis=edit.basis)))
        return Removal(tuple(specs), selection.n_components, self._share(written))

    def _share(self, removed: Sequence[Tensor]) -> float:
        """The squares of the removed strengths over those of all attributed matrices."""
        total, part = (
            sum(float(S.double().square().sum()) for S in strengths)
            for strengths in (self.effects.strengths.values(), removed)
        )
        return part / total if total else 0.0
