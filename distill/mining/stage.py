"""Stage 2, mine: candidate passages for every judged query; `ray_jobs.stage` makes the stage of it."""

from __future__ import annotations

from functools import partial
from typing import Any

from distill.config import Miner, dump_set
from distill.mining.rankings import check_miner, ranking_fields
from distill.planning.case import Case, Cost, StageCost, encoded, searched
from distill.planning.volumes import BYTES_PER_PAIR
from distill.retrieval.bm25_settings import bm25_fields
from distill.run.layout import SPLITS
from distill.run.manifest import FORMAT, read_manifest, require_manifest
from distill.run.model_ref import ModelRef
from distill.run.output import Output
from distill.run.run import Run
from distill.run.stage import Reader
from distill.run.truncation import Truncation
from distill.store.candidates import are_imported
from distill.store.token_counts import count_sides


def mining_fields(run: Run, split: str) -> dict[str, Any]:
    """Fingerprint inputs of a split's candidates."""
    recipe = run.recipe
    miners = {name: _miner_fields(run, miner) for name, miner in recipe.mine.miners.items()}
    fields: dict[str, Any] = {
        "stage": "mine",
        "format": FORMAT,
        "split": split,
        "data": require_manifest(run.folder.data, "import").fingerprint,
        "shard_queries": recipe.mine.shard_queries,
        "precision": recipe.mine.precision,
    }
    searched = list(recipe.mine.miners.values())
    if any(miner.kind == "bm25" for miner in (searched if split == "train" else searched[:1])):
        fields |= bm25_fields(run)
    if split == "train":
        return {**fields, "miners": miners, "order": list(miners), "seed": recipe.seed}
    first = next(iter(miners))
    # whatever the number of negatives taken from it
    of_ranking = ("kind", "model", "files", "systems", "search", "seismic")
    used = {key: value for key, value in miners[first].items() if key in of_ranking}
    return {**fields, "miner": first, **used, "rerank_depth": recipe.mine.rerank_depth}


def _miner_fields(run: Run, miner: Miner) -> dict[str, Any]:
    fields = dump_set(miner, exclude={"model", "revision", "path", "systems"})
    if miner.kind == "run":
        return {**fields, **ranking_fields(miner)}
    return {**fields, "model": None if miner.model is None else run.model(miner.model, miner.revision).identity()}


def check_data(run: Run) -> None:
    """Raise `DataError` for rankings that are missing or cannot be read, unless the candidates are there."""
    if read_manifest(run.folder.candidates("train")) is None:
        for name, miner in run.recipe.mine.miners.items():
            if miner.kind == "run":
                check_miner(name, miner)


def outputs(run: Run) -> list[Output]:
    """The candidates of every judged split (without a student, of training alone), but those the source brought."""
    folder = run.folder
    require_manifest(folder.data, "import")
    evaluated = run.recipe.student is not None
    splits = [split for split in SPLITS if split == "train" or (evaluated and folder.judgements(split).exists())]
    return [
        Output(folder.candidates(split), partial(mining_fields, run, split), key=(split,))
        for split in splits
        if not are_imported(folder.candidates(split))
    ]


def readers(run: Run) -> dict[str, Reader]:
    """What the miners' models do not read; their lengths are saved with them."""
    return {
        f"miner {name}": partial(_truncation, run, name, run.model(miner.model, miner.revision))
        for name, miner in run.recipe.mine.miners.items()
        if miner.model is not None
    }


def _truncation(run: Run, name: str, model: ModelRef) -> list[Truncation]:
    from distill.student.base import special_tokens  # imports torch
    from distill.student.text_reader import text_reader

    reader = text_reader(model)
    special = sum(map(len, special_tokens(reader.tokenizer)))
    sides = count_sides(
        run.folder, reader.tokenizer, run.recipe.seed, reader.prompts, {"query": special, "passage": special}
    )
    return [
        counts.truncation(f"miner {name}", texts, None, limit, limit)
        for side, kinds in sides.items()
        if (limit := reader.limits[side]) is not None
        for texts, counts in kinds.items()
    ]


def cost(case: Case) -> StageCost:
    """Models encode the collection; BM25 and SPLADE search it on processor cores. Given rankings cost little."""
    recipe, size, counts = case.recipe, case.size, case.counts
    if recipe.cluster.address is None:  # without a Ray cluster the stage's Slurm job has one machine
        case = case.on_one_machine()
    parts: list[Cost] = []
    for number, (name, miner) in enumerate(recipe.mine.miners.items()):
        if miner.encodes:
            parts.append(encoded(case, f"{name}: encode", miner))
        if miner.kind in ("bm25", "splade"):
            queries = sum(size.queries.values()) if number == 0 else size.queries["train"]
            parts.append(searched(case, f"{name}: search", queries))
    work = (
        f"{', '.join(recipe.mine.miners)}: up to {counts.negatives} negatives for each of {size.queries['train']:,} "
        f"training queries, {counts.shards:,} shards"
    )
    return StageCost(work, counts.pairs * BYTES_PER_PAIR, parts)
