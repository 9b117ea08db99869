"""A Ray cluster inside a Slurm allocation: `srun --ntasks-per-node=1 python -m ray_jobs.allocation score RECIPE ...`.

Task 0 starts the head and runs `distill` with the arguments on it; the other tasks join with their machines until that
ends. Ports, token and temporary folders belong to the job, and every process is ended by its id, so jobs that share
machines do not interfere. The tasks find each other through a folder under the run's.

`ray symmetric-run` does not serve here: it refuses a node where a Ray is running already, ends with a node-wide
`ray stop`, and has neither a token nor a restart of a machine's Ray.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from distill.config import Recipe
from distill.errors import DistillError, Preempted, RecipeError
from distill.recipe.load import load_recipe
from distill.run.files import write_atomic
from ray_jobs.cluster import JOIN_SECONDS, worker_environment

RESTARTS = 3  # of a machine's Ray that ends by itself, before the job continues without the machine


@dataclass(frozen=True)
class Place:
    """This task's rank in its srun step, and the resources that Slurm gave it."""

    rank: int
    tasks: int
    meeting: Path  # this launch's folder with the token and, while the job lasts, the head's address
    cpus: int
    gpus: int

    @classmethod
    def find(cls, recipe: Recipe, environment: Mapping[str, str]) -> Place:
        try:
            launch = "-".join(
                environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
            )
            return cls(
                int(environment["SLURM_PROCID"]),
                int(environment["SLURM_STEP_NUM_TASKS"]),
                recipe.folder.resolve() / "jobs" / f"ray-{launch}",
                int(environment.get("SLURM_CPUS_PER_TASK") or environment["SLURM_CPUS_ON_NODE"]),
                int(environment.get("SLURM_GPUS_ON_NODE", 0)),
            )
        except KeyError as error:
            raise RecipeError(
                f"{error} is not set: start this with srun, in a Slurm job; elsewhere `distill score` starts Ray itself"
            ) from None

    @property
    def address(self) -> Path:
        return self.meeting / "address"

    @property
    def token(self) -> Path:
        return self.meeting / "token"


def main(arguments: Sequence[str]) -> int:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _preempt)
    recipe = load_recipe(arguments[1], [word for word in arguments[2:] if "=" in word and not word.startswith("-")])
    place = Place.find(recipe, os.environ)
    object_store = int(recipe.cluster.object_store_gib * 2**30)
    return _lead(place, object_store, arguments) if place.rank == 0 else _join(place, object_store)


def _lead(place: Place, object_store: int, arguments: Sequence[str]) -> int:
    """Run the head, and the driver on it; returns the driver's exit status."""
    place.meeting.mkdir(parents=True, mode=0o700)
    place.token.touch(mode=0o600)
    place.token.write_text(secrets.token_hex(32), encoding="utf-8")
    host, port, dashboard_port, client_port = _own_address(), *_free_ports(3)
    address = f"{host}:{port}"
    client = [f"--ray-client-server-port={client_port}"] if find_spec("grpc") else []  # Ray refuses it otherwise
    try:
        with _ray(
            place,
            object_store,
            "--head",
            f"--node-ip-address={host}",
            f"--port={port}",
            *client,
            "--include-dashboard=false",
            f"--dashboard-port={dashboard_port}",
        ) as head:
            _await_port(host, port, head)
            with write_atomic(place.address) as temporary:
                temporary.write_text(address, encoding="utf-8")
            driver = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "distill.cli",
                    *arguments,
                    "cluster.address=auto",
                    f"cluster.nodes={place.tasks}",
                ],
                env=_environment(place) | {"RAY_ADDRESS": address},
                start_new_session=True,
            )
            with _terminated(driver):
                while driver.poll() is None:
                    if head.poll() is not None:  # the driver would retry for ever
                        raise RecipeError(f"cluster: Ray's head ended with status {head.returncode}")
                    time.sleep(0.5)
                return driver.returncode
    finally:
        shutil.rmtree(place.meeting, ignore_errors=True)  # which tells the other tasks to end


def _join(place: Place, object_store: int) -> int:
    """Run this machine's Ray until the head's address disappears; returns the exit status."""
    deadline = time.monotonic() + JOIN_SECONDS
    while (address := _read(place.address)) is None:
        if time.monotonic() > deadline:
            print(f"{socket.gethostname()}: Ray's head did not start in {JOIN_SECONDS:g} s", file=sys.stderr)
            return 1
        time.sleep(0.5)
    for _ in range(1 + RESTARTS):
        with _ray(place, object_store, f"--address={address}") as node:
            while node.poll() is None:
                if _read(place.address) is None:
                    return 0
                time.sleep(0.5)
        if _read(place.address) is None:
            return 0
        print(f"{socket.gethostname()}: Ray ended with status {node.returncode}", file=sys.stderr, flush=True)
        time.sleep(2)
    return 0  # the others continue; if this machine never joined, the driver has refused to start


@contextmanager
def _ray(place: Place, object_store: int, *options: str) -> Iterator[subprocess.Popen]:
    """Run one machine's Ray during the block; leaves nothing behind."""
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: Unix sockets below it have at most 107 characters
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        "--disable-usage-stats",
        f"--temp-dir={temporary}",
        f"--num-cpus={place.cpus}",
        f"--num-gpus={place.gpus}",
        f"--object-store-memory={object_store}",
        "--dashboard-agent-listen-port=0",
        *options,
    ]
    log = open(Path(temporary) / "start.log", "w", encoding="utf-8")  # noqa: SIM115 (closed below)
    try:
        with log:
            process = subprocess.Popen(
                command,
                env=_environment(place),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with _terminated(process):
            try:
                yield process
            finally:
                if process.poll() is not None:  # not by us: its output is the only trace of why
                    print(Path(log.name).read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _terminated(process: subprocess.Popen) -> Iterator[None]:
    """Terminate a process at the end of the block, and kill it if it has not ended within 20 s."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment(place: Place) -> dict[str, str]:
    return {**os.environ, **worker_environment(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(place.token)}


def _await_port(host: str, port: int, head: subprocess.Popen) -> None:
    while head.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, port)) == 0:
                return
        time.sleep(0.2)
    raise RecipeError(f"cluster: Ray's head ended with status {head.returncode} while starting; see its output above")


def _own_address() -> str:
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:  # all open at once, so that the ports differ
        each.bind(("", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _preempt(_number: int, _frame: object) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
    raise Preempted("asked to stop; run the same command again to resume with the missing shards")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DistillError as error:
        print(f"distill: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
