"""A hub that does not answer costs a few seconds, not its client's minute of retries."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from distill.run.hub import answers


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_answers_with_any_status_is_reachable():
    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert answers(f"http://127.0.0.1:{server.server_port}", 5.0)


def test_a_silent_server_a_closed_port_and_an_unknown_name_are_not(port):
    assert not answers(f"http://127.0.0.1:{port}", 0.5)
    assert not answers("http://127.0.0.1:1", 5.0)
    assert not answers("http://nosuch.invalid", 5.0)


def test_a_name_that_is_no_folder_is_refused_within_seconds_where_the_hub_is_silent(port):
    code = "from distill.run.model_ref import ModelRef; import time; began = time.monotonic()\n"
    code += "try: ModelRef.parse('nosuch').file('config.json')\n"
    code += "except Exception as error: print(type(error).__name__, error); print(time.monotonic() - began)"
    env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "1"}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    message, seconds = done.stdout.splitlines()
    assert message.startswith("NotCached 'nosuch' cannot be loaded: its config.json")
    assert float(seconds) < min(10, time.monotonic() - began)
