"""A process that counts blocks of passages for another one, see `distill.retrieval.term_counts`."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys

from distill.retrieval.term_counts import BlockCounter, send
from distill.store.texts import TextStore


def main() -> None:
    """Answer the requests of the process that started this one, until it closes the pipe."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    path, analyser = pickle.load(sys.stdin.buffer)
    counter = BlockCounter(TextStore.open(path), analyser)
    while True:
        start = pickle.load(sys.stdin.buffer)
        try:
            reply: object = counter.count(start)
        except Exception as error:
            reply = error
        send(replies, reply)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):
        main()
    os._exit(0)  # without flushing to a closed pipe
