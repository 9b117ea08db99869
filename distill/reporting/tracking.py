"""Feed the recipe's trackers from the run's own metrics log, so that training does not depend on them.

Each tracker is a `Tracker` with its own opener; one thread reads the log for all of them. logs/<tracker>.json records
how many lines each has received, so that a resumed run continues where its trackers stopped.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from distill.reporting import run_facts
from distill.reporting.tensorboard import open_tensorboard
from distill.reporting.tracker import Tracker
from distill.reporting.wandb import open_wandb
from distill.run.files import read_json, write_json
from distill.run.layout import RunFolder
from distill.run.rank import is_rank_zero
from distill.run.run import Run

_SECONDS_BETWEEN_READS = 5.0

# each returns None if the recipe does not ask for it; the dictionary is the tracker's saved state
_OPENERS: dict[str, Callable[[Run, dict[str, Any]], Tracker | None]] = {
    "wandb": open_wandb,
    "tensorboard": open_tensorboard,
}


@dataclass(frozen=True)
class _Followed:
    """A tracker and its saved state, which holds at least the number of `lines` that it has received."""

    name: str
    tracker: Tracker
    state: dict[str, Any]


@contextlib.contextmanager
def follow(run: Run) -> Iterator[None]:
    """Send lines appended to logs/train.jsonl while the block runs, and the evaluation's figures when it ends.

    Does nothing without trackers in the recipe, and on ranks other than 0.
    """
    followed = _open(run) if is_rank_zero() else ()
    if not followed:
        yield
        return
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(followed, run.folder, stop), daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()
        _send_lines(followed, run.folder)
        results = _results(run.folder)
        for each in followed:
            each.tracker.results(results)
            each.tracker.close()


def _open(run: Run) -> tuple[_Followed, ...]:
    followed = []
    for name, opener in _OPENERS.items():
        path = run.folder.logs / f"{name}.json"
        state = read_json(path) if path.exists() else {"lines": 0}
        tracker = opener(run, state)
        if tracker is not None:
            followed.append(_Followed(name, tracker, state))
    return tuple(followed)


def _follow(followed: tuple[_Followed, ...], folder: RunFolder, stop: threading.Event) -> None:
    while not stop.wait(_SECONDS_BETWEEN_READS):
        _send_lines(followed, folder)


def _send_lines(followed: tuple[_Followed, ...], folder: RunFolder) -> None:
    """Send the lines appended since the last call. Resuming truncates the log to its checkpoint, so it may shrink."""
    lines = run_facts.training_log(folder)
    for each in followed:
        sent = min(each.state["lines"], len(lines))
        for line in lines[sent:]:
            each.tracker.line(line["step"], run_facts.logged_numbers(line))
        if len(lines) != each.state["lines"]:
            each.state["lines"] = len(lines)
            write_json(folder.logs / f"{each.name}.json", each.state)


def _results(folder: RunFolder) -> dict[str, float]:
    """Figures of the evaluation as <system>/<measure>; empty before it exists."""
    evaluation = run_facts.evaluation_of(folder)
    return {
        f"{row['name']}/{key}": value
        for row in (evaluation["rows"] if evaluation else ())
        for key, value in {
            **row["metrics"],
            **{key: value for key, value in row.items() if isinstance(value, float)},
        }.items()
    }
