"""The scoring job: every teacher's raw scores for every candidate, in shards that exist whole or not at all.

`score` plans (planned minus committed), runs the rest through the sharded map on Ray, and writes the manifests last.
`score_local` does the same without Ray, or a part of it as one task of a job array. Both run `ScoreWorker`, which
looks again before it scores and commits exclusively, so jobs may be killed, restarted and run side by side.
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

from distill.config import Recipe
from distill.data.candidates import candidate_shards, read_candidates
from distill.data.files import read_json, remove_leftovers, xxh128_file
from distill.data.fingerprint import check_same
from distill.data.fingerprint import fingerprint as fingerprint_of
from distill.data.layout import RunFolder
from distill.data.manifest import (
    FORMAT,
    Manifest,
    Shard,
    claim,
    manifest_path,
    read_manifest,
    require_manifest,
    verify,
    write_manifest,
)
from distill.data.scores import read_score_shard
from distill.errors import DistillError, FingerprintError, RecipeError, StorageError
from distill.progress import progress
from ray_jobs.devices import lost_device
from ray_jobs.joblog import JobLog
from ray_jobs.score_worker import Result, ScoreTask, ScoreWorker
from ray_jobs.shard_map import Resources, named, ray_cluster, shard_map
from teachers.base import prepare
from teachers.identity import identity
from teachers.vectors import chunk_done, vector_chunks

log = logging.getLogger(__name__)

_VECTOR_KINDS = ("bi-encoder", "splade")


# ------------------------------------------------------------------------------------------------ driver


def scoring_teachers(recipe: Recipe) -> tuple[str, ...]:
    """All but those whose scores came with the data."""
    return tuple(name for name, teacher in recipe.teachers.items() if teacher.kind != "imported")


def splits_to_score(recipe: Recipe, folder: RunFolder) -> tuple[str, ...]:
    """The training queries, and for the table the evaluated ones, where they have candidates."""
    split = recipe.evaluate.split
    if not recipe.score.rerank or split == "train" or read_manifest(folder.candidates(split)) is None:
        return ("train",)
    return ("train", split)


def score_fields(recipe: Recipe, folder: RunFolder, teacher: str, split: str) -> dict[str, Any]:
    """What a teacher's scores of a split depend on: the hashed part of their manifest. Raises `TeacherError`."""
    candidates = require_manifest(folder.candidates(split), "mine")
    return {
        "stage": "score",
        "format": FORMAT,
        "candidates": candidates.fingerprint,
        "teacher": identity(teacher, recipe.teachers[teacher], folder),
    }


def score(
    recipe: Recipe, folder: RunFolder, *, teachers: Sequence[str] | None = None, splits: Sequence[str] | None = None
) -> dict[str, int]:
    """Score with all teachers in one Ray job; returns counters (shards, pairs, tokens, deaths).

    A local Ray is started, and stopped again, unless the recipe names a cluster or Ray runs already. Started again
    after any failure, the job finishes what is left. Raises `TeacherError`, `StorageError`, `FingerprintError`, and
    `JobFailed` for an exception in a worker's code.
    """
    job = _Job(recipe, folder, teachers, splits)
    tasks = job.plan()
    if tasks:
        with ray_cluster(recipe.cluster), job.progress(tasks) as done:
            gpus = {teacher: _gpus(recipe, folder, teacher, job.identities[teacher]) for teacher in job.teachers}
            arguments = (recipe, folder, max(1, int(recipe.score.cpus)), job.identities)
            for need in sorted({gpus[task.teacher] for task in tasks}):
                some = [task for task in tasks if gpus[task.teacher] == need]
                resources = Resources(recipe.score.cpus, need, recipe.score.actors)
                shard_map(
                    ScoreWorker,
                    arguments,
                    some,
                    resources=resources,
                    max_tries=recipe.score.max_tries,
                    done=done,
                    handed=job.handed,
                    died=job.died,
                    why=lambda task, since: lost_device(task.name, folder, since),
                )
    job.finish()
    return job.counters


