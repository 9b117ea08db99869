"""Whether the Hugging Face hub answers, asked once before its client spends a minute on retries."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time

_SECONDS = 5.0
_KEPT = 60.0  # seconds that an answer is used for


def hub_reachable() -> bool:
    """Whether the hub answers within five seconds, or within HF_HUB_ETAG_TIMEOUT seconds where that is set."""
    from huggingface_hub import constants

    wait = float(constants.HF_HUB_ETAG_TIMEOUT) if "HF_HUB_ETAG_TIMEOUT" in os.environ else _SECONDS
    return _answers(constants.ENDPOINT, wait, int(time.monotonic() // _KEPT))


@functools.lru_cache(maxsize=1)
def _answers(endpoint: str, wait: float, minute: int) -> bool:
    return answers(endpoint, wait)


def answers(endpoint: str, wait: float) -> bool:
    """Whether a server answers a request within `wait` seconds, with any status."""
    from huggingface_hub.errors import HTTPError

    answered: list[int] = []

    def ask() -> None:
        with contextlib.suppress(HTTPError, OSError):
            answered.append(status_of(endpoint, wait))

    thread = threading.Thread(target=ask, daemon=True)  # a resolver without a network may not return for a minute
    thread.start()
    thread.join(wait)
    return bool(answered)


def status_of(endpoint: str, wait: float) -> int:
    """Return the status that a server answers with, asked as the hub's client does: through proxies of the environment.

    Raises `huggingface_hub.errors.HTTPError` if it cannot be reached.
    """
    from huggingface_hub import get_session

    return int(get_session().head(endpoint, timeout=wait).status_code)
