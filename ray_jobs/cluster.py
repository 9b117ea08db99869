"""Ray for the duration of a job: a cluster's, a running one, or a local one of our own that leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray

from distill.config import Cluster
from distill.errors import DistillError, RecipeError
from distill.run.limits import require_threads
from distill.run.signals import postponed

log = logging.getLogger(__name__)

_WORKER_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0"}
_LONGEST_FOLDER = 40  # characters: of a socket's 107, Ray's names below it take up to 67
_RAY_THREADS = 175  # of its servers (146, counted) and one worker
_RAY_DISK = 16 << 20  # bytes for its logs and sockets
JOIN_SECONDS = 180.0  # for the machines of a cluster to join


@contextlib.contextmanager
def ray_cluster(cluster: Cluster) -> Iterator[None]:
    """Ray for the duration of a job: the running one, the one at `cluster.address`, or a local one of our own.

    Workers of a remote cluster get this program's packages with the job; local ones import what the driver can import,
    and those of address `auto` what is installed. Raises `RecipeError` if fewer than `cluster.nodes` machines join.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any]
    if cluster.address is None:
        options = {
            "address": "local",  # whatever RAY_ADDRESS says
            "num_cpus": cluster.cpus,
            "object_store_memory": int(cluster.object_store_gib * 2**30),
            "_temp_dir": _temporary_folder(),
        }
    elif cluster.address == "auto":
        options = {"address": "auto"}
    else:
        home = Path(__file__).resolve().parent.parent
        modules = [str(home / name) for name in ("distill", "teachers", "ray_jobs")]
        options = {"address": cluster.address, "runtime_env": {"py_modules": modules, "env_vars": _WORKER_ENVIRONMENT}}
    if cluster.address is None:
        require_threads("Ray on this machine", _RAY_THREADS, "score with --shard 0/1, which needs no Ray")
    others = psutil.Process().children(recursive=True)
    try:
        # a local Ray inherits the environment; a runtime_env would restart its workers
        with _environment(worker_environment()), postponed(), _own_sigterm():
            ray.init(**options, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except DistillError:
        raise
    except Exception as error:  # Ray raises all kinds, plain `Exception` among them
        where = f"reach Ray at {cluster.address}" if cluster.address else f"start Ray in {options['_temp_dir']}"
        raise RecipeError(f"cluster: cannot {where}: {str(error).strip() or type(error).__name__}") from error
    try:
        if cluster.nodes is not None:
            _await_nodes(cluster.nodes)
        yield
    finally:
        with postponed(), _own_sigterm():
            own = psutil.Process().children(recursive=True) if cluster.address is None else []
            started = [child for child in own if child not in others]
            ray.shutdown()
            for process in started:  # without its raylet or gcs_server, an agent of Ray would stay
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def dead_servers() -> list[str]:
    """Names of Ray's servers that this process started and that have died: `gcs_server`, `raylet`."""
    dead = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() in ("gcs_server", "raylet") and child.status() == psutil.STATUS_ZOMBIE:
                dead.append(child.name())
    return sorted(dead)


def _temporary_folder() -> str:
    """Where a Ray of our own keeps its sockets and logs: RAY_TMPDIR, the folder for temporary files, or /tmp.

    A path to a socket may have 107 characters; batch systems set longer folders. Raises `RecipeError` for one that
    cannot be written.
    """
    named = os.environ.get("RAY_TMPDIR")
    folder = Path(named or tempfile.gettempdir())
    if len(str(folder / "ray")) > _LONGEST_FOLDER:
        log.info("%s is too long for the sockets of Ray, which uses /tmp/ray", folder)
        folder = Path("/tmp")
    home = folder / f"ray-{os.getuid()}" if folder == Path("/tmp") and not _is_ours(folder / "ray") else folder / "ray"
    try:
        home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
        if shutil.disk_usage(home).free < _RAY_DISK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        variable = "RAY_TMPDIR" if named and folder == Path(named) else "TMPDIR"
        raise RecipeError(
            f"cluster: Ray cannot write to {home} ({error.strerror}); set {variable} to a folder with space "
            f"({_RAY_DISK >> 20} MiB at least) and a short path (up to {_LONGEST_FOLDER} characters)"
        ) from None
    return str(home)


def _is_ours(folder: Path) -> bool:
    """Whether a folder in /tmp, which all users share, is missing or may be written."""
    return not folder.exists() or os.access(folder, os.W_OK)


def worker_environment() -> dict[str, str]:
    """Environment variables for Ray, so that its workers can import what this process can."""
    return {**_WORKER_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _await_nodes(wanted: int) -> None:
    deadline = time.monotonic() + JOIN_SECONDS
    while (joined := sum(node["Alive"] for node in ray.nodes())) < wanted:
        if time.monotonic() > deadline:
            raise RecipeError(
                f"cluster: {joined} of {wanted} machines (cluster.nodes) joined in {JOIN_SECONDS:g} s; "
                "check Ray's log on the others, or lower cluster.nodes"
            )
        time.sleep(0.5)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep our SIGTERM handler: Ray's ends the process with status 15, and job scripts requeue on ours."""
    rays, before = ray._private.utils, signal.getsignal(signal.SIGTERM)
    set_handler, rays.set_sigterm_handler = rays.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        rays.set_sigterm_handler = set_handler
        # at its end, Ray restores the default
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
