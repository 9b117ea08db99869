"""`distill doctor`: the model hub is asked where, and through what, downloads would go."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from distill.doctor import examine


@pytest.fixture
def server():
    """(port, addresses asked for) of a server that answers every request for a head."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving.server_port, asked
        serving.shutdown()


@pytest.fixture
def hub(monkeypatch):
    """hub(endpoint, **environment): what the check finds."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def finding(endpoint, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        huggingface_hub.close_session()  # the next reads the environment anew
        return next(found for found in examine() if found.what == "model hub")

    yield finding
    huggingface_hub.close_session()


def test_the_hub_is_the_one_that_HF_ENDPOINT_names(hub, server):
    port, asked = server
    found = hub(f"http://127.0.0.1:{port}")
    assert (found.level, found.detail) == ("ok", f"http://127.0.0.1:{port} answers, with status 200") and asked == ["/"]


def test_the_hub_is_asked_through_the_proxy(hub, server):
    port, asked = server
    found = hub("http://mirror.invalid", HTTP_PROXY=f"http://127.0.0.1:{port}")
    assert found.level == "ok" and asked == ["http://mirror.invalid/"]


def test_a_hub_that_cannot_be_reached_is_named_with_what_to_do(hub):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        found = hub(endpoint)
    assert found.level == "warn" and found.detail.startswith(f"{endpoint} cannot be reached (")
    assert "HF_ENDPOINT" in found.detail
