"""Readers of rows and score files: the layouts in use elsewhere, and what they must not contain."""

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
from distill.data.importing import import_data
from distill.data.inspect import sizes_of, sniff
from distill.data.judgements import load_judgements
from distill.data.layout import RunFolder
from distill.data.readers.base import Collection, is_score
from distill.data.readers.huggingface import read_huggingface
from distill.data.readers.jsonl import read_jsonl
from distill.data.readers.naver import json_object_items
from distill.data.readers.qrels import read_qrels
from distill.data.texts import TextStore
from distill.errors import DataError
from distill.recipe_file import parse_recipe


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def lists_of(collection: Collection) -> dict[str, tuple]:
    """query -> (passages, positives, scores), by text."""
    texts = {row["id"]: row["text"] for batch in collection.passages for row in batch.to_pylist()}
    queries = {
        row["id"]: row["text"] for split in collection.queries.values() for batch in split for row in batch.to_pylist()
    }
    return {
        queries[row["query_id"]]: ([texts[p] for p in row["passage_ids"]], row["positive"], row["scores"])
        for batch in collection.lists["train"]
        for row in batch.to_pylist()
    }


def read(tmp_path: Path, rows: list, **options) -> dict[str, tuple]:
    spool = tmp_path / "spool"
    spool.mkdir(exist_ok=True)
    source = Jsonl(kind="jsonl", path=lines(tmp_path / "in.jsonl", rows), **options)
    return lists_of(read_jsonl(source, 0, spool))


