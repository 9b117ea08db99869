"""The import: a source's streams -> checked stores and judgements, in row numbers.

Memory does not grow with the corpus: texts pass through in record batches, ids are looked up by Arrow in memory-mapped
stores. Everything is written to a temporary folder and moved to its place when it is whole, the manifest last; a
refused or interrupted import leaves nothing that counts.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.config import Data, Recipe
from distill.data.arrow import RowReader, Shard, write_ipc
from distill.data.candidates import are_imported
from distill.data.files import remove_leftovers, storage_errors, sync
from distill.data.fingerprint import check_same, fingerprint
from distill.data.import_lists import import_lists, imported_teacher, list_fields, publish
from distill.data.import_stores import (
    Passages,
    count_empty,
    judgement_table,
    resolve_judgements,
    slices,
    spool_passages,
    spool_queries,
    write_passages,
)
from distill.data.judgements import JUDGEMENT_SCHEMA, from_triples
from distill.data.layout import SPLITS, RunFolder
from distill.data.manifest import FORMAT, Manifest, read_manifest, write_manifest
from distill.data.readers import open_source, source_fields
from distill.data.readers.base import Batches, Collection
from distill.data.texts import QUERY_SCHEMA, TextStore

log = logging.getLogger(__name__)


def import_fields(recipe: Recipe) -> dict[str, Any]:
    """What the stores depend on: the hashed part of the import's manifest. Reads the source's files whole."""
    data = recipe.data
    return {
        "stage": "import",
        "format": FORMAT,
        "seed": recipe.seed,
        "source": source_fields(data.source),
        "generate": data.generate.model_dump(mode="json") if data.generate else None,
        "train_queries": data.train_queries,
        "limit": data.limit,
        "imported_teacher": imported_teacher(recipe),  # who takes the scores that the source brings along
    }


def import_outputs(recipe: Recipe, folder: RunFolder) -> dict[Path, dict[str, Any]]:
    """Folder -> what it must have been made from: the stores, and the candidates and scores that a source brought."""
    fields = import_fields(recipe)
    outputs, teacher = {folder.data: fields}, imported_teacher(recipe)
    if are_imported(folder.candidates("train")):
        candidates, scores = list_fields(recipe, fields)
        outputs[folder.candidates("train")] = candidates
        if teacher is not None:
            outputs[folder.scores(teacher, "train")] = scores
    return outputs


def import_data(recipe: Recipe, folder: RunFolder) -> Manifest:
    """Read, check and write a recipe's data into the run folder; returns at once where that is done.

    Raises `DataError` (file, line, field) for input that can't be used, `FingerprintError` where the folder holds
    other data, `StorageError` for a full disk. Then nothing of the new data is in the folder.
    """
    fields = import_fields(recipe)
    done = read_manifest(folder.data)
    if done is not None:
        check_same(folder.data, done.fields, fields)
        return done
    with storage_errors(folder.data):
        folder.data.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.data, ".import-*")
    with storage_errors(folder.data), tempfile.TemporaryDirectory(prefix=".import-", dir=folder.data) as temporary:
        staged = RunFolder(Path(temporary) / "run")
        manifest = _import(recipe, fields, staged, Path(temporary) / "spool")
        done = read_manifest(folder.data)
        if done is not None:  # another machine was first
            check_same(folder.data, done.fields, fields)
            return done
        publish(staged, folder)
        for shard in manifest.shards:
            os.replace(staged.data / shard.name, folder.data / shard.name)
        sync(folder.data)
        write_manifest(folder.data, manifest)
    _report(manifest.counts, recipe.data)
    return manifest


@dataclass(frozen=True)
class _Split:
    """What one split will hold: rows of the source's own queries, then rows of generated ones; both ascending."""

    queries: TextStore | None
    judgements: pa.Table  # of all the source's queries
    own: np.ndarray
    generated: np.ndarray

    @property
    def final(self) -> np.ndarray:
        """int64 [queries in the source]: the row each gets in the split's store, -1 where it is left out."""
        final = np.full(len(self.queries) if self.queries is not None else 0, -1, np.int64)
        final[self.own] = np.arange(len(self.own))
        return final


def _import(recipe: Recipe, fields: dict[str, Any], staged: RunFolder, spool: Path) -> Manifest:
    """The whole import, written below temporary folders."""
    for path in (staged.data, spool / "source"):
        path.mkdir(parents=True)
    data, key, counts = recipe.data, fingerprint(fields), {}
    collection = open_source(data, recipe.seed, spool / "source")
    passages = spool_passages(collection.passages, data.generate, recipe.seed, spool)
    counts["passages"] = len(passages.store)
    counts["passages.empty"] = passages.empty

    splits: dict[str, _Split] = {}
    for split in SPLITS:
        generated = _generated_rows(passages, split)
        if split in collection.queries or generated.size:
            splits[split] = _choose(recipe, split, collection, passages, generated, spool, counts)
    kept = np.sort(np.concatenate([np.empty(0, np.int64), *(split.generated for split in splits.values())]))
    counts["passages.variants"] = len(kept)
    shards = [write_passages(passages, kept, staged.passages, key)]
    for name, split in splits.items():
        shards += _write_split(name, split, passages, kept, staged, key, counts)
    if "train" in collection.lists and "train" in splits:
        train = splits["train"]
        judged = from_triples(
            *(RowReader(staged.judgements("train")).table().column(name).to_numpy() for name in JUDGEMENT_SCHEMA.names)
        )
        counts |= import_lists(
            recipe, collection.lists["train"], train.queries, train.final, passages.store, judged, fields, staged, spool
        )
        if staged.candidates("train").exists() and train.generated.size:
            log.warning(
                "data.generate has no effect on training: the source brings its own negatives, which the "
                "generated queries lack"
            )
    shutil.rmtree(spool)
    return Manifest(fields, tuple(shards), counts)


