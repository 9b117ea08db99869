"""`distill run --dry-run`: what each stage would do, before anything runs: pairs, shards, steps, tokens, disk.

Sizes come from the run folder's data where the import is done, else from `data.sizes` of the recipe, else from the
source's files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.config import Recipe
from distill.data.inspect import sizes_of
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest
from distill.errors import RecipeError

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
    """From the imported data, else from `data.sizes`, else counted in the source's files; `RecipeError` without any."""
    sizes = recipe.data.sizes
    manifest = read_manifest(RunFolder.of(recipe).data)
    if manifest is not None:
        queries = {split: manifest.counts.get(f"queries.{split}", 0) for split in ("train", "dev", "test")}
        return Volumes(f"the data in {RunFolder.of(recipe).data}", manifest.counts["passages"], queries,
                       sizes.passage_tokens if sizes else 80.0, sizes.query_tokens if sizes else 12.0)
    origin = "data.sizes of the recipe"
    if sizes is None:
        sizes, origin = sizes_of(recipe.data), "the source's files"
    if sizes is None:
        raise RecipeError("a dry run needs sizes: run `distill import` first, or declare data.sizes "
                          "(passages, queries) in the recipe")
    queries = {"train": min(sizes.queries, recipe.data.train_queries or sizes.queries), "dev": sizes.dev_queries,
               "test": sizes.test_queries}
    queries = {split: min(count, recipe.data.limit or count) for split, count in queries.items()}
    return Volumes(origin, sizes.passages, queries, sizes.passage_tokens, sizes.query_tokens)


def plan(recipe: Recipe) -> tuple[Volumes, list[Planned]]:
    """Every stage of a recipe, in order."""
    size = volumes(recipe)
    queries, train = size.queries["train"], recipe.train
    negatives = sum(miner.top + miner.sample for miner in recipe.mine.miners.values())
    train_pairs = queries * (1 + negatives)  # at most: miners may find the same passage
    rerank_queries = sum(size.queries[split] for split in ("dev", "test")) if recipe.score.rerank else 0
    pairs = train_pairs + rerank_queries * recipe.mine.rerank_depth
    shards = sum(math.ceil(count / recipe.mine.shard_queries) for count in size.queries.values())
    text_tokens = size.passages * size.passage_tokens + sum(size.queries.values()) * size.query_tokens
    # a score is read off query + passage tokens, three of them special, cut to the teacher's length
    pair_tokens = {name: min(size.query_tokens + size.passage_tokens + 3, teacher.max_length)
                   for name, teacher in recipe.teachers.items() if teacher.kind in ("cross-encoder", "llm", "custom")}
    tokenizers = len({teacher.model for teacher in recipe.teachers.values() if teacher.model} | {recipe.student.model})
    tuned = {name: teacher.fine_tune for name, teacher in recipe.teachers.items() if teacher.fine_tune}
    steps = train.steps or math.ceil(queries * train.epochs / train.batch_size)
    step_tokens = train.batch_size * (size.query_tokens + 2
                                      + (1 + train.negatives) * min(size.passage_tokens + 2,
                                                                    recipe.student.passage_max_length))
    stages = [
        Planned("import", f"{size.passages:,} passages, {_queries(size)}", text_tokens * CHARACTERS_PER_TOKEN),
        Planned("mine", f"{', '.join(recipe.mine.miners)}: up to {negatives} negatives for each of {queries:,} "
                f"training queries, {shards:,} shards", pairs * BYTES_PER_PAIR),
        Planned("teach", "; ".join(f"{name}: {cfg.folds} folds, {queries * (cfg.folds - 1) * (1 + cfg.negatives):,} "
                                   "pairs an epoch" for name, cfg in tuned.items()) or "no teacher to fine-tune", None),
        Planned("score", f"{pairs:,} pairs x {len(recipe.teachers)} teachers, {shards * len(recipe.teachers):,} "
                f"shards; {sum(pairs * tokens for tokens in pair_tokens.values()):.3g} tokens through rankers",
                pairs * BYTES_PER_SCORE * len(recipe.teachers) + text_tokens * 4 * tokenizers),
        Planned("label", f"{recipe.label.normalise} per query, weighted mean"
                + (f", mapped to {recipe.label.map_to}" if recipe.label.map_to else "")
                + f": {train_pairs:,} labels", train_pairs * (BYTES_PER_PAIR + BYTES_PER_SCORE)),
        Planned("train", f"{steps:,} steps of {train.batch_size} queries x {1 + train.negatives} passages; "
                f"{steps * step_tokens:.3g} tokens; a checkpoint every {train.checkpoints.every} steps, "
                f"{train.checkpoints.keep_last} kept", _checkpoint_bytes(recipe)),
        Planned("evaluate", f"{size.queries[recipe.evaluate.split]:,} {recipe.evaluate.split} queries against "
                f"{size.passages:,} passages", size.queries[recipe.evaluate.split] * recipe.evaluate.depth * 40.0),
    ]
    return size, stages


def print_plan(recipe: Recipe, *, limit: int | None = None) -> None:
    """Print what `distill run` would do."""
    from distill.pipeline import rehearsal, stages_of
    from distill.rounds import all_rounds

    rounds, disk = all_rounds(rehearsal(recipe, limit)), 0.0
    for one in rounds:
        size, stages = plan(one)
        print(f"{one.name}, into {one.folder}; sizes from {size.origin}")
        names = [stage.name for stage in stages_of(one)]
        for stage in (stage for stage in stages if stage.stage in names):
            print(f"  {stage.stage:<9} {stage.work}" + ("" if stage.disk is None else f"  [{_bytes(stage.disk)}]"))
            disk += stage.disk or 0
    print(f"  disk in all, without models: {_bytes(disk)}")


def _queries(size: Volumes) -> str:
    return ", ".join(f"{count:,} {split} queries" for split, count in size.queries.items() if count)


def _checkpoint_bytes(recipe: Recipe) -> float | None:
    """What the kept checkpoints take, where the student's configuration is at hand."""
    parameters = _parameters(recipe)
    if parameters is None:
        return None
    return parameters * (ADAM_BYTES_PER_PARAMETER * recipe.train.checkpoints.keep_last + 2 * 4)


def _parameters(recipe: Recipe) -> float | None:
    """Parameters of a BERT-like student by its config.json: embeddings, and 12 h² a layer; None if it isn't local."""
    from pathlib import Path

    from distill.config import resolve_model
    from distill.data.files import read_json

    path = Path(resolve_model(recipe.student.model)) / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    hidden = config.get("hidden_size") or config.get("dim")
    layers = recipe.student.layers or config.get("num_hidden_layers") or config.get("n_layers")
    if not (hidden and layers and config.get("vocab_size")):
        return None
    return float(config["vocab_size"]) * hidden + 12.0 * layers * hidden**2


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
