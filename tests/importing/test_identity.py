"""Identity is of texts: copies of positives and a query's own document are no negatives and no hits."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.evaluation.collection import open_collection
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.store.arrow import write_ipc
from distill.store.candidates import iterate_candidates
from distill.store.identity import Copies, equal_queries, load_own_documents
from distill.store.texts import QUERY_SCHEMA, TextStore
from distill.training.batches import Sampler, TrainingData
from tests.helpers.stages import build_labels, import_data, mine, score
from tests.importing.files import lines


def run(tmp_path, source: dict, teachers: dict | None = None, **sections):
    recipe = parse_recipe(
        {
            "name": "t",
            "run_dir": str(tmp_path / "run"),
            "data": {"source": source, **sections.pop("data", {})},
            "mine": {"miners": {"bm25": {"kind": "bm25", "top": 9}}, **sections.pop("mine", {})},
            "teachers": teachers or {"bm25": {"kind": "bm25"}},
            "student": {"model": "x"},
            **sections,
        }
    )
    folder = RunFolder(tmp_path / "run")
    return recipe, folder, import_data(recipe, folder).counts


def beir(tmp_path, corpus: dict, queries: dict[str, str], qrels: dict[str, list[str]]) -> dict:
    """A BEIR folder. `corpus`: id -> text, or title and text."""
    (tmp_path / "in" / "qrels").mkdir(parents=True)
    rows = []
    for name, text in corpus.items():
        title, body = ("", text) if isinstance(text, str) else text
        rows.append({"_id": name, "title": title, "text": body})
    lines(tmp_path / "in" / "corpus.jsonl", rows)
    lines(tmp_path / "in" / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    for split, judgements in qrels.items():
        lines(tmp_path / "in" / "qrels" / f"{split}.tsv", ["\t".join(line.split()) for line in judgements])
    return {"kind": "beir", "path": str(tmp_path / "in")}


def negatives(folder: RunFolder) -> dict[str, set[str]]:
    """query id -> ids of the passages that are its negatives."""
    queries, passages = TextStore.open(folder.queries("train")), TextStore.open(folder.passages)
    found: dict[str, set[str]] = {}
    for _, shard in iterate_candidates(folder.candidates("train")):
        for query, passage, positive in zip(shard.pair_queries, shard.passages, shard.positive, strict=True):
            names = found.setdefault(queries.ids(np.array([query]))[0], set())
            if not positive:
                names.add(passages.ids(np.array([passage]))[0])
    return found


CORPUS = {"a": "loud dogs bark", "b": "quiet cats", "copy": " loud dogs bark ", "c": "dogs run", "c2": "dogs run"}


def test_copies_of_a_positive_are_not_mined_and_other_copies_only_once(tmp_path):
    source = beir(tmp_path, CORPUS, {"q": "dogs bark"}, {"train": ["q a 1"]})
    recipe, folder, counts = run(tmp_path, source)
    assert counts["passages.copies"] == 2
    mine(recipe, folder)
    assert negatives(folder) == {"q": {"c"}}


def test_copies_of_other_passages_do_not_cost_a_query_its_negatives(tmp_path):
    corpus = {"a": "loud dogs bark"} | {f"same{i}": "dogs bark" for i in range(30)}
    corpus |= {f"other{i}": f"many words and at last the dogs {i}" for i in range(9)}
    source = beir(tmp_path, corpus, {"q": "dogs bark"}, {"train": ["q a 1"]})
    recipe, folder, counts = run(tmp_path, source)
    assert counts["passages.copies"] == 29
    mine(recipe, folder)
    assert len(negatives(folder)["q"]) == 9


def test_copies_of_a_positive_in_given_lists_are_left_out_and_counted(tmp_path):
    source = beir(tmp_path, CORPUS, {"q": "dogs bark", "c": "dogs run"}, {"train": ["q a 1", "c b 1"]})
    lists = lines(tmp_path / "scores.json", [{"q": {"copy": 3, "b": 1}, "c": {"c": 5, "a": 4}}])
    given = {"kind": "naver", "scores": str(lists), "collection": source}
    _, folder, counts = run(tmp_path, given, {"given": {"kind": "imported"}})
    assert (counts["lists.copies_of_positives"], counts["lists.own_documents"]) == (1, 1)
    assert negatives(folder) == {"q": {"b"}, "c": {"a"}}


def test_a_copy_of_a_positive_in_the_batch_is_a_known_positive(tmp_path):
    queries = {"q0": "dogs bark", "q1": "dogs"}
    source = beir(tmp_path, CORPUS, queries, {"train": ["q0 a 1", "q1 copy 1"]})
    recipe, folder, _ = run(tmp_path, source)
    mine(recipe, folder)
    score(recipe, folder)
    build_labels(recipe, folder)
    batch = Sampler(TrainingData.open(folder), 1, seed=0).next_batch(2)
    assert set(batch.passage_rows[:, 0].tolist()) == {0, 2}
    assert batch.known_positives(0, 2).T.tolist() == [[0, 2], [1, 0]]  # each other's positive


@pytest.mark.parametrize("rule", ["auto", "same-id", "keep"])
def test_a_querys_own_document_is_left_out_of_negatives_and_rankings(tmp_path, rule):
    corpus = {"1": ("dogs", "dogs bark"), "2": "cats meow", "3": "dogs bark loudly", "4": "dogs meow"}
    queries = {"1": "dogs bark", "2": "dogs meow", "4": "dogs meow", "3": "x"}
    judgements = ["1 3 1", "2 4 1", "4 4 1"]
    source = beir(tmp_path, corpus, queries, {"train": judgements, "test": judgements})
    recipe, folder, counts = run(tmp_path, source, data={"own_document": rule})
    # 2 has another text under its id; 4 is judged relevant to itself
    expected = {"auto": {0: 0}, "same-id": {0: 0, 1: 1}, "keep": {}}[rule]
    assert load_own_documents(folder, "train") == load_own_documents(folder, "test") == expected
    assert counts["queries.test.own_documents"] == len(expected)
    mine(recipe, folder)
    assert ("1" in negatives(folder)["1"]) == (rule == "keep")
    collection = open_collection(folder, "test")
    rows = np.array([[0, 1, 2], [1, 0, 3], [3, -1, -1]])
    assert collection.search_depth(2) == 2 + bool(expected)
    assert {query: hits.tolist() for query, hits in collection.rankings(rows, 2).items()} == {
        "auto": {0: [1, 2], 1: [1, 0], 2: [3]},
        "same-id": {0: [1, 2], 1: [0, 3], 2: [3]},
        "keep": {0: [0, 1], 1: [1, 0], 2: [3]},
    }[rule]
    shards = [shard for _, shard in iterate_candidates(folder.candidates("test"))]
    assert (0 in shards[0].passages[shards[0].pair_queries == 0]) == (rule == "keep")


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.data())
@settings(max_examples=80, deadline=None)
def test_copies_equal_the_written_out_definition(texts, data):
    first = [texts.index(text) for text in texts]
    rows = np.array([row for row in range(len(texts)) if first[row] != row], np.int64)
    copies = Copies(rows, np.array([first[row] for row in rows], np.int64))
    some = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1))), np.int64)
    assert copies.originals(some).tolist() == [first[row] for row in some]
    assert copies.with_copies(some).tolist() == [
        row for row in range(len(texts)) if texts[row] in {texts[i] for i in some}
    ]


EQUAL = {"q1": "dogs bark", "q2": " dogs bark", "q3": "cats"}


def test_a_positive_of_an_equal_query_is_no_negative_in_given_lists(tmp_path, caplog):
    source = beir(tmp_path, CORPUS, EQUAL, {"train": ["q1 a 1", "q2 c 1", "q3 b 1"]})
    scores = lines(tmp_path / "scores.json", [{"q1": {"c2": 3, "b": 1}, "q2": {"copy": 1, "b": 2}, "q3": {"a": 4}}])
    given = {"kind": "naver", "scores": str(scores), "collection": source}
    _, folder, counts = run(tmp_path, given, {"given": {"kind": "imported"}}, mine={"shard_queries": 1})
    assert (counts["queries.train.equal"], counts["lists.positives_of_equal_queries"]) == (2, 2)
    assert negatives(folder) == {"q1": {"b"}, "q2": {"b"}, "q3": {"a"}}
    assert "2 of 3 training queries have the text of another one" in caplog.text


def test_a_positive_of_an_equal_query_is_neither_mined_nor_a_negative_in_the_batch(tmp_path):
    corpus = {**CORPUS, "d": "dogs bark at night"}
    source = beir(tmp_path, corpus, {"q1": "dogs bark", "q2": " dogs bark"}, {"train": ["q1 a 1", "q2 c 1"]})
    recipe, folder, _ = run(tmp_path, source)
    mine(recipe, folder)
    assert negatives(folder) == {"q1": {"d"}, "q2": {"d"}}
    score(recipe, folder)
    build_labels(recipe, folder)
    batch = Sampler(TrainingData.open(folder), 1, seed=0).next_batch(2)
    assert batch.known_positives(0, 2).T.tolist() == [[0, 2], [1, 0]]  # each other's positive


def test_equal_queries_of_rows_with_contradicting_lists(tmp_path):
    rows = [
        {"query": "q", "query_id": "1", "positive": "a", "negatives": ["b", "c"]},
        {"query": "q", "query_id": "2", "positive": "b", "negatives": ["a", "d"]},
    ]
    source = {"kind": "jsonl", "path": str(lines(tmp_path / "in.jsonl", rows))}
    _, folder, counts = run(tmp_path, source)
    assert counts["lists.positives_of_equal_queries"] == 2
    store, rows = TextStore.open(folder.passages), np.arange(4)
    texts = dict(zip(store.ids(rows), store.texts(rows), strict=True))
    found = {query: {texts[name] for name in names} for query, names in negatives(folder).items()}
    assert found == {"1": {"c"}, "2": {"d"}}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", " a", "c"]), max_size=8))
def test_equal_queries_equal_the_written_out_definition(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("equal") / "queries.arrow"
    columns = [pa.array([str(i) for i in range(len(texts))], pa.large_string()), pa.array(texts, pa.large_string())]
    write_ipc(path, QUERY_SCHEMA, [pa.RecordBatch.from_arrays(columns, schema=QUERY_SCHEMA)], {"fingerprint": "x"})
    groups = {tuple(rows.tolist()) for rows in equal_queries(TextStore.open(path))}
    same = {tuple(i for i, other in enumerate(texts) if other.strip() == text.strip()) for text in texts}
    assert groups == {group for group in same if len(group) > 1}
