"""A driver of its own process: `python drive.py RECIPE [score|mine]`, with a local Ray or the one of RAY_ADDRESS."""

import os
import sys

from distill.data.layout import RunFolder
from distill.recipe_file import load_recipe
from ray_jobs.mine import mine
from ray_jobs.score import score

recipe = load_recipe(sys.argv[1], ["cluster.address=auto"] if "RAY_ADDRESS" in os.environ else [])
{"score": score, "mine": mine}[(sys.argv[2:] or ["score"])[0]](recipe, RunFolder(recipe.folder))
