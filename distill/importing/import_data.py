"""The import: from a source's streams to checked stores and judgements, in row numbers.

Memory does not grow with the corpus: texts pass through in record batches, and Arrow resolves ids in memory-mapped
stores. Everything is written to a temporary folder and moved to its place when complete, the manifest last; a refused
or interrupted import leaves nothing that counts.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.config import AUTO, Data, Recipe
from distill.errors import DataError
from distill.importing.generated import Enough, GeneratedQueries, generate_queries
from distill.importing.identity import write_copies, write_own_documents
from distill.importing.lists import publish, resolve_lists, write_lists
from distill.importing.query_log import LoggedQueries, choose_training, leave_out, read_log
from distill.importing.readers import open_source
from distill.importing.readers.base import Batches, Collection
from distill.importing.readers.query_log import NOTHING_MINED
from distill.importing.report import report
from distill.importing.splitting import words_of
from distill.importing.stores import (
    Passages,
    empty_rows,
    judgement_table,
    quoted_ids,
    resolve_judgements,
    sample_below,
    slices,
    spool_passages,
    spool_queries,
    write_passages,
)
from distill.run.files import remove_leftovers, storage_errors, sync
from distill.run.fingerprint import fingerprint
from distill.run.layout import SPLITS, RunFolder
from distill.run.manifest import Manifest, Shard
from distill.run.output import Output
from distill.run.run import Run
from distill.store.arrow import RowReader, write_ipc
from distill.store.identity import equal_queries, text_digests
from distill.store.judgements import JUDGEMENT_SCHEMA, load_judgements
from distill.store.languages import language_of_store
from distill.store.scripts import unspaced_texts
from distill.store.texts import QUERY_SCHEMA, TextStore

log = logging.getLogger(__name__)

_SAMPLE = 1000  # passages looked at for their script
_LENGTHS = 10_000  # queries whose words are counted


def import_data(run: Run, output: Output) -> Manifest:
    """Read, check and write a recipe's data into the run folder; `output` is the folder of the stores.

    Raises `DataError` (file, line, field) for unusable input, `FingerprintError` if the folder holds other data,
    `StorageError` for a full disk. After an error, none of the new data is in the folder.
    """
    home = run.folder.data
    with storage_errors(home):
        home.mkdir(parents=True, exist_ok=True)
    remove_leftovers(home, ".import-*")
    with storage_errors(home), tempfile.TemporaryDirectory(prefix=".import-", dir=home) as temporary:
        staged = RunFolder(Path(temporary) / "run")
        shards, counts = _import(run.recipe, output.fields, staged, Path(temporary) / "spool")
        if (done := output.finished()) is not None:  # another machine was first
            return done
        publish(staged, run.folder)
        for shard in shards:
            os.replace(staged.data / shard.name, home / shard.name)
        sync(home)
        manifest = output.finish(shards, counts)
    report(manifest.counts, run.recipe.data)
    return manifest


@dataclass(frozen=True)
class _Own:
    """The source's own queries of one split. `judged`: rows of those with a judgement; for training, a positive."""

    queries: TextStore | None
    judgements: pa.Table
    judged: np.ndarray


@dataclass(frozen=True)
class _Split:
    """The queries of one split: rows of the source's own queries, of generated ones, and of a log; all ascending."""

    queries: TextStore | None  # all of the source's
    judgements: pa.Table  # of all the source's queries
    own: np.ndarray
    generated: np.ndarray
    logged: np.ndarray  # indices into `LoggedQueries`

    @property
    def final(self) -> np.ndarray:
        """int64 [queries of the source]: the row of each in the split's store, -1 if it is left out."""
        final = np.full(len(self.queries) if self.queries is not None else 0, -1, np.int64)
        final[self.own] = np.arange(len(self.own))
        return final


