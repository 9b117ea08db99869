"""Mined candidates: who is in them, who never is, and what happens when the stage runs again."""

import shutil

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer, SparseEncoder
from small_run import JUDGEMENTS, PASSAGES, QUERIES, save_checkpoint, small_recipe, write_run

from distill.config import Mine, Miner
from distill.data.candidates import iterate_candidates, write_candidates
from distill.data.files import xxh128_file
from distill.data.layout import RunFolder
from distill.data.manifest import verify
from distill.data.texts import TextStore
from distill.errors import DataError, FingerprintError, RecipeError
from distill.mining.bm25 import build_index
from distill.mining.mine import ShardMiner, choose_negatives, mine, mining_fields, open_searcher


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return write_run(tmp_path)


def lists(folder: RunFolder, split: str) -> dict[int, list[tuple]]:
    """query row -> (passage row, positive, source, rank) of each candidate."""
    found = {}
    for _, c in iterate_candidates(folder.candidates(split)):
        for i, query in enumerate(c.query.tolist()):
            at = slice(c.offsets[i], c.offsets[i + 1])
            sources = [c.sources[code] for code in c.source[at]]
            found[query] = list(
                zip(c.passages[at].tolist(), c.positive[at].tolist(), sources, c.rank[at].tolist(), strict=True)
            )
    return found


def test_training_lists_hold_the_positives_then_what_bm25_ranks_best(folder):
    manifest = mine(small_recipe(folder.root, mine={"miners": {"bm25": {"kind": "bm25", "top": 3}}}), folder)
    found = lists(folder, "train")
    assert found.keys() == {0, 1, 2, 3}
    assert manifest.counts["positives"] == 5
    ranking, _ = build_index(TextStore.open(folder.passages)).search(QUERIES["train"], 10)
    for query, candidates in found.items():
        positives = {p for q, p, grade in JUDGEMENTS["train"] if q == query and grade > 0}
        assert {p for p, positive, *_ in candidates if positive} == positives
        assert [positive for _, positive, *_ in candidates] == sorted((c[1] for c in candidates), reverse=True)
        expected = [p for p in ranking[query].tolist() if p >= 0 and p not in positives and (query, p) != (2, 6)][:3]
        negatives = [c for c in candidates if not c[1]]
        assert [p for p, *_ in negatives] == expected
        assert all(source == "bm25" and ranking[query][rank - 1] == p for p, _, source, rank in negatives)
    assert found[1][:2] == [(2, True, "judgement", 0), (8, True, "judgement", 0)]  # best grade first


def test_the_passage_that_a_variant_was_cut_from_is_no_negative(folder):
    mine(small_recipe(folder.root, mine={"miners": {"bm25": {"kind": "bm25", "top": 50}}}), folder)
    rows = [p for p, *_ in lists(folder, "train")[2]]
    assert rows[0] == 10 and 6 not in rows and max(rows[1:]) < len(PASSAGES)


def test_reranked_splits_get_the_first_miners_top_and_nothing_else(folder):
    recipe = small_recipe(folder.root, mine={"rerank_depth": 4})
    mine(recipe, folder)
    ranking, _ = build_index(TextStore.open(folder.passages)).search(QUERIES["test"], 4)
    for query, candidates in lists(folder, "test").items():
        in_order = [p for p, _, _, rank in sorted(candidates, key=lambda c: c[3])]
        assert in_order == [p for p in ranking[query].tolist() if p >= 0]
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


def test_choice_of_negatives():
    ranking, rng = np.arange(100, 120), np.random.default_rng(0)
    miner = Miner(kind="bm25", top=3, sample=4, depth=12, skip=2)
    rows, ranks = choose_negatives(ranking, np.array([103, 108]), miner, rng)
    assert rows[:3].tolist() == [102, 104, 105] and ranks[:3].tolist() == [3, 5, 6]
    assert len(set(rows[3:])) == 4 and set(rows[3:]) <= {106, 107, 109, 110, 111}
    assert (ranking[ranks - 1] == rows).all()
    everything, _ = choose_negatives(ranking[:5], np.array([], int), Miner(kind="bm25", top=50, sample=9), rng)
    assert everything.tolist() == ranking[:5].tolist()


def test_a_sample_does_not_depend_on_the_shards(tmp_path):
    found = []
    for size in (1, 3, 1000):
        folder = write_run(tmp_path / str(size))
        miners = {"bm25": {"kind": "bm25", "top": 1, "sample": 2, "depth": 6}}
        mine(small_recipe(folder.root, mine={"miners": miners, "shard_queries": size}), folder)
        found.append(lists(folder, "train"))
    assert found[0] == found[1] == found[2]


def test_finished_work_is_left_alone_and_missing_shards_are_made_again(folder):
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


