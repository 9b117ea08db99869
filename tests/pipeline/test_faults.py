"""Stages stopped at any change on disk resume to the same bytes.

A failing write ends with status 2 and a message, a stop signal with 75, Ctrl-C with 130.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distill.recipe.load import dump_recipe
from tests.helpers.whole_run import whole_recipe

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
@pytest.mark.parametrize(
    ("count", "seed"), [(6, 1), pytest.param(None, 2, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
)
def test_stages_survive_kills_and_failing_writes(tmp_path, tiny_mlm, tiny_sentence, count, seed, request):
    count = count or request.config.getoption("--fault-points")
    recipe = whole_recipe(tmp_path, tiny_mlm, tiny_sentence)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    library = tmp_path / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HELPERS / "faults.c", "-ldl"], check=True)
    (tmp_path / "home").mkdir()
    command = [
        sys.executable,
        "-m",
        "tests.helpers.fault_points",
        "recipe.yaml",
        "home",
        str(count),
        str(seed),
        "out.json",
    ]
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(HELPERS.parents[1])
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    points = json.loads((tmp_path / "out.json").read_text())
    assert len(points) >= count * 0.8 and {point["stage"] for point in points} >= {"import", "train", "evaluate"}
    wrong = []
    for point in points:
        # 0: a signal may come too late, and a log that cannot be written may be one that the run can do without
        allowed = {"kill": {-signal.SIGKILL}, "no space": {0, 2}, "input/output": {0, 2}, "SIGINT": {0, 130}}
        fine = point["status"] in allowed.get(point["kind"], {0, 75}) and "Traceback" not in point["log"]
        if not fine or point["again"] != 0 or point["differing"]:
            wrong.append(point)
    assert not wrong, json.dumps(wrong[:5], indent=1)
