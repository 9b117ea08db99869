"""Each of sentence-transformers' evaluators, run by the stage, against the same evaluator called directly."""

import json

import datasets
import numpy as np
import pytest
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder import evaluation as st
from sentence_transformers.util import dot_score
from transformers import BertForMaskedLM

from distill.errors import DataError, FingerprintError, RecipeError
from distill.evaluation.evaluator_data import read_labels, read_texts
from distill.evaluation.evaluators import check_evaluators
from distill.evaluation.stage import evaluation_fields
from distill.pipeline.run import run_pipeline
from distill.recipe.load import parse_recipe
from distill.reporting.report import write_report
from distill.reporting.table import print_table
from distill.retrieval.bm25 import build_index
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.store.texts import TextStore
from tests.evaluation.trained import save_trained
from tests.helpers.small_run import JUDGEMENTS, PASSAGES, QUERIES, save_checkpoint, small_recipe, write_run
from tests.helpers.stages import evaluate, mine
from tests.helpers.tiny_models import tiny_config, tiny_tokenizer
from tests.helpers.whole_run import whole_recipe

PAIRS = [
    ("a dog", "a cat", 0.1),
    ("wind and rain", "the storm wind", 0.8),
    ("the market", "the stock market", 0.9),
    ("cats", "rain", 0.2),
    ("ships in the harbour", "a tree", 0.4),
]
RELEVANT = {f"q{q}": {f"p{p}" for query, p, grade in JUDGEMENTS["test"] if query == q} for q in range(4)}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_mlm):
    folder = write_run(tmp_path_factory.mktemp("run"))
    mine(recipe_of(folder), folder)
    save_trained(tiny_mlm, folder)
    return folder, SparseEncoder(str(folder.model), device="cpu")


def recipe_of(folder, *entries, **options):
    return small_recipe(
        folder.root,
        mine={"rerank_depth": 5},
        evaluate={"baselines": False, "precision": "float32", "evaluators": list(entries), **options},
    )


def measured(run, **entry):
    """The metrics of one evaluator, run by the stage."""
    (run[0].metrics / "manifest.json").unlink(missing_ok=True)
    (result,) = evaluate(recipe_of(run[0], entry), run[0])["evaluators"]
    assert (result["name"], result["kind"]) == (entry["kind"], entry["kind"]) and result["primary"] in result["metrics"]
    return result["metrics"]


def candidates(folder: RunFolder, query: int) -> list[int]:
    """BM25's best passages for a test query, best first: an input here, tested in tests/retrieval."""
    rows, _ = build_index(TextStore.open(folder.passages)).search([QUERIES["test"][query]], 5)
    return [row for row in rows[0].tolist() if row >= 0]


def by_grade(query: int) -> list[int]:
    return [p for q, p, _ in sorted(JUDGEMENTS["test"], key=lambda row: -row[2]) if q == query]


def test_information_retrieval_matches_sentence_transformers(run):
    by_hand = st.SparseInformationRetrievalEvaluator(
        {f"q{i}": text for i, text in enumerate(QUERIES["test"])},
        {f"p{i}": text for i, text in enumerate(PASSAGES)},
        RELEVANT,
        max_active_dims=20,
        mrr_at_k=[3, 10],
    )
    entry = {"kind": "information-retrieval", "top_k": 20, "mrr_at_k": [3, 10]}
    assert measured(run, **entry) == pytest.approx(by_hand(run[1]))


@pytest.mark.parametrize("query", ["model", "lexical", "binary"])
def test_information_retrieval_agrees_with_exact_search(tmp_path, tiny_mlm, monkeypatch, query):
    # the evaluator knows relevant passages, not grades
    monkeypatch.setitem(JUDGEMENTS, "test", [(q, p, 1) for q, p, _ in JUDGEMENTS["test"]])
    folder = write_run(tmp_path)
    save_trained(tiny_mlm, folder, query={"kind": query})
    result = evaluate(recipe_of(folder, {"kind": "information-retrieval"}), folder)
    ours, theirs = result["rows"][-1], result["evaluators"][0]["metrics"]
    assert ours["metrics"]["nDCG@10"] == pytest.approx(theirs["dot_ndcg@10"], abs=1e-6)
    assert ours["metrics"]["RR@10"] == pytest.approx(theirs["dot_mrr@10"], abs=1e-6)
    assert ours["flops"] == pytest.approx(theirs["avg_flops"], rel=1e-5)
    assert ours["passage_terms"] == pytest.approx(theirs["corpus_active_dims"])


