"""Files, fingerprints and manifests: atomic writes, exclusive commits, detected damage."""

import errno

import numpy as np
import pyarrow as pa
import pytest

from distill.errors import FingerprintError, StorageError
from distill.run.files import commit_exclusive, write_atomic
from distill.run.fingerprint import check_same, fingerprint, first_difference
from distill.run.manifest import Manifest, claimed, read_manifest, require_manifest, verify, write_manifest
from distill.store.arrow import RowReader, write_ipc

SCHEMA = pa.schema([("id", pa.large_string()), ("values", pa.list_(pa.int64()))])


def batches(rows: int, size: int) -> list[pa.RecordBatch]:
    table = pa.table(
        {"id": [f"r{i}" for i in range(rows)], "values": [list(range(i % 4)) for i in range(rows)]}, schema=SCHEMA
    )
    return table.to_batches(max_chunksize=size)


def test_a_failed_atomic_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), write_atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path, number):
    with pytest.raises(StorageError, match=r"a\.txt: no space left"), write_atomic(tmp_path / "a.txt"):
        raise OSError(number, "full")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_created_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="file/folder: cannot create this folder"),
        write_atomic(tmp_path / "file" / "folder" / "a"),
    ):
        pass


def test_a_full_disk_under_arrow_is_a_storage_error(tmp_path, monkeypatch):
    monkeypatch.setattr(pa, "OSFile", lambda path, mode, real=pa.OSFile: real("/dev/full", mode))
    with pytest.raises(StorageError, match="no space left"):
        write_ipc(tmp_path / "a.arrow", SCHEMA, batches(1000, 100))
    assert not list(tmp_path.iterdir())


def test_the_first_writer_of_a_shard_wins_and_the_second_drops_its_copy(tmp_path):
    path = tmp_path / "part.arrow"
    assert write_ipc(path, SCHEMA, batches(3, 3), exclusive=True).rows == 3
    assert write_ipc(path, SCHEMA, batches(5, 5), exclusive=True) is None
    assert len(RowReader(path)) == 3 and len(list(tmp_path.iterdir())) == 1
    other = tmp_path / "b"
    other.write_text("x")
    assert not commit_exclusive(other, path) and not other.exists()


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_row_reader_takes_the_same_rows_as_an_arrow_table(tmp_path, size):
    whole = pa.Table.from_batches(batches(500, 500))
    write_ipc(tmp_path / "a.arrow", SCHEMA, iter(batches(500, size)))
    reader = RowReader(tmp_path / "a.arrow")
    rows = np.random.default_rng(0).integers(0, 500, 200)  # unordered, with repeats
    assert reader.take(rows).to_pylist() == whole.take(rows).to_pylist()
    assert reader.take(rows, ["id"]).to_pylist() == whole.select(["id"]).take(rows).to_pylist()
    assert reader.take(np.array([], np.int64)).num_rows == 0
    with pytest.raises(IndexError):
        reader.take([500])


def test_equal_rows_and_metadata_make_equal_bytes(tmp_path):
    shards = [write_ipc(tmp_path / name, SCHEMA, batches(10, 5), {"b": "1", "a": "2"}) for name in ("x", "y")]
    assert shards[0].xxh128 == shards[1].xxh128
    assert RowReader(tmp_path / "x").metadata == {"a": "2", "b": "1", "rows": "10"}


def test_a_truncated_or_missing_arrow_file_is_a_storage_error(tmp_path):
    path = tmp_path / "a.arrow"
    write_ipc(path, SCHEMA, batches(100, 10))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StorageError, match="damaged"):
        RowReader(path)
    with pytest.raises(StorageError, match="missing"):
        RowReader(tmp_path / "none.arrow")


def test_verify_finds_changed_and_missing_shards(tmp_path):
    shards = [write_ipc(tmp_path / f"part-{i}.arrow", SCHEMA, batches(10, 10)) for i in range(3)]
    write_manifest(tmp_path, Manifest({"stage": "test"}, shards, {"rows": 30}))
    assert read_manifest(tmp_path).shards == tuple(shards) and read_manifest(tmp_path).rows == 30
    assert verify(tmp_path) == []
    data = bytearray((tmp_path / "part-1.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "part-1.arrow").write_bytes(data)
    (tmp_path / "part-2.arrow").unlink()
    assert verify(tmp_path) == shards[1:]


def test_a_folder_without_manifest_or_with_a_damaged_one_is_not_finished(tmp_path):
    assert read_manifest(tmp_path) is None
    with pytest.raises(StorageError, match="distill score"):
        require_manifest(tmp_path, "score")
    (tmp_path / "manifest.json").write_text('{"format": 1')
    with pytest.raises(StorageError, match=r"manifest\.json: damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content", ["null", "5", "{}", "[]", '{"format": 1}', '{"format": 1, "shards": 5}', "", "[" * 9999]
)
def test_valid_json_that_is_no_manifest_or_claim_of_ours_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StorageError, match=r"manifest\.json: "):
        read_manifest(tmp_path)
    (tmp_path / "claim.json").write_text(content)
    if content.startswith("{"):
        assert claimed(tmp_path) is not None
    else:
        with pytest.raises(StorageError, match=r"claim\.json: damaged"):
            claimed(tmp_path)


def test_a_manifest_whose_fields_were_changed_is_damaged(tmp_path):
    write_manifest(tmp_path, Manifest({"stage": "test"}))
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"test"', '"tess"'))
    with pytest.raises(StorageError, match="damaged: its fingerprint is not that of its fields"):
        read_manifest(tmp_path)


def test_fingerprints_depend_on_all_values_but_not_on_their_order():
    assert fingerprint({"a": 1, "b": {"c": [1, 2]}}) == fingerprint({"b": {"c": [1, 2]}, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5}) != fingerprint({"a": "1.5"})
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"c": 2, "b": 1}}) is None


def test_a_folder_made_from_other_inputs_is_refused_with_fingerprints_and_field(tmp_path):
    old, new = {"teacher": {"model": "x", "length": 128}}, {"teacher": {"model": "x", "length": 256}}
    with pytest.raises(FingerprintError) as error:
        check_same(tmp_path, old, new)
    for part in (fingerprint(old), fingerprint(new), "teacher.length 128 -> 256", str(tmp_path)):
        assert part in str(error.value)
