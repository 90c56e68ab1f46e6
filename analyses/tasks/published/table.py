"""All recipes: one by its name, or a table of them."""

from difflib import get_close_matches

import pandas as pd

from analyses.tasks.published.laser import LASER
from analyses.tasks.published.recipe import Recipe
from surgery.arguments import shown

_RECIPES = {recipe.name: recipe for recipe in LASER}


def recipe(name: str) -> Recipe:
    """The recipe of this name.

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


def recipes() -> pd.DataFrame:
    """One row a recipe: the papers' own tasks, with paper, source, rule, wording, size and licence.

    Out of scope are LASER's RoBERTa, which is no causal model, and its Decision Transformer and image tasks.

    >>> list(tasks.recipes().columns)
    ['name', 'paper', 'source', 'rule', 'prompt', 'size', 'licence']
    """
    return pd.DataFrame(
        [
            {
                "name": one.name,
                "paper": one.paper,
                "source": one.source,
                "rule": str(one.rule),
                "prompt": one.wording,
                "size": one.size,
                "licence": one.licence,
            }
            for one in _RECIPES.values()
        ]
    )
