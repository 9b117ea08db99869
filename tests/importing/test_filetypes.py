"""A file of another type is named as what it is."""

from __future__ import annotations

import gzip
import json

import pytest

from distill.errors import DataError
from tests.importing.test_accounting import counts_of

FILES = {  # content, what the message says of it
    "Zstandard": b"\x28\xb5\x2f\xfd" + b"x" * 20,
    "Parquet": b"PAR1" + b"x" * 20,
    "pickle": b"\x80\x04\x95\x00\x00",
    "UTF-16": "é query".encode("utf-16"),
    "gzip": gzip.compress(b"{}"),
    "NumPy": b"\x93NUMPY\x01\x00",
    "ZIP": b"PK\x03\x04" + b"x" * 20,
    "JSON array": json.dumps([{"query": "q"}]).encode(),
    "array over several lines": json.dumps([{"query": "q"}], indent=1).encode(),
    "object over several lines": json.dumps({"query": "q"}, indent=1).encode(),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    "binary": b"\x00\x01\x02\x03",
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "corpus.jsonl"])
def test_a_file_of_another_type_is_named_as_what_it_is(tmp_path, kind, name):
    (tmp_path / name).write_bytes(FILES[kind])
    if name.endswith(".csv") and ("JSON" in kind or "lines" in kind):
        return
    source = (
        {"kind": "beir", "path": str(tmp_path)}
        if name == "corpus.jsonl"
        else {"kind": "jsonl", "path": str(tmp_path / name)}
    )
    with pytest.raises(DataError, match=kind):
        counts_of(tmp_path, source)


def test_a_pickle_inside_gzip_is_named(tmp_path):
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(FILES["pickle"]))
    with pytest.raises(DataError, match="a gzip file with a pickle, which can run any code"):
        counts_of(tmp_path, {"kind": "jsonl", "path": str(tmp_path / "in.jsonl.gz")})