def test_what_another_machine_commits_during_the_search_stays(folder, tmp_path):
    recipe = small_recipe(folder.root)
    mine(recipe, folder)
    (shard,) = folder.candidates("train").glob("part-*.arrow")
    theirs, kept = shard.read_bytes(), tmp_path / "theirs"
    shard.rename(kept)
    miner = ShardMiner(recipe, folder)
    search = miner._search

    def slow(*arguments):
        found = search(*arguments)
        shard.write_bytes(theirs)
        return found[:, ::-1]  # as another machine's rounding might order them

    miner._search = slow
    miner.mine("train", 0)
    assert shard.read_bytes() == theirs


def test_another_recipe_is_refused_and_the_field_is_named(folder):
    mine(small_recipe(folder.root), folder)
    with pytest.raises(FingerprintError, match=r"miners\.bm25\.top 50 -> 7"):
        mine(small_recipe(folder.root, mine={"miners": {"bm25": {"kind": "bm25", "top": 7}}}), folder)


def test_the_dense_miner_ranks_as_sentence_transformers_does(folder, tiny_sentence):
    store = TextStore.open(folder.passages)
    miner = Miner(kind="dense", model=str(tiny_sentence))
    rows, scores = open_searcher(miner, store, folder).search(QUERIES["test"], 4)
    model = SentenceTransformer(str(tiny_sentence), device="cpu")
    similarity = model.similarity(model.encode(QUERIES["test"]), model.encode(PASSAGES)).numpy()
    np.testing.assert_allclose(scores, -np.sort(-similarity, axis=1)[:, :4], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(similarity, rows, axis=1), scores, atol=1e-5)


@pytest.mark.parametrize("query", ["model", "lexical", "binary"])
def test_the_splade_miner_ranks_as_sparse_encoder_does(folder, tiny_mlm, tmp_path, query):
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
def test_half_precision_is_near_and_has_an_index_and_a_fingerprint_of_its_own(
    folder, tiny_mlm, tiny_sentence, tmp_path, kind
):
    model = tiny_sentence if kind == "dense" else save_checkpoint(tiny_mlm, tmp_path / "checkpoint")
    store, miner, found = TextStore.open(folder.passages), Miner(kind=kind, model=str(model)), []
    for precision in ("float32", "bfloat16"):
        rows, scores = open_searcher(miner, store, folder, Mine(precision=precision)).search(QUERIES["test"][:1], 20)
        found.append(scores[0, np.argsort(rows[0])])
    assert not np.array_equal(*found)
    np.testing.assert_allclose(*found, rtol=0.05, atol=0.05)
    assert len(list(folder.data.glob("index/*"))) == 2
    recipes = [small_recipe(folder.root, mine={"precision": precision}) for precision in ("float32", "bfloat16")]
    one, other = (mining_fields(recipe, folder, "train") for recipe in recipes)
    assert "precision" not in one and other == {**one, "precision": "bfloat16"}


def test_a_dense_miner_s_vectors_that_are_not_finite_are_refused(folder, tiny_sentence, monkeypatch):
    monkeypatch.setattr(SentenceTransformer, "encode_document", lambda *_, **__: np.full((1, 32), np.nan, np.float32))
    miner = Miner(kind="dense", model=str(tiny_sentence))
    with pytest.raises(RecipeError, match=r"tiny-sentence.* NaN or infinite values in float16; set mine\.precision"):
        open_searcher(miner, TextStore.open(folder.passages), folder, Mine(precision="float16")).search(["cat"], 4)
    assert not list(folder.data.glob("index/*/*.arrow"))


def test_a_miner_that_cannot_be_loaded_is_named(folder):
    recipe = small_recipe(folder.root, mine={"miners": {"far": {"kind": "dense", "model": "/no/such/model"}}})
    with pytest.raises(RecipeError, match="/no/such/model: no such folder"):
        mine(recipe, folder)


def test_without_training_queries_there_is_nothing_to_mine(folder):
    folder.judgements("train").unlink()
    with pytest.raises(DataError, match="no training queries"):
        mine(small_recipe(folder.root), folder)
    assert not folder.candidates("dev").exists()


def test_a_shard_that_another_machine_committed_first_is_kept(folder, monkeypatch):
    """A teacher may be scoring it already."""
    recipe = small_recipe(folder.root)
    elsewhere = RunFolder(folder.root.with_name("elsewhere"))
    shutil.copytree(folder.root, elsewhere.root)
    shard = folder.candidates("train") / "part-00000.arrow"

    def write_second(path, *rest, **options):
        if path == shard and not shard.exists():
            mine(recipe, elsewhere)
            shutil.copytree(elsewhere.candidates("train"), folder.candidates("train"))
            first.append(shard.stat().st_ino)
        return write_candidates(path, *rest, **options)

    first = []
    monkeypatch.setattr("distill.mining.mine.write_candidates", write_second)
    mine(recipe, folder)
    assert first == [shard.stat().st_ino]
    assert verify(folder.candidates("train")) == []
