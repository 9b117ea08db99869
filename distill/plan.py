"""`distill run --dry-run`: what each stage would do, before anything runs: pairs, shards, steps, tokens, disk.

Sizes come from the run folder's data where the import is done, else from the source's files, else from `data.sizes` of
the recipe; mean lengths from `data.sizes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.config import Recipe
from distill.data.inspect import sizes_of
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest
from distill.errors import DataError, RecipeError
from distill.shapes import parameters, student_shape

CHARACTERS_PER_TOKEN = 4.5  # English text, WordPiece
BYTES_PER_PAIR = 16  # candidates: row 8, rank 4, flags 2; and list offsets
BYTES_PER_SCORE = 4
ADAM_BYTES_PER_PARAMETER = 12  # float32 weights and two moments


@dataclass(frozen=True)
class Planned:
    """One stage's work, in words, and the bytes it leaves on disk (None: depends on the model's size)."""

    stage: str
    work: str
    disk: float | None


@dataclass(frozen=True)
class Volumes:
    """The sizes everything else follows from."""

    origin: str
    passages: int
    queries: dict[str, int]
    passage_tokens: float
    query_tokens: float


def volumes(recipe: Recipe) -> Volumes:
    """From the imported data, else counted in the source's files, else from `data.sizes`; `RecipeError` without any."""
    declared = recipe.data.sizes
    manifest = read_manifest(RunFolder.of(recipe).data)
    if manifest is not None:
        queries = {split: manifest.counts.get(f"queries.{split}", 0) for split in ("train", "dev", "test")}
        return Volumes(
            f"the data in {RunFolder.of(recipe).data}",
            manifest.counts["passages"],
            queries,
            declared.passage_tokens if declared else 80.0,
            declared.query_tokens if declared else 12.0,
        )
    try:
        sizes, origin = sizes_of(recipe.data), "the source's files"
    except DataError as error:  # the data is not there, or not all of it
        if declared is None:
            raise
        sizes, origin = declared, f"data.sizes of the recipe ({error})"
    if sizes is None:
        sizes, origin = declared, "data.sizes of the recipe"
    if sizes is None:
        raise RecipeError(
            "a dry run needs sizes: run `distill import` first, or declare data.sizes (passages, queries) in the recipe"
        )
    queries = {
        "train": min(sizes.queries, recipe.data.train_queries or sizes.queries),
        "dev": sizes.dev_queries,
        "test": sizes.test_queries,
    }
    queries = {split: min(count, recipe.data.limit or count) for split, count in queries.items()}
    lengths = declared or sizes
    return Volumes(origin, sizes.passages, queries, lengths.passage_tokens, lengths.query_tokens)


@dataclass(frozen=True)
class Counts:
    """How much of what the stages handle; pairs are at most so many: miners may find the same passage."""

    negatives: int  # mined for a training query
    train_pairs: int
    pairs: int  # to be scored, by each teacher
    shards: int
    text_tokens: float  # of the collection and of all queries
    pair_tokens: dict[str, float]  # that each ranker reads of a pair: three are special, and its length cuts
    teach_pairs: dict[str, int]  # that each fine-tuned teacher learns from in an epoch, in all folds
    steps: int
    step_tokens: float

    @classmethod
    def of(cls, recipe: Recipe, size: Volumes) -> Counts:
        queries, train = size.queries["train"], recipe.train
        negatives = sum(miner.top + miner.sample for miner in recipe.mine.miners.values())
        rerank_queries = sum(size.queries[split] for split in ("dev", "test")) if recipe.score.rerank else 0
        rankers = {
            name: teacher
            for name, teacher in recipe.teachers.items()
            if teacher.kind in ("cross-encoder", "llm", "custom")
        }
        pair_tokens = {
            name: min(size.query_tokens + size.passage_tokens + 3, teacher.max_length)
            for name, teacher in rankers.items()
        }
        teach_pairs = {
            name: queries * max(cfg.folds - 1, 1) * (1 + cfg.negatives + cfg.random_negatives)
            for name, teacher in recipe.teachers.items()
            if (cfg := teacher.fine_tune)
        }
        passage_tokens = min(size.passage_tokens + 2, recipe.student.passage_max_length)
        return cls(
            negatives,
            queries * (1 + negatives),
            queries * (1 + negatives) + rerank_queries * recipe.mine.rerank_depth,
            sum(math.ceil(count / recipe.mine.shard_queries) for count in size.queries.values()),
            size.passages * size.passage_tokens + sum(size.queries.values()) * size.query_tokens,
            pair_tokens,
            teach_pairs,
            train.steps or math.ceil(queries * train.epochs / train.batch_size),
            train.batch_size * (size.query_tokens + 2 + (1 + train.negatives) * passage_tokens),
        )


