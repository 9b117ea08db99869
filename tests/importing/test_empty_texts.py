"""Texts that are empty, blank or null: left out with what belongs to them, counted, and the same in every format."""

import csv
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.errors import DataError
from distill.importing.sniff import sniff
from tests.importing.files import beir_folder, lines
from tests.importing.test_accounting import counts_of
from tests.importing.test_readers import lists_of, read, read_file

nan = math.nan
ROWS = {  # row -> (passages, positive, scores)
    "null in a list": (
        {"query": "q", "positive": "a", "negatives": ["b", None, "c"], "scores": [4, 3, 2, 1]},
        (["a", "b", "c"], [True, False, False], [4, 3, 1]),
    ),
    "null without a score": (
        {"query": "q", "positive": "a", "negatives": ["b", None, None, "c"], "scores": [4, 3, 1]},
        (["a", "b", "c"], [True, False, False], [4, 3, 1]),
    ),
    "blank in a list": (
        {"query": "q", "pos": [" ", "a"], "neg": ["b", "\n"], "pos_scores": [4, 3], "neg_scores": [2, 1]},
        (["a", "b"], [True, False], [3, 2]),
    ),
    "null with labels": (
        {"query": "q", "passages": ["a", None, "b"], "labels": [1, None, 0], "scores": [2, None, 1]},
        (["a", "b"], [True, False], [2, 1]),
    ),
    "positive": (
        {"query": "q", "positive": "", "negative": "b", "scores": [2, 1]},
        (["b"], [False], [1]),
    ),
    "positive with margins": ({"query": "q", "positive": "", "negative": "b", "score": 1}, (["b"], [False], [nan])),
    "ids": (
        {"query": "q", "positive": "a", "negatives": [None, "b"], "passage_ids": ["1", None, "2"]},
        (["a", "b"], [True, False], None),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_an_empty_text_is_left_out_with_what_belongs_to_it(tmp_path, name):
    row, (passages, positive, scores) = ROWS[name]
    parsed = read(tmp_path, [{"query": "p", "positive": "z"}, row])["q"]
    assert parsed[:2] == (passages, positive)
    assert parsed[2] == (scores if scores is None else pytest.approx(scores, nan_ok=True))


def test_numbers_that_fit_scores_and_margins_are_refused(tmp_path):
    row = {"query": "q", "positive": "a", "negatives": ["b", None], "scores": [2, 1]}
    with pytest.raises(DataError, match=r"in\.jsonl:1 \[scores\]: 2 numbers for 3 .* since one is null, both fit"):
        read(tmp_path, [row])


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_empty_texts_are_counted_and_told_in_every_format(tmp_path, ending, caplog):
    rows = [
        {"query": "q", "positive": "a", "negative": "b"},
        {"query": "r", "positive": None, "negative": "b"},
        {"query": "r", "positive": None, "negative": None},
        {"query": None, "positive": "a", "negative": "b"},
        {"query": " ", "positive": "a", "negative": "b"},
    ]
    path = tmp_path / f"in.{ending}"
    if ending == "jsonl":
        lines(path, rows)
    elif ending == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["query", "positive", "negative"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert lists_of(read_file(path)) == {"q": (["a", "b"], [True, False], None), "r": (["b"], [False], None)}
    counts = counts_of(tmp_path, {"kind": "jsonl", "path": str(path)})
    told = {"empty texts in 'positive'": 2, "rows without a passage": 1, "rows without a query": 2}
    assert counts["unread"] == told and counts["passages"] == 2 and counts["lists.queries"] == 1
    assert "not read: empty texts in 'positive' (2 texts)" in caplog.text
    assert "not read: rows without a query (2 rows of the first 5 rows)" in sniff(path).lines


def test_a_file_without_any_whole_row_is_refused(tmp_path):
    path = lines(tmp_path / "in.jsonl", [{"query": "", "positive": "a"}, {"query": "q", "positive": " "}])
    message = r"in\.jsonl: no row has both a query and a passage: 1 empty texts in 'positive', 1 rows without a passage"
    with pytest.raises(DataError, match=message):
        counts_of(tmp_path, {"kind": "jsonl", "path": str(path)})
    with pytest.raises(DataError, match=message):
        sniff(path)


def test_empty_queries_and_positives_of_a_folder_are_not_trained_on(tmp_path, caplog):
    folder = beir_folder(tmp_path)
    lines(folder / "corpus.jsonl", [{"_id": name, "text": text} for name, text in (("a", "x"), ("b", " "), ("c", "y"))])
    lines(folder / "qrels" / "train.tsv", ["q1\tb\t1", "q1\ta\t1", "q2\ta\t1", "q3\tb\t1"])
    scores = lines(tmp_path / "scores.json", [{"q1": {"c": 1, "b": 2}}])
    lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": text} for i, text in enumerate(("loud", "", "z"), 1)])
    source = {"kind": "naver", "scores": str(scores), "collection": {"kind": "beir", "path": str(folder)}}
    counts = counts_of(tmp_path, source, {"given": {"kind": "imported"}})
    assert counts["queries.train.without_text"] == 1 and counts["judgements.train.without_text"] == 2
    assert (counts["queries.train"], counts["judgements.train"], counts["lists.empty_negatives"]) == (1, 1, 1)
    assert "1 training queries have no text and are left out" in caplog.text
    assert "2 positives of training queries have no text and are left out" in caplog.text
    assert "1 negatives have no text; left out" in caplog.text
