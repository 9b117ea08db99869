"""Readers of rows and score files: the layouts of other projects, and located errors for bad rows."""

import csv
import gzip
import io
import json
import math
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.config import HuggingFace, IrDatasets, Jsonl
from distill.errors import DataError
from distill.importing.readers.base import Collection, is_score
from distill.importing.readers.huggingface import read_huggingface
from distill.importing.readers.jsonl import read_jsonl
from distill.importing.readers.naver import json_object_items
from distill.importing.readers.qrels import read_qrels
from distill.importing.sniff import sniff
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.store.judgements import load_judgements
from distill.store.texts import TextStore
from tests.helpers.stages import import_data
from tests.importing.files import beir_folder, lines


def lists_of(collection: Collection) -> dict[str, tuple]:
    """query text -> (passage texts, positive, scores)."""
    texts = {row["id"]: row["text"] for batch in collection.passages for row in batch.to_pylist()}
    queries = {
        row["id"]: row["text"] for split in collection.queries.values() for batch in split for row in batch.to_pylist()
    }
    return {
        queries[row["query_id"]]: (
            [texts[p] for p in row["passage_ids"]],
            [grade > 0 for grade in row["grades"]],
            row["scores"],
        )
        for batch in collection.lists["train"]
        for row in batch.to_pylist()
    }


def read_file(path: Path, **options) -> Collection:
    spool = path.parent / "spool"
    spool.mkdir(exist_ok=True)
    return read_jsonl(Jsonl(kind="jsonl", path=path, **options), 0, spool)


def read(tmp_path: Path, rows: list, **options) -> dict[str, tuple]:
    return lists_of(read_file(lines(tmp_path / "in.jsonl", rows), **options))


def recipe(source: dict):
    return parse_recipe(
        {"name": "t", "data": {"source": source}, "teachers": {"t": {"kind": "bm25"}}, "student": {"model": "x"}}
    )