def plan(recipe: Recipe) -> tuple[Volumes, list[Planned]]:
    """Every stage of a recipe, in order."""
    size = volumes(recipe)
    n, queries, train = Counts.of(recipe, size), size.queries["train"], recipe.train
    tokenizers = len({teacher.model for teacher in recipe.teachers.values() if teacher.model} | {recipe.student.model})
    stages = [
        Planned("import", f"{size.passages:,} passages, {_queries(size)}", n.text_tokens * CHARACTERS_PER_TOKEN),
        Planned(
            "mine",
            f"{', '.join(recipe.mine.miners)}: up to {n.negatives} negatives for each of {queries:,} "
            f"training queries, {n.shards:,} shards",
            n.pairs * BYTES_PER_PAIR,
        ),
        Planned(
            "teach",
            "; ".join(
                f"{name}: {recipe.teachers[name].fine_tune.folds} folds, {pairs:,} pairs an epoch"
                for name, pairs in n.teach_pairs.items()
            )
            or "no teacher to fine-tune",
            None,
        ),
        Planned(
            "score",
            f"{n.pairs:,} pairs x {len(recipe.teachers)} teachers, {n.shards * len(recipe.teachers):,} "
            f"shards; {sum(n.pairs * tokens for tokens in n.pair_tokens.values()):.3g} tokens through rankers",
            n.pairs * BYTES_PER_SCORE * len(recipe.teachers) + n.text_tokens * 4 * tokenizers,
        ),
        Planned(
            "label",
            f"{recipe.label.normalise} per query, weighted mean"
            + (f", mapped to {recipe.label.map_to}" if recipe.label.map_to else "")
            + f": {n.train_pairs:,} labels",
            n.train_pairs * (BYTES_PER_PAIR + BYTES_PER_SCORE),
        ),
        Planned(
            "train",
            f"{n.steps:,} steps of {train.batch_size} queries x {1 + train.negatives} passages; "
            f"{n.steps * n.step_tokens:.3g} tokens; a checkpoint every {train.checkpoints.every} steps, "
            f"{train.checkpoints.keep_last} kept",
            _checkpoint_bytes(recipe),
        ),
        Planned(
            "evaluate",
            f"{size.queries[recipe.evaluate.split]:,} {recipe.evaluate.split} queries against "
            f"{size.passages:,} passages",
            size.queries[recipe.evaluate.split] * recipe.evaluate.depth * 40.0,
        ),
    ]
    return size, stages


def print_plan(recipe: Recipe, *, limit: int | None = None) -> None:
    """Print what `distill run` would do."""
    from distill.pipeline import rehearsal
    from distill.rounds import all_rounds
    from distill.stages import stages_of

    rounds, disk = all_rounds(rehearsal(recipe, limit)), 0.0
    for one in rounds:
        size, stages = plan(one)
        print(f"{one.name}, into {one.folder}; sizes from {size.origin}")
        names = [stage.name for stage in stages_of(one)]
        for stage in (stage for stage in stages if stage.stage in names):
            print(f"  {stage.stage:<9} {stage.work}" + ("" if stage.disk is None else f"  [{in_bytes(stage.disk)}]"))
            disk += stage.disk or 0
    print(f"  disk in all, without models: {in_bytes(disk)}")


def _queries(size: Volumes) -> str:
    return ", ".join(f"{count:,} {split} queries" for split, count in size.queries.items() if count)


def _checkpoint_bytes(recipe: Recipe) -> float | None:
    """What the kept checkpoints take, where the student's configuration is at hand."""
    parameters = _parameters(recipe)
    if parameters is None:
        return None
    return parameters * (ADAM_BYTES_PER_PARAMETER * recipe.train.checkpoints.keep_last + 2 * 4)


def _parameters(recipe: Recipe) -> float | None:
    """Parameters of the student, embeddings included; None if its shape isn't known."""
    shape = student_shape(recipe)
    return None if shape is None else parameters(shape)


def in_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
