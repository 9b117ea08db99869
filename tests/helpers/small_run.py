"""A run folder with a handful of texts, written without the import stage, for tests of the stages after it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from distill.config import Recipe, Student
from distill.data.arrow import write_ipc
from distill.data.judgements import JUDGEMENT_SCHEMA
from distill.data.layout import RunFolder
from distill.data.manifest import Manifest, write_manifest
from distill.data.texts import PASSAGE_SCHEMA, QUERY_SCHEMA, TextStore
from distill.recipe_file import parse_recipe
from distill.student.checkpoint import save_student
from distill.student.model import load_student

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
VARIANTS = [("the fell in the wind", 6)]  # row 10: passage 6 without a query's words


def write_passages(path: Path, texts: list[str], variants: list[tuple[str, int]] = ()) -> TextStore:
    size, every = len(texts), [*texts, *(text for text, _ in variants)]
    origins = [-1] * size + [origin for _, origin in variants]
    batch = pa.RecordBatch.from_pydict(
        {"id": [f"p{i}" for i in range(len(every))], "title": [""] * len(every), "text": every, "origin": origins},
        schema=PASSAGE_SCHEMA,
    )
    write_ipc(path, PASSAGE_SCHEMA, [batch] if every else [], {"fingerprint": "test"})
    return TextStore.open(path)


def write_queries(path: Path, texts: list[str]) -> TextStore:
    batch = pa.RecordBatch.from_pydict({"id": [f"q{i}" for i in range(len(texts))], "text": texts}, schema=QUERY_SCHEMA)
    write_ipc(path, QUERY_SCHEMA, [batch], {"fingerprint": "test"})
    return TextStore.open(path)


def write_run(root: Path) -> RunFolder:
    folder = RunFolder(root)
    write_passages(folder.passages, PASSAGES, VARIANTS)
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
    """The masked language model `mlm` as a SPLADE checkpoint, saved as training saves one."""
    student = load_student(Student(model=str(mlm), query_max_length=8, passage_max_length=12, **options))
    save_student(student, path)
    return path
