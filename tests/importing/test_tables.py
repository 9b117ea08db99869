"""The dialect of CSV and TSV files: separators and quotes, decided by the whole file."""

import csv
import logging

import pytest

from distill.importing.readers.tables import Dialect, cells_of, dialect_of
from tests.importing.files import lines


@pytest.fixture(autouse=True)
def decisions(caplog):
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize(
    ("name", "content", "dialect", "cells"),
    [
        ("a.csv", 'q,"a, b"\n', Dialect(",", True), ["q", "a, b"]),
        ("a.csv", "q;a, b\n", Dialect(",", True), ["q;a", " b"]),
        ("a.csv", 'q;"a; b"\n', Dialect(";", True), ["q", "a; b"]),
        ("a.csv", "q\ta\n", Dialect("\t", True), ["q", "a"]),
        ("a.tsv", 'q\t"a" or "b\n', Dialect("\t", False), ["q", '"a" or "b']),
        ("a.tsv", 'q\t"a ""b"""\n', Dialect("\t", True), ["q", 'a "b"']),
        ("a.tsv", 'q\t5" pipe\n', Dialect("\t", False), ["q", '5" pipe']),
    ],
)
def test_the_dialect_of_a_table_is_decided_by_what_is_there(tmp_path, name, content, dialect, cells):
    (tmp_path / name).write_text(content)
    assert dialect_of(tmp_path / name) == dialect
    assert list(cells_of(tmp_path / name)) == [(1, cells)]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("text", ["a\ttab", 'said "so"', '"all of it"', "two\nlines"])
def test_a_quoted_tsv_is_read_as_the_csv_module_wrote_it_wherever_its_first_quote_is(tmp_path, quoting, text, caplog):
    rows = [["query", "positive"], *([f"q{i}", "plain"] for i in range(1500)), ["q", text]]
    with open(tmp_path / "a.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=quoting, lineterminator="\n").writerows(rows)
    assert [cells for _, cells in cells_of(tmp_path / "a.tsv")] == rows
    assert "not part of its text" in caplog.text


@pytest.mark.parametrize("texts", [['"to be or not to be"', "plain"], ['"begun', 'and ended"'], ['"a" or "b', '"c"']])
def test_quotation_marks_of_a_bare_tsv_stay_as_they_are(tmp_path, texts, caplog):
    rows = [["query", "positive"], *(["q", text] for text in texts)]
    lines(tmp_path / "a.tsv", ["\t".join(row) for row in rows])
    assert [cells for _, cells in cells_of(tmp_path / "a.tsv")] == rows
    assert "quotation marks are part of the texts" in caplog.text
