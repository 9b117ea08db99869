"""The progress display where there is no terminal: plain lines, at most one every ten seconds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distill.progress import clock, progress, track


def test_a_short_stage_prints_one_line_at_its_end(capsys):
    with progress("encode", 3, "texts") as advance:
        advance(2, note="a")
        advance()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("encode: 3/3 texts, ") and "texts/s" in line and "left" not in line


def test_a_long_stage_prints_a_line_every_ten_seconds_with_rate_time_left_and_note(capsys, monkeypatch):
    seconds = iter([0.0, 4.0, 20.0, 20.0, 20.0])
    monkeypatch.setattr("distill.progress.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with progress("encode", 100, "texts") as advance:
        advance(10)  # 4 seconds after the start: no line
        advance(10, note="loss 1.5")
    assert capsys.readouterr().err == "encode: 20/100 texts, 1.0 texts/s, 0:20 elapsed, 1:20 left  loss 1.5\n"


def test_track_yields_the_items_and_counts_them(capsys):
    assert list(track("abc", description="read")) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("read: 3/3 it")


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_clock_formats_minutes_and_hours(seconds, shown):
    assert clock(seconds) == shown
