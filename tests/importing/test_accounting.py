"""A source is accounted for: what is not read is named with its number, and what can't be right is told."""

from __future__ import annotations

import logging

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import DataError
from distill.importing.lists import outscored_lists
from distill.importing.readers.base import Location
from distill.importing.readers.columns import ColumnMap
from distill.importing.sniff import sniff
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.store.arrow import RowReader
from distill.store.candidates import Candidates
from distill.store.judgements import load_judgements
from distill.store.texts import TextStore
from tests.helpers.stages import import_data
from tests.importing.files import beir_folder, lines


def counts_of(tmp_path, source: dict, teachers: dict | None = None, **data) -> dict:
    recipe = parse_recipe(
        {
            "name": "t",
            "data": {"source": source, **data},
            "teachers": teachers or {"t": {"kind": "bm25"}},
            "student": {"model": "x"},
        }
    )
    return import_data(recipe, RunFolder(tmp_path / "run")).counts


def test_columns_that_are_not_read_are_named_with_their_rows(tmp_path, caplog):
    rows = [
        {"query": "q", "positive": "a", "negative": "b", "url": "http://x", "empty": None},
        {"query": "r", "positive": "a", "negative": "b", "url": None, "date": "today"},
    ]
    counts = counts_of(tmp_path, {"kind": "jsonl", "path": str(lines(tmp_path / "in.jsonl", rows))})
    assert counts["unread"] == {"column 'date'": 1, "column 'url'": 1}
    assert "not read: column 'url' (1 rows)" in caplog.text


def test_negatives_in_any_row_are_read_whatever_the_first_row_has(tmp_path):
    rows = [{"query": "q0", "positive": "a"}] + [{"query": f"q{i}", "positive": "a", "neg": ["b"]} for i in (1, 2)]
    counts = counts_of(tmp_path, {"kind": "jsonl", "path": str(lines(tmp_path / "in.jsonl", rows))})
    assert counts["lists.negatives"] == 2 and "unread" not in counts


def test_fields_and_files_of_a_beir_folder_that_are_not_read_are_named(tmp_path):
    folder = beir_folder(tmp_path)
    lines(folder / "corpus.jsonl", [{"_id": "b", "text": "dogs", "metadata": {}, "url": "u"}])
    lines(folder / "queries.jsonl", [{"_id": "q1", "text": "loud", "answer": "bark"}])
    lines(folder / "qrels" / "validation.tsv", ["q1\tb\t1"])
    (folder / "README.md").write_text("notes")
    assert counts_of(tmp_path, {"kind": "beir", "path": str(folder)})["unread"] == {
        "field of corpus.jsonl 'url'": 1,
        "field of queries.jsonl 'answer'": 1,
        "file 'README.md'": 5,
        "file 'qrels/validation.tsv'": 7,
    }


