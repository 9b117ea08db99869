"""Work that is prepared in a thread while the work before it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(prepare: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield each item with `prepare(item)`, which a thread calls while the caller still works on the item before.

    One item is prepared ahead, in the order of `items`; what `prepare` raises is raised when its item is due.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            following = item, pool.submit(prepare, item)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
