"""Mined candidates: positives, negatives and exclusions; repeated and concurrent runs of the stage."""

import shutil

import bm25s
import numpy as np
import pytest
import Stemmer
from sentence_transformers import SentenceTransformer, SparseEncoder

from distill.config import Mine, Miner
from distill.errors import DataError, FingerprintError, ModelError, RecipeError
from distill.mining.mine import PendingShard, ShardMiner, choose_negatives, open_searcher
from distill.mining.stage import mining_fields
from distill.run.files import xxh128_file
from distill.run.layout import RunFolder
from distill.run.manifest import verify
from distill.run.run import Run
from distill.store.arrow import RowReader
from distill.store.candidates import iterate_candidates, write_candidates
from distill.store.texts import TextStore
from tests.helpers.small_run import (
    JUDGEMENTS,
    PASSAGES,
    QUERIES,
    save_checkpoint,
    small_recipe,
    write_queries,
    write_run,
)
from tests.helpers.stages import mine


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return write_run(tmp_path)


def lists(folder: RunFolder, split: str) -> dict[int, list[tuple]]:
    """query row -> (passage row, positive, source, rank) of each candidate."""
    result = {}
    for _, c in iterate_candidates(folder.candidates(split)):
        for i, query in enumerate(c.query.tolist()):
            at = slice(c.offsets[i], c.offsets[i + 1])
            sources = [c.sources[code] for code in c.source[at]]
            result[query] = list(
                zip(c.passages[at].tolist(), c.positive[at].tolist(), sources, c.rank[at].tolist(), strict=True)
            )
    return result


def bm25_rankings(queries: list[str]) -> list[list[int]]:
    """Rows of the passages that share a word with each query, ranked by the library bm25s."""
    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(PASSAGES, stemmer=stemmer, show_progress=False), show_progress=False)
    words = bm25s.tokenize(queries, stemmer=stemmer, return_ids=False, show_progress=False)
    scores = [index.get_scores(query) for query in words]
    return [[int(row) for row in np.argsort(-of_query, kind="stable") if of_query[row] > 0] for of_query in scores]


def test_training_lists_hold_the_positives_then_the_best_bm25_negatives(folder):
    manifest = mine(small_recipe(folder.root, mine={"miners": {"bm25": {"kind": "bm25", "top": 3}}}), folder)
    mined = lists(folder, "train")
    assert mined.keys() == {0, 1, 2, 3}
    assert manifest.counts["positives"] == 5
    rankings = bm25_rankings(QUERIES["train"])
    for query, candidates in mined.items():
        positives = {p for q, p, grade in JUDGEMENTS["train"] if q == query and grade > 0}
        assert {p for p, positive, *_ in candidates if positive} == positives
        assert [positive for _, positive, *_ in candidates] == sorted((c[1] for c in candidates), reverse=True)
        expected = [p for p in rankings[query] if p not in positives and (query, p) != (2, 6)][:3]
        negatives = [c for c in candidates if not c[1]]
        assert [p for p, *_ in negatives] == expected
        assert all(source == "bm25" and rankings[query][rank - 1] == p for p, _, source, rank in negatives)
    assert mined[1][:2] == [(2, True, "judgement", 0), (8, True, "judgement", 0)]  # best grade first


def test_the_origin_of_a_variant_is_not_a_negative(folder):
    mine(small_recipe(folder.root, mine={"miners": {"bm25": {"kind": "bm25", "top": 50}}}), folder)
    rows = [p for p, *_ in lists(folder, "train")[2]]
    assert rows[0] == 10 and 6 not in rows and max(rows[1:]) < len(PASSAGES)


def test_reranked_splits_get_exactly_the_first_miners_top(folder):
    mine(small_recipe(folder.root, mine={"rerank_depth": 4}), folder)
    rankings = bm25_rankings(QUERIES["test"])
    for query, candidates in lists(folder, "test").items():
        assert [p for p, _, _, rank in sorted(candidates, key=lambda c: c[3])] == rankings[query][:4]
        judged = {p for q, p, _ in JUDGEMENTS["test"] if q == query}
        assert all(positive == (p in judged) for p, positive, *_ in candidates)
    assert lists(folder, "test")[3] == []  # no passage shares a word with "zebra"


def test_several_miners_are_merged_without_duplicates(folder, tiny_sentence):
    miners = {"bm25": {"kind": "bm25", "top": 2}, "dense": {"kind": "dense", "model": str(tiny_sentence), "top": 4}}
    mine(small_recipe(folder.root, mine={"miners": miners}), folder)
    for candidates in lists(folder, "train").values():
        rows = [p for p, *_ in candidates]
        assert len(set(rows)) == len(rows)
        assert {source for _, _, source, _ in candidates} == {"judgement", "bm25", "dense"}


