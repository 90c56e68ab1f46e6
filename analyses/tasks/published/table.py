"""All recipes: one by its name, or a table of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import final

import pandas as pd

from analyses.tasks.published.eigenpruning import EIGENPRUNING
from analyses.tasks.published.laser import LASER
from analyses.tasks.published.recipe import Recipe
from analyses.tasks.published.truncation import TRUNCATION
from surgery.arguments import shown

_RECIPES = {recipe.name: recipe for recipe in (*LASER, *EIGENPRUNING, *TRUNCATION)}


@final
@dataclass(frozen=True, slots=True, repr=False)
class RecipeTable:
    """Recipes, one a line when they are printed.

    >>> print(str(tasks.recipes()).splitlines()[4][:62])
    bios-gender          LASER                Likeliest(per='seque
    """

    recipes: tuple[Recipe, ...]

    def __iter__(self) -> Iterator[Recipe]:
        return iter(self.recipes)

    def __len__(self) -> int:
        return len(self.recipes)

    def __repr__(self) -> str:
        frame = self.to_dataframe().drop(columns=["prompt", "kept"])
        rows = [list(frame.columns), *frame.to_numpy().tolist()]
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a recipe: name, paper, rule, size, licence, source, what is kept, and how the prompt is known."""
        return pd.DataFrame(
            [
                {
                    "name": one.name,
                    "paper": one.paper.split(" (")[0],
                    "rule": str(one.rule),
                    "size": one.size,
                    "licence": one.licence,
                    "source": one.source,
                    "kept": one.kept,
                    "prompt": one.wording,
                }
                for one in self.recipes
            ]
        )


def recipe(name: str) -> Recipe:
    """The recipe of this name: a paper's own task.

    Raises:
        ValueError: if there is none.

    >>> tasks.recipe("bios-gender").prompt
    'Consider the following text: {text} Is the person in this text a male or female? The gender of this person is'
    """
    if name in _RECIPES:
        return _RECIPES[name]
    near = get_close_matches(str(name), _RECIPES, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"there is no recipe {shown(name)}: there are {', '.join(_RECIPES)}.{guess}")


def recipes() -> RecipeTable:
    """All recipes, as a table that prints: the tasks of LASER, Eigenpruning and the truncation study.

    Out of scope are LASER's RoBERTa, which is no causal model, and its Decision Transformer and image tasks.

    >>> [recipe.name for recipe in tasks.recipes()][:4]
    ['counterfact', 'hotpot-qa', 'fever', 'bios-gender']
    """
    return RecipeTable(tuple(_RECIPES.values()))
