"""Trackers that the recipe asks for follow the run's own metrics log, so training knows nothing of them.

Each is a `Tracker`, opened by a function of its own; one mechanism reads the log for all. How much of it each has got
stands in logs/<tracker>.json: a run that goes on after an interruption goes on where its trackers were.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from distill.config import Recipe
from distill.data.files import read_json, write_json
from distill.data.layout import RunFolder
from distill.reporting import run_facts
from distill.reporting.tensorboard import open_tensorboard
from distill.reporting.tracker import Tracker, first_rank
from distill.reporting.wandb import open_wandb

_SECONDS_BETWEEN_READS = 5.0

# each: None where the recipe does not ask for it; the dictionary is what it kept of the run the last time
_OPENERS: dict[str, Callable[[Recipe, RunFolder, dict[str, Any]], Tracker | None]] = {
    "wandb": open_wandb,
    "tensorboard": open_tensorboard,
}


@dataclass(frozen=True)
class _Followed:
    """A tracker, and what is known of it between interruptions: at least how many `lines` it has got."""

    name: str
    tracker: Tracker
    state: dict[str, Any]


@contextlib.contextmanager
def follow(recipe: Recipe, folder: RunFolder) -> Iterator[None]:
    """Send what is appended to logs/train.jsonl while the block runs, and the evaluation at its end.

    Does nothing where the recipe asks for no tracker, nor in ranks other than the first.
    """
    followed = _open(recipe, folder) if first_rank() else ()
    if not followed:
        yield
        return
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(followed, folder, stop), daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()
        _send_lines(followed, folder)
        results = _results(folder)
        for each in followed:
            each.tracker.results(results)
            each.tracker.close()


def _open(recipe: Recipe, folder: RunFolder) -> tuple[_Followed, ...]:
    followed = []
    for name, opener in _OPENERS.items():
        path = folder.logs / f"{name}.json"
        state = read_json(path) if path.exists() else {"lines": 0}
        tracker = opener(recipe, folder, state)
        if tracker is not None:
            followed.append(_Followed(name, tracker, state))
    return tuple(followed)


def _follow(followed: tuple[_Followed, ...], folder: RunFolder, stop: threading.Event) -> None:
    while not stop.wait(_SECONDS_BETWEEN_READS):
        _send_lines(followed, folder)


def _send_lines(followed: tuple[_Followed, ...], folder: RunFolder) -> None:
    """Send the lines that came since the last look. A resumed training cuts the log back to its checkpoint first."""
    lines = run_facts.training_log(folder)
    for each in followed:
        sent = min(each.state["lines"], len(lines))
        for line in lines[sent:]:
            each.tracker.line(line["step"], run_facts.logged_numbers(line))
        if len(lines) != each.state["lines"]:
            each.state["lines"] = len(lines)
            write_json(folder.logs / f"{each.name}.json", each.state)


def _results(folder: RunFolder) -> dict[str, float]:
    """The evaluation's figures under <system>/<measure>; none before there is one."""
    evaluation = run_facts.evaluation_of(folder)
    return {
        f"{row['name']}/{key}": value
        for row in (evaluation["rows"] if evaluation else ())
        for key, value in {
            **row["metrics"],
            **{key: value for key, value in row.items() if isinstance(value, float)},
        }.items()
    }
