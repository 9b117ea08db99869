"""Exported vectors, read as each engine reads them, give the checkpoint's own sparse dot products."""

import gzip
import json
import re
from collections import Counter

import numpy as np
import pytest
import seismic
from sentence_transformers import SparseEncoder
from transformers import AutoTokenizer

from distill.errors import DataError
from distill.evaluation.explain import encode_collection, open_model
from distill.export.index_files import export_index
from distill.export.index_formats import FORMATS, Format, term_names
from distill.retrieval.encode import encode_texts
from distill.run.files import read_json
from tests.helpers.small_run import PASSAGES, QUERIES, save_checkpoint, write_run


@pytest.fixture(scope="module", params=["model", "binary"])
def checkpoint(request, tiny_mlm, tmp_path_factory):
    return save_checkpoint(tiny_mlm, tmp_path_factory.mktemp("checkpoint") / "model", query={"kind": request.param})


@pytest.fixture
def vectors(checkpoint):
    """CSR vectors of the test queries and of the passages."""
    model = open_model(checkpoint)
    return encode_texts(model, QUERIES["test"], "query"), encode_collection(model, PASSAGES)


def lines(*files) -> list[str]:
    return [
        line
        for file in files
        for line in (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8").read().splitlines()
    ]


def products(queries: list[dict], passages: list[dict]) -> np.ndarray:
    """Dot products [queries, passages] of vectors by term."""
    return np.array(
        [
            [sum(weight * passage.get(term, 0) for term, weight in query.items()) for passage in passages]
            for query in queries
        ]
    )


def export(checkpoint, tmp_path, format):
    write_run(tmp_path / "run")
    export_index(checkpoint, tmp_path / "run", tmp_path / "out", format=format, split="test", slab=4)
    return tmp_path / "out"


def test_anserini_term_counts_give_the_scores_of_the_rounded_vectors(checkpoint, vectors, tmp_path):
    out = export(checkpoint, tmp_path, "anserini")
    passages = [json.loads(line) for line in lines(out / "collection" / "part-00000.jsonl.gz")]
    assert [(p["id"], p["contents"]) for p in passages] == [(f"p{i}", text) for i, text in enumerate(PASSAGES)]
    assert all(isinstance(weight, int) and weight > 0 for p in passages for weight in p["vector"].values())
    topics = dict(line.split("\t") for line in lines(out / "queries.test.tsv"))
    assert list(topics) == ["q0", "q1", "q2", "q3"]
    counts = [Counter(words.split()) for words in topics.values()]
    rounded = [np.rint(100 * side.toarray().astype(np.float64)) for side in vectors]
    np.testing.assert_array_equal(products(counts, [p["vector"] for p in passages]), rounded[0] @ rounded[1].T)


def test_opensearch_features_have_no_dots_and_give_sparse_encoders_scores(checkpoint, vectors, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "opensearch", Format(**{**vars(FORMATS["opensearch"]), "per_file": 4}))
    out = export(checkpoint, tmp_path, "opensearch")
    parts = sorted(out.glob("bulk-*"))
    assert [len(lines(part)) for part in parts] == [8, 8, 4]  # two lines per passage: action and source
    bulk = [json.loads(line) for line in lines(*parts)]
    assert [action["index"]["_id"] for action in bulk[::2]] == [f"p{i}" for i in range(len(PASSAGES))]
    features = [source.get("embedding", {}) for source in bulk[1::2]]
    assert all("." not in name and weight > 0 for vector in features for name, weight in vector.items())
    queries = [
        json.loads(line)["body"]["query"]["neural_sparse"]["embedding"]["query_tokens"]
        for line in lines(out / "queries.test.jsonl")
    ]
    reference = SparseEncoder(str(checkpoint), device="cpu")
    expected = reference.encode_query(QUERIES["test"]).to_dense() @ reference.encode_document(PASSAGES).to_dense().T
    np.testing.assert_allclose(products(queries, features), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert read_json(out / "index.json")["mappings"]["properties"]["embedding"] == {"type": "rank_features"}


def test_qdrant_points_hold_the_vectors_bit_for_bit(checkpoint, vectors, tmp_path):
    out = export(checkpoint, tmp_path, "qdrant")
    points = [json.loads(line) for line in lines(out / "points-00000.jsonl.gz")]
    assert [point["id"] for point in points] == list(range(len(PASSAGES)))
    assert points[3]["payload"] == {"id": "p3", "text": PASSAGES[3]}
    queries = [json.loads(line)["query"] for line in lines(out / "queries.test.jsonl")]
    for rows, matrix in ((queries, vectors[0]), ([point["vector"]["splade"] for point in points], vectors[1])):
        dense = np.zeros(matrix.shape, np.float32)
        for i, row in enumerate(rows):
            dense[i, row["indices"]] = row["values"]
        np.testing.assert_array_equal(dense, matrix.toarray())


def test_seismic_indexes_the_file_and_finds_the_exact_best_passage(checkpoint, vectors, tmp_path):
    out = export(checkpoint, tmp_path, "seismic")
    index = seismic.SeismicIndex.build(str(out / "passages.jsonl"), summary_energy=1.0)  # nothing is skipped
    assert index.len == len(PASSAGES) and index.get_doc_text("p3") == PASSAGES[3]
    exact = (vectors[0] @ vectors[1].T).toarray()
    for i, line in enumerate(lines(out / "queries.test.jsonl")):
        query = json.loads(line)
        results = index.search(
            query["id"],
            np.array(list(query["vector"]), dtype=seismic.get_seismic_string()),
            np.array(list(query["vector"].values()), dtype=np.float32),
            k=1,
            query_cut=len(query["vector"]) or 1,
            heap_factor=1.0,
        )
        if exact[i].any():
            ((_, score, best),) = results
            # 16-bit weights: passages whose scores agree to three digits may change places
            assert [exact[i, int(best[1:])], score] == pytest.approx([exact[i].max()] * 2, rel=5e-3)
        else:
            assert results == []


def test_a_term_that_an_engine_does_not_accept_gets_a_unique_name(tiny_mlm):
    tokenizer = AutoTokenizer.from_pretrained(tiny_mlm)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    names = term_names([*tokens, None, None], re.compile("a"))
    assert len(set(names)) == len(names) == len(tokens) + 2
    assert [name for name, token in zip(names, tokens, strict=False) if "a" not in token] == [
        token for token in tokens if "a" not in token
    ]
    assert names[-1] == f"term-{len(tokens) + 1}"


def test_a_beir_folder_can_be_exported(checkpoint, vectors, tmp_path):
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_text(
        "".join(
            json.dumps({"_id": f"p{i}", "title": "", "text": text}) + "\n" for i, text in enumerate(PASSAGES) if text
        )
    )
    (beir / "queries.jsonl").write_text(json.dumps({"_id": "q0", "text": QUERIES["test"][0]}) + "\n")
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tp1\t1\n")
    summary = export_index(checkpoint, beir, tmp_path / "out", format="qdrant", split="test")
    assert summary.endswith("out: 9 passages, the test queries")
    point = json.loads(lines(tmp_path / "out" / "points-00000.jsonl.gz")[0])
    np.testing.assert_allclose(point["vector"]["splade"]["values"], vectors[1][0].data, rtol=1e-5)


def test_index_export_refuses_wrong_options_and_existing_outputs_and_leaves_nothing(checkpoint, tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "existing").mkdir()
    for output, options, words in (
        ("existing", {"format": "qdrant"}, "exists already"),
        ("out", {"format": "lucene"}, "anserini, opensearch, qdrant, seismic"),
        ("out", {"format": "qdrant", "split": "night"}, "train, dev, test"),
    ):
        with pytest.raises(DataError, match=words):
            export_index(checkpoint, tmp_path / "run", tmp_path / output, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["existing", "run"]
