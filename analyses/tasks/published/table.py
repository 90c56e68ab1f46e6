"""All recipes: one by its name, or a table of them."""

from difflib import get_close_matches

import pandas as pd

from analyses.tasks.published.eigenpruning import EIGENPRUNING
from analyses.tasks.published.laser import LASER
from analyses.tasks.published.recipe import Recipe
from analyses.tasks.published.truncation import TRUNCATION
from surgery.arguments import shown

_RECIPES = {recipe.name: recipe for recipe in (*LASER, *EIGENPRUNING, *TRUNCATION)}


class RecipeTable(pd.DataFrame):
    """A data frame that prints whole, one recipe a line."""

    def __repr__(self) -> str:
        """The columns side by side, without the index; what is kept and how the prompt is known are left to a look."""
        columns = ["name", "paper", "rule", "size", "licence", "source"]
        rows = [columns, *self[columns].to_numpy().tolist()]
        widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


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
    """One row a recipe: the tasks of LASER, Eigenpruning and the truncation study, in a data frame that prints whole.

    Its columns are name, paper, rule, size, licence, source, what is kept, and how the prompt is known. Out of scope
    are LASER's RoBERTa, which is no causal model, and its Decision Transformer and image tasks, which are no text.

    >>> list(tasks.recipes()["name"])[:4]
    ['counterfact', 'hotpot-qa', 'fever', 'bios-gender']
    """
    rows = [
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
        for one in _RECIPES.values()
    ]
    return RecipeTable(rows)