def test_splits_of_a_saved_dataset_that_are_not_read_are_named(tmp_path):
    row = {"query": "q", "positive": "a", "negative": "b"}
    splits = {name: datasets.Dataset.from_list([row] * size) for name, size in (("train", 1), ("test", 3))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert counts_of(tmp_path, {"kind": "huggingface", "dataset": str(tmp_path / "saved")})["unread"] == {
        "split 'test'": 3
    }
    found = sniff(tmp_path / "saved")
    assert "not read: the split 'test', 3 rows" in found.lines and found.data.source.test_queries == 0


def test_a_folder_of_parquet_shards_is_one_source(tmp_path):
    (tmp_path / "in").mkdir()
    for shard in range(2):
        rows = [{"query": f"q{shard}{i}", "positive": "a", "negative": "b"} for i in range(20)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / f"train-0000{shard}-of-00002.parquet")
    found = sniff(tmp_path / "in")
    assert (found.data.source.kind, found.data.source.test_queries) == ("huggingface", 4)
    source = found.data.source.model_dump(mode="json")
    assert counts_of(tmp_path, source)["lists.queries"] == 34


def test_grades_of_rows_become_grades_of_judgements(tmp_path):
    rows = [{"query": "q", "docs": ["a", "b", "c"], "labels": [0, 3, 1]}]
    counts_of(tmp_path, {"kind": "jsonl", "path": str(lines(tmp_path / "in.jsonl", rows))})
    folder = RunFolder(tmp_path / "run")
    passages, grades = load_judgements(folder, "train").of(0)
    texts = TextStore.open(folder.passages).texts(passages)
    assert dict(zip(texts, grades.tolist(), strict=True)) == {"b": 3, "c": 1}


def test_judgements_of_what_is_missing_are_refused_with_a_way_out_or_left_out_and_counted(tmp_path, caplog):
    folder = beir_folder(tmp_path)
    lines(folder / "qrels" / "train.tsv", ["q1\tb\t1", "q7\ta\t1", "q1\td99\t1"])
    with pytest.raises(DataError, match=r"train\.tsv:2 .*no query with the id 'q7'.*data\.on_missing: drop"):
        counts_of(tmp_path, {"kind": "beir", "path": str(folder)})
    lines(folder / "qrels" / "train.tsv", ["q1\tb\t1", "q1\td99\t1", "q1\td98\t1"])
    with pytest.raises(DataError, match=r"train\.tsv:2 .*no passage with the id 'd99'.*data\.on_missing: drop"):
        counts_of(tmp_path, {"kind": "beir", "path": str(folder)})
    counts = counts_of(tmp_path, {"kind": "beir", "path": str(folder)}, on_missing="drop")
    assert counts["judgements.train.dropped"] == 2 and counts["judgements.train"] == 1
    assert "2 judgements of the train split name what the source does not have" in caplog.text


def test_scores_of_missing_passages_are_left_out_and_counted(tmp_path):
    folder = beir_folder(tmp_path)
    scores = lines(tmp_path / "scores.json", [{"q1": {"zzz": 9, "a": 1, "b": 2, "yyy": 3}}])
    source = {"kind": "naver", "scores": str(scores), "collection": {"kind": "beir", "path": str(folder)}}
    counts = counts_of(tmp_path, source, {"given": {"kind": "imported"}}, on_missing="drop")
    assert counts["lists.dropped"] == 2 and counts["lists.negatives"] == 1 and "unread" not in counts
    table = RowReader(RunFolder(tmp_path / "run").scores("given", "train") / "part-00000.arrow").table()
    assert sorted(np.concatenate([list(row) for row in table.column("scores").to_pylist()])) == [1.0, 2.0]


def test_lists_for_a_split_without_judgements_are_named(tmp_path):
    folder = beir_folder(tmp_path)
    (folder / "qrels" / "train.tsv").rename(folder / "qrels" / "test.tsv")
    scores = lines(tmp_path / "scores.json", [{"q1": {"a": 1}}])
    source = {"kind": "naver", "scores": str(scores), "collection": {"kind": "beir", "path": str(folder)}}
    assert counts_of(tmp_path, source)["unread"] == {"lists of scores for the split 'train'": 1}


def test_lines_that_repeat_an_earlier_one_are_kept_once(tmp_path, caplog):
    folder = beir_folder(tmp_path)
    texts = [{"_id": str(i), "text": f"text {i}"} for i in range(3)]
    lines(folder / "corpus.jsonl", [texts[0], texts[1], texts[0], texts[2], texts[1]])
    lines(folder / "queries.jsonl", [{"_id": "q1", "text": "loud"}] * 2)
    lines(folder / "qrels" / "train.tsv", ["q1\t2\t1"])
    counts = counts_of(tmp_path, {"kind": "beir", "path": str(folder)}, generate={"min_words": 1})
    run = RunFolder(tmp_path / "run")
    assert counts["passages.repeated"] == 2 and counts["queries.train.repeated"] == 1
    assert TextStore.open(run.passages).ids(np.arange(3)) == ["0", "1", "2"]
    assert load_judgements(run, "train").positives(0).tolist() == [2]
    assert "2 lines of passages repeat an earlier one" in caplog.text


@pytest.mark.parametrize("identifier", ["d 1", "d\t1", "d\u00a01", "d\u30001", "d\n1", "d\x001"])
def test_ids_that_trec_files_cannot_hold_are_refused_or_quoted(tmp_path, identifier):
    folder = beir_folder(tmp_path)
    lines(folder / "corpus.jsonl", [{"_id": identifier, "text": "cats"}, {"_id": "100%", "text": "dogs"}])
    rows = [{"query": "q", "query_id": "q%", "positive": "a", "negative": "b", "passage_ids": [identifier, "b"]}]
    for source in (
        {"kind": "beir", "path": str(folder), "splits": {}},
        {"kind": "jsonl", "path": str(lines(tmp_path / "in.jsonl", rows))},
    ):
        with pytest.raises(DataError, match=r"\[id\]: the passage id .* has a blank .*data\.quote_ids: true"):
            counts_of(tmp_path / source["kind"], source)
        counts_of(tmp_path / source["kind"], source, quote_ids=True)
    ids = TextStore.open(RunFolder(tmp_path / "beir" / "run").passages).ids(np.arange(2))
    assert all(len(name.split()) == 1 for name in ids) and ids[1] == "100%25"
    assert load_judgements(RunFolder(tmp_path / "jsonl" / "run"), "train").positives(0).tolist() == [0]


def test_a_very_long_id_is_refused(tmp_path):
    folder = beir_folder(tmp_path)
    lines(folder / "corpus.jsonl", [{"_id": "x" * 1001, "text": "cats"}])
    with pytest.raises(DataError, match="has 1,001 characters"):
        counts_of(tmp_path, {"kind": "beir", "path": str(folder), "splits": {}})


def test_test_queries_that_are_training_queries_are_counted(tmp_path, caplog):
    folder = beir_folder(tmp_path)
    lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": text} for i, text in enumerate(["x", "y", "x", "z"])])
    lines(folder / "qrels" / "train.tsv", ["q0\ta\t1", "q1\tb\t1"])
    lines(folder / "qrels" / "test.tsv", ["q1\tb\t1", "q2\ta\t1", "q3\tb\t1"])
    assert counts_of(tmp_path, {"kind": "beir", "path": str(folder)})["queries.test.in_training"] == 2
    assert "2 of 3 test queries are training queries, too" in caplog.text


def test_what_contradicts_itself_is_counted_and_told(tmp_path, caplog):
    rows = [
        {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [4], "neg_scores": [1]},
        {"query": "q", "pos": ["a"], "neg": ["c"], "pos_scores": [9], "neg_scores": [1]},
        {"query": "q", "pos": ["b"], "neg": ["d"], "pos_scores": [3], "neg_scores": [0]},
    ]
    source = {"kind": "jsonl", "path": str(lines(tmp_path / "in.jsonl", rows))}
    counts = counts_of(tmp_path, source, {"given": {"kind": "imported"}})
    assert (counts["lists.negatives_judged_positive"], counts["lists.pairs_with_several_scores"]) == (1, 2)
    assert "1 passages are negatives in one place and positives of the same query" in caplog.text
    folder = beir_folder(tmp_path)
    lines(folder / "qrels" / "train.tsv", ["q1\tb\t1", "q1\tb\t3", "q1\ta\t1", "q1\ta\t1"])
    counts_of(tmp_path / "again", {"kind": "beir", "path": str(folder)})
    assert "1 judgements repeat another one with a different grade" in caplog.text


def test_a_field_that_stands_twice_in_an_object_is_refused(tmp_path):
    path = lines(tmp_path / "in.jsonl", ['{"query": "q", "positive": "a", "positive": "b"}'])
    with pytest.raises(DataError, match=r"in\.jsonl:1: the field 'positive' stands twice"):
        counts_of(tmp_path, {"kind": "jsonl", "path": str(path)})


def test_test_queries_that_are_development_queries_are_counted(tmp_path, caplog):
    folder = beir_folder(tmp_path)
    for split in ("dev", "test"):
        lines(folder / "qrels" / f"{split}.tsv", ["q1\tb\t1"])
    counts = counts_of(tmp_path, {"kind": "beir", "path": str(folder)})
    assert counts["queries.test.in_development"] == counts["queries.test.in_training"] == 1
    assert "1 of 1 test queries are development queries, too" in caplog.text


def test_rows_of_several_lines_and_splits_of_other_names_are_recognised(tmp_path):
    (tmp_path / "in.csv").write_text("query,positive\n" + "".join(f'q{i},"one\ntwo\nthree {i}"\n' for i in range(20)))
    found = sniff(tmp_path / "in.csv")
    assert found.lines[0] == "20 rows in one file" and found.data.source.test_queries == 2
    (tmp_path / "bars.csv").write_text("query|positive|negative\nq|a, b|c\n")
    assert sniff(tmp_path / "bars.csv").data.source.layout == "triples"
    row = {"query": "q", "positive": "a", "negative": "b"}
    datasets.DatasetDict({"validation": datasets.Dataset.from_list([row])}).save_to_disk(tmp_path / "saved")
    assert sniff(tmp_path / "saved").data.source.split == "validation"


def test_lists_whose_negatives_outscore_the_positive_are_told(tmp_path, caplog):
    rows = [
        {"query": f"q{i}", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [0.9], "neg_scores": [5, i]} for i in range(3)
    ]
    source = {"kind": "jsonl", "path": str(lines(tmp_path / "in.jsonl", rows))}
    counts = counts_of(tmp_path, source, {"given": {"kind": "imported"}})
    assert (counts["lists.scored"], counts["lists.outscored"]) == (3, 2)
    assert "in 2 of 3 lists most negatives outscore the positive" in caplog.text


@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.none() | st.integers(-3, 3)), min_size=1, max_size=6),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_outscored_lists_equal_the_written_out_rule(lists):
    expected = [0, 0]
    for pairs in lists:
        positives = [score for positive, score in pairs if positive and score is not None]
        negatives = [score for positive, score in pairs if not positive and score is not None]
        if positives and negatives:
            expected[0] += 1
            expected[1] += 2 * sum(score > max(positives) for score in negatives) > len(negatives)
    flat = [pair for pairs in lists for pair in pairs]
    count = len(flat)
    candidates = Candidates(
        query=np.arange(len(lists)),
        offsets=np.cumsum([0, *map(len, lists)]),
        passages=np.arange(count),
        positive=np.array([positive for positive, _ in flat]),
        source=np.zeros(count, np.uint8),
        rank=np.zeros(count, np.int32),
    )
    scores = np.array([np.nan if score is None else score for _, score in flat], np.float32)
    assert outscored_lists(candidates, scores) == tuple(expected)


