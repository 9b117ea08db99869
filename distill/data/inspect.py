"""What a folder or file holds, for `distill init`: the data section of a recipe, and words to tell it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from distill import config
from distill.data.querygen import generate
from distill.data.readers.base import Collection, find_file, lines_of, reading, require_file
from distill.data.readers.beir import qrels_files, read_beir
from distill.data.readers.jsonl import raw_rows
from distill.data.readers.msmarco import read_msmarco
from distill.data.readers.qrels import is_header
from distill.data.readers.rows import Row, detect_layout, row_parser
from distill.data.texts import passage_text
from distill.errors import DataError

_COUNT_BYTES = 1 << 28  # larger files are not read through, their rows are estimated
_HEAD_ROWS = 10_000  # of a file of rows, which tell of the others
_SAMPLE = 500  # passages of a folder, or rows, that the lengths of texts are estimated by
_TOKENS_A_WORD = 1.3  # English, WordPiece
_ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_SPLIT_NAMES = {
    "train": ("train",),
    "dev": ("dev", "validation", "valid", "dev.small"),
    "test": ("test", "dev.small", "dev"),
}


@dataclass(frozen=True)
class Found:
    """`data`: the recipe's section; `lines`: what was seen, a line each; `scores`: the lowest and the highest of those
    that rows bring with their negatives."""

    data: config.Data
    lines: tuple[str, ...]
    scores: tuple[float, float] | None = None


def sniff(path: Path) -> Found:
    """Recognise BEIR and MS MARCO folders, saved Hugging Face datasets, and files of rows (JSONL, CSV, TSV, Parquet).

    Raises `DataError` that says what was looked for where nothing is recognised.
    """
    path = Path(path)
    with reading(path):
        return _sniff(path)


def _sniff(path: Path) -> Found:
    if path.is_dir():
        if find_file(path, "corpus.jsonl"):
            return _beir(path)
        if find_file(path, "collection.tsv"):
            return _msmarco(path)
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _huggingface(path)
        files = [file for file in sorted(path.iterdir()) if _is_rows(file)]
        if len(files) == 1:
            return _rows(files[0])
        inside = ", ".join(file.name for file in sorted(path.iterdir())[:8]) or "nothing"
        raise DataError(
            "not recognised; looked for corpus.jsonl (BEIR), collection.tsv (MS MARCO), a dataset saved "
            f"by `datasets`, or one JSONL, CSV, TSV or Parquet file. There is: {inside}",
            path=path,
        )
    if not path.exists():
        raise DataError("no such file or folder", path=path)
    if not _is_rows(path):
        raise DataError(
            f"not recognised; expected a folder, or a file named {', '.join(_ROW_SUFFIXES)} (or .gz)", path=path
        )
    return _rows(path)


def _is_rows(path: Path) -> bool:
    name = path.name.removesuffix(".gz")
    return path.is_file() and name.endswith(_ROW_SUFFIXES)


def _beir(path: Path) -> Found:
    splits = _splits(path / "qrels", "{}.tsv")
    corpus, queries = find_file(path, "corpus.jsonl"), find_file(path, "queries.jsonl")
    if queries is None and splits:
        raise DataError("there are judgements in qrels/, but queries.jsonl is missing beside corpus.jsonl", path=path)
    lines = [f"BEIR folder: {_rows_in(corpus)} passages, {_rows_in(queries) if queries else 'no'} queries"]
    lines += [
        f"{split}: judgements in qrels/{name}.tsv, {_rows_in(find_file(path / 'qrels', f'{name}.tsv'))} lines"
        for split, name in splits.items()
    ]
    generate = None
    if "train" not in splits:
        generate = config.GenerateQueries()
        lines.append("no judgements for training: training queries will be made from titles and sentences")
    if "test" not in splits:
        lines.append("no judgements for a test split: evaluation is on the development queries")
    data = config.Data(source=config.Beir(kind="beir", path=path, splits=splits), generate=generate)
    return Found(data.model_copy(update={"sizes": sizes_of(data)}), tuple(lines))


def _msmarco(path: Path) -> Found:
    splits = _splits(path, "qrels.{}.tsv")
    lines = [f"MS MARCO folder: {_rows_in(find_file(path, 'collection.tsv'))} passages"]
    lines += [f"{split}: queries and judgements of {name}" for split, name in splits.items()]
    if not splits:
        raise DataError("collection.tsv is there, but no qrels.<split>.tsv with judgements", path=path)
    data = config.Data(source=config.MsMarco(kind="msmarco", path=path, splits=splits))
    return Found(data.model_copy(update={"sizes": sizes_of(data)}), tuple(lines))


def _splits(folder: Path, form: str) -> dict[str, str]:
    """Our split -> its name in a file of judgements, called as `form` says; a file without any is no split."""
    found = {}
    for split, options in _SPLIT_NAMES.items():
        for name in options:
            file = find_file(folder, form.format(name))
            if file is not None and _count(file)[1]:
                found[split] = name
                break
    return found


def _huggingface(path: Path) -> Found:
    source = config.HuggingFace(kind="huggingface", dataset=str(path), test_queries=200, dev_queries=100)
    return Found(
        config.Data(source=source),
        (
            "a dataset saved by `datasets`, taken for rows of triples; 200 queries are set aside for test, 100 for "
            "development",
        ),
    )


def _rows(path: Path) -> Found:
    source = config.Jsonl(kind="jsonl", path=path)
    first, head = _head(source)
    queries = _distinct_queries(path, head)
    held_out = {"test_queries": min(500, queries // 10 or int(queries > 2)), "dev_queries": min(200, queries // 20)}
    source = source.model_copy(update={"layout": detect_layout(first, {}), **held_out})
    row = head[0]
    lines = [
        f"{_rows_in(path)} rows of the layout {source.layout!r}: columns {', '.join(first)}",
        f"the first row has {sum(row.positive)} positive and {len(row.passages) - sum(row.positive)} negatives"
        + (", with scores" if row.scores is not None else ""),
        f"{held_out['test_queries']} queries are set aside for test, {held_out['dev_queries']} for development",
    ]
    numbers = [score for row in head for score in row.scores or () if not math.isnan(score)]
    scores = None
    if numbers and not all(all(row.positive) for row in head):  # without negatives the import has no lists to score
        scores = min(numbers), max(numbers)
        lines.append(
            f"scores from {scores[0]:.4g} to {scores[1]:.4g} in the first {len(head):,} rows: they take the "
            "place of teachers"
        )
    data = config.Data(source=source)
    return Found(data.model_copy(update={"sizes": sizes_of(data)}), tuple(lines), scores)


def sizes_of(data: config.Data) -> config.Sizes | None:
    """What a dry run reckons with before the import has counted; None for sources that are no files.

    Generated queries are the most that can be made, and passages of rows are counted as often as they are repeated.
    """
    source, options = data.source, data.generate
    if isinstance(source, config.Jsonl):
        head = _head(source)[1]
        some = head[:_SAMPLE]
        return config.Sizes(
            passages=_count(source.path)[1] * len(head[0].passages),
            dev_queries=source.dev_queries,
            queries=max(0, _distinct_queries(source.path, head) - source.dev_queries - source.test_queries),
            test_queries=source.test_queries,
            **_tokens([text for row in some for text in row.passages], [row.query for row in some]),
        )
    if isinstance(source, config.Beir):
        corpus, qrels = require_file(source.path, "corpus.jsonl"), qrels_files(source)
        collection = read_beir(source)
    elif isinstance(source, config.MsMarco):
        corpus = require_file(source.path, "collection.tsv")
        qrels = {split: require_file(source.path, f"qrels.{name}.tsv") for split, name in source.splits.items()}
        collection = read_msmarco(source)
    else:
        return None
    passages = _count(corpus)[1]
    judged = {split: _judged_queries(path) for split, path in qrels.items()}
    made = passages * options.per_passage if options else 0
    made_dev = round(made * options.dev_share) if options else 0
    return config.Sizes(
        passages=passages,
        queries=judged.get("train", 0) + made - made_dev,
        dev_queries=judged.get("dev", 0) + made_dev,
        test_queries=judged.get("test", 0),
        **_tokens(*_first_texts(collection, options)),
    )


def _head(source: config.Jsonl) -> tuple[dict[str, Any], list[Row]]:
    """The first row as it stands, and the first ten thousand as they are read."""
    rows = list(itertools.islice(raw_rows(source.path), _HEAD_ROWS))
    if not rows:
        raise DataError("the file has no rows", path=source.path)
    first = rows[0][1]
    parse = row_parser(source.layout, source.columns, first, source.path)
    return first, [parse(row, line) for line, row in rows]


def _distinct_queries(path: Path, head: list[Row]) -> int:
    """Different queries in a file of rows, by their share of the first ones."""
    return round(_count(path)[1] * len({row.query for row in head}) / len(head))


def _first_texts(collection: Collection, options: config.GenerateQueries | None) -> tuple[list[str], list[str]]:
    """Some passages, and some of the queries: those made of these passages, else of the first split that has any."""
    batch = next(collection.passages, None)
    if batch is None:
        return [], []
    batch = batch.slice(0, _SAMPLE)
    passages = passage_text(batch.column("title"), batch.column("text")).to_pylist()
    queries = (
        []
        if options is None
        else [
            made.query
            for row in batch.to_pylist()
            for made in generate(row["id"], row["title"], row["text"], options, 0)
        ]
    )
    if not queries:
        asked = (found for split in collection.queries.values() for found in split if found.num_rows)
        queries = [
            text for found in itertools.islice(asked, 1) for text in found.column("text").slice(0, _SAMPLE).to_pylist()
        ]
    return passages, queries


def _tokens(passages: list[str], queries: list[str]) -> dict[str, float]:
    """The mean lengths that `Sizes` has fields for, by the words; none where there are no texts."""
    return {
        name: round(_TOKENS_A_WORD * sum(len(text.split()) for text in texts) / len(texts), 1)
        for name, texts in (("passage_tokens", passages), ("query_tokens", queries))
        if texts
    }


def _judged_queries(path: Path) -> int:
    """Queries in a judgement file, whose lines stand together by query."""
    return sum(1 for _ in itertools.groupby(line.split()[0] for _, line in lines_of(path))) - _has_header(path)


def _rows_in(path: Path) -> str:
    exact, count = _count(path)
    return f"{count:,}" if exact else f"about {count:,}"


def _count(path: Path) -> tuple[bool, int]:
    """(whether exact, rows): lines with something on them; the mean of the first thousand tells for a large file."""
    if path.suffix == ".parquet":
        return True, pq.read_metadata(path).num_rows
    if path.stat().st_size <= _COUNT_BYTES:
        return True, sum(1 for _ in lines_of(path)) - _has_header(path)
    head = [len(line.encode()) + 1 for _, line in itertools.islice(lines_of(path), 1000)]
    size = path.stat().st_size * (3 if path.suffix == ".gz" else 1)  # text shrinks to about a third
    return False, int(size * len(head) / max(1, sum(head)))


def _has_header(path: Path) -> bool:
    """Rows in CSV and TSV have a header line, judgements may have one, MS MARCO's texts have none."""
    name = path.name.removesuffix(".gz")
    if name.startswith("qrels.") or path.parent.name == "qrels":
        return any(is_header(line) for _, line in itertools.islice(lines_of(path), 1))
    return name.endswith(".csv") or (name.endswith(".tsv") and not name.startswith(("collection", "queries")))