LAYOUTS = {  # name -> row, (passages, positive, scores)
    "triplet": ({"anchor": "q", "positive": "a", "negative": "b"}, (["a", "b"], [True, False], None)),
    "triplet with scores": (
        {"query": "q", "positive": "a", "negative": "b", "scores": [0.9, 0.2]},
        (["a", "b"], [True, False], [0.9, 0.2]),
    ),
    "n-tuple": (
        {"query": "q", "positive": "a", "negative_2": "c", "negative_1": "b", "negative_10": "d"},
        (["a", "b", "c", "d"], [True, False, False, False], None),
    ),
    "labelled list": ({"query": "q", "answer": ["a", "b"], "labels": [0, 1]}, (["a", "b"], [False, True], None)),
    "graded list": (
        {"query": "q", "docs": ["a", "b", "c"], "labels": [0, 3, True]},
        (["a", "b", "c"], [False, True, True], None),
    ),
    "list of positives": ({"query": "q", "positive": ["a", "b"]}, (["a", "b"], [True, True], None)),
    "lists of positives and negatives": (
        {"query": "q", "positive": ["a", "b"], "negative": ["c"], "scores": [3, 2, 1]},
        (["a", "b", "c"], [True, True, False], [3.0, 2.0, 1.0]),
    ),
    "positive with a score": ({"query": "q", "positive": "a", "score": 0.7}, (["a"], [True], [0.7])),
    "n-tuple with grades": (
        {"query": "q", "positive": "a", "negative": "b", "label": [2, 0], "score": "1.5"},
        (["a", "b"], [True, False], [0.0, -1.5]),
    ),
    "labelled pair": ({"query": "q", "positive": "a", "label": 0}, (["a"], [False], None)),
    "labelled pair with a score": ({"query": "q", "positive": "a", "label": 0, "score": 1.5}, (["a"], [False], [1.5])),
    "labelled list with scores": (
        {"query": "q", "passages": ["a", "b"], "labels": [0, 1], "scores": [3.0, 1.5]},
        (["a", "b"], [False, True], [3.0, 1.5]),
    ),
    "null among the scores": (
        {"query": "q", "positive": "a", "negative": "b", "scores": [None, 0.5]},
        (["a", "b"], [True, False], [math.nan, 0.5]),
    ),
    "no negative": ({"query": "q", "positive": "a", "negative": None}, (["a"], [True], None)),
    "fewer negatives": (
        {"query": "q", "positive": "a", "negative_1": "", "negative_2": None, "scores": [1.0, 0.5]},
        (["a"], [True], [1.0]),
    ),
    "margin": ({"query": "q", "positive": "a", "negative": "b", "score": 2.5}, (["a", "b"], [True, False], [0, -2.5])),
    "margins": (
        {"query": "q", "positive": "a", "negative_1": "b", "negative_2": "c", "score": [1.0, 3.0]},
        (["a", "b", "c"], [True, False, False], [0.0, -1.0, -3.0]),
    ),
    "list of negatives": (
        {"query": "q", "positive": "a", "negatives": ["b", "c"]},
        (["a", "b", "c"], [True, False, False], None),
    ),
    "FlagEmbedding": ({"query": "q", "pos": ["a"], "neg": ["b", "c"]}, (["a", "b", "c"], [True, False, False], None)),
    "FlagEmbedding with scores": (
        {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [3], "neg_scores": [1.5]},
        (["a", "b"], [True, False], [3.0, 1.5]),
    ),
    "pair": ({"question": "q", "answer": "a"}, (["a"], [True], None)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_detected_from_the_fields_of_each_row(tmp_path, name):
    row, (passages, positive, scores) = LAYOUTS[name]
    pair = {"query": "another", "positive": "z"}
    parsed = read(tmp_path, [pair, row])["q"]
    assert parsed[:2] == (passages, positive)
    assert parsed[2] == (scores if scores is None else pytest.approx(scores, nan_ok=True))


BAD_ROWS = {
    "no positive": ({"query": "q", "negative": "b"}, r"in\.jsonl:2 \[positive\]: missing \(the row has 'query', 'neg"),
    "no query": ({"text": "q", "negative": "b"}, r":2 \[query\]: missing .*data\.source\.columns\.query"),
    "text is a number": (
        {"query": "q", "positive": "a", "negative": 3},
        r":2 \[negative\]: expected a text, found int",
    ),
    "too few scores": (
        {"query": "q", "positive": "a", "negatives": ["b", "c", "d"], "score": [1, 2]},
        r":2 \[score\]: 2 numbers for 4 passages",
    ),
    "score is NaN": (
        '{"query": "q", "positive": "a", "negative": "b", "score": [1, NaN]}',
        r":2 \[score\]: nan is not a finite number",
    ),
    "score is infinite": (
        '{"query": "q", "positive": "a", "negative": "b", "score": [1, Infinity]}',
        r":2 \[score\]: inf is not a finite number",
    ),
    "score is beyond float32": (
        {"query": "q", "positive": "a", "negative": "b", "score": [1, 1e39]},
        r":2 \[score\]: 1e\+39 is too large for float32",
    ),
    "score is beyond float64": (
        {"query": "q", "positive": "a", "negative": "b", "score": [1, 10**400]},
        r":2 \[score\]: 10{79} is too large for float32",
    ),
    "deeply nested brackets": ("[" * 100_000, r"in\.jsonl:2: this JSON cannot be read: maximum recursion depth"),
    "number of 5000 digits": (
        '{"query": ' + "1" * 5000 + "}",
        r":2: this JSON cannot be read: Exceeds the limit",
    ),
    "score is a word": (
        {"query": "q", "positive": "a", "negative": "b", "score": ["high", 1]},
        r":2 \[score\]: 'high' is not a number",
    ),
    "null among the labels": (
        {"query": "q", "passages": ["a", "b"], "labels": [1, None]},
        r":2 \[labels\]: None is not a number",
    ),
    "too few ids": (
        {"query": "q", "positive": "a", "negative": "b", "passage_ids": ["1"]},
        r":2 \[passage_ids\]: 1 ids for 2 passages",
    ),
    "empty id": ({"query": "q", "positive": "a", "negative": "b", "query_id": ""}, r":2 \[query_id\]: empty id"),
    "pair with a score": (
        {"query": "q", "answer": "a", "score": 1},
        r":2 \[score\]: a pair with a score but no label: .* set data\.source\.columns\.label: score;",
    ),
    "pair without its label": (
        {"query": "q", "answer": "a", "label": None},
        r":2 \[label\]: missing: other rows say whether",
    ),
    "list without labels": (
        {"query": "q", "docs": ["a", "b"], "scores": [1, 2]},
        r":2 \[docs\]: a list without labels: .*data\.source\.first_is_positive: true",
    ),
    "label that is a score": (
        {"query": "q", "positive": "a", "negative": "b", "label": 0.7},
        r":2 \[label\]: labels are grades, one whole number per passage; found 0\.7.*\.columns\.score: label",
    ),
    "margin called label": (
        {"query": "q", "positive": "a", "negative": "b", "label": 1},
        r":2 \[label\]: labels are grades, one whole number per passage; found 1 for 2 passages",
    ),
    "labels against the columns": (
        {"query": "q", "positive": "a", "negative": "b", "label": [0, 1]},
        r":2 \[label\]: the labels contradict the columns",
    ),
    "labelled list and negatives": (
        {"query": "q", "docs": ["a", "b"], "labels": [0, 1], "negative": "c"},
        r":2 \[labels\]: the labels in 'labels' tell positives from negatives in 'docs', but there are neg",
    ),
    "two columns of negatives": (
        {"query": "q", "positive": "a", "negative": "b", "negative_1": "c"},
        r":2 \[negative_1\]: the negatives could be in any of 'negative', 'negative_1'; name the column in data",
    ),
    "two columns of positives": (
        {"query": "q", "text": "a", "answer": "b"},
        r":2 \[answer\]: the field 'positive' could be in any of 'text', 'answer'",
    ),
    "score is true": (
        {"query": "q", "positive": "a", "negative": "b", "score": True},
        r":2 \[score\]: True is not a number",
    ),
    "odd digits in a name": ({"query": "q", "negative_²": "b"}, r":2 \[positive\]: missing"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_refused_with_line_and_field(tmp_path, name):
    row, message = BAD_ROWS[name]
    with pytest.raises(DataError, match=message):
        read(tmp_path, [{"query": "fine", "positive": "a", "negative": "b"}, row], layout="triples")


def test_scores_are_accepted_up_to_the_largest_float32(tmp_path):
    numbers = [float(np.finfo(np.float32).max), float("3.4028235e38"), 2.0**128 - 2.0**103]  # the last one is a tie
    with np.errstate(over="ignore"):
        assert [bool(np.isfinite(np.float32(number))) for number in numbers] == [True, True, False]
    assert [is_score(sign * number) for number in numbers for sign in (1, -1)] == [True] * 4 + [False] * 2


def test_bad_flagembedding_rows_are_refused_with_line_and_field(tmp_path):
    for row, message in [
        ({"query": "q", "pos": [], "neg": ["b"]}, r":1 \[pos\]: no positive"),
        ({"query": "q", "pos": "a text", "neg": ["b"]}, r":1 \[pos\]: expected a list of texts"),
        (
            {"query": "q", "pos": ["a"], "neg": ["b"], "neg_scores": [1, 2]},
            r":1 \[neg_scores\]: 2 scores for 1 passages",
        ),
    ]:
        with pytest.raises(DataError, match=message):
            read(tmp_path, [row])


def test_the_recipe_can_rename_columns(tmp_path):
    row = {"frage": "q", "antwort": "a", "falsch": "b"}
    columns = {"query": "frage", "positive": "antwort", "negative": "falsch"}
    assert read(tmp_path, [row], layout="triples", columns=columns) == {"q": (["a", "b"], [True, False], None)}


def test_renamed_columns_count_when_the_layout_is_detected(tmp_path):
    row = {"query": "q", "positive": "a", "hard": "b", "s": [2, 1]}
    triples = read(tmp_path, [row], columns={"negative": "hard", "score": "s"})
    assert triples == {"q": (["a", "b"], [True, False], [2.0, 1.0])}
    lists = read(tmp_path, [{"query": "q", "good": ["a"], "bad": ["b"]}], columns={"pos": "good", "neg": "bad"})
    assert lists == {"q": (["a", "b"], [True, False], None)}


def test_renamed_columns_must_exist_in_the_file_and_the_layout(tmp_path):
    pair, lists = {"query": "q", "positive": "a"}, {"query": "q", "pos": ["a"], "neg": ["b"]}
    with pytest.raises(
        DataError,
        match=r"in\.jsonl \[data\.source\.columns\.score\]: the file has no column 'nosuch'; "
        "its rows have: query, positive",
    ):
        read(tmp_path, [pair], columns={"score": "nosuch"})
    with pytest.raises(
        DataError,
        match=r"'columns\.score' is not read with layout: flagembedding, which has query, "
        "pos, neg",
    ):
        read(tmp_path, [lists], columns={"score": "neg"})
    assert read(tmp_path, [lists], columns={"negative": "neg"}) == {"q": (["a", "b"], [True, False], None)}
    saved = tmp_path / "saved"
    datasets.Dataset.from_list([pair]).save_to_disk(saved)
    source = HuggingFace(kind="huggingface", dataset=str(saved), columns={"score": "nosuch"})
    with pytest.raises(DataError, match="the file has no column 'nosuch'"):
        read_huggingface(source, 0, tmp_path)


@pytest.mark.parametrize("turned", [False, True])
def test_a_row_without_a_label_column_and_one_with_an_empty_label_are_told_apart(tmp_path, turned):
    rows = [{"query": "q", "positive": "a"}, {"query": "r", "positive": "b", "label": None}]
    with pytest.raises(DataError, match=rf":{1 if turned else 2} \[label\]: missing"):
        read(tmp_path, rows[::-1] if turned else rows)


@pytest.mark.parametrize(
    ("header", "options"),
    [("negative", {}), ("neg", {}), ("hard", {"columns": {"negative": "hard"}}), ("negative_1", {})],
)
def test_an_empty_cell_is_no_negative(tmp_path, header, options):
    (tmp_path / "in.csv").write_text(f"query,positive,{header}\nq,a,\nr,,b\n")
    assert lists_of(read_file(tmp_path / "in.csv", **options)) == {
        "q": (["a"], [True], None),
        "r": (["b"], [False], None),
    }


def test_rows_keep_their_own_ids(tmp_path):
    rows = [
        {"query": "q", "query_id": 7, "positive": "a", "negative": "a", "passage_ids": ["p1", "p2"]},
        {"query": "q", "query_id": "8", "pos": ["b"], "neg": ["a"], "pos_id": [3], "neg_id": ["p1"]},
    ]
    for row, expected in zip(rows, [("7", ["p1", "p2"]), ("8", ["3", "p1"])], strict=True):
        (batch,) = read_file(lines(tmp_path / "in.jsonl", [row])).lists["train"]
        assert [(parsed["query_id"], parsed["passage_ids"]) for parsed in batch.to_pylist()] == [expected]


def test_an_id_with_two_texts_is_refused(tmp_path):
    rows = [
        {"query": f"q{i}", "query_id": str(i), "positive": "a", "negative": f"b{i}", "passage_ids": ["a", f"b{i}"]}
        for i in range(3000)
    ]
    assert len(read(tmp_path, rows)) == 3000
    rows[2999]["positive"] = "another a"  # in another chunk than the first
    with pytest.raises(
        DataError,
        match=r"in\.jsonl:3000 \[passage_ids\]: the id 'a' stands for two texts \(the other "
        r"in line 1\); name the right column in data\.source\.columns\.passage_ids",
    ):
        read(tmp_path, rows)
    assert len(read(tmp_path, rows, columns={"passage_ids": None})) == 3000
    rows[1]["query_id"] = "0"
    with pytest.raises(DataError, match=r":2 \[query_id\]: the id '0' stands for two texts"):
        read(tmp_path, rows[:2])


def test_parquet_files_are_read_as_rows(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(
        pa.Table.from_pylist(
            [
                {"query": "q", "positive": "a", "negative": "b", "score": 0.5},
                {"query": "r", "positive": "b", "negative": None, "score": None},
            ]
        ),
        path,
    )
    assert lists_of(read_file(path)) == {"q": (["a", "b"], [True, False], [0.0, -0.5]), "r": (["b"], [True], None)}
    assert sniff(path).lines[:2] == (
        "2 rows in one file",
        "of the layout 'triples': 1 of the first 2 rows have negatives, 1 have scores",
    )
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"in\.parquet: damaged, not a whole Parquet file"):
        read_file(path)


def separated(rows: list[list[str]], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(("name", "delimiter"), [("in.csv", ","), ("in.tsv", "\t"), ("in.csv.gz", ",")])
def test_csv_and_tsv_files_with_a_header_line_are_read_as_rows(tmp_path, name, delimiter):
    content = (
        separated(
            [["query", "positive", "negative_1", "negative_2", "score"], ["one, two", "a", "b", "", "1.5"]], delimiter
        )
        + "\n"
    )
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    assert lists_of(read_file(path)) == {"one, two": (["a", "b"], [True, False], [0.0, -1.5])}


def test_quoted_csv_texts_keep_their_empty_lines(tmp_path):
    (tmp_path / "in.csv").write_text('query,positive\nq,"one\n\ntwo"\n')
    assert lists_of(read_file(tmp_path / "in.csv")) == {"q": (["one\n\ntwo"], [True], None)}


def test_rows_of_documents_without_queries_are_refused_with_the_layout_to_use(tmp_path):
    for row in ({"id": "1", "text": "a"}, {"_id": "1", "title": "t", "contents": "a"}):
        with pytest.raises(
            DataError,
            match=r"in\.jsonl:1 \[query\]: missing .*Documents alone, without queries, are "
            "read from a folder with corpus.jsonl, whose rows have `_id` and `text`",
        ):
            sniff(lines(tmp_path / "in.jsonl", [row]))
    with pytest.raises(DataError, match=r"\[query\]: missing") as caught:
        sniff(lines(tmp_path / "in.jsonl", [{"frage": "q", "text": "a", "negative": "b"}]))
    assert "Documents alone" not in str(caught.value)


def test_bad_csv_files_are_refused_with_their_line(tmp_path):
    for content, message in [
        ("query,text2\nq,a\n", r"in\.csv:2 \[positive\]: missing \(the row has 'query'"),
        ("query,positive\nq,a\nq\n", r"in\.csv:3: 1 columns, the header line has 2"),
        ('query,positive\nq,"a\n', r"in\.csv:2: not valid CSV"),
        ("query,positive,negative,negative\nq,a,b,c\n", r"in\.csv:1: two columns are named 'negative'"),
        ("query,positive\n", r"in\.csv: there are no rows"),
        ("query,positive,negative\nq,a,\"['b', 'c']\"\n", r"in\.csv:2 \[negative\]: \['b', 'c'\].* is a printed list"),
        ("what is it,an answer\nq,a\n", r"in\.csv:2 \[query\]: missing .*add a header line if the file has none"),
    ]:
        (tmp_path / "in.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            read_file(tmp_path / "in.csv")


def test_equal_texts_become_one_passage_across_chunks_of_rows(tmp_path):
    rows = [{"query": f"q{i % 3000}", "positive": f"p{i % 100}", "negative": f"n{i % 70}"} for i in range(6000)]
    collection = read_file(lines(tmp_path / "in.jsonl", rows))
    ids = [identifier for batch in collection.passages for identifier in batch.column("id").to_pylist()]
    assert len(ids) == len(set(ids)) == 170
    assert sum(batch.num_rows for batch in collection.queries["train"]) == 3000


@pytest.mark.parametrize("layout", ["trec", "beir", "beir without header"])
def test_judgements_are_read_in_trec_and_beir_form(tmp_path, layout):
    content = {
        "trec": ["q1 0 d1 2", "q1 0 d2  0"],
        "beir": ["query-id\tcorpus-id\tscore", "q1\td1\t2", "q1\td2\t0"],
        "beir without header": ["q1\td1\t2.0", "q1\td2\t0"],
    }[layout]
    (batch,) = read_qrels(lines(tmp_path / "qrels", content))
    rows = [(row["query_id"], row["passage_id"], row["grade"]) for row in batch.to_pylist()]
    assert rows == [("q1", "d1", 2), ("q1", "d2", 0)]


@pytest.mark.parametrize(
    ("first", "header"),
    [
        ("query-id\tcorpus-id\tscore", True),
        ("query_id 0 doc_id relevance", True),
        ("qid Q0 docno rel", True),
        ("QID\tPID\tLabel", True),
        ("q0 0 d0 high", False),
        ("q0\td0\thigh", False),
        ("query d0 score", False),
    ],
)
def test_the_first_line_of_judgements_is_a_header_only_if_it_names_columns(tmp_path, first, header):
    path = lines(tmp_path / "qrels", [first, "q1 0 d1 2" if len(first.split()) == 4 else "q1\td1\t2"])
    if header:
        (batch,) = read_qrels(path)
        assert batch.to_pylist() == [{"query_id": "q1", "passage_id": "d1", "grade": 2, "line": 2}]
    else:
        with pytest.raises(DataError, match=r"qrels:1 \[score\]: expected a whole number, found '(high|score)' \(nor"):
            list(read_qrels(path))


def test_a_json_object_is_read_item_by_item_in_small_blocks(tmp_path):
    tree = {"1": {"a}": 1.5, 'b"{': -2e-3}, "zwei": {"ü": 3}, "3": {}}
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(tree, indent=indent, ensure_ascii=False), encoding="utf-8")
        for block in range(1, 9):  # blocks end inside keys, numbers and escapes
            assert dict(json_object_items(tmp_path / "a.json", block)) == tree
    for content, message in [
        ('{"1": {"a": 1}', "end of the file"),
        ('{"1": {"a": }}', "not valid JSON"),
        ("[1]", "expected '{' at character 1"),
        ('{"1": {"a": 1} "2": {}}', "expected '}'"),
    ]:
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DataError, match=message):
            list(json_object_items(tmp_path / "a.json", block=7))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"q1": {"a": NaN}}', r"\[q1\.a\]: nan is not a finite number"),
        ('{"q1": {"zzz": 1}}', r"\[passage_id\]: there is no passage with the id 'zzz'"),
        ('{"q1": {"a": 1e39}}', r"\[q1\.a\]: 1e\+39 is too large for float32"),
        ('{"q1": ' + "[" * 100_000 + "]", r"scores\.json: not valid JSON: maximum recursion depth"),
        ('{"q1": {"a": true}}', r"\[q1\.a\]: True is not a number"),
        ('{"q1": {"a": 1}} {', "there is more after the object, at character 18"),
        ('{1: {"a": 1}}', "expected '\"' at character 2"),
        ('{"q1": [1]}', "query 'q1': expected an object of passage id -> score"),
    ],
)
def test_bad_naver_scores_are_refused(tmp_path, content, message):
    beir_folder(tmp_path)
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(DataError, match=message):
        import_data(
            recipe(
                {
                    "kind": "naver",
                    "scores": str(tmp_path / "scores.json"),
                    "collection": {"kind": "beir", "path": str(tmp_path)},
                }
            ),
            RunFolder(tmp_path / "run"),
        )


def test_a_trec_run_brings_scores_and_negatives(tmp_path):
    beir_folder(tmp_path)
    source = {
        "kind": "naver",
        "scores": str(lines(tmp_path / "a.run", ["q1 Q0 b 1 7.5 x", "q1 Q0 a 2 3 x"])),
        "collection": {"kind": "beir", "path": str(tmp_path)},
    }
    manifest = import_data(recipe(source), RunFolder(tmp_path / "run"))
    assert manifest.counts["lists.negatives"] == 1 and manifest.counts["lists.positives"] == 1
    lines(tmp_path / "a.run", ["q1 Q0 b 1 7.5 x", "q1 Q0 a 2 inf x"])
    with pytest.raises(DataError, match=r"a\.run:2 \[score\]: inf is not a finite number"):
        import_data(recipe(source), RunFolder(tmp_path / "run2"))


def test_datasets_saved_on_disk_are_read_in_both_layouts(tmp_path):
    rows = [{"anchor": "q1", "positive": "a", "negative": "b"}, {"anchor": "q2", "positive": "b", "negative": "a"}]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "rows")
    (tmp_path / "spool").mkdir()
    source = HuggingFace(kind="huggingface", dataset=str(tmp_path / "rows"))
    assert lists_of(read_huggingface(source, 0, tmp_path / "spool")) == {
        "q1": (["a", "b"], [True, False], None),
        "q2": (["b", "a"], [True, False], None),
    }
    with pytest.raises(DataError, match=r"\[split\]: no split 'validation' \(there are train\)"):
        read_huggingface(source.model_copy(update={"split": "validation"}), 0, tmp_path / "spool")
    saved = tmp_path / "beir"
    parts = {
        "corpus": [{"_id": "a", "title": None, "text": "cats"}, {"_id": "b", "title": "Dogs", "text": "bark"}],
        "queries": [{"_id": "1", "text": "loud"}, {"_id": "2", "text": "soft"}],
    }
    for name, part in parts.items():
        datasets.Dataset.from_list(part).save_to_disk(saved / name)
    datasets.DatasetDict(
        {"test": datasets.Dataset.from_list([{"query-id": "1", "corpus-id": "b", "score": 1.0}])}
    ).save_to_disk(saved / "qrels")
    run = RunFolder(tmp_path / "run")
    import_data(recipe({"kind": "huggingface", "dataset": str(saved), "layout": "beir"}), run)
    assert TextStore.open(run.passages).texts([0, 1]) == ["cats", "Dogs bark"]
    assert load_judgements(run, "test").positives(0).tolist() == [1]
    assert TextStore.open(run.queries("test")).texts([0]) == ["loud"]


