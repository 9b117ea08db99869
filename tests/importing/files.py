"""Small source files for the tests of the import."""

import json
from pathlib import Path


def lines(path: Path, rows: list) -> Path:
    """Write one line per row: JSON, or a string as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def beir_folder(path: Path) -> Path:
    (path / "qrels").mkdir()
    lines(path / "corpus.jsonl", [{"_id": "a", "text": "cats"}, {"_id": "b", "text": "dogs"}])
    lines(path / "queries.jsonl", [{"_id": "q1", "text": "loud"}])
    lines(path / "qrels" / "train.tsv", ["q1\tb\t1"])
    return path
