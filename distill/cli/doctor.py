"""`distill doctor`: check that this machine has what the stages need. Each check is one function and prints one line.

A failed check says what to do. Nothing here changes the machine.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer
from packaging.version import Version

from distill.run.device import unused_gpu
from distill.run.hub import status_of

GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    level: Literal["ok", "warn", "fail"]
    what: str
    detail: str


def examine(run_folder: Path = Path("runs")) -> list[Finding]:
    """Run every check; a check that raises is itself a finding."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", _python),
        ("torch", _torch),
        ("deepspeed", _deepspeed),
        ("ray", _ray),
        ("GPU kernels", _gpu_kernels),
        ("compiler", _compiler),
        ("memory", _memory),
        ("shared memory", _shared_memory),
        ("disk", lambda: _disk(run_folder)),
        ("ports", _ports),
        ("model hub", _hub),
    ]
    findings = []
    for what, check in checks:
        try:
            findings.append(check())
        except Exception as error:
            findings.append(Finding("fail", what, f"{type(error).__name__}: {error}"))
    return findings


def _python() -> Finding:
    return Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")


def _torch() -> Finding:
    import torch

    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        cards = ", ".join(
            f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / GIB:.0f} GiB)"
            for i in range(torch.cuda.device_count())
        )
        return Finding("ok", "torch", f"{version}, CUDA {torch.version.cuda}: {cards}")
    if (unused := unused_gpu()) is not None:
        return Finding("fail", "torch", unused)
    bf16 = torch.cpu._is_avx512_bf16_supported() if hasattr(torch.cpu, "_is_avx512_bf16_supported") else False
    return Finding("ok", "torch", f"{version}, no GPU; processor {'has' if bf16 else 'lacks'} AVX512-bf16")


def _deepspeed() -> Finding:
    version = importlib.metadata.version("deepspeed")
    if Version(version) < Version("0.19.8"):
        return Finding("fail", "deepspeed", f"{version}: ZeRO-3 on CPU can give NaN; install deepspeed>=0.19.8")
    import deepspeed

    accelerator = deepspeed.accelerator.get_accelerator()
    return Finding(
        "ok",
        "deepspeed",
        f"{version}, accelerator {accelerator._name}, backend {accelerator.communication_backend_name()}",
    )


def _ray() -> Finding:
    version = importlib.metadata.version("ray")
    address = os.environ.get("RAY_ADDRESS")
    return Finding(
        "ok",
        "ray",
        f"{version}; RAY_ADDRESS={address}"
        if address
        else f"{version}; no RAY_ADDRESS: jobs start their own Ray on this machine",
    )


def _gpu_kernels() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("ok", "GPU kernels", "no GPU")
    from distill.student import head

    try:
        head.launch_kernels(torch.device("cuda", torch.cuda.current_device()))
        from distill.retrieval import cuda_search  # Triton is not installed everywhere

        cuda_search.launch_kernels("cuda")
    except Exception as error:
        return Finding(
            "warn",
            "GPU kernels",
            "the SPLADE head runs in plain torch, slower and with more memory, and exact search on processor cores: "
            f"{error} (Triton needs a C compiler, "
            "Python's headers and a cache folder that can be written, $TRITON_CACHE_DIR or ~/.triton)",
        )
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "missing"
    return Finding("ok", "GPU kernels", f"the SPLADE head's and the search's run; NCCL {nccl}")


def _compiler() -> Finding:
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler is None:
        return Finding(
            "warn",
            "compiler",
            "no C++ compiler: the portable CPU head is used, and DeepSpeed cannot build its CPU optimizer (offload); "
            "install g++ or clang++",
        )
    return Finding("ok", "compiler", compiler)


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    level: Literal["ok", "warn"] = "ok" if memory.available > 4 * GIB else "warn"
    return Finding(level, "memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free")


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    if free < GIB // 2:
        return Finding(
            "warn",
            "shared memory",
            f"{free / GIB:.2f} GiB free in /dev/shm: Ray's object store falls back "
            "to disk; enlarge it (docker: --shm-size=2g)",
        )
    return Finding("ok", "shared memory", f"{free / GIB:.1f} GiB free in /dev/shm")


def _disk(run_folder: Path) -> Finding:
    nearest = next(parent for parent in [run_folder.absolute(), *run_folder.absolute().parents] if parent.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass  # the folder is writable
    free = shutil.disk_usage(nearest).free
    level: Literal["ok", "warn"] = "ok" if free > 5 * GIB else "warn"
    return Finding(level, "disk", f"{free / GIB:.1f} GiB free under {nearest}")


def _ports() -> Finding:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            pass
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return Finding(
            "warn",
            "ports",
            f"loopback works, but this machine's host name {host!r} does not resolve: "
            "add it to /etc/hosts before multi-process runs",
        )
    return Finding("ok", "ports", "loopback works; host name resolves")


def _hub() -> Finding:
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError

    offline = "models must be paths, cached, or package:<module>/<folder>"
    if constants.HF_HUB_OFFLINE:
        return Finding("ok", "model hub", f"HF_HUB_OFFLINE is set: {offline}")
    try:
        status = status_of(constants.ENDPOINT, 5.0)
    except HTTPError as error:
        return Finding(
            "warn",
            "model hub",
            f"{constants.ENDPOINT} cannot be reached ({error}): {offline}; set HF_ENDPOINT to use a mirror, "
            "HTTPS_PROXY to use a proxy",
        )
    return Finding("ok", "model hub", f"{constants.ENDPOINT} answers, with status {status}")


def print_findings(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape

    colour = {"ok": "green", "warn": "yellow", "fail": "red"}
    console = Console()
    for finding in findings:
        level = f"[{colour[finding.level]}]{finding.level:>4}[/]"
        console.print(f"{level}  {finding.what:<14} {escape(finding.detail)}", highlight=False, soft_wrap=True)


def add_commands(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor() -> None:
    """Check torch and CUDA, DeepSpeed, Ray, memory, shared memory, disk, ports and the model hub."""
    findings = examine()
    print_findings(findings)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)
