"""Recognise what a folder or file holds, for `distill init`: the data section of a recipe, and lines that describe it.

Also estimates the sizes of a source, for a dry run before the import.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill import config
from distill.errors import DataError
from distill.importing.phrases import DocumentFrequencies
from distill.importing.querygen import generate
from distill.importing.readers.base import (
    Collection,
    Unread,
    find_file,
    lines_of,
    reading,
    require_file,
    unread_unit,
)
from distill.importing.readers.beir import beir_qrels, queries_files, read_beir
from distill.importing.readers.jsonl import parquet_file, parse_all, raw_rows
from distill.importing.readers.kinds import ROW_SUFFIXES, check_kind, place_of
from distill.importing.readers.layouts import Row, RowParser
from distill.importing.readers.msmarco import msmarco_qrels, read_msmarco, text_columns_of, unjudged_queries
from distill.importing.readers.qrels import find_qrels, judged_queries, qrels_files
from distill.importing.readers.query_log import NOTHING_MINED, read_query_log
from distill.importing.readers.tables import cells_of, dialect_of, is_table
from distill.store.scripts import split_unspaced
from distill.store.texts import passage_text

_COUNT_BYTES = 1 << 28  # the rows of larger files are estimated, not counted
_HEAD_ROWS = 10_000  # parsed of a file of rows, to estimate its distinct queries and the range of its scores
_SAMPLE = 500  # passages, queries or rows from which the lengths of texts are estimated
_WINDOW = 160  # words, in 256 tokens even of all capitals
_TOKENS_PER_WORD = 1.3  # English, WordPiece
_TOKENS_PER_CHARACTER = 0.8  # of Chinese, Japanese, Thai, ...; WordPiece makes one token of each Chinese character
_SPLIT_NAMES: dict[config.Split, tuple[str, ...]] = {  # ours -> usual names, in order of preference
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val", "dev.small"),
    "test": ("test", "testing", "dev.small", "dev"),
}


@dataclass(frozen=True)
class Found:
    """`data`: the recipe's section; `lines`: a description of the source; `scores`: the lowest and highest score of
    rows that bring scores with their negatives; `negatives`: whether rows bring negatives, so that none are mined."""

    data: config.Data
    lines: tuple[str, ...]
    scores: tuple[float, float] | None = None
    negatives: bool = False


def sniff(path: Path) -> Found:
    """Recognise BEIR and MS MARCO folders, saved Hugging Face datasets, and files of rows (JSONL, CSV, TSV, Parquet).

    Raises `DataError`, with what was looked for, if nothing is recognised.
    """
    path = Path(path)
    with reading(path):
        return _sniff(path)


def with_query_log(found: Found, path: Path) -> Found:
    """Add a file of queries without judgements.

    Raises `DataError` if its first rows cannot be read, and for a source whose negatives are not mined.
    """
    if found.negatives:
        raise DataError(NOTHING_MINED, path=path)
    data = found.data.model_copy(update={"query_log": config.QueryLog(path=path)})
    unread = Unread()
    first = next(read_query_log(data, unread), None)
    if first is None:
        raise DataError("there are no queries in this file", path=path)
    lines = [f"query log: {_rows_in(path)} rows in {path.name}, trained on without judgements"]
    lines += [f"not read: {what} ({rows:,} of the first rows)" for what, rows in unread.items()]
    sizes = found.data.sizes
    if sizes is not None:
        sizes = sizes.model_copy(update={"queries": _with_logged(sizes.queries, data)})
    return replace(found, data=data.model_copy(update={"sizes": sizes}), lines=(*found.lines, *lines))


def _sniff(path: Path) -> Found:
    place = place_of(path)
    if place is not None:
        readers = {"beir": _beir, "msmarco": _msmarco, "huggingface": _saved_dataset, "jsonl": _rows}
        return readers[place.kind](place.path)
    if path.is_dir():
        content = ", ".join(file.name for file in sorted(path.iterdir())[:8]) or "nothing"
        raise DataError(
            "not recognised; looked for corpus.jsonl (BEIR), collection.tsv (MS MARCO), a dataset saved "
            f"by `datasets`, or one JSONL, CSV, TSV or Parquet file. The folder has: {content}",
            path=path,
        )
    if not path.exists():
        raise DataError("no such file or folder", path=path)
    raise DataError(f"not recognised; expected a folder, or a file named {', '.join(ROW_SUFFIXES)} (or .gz)", path=path)


def _beir(path: Path) -> Found:
    splits = _splits(path / "qrels", "{}")
    corpus, queries = require_file(path, "corpus.jsonl"), find_file(path, "queries.jsonl")
    if queries is None and splits:
        raise DataError("there are judgements in qrels/, but queries.jsonl is missing beside corpus.jsonl", path=path)
    lines = [f"BEIR folder: {_rows_in(corpus)} passages, {_rows_in(queries) if queries else 'no'} queries"]
    used = {split: file for split, name in splits.items() if (file := find_qrels(path / "qrels", name)) is not None}
    lines += [f"{split}: judgements in qrels/{file.name}, {_judgements(file):,} lines" for split, file in used.items()]
    others = [file for file in sorted(path.glob("qrels/*")) if file not in used.values() and file.is_file()]
    lines += [
        f"not read: qrels/{file.name} (its name is no usual one of a split; name it in data.source.splits)"
        if _judgements(file)
        else f"not read: qrels/{file.name}, which has no judgements"
        for file in others
    ]
    options, query_log = None, None
    if "train" not in splits:
        options = config.GenerateQueries(kinds=("title", "sentence", "phrases", "span"), window=_WINDOW)
        lines.append("no judgements for training: training queries will be made from titles, sentences and key phrases")
    if queries is not None and (unjudged := _unjudged(queries, qrels_files(path / "qrels"))):
        query_log = config.QueryLog() if "train" not in splits else None
        lines.append(
            f"{unjudged:,} queries without judgements: "
            + ("trained on, too" if query_log else "`query_log: {}` in the section data trains on them, too")
        )
    if "test" not in splits:
        lines.append(
            "no judgements for a test split: evaluation is on the development queries"
            if "dev" in splits or options is not None
            else "no judgements for a test or development split: evaluation is on the training queries"
        )
    data = config.Data(
        source=config.Beir(kind="beir", path=path, splits=splits),
        generate=options,
        query_log=query_log,
        train_queries=None if options is None else config.AUTO,
    )
    return Found(data.model_copy(update={"sizes": sizes_of(data)}), tuple(lines))


def _msmarco(path: Path) -> Found:
    splits = _splits(path, "qrels.{}")
    collection = require_file(path, "collection.tsv")
    columns = text_columns_of(collection)
    lines = [f"MS MARCO folder: {_rows_in(collection)} passages"]
    if columns.title is not None or columns.has_header:
        lines.append(f"the columns of {collection.name}: {', '.join(columns.names)}")
    lines += [f"{split}: queries and judgements of {name}" for split, name in splits.items()]
    if not splits:
        raise DataError("has collection.tsv, but no qrels.<split>.tsv with judgements", path=path)
    data = config.Data(source=config.MsMarco(kind="msmarco", path=path, splits=splits))
    return Found(data.model_copy(update={"sizes": sizes_of(data)}), tuple(lines))


def _splits(folder: Path, pattern: str) -> dict[config.Split, str]:
    """Map our splits to their names in the files of judgements; a file without any judgement is no split."""
    splits: dict[config.Split, str] = {}
    for split, names in _SPLIT_NAMES.items():
        for name in names:
            file = find_qrels(folder, pattern.format(name))
            if file is not None and _judgements(file):
                splits[split] = name
                break
    return splits


def _judgements(path: Path) -> int:
    return sum(1 for _ in judged_queries(path))


def _unjudged(queries: Path, qrels: list[Path]) -> int:
    """The number of a file's queries that no file of judgements names."""
    return max(0, _count(queries)[1] - len({query for file in qrels for query in judged_queries(file)}))


