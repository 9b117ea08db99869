"""Files with changed, missing and added bytes are read, or refused by name; nothing else is raised."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distill.config import HuggingFace
from distill.errors import DistillError
from distill.importing.readers.huggingface import dataset_head
from distill.importing.readers.jsonl import raw_rows
from distill.importing.sniff import sniff

ROWS = [{"query": f"what is {i}", "pos": [f"answer {i} é"], "neg": [f"wrong {i}", f"bad {i}"]} for i in range(30)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    text = "\n".join(map(json.dumps, ROWS))
    (folder / "rows.jsonl").write_text(text)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "rows.csv").write_text("query,positive\n" + "".join(f'"q, {i}",a {i}\n' for i in range(30)))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return folder


changes = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "delete"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, how: list[tuple[str, float, int]]) -> bytes:
    data = bytearray(content)
    for kind, place, value in how:
        at = min(int(place * len(data)), max(0, len(data) - 1))
        if kind == "flip" and data:
            data[at] ^= value or 1
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = bytes([value] * 5)
        elif kind == "delete":
            del data[at : at + 1 + value]
    return bytes(data)


def read(function, *arguments) -> None:
    """Call a reader; only errors that a person is shown may leave it."""
    try:
        result = function(*arguments)
        if function is raw_rows:
            list(result)
    except DistillError as error:
        assert str(error)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet"])
@given(how=changes)
@example(how=[("cut", 0.5, 0)])
@example(how=[("cut", 0.0, 0)])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_a_damaged_file(sources, tmp_path, name, how):
    path = tmp_path / name
    path.write_bytes(changed((sources / name).read_bytes(), how))
    read(raw_rows, path)
    read(sniff, path)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@given(how=changes)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_a_damaged_dataset(sources, tmp_path, name, how):
    folder = tmp_path / "saved"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sources / "saved", folder)
    (folder / name).write_bytes(changed((folder / name).read_bytes(), how))
    read(dataset_head, HuggingFace(kind="huggingface", dataset=str(folder)), 10)
    read(sniff, folder)
