"""Sizes of a run's data: counted by the import, else estimated from the source's files, else declared."""

from __future__ import annotations

from distill.errors import DataError, RecipeError
from distill.importing.sniff import sizes_of
from distill.planning.volumes import Volumes
from distill.run.manifest import read_manifest
from distill.run.run import Run


def volumes(run: Run) -> Volumes:
    """Sizes from the imported data, else from the source's files, else from `data.sizes`. Raises `RecipeError`."""
    recipe, declared = run.recipe, run.recipe.data.sizes
    manifest = read_manifest(run.folder.data)
    if manifest is not None:
        return Volumes(
            f"the data in {run.folder.data}",
            manifest.counts["passages"],
            {split: manifest.counts.get(f"queries.{split}", 0) for split in ("train", "dev", "test")},
            declared.passage_tokens if declared else 80.0,
            declared.query_tokens if declared else 12.0,
        )
    try:
        sizes, origin = sizes_of(recipe.data), "the source's files"
    except DataError as error:  # the source's files are missing or incomplete
        if declared is None:
            raise
        sizes, origin = declared, f"data.sizes of the recipe ({error})"
    if sizes is None:
        sizes, origin = declared, "data.sizes of the recipe"
    if sizes is None:
        raise RecipeError(
            "a dry run needs sizes: run `distill import` first, or declare data.sizes (passages, queries) in the recipe"
        )
    wanted = recipe.data.train_queries
    queries = {
        "train": min(sizes.queries, wanted) if isinstance(wanted, int) else sizes.queries,
        "dev": sizes.dev_queries,
        "test": sizes.test_queries,
    }
    queries = {split: min(count, recipe.data.limit or count) for split, count in queries.items()}
    lengths = declared or sizes
    return Volumes(origin, sizes.passages, queries, lengths.passage_tokens, lengths.query_tokens)