def test_judgements_without_a_column_for_grades_are_of_grade_one(tmp_path):
    saved = tmp_path / "beir"
    datasets.Dataset.from_list([{"_id": "a", "text": "cats"}]).save_to_disk(saved / "corpus")
    datasets.Dataset.from_list([{"_id": "1", "text": "loud"}]).save_to_disk(saved / "queries")
    pair = {"query-id": "1", "corpus-id": "a"}
    datasets.Dataset.from_list([pair]).save_to_disk(saved / "qrels")
    source = {"kind": "huggingface", "dataset": str(saved), "layout": "beir"}
    import_data(recipe(source), RunFolder(tmp_path / "run"))
    assert load_judgements(RunFolder(tmp_path / "run"), "test").of(0)[1].tolist() == [1]
    datasets.Dataset.from_list([{**pair, "relevance": 2}]).save_to_disk(saved / "qrels")
    with pytest.raises(DataError, match=r"\[score\]: missing .*relevance.*; name the right column"):
        import_data(recipe(source), RunFolder(tmp_path / "other"))


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("qrels", "score", 0.5, r"beir:2 \[score\]: expected a whole number of 32 bits, found 0\.5"),
        ("qrels", "score", math.nan, r"beir:2 \[score\]: expected a whole number of 32 bits, found nan"),
        ("qrels", "score", 2**40, r"beir:2 \[score\]: expected a whole number of 32 bits, found 1099511627776"),
        ("qrels", "score", "a", r"beir:2 \[score\]: expected a whole number of 32 bits, found 'a'"),
        ("corpus", "text", ["a", "b"], r"beir:1 \[text\]: expected a text, found \['"),
        ("corpus", "title", ["a", "b"], r"beir:1 \[title\]: expected a text, found \['"),
    ],
)
def test_dataset_columns_of_another_type_are_refused_with_row_and_column(tmp_path, part, name, value, message):
    parts = {
        "corpus": {"_id": "a", "title": "", "text": "x"},
        "queries": {"_id": "1", "text": "loud"},
        "qrels": {"query-id": "1", "corpus-id": "a", "score": 1},
    }
    for other, row in parts.items():
        good = {list: ["fine"], str: "1"}.get(type(value), 1) if other == part else row.get(name)
        rows = [row] if other != part else [{**row, name: good}, {**row, name: value, "_id": "b"}]
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "beir" / other)
    source = {"kind": "huggingface", "dataset": str(tmp_path / "beir"), "layout": "beir"}
    with pytest.raises(DataError, match=message):
        import_data(recipe(source), RunFolder(tmp_path / "run"))