def _saved_dataset(path: Path) -> Found:
    """A dataset saved by `datasets`, or a folder of files that it takes for one table."""
    from distill.importing.readers.huggingface import dataset_head  # slow to import

    source = config.HuggingFace(kind="huggingface", dataset=str(path))
    splits, rows = dataset_head(source, _HEAD_ROWS)
    source = source.model_copy(update={"split": source.split if source.split in splits else next(iter(splits))})
    lines = [
        f"a dataset saved by `datasets`, or a folder of its files: {splits[source.split]:,} rows in {source.split!r}"
    ]
    lines += [f"not read: the split {name!r}, {size:,} rows" for name, size in splits.items() if name != source.split]
    return _found_rows(source, _parsed_head(source, rows, path), splits[source.split], lines)


def _rows(path: Path) -> Found:
    source = config.Jsonl(kind="jsonl", path=path)
    lines = [f"{_rows_in(path)} rows in one file", *([str(dialect_of(path))] if is_table(path) else [])]
    return _found_rows(source, _head(source), _count(path)[1], lines)


@dataclass(frozen=True)
class _Head:
    """The first rows of a source, and the parser that read them."""

    rows: list[Row]
    parser: RowParser

    @property
    def layout(self) -> str:
        """The layout of all the rows; `auto` if they differ."""
        layouts = [name for name, count in self.parser.layouts.items() if count]
        return layouts[0] if len(layouts) == 1 else "auto"