def test_negatives_are_the_top_after_the_skipped_ranks_then_a_sample():
    ranking, rng = np.arange(100, 120), np.random.default_rng(0)
    miner = Miner(kind="bm25", top=3, sample=4, depth=12, skip=2)
    rows, ranks = choose_negatives(ranking, np.array([103, 108]), miner, rng)
    assert rows[:3].tolist() == [102, 104, 105] and ranks[:3].tolist() == [3, 5, 6]
    assert len(set(rows[3:])) == 4 and set(rows[3:]) <= {106, 107, 109, 110, 111}
    assert (ranking[ranks - 1] == rows).all()
    everything, _ = choose_negatives(ranking[:5], np.array([], int), Miner(kind="bm25", top=50, sample=9), rng)
    assert everything.tolist() == ranking[:5].tolist()


def test_a_sample_does_not_depend_on_the_shard_size(tmp_path):
    mined = []
    for size in (1, 3, 1000):
        folder = write_run(tmp_path / str(size))
        miners = {"bm25": {"kind": "bm25", "top": 1, "sample": 2, "depth": 6}}
        mine(small_recipe(folder.root, mine={"miners": miners, "shard_queries": size}), folder)
        mined.append(lists(folder, "train"))
    assert mined[0] == mined[1] == mined[2]


def test_finished_shards_are_kept_and_missing_ones_are_mined_again(folder):
    recipe = small_recipe(folder.root, mine={"shard_queries": 2})
    first = mine(recipe, folder)
    path = folder.candidates("train")
    shards = [path / shard.name for shard in first.shards]
    before = [(shard.stat().st_mtime_ns, xxh128_file(shard)) for shard in shards]
    mine(recipe, folder)
    assert [shard.stat().st_mtime_ns for shard in shards] == [time for time, _ in before]
    (path / "manifest.json").unlink()
    shards[1].unlink()
    assert mine(recipe, folder) == first
    assert shards[0].stat().st_mtime_ns == before[0][0]
    assert [xxh128_file(shard) for shard in shards] == [checksum for _, checksum in before]


def test_a_shard_that_another_machine_commits_during_the_search_is_kept(folder, tmp_path, monkeypatch):
    recipe = small_recipe(folder.root)
    mine(recipe, folder)
    (shard,) = folder.candidates("train").glob("part-*.arrow")
    theirs, copy = shard.read_bytes(), tmp_path / "theirs"
    shard.rename(copy)

    class SlowSearcher:
        def __init__(self, *arguments):
            self._searcher = open_searcher(*arguments)

        def search(self, *arguments):
            rows, scores = self._searcher.search(*arguments)
            shard.write_bytes(theirs)
            return rows[:, ::-1], scores[:, ::-1]  # as another machine's rounding might order them

    monkeypatch.setattr("distill.mining.mine.open_searcher", SlowSearcher)
    miner = ShardMiner(Run(recipe, folder))
    miner.mine(PendingShard("train", 0, 4, RowReader(copy).metadata["fingerprint"]))
    assert shard.read_bytes() == theirs


def test_candidates_of_another_recipe_are_refused_with_the_field_that_differs(folder):
    mine(small_recipe(folder.root), folder)
    with pytest.raises(FingerprintError, match=r"miners\.bm25\.top 50 -> 7"):
        mine(small_recipe(folder.root, mine={"miners": {"bm25": {"kind": "bm25", "top": 7}}}), folder)


def test_the_dense_miner_scores_equal_sentence_transformers(folder, tiny_sentence):
    store = TextStore.open(folder.passages)
    miner = Miner(kind="dense", model=str(tiny_sentence))
    rows, scores = open_searcher(miner, store, folder).search(QUERIES["test"], 4)
    model = SentenceTransformer(str(tiny_sentence), device="cpu")
    similarity = model.similarity(model.encode(QUERIES["test"]), model.encode(PASSAGES)).numpy()
    np.testing.assert_allclose(scores, -np.sort(-similarity, axis=1)[:, :4], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(similarity, rows, axis=1), scores, atol=1e-5)


@pytest.mark.parametrize("query", ["model", "lexical", "binary"])
def test_the_splade_miner_scores_equal_sparse_encoder(folder, tiny_mlm, tmp_path, query):
    splade_checkpoint = save_checkpoint(tiny_mlm, tmp_path / "checkpoint", query={"kind": query})
    store = TextStore.open(folder.passages)
    miner = Miner(kind="splade", model=str(splade_checkpoint))
    rows, scores = open_searcher(miner, store, folder).search(QUERIES["test"], 4)
    model = SparseEncoder(str(splade_checkpoint), device="cpu")
    queries, passages = model.encode_query(QUERIES["test"]), model.encode_document(PASSAGES)
    similarity = (queries.to_dense() @ passages.to_dense().T).numpy()
    np.testing.assert_allclose(scores, -np.sort(-similarity, axis=1)[:, :4], rtol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(similarity, rows, axis=1), scores, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "splade"])