def _gpus(recipe: Recipe, folder: RunFolder, teacher: str, identity: str) -> float:
    """GPUs of an actor: the recipe's number, else one where the execution record, or without one the cluster, says so.

    The record rules over what the cluster has just now: nodes with GPUs may still join, and are waited for.
    """
    if recipe.score.gpus is not None:
        return recipe.score.gpus
    path = folder.scores(teacher, "execution.json")
    record = read_json(path) if path.exists() else {}
    if record.get("teacher") == identity:  # else of the model that had this name before
        return 1.0 if record["device"] == "cuda" else 0.0
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def score_local(
    recipe: Recipe,
    folder: RunFolder,
    *,
    part: tuple[int, int] = (0, 1),
    teachers: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
) -> dict[str, int]:
    """Score in this process, without Ray: every n-th shard of the plan from the i-th on, `part = (i, n)`.

    The tasks of a job array share nothing but the folder; the one that finds nothing pending writes the manifests.
    """
    index, of = part
    assert 0 <= index < of
    job = _Job(recipe, folder, teachers, splits)
    tasks = job.plan(lambda task: task.number % of == index)
    worker = ScoreWorker(recipe, folder, max(1, int(recipe.score.cpus)), job.identities)
    with job.progress(tasks) as done:
        for task in tasks:
            job.handed(task)
            try:
                result = worker.run(task)
            except DistillError as error:
                raise named(task, error) from None
            done(task, result)
    job.finish(must_be_complete=of == 1)
    return job.counters


def parse_part(text: str) -> tuple[int, int]:
    """`"I/N"` as (I, N): part I of N, counted from 0. Raises `RecipeError`."""
    index, of = (int(number) if number.isdecimal() else -1 for number in (*text.split("/", 1), "")[:2])
    if not 0 <= index < of:
        raise RecipeError(
            f"{text!r} is no part of the shards: write I/N, where N tasks count from 0 to N-1 (0/8 to 7/8)"
        )
    return index, of