def _found_rows(source: config.Jsonl | config.HuggingFace, head: _Head, count: int, lines: list[str]) -> Found:
    queries = round(count * len({row.query for row in head.rows}) / len(head.rows))
    held_out = {"test_queries": min(500, queries // 10 or int(queries > 2)), "dev_queries": min(200, queries // 20)}
    source = source.model_copy(update={"layout": head.layout, **held_out})
    with_negatives = [row for row in head.rows if row.positives < len(row.passages)]
    scored = sum(row.scores is not None for row in head.rows)
    layout = head.layout if with_negatives else "pairs"
    lines += [
        f"of the layout {layout!r}: {len(with_negatives):,} of the first {len(head.rows):,} rows have negatives, "
        f"{scored:,} have scores",
        *(
            f"not read: {what} ({count:,} {unread_unit(what)} of the first {head.parser.rows:,} rows)"
            for what, count in head.parser.unread.items()
        ),
        f"{held_out['test_queries']} queries are held out for test, {held_out['dev_queries']} for development",
    ]
    numbers = [score for row in head.rows for score in row.scores or () if not math.isnan(score)]
    scores = None
    if numbers and with_negatives:  # the import uses scores only with negatives
        scores = min(numbers), max(numbers)
        lines.append(
            f"scores from {scores[0]:.4g} to {scores[1]:.4g} in the first {len(head.rows):,} rows: they take the place "
            "of teachers"
        )
    sizes = _sizes_of_rows(source, head, count)
    return Found(config.Data(source=source, sizes=sizes), tuple(lines), scores, bool(with_negatives))


def sizes_of(data: config.Data) -> config.Sizes | None:
    """Estimate the sizes of a source before the import has counted; None for sources that are not in local files.

    Upper bounds: the number of generated queries (without `window`), and of the passages of rows, which count as often
    as they occur.
    """
    source, options = data.source, data.generate
    check_kind(source)
    if isinstance(source, config.Jsonl):
        sizes = _sizes_of_rows(source, _head(source), _count(source.path)[1])
        return sizes.model_copy(update={"queries": _with_logged(sizes.queries, data)})
    if isinstance(source, config.Beir):
        corpus, qrels, collection = (
            require_file(source.path, "corpus.jsonl"),
            beir_qrels(source),
            read_beir(source),
        )
    elif isinstance(source, config.MsMarco):
        corpus = require_file(source.path, "collection.tsv")
        qrels, collection = msmarco_qrels(source), read_msmarco(source)
    else:
        return None
    passages = _count(corpus)[1]
    judged = {split: _judged_queries(path) for split, path in qrels.items()}
    texts, queries, made = _first_texts(collection, options)
    generated = passages * options.per_passage if options else 0
    if options and options.window and texts:  # long passages give more
        generated = math.ceil(passages * made / len(texts))
    generated_dev = round(generated * options.dev_share) if options else 0
    return config.Sizes.model_validate(
        {
            "passages": passages,
            "queries": _with_logged(judged.get("train", 0) + generated - generated_dev, data),
            "dev_queries": judged.get("dev", 0) + generated_dev,
            "test_queries": judged.get("test", 0),
            **_mean_tokens(texts, queries),
        }
    )


def _with_logged(others: int, data: config.Data) -> int:
    """The number of training queries with those of `data.query_log`: an upper bound, as a log repeats its queries."""
    log, source = data.query_log, data.source
    if log is None:
        return others
    logged = 0
    if log.path is not None:
        logged = _count(log.path)[1]
    elif isinstance(source, config.Beir):
        queries, *qrels = queries_files(source)
        logged = _unjudged(queries, qrels)
    elif isinstance(source, config.MsMarco):
        logged = sum(batch.num_rows for batch in unjudged_queries(source))
    logged = min(logged, log.limit or logged)
    return others + (logged if log.share is None else min(logged, round(others / (1 - log.share)) - others))


def _sizes_of_rows(source: config.Jsonl | config.HuggingFace, head: _Head, count: int) -> config.Sizes:
    sample = head.rows[:_SAMPLE]
    distinct = round(count * len({row.query for row in head.rows}) / len(head.rows))
    queries = distinct - source.dev_queries - source.test_queries
    passages = sum(len(row.passages) for row in head.rows) / len(head.rows)
    return config.Sizes.model_validate(
        {
            "passages": round(count * passages),
            "queries": max(0, queries),
            "dev_queries": source.dev_queries,
            "test_queries": source.test_queries,
            **_mean_tokens([text for row in sample for text in row.passages], [row.query for row in sample]),
        }
    )


def _head(source: config.Jsonl) -> _Head:
    """The first ten thousand rows of a file, parsed."""
    return _parsed_head(source, itertools.islice(raw_rows(source.path), _HEAD_ROWS), source.path)


def _parsed_head(
    source: config.Jsonl | config.HuggingFace, rows: Iterable[tuple[int, dict[str, Any]]], path: Path
) -> _Head:
    layout = "auto" if source.layout == "beir" else source.layout
    parser = RowParser(layout, source.columns, path, first_is_positive=source.first_is_positive)
    return _Head([row for _, row in parse_all(parser, iter(rows))], parser)


def _first_texts(collection: Collection, options: config.GenerateQueries | None) -> tuple[list[str], list[str], int]:
    """Sample passages and queries: queries generated from these passages, else those of the first split with any.

    Also returns the number of queries generated.
    """
    batch = next(collection.passages, None)
    if batch is None:
        return [], [], 0
    batch = batch.slice(0, _SAMPLE)
    passages = passage_text(batch.column("title"), batch.column("text")).to_pylist()
    queries: list[str] = []
    if options is not None:
        frequencies = DocumentFrequencies()
        frequencies.add(passages)
        for row in batch.to_pylist():
            generated = generate(row["id"], row["title"], row["text"], options, 0, frequencies)
            queries += [query.query for query in generated]
    made = len(queries)
    if not queries:
        batches = (batch for split in collection.queries.values() for batch in split if batch.num_rows)
        if (first := next(batches, None)) is not None:
            queries = first.column("text").slice(0, _SAMPLE).to_pylist()
    return passages, queries, made


def _mean_tokens(passages: list[str], queries: list[str]) -> dict[str, float]:
    """Estimate the mean lengths that `Sizes` has fields for; left out without texts that have words."""
    means = {
        name: round(sum(map(_tokens, texts)) / max(1, len(texts)), 1)
        for name, texts in (("passage_tokens", passages), ("query_tokens", queries))
    }
    return {name: mean for name, mean in means.items() if mean > 0}


def _tokens(text: str) -> float:
    """Estimate the tokens of a text from its words, and its characters where no blanks stand between words."""
    spaced, characters = split_unspaced(text)
    return _TOKENS_PER_WORD * len(spaced.split()) + _TOKENS_PER_CHARACTER * characters


def _judged_queries(path: Path) -> int:
    """Count the queries in a file of judgements, assuming that the lines of a query are consecutive."""
    return sum(1 for _ in itertools.groupby(judged_queries(path)))


def _rows_in(path: Path) -> str:
    exact, count = _count(path)
    return f"{count:,}" if exact else f"about {count:,}"


def _count(path: Path) -> tuple[bool, int]:
    """(exact?, number of rows): non-blank lines. For a large file, an estimate from the first thousand lines."""
    if path.suffix == ".parquet":
        with parquet_file(path) as file:
            return True, file.metadata.num_rows
    if path.stat().st_size <= _COUNT_BYTES:
        if is_table(path) and not _is_msmarco(path):
            return True, max(0, sum(1 for _ in cells_of(path)) - 1)  # a quoted text may have several lines
        return True, sum(1 for _ in lines_of(path)) - (is_table(path) and text_columns_of(path).has_header)
    head = [len(line.encode()) + 1 for _, line in itertools.islice(lines_of(path), 1000)]
    size = path.stat().st_size * (3 if path.suffix == ".gz" else 1)  # text shrinks to about a third
    return False, int(size * len(head) / max(1, sum(head)))


def _is_msmarco(path: Path) -> bool:
    """MS MARCO's texts seldom have a header line; other CSV and TSV files do."""
    return path.name.removesuffix(".gz").endswith(".tsv") and path.name.startswith(("collection", "queries"))