LAYOUTS = {  # sentence-transformers' mine_hard_negatives writes the first six, its MarginMSE data the next two
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
    "list with scores": (
        {"query": "q", "answer": ["a", "b"], "scores": [0.5, 0.25]},
        (["a", "b"], [True, False], [0.5, 0.25]),
    ),
    "labelled pair": ({"query": "q", "positive": "a", "label": 0}, (["a"], [False], None)),
    "labelled pair with a score": ({"query": "q", "positive": "a", "label": 0, "score": 1.5}, (["a"], [False], [1.5])),
    "labelled list with scores": (
        {"query": "q", "passages": ["a", "b"], "labels": [0, 1], "scores": [3.0, 1.5]},
        (["a", "b"], [False, True], [3.0, 1.5]),
    ),
    "a score is missing": (
        {"query": "q", "positive": "a", "negative": "b", "scores": [None, 0.5]},
        (["a", "b"], [True, False], [math.nan, 0.5]),
    ),
    "no negative": ({"query": "q", "positive": "a", "negative": None}, (["a"], [True], None)),
    "fewer negatives": (
        {"query": "q", "positive": "a", "negative_1": "", "negative_2": None, "scores": [1.0, 0.5]},
        (["a", ""], [True, False], [1.0, 0.5]),
    ),
    "margin": ({"query": "q", "positive": "a", "negative": "b", "label": 2.5}, (["a", "b"], [True, False], [0, -2.5])),
    "margins": (
        {"query": "q", "positive": "a", "negative_1": "b", "negative_2": "c", "label": [1.0, 3.0]},
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
def test_layouts_are_told_apart_by_their_fields(tmp_path, name):
    row, (passages, positive, scores) = LAYOUTS[name]
    (found,) = read(tmp_path, [row]).values()
    assert found[:2] == (passages, positive)
    assert found[2] == (scores if scores is None else pytest.approx(scores, nan_ok=True))


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
    "brackets in brackets": ("[" * 100_000, r"in\.jsonl:2: this JSON cannot be read: maximum recursion depth"),
    "thousands of digits": ('{"query": ' + "1" * 5000 + "}", r":2: this JSON cannot be read: Exceeds the limit"),
    "score is a text": (
        {"query": "q", "positive": "a", "negative": "b", "score": ["high", 1]},
        r":2 \[score\]: 'high' is not a number",
    ),
    "a label is missing": (
        {"query": "q", "passages": ["a", "b"], "labels": [1, None]},
        r":2 \[labels\]: None is not a finite number",
    ),
    "too few ids": (
        {"query": "q", "positive": "a", "negative": "b", "passage_ids": ["1"]},
        r":2 \[passage_ids\]: 1 ids for 2 passages",
    ),
    "empty id": ({"query": "q", "positive": "a", "negative": "b", "query_id": ""}, r":2 \[query_id\]: empty id"),
    "pair with a score": (
        {"query": "q", "positive": "a", "score": 0.7},
        r":2 \[score\]: a pair's label must be 0 or 1",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_refused_with_line_and_field(tmp_path, name):
    row, message = BAD_ROWS[name]
    with pytest.raises(DataError, match=message):
        read(tmp_path, [{"query": "fine", "positive": "a", "negative": "b"}, row], layout="triples")


def test_scores_are_taken_as_far_as_float32_goes(tmp_path):
    numbers = [float(np.finfo(np.float32).max), float("3.4028235e38"), 2.0**128 - 2.0**103]  # the last one is a tie
    with np.errstate(over="ignore"):
        assert [bool(np.isfinite(np.float32(number))) for number in numbers] == [True, True, False]
    assert [is_score(sign * number) for number in numbers for sign in (1, -1)] == [True] * 4 + [False] * 2


def test_bad_flagembedding_rows(tmp_path):
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


def test_columns_of_other_names_are_named_in_the_recipe(tmp_path):
    row = {"frage": "q", "antwort": "a", "falsch": "b"}
    columns = {"query": "frage", "positive": "antwort", "negative": "falsch"}
    assert read(tmp_path, [row], layout="triples", columns=columns) == {"q": (["a", "b"], [True, False], None)}


def test_a_layout_is_told_by_the_columns_that_the_recipe_names(tmp_path):
    row = {"query": "q", "positive": "a", "hard": "b", "s": [2, 1]}
    found = read(tmp_path, [row], columns={"negative": "hard", "score": "s"})
    assert found == {"q": (["a", "b"], [True, False], [2.0, 1.0])}
    found = read(tmp_path, [{"query": "q", "good": ["a"], "bad": ["b"]}], columns={"pos": "good", "neg": "bad"})
    assert found == {"q": (["a", "b"], [True, False], None)}


def test_columns_that_the_file_or_the_layout_lacks_are_refused(tmp_path):
    pair, lists = {"query": "q", "positive": "a"}, {"query": "q", "pos": ["a"], "neg": ["b"]}
    with pytest.raises(
        DataError,
        match=r"in\.jsonl \[data\.source\.columns\.score\]: the file has no column 'nosuch'; "
        "its first row has: query, positive",
    ):
        read(tmp_path, [pair], columns={"score": "nosuch"})
    with pytest.raises(
        DataError,
        match=r"'columns\.negative' is not read with layout: flagembedding, which has query, "
        "pos, neg",
    ):
        read(tmp_path, [lists], columns={"negative": "neg"})
    saved = tmp_path / "saved"
    datasets.Dataset.from_list([pair]).save_to_disk(saved)
    source = HuggingFace(kind="huggingface", dataset=str(saved), columns={"score": "nosuch"})
    with pytest.raises(DataError, match="the file has no column 'nosuch'"):
        read_huggingface(source, 0, tmp_path)


def test_rows_may_bring_their_own_ids(tmp_path):
    rows = [
        {"query": "q", "query_id": 7, "positive": "a", "negative": "a", "passage_ids": ["p1", "p2"]},
        {"query": "q", "query_id": "8", "pos": ["b"], "neg": ["a"], "pos_id": [3], "neg_id": ["p1"]},
    ]
    for number, row, expected in [(0, rows[0], ("7", ["p1", "p2"])), (1, rows[1], ("8", ["3", "p1"]))]:
        spool = tmp_path / str(number)
        spool.mkdir()
        source = Jsonl(kind="jsonl", path=lines(tmp_path / "in.jsonl", [row]))
        (batch,) = read_jsonl(source, 0, spool).lists["train"]
        assert [(found["query_id"], found["passage_ids"]) for found in batch.to_pylist()] == [expected]


def test_an_id_stands_for_one_text(tmp_path):
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


def test_parquet_files_hold_rows_too(tmp_path):
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
    (tmp_path / "spool").mkdir()
    found = lists_of(read_jsonl(Jsonl(kind="jsonl", path=path), 0, tmp_path / "spool"))
    assert found == {"q": (["a", "b"], [True, False], [0.0, -0.5]), "r": (["b"], [True], None)}
    assert sniff(path).lines[0] == "2 rows of the layout 'triples': columns query, positive, negative, score"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"in\.parquet: damaged, not a whole Parquet file"):
        read_jsonl(Jsonl(kind="jsonl", path=path), 0, tmp_path / "spool")


def separated(rows: list[list[str]], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(("name", "delimiter"), [("in.csv", ","), ("in.tsv", "\t"), ("in.csv.gz", ",")])
def test_csv_and_tsv_have_a_header_line(tmp_path, name, delimiter):
    content = (
        separated(
            [["query", "positive", "negative_1", "negative_2", "label"], ["one, two", "a", "b", "", "1.5"]], delimiter
        )
        + "\n"
    )
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    (tmp_path / "spool").mkdir()
    found = lists_of(read_jsonl(Jsonl(kind="jsonl", path=path), 0, tmp_path / "spool"))
    assert found == {"one, two": (["a", "b"], [True, False], [0.0, -1.5])}


def test_a_quoted_text_keeps_its_empty_lines(tmp_path):
    (tmp_path / "in.csv").write_text('query,positive\nq,"one\n\ntwo"\n')
    (tmp_path / "spool").mkdir()
    found = lists_of(read_jsonl(Jsonl(kind="jsonl", path=tmp_path / "in.csv"), 0, tmp_path / "spool"))
    assert found == {"q": (["one\n\ntwo"], [True], None)}


def test_documents_alone_are_told_where_they_belong(tmp_path):
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


def test_csv_faults(tmp_path):
    for content, message in [
        ("query,text2\nq,a\n", r"in\.csv:2 \[positive\]: missing \(the row has 'query'"),
        ("query,positive\nq,a\nq\n", r"in\.csv:3: 1 columns, the header line has 2"),
        ('query,positive\nq,"a\n', r"in\.csv:2: not valid CSV"),
        ("query,positive,negative,negative\nq,a,b,c\n", r"in\.csv:1: the column 'negative' is there twice"),
        ("query,positive\n", r"in\.csv: the file has no rows"),
    ]:
        (tmp_path / "in.csv").write_text(content)
        spool = tmp_path / "spool"
        spool.mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            read_jsonl(Jsonl(kind="jsonl", path=tmp_path / "in.csv"), 0, spool)


def test_equal_texts_in_thousands_of_rows_are_one_passage(tmp_path):
    rows = [{"query": f"q{i % 3000}", "positive": f"p{i % 100}", "negative": f"n{i % 70}"} for i in range(6000)]
    source = Jsonl(kind="jsonl", path=lines(tmp_path / "in.jsonl", rows))
    (tmp_path / "spool").mkdir()
    collection = read_jsonl(source, 0, tmp_path / "spool")
    ids = [identifier for batch in collection.passages for identifier in batch.column("id").to_pylist()]
    assert len(ids) == len(set(ids)) == 170
    assert sum(batch.num_rows for batch in collection.queries["train"]) == 3000


@pytest.mark.parametrize("layout", ["trec", "beir", "beir without header"])
def test_judgements_in_both_forms(tmp_path, layout):
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
def test_a_first_line_is_a_header_only_if_it_names_columns(tmp_path, first, header):
    path = lines(tmp_path / "qrels", [first, "q1 0 d1 2" if len(first.split()) == 4 else "q1\td1\t2"])
    if header:
        (batch,) = read_qrels(path)
        assert batch.to_pylist() == [{"query_id": "q1", "passage_id": "d1", "grade": 2, "line": 2}]
    else:
        with pytest.raises(DataError, match=r"qrels:1 \[score\]: expected a whole number, found '(high|score)' \(nor"):
            list(read_qrels(path))


def test_a_great_json_object_is_read_item_by_item(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.data.readers.naver._READ_BYTES", 7)  # every boundary falls inside something
    tree = {"1": {"a}": 1.5, 'b"{': -2e-3}, "zwei": {"ü": 3}, "3": {}}
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(tree, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert dict(json_object_items(tmp_path / "a.json")) == tree
    for content, message in [
        ('{"1": {"a": 1}', "end of the file"),
        ('{"1": {"a": }}', "not valid JSON"),
        ("[1]", "expected '{' at character 1"),
        ('{"1": {"a": 1} "2": {}}', "expected '}'"),
    ]:
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DataError, match=message):
            list(json_object_items(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"q1": {"a": NaN}}', r"\[score\]: query 'q1', passage 'a': nan is not a finite number"),
        ('{"q1": {"zzz": 1}}', r"\[passage_id\]: there is no passage with the id 'zzz'"),
        ('{"q1": {"a": 1e39}}', r"\[score\]: query 'q1', passage 'a': 1e\+39 is too large for float32"),
        ('{"q1": ' + "[" * 100_000 + "]", r"scores\.json: not valid JSON: maximum recursion depth"),
        ('{"q1": [1]}', "query 'q1': expected an object of passage id -> score"),
    ],
)
def test_bad_scores_are_refused(tmp_path, content, message):
    folder(tmp_path)
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


def test_a_trec_run_brings_scores_too(tmp_path):
    folder(tmp_path)
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
def test_columns_of_another_type_are_refused_with_their_row(tmp_path, part, name, value, message):
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
    from distill.data.readers.ir_datasets import read_ir_datasets

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


def folder(path: Path) -> Path:
    (path / "qrels").mkdir()
    lines(path / "corpus.jsonl", [{"_id": "a", "text": "cats"}, {"_id": "b", "text": "dogs"}])
    lines(path / "queries.jsonl", [{"_id": "q1", "text": "loud"}])
    lines(path / "qrels" / "train.tsv", ["q1\tb\t1"])
    return path


def recipe(source: dict):
    return parse_recipe(
        {"name": "t", "data": {"source": source}, "teachers": {"t": {"kind": "bm25"}}, "student": {"model": "x"}}
    )


def test_what_a_folder_or_file_is_gets_recognised(tmp_path):
    found = sniff(folder(tmp_path))
    assert found.data.source.kind == "beir" and found.data.source.splits == {"train": "train"}
    assert found.data.generate is None and "2 passages, 1 queries" in found.lines[0]
    (tmp_path / "qrels" / "train.tsv").rename(tmp_path / "qrels" / "test.tsv")
    assert sniff(tmp_path).data.generate is not None  # nothing to train on: queries are made
    rows = lines(tmp_path / "rows.jsonl", [{"query": f"q{i}", "pos": ["a"], "neg": ["b"]} for i in range(100)])
    found = sniff(rows)
    assert (found.data.source.layout, found.data.source.test_queries, found.data.source.dev_queries) == (
        "flagembedding",
        10,
        5,
    )
    lines(rows, [{"query": f"q{i % 20}", "pos": ["a"], "neg": [f"b{i}"]} for i in range(100)])  # twenty queries only
    assert sniff(rows).data.sizes.queries == 17 and sniff(rows).data.source.test_queries == 2
    (tmp_path / "pairs.csv").write_text("question,answer\nq,a\n")
    assert sniff(tmp_path / "pairs.csv").data.source.layout == "pairs"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not recognised; looked for"):
        sniff(tmp_path / "empty")
    with pytest.raises(DataError, match=r"\[query\]: missing"):
        sniff(lines(tmp_path / "other.jsonl", [{"a": 1}]))


@pytest.mark.parametrize("content", ["", "query-id\tcorpus-id\tscore\n"])
def test_a_file_without_judgements_is_no_split(tmp_path, content):
    (folder(tmp_path) / "qrels" / "test.tsv").write_text(content)
    found = sniff(tmp_path)
    assert found.data.source.splits == {"train": "train"} and "-1" not in "\n".join(found.lines)
    assert (found.data.sizes.queries, found.data.sizes.test_queries) == (1, 0)  # the one line is no header
    named = found.data.source.model_copy(update={"splits": {"train": "train", "test": "test"}})
    assert sizes_of(found.data.model_copy(update={"source": named})).test_queries == 0


def test_lengths_are_estimated_by_the_words_of_the_first_texts(tmp_path):
    corpus = [{"_id": str(i), "title": "a title", "text": "four words of text"} for i in range(600)]
    corpus[590]["text"] *= 1000  # beyond the sample
    (tmp_path / "in" / "qrels").mkdir(parents=True)
    lines(tmp_path / "in" / "corpus.jsonl", corpus)
    sizes = sniff(tmp_path / "in").data.sizes  # nothing can be made of so short texts: the default stays
    assert (sizes.passage_tokens, sizes.query_tokens) == (7.8, 9.0)
    lines(tmp_path / "in" / "queries.jsonl", [{"_id": "q0", "text": "x"}, {"_id": "q1", "text": "just one two"}])
    lines(tmp_path / "in" / "qrels" / "test.tsv", ["q1\t0\t1"])
    assert sniff(tmp_path / "in").data.sizes.query_tokens == 3.9
    made = "a sentence of seven words without end . "
    lines(tmp_path / "in" / "corpus.jsonl", [{"_id": "0", "title": "", "text": made + "other words " * 8}])
    assert sniff(tmp_path / "in").data.sizes.query_tokens == pytest.approx(1.3 * 8, abs=0.06)  # its mark is a word
    rows = [{"query": "two words", "positive": "one", "negative": "one two three"}]
    sizes = sniff(lines(tmp_path / "rows.jsonl", rows)).data.sizes
    assert (sizes.passage_tokens, sizes.query_tokens) == (2.6, 2.6)
