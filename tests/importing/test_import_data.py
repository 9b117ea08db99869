"""The import stage: stores and judgements from good input, located errors for bad input."""

import errno
import gzip
import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distill.config import Recipe
from distill.errors import DataError, FingerprintError, RecipeError, StorageError
from distill.importing.readers import read_passages
from distill.importing.readers.qrels import read_qrels
from distill.importing.sniff import sizes_of, sniff
from distill.importing.stage import outputs as import_outputs
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest, verify
from distill.run.run import Run
from distill.store.candidates import are_imported, iterate_candidates
from distill.store.judgements import load_judgements
from distill.store.scores import read_scores
from distill.store.texts import TextStore
from tests.helpers.stages import import_data

CORPUS = [
    {"_id": "a", "title": "Cats", "text": "cats sleep all day"},
    {"_id": "b", "title": "", "text": "dogs bark"},
    {"_id": "c", "text": "no title here"},
    {"_id": "d", "title": "", "text": ""},
]
QUERIES = [
    {"_id": "q1", "text": "sleepy cats"},
    {"_id": "q2", "text": "loud dogs"},
    {"_id": "q3", "text": "nothing"},
    {"_id": "q4", "text": "everything"},
]
QRELS = {"train": ["q1\ta\t1", "q1\tb\t0", "q3\tc\t0"], "test": ["q2\tb\t2", "q2\tc\t1"]}


def recipe(data: dict, **sections) -> Recipe:
    return parse_recipe(
        {"name": "test", "data": data, "teachers": {"bm25": {"kind": "bm25"}}, "student": {"model": "none"}, **sections}
    )


def jsonl(path: Path, rows: list, compress: bool = False) -> Path:
    content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if compress else content)
    return path


def beir(path: Path, corpus=CORPUS, queries=QUERIES, qrels=QRELS, compress: bool = False) -> dict:
    end = ".gz" if compress else ""
    jsonl(path / f"corpus.jsonl{end}", corpus, compress)
    jsonl(path / f"queries.jsonl{end}", queries, compress)
    for split, lines in qrels.items():
        jsonl(path / "qrels" / f"{split}.tsv{end}", ["query-id\tcorpus-id\tscore", *lines], compress)
    return {"source": {"kind": "beir", "path": str(path)}}


def judged_ids(folder: RunFolder, split: str) -> dict[str, dict[str, int]]:
    """query id -> passage id -> grade."""
    queries, passages = TextStore.open(folder.queries(split)), TextStore.open(folder.passages)
    judgements = load_judgements(folder, split)
    return {
        queries.ids([row])[0]: dict(zip(passages.ids(rows), grades.tolist(), strict=True))
        for row in judgements.queries
        for rows, grades in [judgements.of(row)]
    }