def _import(
    recipe: Recipe, fields: dict[str, Any], staged: RunFolder, spool: Path
) -> tuple[list[Shard], dict[str, Any]]:
    """Run the whole import below temporary folders; returns the files of the stores, and counts."""
    for path in (staged.data, spool / "source"):
        path.mkdir(parents=True)
    key = fingerprint(fields)
    counts: dict[str, Any] = {}
    collection = open_source(recipe.data, recipe.seed, spool / "source")
    if recipe.data.quote_ids:
        collection = _with_quoted_ids(collection)
    passages = spool_passages(collection.passages, spool)
    if recipe.data.generate is not None:
        sample = passages.store.texts(np.arange(min(len(passages.store), _SAMPLE)))
        if 2 * (found := unspaced_texts(sample)) > len(sample):
            log.warning(
                "%d of the first %d passages are in a script without blanks between words (Chinese, Japanese, Thai, "
                "...); data.generate counts words between blanks and makes few or no queries from them",
                found,
                len(sample),
            )
    language = language_of_store(passages.store)
    counts["language"] = str(language)
    counts["passages"] = len(passages.store)
    counts["passages.empty"] = len(passages.empty)
    counts["passages.repeated"] = passages.repeated

    own = {name: _read_own(recipe, name, collection, passages, spool, counts) for name in SPLITS}
    options, log_queries = recipe.data.generate, None
    if recipe.data.query_log is not None:
        log_queries = read_log(recipe.data, collection.unread, spool, counts)
    lengths = _query_lengths(own, log_queries) if options is not None and options.mixes else None
    generated = generate_queries(passages.store, options, recipe.seed, spool, lengths, _enough(recipe.data))
    if options is not None and generated.examined < len(passages.store):
        counts["passages.examined"] = generated.examined
    counts |= {f"passages.without_query.{reason}": count for reason, count in sorted(generated.without.items())}
    made = {name: generated.of_split(name) for name in SPLITS}
    names = [name for name in SPLITS if name in collection.queries or made[name].size]
    logged = None
    if log_queries is not None:
        names = list(dict.fromkeys(["train", *names]))
        logged = leave_out(log_queries, {name: _texts(name, own[name], generated) for name in reversed(names)}, counts)
    splits = {name: _choose(recipe, name, own[name], made[name], logged, counts) for name in names}
    variants = np.sort(np.concatenate([np.empty(0, np.int64), *(split.generated for split in splits.values())]))
    counts["passages.variants"] = len(variants)
    shards = [write_passages(passages, generated, variants, staged.passages, key)]
    for name, split in splits.items():
        shards += _write_split(name, split, passages, generated, variants, logged, staged, key, counts)
    counts |= _shared_queries(staged, splits)
    if "train" in splits and (equal := equal_queries(TextStore.open(staged.queries("train")))):
        counts["queries.train.equal"] = sum(map(len, equal))
    shards += _write_identity(recipe, staged, list(splits), key, counts)

    train = splits.get("train")
    if "train" in collection.lists and (train is None or train.queries is None):
        lists_unread = sum(batch.num_rows for batch in collection.lists["train"])
        collection.unread.add("lists of scores for the split", "train", lists_unread)  # it has no judgements
    elif train is not None and train.queries is not None and "train" in collection.lists:
        lists = resolve_lists(
            collection.lists["train"],
            train.queries,
            train.final,
            passages.store,
            spool / "lists.arrow",
            drop_unknown=recipe.data.on_missing == "drop",
        )
        counts |= write_lists(recipe, lists, fields, staged, passages.empty)
        if staged.candidates("train").exists() and train.generated.size:
            log.warning(
                "data.generate has no effect on training: the source brings its own negatives, which the "
                "generated queries lack"
            )
        if staged.candidates("train").exists() and train.logged.size:
            raise DataError(NOTHING_MINED, field="data.query_log")
    if collection.unread:
        counts["unread"] = dict(sorted(collection.unread.items()))
    shutil.rmtree(spool)
    return shards, counts


def _with_quoted_ids(collection: Collection) -> Collection:
    def quoted(streams: dict[str, Batches], *columns: str) -> dict[str, Batches]:
        return {split: quoted_ids(batches, columns) for split, batches in streams.items()}

    return Collection(
        passages=quoted_ids(collection.passages, ("id",)),
        queries=quoted(collection.queries, "id"),
        judgements=quoted(collection.judgements, "query_id", "passage_id"),
        lists=quoted(collection.lists, "query_id", "passage_ids"),
        unread=collection.unread,
    )


