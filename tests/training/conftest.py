"""Starting real training processes for the tests of this room."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def run_processes():
    """run_processes(n, script, *arguments): so many processes on gloo, as torchrun would start them."""

    def run(processes: int, script: str, *arguments: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                       "WORLD_SIZE": str(processes), "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
        workers = [subprocess.Popen([sys.executable, HERE / script, *map(str, arguments)], stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, text=True,
                                    env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                   for rank in range(processes)]
        try:
            outputs = [worker.communicate(timeout=300)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        for rank, (worker, output) in enumerate(zip(workers, outputs, strict=True)):
            assert worker.returncode == 0, f"rank {rank}:\n{output[-4000:]}"

    return run
