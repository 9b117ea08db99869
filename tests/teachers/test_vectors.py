"""Vectors in chunks on disk: each text is encoded once, chunks are shared, and damaged ones are encoded again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import BertModel

from distill.config import Teacher
from distill.errors import TeacherError
from distill.run.files import locked
from distill.store.arrow import RowReader
from teachers import vectors
from teachers.base import open_teacher, prepare
from teachers.bi_encoder import DenseEncoder
from teachers.execution import Execution
from teachers.spec import TeacherSpec
from tests.helpers.small_run import PASSAGES, save_checkpoint
from tests.teachers.scoring import FLOAT32, mined_pairs, prepared, scores_of


@pytest.fixture
def small_chunks(monkeypatch):
    """Two texts per chunk. The size is no parameter: it must not change between launches of a run."""
    monkeypatch.setattr(vectors, "CHUNK", 2)


@pytest.fixture
def encoded(monkeypatch) -> list[tuple[str, list[str]]]:
    """The store and the texts of every call that encodes, in order."""
    calls, encode = [], DenseEncoder.vectors

    def recorded(self, store, texts, execution):
        calls.append((store, texts))
        return encode(self, store, texts, execution)

    monkeypatch.setattr(DenseEncoder, "vectors", recorded)
    return calls


@pytest.mark.parametrize("kind", ["bi-encoder", "splade"])
def test_batches_that_exceed_the_memory_are_encoded_in_smaller_ones(
    kind, tiny_sentence, tiny_mlm, folder, tmp_path, monkeypatch
):
    model = tiny_sentence if kind == "bi-encoder" else save_checkpoint(tiny_mlm, tmp_path / "splade")
    cfg, mined = Teacher(kind=kind, model=str(model), max_length=16), mined_pairs(folder)
    expected = scores_of(cfg, folder, mined)
    teacher = prepared(cfg, folder, Execution("cpu", "float32", 1, 1024), name="small")
    forward = BertModel.forward

    def small_memory(self, input_ids, **kwargs):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("too much")
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(BertModel, "forward", small_memory)
    np.testing.assert_allclose(teacher.score(mined), expected, rtol=1e-4, atol=1e-4)
    assert teacher.execution.batch_tokens < 1024


def test_each_text_is_encoded_once_for_all_splits(tiny_sentence, folder, small_chunks, encoded):
    cfg = Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16)
    score_splits(cfg, folder, "t", ["train", "test"])
    texts = [(store, text) for store, texts in encoded for text in texts]
    assert len(set(texts)) == len(texts)


def test_removed_chunks_are_encoded_again_with_the_same_bytes(tiny_sentence, folder, small_chunks):
    cfg = Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16)
    scores = score_splits(cfg, folder, "t", ["train", "test"])
    for chunk in sorted(folder.scores("t", "vectors").glob("*/*.arrow"))[::2]:
        chunk.unlink()
    again = score_splits(cfg, folder, "t", ["train", "test"])
    assert [part.tobytes() for part in again] == [part.tobytes() for part in scores]


def test_a_split_planned_alone_has_other_chunks_and_the_same_scores(tiny_sentence, folder, small_chunks):
    cfg = Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16)
    _, together = score_splits(cfg, folder, "t", ["train", "test"])
    (alone,) = score_splits(cfg, folder, "alone", ["test"])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def score_splits(cfg, folder, name: str, splits: list[str]) -> list[np.ndarray]:
    spec = TeacherSpec(name, cfg, folder)
    prepare(spec, splits)
    teacher = open_teacher(spec, FLOAT32)
    return [teacher.score(mined_pairs(folder, split)) for split in splits]


@pytest.mark.parametrize("kind", ["bi-encoder", "splade"])
@pytest.mark.parametrize("damage", ["cut short", "another value"])
def test_damaged_chunks_are_set_aside_and_encoded_again(kind, damage, tiny_sentence, tiny_mlm, folder, tmp_path):
    model = tiny_sentence if kind == "bi-encoder" else save_checkpoint(tiny_mlm, tmp_path / "splade")
    cfg, mined = Teacher(kind=kind, model=str(model), max_length=16), mined_pairs(folder)
    expected = scores_of(cfg, folder, mined)
    (chunk,) = folder.scores("t", "vectors").glob("*/passages-*.arrow")
    whole = chunk.read_bytes()
    values = RowReader(chunk).batches[0].columns[-1].values.to_numpy().tobytes()
    where = whole.index(values) + len(values) // 2
    chunk.write_bytes(
        whole[:-40] if damage == "cut short" else whole[:where] + bytes([whole[where] ^ 64]) + whole[where + 1 :]
    )
    np.testing.assert_array_equal(scores_of(cfg, folder, mined), expected)
    assert chunk.read_bytes() == whole and chunk.with_name(f"{chunk.name}.damaged").exists()


@pytest.mark.parametrize("content", [b"null", b"5", b"{}", b"[", b"", None])
@pytest.mark.parametrize("name", ["plan.json", "train/passages.rows.npy"])
def test_a_damaged_plan_is_made_again(name, content, tiny_sentence, folder, caplog):
    cfg = Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16)
    (expected,) = score_splits(cfg, folder, "t", ["train"])
    path = folder.scores("t", "vectors") / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:] if content is None else content)  # None: a bit
    (again,) = score_splits(cfg, folder, "t", ["train"])
    np.testing.assert_array_equal(again, expected)
    assert path.read_bytes() == whole and "a damaged plan of vectors" in caplog.text


def test_chunks_of_other_processes_come_last_and_are_encoded_only_if_still_missing(
    tiny_sentence, folder, small_chunks, encoded, monkeypatch
):
    cfg, mined = Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16), mined_pairs(folder)
    expected = scores_of(cfg, folder, mined)
    abandoned, finished, *free = sorted(folder.scores("t", "vectors").glob("*/passages-*.arrow"))
    content = finished.read_bytes()
    for chunk in (abandoned, finished, *free):
        chunk.unlink()
    encoded.clear()
    record = DenseEncoder.vectors

    def other_process_finishes(self, store, texts, execution):
        if len(encoded) == len(free) - 1:  # while this one encodes the last chunk that nobody else works on
            finished.write_bytes(content)
        return record(self, store, texts, execution)

    monkeypatch.setattr(DenseEncoder, "vectors", other_process_finishes)
    with locked(abandoned), locked(finished):
        np.testing.assert_array_equal(scores_of(cfg, folder, mined), expected)
    assert len(encoded) == len(free) + 1
    rows = np.load(abandoned.with_name("passages.rows.npy"))
    assert encoded[-1][1] == [PASSAGES[row] for row in rows[:2]]  # those of `abandoned`


def test_a_vector_with_nan_is_refused_and_not_committed(tiny_sentence, folder, monkeypatch):
    cfg = Teacher(kind="bi-encoder", model=str(tiny_sentence), max_length=16)
    encode = DenseEncoder.vectors
    monkeypatch.setattr(
        DenseEncoder,
        "vectors",
        lambda *arguments: pa.RecordBatch.from_arrays(
            [pa.FixedSizeListArray.from_arrays(encode(*arguments).column(0).values.to_numpy() * np.float32("nan"), 32)],
            names=["vector"],
        ),
    )
    with pytest.raises(TeacherError, match="NaN or infinite values, of one of the queries in rows 0 to 3; float16"):
        scores_of(cfg, folder, mined_pairs(folder), Execution("cpu", "float16", 1, 64))
    monkeypatch.undo()
    assert np.isfinite(scores_of(cfg, folder, mined_pairs(folder))).all()