def _write_identity(
    recipe: Recipe, staged: RunFolder, splits: list[str], key: str, counts: dict[str, Any]
) -> list[Shard]:
    """Write which passages are copies, and which are queries themselves. Adds to `counts`."""
    passages = TextStore.open(staged.passages)
    shards = [write_copies(passages, staged.copies, key)]
    counts["passages.copies"] = shards[0].rows
    for split in splits:
        queries, judgements = TextStore.open(staged.queries(split)), load_judgements(staged, split)
        path = staged.own_documents(split)
        shard = write_own_documents(passages, queries, judgements, recipe.data.own_document, path, key)
        shards.append(shard)
        counts[f"queries.{split}.own_documents"] = shard.rows
    return shards


def _shared_queries(staged: RunFolder, splits: Iterable[str]) -> dict[str, int]:
    """Count the development and test queries whose text is in another split, too."""
    digests = {split: np.unique(text_digests(TextStore.open(staged.queries(split)))) for split in splits}
    pairs = {("dev", "train"): "queries.dev.in_training", ("test", "train"): "queries.test.in_training"}
    pairs["test", "dev"] = "queries.test.in_development"
    return {
        name: len(np.intersect1d(digests[first], digests[second], assume_unique=True))
        for (first, second), name in pairs.items()
        if first in digests and second in digests
    }


def _read_own(
    recipe: Recipe, name: str, collection: Collection, passages: Passages, spool: Path, counts: dict[str, Any]
) -> _Own:
    """Read a split's queries and judgements. Adds to `counts`.

    A training query needs a positive; for evaluation any judgement suffices.
    """
    if name not in collection.queries:
        return _Own(None, JUDGEMENT_SCHEMA.empty_table(), np.empty(0, np.int64))
    queries, counts[f"queries.{name}.repeated"] = spool_queries(
        collection.queries[name], spool / f"queries.{name}.arrow"
    )
    judgements, counts[f"judgements.{name}.dropped"] = resolve_judgements(
        collection.judgements.get(name, iter(())),
        queries,
        passages.store,
        drop_unknown=recipe.data.on_missing == "drop",
    )
    if name == "train":
        judgements = _with_texts(judgements, queries, passages.empty, counts)
    query, grade = judgements.column("query").to_numpy(), judgements.column("grade").to_numpy()
    judged = np.unique(query[grade > 0] if name == "train" else query)
    options = recipe.data.query_log
    in_log = name == "train" and options is not None and options.path is None  # those without any judgement
    if unused := (len(np.unique(query)) if in_log else len(queries)) - len(judged):
        counts[f"queries.{name}.unjudged"] = unused
    return _Own(queries, judgements, judged)


def _with_texts(
    judgements: pa.Table, queries: TextStore, empty_passages: np.ndarray, counts: dict[str, Any]
) -> pa.Table:
    """Leave out what there is nothing to learn from: empty queries, and positives without a text. Adds to `counts`."""
    query, passage, grade = (judgements.column(name).to_numpy() for name in JUDGEMENT_SCHEMA.names)
    empty_queries = empty_rows(RowReader(queries.path).table().column("text"))
    without_query = np.isin(query, empty_queries)
    without_passage = (grade > 0) & np.isin(passage, empty_passages) & ~without_query
    if without_query.any():
        counts["queries.train.without_text"] = len(np.unique(query[without_query]))
    if without_passage.any():
        counts["judgements.train.without_text"] = int(without_passage.sum())
    return judgements.filter(pa.array(~without_query & ~without_passage))


def _limits(data: Data, split: str) -> list[int]:
    """Return the recipe's limits on the number of a split's queries."""
    assert data.train_queries != AUTO  # see `distill.pipeline.resolve.settle`
    limits = [data.limit, data.train_queries if split == "train" else None]
    return [limit for limit in limits if limit is not None]


def _enough(data: Data) -> Enough | None:
    """Return how many generated queries can be read at most; None without a limit."""
    train = min(_limits(data, "train"), default=None)
    return None if train is None else Enough(train, data.limit or 0)


def _texts(name: str, own: _Own, generated: GeneratedQueries | None = None) -> Iterator[list[str]]:
    """Yield the texts of a split's queries, in lists; for evaluation also of those without judgements."""
    if own.queries is not None:
        for rows in slices(own.judged if name == "train" else np.arange(len(own.queries))):
            yield own.queries.texts(rows)
    if generated is not None:
        for rows in slices(generated.of_split(name)):
            yield generated.rows.take(rows, ["query_text"]).column(0).to_pylist()


