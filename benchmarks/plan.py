"""Predictions of `distill plan` against actual times: a rehearsal, the plan based on it, then the full run.

Prints one JSON line per stage: predicted and actual seconds.
Usage: python benchmarks/plan.py [RECIPE] [--limit 100] [PATH=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

from distill.pipeline.estimate import estimate
from distill.pipeline.run import run_pipeline
from distill.recipe.load import load_recipe
from distill.run.files import read_json_lines
from distill.run.layout import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", nargs="?", default="configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="PATH=VALUE")
    parser.add_argument("--limit", type=int, default=100, help="number of queries in the rehearsal")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        recipe = load_recipe(args.recipe, [*args.overrides, f"run_dir={Path(root) / 'run'}"])
        run_pipeline(recipe, limit=args.limit)
        foreseen: dict[str, float] = defaultdict(float)
        for _, stage, cost in estimate(recipe, 1, "cpu").costs:
            foreseen[stage] += cost.wall_seconds or 0.0
        run_pipeline(recipe)
        taken = {line["stage"]: line["seconds"] for line in read_json_lines(RunFolder(recipe.folder).stage_log)}
    for stage, seconds in taken.items():
        print(
            json.dumps(
                {
                    "stage": stage,
                    "foreseen seconds": round(foreseen[stage], 1),
                    "taken seconds": seconds,
                    "ratio": round(foreseen[stage] / seconds, 2),
                    "rehearsal": args.limit,
                }
            ),
            flush=True,
        )
    print(
        json.dumps(
            {
                "stage": "all",
                "foreseen seconds": round(sum(foreseen.values()), 1),
                "taken seconds": round(sum(taken.values()), 1),
                "ratio": round(sum(foreseen.values()) / sum(taken.values()), 2),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
