"""Query logs: what is read of each kind of file and source, what is left out, and which queries are drawn."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.errors import DataError, RecipeError
from distill.importing.stage import import_fields
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.store.arrow import RowReader
from distill.store.judgements import load_judgements, queries_without_positives
from distill.store.texts import TextStore
from tests.helpers.stages import import_data
from tests.importing.files import lines

CORPUS = [{"_id": f"p{i}", "text": f"passage number {i} on cats and dogs"} for i in range(6)]
QUERIES = {
    "t1": "Wide  Rivers",
    "t2": "old bridges",
    "d1": "deep lakes",
    "e1": "High Hills",
    "u1": "loud birds",
    "u2": "",
}
LOG = [("loud birds", 2), ("Loud  Birds", 5), ("deep lakes", 9), ("high hills", 1), ("wide rivers", 1), (" ", 4)]
LOG += [("calm seas", 3), ("dry sand", 3), ("warm rain", 1)]
USABLE = {"loud birds": 7, "calm seas": 3, "dry sand": 3, "warm rain": 1}  # distinct, in no split


def beir(path: Path, **qrels: list[str]) -> dict:
    (path / "qrels").mkdir(parents=True)
    lines(path / "corpus.jsonl", CORPUS)
    lines(path / "queries.jsonl", [{"_id": name, "text": text} for name, text in QUERIES.items()])
    judged = qrels or {"train": ["t1\tp0\t1", "t2\tp1\t1"], "dev": ["d1\tp2\t1"], "test": ["e1\tp3\t1"]}
    for name, rows in judged.items():
        lines(path / "qrels" / f"{name}.tsv", rows)
    return {"kind": "beir", "path": str(path)}


def recipe(tmp_path, source: dict, query_log: dict | None = None, seed: int = 0, **data):
    return parse_recipe(
        {
            "name": "t",
            "seed": seed,
            "run_dir": str(tmp_path / "run"),
            "data": {"source": source, "query_log": query_log or {}, **data},
            "teachers": {"t": {"kind": "bm25"}},
            "student": {"model": "x"},
        }
    )


def imported(tmp_path, *arguments, **options) -> tuple[dict, dict[str, int]]:
    """The counts of the manifest, and the log's training queries with the number of times that they were asked."""
    loaded = recipe(tmp_path, *arguments, **options)
    folder = RunFolder(loaded.folder)
    counts = import_data(loaded, folder).counts
    asked = RowReader(folder.query_counts).table().column("count").to_numpy()
    rows = np.flatnonzero(asked)
    texts = TextStore.open(folder.queries("train")).texts(rows)
    assert len(asked) == counts["queries.train"] and len(texts) == len(set(texts)) == counts["queries.train.logged"]
    assert not set(rows) & set(load_judgements(folder, "train").queries.tolist())
    assert queries_without_positives(folder) == len(rows)
    return counts, dict(zip(texts, asked[rows].tolist(), strict=True))


def write_log(path: Path, counted: bool = True) -> Path:
    """The log in the format that the name tells; without counts, a query stands in as many rows."""
    rows = LOG if counted else [(text, 1) for text, count in LOG for _ in range(count)]
    fields = [{"query": text, **({"count": count} if counted else {}), "user": "u"} for text, count in rows]
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(fields), path)
        return path
    if name.endswith(".txt"):
        content = "\n".join(text for text, _ in rows)
    elif name.endswith(".jsonl"):
        content = "\n".join(map(json.dumps, fields))
    else:
        mark = "," if name.endswith(".csv") else "\t"
        content = "\n".join(mark.join(map(str, row)) for row in [list(fields[0]), *(row.values() for row in fields)])
    content = content.encode() + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv", "log.tsv", "log.parquet", "log.jsonl.gz"])
def test_a_file_of_rows_gives_distinct_queries_with_their_counts(tmp_path, name):
    source = beir(tmp_path / "beir")
    counts, log = imported(tmp_path, source, {"path": str(write_log(tmp_path / name))})
    assert log == USABLE
    assert counts["queries.train"] == 6 and counts["queries.train.logged"] == 4
    left_out = {"rows": 9, "empty": 1, "repeated": 1, "in_test": 1, "in_dev": 1, "in_train": 1, "not_drawn": 0}
    assert {key: counts[f"query_log.{key}"] for key in left_out} == left_out
    assert counts["unread"] == {"column of the query log 'user'": 9}


@pytest.mark.parametrize("name", ["log.txt", "log.txt.gz", "log.parquet", "log.csv"])
def test_rows_without_counts_count_once(tmp_path, name):
    _, log = imported(tmp_path, beir(tmp_path / "beir"), {"path": str(write_log(tmp_path / name, counted=False))})
    assert log == USABLE


