"""Files for search engines: what they hold gives the scores of `SparseEncoder`."""

import json

import numpy as np
import pytest
import seismic
from sentence_transformers import SparseEncoder
from small_run import PASSAGES, QUERIES, save_checkpoint, write_run

from distill.errors import RecipeError
from distill.evaluation.index_files import export_index


@pytest.fixture(scope="module", params=["model", "binary"])
def checkpoint(request, tiny_mlm, tmp_path_factory):
    return save_checkpoint(tiny_mlm, tmp_path_factory.mktemp("checkpoint") / "model", query={"kind": request.param})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def scores(checkpoint):
    """[queries, passages], by sentence-transformers."""
    model = SparseEncoder(str(checkpoint), device="cpu")
    return (model.encode_query(QUERIES["test"]).to_dense() @ model.encode_document(PASSAGES).to_dense().T).numpy()


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_anserinis_impacts_give_the_scores_to_within_their_rounding(checkpoint, run, scores, tmp_path):
    place = export_index(checkpoint, run, tmp_path / "index", "anserini", "test")
    docs = lines(place / "docs" / "docs.jsonl")
    assert [doc["id"] for doc in docs] == [f"p{i}" for i in range(len(PASSAGES))]
    assert all(isinstance(impact, int) and impact > 0 for doc in docs for impact in doc["vector"].values())
    topics = [line.split("\t") for line in (place / "topics.tsv").read_text(encoding="utf-8").splitlines()]
    got = np.array([[sum(doc["vector"].get(term, 0) for term in text.split()) for doc in docs] for _, text in topics])
    widest = max(sum(doc["vector"].values()) for doc in docs) + max(len(text.split()) for _, text in topics)
    assert np.abs(got / 100**2 - scores).max() <= 0.5 * widest / 100**2 + 1e-3


def test_qdrants_points_and_queries_give_the_scores(checkpoint, run, scores, tmp_path):
    place = export_index(checkpoint, run, tmp_path / "index", "qdrant", "test")
    points = lines(place / "points.jsonl")
    vectors = [dict(zip(*point["vector"]["splade"].values(), strict=True)) for point in points]
    queries = [dict(zip(*query["query"].values(), strict=True)) for query in lines(place / "queries.jsonl")]
    got = [[sum(weight * vector.get(term, 0) for term, weight in query.items()) for vector in vectors]
           for query in queries]
    np.testing.assert_allclose(got, scores, rtol=1e-4, atol=1e-5)
    assert [(point["id"], point["payload"]["id"]) for point in points[:2]] == [(0, "p0"), (1, "p1")]


def test_seismic_builds_its_index_of_the_file_and_finds_the_best_passage(checkpoint, run, scores, tmp_path):
    place = export_index(checkpoint, run, tmp_path / "index", "seismic", "test")
    index = seismic.SeismicIndex.build(str(place / "docs.jsonl"), summary_energy=1.0)
    for query, row in zip(lines(place / "queries.jsonl"), scores, strict=True):
        if row.max() > 0:
            terms = np.array(list(query["vector"]), dtype=seismic.get_seismic_string())
            weights = np.array(list(query["vector"].values()), dtype=np.float32)
            best = max(index.search(query["id"], terms, weights, 3, len(terms), 1.0), key=lambda hit: hit[1])
            assert best[2] == f"p{row.argmax()}"


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(checkpoint, run, tmp_path):
    (tmp_path / "there").mkdir()
    for output, format, split, said in [("new", "lucene", None, "one of anserini, seismic, qdrant"),
                                        ("there", "qdrant", None, "is there already"),
                                        ("new", "qdrant", "validation", "has no validation queries")]:
        with pytest.raises(RecipeError, match=said):
            export_index(checkpoint, run, tmp_path / output, format, split)
    assert not (tmp_path / "new").exists()