def test_ir_datasets_are_read_by_name(tmp_path):
    catalogue = pytest.importorskip("ir_datasets")
    from distill.importing.readers.ir_datasets import read_ir_datasets

    files = {"docs": ["d1\tcats", "d2\tdogs"], "queries": ["1\tloud"]}
    paths = {name: catalogue.util.LocalDownload(lines(tmp_path / f"{name}.tsv", rows)) for name, rows in files.items()}
    qrels = catalogue.util.LocalDownload(lines(tmp_path / "qrels", ["1 0 d2 1"]))
    docs = catalogue.formats.TsvDocs(paths["docs"])
    catalogue.registry.register("ours", catalogue.Dataset(docs))
    catalogue.registry.register(
        "ours/test",
        catalogue.Dataset(docs, catalogue.formats.TsvQueries(paths["queries"]), catalogue.formats.TrecQrels(qrels, {})),
    )
    collection = read_ir_datasets(IrDatasets(kind="ir-datasets", splits={"test": "ours/test"}))
    assert [row["text"] for batch in collection.passages for row in batch.to_pylist()] == ["cats", "dogs"]
    assert [row["text"] for batch in collection.queries["test"] for row in batch.to_pylist()] == ["loud"]
    assert [row["passage_id"] for batch in collection.judgements["test"] for row in batch.to_pylist()] == ["d2"]
    with pytest.raises(DataError, match="no dataset 'nowhere'"):
        read_ir_datasets(IrDatasets(kind="ir-datasets", splits={"test": "nowhere"}))
