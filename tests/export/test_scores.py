"""Exported scores: each format survives the import, and is readable by the tools it is made for."""

import gzip
import json
import logging
from pathlib import Path

import datasets
import ir_measures
import numpy as np
import pyarrow as pa
import pytest

from distill.config import Recipe
from distill.errors import DataError, FingerprintError, RecipeError, StorageError
from distill.export import export_scores
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, write_manifest
from distill.run.run import Run
from distill.store.candidates import from_lists, iterate_candidates, write_candidates
from distill.store.labels import read_labels
from distill.store.scores import read_scores, write_scores
from distill.store.texts import TextStore
from tests.helpers.small_run import small_recipe, write_run
from tests.helpers.stages import build_labels, import_data

CORPUS = [
    {"_id": "a", "title": "Cats", "text": 'cats sleep\nall "day"\t…'},
    {"_id": "b", "text": "dogs bark"},
    {"_id": "c", "text": "dogs bark"},  # another passage with the same text
    {"_id": "d", "text": "four"},
    {"_id": "é7", "text": "two \u2028 lines, 𝄞 and \\n"},
    {"_id": "f", "text": "fish"},
]
QUERIES = [{"_id": f"q{i}", "text": text} for i, text in enumerate(["cats?", "dogs", "ünï\ncode", "cats?", "fish"])]
QRELS = ["q0\ta\t1", "q0\tb\t1", "q1\tc\t2", "q2\té7\t1", "q3\ta\t1", "q3\tf\t1", "q4\tf\t1"]
# numbers that a text format may alter: smallest, largest, neighbours of 1, thirds; q3 has no score for f
SCORES = {
    "q0": {"d": 0.1, "a": 1 / 3, "é7": -1e-45, "b": 3.4028235e38},
    "q1": {"é7": 1.0000001, "c": 0.99999994},
    "q2": {"é7": -123456.79, "a": 16777217.0, "b": 2.0, "c": -2.0},
    "q3": {"a": 5.3, "d": 5.2999997},
    "q4": {"f": 7.0, "a": 6.0, "b": 7.5},
}
EXACT = {
    query: {passage: float(np.float32(score)) for passage, score in scores.items()} for query, scores in SCORES.items()
}

List = list[tuple[str, str, bool, float | None]]  # id, text, positive, score


def lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def recipe(run: Path, source: dict, **sections) -> Recipe:
    return parse_recipe(
        {
            "name": "t",
            "run_dir": str(run),
            "data": {"source": source},
            "mine": {"shard_queries": 2},
            "teachers": {"given": {"kind": "imported"}},
            "student": {"model": "x"},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> dict:
    """A BEIR folder with scores in naver's format."""
    folder = tmp_path_factory.mktemp("source")
    lines(folder / "corpus.jsonl", CORPUS)
    lines(folder / "queries.jsonl", QUERIES)
    lines(folder / "qrels" / "train.tsv", QRELS)
    scores = folder / "scores.json"
    scores.write_text(json.dumps(EXACT))
    return {"kind": "naver", "collection": {"kind": "beir", "path": str(folder)}, "scores": str(scores)}


@pytest.fixture(scope="module")
def run(source, tmp_path_factory) -> Recipe:
    """A run of three shards, with scores of the teacher `given`, and labels."""
    loaded = recipe(tmp_path_factory.mktemp("run"), source)
    import_data(loaded, RunFolder(loaded.folder))
    build_labels(loaded, RunFolder(loaded.folder))
    return loaded


def contents(loaded: Recipe) -> dict[str, tuple[str, List]]:
    """A run folder's lists by query id: the query's text, and its passages with the scores of teacher `given`."""
    folder = RunFolder(loaded.folder)
    queries, passages = TextStore.open(folder.queries("train")), TextStore.open(folder.passages)
    contents = {}
    for (_, lists), (_, scores) in zip(
        iterate_candidates(folder.candidates("train")), read_scores(folder, "given", "train"), strict=True
    ):
        for query, piece in zip(lists.query, map(slice, lists.offsets, lists.offsets[1:]), strict=True):
            values = [None if np.isnan(score) else score for score in scores.values[piece].tolist()]
            rows = lists.passages[piece]
            contents[queries.ids([query])[0]] = (
                queries.texts([query])[0],
                list(
                    zip(passages.ids(rows), passages.texts(rows), lists.positive[piece].tolist(), values, strict=True)
                ),
            )
    return contents


def imported(path: Path, source: dict) -> dict[str, tuple[str, List]]:
    loaded = recipe(path, source)
    import_data(loaded, RunFolder(loaded.folder))
    return contents(loaded)


ROWS = [
    ("lists", ".jsonl"),
    ("lists", ".jsonl.gz"),
    ("lists", ".parquet"),
    ("lists", ""),
    ("triplet", ".jsonl"),
    ("n-tuple", ".jsonl"),
    ("n-tuple", ".parquet"),
    ("labeled-list", ".jsonl.gz"),
    ("labeled-list", ""),
    ("flagembedding", ".jsonl"),
    ("flagembedding", ""),
]


@pytest.mark.parametrize(("format", "ending"), ROWS)
def test_exported_rows_are_imported_with_the_same_texts_ids_labels_order_and_scores(run, tmp_path, format, ending):
    output = tmp_path / f"out{ending}"
    summary = export_scores(Run.of(run), output, format=format, teacher="given", ids=True)
    assert "scores of teacher 'given', 5 queries, 16 pairs" in summary
    source = {"kind": "jsonl", "path": str(output)} if ending else {"kind": "huggingface", "dataset": str(output)}
    source["first_is_positive"] = format == "labeled-list"
    before, after = contents(run), imported(tmp_path / "again", source)
    assert after == before and list(after) == list(before)
    assert before["q3"] == (
        "cats?",
        [
            ("a", 'Cats cats sleep\nall "day"\t…', True, EXACT["q3"]["a"]),
            ("f", "fish", True, None),
            ("d", "four", False, EXACT["q3"]["d"]),
        ],
    )


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_exported_naver_scores_are_imported_beside_their_collection(run, source, tmp_path, ending):
    output = tmp_path / f"out{ending}"
    export_scores(Run.of(run), output, format="naver", teacher="given")
    packed = output.read_bytes()
    assert json.loads(gzip.decompress(packed) if ending.endswith("gz") else packed) == EXACT
    assert imported(tmp_path / "again", {**source, "scores": str(output)}) == contents(run)


def test_exported_trec_runs_are_imported_and_read_by_ir_measures(run, source, tmp_path):
    output = tmp_path / "out.run"
    export_scores(Run.of(run), output, format="trec", teacher="given")
    entries = [(entry.query_id, entry.doc_id, entry.score) for entry in ir_measures.read_trec_run(str(output))]
    assert entries == [
        (query, passage, score)
        for query, scores in EXACT.items()
        for passage, score in sorted(scores.items(), key=lambda item: -item[1])
    ]
    assert output.read_text().splitlines()[0] == f"q0 Q0 b 1 {EXACT['q0']['b']!r} given"
    again = imported(tmp_path / "again", {**source, "scores": str(output)})
    assert {query: (text, sorted(rows)) for query, (text, rows) in again.items()} == {
        query: (text, sorted(rows)) for query, (text, rows) in contents(run).items()
    }


def test_labels_are_exported_if_no_teacher_is_named(run, tmp_path):
    export_scores(Run.of(run), tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    shards = [read_labels(path) for path in sorted(RunFolder(run.folder).labels().glob("*.arrow"))]
    np.testing.assert_array_equal(
        np.float32([score for row in rows for score in row["scores"]]),
        np.concatenate([shard.labels for shard in shards]),
    )
    assert [row["query_id"] for row in rows] == ["q0", "q1", "q2", "q3", "q4"]
    assert rows[3]["passage_ids"] == ["a", "d"]  # a pair without a score has no label


def test_sentence_transformers_layouts_hold_texts_and_scores_only(run, tmp_path):
    for format, columns in {
        "triplet": ["query", "positive", "negative", "scores"],
        "n-tuple": ["query", "positive", "negative_1", "scores"],
        "labeled-list": ["query", "passages", "scores"],
    }.items():
        export_scores(Run.of(run), tmp_path / f"{format}.jsonl", format=format, negatives=1)
        export_scores(Run.of(run), tmp_path / f"{format}.parquet", format=format, negatives=1)
        export_scores(Run.of(run), tmp_path / format, format=format, negatives=1)
        cache = str(tmp_path / "cache")
        loaded = [
            datasets.load_dataset("json", data_files=str(tmp_path / f"{format}.jsonl"), cache_dir=cache)["train"],
            datasets.load_dataset("parquet", data_files=str(tmp_path / f"{format}.parquet"), cache_dir=cache)["train"],
            datasets.load_from_disk(tmp_path / format),
        ]
        assert all(dataset.column_names == columns for dataset in loaded)
        rows = [dataset.to_list() for dataset in loaded]
        assert rows[0] == rows[1] == rows[2] and len(rows[0]) == 6  # one row per positive; one of q3's has no label


@pytest.mark.parametrize(
    ("format", "loss", "negatives"),
    [("n-tuple", "SparseDistillKLDivLoss", 1), ("triplet", "SparseMarginMSELoss", None)],
)
def test_sentence_transformers_trains_on_exported_labels(run, tmp_path, tiny_mlm, format, loss, negatives):
    from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
    from sentence_transformers.sparse_encoder import losses

    export_scores(Run.of(run), tmp_path / "out", format=format, negatives=negatives)
    model = SparseEncoder(str(tiny_mlm), device="cpu")
    distil = losses.SpladeLoss(model, getattr(losses, loss)(model), document_regularizer_weight=0.0)
    arguments = SparseEncoderTrainingArguments(
        str(tmp_path / "trained"),
        max_steps=1,
        per_device_train_batch_size=3,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SparseEncoderTrainer(
        model, arguments, train_dataset=datasets.load_from_disk(tmp_path / "out"), loss=distil
    )
    assert trainer.train().training_loss > 0


def test_negatives_limits_the_lists_and_leaves_out_shorter_ones(run, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        export_scores(Run.of(run), tmp_path / "two.jsonl", teacher="given", negatives=2)
        export_scores(Run.of(run), tmp_path / "all.jsonl", format="n-tuple", teacher="given")
    rows = [json.loads(line) for line in (tmp_path / "two.jsonl").open()]
    assert {row["query_id"]: row["passage_ids"] for row in rows} == {
        "q0": ["a", "b", "d", "é7"],
        "q2": ["é7", "a", "b"],
        "q4": ["f", "a", "b"],
    }
    assert "2 queries have fewer than 2 negatives and are left out" in caplog.text
    assert "the lists have 1 to 3 negatives" in caplog.text and "--negatives 1" in caplog.text
    assert "1 pairs have no score: null in the output" in caplog.text


def test_variants_keep_their_texts_and_formats_without_texts_warn_about_them(tmp_path, caplog):
    folder = write_run(tmp_path / "run")
    candidates = from_lists([2], [[10, 3]], [1], ("judgement",))
    shard = write_candidates(folder.candidates("train") / "part-00000.arrow", candidates, "c")
    write_manifest(folder.candidates("train"), Manifest({"stage": "mine"}, [shard]))
    scored = write_scores(
        folder.scores("bm25", "train") / shard.name, candidates, np.float32([2, 1]), fingerprint="s", teacher="bm25"
    )
    write_manifest(folder.scores("bm25", "train"), Manifest({"teacher": "bm25"}, [scored]))
    loaded = small_recipe(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        export_scores(Run.of(loaded), tmp_path / "out.jsonl", teacher="bm25")
    assert json.loads((tmp_path / "out.jsonl").read_text())["passages"][0] == "the fell in the wind"
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        export_scores(Run.of(loaded), tmp_path / "out.json", format="naver", teacher="bm25")
    assert "1 pairs have variants of passages, whose ids only this run knows" in caplog.text


REFUSED = {
    "no such format": (
        {"format": "jsonl"},
        "out.jsonl",
        RecipeError,
        "'jsonl' is not known; choose one of lists, triplet",
    ),
    "no such teacher": (
        {"teacher": "gven"},
        "out.jsonl",
        RecipeError,
        "not in the recipe; its teachers are given",
    ),
    "no such split": (
        {"split": "dev1"},
        "out.jsonl",
        RecipeError,
        "'dev1' is not known; choose one of train, dev, test",
    ),
    "labels of dev": ({"split": "dev"}, "out.jsonl", RecipeError, r"labels are made for training only.*--teacher \(gi"),
    "imported scores of test": ({"split": "test", "teacher": "given"}, "out.jsonl", RecipeError, "for training only"),
    "wrong extension": (
        {},
        "out.csv",
        DataError,
        r"out\.csv: wrong file extension .*; use one of \.jsonl,",
    ),
    "an extension of other formats": ({"format": "naver"}, "out.jsonl", DataError, r"one of \.json, \.json\.gz"),
    "no list so long": ({"negatives": 99}, "out.jsonl", DataError, "nothing to export: no query has"),
    "no list so long, as a dataset": ({"negatives": 99}, "out", DataError, "nothing to export: no query has"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_score_export_refuses_wrong_options_and_leaves_nothing(run, tmp_path, name):
    options, output, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        export_scores(Run.of(run), tmp_path / "new" / output, **options)
    assert not list(tmp_path.glob("new/*"))


def test_an_existing_export_is_replaced_only_with_force(run, tmp_path):
    for name in ("out.jsonl", "out"):
        export_scores(Run.of(run), tmp_path / name, teacher="given")
        with pytest.raises(DataError, match="exists already; choose another name, or add --force"):
            export_scores(Run.of(run), tmp_path / name)
        export_scores(Run.of(run), tmp_path / name, negatives=2, force=True)
    assert len(list((tmp_path / "out.jsonl").open())) == len(datasets.load_from_disk(tmp_path / "out")) == 3
    (tmp_path / "thesis").mkdir()
    with pytest.raises(DataError, match="is not an earlier export"):
        export_scores(Run.of(run), tmp_path / "thesis", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.jsonl", "thesis"]


def test_exporting_missing_scores_or_labels_names_the_stage_to_run(source, tmp_path):
    loaded = recipe(tmp_path / "run", source, teachers={"given": {"kind": "imported"}, "bm25": {"kind": "bm25"}})
    import_data(loaded, RunFolder(loaded.folder))
    with pytest.raises(StorageError, match=r"scores/bm25/train: nothing finished here; run `distill score` first"):
        export_scores(Run.of(loaded), tmp_path / "out.jsonl", teacher="bm25")
    with pytest.raises(StorageError, match=r"labels/train: nothing finished here; run `distill label` first"):
        export_scores(Run.of(loaded), tmp_path / "out.jsonl")


def test_labels_of_another_recipe_are_refused(run, source, tmp_path):
    other = recipe(run.folder, source, label={"normalise": "z-score"})
    with pytest.raises(FingerprintError, match='normalise "min-max" -> "z-score"'):
        export_scores(Run.of(other), tmp_path / "out.jsonl")


def test_a_full_disk_leaves_no_output(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pa, "OSFile", lambda path, mode, real=pa.OSFile: real("/dev/full", mode))
    with pytest.raises(StorageError, match="no space left"):
        export_scores(Run.of(run), tmp_path / "new" / "out")
    assert not list(tmp_path.glob("new/*"))
