"""The import stage: what good input becomes, and how bad input is refused (invariant 8)."""

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
from distill.data.candidates import are_imported, iterate_candidates
from distill.data.importing import import_data, import_outputs
from distill.data.inspect import sizes_of
from distill.data.judgements import load_judgements
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest, verify
from distill.data.readers import read_passages
from distill.data.readers.qrels import read_qrels
from distill.data.scores import read_scores
from distill.data.texts import TextStore
from distill.errors import DataError, FingerprintError, RecipeError, StorageError
from distill.recipe_file import parse_recipe

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
    queries, passages = TextStore.open(folder.queries(split)), TextStore.open(folder.passages)
    judgements = load_judgements(folder, split)
    return {
        queries.ids([row])[0]: dict(zip(passages.ids(found), grades.tolist(), strict=True))
        for row in judgements.queries
        for found, grades in [judgements.of(row)]
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


def test_documents_alone_make_a_collection_whose_queries_are_generated(tmp_path):
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


def test_a_second_import_finds_the_first_done_and_other_data_are_refused(tmp_path):
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
    "text of another type": ({"corpus": [{"_id": "a", "text": 3}]}, r"corpus\.jsonl:1 \[text\]: expected a string"),
    "half a character": ({"corpus": [r'{"_id": "a", "text": "\ud800"}']}, r"corpus\.jsonl:1 \[text\]: half a surr"),
    "passage twice": (
        {"corpus": [*CORPUS[:2], "", CORPUS[3], CORPUS[1]]},
        r"corpus\.jsonl:5 \[id\]: the passage id 'b' is there twice \(first in line 2\)",
    ),
    "query twice": ({"queries": [*QUERIES, QUERIES[0]]}, r"queries\.jsonl:5 \[id\]: the query id 'q1' is there twice"),
    "judged passage missing": (
        {"qrels": {"train": ["q1\ta\t1", "q1\tz\t1"]}},
        r"train\.tsv:3 \[passage_id\]: there is no passage with the id 'z'",
    ),
    "judged query missing": (
        {"qrels": {"test": ["q9\ta\t1"]}},
        r"test\.tsv:2 \[query_id\]: there is no query with the id 'q9'",
    ),
    "grade no number": ({"qrels": {"test": ["q1\ta\tgood"]}}, r"test\.tsv:2 \[score\]: expected a whole number"),
    "grade not whole": ({"qrels": {"test": ["q1\ta\t0.5"]}}, r"test\.tsv:2 \[score\]: expected a whole number"),
    "grade not finite": ({"qrels": {"test": ["q1\ta\tnan"]}}, r"test\.tsv:2 \[score\]: expected a whole number"),
    "wrong columns": ({"qrels": {"test": ["q1\ta"]}}, r"test\.tsv:2: expected 3 columns"),
    "no passages": ({"corpus": []}, "there are no passages"),
}


@pytest.mark.parametrize("name", BAD_BEIR)
def test_bad_input_is_refused_with_its_place_and_nothing_is_left(tmp_path, name):
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


def test_files_that_cannot_be_read_are_refused_with_the_reason(tmp_path, monkeypatch):
    data, folder = beir(tmp_path / "in"), RunFolder(tmp_path / "run")
    rows = jsonl(tmp_path / "rows.jsonl", [{"query": "q", "positive": "p"}])
    closed = {str(tmp_path / "in" / "corpus.jsonl"), str(rows)}

    def refuses(path, *args, real=open, **options):
        if str(path) in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuses)  # as for a file of mode 000, which root may read
        for source, name in ((data, "corpus"), ({"source": {"kind": "jsonl", "path": str(rows)}}, "rows")):
            for look in (sizes_of, read_passages):
                with pytest.raises(DataError, match=rf"{name}\.jsonl: cannot be read \(Permission denied\)"):
                    look(recipe(source).data)
            with pytest.raises(DataError, match=rf"{name}\.jsonl: cannot be read"):
                import_data(recipe(source), folder)
    source = recipe({"source": {"kind": "jsonl", "path": str(tmp_path / "in")}})
    for look in (sizes_of, read_passages):
        with pytest.raises(DataError, match="in: is a folder, expected a file"):
            look(source.data)
    with pytest.raises(DataError, match="qrels: is a folder, expected a file"):
        list(read_qrels(tmp_path / "in" / "qrels"))


def test_a_full_disk_ends_the_import_with_nothing_left(tmp_path, monkeypatch):
    data, folder = beir(tmp_path / "in"), RunFolder(tmp_path / "run")
    monkeypatch.setattr(pa, "OSFile", lambda path, mode, real=pa.OSFile: real("/dev/full", mode))
    with pytest.raises(StorageError, match="no space left"):
        import_data(recipe(data), folder)
    assert list(folder.data.iterdir()) == []