def test_half_precision_scores_are_close_and_have_their_own_index_and_fingerprint(
    folder, tiny_mlm, tiny_sentence, tmp_path, kind
):
    model = tiny_sentence if kind == "dense" else save_checkpoint(tiny_mlm, tmp_path / "checkpoint")
    store, miner, by_row = TextStore.open(folder.passages), Miner(kind=kind, model=str(model)), []
    for precision in ("float32", "bfloat16"):
        rows, scores = open_searcher(miner, store, folder, Mine(precision=precision)).search(QUERIES["test"][:1], 20)
        by_row.append(scores[0, np.argsort(rows[0])])
    assert not np.array_equal(*by_row)
    np.testing.assert_allclose(*by_row, rtol=0.05, atol=0.05)
    assert len(list(folder.data.glob("index/*"))) == 2
    recipes = [small_recipe(folder.root, mine={"precision": precision}) for precision in ("float32", "bfloat16")]
    single, half = (mining_fields(Run(recipe, folder), "train") for recipe in recipes)
    assert single["precision"] == "float32" and half == {**single, "precision": "bfloat16"}


@pytest.mark.parametrize("kind", ["dense", "splade"])
@pytest.mark.parametrize("fastest", ["float32", "bfloat16"])
def test_auto_precision_is_the_machines_fastest_and_the_fingerprint_does_not_depend_on_the_machine(
    folder, tiny_mlm, tiny_sentence, tmp_path, kind, fastest, monkeypatch
):
    monkeypatch.setattr("distill.planning.devices.fastest_precision", lambda device: fastest)
    model = tiny_sentence if kind == "dense" else save_checkpoint(tiny_mlm, tmp_path / "checkpoint")
    store, miner = TextStore.open(folder.passages), Miner(kind=kind, model=str(model))
    auto, named = (
        open_searcher(miner, store, folder, Mine(precision=precision)).search(QUERIES["test"], 4)
        for precision in ("auto", fastest)
    )
    assert np.array_equal(auto[0], named[0]) and np.array_equal(auto[1], named[1])
    fields = mining_fields(Run(small_recipe(folder.root, mine={"precision": "auto"}), folder), "train")
    assert fields["precision"] == "auto"


def test_dense_vectors_that_are_not_finite_are_refused(folder, tiny_sentence, monkeypatch):
    monkeypatch.setattr(SentenceTransformer, "encode_document", lambda *_, **__: np.full((1, 32), np.nan, np.float32))
    miner = Miner(kind="dense", model=str(tiny_sentence))
    with pytest.raises(RecipeError, match=r"tiny-sentence.* NaN or infinite values in float16; set mine\.precision"):
        open_searcher(miner, TextStore.open(folder.passages), folder, Mine(precision="float16")).search(["cat"], 4)
    assert not list(folder.data.glob("index/*/*.arrow"))


def test_the_model_of_a_miner_that_cannot_be_loaded_is_named(folder):
    recipe = small_recipe(folder.root, mine={"miners": {"far": {"kind": "dense", "model": "/no/such/model"}}})
    with pytest.raises(ModelError, match="/no/such/model: no such folder"):
        mine(recipe, folder)


def test_mining_without_training_queries_is_refused(folder):
    folder.queries("train").unlink()
    with pytest.raises(DataError, match="no training queries"):
        mine(small_recipe(folder.root), folder)
    assert not folder.candidates("dev").exists()


def test_a_shard_that_another_machine_commits_before_the_write_is_kept(folder, monkeypatch):
    """A teacher may be scoring it already."""
    recipe = small_recipe(folder.root)
    elsewhere = RunFolder(folder.root.with_name("elsewhere"))
    shutil.copytree(folder.root, elsewhere.root)
    shard = folder.candidates("train") / "part-00000.arrow"

    inodes = []

    def write_second(path, *rest, **options):
        if path == shard and not shard.exists():
            mine(recipe, elsewhere)
            shutil.copytree(elsewhere.candidates("train"), folder.candidates("train"), dirs_exist_ok=True)
            inodes.append(shard.stat().st_ino)
        return write_candidates(path, *rest, **options)

    monkeypatch.setattr("distill.mining.mine.write_candidates", write_second)
    mine(recipe, folder)
    assert inodes == [shard.stat().st_ino]
    assert verify(folder.candidates("train")) == []


def test_queries_without_a_positive_are_mined_from_the_first_rank(folder):
    queries = [*QUERIES["train"], "dogs and mats", "zebra"]
    write_queries(folder.queries("train"), queries)
    manifest = mine(small_recipe(folder.root, mine={"miners": {"bm25": {"kind": "bm25", "top": 3, "skip": 1}}}), folder)
    mined = lists(folder, "train")
    rankings = bm25_rankings(queries)
    assert [c[:2] for c in mined[4]] == [(p, False) for p in rankings[4][:3]] and mined[5] == []
    assert all(rank > 1 for _, positive, _, rank in mined[0] if not positive)
    counts = manifest.counts
    assert (counts["queries"], counts["queries_without_positives"], counts["queries_without_candidates"]) == (6, 2, 1)
