"""Terms and matches against SparseEncoder's own vectors."""

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SparseEncoder

from distill.cli.inspect import inspect_path, search_and_print
from distill.errors import DataError, ModelError, StudentError
from distill.evaluation.explain import encode_collection, explain, open_model, search_and_explain
from tests.helpers.small_run import PASSAGES, save_checkpoint, write_run


@pytest.fixture(scope="module", params=["model", "lexical", "binary"])
def checkpoint(request, tiny_mlm, tmp_path_factory):
    return save_checkpoint(tiny_mlm, tmp_path_factory.mktemp("checkpoint") / "model", query={"kind": request.param})


def test_terms_match_sparse_encoders_decode(checkpoint):
    reference = SparseEncoder(str(checkpoint), device="cpu")
    expected = reference.decode(reference.encode_document("the cat sat on the mat"))
    terms = explain(open_model(checkpoint), "the cat sat on the mat")
    assert {term.text: pytest.approx(term.weight, rel=1e-4) for term in terms} == dict(expected)
    assert [term.weight for term in terms] == sorted((term.weight for term in terms), reverse=True)


def test_matches_add_up_to_the_score_and_hits_come_best_first(checkpoint, tmp_path):
    model, reference = open_model(checkpoint), SparseEncoder(str(checkpoint), device="cpu")
    vectors = encode_collection(model, PASSAGES)
    np.testing.assert_array_equal(vectors.toarray(), encode_collection(model, write_run(tmp_path)).toarray())
    hits = search_and_explain(model, vectors, "cat on a tree", k=3)
    scores = (
        reference.encode_query(["cat on a tree"]).to_dense() @ reference.encode_document(PASSAGES).to_dense().T
    ).numpy()[0]
    assert [hit.row for hit in hits] == np.argsort(-scores, kind="stable")[:3].tolist()
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.row], rel=1e-4)
        assert sum(term.weight for term in hit.matches) == pytest.approx(hit.score, rel=1e-4)


def test_models_of_packages_are_inspected_and_searched_with(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "__init__.py").touch()
    (tmp_path / "carrier" / "model").symlink_to(checkpoint)
    monkeypatch.syspath_prepend(tmp_path)
    inspect_path("package:carrier/model", "the cat sat on the mat")
    assert f"{len(explain(open_model(checkpoint), 'the cat sat on the mat'))} active dim" in capsys.readouterr().out
    write_run(tmp_path / "run")
    search_and_print("package:carrier/model", tmp_path / "run", "cat on a tree", beside=checkpoint)
    assert "package:carrier/model: 'cat on a tree'\n  1. " in capsys.readouterr().out


def test_names_that_are_no_checkpoint_are_refused_by_inspect_and_search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs")
    for look in (lambda name: inspect_path(name, "text"), lambda name: search_and_print(name, Path("runs"), "cat")):
        with pytest.raises(ModelError, match="runs/modle: no such folder in runs/"):
            look("runs/modle")
        with pytest.raises(ModelError, match=r"'org/model' cannot be loaded: its modules\.json"):  # the hub was asked
            look("org/model")
    with pytest.raises(StudentError, match="not a checkpoint"):
        inspect_path("runs", "text")
    with pytest.raises(DataError, match="no such file or folder; for a model on the hub, give a text"):
        inspect_path("runs/modle")
    with pytest.raises(DataError, match=r"nor an \.arrow shard"):
        (tmp_path / "file").touch()
        inspect_path("file", "text")
