"""The sharded map: a worker class over a list of tasks, on Ray actors that may die, leave and join.

The driver sends names, never data: actors commit their output themselves and return counters, so the driver's memory
does not grow with the job. When an actor dies, its tasks are rescheduled (up to a cap on tries); an exception in a
worker's code stops the job with the task's name and the traceback. At most two tasks are in flight per actor, the
second one so that the actor never waits for the driver.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from distill.errors import ClusterError, DistillError
from distill.run.signals import postponed
from ray_jobs.cluster import dead_servers

log = logging.getLogger(__name__)

_RESIZE_SECONDS = 5.0  # between checks of the cluster's size
_PATIENCE_SECONDS = 60.0  # without any actor, until a warning


class Task(Protocol):
    @property
    def name(self) -> str:
        """Unique; for logs and messages."""
        ...

    @property
    def group(self) -> str:
        """Tasks of a group share what an actor loads; an actor stays with its group as long as it has tasks."""
        ...


T = TypeVar("T", bound=Task)


class JobFailed(RuntimeError):
    """A worker's code raised an exception, or a task's workers died too often."""


@dataclass
class _Actor(Generic[T]):
    handle: Any
    ready: Any  # ref of its first answer, None once that has arrived
    group: str | None = None
    tasks: deque[tuple[Any, T]] = field(default_factory=deque)  # (ref, task) in flight, in order; the first is running


@dataclass(frozen=True)
class Resources:
    """Resources per actor, and the number of actors (None: as many as the cluster has room for)."""

    cpus: float = 1.0
    gpus: float = 0.0
    actors: int | None = None


def shard_map(
    worker: type,
    arguments: tuple[Any, ...],
    tasks: Sequence[T],
    *,
    resources: Resources,
    max_tries: int,
    done: Callable[[T, Any], None],
    on_dispatch: Callable[[T], None] = lambda task: None,
    on_worker_death: Callable[[list[T]], None] = lambda tasks: None,
    diagnose: Callable[[T, float], str | None] = lambda task, since: None,
) -> None:
    """Run `worker(*arguments).run(task)` for every task; `done(task, result)` is called in the driver as each finishes.

    A task whose worker dies is tried again, at most `max_tries` times in all; only the task that was running counts a
    try. `on_dispatch(task)` and `on_worker_death(tasks)` are callbacks (running task first). `diagnose(task, since)`
    may explain a death better than Ray can; `since`: when the task was dispatched, as `time.time`. Raises a worker's
    `DistillError` with the task's name in front of the message, `JobFailed` for any other exception, and `ClusterError`
    if a worker dies and the Ray that this process started is dead. Ray must be running.
    """
    options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_restarts": 0, "max_concurrency": 1}
    actor_class: Any = ray.remote(worker).options(**options)
    callbacks = _Callbacks(on_dispatch, on_worker_death, diagnose)
    state = _Map(lambda: actor_class.remote(*arguments), tasks, resources, max_tries, callbacks)
    try:
        while state.left:
            with postponed():  # a signal's exception cannot pass through Ray
                state.resize()
                state.dispatch()
            for task, result in state.wait():
                done(task, result)
    finally:
        with postponed():
            for actor in state.actors if not dead_servers() else ():
                ray.kill(actor.handle)


@dataclass(frozen=True)
class _Callbacks(Generic[T]):
    on_dispatch: Callable[[T], None]
    on_worker_death: Callable[[list[T]], None]
    diagnose: Callable[[T, float], str | None]


class _Map(Generic[T]):
    """The driver's bookkeeping: the queues, the actors and their tasks in flight. `create` makes an actor."""

    def __init__(
        self,
        create: Callable[[], Any],
        tasks: Sequence[T],
        resources: Resources,
        max_tries: int,
        callbacks: _Callbacks[T],
    ):
        self._create = create
        self._queues: dict[str, deque[T]] = {}  # by group
        for task in tasks:
            self._queues.setdefault(task.group, deque()).append(task)
        self.left = len(tasks)
        self.actors: list[_Actor[T]] = []
        self._resources, self._max_tries, self._callbacks = resources, max_tries, callbacks
        self._dispatched: dict[str, float] = {}  # time of each task's last dispatch
        self._tries: Counter[str] = Counter()
        self._deaths_in_a_row = 0  # since a task last finished
        self._next_check = self._idle_since = time.monotonic()
        self._target = self._largest = 0  # number of actors wanted: now, and the most since a task last finished

    def resize(self) -> None:
        """Create actors up to the cluster's present capacity: nodes may have joined, actors may have died."""
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + _RESIZE_SECONDS
            self._target = min(self._wanted(), self.left)
            self._largest = max(self._largest, self._target)
        for _ in range(self._target - len(self.actors)):
            handle = self._create()
            self.actors.append(_Actor(handle, handle.ready.remote()))
        if any(actor.ready is None for actor in self.actors):
            self._idle_since = now
        elif now - self._idle_since > _PATIENCE_SECONDS:
            self._idle_since = now
            capacity = {kind: amount for kind, amount in ray.cluster_resources().items() if kind in ("CPU", "GPU")}
            log.warning(
                "waiting for a worker to start: each needs %g CPUs and %g GPUs; the cluster has %s",
                self._resources.cpus,
                self._resources.gpus,
                capacity or "none yet",
            )

    def dispatch(self) -> None:
        """Give every actor one task, and then a second one while tasks are plenty."""
        pending = sum(map(len, self._queues.values()))
        depth = 2 if pending > len(self.actors) else 1  # near the end, no actor holds a task that another could start
        for limit in range(1, depth + 1):
            for actor in self.actors:
                if actor.ready is None and len(actor.tasks) < limit and (task := self._next_task(actor)) is not None:
                    self._callbacks.on_dispatch(task)
                    self._dispatched[task.name] = time.time()
                    actor.tasks.append((actor.handle.run.remote(task), task))

    def wait(self) -> Iterator[tuple[T, Any]]:
        """Block until something happens, for a second at most; yield finished tasks with their results."""
        owner = {ref: actor for actor in self.actors for ref, _ in actor.tasks}
        owner |= {actor.ready: actor for actor in self.actors if actor.ready is not None}
        if not owner:
            time.sleep(0.2)  # the cluster has no room for an actor
            return
        refs = list(owner)
        with postponed():
            finished, _ = ray.wait(refs, num_returns=1, timeout=1.0)
            if finished:
                finished, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in finished:
            actor = owner[ref]
            if actor not in self.actors:
                continue  # its death was handled with an earlier ref
            task = next((task for task_ref, task in actor.tasks if task_ref == ref), None)
            try:
                with postponed():
                    result = ray.get(ref)
            except RayTaskError as error:
                raise _explain(task, error) from error
            except RayError as error:
                self._handle_death(actor, error)
                continue
            if task is None:
                actor.ready = None
                continue
            actor.tasks = deque(pair for pair in actor.tasks if pair[0] != ref)
            self._deaths_in_a_row, self._largest = 0, self._target
            self.left -= 1
            yield task, result

    def _handle_death(self, actor: _Actor[T], error: RayError) -> None:
        """Reschedule the tasks of a dead actor.

        Raises `JobFailed` after too many deaths, and `ClusterError` if Ray itself is dead, so that no other can start.
        """
        if dead := dead_servers():
            raise ClusterError(
                f"{dead[0]} of the Ray that this command started was killed, maybe for want of memory; "
                "the same command resumes"
            )
        self.actors.remove(actor)
        ray.kill(actor.handle)  # it may only be unreachable, and would keep its GPU
        lost = [task for _, task in actor.tasks]
        self._callbacks.on_worker_death(lost)
        self._deaths_in_a_row += 1
        reason = (self._callbacks.diagnose(lost[0], self._dispatched[lost[0].name]) if lost else None) or error
        log.warning(
            "worker died%s; rescheduling its tasks",
            f" while running {lost[0].name}{'' if reason is error else f' {reason}'}" if lost else "",
        )
        if self._deaths_in_a_row > 3 * max(1, self._largest):  # a cluster may be losing its nodes one by one
            raise JobFailed(
                f"{self._deaths_in_a_row} workers died one after the other without finishing a task; the last: {reason}"
            )
        if lost:
            self._tries[lost[0].name] += 1
            if self._tries[lost[0].name] >= self._max_tries:
                raise JobFailed(f"{lost[0].name}: its worker died {self._max_tries} times; the last: {reason}")
        for task in reversed(lost):
            self._queues[task.group].appendleft(task)

    def _next_task(self, actor: _Actor[T]) -> T | None:
        """The next task of the actor's group, or of the group with the fewest actors once that is finished."""
        if actor.group is None or not self._queues[actor.group]:
            actors = Counter(other.group for other in self.actors if other is not actor)
            waiting = [group for group, queue in self._queues.items() if queue]
            if not waiting:
                return None
            actor.group = min(waiting, key=lambda group: actors[group])
        return self._queues[actor.group].popleft()

    def _wanted(self) -> int:
        """Number of actors: the one asked for, else as many as fit into the cluster."""
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
    """A worker's exception as the driver raises it: a `DistillError` as it is, a bug with its traceback."""
    if isinstance(error.cause, DistillError):
        return error.cause if task is None else named(task, error.cause)
    return JobFailed(f"{task.name}: {error}" if task is not None else str(error))


def named(task: Task, error: DistillError) -> DistillError:
    """Put the task's name in front of the error's message."""
    error.args = (f"{task.name}: {error}",)
    return error
