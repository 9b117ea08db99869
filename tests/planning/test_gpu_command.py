"""`make gpu`, rehearsed on the CPU: every part runs, its lines are kept, and what is left is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def on_a_gpu(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARKS / "on_a_gpu.py", "--device", "cpu", "--out", out, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_rehearsal_runs_every_part_and_makes_tables(tmp_path):
    ended = on_a_gpu(tmp_path, "--minutes", "5")
    parts = json.loads((tmp_path / "summary.json").read_text())["parts"]
    assert ended.returncode == 0, (ended.stderr, parts)
    for name, state in parts.items():
        if not state.startswith("left out"):
            lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
            assert state.startswith("done") and lines, (name, state)
    tables = subprocess.run([sys.executable, BENCHMARKS / "tables.py", tmp_path], capture_output=True, text=True)
    assert tables.returncode == 0 and "### scoring" in tables.stdout and "| encode texts |" in tables.stdout


def test_parts_that_fail_and_those_for_which_time_is_up_are_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import on_a_gpu as command

    prints = [sys.executable, "-c", "print('{\"figure\": 1}', flush=True); import time; time.sleep(60)"]
    fails = [sys.executable, "-c", "print('{\"figure\": 2}'); raise SystemExit('no such device')"]
    parts = [command.Part("slow", 1, [], [prints]), command.Part("broken", 9, [], [fails])]
    monkeypatch.setattr(command, "parts", lambda work: parts)
    monkeypatch.setattr(sys, "argv", ["on_a_gpu", "--device", "cpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    states = json.loads((tmp_path / "summary.json").read_text())["parts"]
    assert ended.value.code == 1 and states["slow"].startswith("stopped after its 1 s, with 1 lines")
    assert "failed with status 1" in states["broken"] and "no such device" in states["broken"]
    assert json.loads((tmp_path / "slow.jsonl").read_text()) == {"figure": 1}  # kept, though the part was stopped
    monkeypatch.setattr(sys, "argv", ["on_a_gpu", "--device", "cpu", "--out", str(tmp_path), "--minutes", "0"])
    with pytest.raises(SystemExit):
        command.main()
    assert set(json.loads((tmp_path / "summary.json").read_text())["parts"].values()) == {"not started: the time is up"}