def test_judgements_in_csv_are_read_as_those_in_tsv(tmp_path, caplog):
    folder = beir_folder(tmp_path)
    (folder / "qrels" / "train.tsv").unlink()
    (folder / "qrels" / "train.csv").write_text("query-id,corpus-id,score\nq1,b,2\n")
    assert sniff(folder).data.source.splits == {"train": "train"}
    assert counts_of(tmp_path, {"kind": "beir", "path": str(folder)})["judgements.train"] == 1


def test_judgements_of_no_known_split_are_refused_with_their_names(tmp_path):
    folder = beir_folder(tmp_path)
    (folder / "qrels" / "train.tsv").rename(folder / "qrels" / "learn.tsv")
    with pytest.raises(DataError, match=r"there are judgements in qrels/ \(learn\.tsv\), but for no split"):
        counts_of(tmp_path, {"kind": "beir", "path": str(folder)})
    assert any("not read: qrels/learn.tsv" in line for line in sniff(folder).lines)


@pytest.mark.parametrize("content", ["", "query-id\tcorpus-id\tscore\n"])
def test_a_split_without_judgements_is_refused_at_the_import(tmp_path, content):
    folder = beir_folder(tmp_path)
    (folder / "qrels" / "test.tsv").write_text(content)
    with pytest.raises(DataError, match=r"test\.tsv: there are no judgements .*data\.source\.splits"):
        counts_of(tmp_path, {"kind": "beir", "path": str(folder)})
    assert any("no judgements for a test or development split" in line for line in sniff(folder).lines)