@pytest.mark.parametrize("compress", [False, True])
def test_a_beir_folder_becomes_stores_and_judgements(tmp_path, compress, caplog):
    folder = RunFolder(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        manifest = import_data(recipe(beir(tmp_path / "in", compress=compress)), folder)
    passages = TextStore.open(folder.passages)
    assert passages.texts([0, 1, 2, 3]) == ["Cats cats sleep all day", "dogs bark", "no title here", ""]
    assert judged_ids(folder, "train") == {"q1": {"a": 1, "b": 0}}  # q3 has no positive
    assert judged_ids(folder, "test") == {"q2": {"b": 2, "c": 1}}
    assert not folder.judgements("dev").exists()
    assert manifest.counts["passages.empty"] == 1 and manifest.counts["queries.train.unjudged"] == 1
    assert "1 of 4 passages have no text" in caplog.text
    assert manifest == read_manifest(folder.data) and verify(folder.data) == []
    assert sorted(path.name for path in folder.data.iterdir()) == sorted(
        [*(shard.name for shard in manifest.shards), "manifest.json"]
    )


def test_documents_without_queries_become_a_collection_with_generated_queries(tmp_path):
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    jsonl(
        tmp_path / "in" / "corpus.jsonl",
        [{"_id": f"d{i}", "title": f"the title of document number {i}", "text": words} for i in range(20)],
    )
    folder = RunFolder(tmp_path / "run")
    counts = import_data(
        recipe(
            {
                "source": {"kind": "beir", "path": str(tmp_path / "in")},
                "generate": {"kinds": ["title"], "dev_share": 0.2},
            }
        ),
        folder,
    ).counts
    assert counts["passages"] == 20 and counts["queries.train"] + counts["queries.dev"] == 20
    assert counts["queries.dev"] > 0 and not folder.judgements("test").exists()


def test_a_repeated_import_changes_nothing_and_other_data_are_refused(tmp_path):
    folder, data = RunFolder(tmp_path / "run"), beir(tmp_path / "in")
    first = import_data(recipe(data), folder)
    written = folder.passages.stat().st_mtime_ns
    assert import_data(recipe(data), folder) == first and folder.passages.stat().st_mtime_ns == written
    (tmp_path / "in").rename(tmp_path / "moved")  # the content decides, not the place
    data["source"]["path"] = str(tmp_path / "moved")
    assert import_data(recipe(data), folder) == first
    with (tmp_path / "moved" / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "e", "text": "new"}\n')
    with pytest.raises(FingerprintError, match=r"source\.files\.corpus\.jsonl"):
        import_data(recipe(data), folder)
    with pytest.raises(FingerprintError, match="seed 17 -> 5"):
        import_data(recipe(beir(tmp_path / "in"), seed=5), folder)


BAD_BEIR = {
    "malformed JSON": ({"corpus": [CORPUS[0], '{"_id": "b", "text": "x"']}, r"corpus\.jsonl:2: not valid JSON"),
    "not an object": ({"corpus": [CORPUS[0], "[1]"]}, r"corpus\.jsonl:2: expected an object, found list"),
    "missing id": ({"corpus": [{"text": "x"}]}, r"corpus\.jsonl:1 \[_id\]: missing"),
    "empty id": ({"queries": [QUERIES[0], {"_id": "", "text": "x"}]}, r"queries\.jsonl:2 \[_id\]: empty id"),
    "missing text": ({"corpus": [CORPUS[0], CORPUS[1], {"_id": "c"}]}, r"corpus\.jsonl:3 \[text\]: missing"),
    "text is a number": ({"corpus": [{"_id": "a", "text": 3}]}, r"corpus\.jsonl:1 \[text\]: expected a string"),
    "lone surrogate": ({"corpus": [r'{"_id": "a", "text": "\ud800"}']}, r"corpus\.jsonl:1 \[text\]: half a surr"),
    "repeated passage id": (
        {"corpus": [*CORPUS[:2], "", CORPUS[3], {**CORPUS[1], "text": "another"}]},
        r"corpus\.jsonl:5 \[id\]: the passage id 'b' is repeated with another text \(the other in line 2\)",
    ),
    "repeated query id": (
        {"queries": [*QUERIES, {**QUERIES[0], "text": "another"}]},
        r"queries\.jsonl:5 \[id\]: the query id 'q1' is repeated with another text",
    ),
    "judgement of an unknown passage": (
        {"qrels": {"train": ["q1\ta\t1", "q1\tz\t1"]}},
        r"train\.tsv:3 \[passage_id\]: there is no passage with the id 'z'",
    ),
    "judgement of an unknown query": (
        {"qrels": {"test": ["q9\ta\t1"]}},
        r"test\.tsv:2 \[query_id\]: there is no query with the id 'q9'",
    ),
    "grade is a word": ({"qrels": {"test": ["q1\ta\tgood"]}}, r"test\.tsv:2 \[score\]: expected a whole number"),
    "grade is a fraction": ({"qrels": {"test": ["q1\ta\t0.5"]}}, r"test\.tsv:2 \[score\]: expected a whole number"),
    "grade is NaN": ({"qrels": {"test": ["q1\ta\tnan"]}}, r"test\.tsv:2 \[score\]: expected a whole number"),
    "wrong columns": ({"qrels": {"test": ["q1\ta"]}}, r"test\.tsv:2: expected 3 columns"),
    "no passages": ({"corpus": []}, "there are no passages"),
}


@pytest.mark.parametrize("name", BAD_BEIR)
def test_bad_input_is_refused_with_file_line_and_field_and_leaves_nothing(tmp_path, name):
    parts, message = BAD_BEIR[name]
    data, folder = beir(tmp_path / "in", **parts), RunFolder(tmp_path / "run")
    with pytest.raises(DataError, match=message):
        import_data(recipe(data), folder)
    assert list(folder.data.iterdir()) == []


def test_invalid_utf8_and_damaged_gzip_are_refused(tmp_path):
    data, folder = beir(tmp_path / "in"), RunFolder(tmp_path / "run")
    corpus = tmp_path / "in" / "corpus.jsonl"
    corpus.write_bytes(b'{"_id": "a", "text": "fine"}\n{"_id": "b", "text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: not valid UTF-8 \(byte 26"):
        import_data(recipe(data), folder)
    corpus.unlink()
    corpus.with_name("corpus.jsonl.gz").write_bytes(gzip.compress(json.dumps(CORPUS[0]).encode())[:-6])
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz:\d: damaged gzip"):
        import_data(recipe(data), folder)


def test_missing_files_are_named(tmp_path):
    for options in ({}, {"splits": {"test": "test"}}):
        with pytest.raises(DataError, match="in: no such folder"):
            import_data(
                recipe({"source": {"kind": "beir", "path": str(tmp_path / "in"), **options}}),
                RunFolder(tmp_path / "run"),
            )
    data = beir(tmp_path / "in", qrels={"test": QRELS["test"]})
    data["source"]["splits"] = {"train": "training", "test": "test"}
    with pytest.raises(DataError, match=r"qrels/training\.tsv is missing"):
        import_data(recipe(data), RunFolder(tmp_path / "run"))


def test_unreadable_files_are_refused_with_the_reason(tmp_path, monkeypatch):
    data, folder = beir(tmp_path / "in"), RunFolder(tmp_path / "run")
    rows = jsonl(tmp_path / "rows.jsonl", [{"query": "q", "positive": "p"}])
    unreadable = {str(tmp_path / "in" / "corpus.jsonl"), str(rows)}

    def open_or_refuse(path, *args, real=open, **options):
        if str(path) in unreadable:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", open_or_refuse)  # as for a file of mode 000, which root may read
        for source, name in ((data, "corpus"), ({"source": {"kind": "jsonl", "path": str(rows)}}, "rows")):
            for read in (sizes_of, read_passages):
                with pytest.raises(DataError, match=rf"{name}\.jsonl: cannot be read \(Permission denied\)"):
                    read(recipe(source).data)
            with pytest.raises(DataError, match=rf"{name}\.jsonl: cannot be read"):
                import_data(recipe(source), folder)
    source = recipe({"source": {"kind": "jsonl", "path": str(tmp_path / "in")}})
    for read in (sizes_of, read_passages):
        with pytest.raises(DataError, match="in: is a folder, but kind: jsonl reads one file"):
            read(source.data)
    with pytest.raises(DataError, match="qrels: is a folder, expected a file"):
        list(read_qrels(tmp_path / "in" / "qrels"))


def test_a_full_disk_fails_the_import_and_leaves_nothing(tmp_path, monkeypatch):
    data, folder = beir(tmp_path / "in"), RunFolder(tmp_path / "run")
    monkeypatch.setattr(pa, "OSFile", lambda path, mode, real=pa.OSFile: real("/dev/full", mode))
    with pytest.raises(StorageError, match="no space left"):
        import_data(recipe(data), folder)
    assert list(folder.data.iterdir()) == []


def test_old_leftovers_of_a_killed_import_are_removed_and_recent_ones_stay(tmp_path):
    data, folder = beir(tmp_path / "in"), RunFolder(tmp_path / "run")
    for name in ("old", "young"):
        (folder.data / f".import-{name}" / "spool").mkdir(parents=True)
        (folder.data / f".import-{name}" / "spool" / "passages.arrow").write_text("half")
    for path in (folder.data / ".import-old", *(folder.data / ".import-old").rglob("*")):
        os.utime(path, (0, 0))
    import_data(recipe(data), folder)
    assert [path.name for path in folder.data.glob(".import-*")] == [".import-young"]


def test_an_import_interrupted_while_publishing_can_be_repeated(tmp_path, monkeypatch):
    data, folder = beir(tmp_path / "in"), RunFolder(tmp_path / "run")
    real, moved = os.replace, []

    def interrupted_replace(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("distill.importing.import_data.os.replace", interrupted_replace)
        with pytest.raises(KeyboardInterrupt):
            import_data(recipe(data), folder)
    assert read_manifest(folder.data) is None
    import_data(recipe(data), folder)
    assert verify(folder.data) == [] and judged_ids(folder, "test") == {"q2": {"b": 2, "c": 1}}


def test_a_small_collection_can_be_read_without_an_import(tmp_path):
    ids, texts = read_passages(recipe(beir(tmp_path / "in")).data)
    assert ids == ["a", "b", "c", "d"] and texts == ["Cats cats sleep all day", "dogs bark", "no title here", ""]


def test_limits_draw_reproducible_subsets_of_the_queries(tmp_path):
    queries = [{"_id": f"q{i}", "text": str(i)} for i in range(50)]
    qrels = {split: [f"q{i}\ta\t1" for i in range(50)] for split in ("train", "test")}
    data = beir(tmp_path / "in", queries=queries, qrels=qrels)
    ids = {}
    for name, options in {
        "n": {"train_queries": 10},
        "again": {"train_queries": 10},
        "less": {"limit": 4},
        "both": {"train_queries": 10, "limit": 20},
    }.items():
        folder = RunFolder(tmp_path / name)
        import_data(recipe({**data, **options}), folder)
        ids[name] = [list(judged_ids(folder, split)) for split in ("train", "test")]
    assert [len(split) for split in ids["n"]] == [10, 50] and [len(split) for split in ids["less"]] == [4, 4]
    assert ids["n"] == ids["again"] and ids["both"][0] == ids["n"][0] and len(ids["both"][1]) == 20
    assert set(ids["less"][0]) < set(ids["n"][0])


def test_generated_queries_are_judged_on_variants_without_their_words(tmp_path):
    body = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma"
    corpus = [
        {
            "_id": str(i),
            "title": f"About number {i} and its friends .",
            "text": f"about number {i} and its friends . {body[5 * (i % 5) :]} . sentence {i} has words .",
        }
        for i in range(200)
    ]
    data = beir(tmp_path / "in", corpus=corpus, queries=[{"_id": "q", "text": "alpha"}], qrels={"test": ["q\t3\t1"]})
    folder = RunFolder(tmp_path / "run")
    manifest = import_data(
        recipe({**data, "generate": {"dev_share": 0.2, "min_passage_words": 5, "min_words": 4}}), folder
    )
    passages = TextStore.open(folder.passages)
    origins = {}
    for split in ("train", "dev"):
        queries, judgements = TextStore.open(folder.queries(split)), load_judgements(folder, split)
        rows = judgements.passages
        assert len(judgements) == len(queries) == len(rows) and (rows >= passages.collection_size).all()
        origins[split] = set(passages.origin(rows).tolist())
        for query, text in zip(queries.texts(judgements.queries), passages.texts(rows), strict=True):
            assert query.lower() not in text.lower()
    assert not origins["train"] & origins["dev"] and 20 < len(origins["dev"]) < 65
    assert passages.collection_size == 200 and len(passages) == 200 + manifest.counts["passages.variants"]
    assert passages.texts([3])[0].startswith("About number 3")  # the searchable collection is not cut
    assert judged_ids(folder, "test") == {"q": {"3": 1}}


def test_triples_become_a_collection_with_candidates_and_scores(tmp_path):
    columns = ("query", "positive", "negative_1", "negative_2", "score")
    rows = [
        dict(zip(columns, row, strict=True))
        for row in [
            ("q one", "good", "bad", "worse", [3.0, 1.0, 0.5]),
            ("q two", "bad", "good", "other", [2.0, 1.0, 0.0]),
            ("q one", "fine", "worse", "other", [4, 0.5, -1]),
        ]
    ]
    source = {"kind": "jsonl", "path": str(jsonl(tmp_path / "in.jsonl", rows))}
    folder = RunFolder(tmp_path / "run")
    teachers = {"theirs": {"kind": "imported"}, "bm25": {"kind": "bm25"}}
    manifest = import_data(recipe({"source": source}, teachers=teachers), folder)
    passages, queries = TextStore.open(folder.passages), TextStore.open(folder.queries("train"))
    assert [len(passages), len(queries)] == [5, 2] and manifest.counts["lists.negatives"] == 5
    ((name, lists),) = iterate_candidates(folder.candidates("train"))
    ((score_name, scores),) = read_scores(folder, "theirs", "train")
    assert name == score_name and are_imported(folder.candidates("train"))
    scored = {
        queries.texts([query])[0]: list(
            zip(
                passages.texts(lists.passages[piece]),
                lists.positive[piece].tolist(),
                scores.values[piece].tolist(),
                strict=True,
            )
        )
        for query, piece in zip(lists.query, map(slice, lists.offsets, lists.offsets[1:]), strict=True)
    }
    assert scored == {
        "q one": [
            ("good", True, 3.0),
            ("fine", True, 4.0),
            ("bad", False, 1.0),
            ("worse", False, 0.5),
            ("other", False, -1.0),
        ],
        "q two": [("bad", True, 2.0), ("good", False, 1.0), ("other", False, 0.0)],
    }
    assert import_data(recipe({"source": source}, teachers=teachers), folder) == manifest
    outputs = import_outputs(Run(recipe({"source": source}, teachers=teachers), folder))
    written = {folder.data, folder.candidates("train"), folder.scores("theirs", "train")}
    assert {output.folder for output in outputs} == written
    assert all(read_manifest(output.folder).fields == output.fields for output in outputs)


def test_naver_scores_join_a_folder_and_unscored_positives_are_added_without_scores(tmp_path):
    beir(tmp_path / "in", qrels={"train": ["q1\ta\t1", "q1\tc\t1", "q2\tb\t1"]})
    path = tmp_path / "scores.json.gz"
    path.write_bytes(
        gzip.compress(json.dumps({"q2": {"b": 9, "c": 1.5}, "q1": {"b": 2.5, "a": 8}, "unknown": {"a": 1}}).encode())
    )
    source = {"kind": "naver", "collection": {"kind": "beir", "path": str(tmp_path / "in")}, "scores": str(path)}
    folder = RunFolder(tmp_path / "run")
    manifest = import_data(recipe({"source": source}, teachers={"naver": {"kind": "imported"}}), folder)
    ((_, lists),) = iterate_candidates(folder.candidates("train"))
    ((_, scores),) = read_scores(folder, "naver", "train")
    assert lists.passages.tolist() == [0, 2, 1, 1, 2] and lists.offsets.tolist() == [0, 3, 5]
    assert lists.positive.tolist() == [True, True, False, True, False]
    np.testing.assert_array_equal(scores.values, np.float32([8, np.nan, 2.5, 9, 1.5]))
    assert manifest.counts["lists.unknown_queries"] == 1 and manifest.counts["lists.scores_missing"] == 1
    assert [lists.sources[code] for code in lists.source] == ["imported", "judgement", *["imported"] * 3]


def test_an_imported_teacher_needs_scores(tmp_path):
    rows = [{"query": "q", "positive": "p", "negative": "n"}]
    source = {"kind": "jsonl", "path": str(jsonl(tmp_path / "in.jsonl", rows))}
    with pytest.raises(RecipeError, match="'theirs' is of kind imported, but the source brings no scores"):
        import_data(recipe({"source": source}, teachers={"theirs": {"kind": "imported"}}), RunFolder(tmp_path / "run"))
    assert list((tmp_path / "run" / "data").iterdir()) == [] and not (tmp_path / "run" / "candidates").exists()


def test_held_out_queries_are_not_trained_on(tmp_path):
    rows = [{"query": f"query {i}", "positive": f"passage {i}"} for i in range(40)]
    source = {"kind": "jsonl", "path": str(jsonl(tmp_path / "in.jsonl", rows)), "dev_queries": 5, "test_queries": 10}
    folder = RunFolder(tmp_path / "run")
    import_data(recipe({"source": source}), folder)
    ids = {split: set(judged_ids(folder, split)) for split in ("train", "dev", "test")}
    assert {split: len(split_ids) for split, split_ids in ids.items()} == {"train": 25, "dev": 5, "test": 10}
    assert len(set.union(*ids.values())) == 40 and len(TextStore.open(folder.passages)) == 40
    assert not folder.candidates("train").exists()  # without negatives the mine stage writes them
    with pytest.raises(DataError, match="none are left for training"):
        import_data(recipe({"source": {**source, "test_queries": 35}}), RunFolder(tmp_path / "other"))


def test_msmarco_files_are_read_with_their_four_column_judgements(tmp_path):
    jsonl(tmp_path / "in" / "collection.tsv", ['0\tfirst "passage"', "7\tsecond\twith a tab", "9\t"])
    for split in ("train", "dev.small"):
        jsonl(tmp_path / "in" / f"queries.{split}.tsv", [f"1\ta {split} query", "2\tunjudged"])
        jsonl(tmp_path / "in" / f"qrels.{split}.tsv", ["1\t0\t7\t1"])
    folder = RunFolder(tmp_path / "run")
    import_data(recipe({"source": {"kind": "msmarco", "path": str(tmp_path / "in")}}), folder)
    assert TextStore.open(folder.passages).texts([0, 1, 2]) == ['first "passage"', "second\twith a tab", ""]
    assert judged_ids(folder, "train") == judged_ids(folder, "dev") == {"1": {"7": 1}}
    jsonl(tmp_path / "in" / "collection.tsv", ["0\tfine", "without a tab"])
    with pytest.raises(DataError, match=r"collection\.tsv:2: expected an id, a tab and a text"):
        import_data(recipe({"source": {"kind": "msmarco", "path": str(tmp_path / "in")}}), RunFolder(tmp_path / "2"))


DOCUMENTS = {  # name -> lines of collection.tsv; all give the same two documents
    "four columns": ["D1\thttp://a.b/c\tTitle\tbody one", "D2\t\t\tbody\ttwo"],
    "header": ["docid\turl\ttitle\tbody", "D1\thttp://a.b/c\tTitle\tbody one", "D2\t\t\tbody\ttwo"],
    "text before title": ["id\ttext\ttitle", "D1\tbody one\tTitle", '"D2"\t"body\ttwo"\t""'],
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_msmarco_documents_and_header_lines_are_recognised(tmp_path, name, caplog):
    jsonl(tmp_path / "in" / "collection.tsv", DOCUMENTS[name])
    jsonl(tmp_path / "in" / "queries.train.tsv", ["qid\tquery", "1\tone"])
    jsonl(tmp_path / "in" / "qrels.train.tsv", ["qid\t0\tdocid\trel", "1\t0\tD1\t1"])
    folder, found = RunFolder(tmp_path / "run"), sniff(tmp_path / "in")
    counts = import_data(recipe({"source": found.data.source.model_dump(mode="json")}), folder).counts
    store = TextStore.open(folder.passages)
    assert (store.ids([0, 1]), store.texts([0, 1])) == (["D1", "D2"], ["Title body one", "body\ttwo"])
    assert judged_ids(folder, "train") == {"1": {"D1": 1}}
    unread = (
        {"column of collection.tsv 'url'": 1} if "url" in "".join(DOCUMENTS[name]) or name == "four columns" else {}
    )
    assert counts.get("unread", {}) == unread
    assert any(line.startswith("the columns of collection.tsv: ") for line in found.lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["1\ta\tb"], r"collection\.tsv:1: 3 columns; expected an id and a text, or the four of MS MARCO's documents"),
        (["1\ta\tb\tc"], r"collection\.tsv:1: 4 columns; .* add a header line with the names id, title and text"),
        (["docid\tabstract", "1\ta"], r"collection\.tsv:1: a header line .* without a column of texts"),
        (["id\ttext\ttext", "1\ta\tb"], "a header line that repeats a name"),
        (["id\ttitle\ttext", "1\ta"], r"collection\.tsv:2: expected 3 columns \(id, title, text\), found 2"),
        (["D1\thttp://a\tt\tb", "D2\thttp://a\tt"], r":1: 3 columns; expected"),
    ],
)
def test_other_columns_of_msmarco_files_are_refused(tmp_path, content, message):
    jsonl(tmp_path / "in" / "collection.tsv", content)
    jsonl(tmp_path / "in" / "queries.train.tsv", ["1\tone"])
    jsonl(tmp_path / "in" / "qrels.train.tsv", ["1\t0\t1\t1"])
    source = {"kind": "msmarco", "path": str(tmp_path / "in"), "splits": {"train": "train"}}
    with pytest.raises(DataError, match=message):
        import_data(recipe({"source": source}), RunFolder(tmp_path / "run"))


SPELLINGS = {  # name -> a passage, a query, the recipe's columns
    "Pyserini": ({"id": "a", "contents": "dogs bark"}, {"id": "q", "text": "dogs"}, {}),
    "TREC": ({"docid": "a", "title": "dogs", "text": "bark"}, {"qid": "q", "query": "dogs"}, {}),
    "own": (
        {"key": "a", "head": "dogs", "tail": "bark", "text": "x"},
        {"number": 1, "words": "dogs", "_id": "q"},
        {"id": "key", "title": "head", "text": "tail", "query": "words"},
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_other_names_of_a_beir_folders_fields_are_read_and_told(tmp_path, name, caplog):
    caplog.set_level(logging.INFO)
    passage, query, columns = SPELLINGS[name]
    source = beir(tmp_path / "in", [passage], [query], {"train": ["q\ta\t1"]})
    folder = RunFolder(tmp_path / "run")
    counts = import_data(recipe({"source": {**source["source"], "columns": columns}}), folder).counts
    assert TextStore.open(folder.passages).texts([0]) == ["dogs bark"]
    assert judged_ids(folder, "train") == {"q": {"a": 1}}
    told = {"field of corpus.jsonl 'text'": 1, "field of queries.jsonl 'number'": 1} if name == "own" else {}
    assert counts.get("unread", {}) == told
    identifier = columns.get("id") or next(iter(passage))
    assert f"corpus.jsonl: the field {identifier!r} is read as id" in caplog.text


@pytest.mark.parametrize(
    ("passage", "columns", "message"),
    [
        (
            {"key": "a", "text": "b"},
            {},
            r"corpus\.jsonl:1 \[_id\]: missing \(.*\); name the .*\.columns\.id",
        ),
        (
            {"id": "a", "text": "b"},
            {"title": "head"},
            r"corpus\.jsonl:1 \[head\]: missing \(the row has 'id'",
        ),
        ({"id": "a", "text": None}, {}, r"corpus\.jsonl:1 \[text\]: null"),
    ],
)
def test_fields_of_unusual_names_are_refused_with_the_way_out(tmp_path, passage, columns, message):
    source = beir(tmp_path / "in", [passage])
    with pytest.raises(DataError, match=message):
        import_data(recipe({"source": {**source["source"], "columns": columns}}), RunFolder(tmp_path / "run"))


def test_queries_are_generated_until_there_are_enough_and_passages_without_are_counted(tmp_path):
    words = [f"{kind}{i}" for kind in ("wing", "flow", "heat") for i in range(40)]
    text = [" ".join(words[(7 * i + 3 * j) % len(words)] for j in range(60)) for i in range(1500)]
    corpus = [{"_id": str(i), "title": "", "text": text[i]} for i in range(1500)]
    corpus += [{"_id": "empty", "title": "", "text": ""}, {"_id": "short", "title": "one two", "text": ""}]
    data = beir(tmp_path / "in", corpus=corpus, queries=[{"_id": "q", "text": "wing1"}], qrels={"test": ["q\t3\t1"]})
    generate = {"kinds": ["phrases", "sentence"], "per_passage": 1}
    counts, ids = {}, {}
    for name, options in {"all": {}, "few": {"train_queries": 100}, "again": {"train_queries": 100}}.items():
        folder = RunFolder(tmp_path / name)
        counts[name] = import_data(recipe({**data, **options, "generate": generate}), folder).counts
        ids[name] = list(judged_ids(folder, "train"))
    assert counts["all"]["passages.without_query.empty"] == counts["all"]["passages.without_query.short"] == 1
    assert counts["all"]["queries.train"] + counts["all"]["queries.dev"] == 1500
    assert counts["few"]["queries.train"] == 100 and counts["few"]["passages.examined"] == 1024
    assert ids["few"] == ids["again"] and set(ids["few"]) <= set(ids["all"])


@pytest.mark.parametrize("kind", ["judged", "logged"])
def test_generated_queries_are_as_long_as_the_judged_ones_or_those_of_a_log(tmp_path, kind):
    words = [f"{kind}{i}" for kind in ("wing", "flow", "heat") for i in range(40)]
    sentences = [" ".join(words[(7 * i + 3 * j) % len(words)] for j in range(12)).capitalize() for i in range(2000)]
    corpus = [{"_id": str(i), "title": "", "text": ". ".join(sentences[5 * i : 5 * i + 5])} for i in range(300)]
    queries = [{"_id": f"q{i}", "text": f"three words {i}"} for i in range(20)]
    queries.append({"_id": "t", "text": "a test query, which chooses nothing, has nine words"})
    qrels = {"test": ["t\t3\t1"], **({"train": [f"q{i}\t3\t1" for i in range(20)]} if kind == "judged" else {})}
    data = beir(tmp_path / "in", corpus=corpus, queries=queries, qrels=qrels)
    if kind == "logged":
        data["query_log"] = {}
    folder = RunFolder(tmp_path / "run")
    generate = {"kinds": ["phrases", "sentence", "span"], "per_passage": 1}
    counts = import_data(recipe({**data, "generate": generate}), folder).counts
    assert counts["queries.train.generated"] > 200 and counts.get("queries.train.logged", 0) == 20 * (kind == "logged")
    store = TextStore.open(folder.queries("train"))
    assert {len(text.split()) for text in store.texts(np.arange(len(store)))} == {3}
