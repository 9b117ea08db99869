"""What a folder or file holds, for `distill init`: the data section of a recipe, and words to tell it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from distill import config
from distill.data.readers.base import find_file, lines_of, require_file
from distill.data.readers.beir import qrels_files
from distill.data.readers.jsonl import raw_rows
from distill.data.readers.rows import Layout, detect_layout, row_parser
from distill.errors import DataError

_COUNT_BYTES = 1 << 28  # larger files are not read through, their rows are estimated
_ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "validation", "valid", "dev.small"),
                "test": ("test", "dev.small", "dev")}


@dataclass(frozen=True)
class Found:
    """`data`: the recipe's section; `lines`: what was seen, a line each."""

    data: config.Data
    lines: tuple[str, ...]


def sniff(path: Path) -> Found:
    """Recognise BEIR and MS MARCO folders, saved Hugging Face datasets, and files of rows (JSONL, CSV, TSV, Parquet).

    Raises `DataError` that says what was looked for where nothing is recognised.
    """
    path = Path(path)
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
        raise DataError("not recognised; looked for corpus.jsonl (BEIR), collection.tsv (MS MARCO), a dataset saved "
                        f"by `datasets`, or one JSONL, CSV, TSV or Parquet file. There is: {inside}", path=path)
    if not path.exists():
        raise DataError("no such file or folder", path=path)
    if not _is_rows(path):
        raise DataError(f"not recognised; expected a folder, or a file named {', '.join(_ROW_SUFFIXES)} (or .gz)",
                        path=path)
    return _rows(path)


def _is_rows(path: Path) -> bool:
    name = path.name.removesuffix(".gz")
    return path.is_file() and name.endswith(_ROW_SUFFIXES)


def _beir(path: Path) -> Found:
    names = {file.name.removesuffix(".gz").removesuffix(".tsv") for file in (path / "qrels").glob("*.tsv*")}
    splits = {split: name for split, options in _SPLIT_NAMES.items()
              for name in itertools.islice((option for option in options if option in names), 1)}
    corpus, queries = find_file(path, "corpus.jsonl"), find_file(path, "queries.jsonl")
    if queries is None and splits:
        raise DataError("there are judgements in qrels/, but queries.jsonl is missing beside corpus.jsonl", path=path)
    lines = [f"BEIR folder: {_rows_in(corpus)} passages, {_rows_in(queries) if queries else 'no'} queries"]
    lines += [f"{split}: judgements in qrels/{name}.tsv, {_rows_in(find_file(path / 'qrels', f'{name}.tsv'))} lines"
              for split, name in splits.items()]
    generate = None
    if "train" not in splits:
        generate = config.GenerateQueries()
        lines.append("no judgements for training: training queries will be made from titles and sentences")
    if "test" not in splits:
        lines.append("no judgements for a test split: evaluation is on the development queries")
    data = config.Data(source=config.Beir(kind="beir", path=path, splits=splits), generate=generate)
    return Found(data.model_copy(update={"sizes": sizes_of(data)}), tuple(lines))


def _msmarco(path: Path) -> Found:
    names = {file.name.removesuffix(".gz").removeprefix("qrels.").removesuffix(".tsv")
             for file in path.glob("qrels.*.tsv*")}
    splits = {split: name for split, options in _SPLIT_NAMES.items()
              for name in itertools.islice((option for option in options if option in names), 1)}
    lines = [f"MS MARCO folder: {_rows_in(find_file(path, 'collection.tsv'))} passages"]
    lines += [f"{split}: queries and judgements of {name}" for split, name in splits.items()]
    if not splits:
        raise DataError("collection.tsv is there, but no qrels.<split>.tsv", path=path)
    data = config.Data(source=config.MsMarco(kind="msmarco", path=path, splits=splits))
    return Found(data.model_copy(update={"sizes": sizes_of(data)}), tuple(lines))


def _huggingface(path: Path) -> Found:
    source = config.HuggingFace(kind="huggingface", dataset=str(path), test_queries=200, dev_queries=100)
    return Found(config.Data(source=source), (
        "a dataset saved by `datasets`, taken for rows of triples; 200 queries are set aside for test, 100 for "
        "development",))


def _rows(path: Path) -> Found:
    line, first = next(raw_rows(path), (0, None))
    if first is None:
        raise DataError("the file has no rows", path=path)
    layout = detect_layout(first, {})
    row = row_parser(layout, {}, first, path)(first, line)
    queries = _distinct_queries(path, layout, {})
    held_out = {"test_queries": min(500, queries // 10 or int(queries > 2)), "dev_queries": min(200, queries // 20)}
    source = config.Jsonl(kind="jsonl", path=path, layout=layout, **held_out)
    told = f"{_rows_in(path)} rows of the layout {layout!r}: columns {', '.join(first)}"
    lists = f"the first row has {sum(row.positive)} positive and {len(row.passages) - sum(row.positive)} negatives" \
        + (", with scores" if row.scores is not None else "")
    aside = f"{held_out['test_queries']} queries are set aside for test, {held_out['dev_queries']} for development"
    data = config.Data(source=source)
    return Found(data.model_copy(update={"sizes": sizes_of(data)}), (told, lists, aside))


def sizes_of(data: config.Data) -> config.Sizes | None:
    """What a dry run reckons with before the import has counted; None for sources that are no files.

    Generated queries are the most that can be made, and passages of rows are counted as often as they are repeated.
    """
    source, generate = data.source, data.generate
    if isinstance(source, config.Jsonl):
        line, first = next(raw_rows(source.path), (0, None))
        if first is None:
            raise DataError("the file has no rows", path=source.path)
        row = row_parser(source.layout, source.columns, first, source.path)(first, line)
        queries = _distinct_queries(source.path, source.layout, source.columns)
        return config.Sizes(passages=_count(source.path)[1] * len(row.passages), dev_queries=source.dev_queries,
                            queries=max(0, queries - source.dev_queries - source.test_queries),
                            test_queries=source.test_queries)
    if isinstance(source, config.Beir):
        corpus, qrels = require_file(source.path, "corpus.jsonl"), qrels_files(source)
    elif isinstance(source, config.MsMarco):
        corpus = require_file(source.path, "collection.tsv")
        qrels = {split: require_file(source.path, f"qrels.{name}.tsv") for split, name in source.splits.items()}
    else:
        return None
    passages = _count(corpus)[1]
    judged = {split: _judged_queries(path) for split, path in qrels.items()}
    made = passages * generate.per_passage if generate else 0
    made_dev = round(made * generate.dev_share) if generate else 0
    return config.Sizes(passages=passages, queries=judged.get("train", 0) + made - made_dev,
                        dev_queries=judged.get("dev", 0) + made_dev, test_queries=judged.get("test", 0))


def _distinct_queries(path: Path, layout: Layout, columns: dict[str, str | None]) -> int:
    """Different queries in a file of rows, by their share of the first ten thousand rows."""
    head = list(itertools.islice(raw_rows(path), 10_000))
    parse = row_parser(layout, columns, head[0][1], path)
    return round(_count(path)[1] * len({parse(row, line).query for line, row in head}) / len(head))


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


def _has_header(path: Path) -> int:
    name = path.name.removesuffix(".gz")
    headerless = name.startswith(("collection", "queries", "qrels."))  # MS MARCO's
    return int(name.endswith(".csv") or (name.endswith(".tsv") and not headerless))


