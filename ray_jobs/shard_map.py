"""The one sharded map: a worker class over a list of tasks, on Ray actors that may die, leave and join.

The driver hands out names, never data: actors commit what they make themselves and return counters, so its memory
does not grow with the job. A death puts the actor's tasks back (with a cap on tries); an exception of the program
stops the job with the task's name and the traceback. At most two tasks are in flight per actor, the second one so
that the actor never waits for the driver.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from distill.config import Cluster
from distill.errors import DistillError, RecipeError

log = logging.getLogger(__name__)

_WORKER_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0"}
_RESIZE_SECONDS = 5.0  # between looks at the cluster's size
_PATIENCE_SECONDS = 60.0  # without any actor, before the log says what is being waited for
JOIN_SECONDS = 180.0  # for the machines of a cluster to be there


class Task(Protocol):
    name: str  # for people
    group: str  # tasks of a group share what an actor loads: an actor stays with its group while it can


class JobFailed(RuntimeError):
    """The program raised an exception in a worker, or a task's workers died too often."""


@dataclass
class _Actor:
    handle: Any
    ready: Any  # ref of its first answer; None once it has come
    group: str | None = None
    tasks: deque[tuple[Any, Task]] = field(default_factory=deque)  # in flight, in order; the first one is running


@dataclass(frozen=True)
class Resources:
    """What one actor takes, and how many there may be (None: as many as the cluster holds)."""

    cpus: float = 1.0
    gpus: float = 0.0
    actors: int | None = None


def shard_map(
    worker: type,
    arguments: tuple[Any, ...],
    tasks: Sequence[Task],
    *,
    resources: Resources,
    max_tries: int,
    done: Callable[[Task, Any], None],
    handed: Callable[[Task], None] = lambda task: None,
    died: Callable[[list[Task]], None] = lambda tasks: None,
    why: Callable[[Task, float], str | None] = lambda task, since: None,
) -> None:
    """Run `worker(*arguments).run(task)` for every task; `done(task, result)` is called in the driver as they finish.

    A task whose worker dies is tried again, at most `max_tries` times in all; only the task that was running counts a
    try. `handed` hears of each task given to an actor, `died` of each death and the tasks it leaves, the running one
    first; `why(task, since)` may know more than Ray does of the death of a worker that was given the task after `since`
    (seconds, as `time.time`). Raises `DistillError` as the worker raised it, with the
    task's name before it, and `JobFailed` for anything else. Ray must be running.
    """
    state = _Map(ray.remote(worker), arguments, tasks, resources, max_tries, handed, died, why)
    try:
        while state.left:
            state.resize()
            state.hand_out()
            for task, result in state.wait():
                done(task, result)
    finally:
        for actor in state.actors:
            ray.kill(actor.handle)