NAMES = st.sampled_from(
    [
        "query",
        "anchor",
        "positive",
        "pos",
        "text",
        "answer",
        "negative",
        "neg",
        "negatives",
        "negative_1",
        "negative_10",
        "negative_²",
        "label",
        "labels",
        "score",
        "passages",
        "docs",
        "pos_scores",
        "neg_scores",
        "pos_id",
        "qid",
        "url",
    ]
)


@given(st.sets(NAMES), st.sampled_from(["auto", "triples", "flagembedding", "pairs"]))
@settings(max_examples=300, deadline=None)
def test_every_column_is_read_once_or_unread(columns, layout):
    names = tuple(sorted(columns))
    try:
        found = ColumnMap.of(names, names, layout, {}, Location("x", 1))
    except DataError as error:
        assert any(name in str(error) for name in names)
        return
    read = {*found.fields.values(), *found.negatives, *found.passage_ids}
    assert sorted([*read, *found.unread]) == list(names)
    if layout == "auto":  # what may hold negatives or labels is never passed over in silence
        assert not {"negative_1", "negative", "label"} & set(found.unread) or "pos" in names


def test_the_same_column_cannot_be_two_fields(tmp_path):
    with pytest.raises(Exception, match="the one column 'text' can't be both query and positive"):
        counts_of(tmp_path, {"kind": "jsonl", "path": "x", "columns": {"query": "text", "positive": "text"}})


def test_a_renamed_column_is_not_read_as_another_field_too(tmp_path):
    rows = [{"text": "the question", "answer": "the answer"}]
    source = {"kind": "jsonl", "path": str(lines(tmp_path / "in.jsonl", rows)), "columns": {"query": "text"}}
    counts_of(tmp_path, source)
    assert TextStore.open(RunFolder(tmp_path / "run").passages).texts(np.arange(1)) == ["the answer"]


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level(logging.INFO, logger="distill")
