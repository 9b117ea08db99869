"""The scoring job: every teacher's raw scores for every candidate, in shards that exist whole or not at all.

`score` plans the shards that are not committed, runs them through the sharded map on Ray, and writes the manifests
last. `score_local` does the same without Ray, or a part of it as one task of a job array. Both run `ScoreWorker`, which
checks again before it scores and commits exclusively, so jobs may be killed, restarted and run side by side.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from distill.errors import DistillError, FingerprintError, StorageError
from distill.progress import progress
from distill.run.files import remove_leftovers, xxh128_file
from distill.run.fingerprint import fingerprint as fingerprint_of
from distill.run.joblog import JobLog
from distill.run.manifest import Shard, manifest_path, verify
from distill.run.output import Output
from distill.run.run import Run
from distill.store.candidates import candidate_shards, read_candidates
from distill.store.scores import read_score_shard
from ray_jobs.cluster import ray_cluster
from ray_jobs.devices import lost_device
from ray_jobs.score_worker import Result, ScoreTask, ScoreWorker
from ray_jobs.shard_map import Resources, named, shard_map
from teachers.base import prepare
from teachers.execution import read_record
from teachers.spec import TeacherSpec
from teachers.vectors import ChunkPlan

log = logging.getLogger(__name__)


def score(run: Run, outputs: Sequence[Output]) -> dict[str, int]:
    """Score with all teachers in one Ray job; returns counters (shards, pairs, tokens, deaths).

    A local Ray is started, and stopped at the end, unless the recipe names a cluster or Ray is running already. After
    any failure, a new launch resumes with the missing shards. Raises `TeacherError`, `StorageError`,
    `FingerprintError`, and `JobFailed` for an exception in a worker's code.
    """
    job = _Job(run, outputs)
    tasks = job.plan()
    if tasks:
        recipe = run.recipe
        with ray_cluster(recipe.cluster), job.progress(tasks) as done:
            gpus = {teacher: gpus_per_actor(run, teacher, job.identities[teacher]) for teacher in job.teachers}
            arguments = (run, max(1, int(recipe.score.cpus)), job.identities)
            for need in sorted({gpus[task.teacher] for task in tasks}):
                shard_map(
                    ScoreWorker,
                    arguments,
                    [task for task in tasks if gpus[task.teacher] == need],
                    resources=Resources(recipe.score.cpus, need, recipe.score.actors),
                    max_tries=recipe.score.max_tries,
                    done=done,
                    on_dispatch=job.on_dispatch,
                    on_worker_death=job.on_worker_death,
                    diagnose=lambda task, since: lost_device(task.name, run.folder, since),
                )
    job.finish()
    return job.counters


def gpus_per_actor(run: Run, teacher: str, identity: str) -> float:
    """GPUs per actor: the recipe's number, else 1 or 0 by the frozen execution record, else by the cluster's resources.

    The record takes precedence over the cluster: nodes with GPUs may still join, and the job waits for them.
    """
    if run.recipe.score.gpus is not None:
        return run.recipe.score.gpus
    record = read_record(TeacherSpec.of(run, teacher).execution_record, identity)
    if record is not None:  # else there is none, or it belongs to a model that had this name before
        return 1.0 if record.device == "cuda" else 0.0
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def score_local(run: Run, outputs: Sequence[Output], part: tuple[int, int] = (0, 1)) -> dict[str, int]:
    """Score in this process, without Ray: every n-th shard of the plan, starting at the i-th, for `part = (i, n)`.

    The tasks of a job array share nothing but the folder; the one that finds every shard committed writes the
    manifests.
    """
    index, of = part
    assert 0 <= index < of
    job = _Job(run, outputs)
    tasks = job.plan(lambda task: task.number % of == index)
    worker = ScoreWorker(run, max(1, int(run.recipe.score.cpus)), job.identities)
    with job.progress(tasks) as done:
        for task in tasks:
            job.on_dispatch(task)
            try:
                result = worker.run(task)
            except DistillError as error:
                raise named(task, error) from None
            done(task, result)
    job.finish(must_be_complete=of == 1)
    return job.counters


class _Job:
    """Plan, event log and manifests of one launch."""

    def __init__(self, run: Run, outputs: Sequence[Output]):
        self.run, self.folder = run, run.folder
        self.outputs = {(output.key[0], output.key[1]): output for output in outputs}  # by teacher and split
        self.teachers = list(dict.fromkeys(teacher for teacher, _ in self.outputs))
        self.splits = list(dict.fromkeys(split for _, split in self.outputs))
        self.identities = {
            teacher: fingerprint_of(output.fields["teacher"]) for (teacher, _), output in self.outputs.items()
        }
        self.shards: dict[str, Shard] = {}  # committed shards by task name
        self._pairs: dict[str, dict[str, int]] = {}  # number of pairs by split and candidate shard
        self.counters = dict.fromkeys(("shards", "pairs", "tokens", "padded_tokens", "deaths"), 0)
        self._log = JobLog(run.folder)

    def plan(self, selected: Callable[[ScoreTask], bool] = lambda task: True) -> list[ScoreTask]:
        """Prepare what workers share, and return this launch's tasks that are not committed.

        `selected`: whether a task belongs to this launch. Damaged shards are set aside. Raises `FingerprintError` for
        a folder with scores of other inputs.
        """
        known = self._log.checksums()
        tasks: list[ScoreTask] = []
        for teacher in self.teachers:
            spec = TeacherSpec.of(self.run, teacher)
            splits = [split for split in self.splits if not self._finished_else_claim(teacher, split)]
            pending = [
                task
                for split in splits
                for task in self._shards(teacher, split)
                if selected(task) and not self._take_stock(task, known)
            ]
            if not pending:
                continue
            prepare(spec, splits)
            if spec.config.stores_vectors:
                tasks += [task for split in splits for task in self._missing_chunks(teacher, split) if selected(task)]
            tasks += pending
        return tasks

    @contextlib.contextmanager
    def progress(self, tasks: Sequence[ScoreTask]) -> Iterator[Callable[[ScoreTask, Result], None]]:
        """Show and log the progress; yields the function to call for each finished task."""
        self._log.write(
            "start",
            teachers=self.teachers,
            splits=self.splits,
            tasks=len(tasks),
            pairs=sum(task.pairs for task in tasks),
            pending=Counter(task.teacher for task in tasks),
        )
        with self._logged(), progress("score", sum(task.pairs for task in tasks), "pairs") as advance:

            def done(task: ScoreTask, result: Result) -> None:
                for key in ("pairs", "tokens", "padded_tokens"):
                    self.counters[key] += result[key]
                if task.chunk is None:
                    self.counters["shards"] += 1
                    if result["shard"] is not None:
                        self.shards[task.name] = result["shard"]
                self._log.write("done", task=task.name, **{**result, "shard": _plain(result["shard"])})
                advance(task.pairs, task.name)

            yield done

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """Log how the launch ends (unless it is killed)."""
        try:
            yield
            self._log.write("end", **self.counters)
        except BaseException as error:
            with contextlib.suppress(StorageError):  # the error may be a full disk
                self._log.write("stopped", error=str(error) or type(error).__name__)
            raise
        finally:
            with contextlib.suppress(StorageError):
                self._log.close()

    def on_dispatch(self, task: ScoreTask) -> None:
        self._log.write("handed out", task=task.name)

    def on_worker_death(self, tasks: Sequence[ScoreTask]) -> None:
        self.counters["deaths"] += 1
        self._log.write("death", tasks=[task.name for task in tasks])

    def finish(self, must_be_complete: bool = True) -> None:
        """Write the manifest of every split whose shards are all committed; log the number that others have to do."""
        others = 0
        for (teacher, split), output in self.outputs.items():
            home = self.folder.scores(teacher, split)
            if output.finished() is not None:
                continue
            tasks = self._shards(teacher, split)
            missing = [task for task in tasks if not (home / task.shard).exists()]
            if not missing and any(task.name not in self.shards for task in tasks):
                known = self._log.checksums()
                missing = [task for task in tasks if task.name not in self.shards and not self._take_stock(task, known)]
            if missing:
                if must_be_complete:
                    raise StorageError(
                        f"{home / missing[0].shard}: missing or damaged since it was written; check the "
                        "disk, and run the same command again"
                    )
                others += len(missing)
                continue
            pairs = sum(task.pairs for task in tasks)
            output.finish([self.shards[task.name] for task in tasks], {"pairs": pairs})
            remove_leftovers(home, ".part-*.tmp")  # of workers that were killed
        if others:
            log.info("%d shards are left to other tasks; the last task to end finishes the stage", others)

    def _finished_else_claim(self, teacher: str, split: str) -> bool:
        """Whether a folder is finished and intact. Otherwise claim it; damaged shards are set aside and done again."""
        output = self.outputs[teacher, split]
        if output.finished() is not None:
            damaged = verify(output.folder)
            if not damaged:
                return True
            for shard in damaged:
                _set_aside(output.folder / shard.name)
            manifest_path(output.folder).unlink(missing_ok=True)
        output.claim()
        return False

    def _shards(self, teacher: str, split: str) -> list[ScoreTask]:
        if split not in self._pairs:
            home = self.folder.candidates(split)
            self._pairs[split] = {
                shard.name: read_candidates(home / shard.name).pairs for shard in candidate_shards(home)
            }
        fingerprint = self.outputs[teacher, split].fingerprint
        return [
            ScoreTask(teacher, split, name, fingerprint, i, pairs)
            for i, (name, pairs) in enumerate(self._pairs[split].items(), self._offset(teacher, split))
        ]

    def _missing_chunks(self, teacher: str, split: str) -> list[ScoreTask]:
        plan = ChunkPlan(teacher, self.folder)
        return [
            ScoreTask(teacher, split, f"vectors/{chunk.store}-{chunk.number:05d}", "", i, chunk=chunk)
            for i, chunk in enumerate(plan.added(split), self._offset(teacher, split))
            if not plan.path(chunk).exists()
        ]

    def _offset(self, teacher: str, split: str) -> int:
        """Number of the first task of a teacher and split. It varies, or an array's first task would get every rest."""
        return len(self.splits) * self.teachers.index(teacher) + self.splits.index(split)

    def _take_stock(self, task: ScoreTask, known: dict[str, set[str]]) -> bool:
        """Whether a task's shard is committed and intact: then it is recorded. A damaged one is set aside."""
        path = self.folder.scores(task.teacher, task.split) / task.shard
        if not path.exists():
            return False
        checksum = xxh128_file(path)
        if checksum not in known.get(task.name, {checksum}):
            log.warning("%s is damaged (its checksum differs from the logged one); scoring it again", path)
            _set_aside(path)
            return False
        try:
            scores = read_score_shard(path)
            made_from = scores.metadata["fingerprint"]
        except (StorageError, KeyError, ValueError, AssertionError) as error:  # ValueError: from Arrow, or bad UTF-8
            log.warning("%s is damaged (%s); scoring it again", path, error)
            _set_aside(path)
            return False
        if made_from != task.fingerprint:
            raise FingerprintError(
                f"{path}: made from other inputs (fingerprint {made_from}, this run needs "
                f"{task.fingerprint}); remove the file and start again"
            )
        if len(scores.values) != task.pairs:
            log.warning(
                "%s is damaged (it has %d scores, not %d); scoring it again", path, len(scores.values), task.pairs
            )
            _set_aside(path)
            return False
        self.shards[task.name] = Shard(path.name, len(scores.query), path.stat().st_size, checksum)
        return True


def _set_aside(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another job in this folder may have moved it
        path.replace(path.with_name(f"{path.name}.damaged"))


def _plain(shard: Shard | None) -> dict[str, Any] | None:
    return None if shard is None else asdict(shard)
