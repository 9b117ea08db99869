"""The process group."""

from __future__ import annotations


def test_processes_that_are_done_exit_without_aborting(run_processes):
    # without the group's destruction a quarter of such processes end with SIGABRT (pytorch/pytorch#190489)
    for _ in range(2):
        run_processes(4, "exit_worker")