def test_columns_are_named_where_they_are_called_otherwise(tmp_path):
    rows = [{"suche": "calm seas", "query": "never read", "zahl": "12"}, {"suche": "dry sand", "zahl": 2.0}]
    options = {"path": str(lines(tmp_path / "log.jsonl", rows)), "column": "suche", "count_column": "zahl"}
    counts, log = imported(tmp_path, beir(tmp_path / "beir"), options)
    assert log == {"calm seas": 12, "dry sand": 2}
    assert counts["unread"] == {"column of the query log 'query'": 1}


def test_every_row_is_accounted_for(tmp_path, caplog):
    caplog.set_level("INFO")
    options = {"path": str(write_log(tmp_path / "log.jsonl")), "limit": 3}
    counts, _ = imported(tmp_path, beir(tmp_path / "beir"), options)
    outcomes = ("empty", "repeated", "in_test", "in_dev", "in_train", "not_drawn")
    assert sum(counts[f"query_log.{name}"] for name in outcomes) + counts["queries.train.logged"] == 9
    assert "3 of 9 rows of the query log are training queries" in caplog.text
    assert "1 queries of the log are test queries and are left out" in caplog.text
    assert "1 queries of the log are beyond the limits" in caplog.text


def test_a_limit_takes_the_most_frequent_and_a_seeded_sample_of_equals(tmp_path):
    source, options = beir(tmp_path / "beir"), {"path": str(write_log(tmp_path / "log.csv"))}
    drawn = Counter()
    for seed in range(12):
        _, log = imported(tmp_path / str(seed), source, {**options, "limit": 2}, seed=seed)
        drawn.update(log)
    assert drawn["loud birds"] == 12 * 7 and set(drawn) == {"loud birds", "calm seas", "dry sand"}
    _, again = imported(tmp_path / "again", source, {**options, "limit": 2}, seed=11)
    assert again == log


@pytest.mark.parametrize(
    ("train_queries", "share", "logged", "others"), [(None, 0.5, 2, 2), (2, 0.5, 1, 1), (3, 0.6, 2, 1)]
)
def test_a_share_of_the_training_queries_comes_from_the_log(tmp_path, train_queries, share, logged, others):
    options = {"path": str(write_log(tmp_path / "log.csv")), "share": share}
    counts, log = imported(tmp_path, beir(tmp_path / "beir"), options, train_queries=train_queries)
    assert (counts["queries.train.logged"], counts["queries.train"]) == (logged, logged + others)
    assert "loud birds" in log


def test_a_share_that_the_log_cannot_fill_is_told(tmp_path, caplog):
    options = {"path": str(write_log(tmp_path / "log.csv")), "share": 0.9}
    counts, _ = imported(tmp_path, beir(tmp_path / "beir"), options)
    assert counts["queries.train"] == 6
    assert "4 usable queries, which are 66.7% of the training queries (data.query_log.share: 0.9)" in caplog.text


def test_a_share_needs_other_training_queries(tmp_path):
    source = beir(tmp_path / "beir", dev=["d1\tp2\t1"])
    with pytest.raises(DataError, match=r"data.query_log.share: there are no judged or generated training queries"):
        imported(tmp_path, source, {"path": str(write_log(tmp_path / "log.csv")), "share": 0.5})


def test_limits_of_training_queries_count_those_of_the_log(tmp_path):
    options = {"path": str(write_log(tmp_path / "log.csv"))}
    counts, _ = imported(tmp_path, beir(tmp_path / "beir"), options, train_queries=3)
    assert counts["queries.train"] == 3


def test_the_queries_of_a_beir_folder_that_no_file_judges_are_a_log(tmp_path):
    source = {**beir(tmp_path / "beir"), "splits": {"dev": "dev"}}  # the others' judgements are not read, but known
    counts, log = imported(tmp_path, source)
    assert log == {"loud birds": 1} and counts["query_log.empty"] == 1
    run = RunFolder(tmp_path / "run")
    assert TextStore.open(run.queries("train")).ids(np.array([0])) == ["u1"]
    assert "file 'queries.jsonl'" not in counts["unread"]


def test_a_beir_folder_without_any_judgements_is_trained_on_with_its_queries(tmp_path):
    source = beir(tmp_path / "beir")
    for file in (tmp_path / "beir" / "qrels").iterdir():
        file.unlink()
    counts, log = imported(tmp_path, source)
    assert len(log) == 5 and counts["judgements.train"] == 0 and "unread" not in counts


def test_generated_judged_and_logged_queries_are_trained_on_together(tmp_path):
    generate = {"kinds": ["sentence"], "per_passage": 1, "min_words": 2, "min_passage_words": 2, "dev_share": 0.0}
    source = beir(tmp_path / "beir")
    rows = [
        {"_id": f"p{i}", "text": f"Number {i} is about cats. Dogs like number {i} too. It rains."} for i in range(6)
    ]
    lines(tmp_path / "beir" / "corpus.jsonl", rows)
    counts, log = imported(tmp_path, source, {"path": str(write_log(tmp_path / "log.csv"))}, generate=generate)
    assert log == USABLE and counts["queries.train.generated"] == 6
    assert counts["queries.train"] == 2 + 6 + 4