def test_what_a_killed_import_left_is_removed_once_it_is_old(tmp_path):
    data, folder = beir(tmp_path / "in"), RunFolder(tmp_path / "run")
    for name in ("old", "young"):
        (folder.data / f".import-{name}" / "spool").mkdir(parents=True)
        (folder.data / f".import-{name}" / "spool" / "passages.arrow").write_text("half")
    for path in (folder.data / ".import-old", *(folder.data / ".import-old").rglob("*")):
        os.utime(path, (0, 0))
    import_data(recipe(data), folder)
    assert [path.name for path in folder.data.glob(".import-*")] == [".import-young"]


def test_an_import_that_dies_while_it_publishes_is_simply_done_again(tmp_path, monkeypatch):
    data, folder = beir(tmp_path / "in"), RunFolder(tmp_path / "run")
    real, moved = os.replace, []

    def dies(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("distill.data.importing.os.replace", dies)
        with pytest.raises(KeyboardInterrupt):
            import_data(recipe(data), folder)
    assert read_manifest(folder.data) is None
    import_data(recipe(data), folder)
    assert verify(folder.data) == [] and judged_ids(folder, "test") == {"q2": {"b": 2, "c": 1}}


def test_a_small_collection_can_be_read_without_an_import(tmp_path):
    ids, texts = read_passages(recipe(beir(tmp_path / "in")).data)
    assert ids == ["a", "b", "c", "d"] and texts == ["Cats cats sleep all day", "dogs bark", "no title here", ""]


def test_limits_keep_the_same_queries_whatever_else_changes(tmp_path):
    queries = [{"_id": f"q{i}", "text": str(i)} for i in range(50)]
    qrels = {split: [f"q{i}\ta\t1" for i in range(50)] for split in ("train", "test")}
    data = beir(tmp_path / "in", queries=queries, qrels=qrels)
    kept = {}
    for name, options in {
        "n": {"train_queries": 10},
        "again": {"train_queries": 10},
        "less": {"limit": 4},
        "both": {"train_queries": 10, "limit": 20},
    }.items():
        folder = RunFolder(tmp_path / name)
        import_data(recipe({**data, **options}), folder)
        kept[name] = [list(judged_ids(folder, split)) for split in ("train", "test")]
    assert [len(ids) for ids in kept["n"]] == [10, 50] and [len(ids) for ids in kept["less"]] == [4, 4]
    assert kept["n"] == kept["again"] and kept["both"][0] == kept["n"][0] and len(kept["both"][1]) == 20
    assert set(kept["less"][0]) < set(kept["n"][0])


def test_generated_queries_point_at_passages_without_their_words(tmp_path):
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
    assert passages.texts([3])[0].startswith("About number 3")  # what is searched stays whole
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
    seen = {
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
    assert seen == {
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
    outputs = import_outputs(recipe({"source": source}, teachers=teachers), folder)
    assert set(outputs) == {folder.data, folder.candidates("train"), folder.scores("theirs", "train")}
    assert all(read_manifest(path).fields == fields for path, fields in outputs.items())


def test_naver_scores_join_a_folder_and_lack_what_they_lack(tmp_path):
    beir(tmp_path / "in", qrels={"train": ["q1\ta\t1", "q1\td\t1", "q2\tb\t1"]})
    path = tmp_path / "scores.json.gz"
    path.write_bytes(
        gzip.compress(json.dumps({"q2": {"b": 9, "c": 1.5}, "q1": {"b": 2.5, "a": 8}, "unknown": {"a": 1}}).encode())
    )
    source = {"kind": "naver", "collection": {"kind": "beir", "path": str(tmp_path / "in")}, "scores": str(path)}
    folder = RunFolder(tmp_path / "run")
    manifest = import_data(recipe({"source": source}, teachers={"naver": {"kind": "imported"}}), folder)
    ((_, lists),) = iterate_candidates(folder.candidates("train"))
    ((_, scores),) = read_scores(folder, "naver", "train")
    assert lists.passages.tolist() == [0, 3, 1, 1, 2] and lists.offsets.tolist() == [0, 3, 5]
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


def test_queries_set_aside_are_not_trained_on(tmp_path):
    rows = [{"query": f"query {i}", "positive": f"passage {i}"} for i in range(40)]
    source = {"kind": "jsonl", "path": str(jsonl(tmp_path / "in.jsonl", rows)), "dev_queries": 5, "test_queries": 10}
    folder = RunFolder(tmp_path / "run")
    import_data(recipe({"source": source}), folder)
    ids = {split: set(judged_ids(folder, split)) for split in ("train", "dev", "test")}
    assert {split: len(found) for split, found in ids.items()} == {"train": 25, "dev": 5, "test": 10}
    assert len(set.union(*ids.values())) == 40 and len(TextStore.open(folder.passages)) == 40
    assert not folder.candidates("train").exists()  # no negatives came along: mining finds some
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