class _Job:
    """Plan, event log and manifests of one launch."""

    def __init__(self, recipe: Recipe, folder: RunFolder, teachers: Sequence[str] | None, splits: Sequence[str] | None):
        self.recipe, self.folder = recipe, folder
        self.teachers = tuple(teachers or scoring_teachers(recipe))
        if unknown := [name for name in self.teachers if name not in recipe.teachers]:
            raise RecipeError(f"no teacher {unknown[0]!r} in the recipe ({', '.join(recipe.teachers)})")
        self.splits = tuple(splits or splits_to_score(recipe, folder))
        self.fields = {
            (teacher, split): score_fields(recipe, folder, teacher, split)
            for teacher in self.teachers
            for split in self.splits
        }
        self.identities = {teacher: fingerprint_of(fields["teacher"]) for (teacher, _), fields in self.fields.items()}
        self.shards: dict[str, Shard] = {}  # task name -> what was committed
        self._pairs: dict[str, dict[str, int]] = {}  # split -> candidate shard -> pairs in it
        self.counters = dict.fromkeys(("shards", "pairs", "tokens", "padded_tokens", "deaths"), 0)
        self._log = JobLog(folder)

    def plan(self, mine: Callable[[ScoreTask], bool] = lambda task: True) -> list[ScoreTask]:
        """Those of this launch's tasks that are not committed, after what workers share has been prepared.

        Raises `FingerprintError` where a folder holds scores of other inputs. Damaged shards are set aside.
        """
        known = self._log.checksums()
        tasks: list[ScoreTask] = []
        for teacher in self.teachers:
            cfg = self.recipe.teachers[teacher]
            splits = [split for split in self.splits if not self._finished(teacher, split)]
            pending = [
                task
                for split in splits
                for task in self._shards(teacher, split)
                if mine(task) and not self._committed(task, known)
            ]
            if not pending:
                continue
            prepare(teacher, cfg, self.folder, splits)
            if cfg.kind in _VECTOR_KINDS:
                tasks += [
                    task
                    for split in splits
                    for task in self._chunks(teacher, split)
                    if mine(task) and not chunk_done(teacher, self.folder, split, task.store, task.chunk)
                ]
            tasks += pending
        return tasks

    @contextlib.contextmanager
    def progress(self, tasks: Sequence[ScoreTask]) -> Iterator[Callable[[ScoreTask, Result], None]]:
        """Show and log what is done; yields the function to call for each finished task."""
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
                if task.store is None:
                    self.counters["shards"] += 1
                    if result["shard"] is not None:
                        self.shards[task.name] = result["shard"]
                self._log.write("done", task=task.name, **{**result, "shard": _plain(result["shard"])})
                advance(task.pairs, task.name)

            yield done

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """Write down how the launch ends, unless it is killed."""
        try:
            yield
            self._log.write("end", **self.counters)
        except BaseException as error:
            with contextlib.suppress(StorageError):  # the disk may be what is full
                self._log.write("stopped", error=str(error) or type(error).__name__)
            raise
        finally:
            with contextlib.suppress(StorageError):
                self._log.close()

    def handed(self, task: ScoreTask) -> None:
        self._log.write("handed out", task=task.name)

    def died(self, tasks: Sequence[ScoreTask]) -> None:
        self.counters["deaths"] += 1
        self._log.write("death", tasks=[task.name for task in tasks])

    def finish(self, must_be_complete: bool = True) -> None:
        """Write the manifest of every split whose shards are all there; say what other tasks still have to do."""
        elsewhere = 0
        for (teacher, split), fields in self.fields.items():
            home = self.folder.scores(teacher, split)
            if read_manifest(home) is not None:
                continue
            tasks = self._shards(teacher, split)
            missing = [task for task in tasks if not (home / task.shard).exists()]
            if not missing and any(task.name not in self.shards for task in tasks):
                known = self._log.checksums()
                missing = [task for task in tasks if task.name not in self.shards and not self._committed(task, known)]
            if missing:
                if must_be_complete:
                    raise StorageError(
                        f"{home / missing[0].shard}: gone or damaged since it was written; look at the "
                        "disk, and start the same command again"
                    )
                elsewhere += len(missing)
                continue
            pairs = sum(task.pairs for task in tasks)
            write_manifest(home, Manifest(fields, tuple(self.shards[task.name] for task in tasks), {"pairs": pairs}))
            remove_leftovers(home, ".part-*.tmp")  # of workers that were killed
        if elsewhere:
            log.info("%d shards are left to other tasks; the last of them to end finishes the stage", elsewhere)

    def _finished(self, teacher: str, split: str) -> bool:
        home, fields = self.folder.scores(teacher, split), self.fields[teacher, split]
        manifest = read_manifest(home)
        if manifest is not None:
            check_same(home, manifest.fields, fields)
            damaged = verify(home)
            if not damaged:
                return True
            for shard in damaged:
                _set_aside(home / shard.name)
            manifest_path(home).unlink(missing_ok=True)
        claim(home, fields)
        return False

    def _shards(self, teacher: str, split: str) -> list[ScoreTask]:
        if split not in self._pairs:
            home = self.folder.candidates(split)
            self._pairs[split] = {
                shard.name: read_candidates(home / shard.name).pairs for shard in candidate_shards(home)
            }
        fingerprint = fingerprint_of(self.fields[teacher, split])
        return [
            ScoreTask(teacher, split, name, fingerprint, i, pairs)
            for i, (name, pairs) in enumerate(self._pairs[split].items(), self._offset(teacher, split))
        ]

    def _chunks(self, teacher: str, split: str) -> list[ScoreTask]:
        chunks = vector_chunks(teacher, self.folder, split)
        return [
            ScoreTask(teacher, split, f"vectors/{store}-{chunk:05d}", "", i, 0, store, chunk)
            for i, (store, chunk) in enumerate(chunks, self._offset(teacher, split))
        ]

    def _offset(self, teacher: str, split: str) -> int:
        # another first part for each teacher and split, or the first task of an array would get all the remainders
        return len(self.splits) * self.teachers.index(teacher) + self.splits.index(split)

    def _committed(self, task: ScoreTask, known: dict[str, set[str]]) -> bool:
        """Whether a task's shard is there and whole; a damaged one is set aside."""
        path = self.folder.scores(task.teacher, task.split) / task.shard
        if not path.exists():
            return False
        checksum = xxh128_file(path)
        if checksum not in known.get(task.name, {checksum}):
            log.warning("%s is damaged (its checksum is not the one logged); it is scored again", path)
            _set_aside(path)
            return False
        try:
            found = read_score_shard(path)
            made_from, whole = found.metadata["fingerprint"], len(found.values) == task.pairs
        except (StorageError, KeyError, ValueError, AssertionError) as error:  # ValueError: Arrow's, and of text
            log.warning("%s is damaged (%s); it is scored again", path, error)
            _set_aside(path)
            return False
        if made_from != task.fingerprint:
            raise FingerprintError(
                f"{path}: made from other inputs (fingerprint {made_from}, this run needs "
                f"{task.fingerprint}); remove the file and start again"
            )
        if not whole:
            log.warning(
                "%s is damaged (it has %d scores, not %d); it is scored again", path, len(found.values), task.pairs
            )
            _set_aside(path)
            return False
        self.shards[task.name] = Shard(path.name, len(found.query), path.stat().st_size, checksum)
        return True


def _set_aside(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another job in this folder may have done it
        path.replace(path.with_name(f"{path.name}.damaged"))


def _plain(shard: Shard | None) -> dict[str, Any] | None:
    return None if shard is None else asdict(shard)
