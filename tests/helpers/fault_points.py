"""Stop the stages of a tiny run at chosen changes on disk, or make its writes fail there, and start them again.

    LD_PRELOAD=faults.so python -m tests.helpers.fault_points RECIPE FOLDER COUNT SEED OUT.json

Every stage runs in a child process, forked from this one, which has imported everything. For each chosen change of a
stage, the run folder is put back as it was before the stage; the child is killed there, gets a stop signal, or its
writes fail with "no space left" or an input/output error; and a second child runs the stage undisturbed. OUT.json lists
each point with both exit statuses, what the first printed, and the files that differ from a run without faults.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = {"kill": 0, "no space": errno.ENOSPC, "input/output": errno.EIO} | {
    number.name: -number for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
}
ERRORS_IN_LOG = ("Traceback", "Fatal Python error")


def main(recipe_file: str, folder: str, count: int, seed: int, out: str) -> None:
    from distill.pipeline.registry import STAGES
    from distill.pipeline.run import run_stage
    from distill.recipe.load import load_recipe
    from distill.run.run import Run
    from tests.helpers.golden_records import digests

    import_everything()
    recipe, draw = load_recipe(recipe_file), random.Random(seed)
    run, home = Run.of(recipe), Path(folder)
    faults = ctypes.CDLL(None)
    points: list[dict[str, Any]] = []
    snapshots: dict[str, Path] = {}
    changes: dict[str, int] = {}
    run.folder.root.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        snapshots[stage.name] = home / f"before-{stage.name}"
        shutil.copytree(run.folder.root, snapshots[stage.name])
        status, log = child(lambda stage=stage: run_stage(in_process(stage), run), faults, run, -1, 0, home)
        assert status == 0, log
        changes[stage.name] = int((home / "changes").read_text())
    after = [*list(snapshots.values())[1:], run.folder.root]
    expected = {stage.name: digests(folder) for stage, folder in zip(STAGES, after, strict=True)}
    share = count / sum(changes.values())
    for stage in STAGES:
        total = changes[stage.name]
        chosen = draw.sample(range(1, total + 1), min(total, max(1, round(total * share))))
        for change in sorted(chosen):
            kind = draw.choice(list(KINDS))
            shutil.rmtree(run.folder.root)
            shutil.copytree(snapshots[stage.name], run.folder.root)
            work = lambda stage=stage: run_stage(in_process(stage), run)  # noqa: E731
            first, log = child(work, faults, run, change, KINDS[kind], home)
            again, second_log = child(work, faults, run, -1, 0, home)
            found = digests(run.folder.root)
            # checkpoints aside: one that a stop signal asked for is saved at another moment
            differing = sorted(
                name
                for name in found.keys() | expected[stage.name].keys()
                if found.get(name) != expected[stage.name].get(name) and not name.startswith("checkpoints/")
            )
            points.append(
                {
                    "stage": stage.name,
                    "change": change,
                    "of": total,
                    "kind": kind,
                    "status": first,
                    "log": log[-3000:],
                    "again": again,
                    "again_log": second_log[-3000:] if again else "",
                    "differing": differing,
                }
            )
    Path(out).write_text(json.dumps(points, indent=1))


def import_everything() -> None:
    """Import what stages import when they run, so that children fork warm."""
    import torch

    torch.set_num_threads(1)
    import teachers.bi_encoder
    import teachers.bm25
    import teachers.cross_encoder
    import teachers.fine_tune  # noqa: F401


def in_process(stage):
    """The stage without Ray: mining and scoring in the child itself."""
    from dataclasses import replace

    from distill.mining.mine import mine

    if stage.name == "mine":
        return replace(stage, execute=mine)
    if stage.name == "score":
        return replace(stage, execute=lambda run, outputs: stage.part(run, outputs, (0, 1)))
    return stage


def child(work: Callable[[], Any], faults, run, change: int, error: int, home: Path) -> tuple[int, str]:
    """Run `work` in a forked process as the command line does; returns its exit status and what it printed."""
    log = home / "log"
    process = os.fork()
    if process == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 1
        try:
            from distill.errors import DistillError, Stop
            from distill.run import signals

            for number in (*signals.STOP_SIGNALS, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)  # a shell's background jobs ignore some
            signals.install()
            faults.fault_arm(str(run.folder.root).encode(), ctypes.c_long(change), error)
            try:
                work()
                status = 0
            except (DistillError, Stop) as caught:
                print(f"distill: {caught}", flush=True)
                status = caught.exit_status
            except BaseException:
                traceback.print_exc()
            seen = faults.fault_seen()
            faults.fault_arm(b"", ctypes.c_long(-1), 0)
            (home / "changes").write_text(str(seen))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
