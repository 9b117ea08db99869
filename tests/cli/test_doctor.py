"""`distill doctor` contacts the model hub at the address, and through the proxy, that downloads would use."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from distill.cli.doctor import examine


@pytest.fixture
def server():
    """Port of a server that answers every HEAD request, and the list of requested addresses."""
    requested = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            requested.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving.server_port, requested
        serving.shutdown()


@pytest.fixture
def hub(monkeypatch):
    """hub(endpoint, **environment): the finding of the check."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def finding(endpoint, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        huggingface_hub.close_session()  # the next session reads the environment again
        return next(result for result in examine() if result.what == "model hub")

    yield finding
    huggingface_hub.close_session()


def test_doctor_contacts_the_hub_named_by_HF_ENDPOINT(hub, server):
    port, requested = server
    result = hub(f"http://127.0.0.1:{port}")
    assert (result.level, result.detail) == (
        "ok",
        f"http://127.0.0.1:{port} answers, with status 200",
    ) and requested == ["/"]


def test_doctor_contacts_the_hub_through_the_proxy(hub, server):
    port, requested = server
    result = hub("http://mirror.invalid", HTTP_PROXY=f"http://127.0.0.1:{port}")
    assert result.level == "ok" and requested == ["http://mirror.invalid/"]


def test_doctor_names_an_unreachable_hub_and_the_remedy(hub):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        result = hub(endpoint)
    assert result.level == "warn" and result.detail.startswith(f"{endpoint} cannot be reached (")
    assert "HF_ENDPOINT" in result.detail
