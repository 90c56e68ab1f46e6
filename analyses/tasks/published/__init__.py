"""The papers' own tasks as recipes.

`recipes()` lists them, `recipe(name)` gives one, and `recipe(name).task(file)` reads the data as the paper does. Out of
scope are LASER's RoBERTa, which is no causal model, and its Decision Transformer and image tasks, which are no text.
"""

from analyses.tasks.published.recipe import Recipe as Recipe
from analyses.tasks.published.table import recipe, recipes

__all__ = ["recipe", "recipes"]
