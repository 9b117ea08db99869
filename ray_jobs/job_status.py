"""The state of a scoring job, running or not, from the committed shards and the logs of its launches.

The job itself is not asked, so this works on any machine that shares the folder, and needs neither Ray nor torch.
Rates are those of the launches that are running, or else of the last one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distill.run.joblog import Launch, launches
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest


@dataclass(frozen=True)
class TeacherProgress:
    """One teacher's part of the job; None for what is not known (yet)."""

    teacher: str
    shards: int
    done: int
    in_flight: int  # shards, and chunks of vectors, that workers are working on
    failed: int  # shards whose worker died or whose error stopped the job, unless done since
    pairs_per_second: float | None
    tokens_per_second: float | None
    padding: float | None  # share of padding among the tokens that the model read
    seconds_left: float | None


State = Literal["running", "finished", "stopped", "killed", "unknown"]


@dataclass(frozen=True)
class LaunchState:
    """`state`: running; finished; stopped (by an error); killed (its log has no end); unknown (no file locks here)."""

    host: str
    pid: int
    state: State
    deaths: int  # worker deaths
    seconds_since_event: float
    error: str = ""


@dataclass(frozen=True)
class JobStatus:
    teachers: tuple[TeacherProgress, ...]
    launches: tuple[LaunchState, ...]  # those that are running, else the last one that had something to do


def job_status(folder: RunFolder, teachers: Sequence[str], splits: Sequence[str]) -> JobStatus | None:
    """State of a run folder's job; None before its first launch."""
    logs = [log for log in map(_Log, launches(folder)) if log.last is not None]
    if not logs:
        return None
    current = [log for log in logs if log.state in ("running", "unknown")]
    current = current or [log for log in logs if log.pending][-1:] or logs[-1:]
    return JobStatus(
        tuple(_progress(folder, teacher, splits, current) for teacher in teachers),
        tuple(log.summary() for log in current),
    )


@dataclass
class _Work:
    """Work of one launch for one teacher."""

    tasks: int = 0
    pairs: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    began: float = 0.0  # when its first task was dispatched, in seconds since the launch
    latest: float = 0.0  # when its last task finished


@dataclass
class _Log:
    """One launch's events, summed up."""

    launch: Launch
    state: State = "killed"
    last: dict[str, Any] | None = None  # event
    error: str = ""
    deaths: int = 0
    pending: Counter[str] = field(default_factory=Counter)  # number of tasks in this launch's plan, by teacher
    work: dict[str, _Work] = field(default_factory=dict)
    in_hand: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for event in self.launch.events():
            self.last = event
            self._add(event)
        if self.state == "killed":  # its log has no end
            alive = self.launch.alive()
            self.state = "unknown" if alive is None else "running" if alive else "killed"
        if self.state not in ("running", "unknown"):
            self.in_hand.clear()

    def summary(self) -> LaunchState:
        since = 0.0 if self.last is None else max(0.0, time.time() - self.last["time"])
        return LaunchState(self.launch.host, self.launch.pid, self.state, self.deaths, round(since, 1), self.error)

    def _add(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            self.pending = Counter(event["pending"])
        elif kind == "handed out":
            self.in_hand.add(event["task"])
            self.work.setdefault(_teacher(event["task"]), _Work(began=event["elapsed"]))
        elif kind == "done":
            self.in_hand.discard(event["task"])
            self.failed.discard(event["task"])
            work = self.work.setdefault(_teacher(event["task"]), _Work(began=event["elapsed"]))
            work.tasks += 1
            work.latest = event["elapsed"]
            for key in ("pairs", "tokens", "padded_tokens"):
                setattr(work, key, getattr(work, key) + event[key])
        elif kind == "death":
            self.deaths += 1
            self.in_hand.difference_update(event["tasks"])
            self.failed.update(event["tasks"][:1])  # the one that was running
        elif kind == "stopped":
            self.state, self.error = "stopped", event["error"]
            self.failed.update(task for task in self.in_hand if self.error.startswith(f"{task}: "))
        elif kind == "end":
            self.state = "finished"


def _progress(folder: RunFolder, teacher: str, splits: Sequence[str], current: Sequence[_Log]) -> TeacherProgress:
    candidates = [read_manifest(folder.candidates(split)) for split in splits]
    works = [(log, log.work[teacher]) for log in current if teacher in log.work and log.work[teacher].tasks]
    spans = [max(work.latest - work.began, 1e-3) for _, work in works]
    tokens, padded = sum(work.tokens for _, work in works), sum(work.padded_tokens for _, work in works)
    remaining = [
        (log.pending[teacher] - work.tasks) * span / work.tasks
        for (log, work), span in zip(works, spans, strict=True)
        if log.state in ("running", "unknown")
    ]
    return TeacherProgress(
        teacher,
        shards=sum(len(manifest.shards) for manifest in candidates if manifest),
        done=sum(1 for split in splits for _ in folder.scores(teacher, split).glob("part-*.arrow")),
        in_flight=sum(_teacher(task) == teacher for log in current for task in log.in_hand),
        failed=sum(_teacher(task) == teacher for log in current for task in log.failed),
        pairs_per_second=_rounded(sum(work.pairs / span for (_, work), span in zip(works, spans, strict=True))),
        tokens_per_second=_rounded(sum(work.tokens / span for (_, work), span in zip(works, spans, strict=True))),
        padding=round(1 - tokens / padded, 4) if padded else None,
        seconds_left=round(max(remaining), 1) if remaining else None,
    )


def _teacher(task: str) -> str:
    return task.split("/", 1)[0]


def _rounded(rate: float) -> float | None:
    return round(rate, 1) or None
