"""The standard library's documentation as a collection: passages, queries, and splits by module."""

from __future__ import annotations

import textwrap

import pytest

from distill import config
from distill.errors import DataError
from distill.importing.readers.python_docs import Docstring, python_docs, read_docstrings, split_by_module

SOURCE = config.PythonDocs(kind="python-docs")


def rows(batches):
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.fixture(scope="module")
def collection():
    read = python_docs(SOURCE, seed=17)
    return (
        rows(read.passages),
        {split: rows(batches) for split, batches in read.queries.items()},
        {split: rows(batches) for split, batches in read.judgements.items()},
    )


def test_the_library_gives_the_number_of_queries_that_the_recipe_asks_for(collection):
    passages, queries, judgements = collection
    assert len(passages) > 1500
    assert (len(queries["test"]), len(queries["dev"])) == (300, 100)
    assert len(queries["train"]) > 1000
    assert all(len(passage["text"].split()) >= SOURCE.min_words for passage in passages)
    assert {split: len(rows) for split, rows in judgements.items()} == {s: len(rows) for s, rows in queries.items()}


def test_ids_are_unique_and_every_query_is_judged_on_an_existing_passage(collection):
    passages, queries, judgements = collection
    ids = [passage["id"] for passage in passages]
    assert len(set(ids)) == len(ids)
    query_ids = [query["id"] for split in queries.values() for query in split]
    assert len(set(query_ids)) == len(query_ids)
    for split, judged in judgements.items():
        assert {row["query_id"] for row in judged} == {query["id"] for query in queries[split]}
        assert {row["passage_id"] for row in judged} <= set(ids)


def test_queries_and_bodies_are_distinct(collection):
    passages, queries, _ = collection
    texts = [" ".join(query["text"].lower().split()) for split in queries.values() for query in split]
    assert len(set(texts)) == len(texts)
    bodies = [" ".join(passage["text"].lower().split()) for passage in passages]
    assert len(set(bodies)) == len(bodies)


def test_splits_share_no_module(collection):
    modules = {
        split: {query["id"].split(".")[0].lstrip("_") for query in queries} for split, queries in collection[1].items()
    }
    assert modules["test"].isdisjoint(modules["train"] | modules["dev"])
    assert modules["dev"].isdisjoint(modules["train"])


def test_documents_only_keeps_the_passages_and_the_test_queries(collection):
    alone = python_docs(SOURCE.model_copy(update={"documents_only": True}), seed=17)
    assert set(alone.queries) == set(alone.judgements) == {"test"}
    assert (rows(alone.queries["test"]), rows(alone.passages)) == (collection[1]["test"], collection[0])


def test_the_seed_changes_the_splits_and_not_the_passages(collection):
    other = python_docs(SOURCE, seed=18)
    assert rows(other.passages) == collection[0]
    assert rows(other.queries["test"]) != collection[1]["test"]


def test_docstrings_are_read_with_their_qualified_names(tmp_path):
    (tmp_path / "pkg" / "test").mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").write_text('"""Summary of\nthe package.\n\nIts body."""\n')
    (tmp_path / "pkg" / "test" / "test_it.py").write_text('"""A test.\n\nNot of the library."""\n')
    (tmp_path / "_pything.py").write_text(
        textwrap.dedent('''
        if True:
            class Thing:
                @property
                def size(self):
                    """The size.

                    First of two."""

                @size.setter
                def size(self, value):
                    """Set the size.

                    Second of two."""

                def no_body(self):
                    """Only a summary."""
    ''')
    )
    (tmp_path / "broken.py").write_text("def (:\n")
    assert list(read_docstrings(tmp_path)) == [
        Docstring("_pything.Thing.size", "thing", "The size.", "First of two."),
        Docstring("_pything.Thing.size#2", "thing", "Set the size.", "Second of two."),
        Docstring("pkg", "pkg", "Summary of the package.", "Its body."),
    ]


def test_a_module_too_large_for_a_split_goes_to_training():
    docs = [
        Docstring(f"{module}.{i}", module, "s", "b")
        for module, n in (("big", 30), ("a", 2), ("b", 2), ("c", 2))
        for i in range(n)
    ]
    splits = split_by_module(docs, {"test": 10}, seed=1)
    assert {doc.module for doc in splits["train"]} == {"big"}
    assert len(splits["test"]) == 6


def test_splits_are_reproducible():
    docs = [Docstring(f"module{i % 20}.{i}", f"module{i % 20}", "s", "b") for i in range(100)]
    assert split_by_module(docs, {"test": 30, "dev": 30}, seed=3) == split_by_module(docs, {"test": 30, "dev": 30}, 3)


def test_a_library_without_sources_is_refused(tmp_path, monkeypatch):
    (tmp_path / "one.py").write_text('"""A single summary.\n\n' + "body " * 20 + '"""\n')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"gives 1 queries .* ask for 300 \+ 100"):
        python_docs(SOURCE, seed=1)
