"""A `run` miner ranks what its files rank: it mines as the miner does that wrote them, whatever their format."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.config import Miner
from distill.errors import DataError, RecipeError
from distill.mining.mine import open_searcher
from distill.mining.rankings import RankingIndex, index_file, ranking_indexes
from distill.mining.stage import check_data, mining_fields
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.store.candidates import read_candidates
from distill.store.texts import TextStore
from tests.helpers.small_run import QUERIES, small_recipe, write_passages, write_run
from tests.helpers.stages import mine

Ranking = dict[str, dict[str, float]]  # query id -> passage id -> score, best first


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return write_run(tmp_path / "run")


def bm25_rankings(folder: RunFolder) -> dict[str, Ranking]:
    """The whole ranking of each split's queries, by the index that the bm25 miner searches.

    The ids of queries are q0, q1, ... in every split of the small run, so that a file serves one split.
    """
    searcher = open_searcher(Miner(kind="bm25"), TextStore.open(folder.passages), folder)
    rankings = {}
    for split, texts in QUERIES.items():
        rows, scores = searcher.search(texts, 100)
        rankings[split] = {
            f"q{query}": {f"p{row}": float(score) for row, score in zip(of_query, its_scores, strict=True) if row >= 0}
            for query, (of_query, its_scores) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True))
        }
    return rankings


def trec(path: Path, ranking: Ranking, separator: str = " ") -> Path:
    rows = [
        separator.join((query, "Q0", passage, str(rank), repr(score), "bm25"))
        for query, scores in ranking.items()
        for rank, (passage, score) in enumerate(scores.items(), start=1)
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def recipe(folder: RunFolder, path: Path, **options):
    miners = {"lists": {"kind": "run", "path": str(path), "top": 2, "sample": 2, "depth": 6, **options}}
    return small_recipe(folder.root, mine={"miners": miners, "rerank_depth": 4}, evaluate={"split": "train"})


def mined(folder: RunFolder, split: str = "train") -> dict[str, list]:
    shard = read_candidates(folder.candidates(split) / "part-00000.arrow")
    columns = {name: getattr(shard, name).tolist() for name in ("query", "offsets", "passages", "positive", "rank")}
    return {**columns, "source": shard.source.tolist()}


@pytest.mark.parametrize("separator", [" ", "\t", "   "])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_run_of_a_miner_gives_its_candidates(tmp_path, folder, separator, split):
    path = trec(tmp_path / "bm25.run", bm25_rankings(folder)[split], separator)
    mine(recipe(folder, path), folder)
    other = write_run(tmp_path / "other")
    miners = {"bm25": {"kind": "bm25", "top": 2, "sample": 2, "depth": 6}}
    mine(small_recipe(other.root, mine={"miners": miners, "rerank_depth": 4}), other)
    assert mined(folder, split) == mined(other, split) and len(mined(other, split)["passages"]) >= 8


def shuffled(ranking: Ranking) -> Ranking:
    """The same scores, in another order, in which equal scores keep theirs."""
    return {
        query: dict(sorted(scores.items(), key=lambda item: (item[1], -list(scores.values()).index(item[1]))))
        for query, scores in reversed(ranking.items())
    }


def ids(ranking: Ranking) -> dict[str, list[str]]:
    return {query: list(scores) for query, scores in ranking.items()}


def flat(ranking: Ranking) -> list[tuple[str, str, int, float]]:
    return [
        (query, passage, rank, score)
        for query, scores in ranking.items()
        for rank, (passage, score) in enumerate(scores.items(), start=1)
    ]


def jsonl(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parquet(path: Path, **columns) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=3)


def columns_of(ranking: Ranking) -> dict[str, tuple]:
    return dict(zip(("query_id", "passage_id", "rank", "score"), zip(*flat(ranking), strict=True), strict=True))


def halves(path: Path, ranking: Ranking) -> None:
    """A folder of two runs, each with half of the passages of each query."""
    path.mkdir()
    for half in (0, 1):
        part = {query: dict(list(scores.items())[half::2]) for query, scores in ranking.items()}
        trec(path / f"{half}.run", part)


WRITERS: dict[str, Callable[[Path, Ranking], object]] = {
    "a.json": lambda path, r: path.write_text(json.dumps(r)),
    "indented.json": lambda path, r: path.write_text(json.dumps(r, indent=1)),
    "unsorted.json": lambda path, r: path.write_text(json.dumps(shuffled(r))),
    "ids.json": lambda path, r: path.write_text(json.dumps(ids(r))),
    "a.json.gz": lambda path, r: path.write_bytes(gzip.compress(json.dumps(r).encode())),
    "one-per-line.jsonl": lambda path, r: jsonl(path, [{query: scores} for query, scores in r.items()]),
    "ids.jsonl": lambda path, r: jsonl(path, [{query: list(scores)} for query, scores in r.items()]),
    "one-line.jsonl": lambda path, r: jsonl(path, [r]),
    "no-ending": lambda path, r: jsonl(path, [{query: scores} for query, scores in r.items()]),
    "a.pkl": lambda path, r: path.write_bytes(pickle.dumps(r)),
    "ids.pkl.gz": lambda path, r: path.write_bytes(gzip.compress(pickle.dumps(ids(r)))),
    "systems.jsonl": lambda path, r: jsonl(
        path, [{"qid": query, "pos": [], "neg": {"bm25": list(scores)}} for query, scores in r.items()]
    ),
    "flat.parquet": lambda path, r: parquet(
        path, **{name: values for name, values in columns_of(r).items() if name in ("query_id", "passage_id")}
    ),
    "ranks.parquet": lambda path, r: parquet(
        path, **{name: values[::-1] for name, values in columns_of(r).items() if name != "score"}
    ),
    "scores.parquet": lambda path, r: parquet(path, **columns_of(r)),
    "lists.parquet": lambda path, r: parquet(
        path, qid=list(r), passage_ids=[list(s) for s in r.values()], scores=[list(s.values()) for s in r.values()]
    ),
    "folder": halves,
}


@pytest.mark.parametrize("name", WRITERS)
def test_all_formats_give_the_same_candidates(tmp_path, folder, name):
    ranking = bm25_rankings(folder)["train"]
    WRITERS[name](tmp_path / name, ranking)
    manifest = mine(recipe(folder, tmp_path / name), folder)
    reference = write_run(tmp_path / "reference")
    mine(recipe(reference, trec(tmp_path / "bm25.run", ranking)), reference)
    assert mined(folder) == mined(reference)
    assert manifest.counts["lists.queries_without_list"] == 0


def test_integer_ids_of_json_lists_and_parquet_are_the_ids_of_the_collection(tmp_path, folder):
    jsonl(tmp_path / "a.jsonl", [{"q0": [1, 2]}])
    with pytest.raises(DataError, match="no passage with the id '1'"):
        mine(recipe(folder, tmp_path / "a.jsonl"), folder)
    parquet(tmp_path / "a.parquet", query_id=["q0"], pid=[1])
    with pytest.raises(DataError, match="no passage with the id '1'"):
        mine(recipe(folder, tmp_path / "a.parquet"), folder)


def test_lists_of_several_systems_merge_rank_by_rank(tmp_path, folder):
    neg = {"bm25": ["p1", "p3", "p4"], "dense": ["p3", "p5"], "sparse": ["p6"]}
    jsonl(tmp_path / "hard.jsonl", [{"qid": "q0", "pos": ["p0"], "neg": neg}])

    def first_query(**options) -> list[int]:
        own = write_run(tmp_path / str(options))
        mine(recipe(own, tmp_path / "hard.jsonl", top=9, sample=0, depth=1000, **options), own)
        candidates = mined(own)
        return candidates["passages"][1 : candidates["offsets"][1]]

    assert first_query() == [1, 3, 6, 5, 4]
    assert first_query(systems=["bm25"]) == [1, 3, 4]
    assert first_query(systems=["dense", "sparse"]) == [3, 6, 5]
    with pytest.raises(
        DataError, match=r"mine.miners.lists.systems\]: .* no system 'bm52'; it has bm25, dense, sparse"
    ):
        first_query(systems=["bm25", "bm52"])
    path = trec(tmp_path / "a.run", {"q0": {"p1": 1.0}})
    with pytest.raises(DataError, match=r"a\.run \[systems\]: has no lists by system"):
        mine(recipe(folder, path, systems=["bm25"]), folder)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.run", "q0 Q0 p1 1 2 x\n\nq0 Q0 p2 2 1 x\nq0 Q0 zzz 3 0 x\n", 4),
        ("a.jsonl", '{"q0": ["p1"]}\n{"q1": ["p1", "zzz"]}\n', 2),
        ("a.jsonl", '{"qid": "q0", "neg": {"a": ["p1"]}}\n{"qid": "q1", "neg": {"a": ["zzz"]}}\n', 2),
    ],
)
def test_an_unknown_passage_is_refused_with_its_line_or_left_out(tmp_path, folder, name, content, line):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{name}:{line} \[mine.miners.lists\]: .* no passage with the id 'zzz'"):
        mine(recipe(folder, path), folder)
    assert not list(folder.root.glob("candidates/*/*.arrow"))
    data = {"source": {"kind": "python-docs"}, "on_missing": "drop"}
    manifest = mine(recipe(folder, path).model_copy(update={"data": small_recipe(folder.root, data=data).data}), folder)
    assert manifest.counts["lists.dropped"] == 1


def test_queries_of_unknown_passages_alone_have_no_list(tmp_path, folder):
    rows = {"q0": ["p1", "p3"], **{f"q{query}": ["zzz", "yyy"] for query in (1, 2, 3)}}
    (tmp_path / "a.json").write_text(json.dumps(rows))
    dropping = small_recipe(folder.root, data={"source": {"kind": "python-docs"}, "on_missing": "drop"}).data
    of_run = recipe(folder, tmp_path / "a.json", top=5, sample=0, depth=1000).model_copy(update={"data": dropping})
    assert mine(of_run, folder).counts["lists.queries_without_list"] == 3
    assert mined(folder)["passages"] == [0, 1, 3, 2, 8, 10, 3]


def test_ids_with_blanks_are_found_quoted_or_not(tmp_path, folder):
    write_passages(folder.passages, ["a", "b", "c"], ids=["p%200", "p%251", "p2"])
    data = small_recipe(folder.root, data={"source": {"kind": "python-docs"}, "quote_ids": True}).data
    (tmp_path / "a.json").write_text(json.dumps({"q1": ["p 0", "p%1"], "q3": ["p%251", "p%200"]}))
    of_run = recipe(folder, tmp_path / "a.json", top=5, sample=0, depth=1000).model_copy(update={"data": data})
    homes = ranking_indexes(Run(of_run, folder))
    index = RankingIndex(index_file(homes["lists"], "train"))
    assert index.search(np.array([0, 1, 2, 3]), 5).tolist() == [[-1, -1], [0, 1], [-1, -1], [1, 0]]
    assert index.search(np.array([3, 1]), 1).tolist() == [[1], [0]] and index.search(np.array([2]), 3).shape == (1, 0)


def test_an_unknown_passage_of_a_flat_table_is_refused_with_its_row(tmp_path, folder):
    parquet(tmp_path / "a.parquet", query_id=["q0", "q0", "q1"], passage_id=["p1", "p2", "zzz"])
    with pytest.raises(DataError, match=r"a\.parquet:3 \[mine"):
        mine(recipe(folder, tmp_path / "a.parquet"), folder)


def test_unknown_queries_and_queries_without_a_list_are_counted(tmp_path, folder, caplog):
    path = trec(tmp_path / "a.run", {"q0": {"p1": 2.0}, "elsewhere": {"zzz": 1.0}, "q2": {"p3": 1.0, "p4": 1.0}})
    with caplog.at_level(logging.INFO):
        manifest = mine(recipe(folder, path, top=5, sample=0, depth=1000), folder)
    counts = {name: value for name, value in manifest.counts.items() if name.startswith("lists.")}
    assert counts == {"lists.queries_without_list": 2, "lists.unknown_queries": 1, "lists.dropped": 0}
    assert "mine.miners.lists ranks nothing for 2 of 4 train queries" in caplog.text


def test_a_file_without_the_evaluated_queries_is_refused_as_the_first_miner(tmp_path, folder):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"q3": ["p1", "p2"]}))  # of training and test queries, but not of two dev queries
    miners = {"lists": {"kind": "run", "path": str(path)}}
    with pytest.raises(DataError, match=r"\[mine.miners.lists\]: ranks none of the dev queries \(evaluate.split\)"):
        mine(small_recipe(folder.root, mine={"miners": miners}, evaluate={"split": "dev"}), folder)
    assert not (folder.root / "candidates").exists()
    mine(small_recipe(folder.root, mine={"miners": miners}, evaluate={"split": "test"}), folder)
    other = write_run(tmp_path / "other")
    miners = {"bm25": {"kind": "bm25", "top": 0}, **miners}
    mine(small_recipe(other.root, mine={"miners": miners}, evaluate={"split": "dev"}), other)
    assert set(mined(other)["source"]) == {0, 2} and mined(other, "dev")["passages"]


BAD = {
    "a folder without files": ("dir", None, "no files of rankings"),
    "an empty file": ("a.run", "", "no rankings in this file"),
    "qrels": ("a.run", "q0 0 p1 1\n", r"a\.run:1: expected the 6 columns of a TREC run, found 4"),
    "an array": ("a.json", '[{"q0": ["p1"]}]', r"a\.json:1: expected an object, found list"),
    "half an object": ("a.json", '{"q0": ["p1"', "not valid JSON"),
    "a number for a list": ("a.jsonl", '{"q0": 3}\n', r"a\.jsonl:1 \[q0\]: expected a list of ids or an object"),
    "scores that are no numbers": ("a.jsonl", '{"q0": {"p1": "x"}}\n', r"a\.jsonl:1 \[q0.p1\]: 'x' is not a number"),
    "ids that are none": ("a.jsonl", '{"q0": [["p1"]]}\n', r"a\.jsonl:1 \[q0\]: \['p1'\] is no id"),
    "systems without lists": ("a.jsonl", '{"qid": 1, "neg": ["p1"]}\n', r"\[neg\]: expected an object of system"),
    "Parquet that is none": ("a.parquet", "x", "damaged, not a whole Parquet file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_files_that_cannot_be_read_are_refused_before_mining(tmp_path, folder, kind):
    name, content, message = BAD[kind]
    path = tmp_path / name
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=message):
        check_data(Run(recipe(folder, path), folder))
    with pytest.raises(DataError, match=r"missing \[mine.miners.lists.path\]: no such file or folder"):
        check_data(Run(recipe(folder, tmp_path / "missing"), folder))


def test_tables_without_the_columns_of_a_ranking_are_refused(tmp_path, folder):
    path = tmp_path / "a.parquet"
    for columns, message in (
        ({"query_id": ["q0"]}, "no column passage_id"),
        ({"query_id": ["q0"], "qid": ["q0"], "pid": ["p1"]}, "'query_id' and 'qid' could both be the query's id"),
        ({"query_id": [None, "q0"], "pid": ["p1", "p2"]}, r"a\.parquet:1 \[query_id\]: null"),
        ({"query_id": ["q0"], "pid": ["p1"], "score": [float("inf")]}, "not finite"),
        ({"query_id": ["q0"], "pids": [["p1"]], "scores": [[1.0, 2.0]]}, "not one per passage"),
        ({"query_id": [0.5], "pid": ["p1"]}, "expected ids, strings or integers"),
    ):
        parquet(path, **columns)
        with pytest.raises(DataError, match=message):
            check_data(Run(recipe(folder, path), folder))


def test_scores_and_ranks_do_not_mix(tmp_path, folder):
    jsonl(tmp_path / "a.jsonl", [{"q0": ["p1"]}, {"q1": {"p2": 1.0}}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: a list with scores, where the lists before it have none"):
        mine(recipe(folder, tmp_path / "a.jsonl"), folder)


def test_the_content_of_the_files_is_part_of_the_fingerprint_and_their_place_is_not(tmp_path, folder):
    ranking = bm25_rankings(folder)["train"]
    fields = []
    for path, top in ((tmp_path / "a.run", 3), (tmp_path / "b.run", 3), (tmp_path / "b.run", 2)):
        trec(path, {query: dict(list(scores.items())[:top]) for query, scores in ranking.items()})
        fields.append([mining_fields(Run(recipe(folder, path), folder), split) for split in ("train", "test")])
    assert fields[0] == fields[1] and all(fields[1][i] != fields[2][i] for i in (0, 1))


def test_fields_that_have_no_effect_are_refused(folder):
    for miner, message in (
        ({"kind": "run"}, "needs a path"),
        ({"kind": "run", "path": "a", "model": "m"}, "`model` has no effect with kind: run"),
        ({"kind": "bm25", "path": "a"}, "`path` has no effect with kind: bm25"),
        ({"kind": "dense", "model": "m", "systems": ["a"]}, "`systems` has no effect with kind: dense"),
    ):
        with pytest.raises(RecipeError, match=message):
            small_recipe(folder.root, mine={"miners": {"a": miner}})


def test_many_lists_in_many_batches_are_merged(tmp_path, folder, monkeypatch):
    """Ties keep the order of the file, across batches and look-ups."""
    monkeypatch.setattr("distill.mining.rankings._LOOKUP_IDS", 7)
    monkeypatch.setattr("distill.mining.rankings._MERGED_QUERIES", 2)
    monkeypatch.setattr("distill.importing.readers.rankings._BATCH_LISTS", 2)
    rng = np.random.default_rng(0)
    rows = [(f"q{rng.integers(4)}", f"p{rng.integers(10)}", int(rng.integers(3))) for _ in range(200)]
    path = tmp_path / "a.run"
    path.write_text("".join(f"{query} Q0 {passage} 1 {score} x\n" for query, passage, score in rows))
    mine(recipe(folder, path, top=20, sample=0, depth=1000), folder)
    candidates = mined(folder)
    for i, query in enumerate(candidates["query"]):
        ordered = sorted((row for row in rows if row[0] == f"q{query}"), key=lambda row: -row[2])
        ranking = list(dict.fromkeys(int(passage[1:]) for _, passage, _ in ordered))
        at = slice(candidates["offsets"][i], candidates["offsets"][i + 1])
        negatives = [
            (passage, rank)
            for passage, positive, rank in zip(
                candidates["passages"][at], candidates["positive"][at], candidates["rank"][at], strict=True
            )
            if not positive
        ]
        assert [ranking[rank - 1] for _, rank in negatives] == [passage for passage, _ in negatives]
        assert len(negatives) >= 6
