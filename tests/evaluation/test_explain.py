"""Terms and matches against the checkpoint's own vectors."""

import numpy as np
import pytest
from sentence_transformers import SparseEncoder
from small_run import PASSAGES, save_checkpoint, write_run

from distill.evaluation.explain import encode_collection, explain, open_model, search_and_explain


@pytest.fixture(scope="module", params=["model", "lexical", "binary"])
def checkpoint(request, tiny_mlm, tmp_path_factory):
    return save_checkpoint(tiny_mlm, tmp_path_factory.mktemp("checkpoint") / "model", query={"kind": request.param})


def test_terms_are_those_that_sparse_encoder_decodes(checkpoint):
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
    scores = (reference.encode_query(["cat on a tree"]).to_dense()
              @ reference.encode_document(PASSAGES).to_dense().T).numpy()[0]
    assert [hit.row for hit in hits] == np.argsort(-scores, kind="stable")[:3].tolist()
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.row], rel=1e-4)
        assert sum(term.weight for term in hit.matches) == pytest.approx(hit.score, rel=1e-4)
