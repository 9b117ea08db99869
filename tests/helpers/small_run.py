"""A run folder with a few texts, written without the import stage, for tests of later stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from distill.config import Recipe, Student
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, write_manifest
from distill.store.arrow import write_ipc
from distill.store.identity import COPY_SCHEMA, OWN_SCHEMA
from distill.store.judgements import JUDGEMENT_SCHEMA
from distill.store.texts import PASSAGE_SCHEMA, QUERY_SCHEMA, TextStore
from distill.student.checkpoint import save_student
from distill.student.model import start_splade

PASSAGES = [
    "the cat sat on the mat",
    "a dog chased the cat up a tree",
    "the stock market fell sharply today",
    "investors sold shares of the company",
    "rain and wind hit the coast",
    "",
    "the tree fell in the storm wind",
    "a company makes mats for cats and dogs",
    "the market opened today with heavy rain",
    "ships stayed in the harbour",
]
QUERIES = {
    "train": ["cat on a mat", "market fell", "storm wind tree", "company shares sold"],
    "dev": ["dog and cat", "rain at the coast"],
    "test": ["cats and dogs", "the stock market today", "wind and rain", "zebra"],
}
JUDGEMENTS = {  # (query, passage, grade)
    "train": [(0, 0, 1), (1, 2, 2), (1, 8, 1), (2, 10, 1), (3, 3, 1), (3, 2, 0)],
    "dev": [(0, 1, 1), (1, 4, 1)],
    "test": [(0, 7, 2), (0, 1, 1), (1, 2, 1), (2, 4, 1), (2, 6, 2), (3, 9, 1)],
}
VARIANTS = [("the fell in the wind", 6)]  # row 10: passage 6 without the words of a query


def write_passages(
    path: Path, texts: list[str], variants: Sequence[tuple[str, int]] = (), ids: Sequence[str] | None = None
) -> TextStore:
    rows = [*texts, *(text for text, _ in variants)]
    origins = [-1] * len(texts) + [origin for _, origin in variants]
    batch = pa.RecordBatch.from_pydict(
        {"id": ids or [f"p{i}" for i in range(len(rows))], "title": [""] * len(rows), "text": rows, "origin": origins},
        schema=PASSAGE_SCHEMA,
    )
    write_ipc(path, PASSAGE_SCHEMA, [batch] if rows else [], {"fingerprint": "test"})
    return TextStore.open(path)


def write_queries(path: Path, texts: list[str]) -> TextStore:
    batch = pa.RecordBatch.from_pydict({"id": [f"q{i}" for i in range(len(texts))], "text": texts}, schema=QUERY_SCHEMA)
    write_ipc(path, QUERY_SCHEMA, [batch], {"fingerprint": "test"})
    return TextStore.open(path)


def write_no_identity(folder: RunFolder, splits: Sequence[str]) -> None:
    """No passage is a copy of another one, and no query is a passage."""
    write_ipc(folder.copies, COPY_SCHEMA, [], {"fingerprint": "test"})
    for split in splits:
        write_ipc(folder.own_documents(split), OWN_SCHEMA, [], {"fingerprint": "test"})


def write_run(root: Path) -> RunFolder:
    folder = RunFolder(root)
    write_passages(folder.passages, PASSAGES, VARIANTS)
    write_no_identity(folder, list(QUERIES))
    for split, texts in QUERIES.items():
        write_queries(folder.queries(split), texts)
        columns = dict(zip(JUDGEMENT_SCHEMA.names, map(list, zip(*JUDGEMENTS[split], strict=True)), strict=True))
        write_ipc(
            folder.judgements(split),
            JUDGEMENT_SCHEMA,
            [pa.RecordBatch.from_pydict(columns, schema=JUDGEMENT_SCHEMA)],
            {"fingerprint": "test"},
        )
    write_manifest(folder.data, Manifest({"stage": "import", "source": "test"}))
    return folder


def small_recipe(root: Path, **sections) -> Recipe:
    tree = {
        "name": "small",
        "run_dir": str(root),
        "data": {"source": {"kind": "python-docs"}},
        "teachers": {"bm25": {"kind": "bm25"}},
        "student": {"model": "none"},
    }
    return parse_recipe({**tree, **sections})


def save_checkpoint(mlm: Path, path: Path, **options) -> Path:
    """Save the masked language model `mlm` as a SPLADE checkpoint, as training saves it."""
    student = start_splade(Student(model=str(mlm), query_max_length=8, passage_max_length=12, **options))
    save_student(student, path)
    return path