def test_ms_marcos_training_queries_without_judgements_are_a_log(tmp_path):
    folder = tmp_path / "marco"
    folder.mkdir()
    lines(folder / "collection.tsv", [f"{i}\tpassage {i}" for i in range(4)])
    lines(
        folder / "queries.train.tsv",
        ["1\tjudged one", "2\tdry sand", "3\tDry Sand", "4\tin the test file", "5\tbad only"],
    )
    lines(folder / "qrels.train.tsv", ["1\t0\t0\t1", "5\t0\t1\t0"])
    lines(folder / "queries.dev.small.tsv", ["9\tdev"])
    lines(folder / "qrels.dev.small.tsv", ["9\t0\t2\t1"])
    lines(folder / "qrels.test.tsv", ["4\t0\t2\t1"])
    counts, log = imported(tmp_path, {"kind": "msmarco", "path": str(folder)})
    assert log == {"dry sand": 2} and counts["queries.train.unjudged"] == 1  # the one without a positive


def test_the_unjudged_queries_of_a_hugging_face_dataset_are_a_log(tmp_path):
    parts = {
        "corpus": datasets.Dataset.from_list([{"_id": f"p{i}", "title": "", "text": f"text {i}"} for i in range(3)]),
        "queries": datasets.Dataset.from_list([{"_id": name, "text": text} for name, text in QUERIES.items()]),
        "qrels": datasets.DatasetDict(
            {
                name: datasets.Dataset.from_list([{"query-id": query, "corpus-id": "p1", "score": 1}])
                for name, query in {"train": "t1", "test": "e1", "other": "d1"}.items()
            }
        ),
    }
    for name, part in parts.items():
        part.save_to_disk(tmp_path / "hf" / name)
    _, log = imported(tmp_path, {"kind": "huggingface", "dataset": str(tmp_path / "hf"), "layout": "beir"})
    assert log == {"old bridges": 1, "loud birds": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"term": "x"}], r"log.jsonl:1 \[query\]: no column with a query \(the row has 'term'\)"),
        ([{"query": "x", "count": 0}], r"log.jsonl:1 \[count\]: expected how often .* found 0"),
        ([{"query": "x", "count": 1}, {"query": "y", "count": "many"}], r"log.jsonl:2 \[count\]: .* found 'many'"),
        ([{"query": ["x"]}], r"log.jsonl:1 \[query\]: expected a string, found list"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_with_its_place(tmp_path, rows, message):
    loaded = recipe(tmp_path, beir(tmp_path / "beir"), {"path": str(lines(tmp_path / "log.jsonl", rows))})
    with pytest.raises(DataError, match=message):
        import_data(loaded, RunFolder(loaded.folder))
    assert not RunFolder(loaded.folder).passages.exists()


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.txt.*no such file"):
        imported(tmp_path, beir(tmp_path / "beir"), {"path": str(tmp_path / "nowhere.txt")})


def test_fields_without_an_effect_are_refused(tmp_path):
    rows = {"kind": "jsonl", "path": "x.jsonl"}
    with pytest.raises(RecipeError, match="every query of a source of kind jsonl comes with a passage"):
        recipe(tmp_path, rows)
    with pytest.raises(RecipeError, match="column has no effect without a file of rows"):
        recipe(tmp_path, {"kind": "beir", "path": "x"}, {"column": "q"})
    with pytest.raises(RecipeError, match="count_column has no effect without a file of rows"):
        recipe(tmp_path, rows, {"path": "x.txt", "count_column": "q"})


def test_a_log_beside_imported_negatives_is_refused(tmp_path):
    rows = [{"query": f"q{i}", "positive": f"a{i}", "negative": f"b{i}"} for i in range(4)]
    source = {"kind": "jsonl", "path": str(lines(tmp_path / "rows.jsonl", rows))}
    with pytest.raises(DataError, match=r"data.query_log: the source brings its own negatives.*train.datasets"):
        imported(tmp_path, source, {"path": str(write_log(tmp_path / "log.txt", counted=False))})
    for row in rows:
        del row["negative"]
    lines(tmp_path / "rows.jsonl", rows)
    counts, _ = imported(tmp_path, source, {"path": str(tmp_path / "log.txt")})
    assert counts["queries.train"] == 4 + 7


def test_a_log_and_its_content_are_in_the_fingerprint_and_nothing_is_without_one(tmp_path):
    source, path = beir(tmp_path / "beir"), write_log(tmp_path / "log.txt", counted=False)
    fields = [import_fields(recipe(tmp_path, source, {"path": str(path)}))]
    path.write_text("another\n")
    fields.append(import_fields(recipe(tmp_path, source, {"path": str(path)})))
    assert fields[0]["query_log"] != fields[1]["query_log"]
    plain = parse_recipe({**recipe(tmp_path, source).model_dump(mode="json"), "data": {"source": source}})
    assert "query_log" not in import_fields(plain) and Run(plain, RunFolder(tmp_path)).recipe.data.query_log is None
