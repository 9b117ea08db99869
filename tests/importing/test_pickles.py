"""Pickles of plain values are read as the JSON of the same values is; whatever could run code is refused by name."""

from __future__ import annotations

import collections
import datetime
import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from distill.errors import DataError
from distill.importing.readers.naver import object_items
from distill.importing.readers.pickles import read_pickle
from distill.run.layout import RunFolder
from distill.store.candidates import iterate_candidates
from distill.store.scores import read_scores
from tests.helpers.stages import import_data
from tests.importing.test_import_data import beir, recipe

SCORES = {1: {7: 2.5, "b": -3}, "q2": {"c": 1e-9}}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_in_every_protocol(tmp_path, protocol):
    values = {**SCORES, "lists": [1, 2.5, ("a", [], {}), True, None, 2**100]}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(values, protocol))
    (tmp_path / "a.pkl.gz").write_bytes(gzip.compress(pickle.dumps(values, protocol)))
    assert read_pickle(tmp_path / "a.pkl") == read_pickle(tmp_path / "a.pkl.gz") == values


class Exploit:
    def __reduce__(self):
        return os.system, ("touch exploited",)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Exploit(), "system"),
        ({"q": {"d": np.float32(1.0)}}, r"numpy.*\.scalar"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (datetime.date(2020, 1, 1), "datetime.date"),
        ([print], r"(builtins|__builtin__)\.print"),
        (Path("a"), "pathlib"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_classes_and_functions_are_refused_by_name(tmp_path, monkeypatch, value, name, protocol):
    monkeypatch.chdir(tmp_path)
    Path("a.pkl").write_bytes(pickle.dumps({"q": value}, protocol))
    with pytest.raises(DataError, match=rf"a\.pkl: this pickle holds \S*{name}\S*, and only numbers"):
        read_pickle(Path("a.pkl"))
    assert not Path("exploited").exists()


OPCODES = {  # pickles that no `dumps` writes
    "an instance by name": b"(S'touch exploited'\nios\nsystem\n.",
    "a reference to outside": b"Pname\n.",
    "a function of the extension registry": b"\x80\x02\x82\x01.",
    "half a pickle": pickle.dumps(SCORES)[:-4],
    "nothing": b"",
    "text": b"q1 Q0 d1 1 2.5 run\n",
    "a stack that runs empty": b"\x80\x02u.",
}


@pytest.mark.parametrize("kind", OPCODES)
def test_hand_made_pickles_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    Path("a.pkl").write_bytes(OPCODES[kind])
    with pytest.raises(DataError, match=r"a\.pkl: (this pickle holds|not a whole pickle)"):
        read_pickle(Path("a.pkl"))
    Path("a.pkl.gz").write_bytes(gzip.compress(OPCODES[kind])[:-9])
    with pytest.raises(DataError, match=r"a\.pkl\.gz: (this pickle holds|not a whole pickle)"):
        read_pickle(Path("a.pkl.gz"))
    assert not Path("exploited").exists()


def test_a_pickle_that_is_no_dict_of_ids_is_refused(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match="expected a dict of query ids, found list"):
        list(object_items(path))
    path.write_bytes(pickle.dumps({(1, 2): {}}))
    with pytest.raises(DataError, match=r"\(1, 2\) is no id"):
        list(object_items(path))


def test_a_source_reads_a_pickle_of_scores_as_it_reads_json(tmp_path):
    scores = {"q2": {"b": 9, "c": 1.5}, "q1": {"b": 2.5, "a": 8}}
    beir(tmp_path / "in", qrels={"train": ["q1\ta\t1", "q2\tb\t1"]})
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "scores.pkl.gz").write_bytes(gzip.compress(pickle.dumps(scores)))
    read = []
    for path in (tmp_path / "scores.json", tmp_path / "scores.pkl.gz"):
        source = {"kind": "naver", "collection": {"kind": "beir", "path": str(tmp_path / "in")}, "scores": str(path)}
        folder = RunFolder(tmp_path / path.suffix)
        import_data(recipe({"source": source}, teachers={"naver": {"kind": "imported"}}), folder)
        ((_, lists),) = iterate_candidates(folder.candidates("train"))
        ((_, values),) = read_scores(folder, "naver", "train")
        read.append((lists.query.tolist(), lists.passages.tolist(), values.values.tolist()))
    assert read[0] == read[1] and len(read[0][1]) == 4