def test_reranking_and_triplet_match_sentence_transformers(run):
    folder, model = run
    lists = [
        (QUERIES["test"][q], by_grade(q), [p for p in candidates(folder, q) if f"p{p}" not in RELEVANT[f"q{q}"]])
        for q in range(4)
    ]
    lists = [
        (query, [PASSAGES[p] for p in positives], [PASSAGES[p] for p in negatives])
        for query, positives, negatives in lists
        if negatives
    ]
    samples = [dict(zip(("query", "positive", "negative"), row, strict=True)) for row in lists]
    by_hand = st.SparseRerankingEvaluator(samples, at_k=5, similarity_fct=dot_score)
    assert measured(run, kind="reranking", at_k=5) == pytest.approx(by_hand(model))
    by_hand = st.SparseTripletEvaluator(
        [row[0] for row in lists],
        [row[1][0] for row in lists],
        [row[2][0] for row in lists],
        similarity_fn_names=["dot", "cosine"],
    )
    assert measured(run, kind="triplet", similarities=["dot", "cosine"]) == pytest.approx(by_hand(model))


def test_rank_fusion_matches_sentence_transformers(run):
    folder, model = run
    scores = (model.encode_query(QUERIES["test"]).to_dense() @ model.encode_document(PASSAGES).to_dense().T).numpy()
    samples = [
        [
            {"query_id": str(q), "query": text, "positive": by_grade(q), "documents": documents}
            for q, (text, documents) in enumerate(zip(QUERIES["test"], lists, strict=True))
        ]
        for lists in (
            [candidates(folder, q)[:4] for q in range(4)],
            np.argsort(-scores, axis=1, kind="stable")[:, :4].tolist(),
        )
    ]
    by_hand = st.ReciprocalRankFusionEvaluator(*samples, at_k=3, rrf_k=10)()
    assert measured(run, kind="reciprocal-rank-fusion", at_k=3, rrf_k=10, depth=4) == pytest.approx(by_hand)


def test_similarity_and_classification_match_sentence_transformers(run, tmp_path):
    first, second, scores = map(list, zip(*PAIRS, strict=True))
    labels = [int(score > 0.5) for score in scores]
    rows = [dict(zip(("b", "a", "score"), row, strict=True)) for row in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    by_hand = st.SparseEmbeddingSimilarityEvaluator(first, second, scores)
    assert measured(run, kind="similarity", data=str(tmp_path / "pairs.jsonl")) == pytest.approx(by_hand(run[1]))
    datasets.DatasetDict({"dev": datasets.Dataset.from_dict({"label": labels, "s": second, "f": first})}).save_to_disk(
        tmp_path / "saved"
    )
    by_hand = st.SparseBinaryClassificationEvaluator(first, second, labels, similarity_fn_names=["cosine"])
    assert measured(
        run, kind="binary-classification", data=str(tmp_path / "saved"), columns=["f", "s"], similarities=["cosine"]
    ) == pytest.approx(by_hand(run[1]))


def test_translation_and_mse_match_sentence_transformers(run, tmp_path, tiny_mlm):
    first, second, _ = map(list, zip(*PAIRS, strict=True))
    (tmp_path / "pairs.tsv").write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b, _ in PAIRS))
    entry = {"data": str(tmp_path / "pairs.tsv")}
    assert measured(run, kind="translation", **entry) == pytest.approx(
        st.SparseTranslationEvaluator(first, second)(run[1])
    )
    path = save_checkpoint(tiny_mlm, tmp_path / "teacher", pooling="sum")
    teacher = SparseEncoder(str(path), device="cpu")
    assert measured(run, kind="mse", teacher=str(path), **entry) == pytest.approx(
        st.SparseMSEEvaluator(first, second, teacher_model=teacher)(run[1])
    )
    assert measured(run, kind="mse", teacher=str(path), columns=["target"], **entry) == pytest.approx(
        st.SparseMSEEvaluator(second, second, teacher_model=teacher)(run[1])
    )


def test_evaluator_results_are_shown_and_changed_data_is_refused(run, tmp_path, capsys):
    folder, _ = run
    (folder.metrics / "manifest.json").unlink(missing_ok=True)
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,score\n" + "".join(f"{a},{b},{score}\n" for a, b, score in PAIRS))
    entries = [{"kind": "similarity", "data": str(path)}, {"kind": "similarity", "data": str(path), "name": "again"}]
    recipe = recipe_of(folder, *entries)
    print_table(evaluate(recipe, folder))
    assert "again: spearman_dot 0." in capsys.readouterr().out
    assert "<h3>again</h3>" in write_report(Run(recipe, folder), {}).read_text()
    path.write_text(path.read_text().replace("0.9", "0.3"))
    with pytest.raises(FingerprintError, match="evaluators"):
        evaluate(recipe, folder)
    assert evaluation_fields(Run(recipe_of(folder), folder))["evaluators"] == []


