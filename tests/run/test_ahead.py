"""`ahead` prepares one item while the one before it is used, in order."""

import threading

import pytest

from distill.run.ahead import ahead


def test_the_next_item_is_prepared_while_the_present_one_is_used():
    prepared = [threading.Event() for _ in range(5)]

    def prepare(i):
        prepared[i].set()
        return i * i

    seen = []
    for i, square in ahead(prepare, range(5)):
        assert i == 4 or prepared[i + 1].wait(10)  # without the caller's asking for it
        assert i >= 3 or not prepared[i + 2].is_set()  # and no more than that
        seen.append((i, square))
    assert seen == [(i, i * i) for i in range(5)] and not list(ahead(prepare, []))


def test_an_error_is_raised_when_its_item_is_due_and_nothing_after_it_is_prepared():
    begun = []

    def prepare(i):
        begun.append(i)
        return 1 // (i - 2)

    seen = []
    with pytest.raises(ZeroDivisionError):
        for i, _ in ahead(prepare, range(10)):
            seen.append(i)
    assert seen == [0, 1] and max(begun) <= 3


def test_a_caller_that_stops_early_leaves_no_thread():
    before = threading.active_count()
    for i, _ in ahead(lambda i: i, range(10)):
        if i == 2:
            break
    assert threading.active_count() == before