def _generated_rows(passages: Passages, split: str) -> np.ndarray:
    """Rows of the generated queries that belong to a split."""
    if passages.generated is None or split == "test":
        return np.empty(0, np.int64)
    dev = passages.generated.table().column("dev").to_numpy()
    return np.flatnonzero(dev if split == "dev" else ~dev).astype(np.int64)


def _choose(
    recipe: Recipe,
    name: str,
    collection: Collection,
    passages: Passages,
    generated: np.ndarray,
    spool: Path,
    counts: dict[str, Any],
) -> _Split:
    """Read a split's queries and judgements, and pick the queries that stay: judged ones, within the recipe's limits.

    A training query needs a positive; for evaluation any judgement will do (without one, a query tells nothing).
    """
    queries, judgements, useful = None, JUDGEMENT_SCHEMA.empty_table(), np.empty(0, np.int64)
    if name in collection.queries:
        queries = spool_queries(collection.queries[name], spool / f"queries.{name}.arrow")
        judgements = resolve_judgements(collection.judgements.get(name, iter(())), queries, passages.store)
        asked, grades = judgements.column("query").to_numpy(), judgements.column("grade").to_numpy()
        useful = np.unique(asked[grades > 0] if name == "train" else asked)
        if len(useful) < len(queries):
            counts[f"queries.{name}.unjudged"] = len(queries) - len(useful)
    own_count = len(useful)
    chosen = np.arange(own_count + len(generated))
    limits = [
        limit
        for limit in (recipe.data.limit, recipe.data.train_queries if name == "train" else None)
        if limit is not None
    ]
    if limits and min(limits) < len(chosen):
        # the split's number in the seed: equal shuffles of two splits would be a strange coincidence
        shuffled = np.random.default_rng([recipe.seed, SPLITS.index(name)]).permutation(len(chosen))
        chosen = np.sort(shuffled[: min(limits)])
    return _Split(
        queries, judgements, useful[chosen[chosen < own_count]], generated[chosen[chosen >= own_count] - own_count]
    )


def _write_split(
    name: str, split: _Split, passages: Passages, kept: np.ndarray, staged: RunFolder, key: str, counts: dict[str, Any]
) -> list[Shard]:
    """A split's queries and judgements. A generated query is judged once: its variant answers it."""

    def batches() -> Batches:
        for rows in slices(split.own):
            yield _query_batch(split.queries.ids(rows), split.queries.texts(rows))
        for rows in slices(split.generated):
            taken = passages.generated.take(rows, ["query_id", "query_text"])
            yield pa.RecordBatch.from_arrays(taken.columns, schema=QUERY_SCHEMA)

    queries = write_ipc(staged.queries(name), QUERY_SCHEMA, batches(), {"fingerprint": key})
    final = split.final
    query, passage, grade = (split.judgements.column(column).to_numpy() for column in JUDGEMENT_SCHEMA.names)
    stays = final[query] >= 0 if len(query) else np.empty(0, bool)
    variants = len(passages.store) + np.searchsorted(kept, split.generated)
    table = judgement_table(
        np.concatenate([final[query[stays]], len(split.own) + np.arange(len(split.generated))]),
        np.concatenate([passage[stays], variants]),
        np.concatenate([grade[stays], np.ones(len(variants), np.int32)]),
    )
    judgements = write_ipc(staged.judgements(name), JUDGEMENT_SCHEMA, table.to_batches(), {"fingerprint": key})
    counts[f"queries.{name}"] = queries.rows
    counts[f"queries.{name}.empty"] = count_empty(RowReader(staged.queries(name)).table().column("text"))
    counts[f"queries.{name}.generated"] = len(split.generated)
    counts[f"judgements.{name}"] = judgements.rows
    return [queries, judgements]


def _query_batch(ids: list[str], texts: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(ids, pa.large_string()), pa.array(texts, pa.large_string())], schema=QUERY_SCHEMA
    )


def _report(counts: dict[str, Any], data: Data) -> None:
    log.info("imported %s", ", ".join(f"{value:,} {name}" for name, value in counts.items() if value))
    for name in ("passages", *(f"queries.{split}" for split in SPLITS)):
        if empty := counts.get(f"{name}.empty"):
            log.warning("%d of %d %s have no text; they are kept", empty, counts[name], name)
        if unjudged := counts.get(f"{name}.unjudged"):
            log.warning(
                "%d %s have no %s and are left out",
                unjudged,
                name,
                "positive" if name == "queries.train" else "judgement",
            )
    if not counts.get("queries.train"):
        log.warning(
            "there are no training queries: %s",
            "none could be generated"
            if data.generate
            else "the source has no judgements for training; data.generate makes queries from the passages",
        )