def test_evaluators_need_distinct_names_and_rankings_of_their_depth(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(RecipeError, match="two evaluators are called 'similarity'"):
        recipe_of(folder, *[{"kind": "similarity", "data": "pairs.csv"}] * 2)
    with pytest.raises(RecipeError, match="reads the best 100 of rankings that have a `depth` of 50"):
        recipe_of(folder, {"kind": "reciprocal-rank-fusion"}, depth=50)


@pytest.mark.parametrize(
    ("content", "entry", "message"),
    [
        ("a,score\nx,1\n", {}, r"two columns of texts are needed \(columns: a, score\)"),
        ("a,b\nx,y\n", {}, "no column called label"),
        ("a,b,score\nx,,1\n", {}, r"pairs\.csv:1 \[b\]: expected a text, found None"),
        ("a,b,score\nx,y,1\n", {"columns": ["a", "c"]}, "no column 'c'"),
        ("a,b,label\nx,y,2\n", {"kind": "binary-classification"}, r"pairs\.csv:1 \[label\]: expected 0 or 1, found 2"),
        (None, {}, "no such file"),
    ],
)
def test_unusable_evaluator_data_is_refused_up_front(tmp_path, content, entry, message):
    if content is not None:
        (tmp_path / "pairs.csv").write_text(content)
    recipe = recipe_of(RunFolder(tmp_path), {"kind": "similarity", "data": str(tmp_path / "pairs.csv"), **entry})
    with pytest.raises(DataError, match=message):
        check_evaluators(recipe.evaluate.evaluators, 10)


def test_texts_of_an_evaluator_are_read_in_the_dialect_of_the_import(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text('a\tb\tscore\n5" pipe\tNA\t1\n42\t"begun\t0.5\n')
    (entry,) = recipe_of(RunFolder(tmp_path), {"kind": "similarity", "data": str(path)}).evaluate.evaluators
    assert read_texts(entry) == (['5" pipe', "42"], ["NA", '"begun'])
    assert read_labels(entry) == [1.0, 0.5]


def test_a_collection_too_large_for_memory_is_refused(tmp_path):
    recipe = recipe_of(RunFolder(tmp_path), {"kind": "information-retrieval"})
    with pytest.raises(RecipeError, match="holds every passage in memory, and there are 8,841,823"):
        check_evaluators(recipe.evaluate.evaluators, 8_841_823)


def test_nano_beir_without_the_hub_is_refused(tmp_path):
    recipe = recipe_of(RunFolder(tmp_path), {"kind": "nano-beir", "datasets": ["msmarco"]})
    with pytest.raises(RecipeError, match=r"nano-beir \(sentence-transformers/NanoBEIR-en, from the hub\)"):
        check_evaluators(recipe.evaluate.evaluators, 10)
    recipe = recipe_of(RunFolder(tmp_path), {"kind": "nano-beir", "datasets": ["nosuch"]})
    with pytest.raises(RecipeError, match="nosuch"):
        check_evaluators(recipe.evaluate.evaluators, 10)


def test_missing_candidates_and_a_teacher_of_another_vocabulary_are_refused(tmp_path, tiny_mlm):
    folder, larger = write_run(tmp_path / "run"), tmp_path / "larger"
    save_trained(tiny_mlm, folder)
    with pytest.raises(RecipeError, match="run `distill mine`"):
        evaluate(recipe_of(folder, {"kind": "reranking"}), folder)
    tokenizer = tiny_tokenizer()
    BertForMaskedLM(tiny_config(tokenizer, vocab_size=len(tokenizer) + 8)).save_pretrained(larger)
    tokenizer.save_pretrained(larger)
    teacher = save_checkpoint(larger, tmp_path / "teacher")
    (tmp_path / "texts.csv").write_text("text\nthe cat\n")
    entry = {"kind": "mse", "data": str(tmp_path / "texts.csv"), "teacher": str(teacher)}
    with pytest.raises(RecipeError, match=f"has {len(tokenizer) + 8} dimensions"):
        evaluate(recipe_of(folder, entry), folder)
    assert not folder.evaluation.exists()


def test_missing_evaluator_data_stops_a_run_right_after_the_import(tmp_path, tiny_mlm, tiny_sentence):
    recipe = whole_recipe(tmp_path, tiny_mlm, tiny_sentence)
    entry = {"kind": "translation", "data": str(tmp_path / "nowhere.jsonl")}
    tree = recipe.model_dump(mode="json", exclude_none=True)
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        run_pipeline(parse_recipe({**tree, "evaluate": {"evaluators": [entry]}}))
    assert RunFolder(recipe.folder).passages.exists() and not RunFolder(recipe.folder).candidates("train").exists()
