"""A driver of its own process: `python drive.py RECIPE` scores with a local Ray."""

import sys

from distill.data.layout import RunFolder
from distill.recipe_file import load_recipe
from ray_jobs.score import score

recipe = load_recipe(sys.argv[1])
score(recipe, RunFolder(recipe.folder))