def _query_lengths(own: dict[str, _Own], log: LoggedQueries | None) -> np.ndarray | None:
    """Return the numbers of words of the source's judged training queries, ascending; of many, a part.

    Without any, those of the log's queries that are in no split; None without a log.
    """
    train = own["train"]
    if train.queries is not None and train.judged.size:
        texts = train.queries.texts(_evenly(train.judged))
    elif log is not None:
        usable = leave_out(log, {name: _texts(name, own[name]) for name in own}, {})
        texts = usable.texts(_evenly(np.arange(len(usable))))
    else:
        return None
    lengths = np.array([len(words_of(text)) for text in texts], np.int64)
    return np.sort(lengths[lengths > 0]) if lengths.any() else None


def _evenly(rows: np.ndarray) -> np.ndarray:
    """Return at most `_LENGTHS` of the rows, at equal distances."""
    return rows[:: max(1, -(-len(rows) // _LENGTHS))]


def _choose(
    recipe: Recipe, name: str, own: _Own, generated: np.ndarray, logged: LoggedQueries | None, counts: dict[str, Any]
) -> _Split:
    """Choose judged and generated queries, and for training those of a log, within the limits. Adds to `counts`."""
    limits, seed, chosen = _limits(recipe.data, name), [recipe.seed, SPLITS.index(name)], np.empty(0, np.int64)
    available = len(own.judged) + len(generated)
    if name == "train" and logged is not None:
        sample, chosen = choose_training(recipe.data, available, logged, limits, seed)
    else:
        sample = sample_below(available, limits, seed)
    if len(sample) < available:
        counts[f"queries.{name}.left_out"] = available - len(sample)
    is_own = sample < len(own.judged)
    own_rows, generated_rows = own.judged[sample[is_own]], generated[sample[~is_own] - len(own.judged)]
    return _Split(own.queries, own.judgements, own_rows, generated_rows, chosen)


def _write_split(
    name: str,
    split: _Split,
    passages: Passages,
    made: GeneratedQueries,
    all_variants: np.ndarray,
    logged: LoggedQueries | None,
    staged: RunFolder,
    key: str,
    counts: dict[str, Any],
) -> list[Shard]:
    """Write a split's queries and judgements, and how often the queries of a log were asked.

    The one judgement of a generated query is of its passage's variant; a query of a log has none.
    """
    store = split.queries

    def batches() -> Batches:
        for rows in slices(split.own):
            assert store is not None  # or there would be no own queries
            yield _query_batch(store.ids(rows), store.texts(rows))
        for rows in slices(split.generated):
            taken = made.rows.take(rows, ["query_id", "query_text"])
            yield pa.RecordBatch.from_arrays(taken.columns, schema=QUERY_SCHEMA)
        if logged is not None:
            yield from logged.batches(split.logged)

    queries = write_ipc(staged.queries(name), QUERY_SCHEMA, batches(), {"fingerprint": key})
    query, passage, grade = (split.judgements.column(column).to_numpy() for column in JUDGEMENT_SCHEMA.names)
    final = split.final[query] if len(query) else np.empty(0, np.int64)
    is_kept = final >= 0
    variants = len(passages.store) + np.searchsorted(all_variants, split.generated)
    table = judgement_table(
        np.concatenate([final[is_kept], len(split.own) + np.arange(len(split.generated))]),
        np.concatenate([passage[is_kept], variants]),
        np.concatenate([grade[is_kept], np.ones(len(variants), np.int32)]),
    )
    judgements = write_ipc(staged.judgements(name), JUDGEMENT_SCHEMA, table.to_batches(), {"fingerprint": key})
    assert queries is not None and judgements is not None  # only exclusive writes give None
    counts[f"queries.{name}"] = queries.rows
    counts[f"queries.{name}.empty"] = len(empty_rows(RowReader(staged.queries(name)).table().column("text")))
    counts[f"queries.{name}.generated"] = len(split.generated)
    counts[f"judgements.{name}"] = judgements.rows
    if name != "train" or logged is None:
        return [queries, judgements]
    counts["queries.train.logged"] = len(split.logged)
    counts["query_log.not_drawn"] = len(logged) - len(split.logged)
    others = len(split.own) + len(split.generated)
    return [queries, judgements, logged.write_counts(split.logged, others, staged.query_counts, key)]


def _query_batch(ids: list[str], texts: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(ids, pa.large_string()), pa.array(texts, pa.large_string())], schema=QUERY_SCHEMA
    )
