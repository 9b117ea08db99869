"""Mining by approximate search: the recall written beside the candidates, its index, and what recipes may say of it."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from sentence_transformers import SparseEncoder

from distill.errors import RecipeError
from distill.mining.mine import open_searcher
from distill.mining.stage import mining_fields
from distill.run.run import Run
from distill.run.seals import is_damaged
from distill.store.texts import TextStore
from tests.helpers.small_run import PASSAGES, QUERIES, save_checkpoint, small_recipe, write_run
from tests.helpers.stages import mine

CUT = {"query_cut": 1, "heap_factor": 1.0}  # of each query only the strongest term is looked up: much is missed


@pytest.fixture
def miner(tiny_mlm, tmp_path) -> dict:
    checkpoint = save_checkpoint(tiny_mlm, tmp_path / "checkpoint", top_k=6)
    return {"kind": "splade", "model": str(checkpoint), "top": 4}


def recipe_with(miner, folder, **options):
    return small_recipe(folder.root, mine={"miners": {"splade": miner}, **options})


def exact_rankings(checkpoint: str, queries: list[str], k: int) -> list[set[int]]:
    """The best k passages of a positive score, by sentence-transformers."""
    model = SparseEncoder(checkpoint, device="cpu")
    products = (
        model.encode_query(queries, convert_to_sparse_tensor=False)
        @ model.encode_document(PASSAGES, convert_to_sparse_tensor=False).T
    ).numpy()
    best = [np.lexsort((np.arange(len(PASSAGES)), -row))[:k] for row in products]
    return [{int(row) for row in rows if products[i, row] > 0} for i, rows in enumerate(best)]


def test_the_recall_beside_the_candidates_is_the_share_of_exact_searchs_passages(miner, tmp_path, caplog):
    folder = write_run(tmp_path / "run")
    recipe = recipe_with({**miner, "search": "seismic", "seismic": CUT}, folder)
    with caplog.at_level(logging.INFO):
        counts = mine(recipe, folder).counts
    searcher = open_searcher(recipe.mine.miners["splade"], TextStore.open(folder.passages), folder, recipe.mine)
    for k in (4, 100):
        found = [set(rows[rows >= 0].tolist()) for rows in searcher.search(QUERIES["train"], k)[0]]
        expected = exact_rankings(miner["model"], QUERIES["train"], k)
        shares = [len(hits & best) / len(best) for hits, best in zip(found, expected, strict=True) if best]
        assert counts[f"splade.recall@{k}"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert counts["splade.recall@100"] < 1 and "Seismic misses" in caplog.text


def test_exact_search_measures_nothing_and_keeps_its_fingerprint(miner, tmp_path):
    folder = write_run(tmp_path / "run")
    recipe = recipe_with(miner, folder)
    assert not any("recall" in name for name in mine(recipe, folder).counts)
    fields = mining_fields(Run(recipe, folder), "train")["miners"]["splade"]
    assert not {"search", "seismic"} & fields.keys()
    other = Run(recipe_with({**miner, "search": "seismic"}, folder), folder)
    for split in ("train", "test"):
        assert mining_fields(other, split) != mining_fields(Run(recipe, folder), split)


def test_the_index_is_built_once_and_again_if_it_is_damaged(miner, tmp_path, caplog):
    folder = write_run(tmp_path / "run")
    recipe = recipe_with({**miner, "search": "seismic"}, folder)
    with caplog.at_level(logging.INFO):
        before = mine(recipe, folder)
    assert caplog.text.count("Seismic's index of 10 passages is built") == 1
    (index,) = folder.root.rglob("seismic-" + "[0-9a-f]" * 16)
    index.write_bytes(index.read_bytes()[:-3])
    (folder.candidates("train") / "manifest.json").unlink()
    (folder.candidates("train") / "part-00000.arrow").unlink()
    assert mine(recipe, folder) == before  # all of the few passages are found, whatever the clusters
    assert index.with_name(f"{index.name}.damaged").exists() and not is_damaged(index)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "bm25", "model": None, "search": "seismic"}, "`search` has no effect with kind: bm25"),
        ({"seismic": CUT}, "set search: seismic"),
    ],
)
def test_settings_without_an_effect_are_refused(miner, tmp_path, changes, told):
    with pytest.raises(RecipeError, match=told):
        recipe_with({**miner, **changes}, write_run(tmp_path / "run"))