class _Map:
    """The driver's bookkeeping: who runs what, and what is still to be handed out."""

    def __init__(
        self,
        worker: Any,
        arguments: tuple[Any, ...],
        tasks: Sequence[Task],
        resources: Resources,
        max_tries: int,
        handed: Callable[[Task], None],
        died: Callable[[list[Task]], None],
        why: Callable[[Task, float], str | None],
    ):
        options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_restarts": 0, "max_concurrency": 1}
        self._create = lambda: worker.options(**options).remote(*arguments)
        self._queues: dict[str, deque[Task]] = {}
        for task in tasks:
            self._queues.setdefault(task.group, deque()).append(task)
        self.left = len(tasks)
        self.actors: list[_Actor] = []
        self._resources, self._max_tries, self._handed, self._died = resources, max_tries, handed, died
        self._why = why
        self._given: dict[str, float] = {}  # when each task was last handed out
        self._tries: Counter[str] = Counter()
        self._deaths_in_a_row = 0  # without any task finished in between
        self._next_look = self._silent_since = time.monotonic()
        self._target = self._largest = 0  # actors wanted now, and at most since a task was last finished

    def resize(self) -> None:
        """Create actors up to what the cluster holds now: nodes may have joined, actors may have died."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _RESIZE_SECONDS
            self._target = min(self._wanted(), self.left)
            self._largest = max(self._largest, self._target)
        for _ in range(self._target - len(self.actors)):
            handle = self._create()
            self.actors.append(_Actor(handle, handle.ready.remote()))
        if any(actor.ready is None for actor in self.actors):
            self._silent_since = now
        elif now - self._silent_since > _PATIENCE_SECONDS:
            self._silent_since = now
            there = {kind: amount for kind, amount in ray.cluster_resources().items() if kind in ("CPU", "GPU")}
            log.warning(
                "waiting for a worker: each takes %g CPUs and %g GPUs; the cluster has %s",
                self._resources.cpus,
                self._resources.gpus,
                there or "nothing yet",
            )

    def hand_out(self) -> None:
        pending = sum(map(len, self._queues.values()))
        depth = 2 if pending > len(self.actors) else 1  # at the end, nobody keeps a task that another could start
        for at_once in range(1, depth + 1):
            for actor in self.actors:
                if actor.ready is None and len(actor.tasks) < at_once and (task := self._next_task(actor)) is not None:
                    self._handed(task)
                    self._given[task.name] = time.time()
                    actor.tasks.append((actor.handle.run.remote(task), task))

    def wait(self) -> Iterator[tuple[Task, Any]]:
        """Block until something happens, a second at most; yield the finished tasks and their results."""
        owner = {ref: actor for actor in self.actors for ref, _ in actor.tasks}
        owner |= {actor.ready: actor for actor in self.actors if actor.ready is not None}
        if not owner:
            time.sleep(0.2)  # no actor fits the cluster as it is
            return
        refs = list(owner)
        finished, _ = ray.wait(refs, num_returns=1, timeout=1.0)
        if finished:
            finished, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in finished:
            actor = owner[ref]
            if actor not in self.actors:
                continue  # its death was dealt with by an earlier ref
            task = next((task for own, task in actor.tasks if own == ref), None)
            try:
                result = ray.get(ref)
            except RayTaskError as error:
                raise _explain(task, error) from error
            except RayError as error:
                self._bury(actor, error)
                continue
            if task is None:
                actor.ready = None
                continue
            actor.tasks = deque(pair for pair in actor.tasks if pair[0] != ref)
            self._deaths_in_a_row, self._largest = 0, self._target
            self.left -= 1
            yield task, result

    def _bury(self, actor: _Actor, error: RayError) -> None:
        self.actors.remove(actor)
        ray.kill(actor.handle)  # it may only be out of reach, and would keep its GPU
        lost = [task for _, task in actor.tasks]
        self._died(lost)
        self._deaths_in_a_row += 1
        reason = (self._why(lost[0], self._given[lost[0].name]) if lost else None) or error
        log.warning(
            "a worker died%s; its work is handed out again",
            f" in {lost[0].name}{'' if reason is error else f' {reason}'}" if lost else "",
        )
        if self._deaths_in_a_row > 3 * max(1, self._largest):  # a cluster may be losing its nodes one by one
            raise JobFailed(
                f"{self._deaths_in_a_row} workers died one after the other without finishing anything; "
                f"the last: {reason}"
            )
        if lost:
            self._tries[lost[0].name] += 1
            if self._tries[lost[0].name] >= self._max_tries:
                raise JobFailed(f"{lost[0].name}: its worker died {self._max_tries} times; the last: {reason}")
        for task in reversed(lost):
            self._queues[task.group].appendleft(task)

    def _next_task(self, actor: _Actor) -> Task | None:
        """The next task of the actor's own group, else of the group that fewest actors work on."""
        if actor.group is None or not self._queues[actor.group]:
            crowd = Counter(other.group for other in self.actors if other is not actor)
            waiting = [group for group, queue in self._queues.items() if queue]
            if not waiting:
                return None
            actor.group = min(waiting, key=lambda group: crowd[group])
        return self._queues[actor.group].popleft()

    def _wanted(self) -> int:
        if self._resources.actors is not None:
            return self._resources.actors
        cluster = ray.cluster_resources()
        fits = [
            cluster.get(kind, 0.0) / need
            for kind, need in (("CPU", self._resources.cpus), ("GPU", self._resources.gpus))
            if need > 0
        ]
        return int(min(fits, default=1.0) + 1e-9)


def _explain(task: Task | None, error: RayTaskError) -> Exception:
    """A worker's exception as the driver raises it: errors for people stay what they are, bugs keep their traceback."""
    if isinstance(error.cause, DistillError):
        return error.cause if task is None else named(task, error.cause)
    return JobFailed(f"{task.name}: {error}" if task is not None else str(error))


def named(task: Task, error: DistillError) -> DistillError:
    """The error, with the task it came from before its message."""
    error.args = (f"{task.name}: {error}",)
    return error


@contextlib.contextmanager
def ray_cluster(cluster: Cluster) -> Iterator[None]:
    """Ray for the length of a job: the one that runs already, the one at `cluster.address`, or a local one of our own.

    Workers of a remote cluster get this program's packages with the job; local ones import what the driver can, and
    those of the address `auto` what is installed. Raises `RecipeError` if fewer than `cluster.nodes` machines join.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any]
    if cluster.address is None:
        options = {"num_cpus": cluster.cpus, "object_store_memory": int(cluster.object_store_gib * 2**30)}
    elif cluster.address == "auto":
        options = {"address": "auto"}
    else:
        home = Path(__file__).resolve().parent.parent
        modules = [str(home / name) for name in ("distill", "teachers", "ray_jobs")]
        options = {"address": cluster.address, "runtime_env": {"py_modules": modules, "env_vars": _WORKER_ENVIRONMENT}}
    try:
        # a local Ray inherits the environment: cheaper than a runtime_env, which starts its workers anew
        with _environment(worker_environment()), _own_sigterm():
            ray.init(**options, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RecipeError(f"cluster: cannot start or reach Ray (address {cluster.address!r}): {error}") from error
    try:
        if cluster.nodes is not None:
            _await_nodes(cluster.nodes)
        yield
    finally:
        with _own_sigterm():
            ray.shutdown()


def worker_environment() -> dict[str, str]:
    """Variables that Ray must be started with for its workers to import what this process can."""
    return {**_WORKER_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _await_nodes(wanted: int) -> None:
    deadline = time.monotonic() + JOIN_SECONDS
    while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
        if time.monotonic() > deadline:
            raise RecipeError(
                f"cluster: {there} of {wanted} machines (cluster.nodes) joined in {JOIN_SECONDS:g} s; "
                "look at what Ray says on the others, or ask for fewer"
            )
        time.sleep(0.5)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray puts its own handler in place, which ends the process with status 15; whoever requeues jobs knows ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
