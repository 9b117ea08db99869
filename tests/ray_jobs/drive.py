"""A driver process, on a local Ray or the one of RAY_ADDRESS: `python -m tests.ray_jobs.drive RECIPE [score|mine]`."""

import os
import sys

from distill.recipe.load import load_recipe
from distill.run.layout import RunFolder
from tests.helpers.stages import mine_on_ray as mine
from tests.helpers.stages import score

recipe = load_recipe(sys.argv[1], ["cluster.address=auto"] if "RAY_ADDRESS" in os.environ else [])
{"score": score, "mine": mine}[(sys.argv[2:] or ["score"])[0]](recipe, RunFolder(recipe.folder))
