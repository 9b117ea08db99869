"""A Slurm of three nodes on this machine: munged, slurmctld and three slurmd, in one folder, on free ports."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("n1", "n2", "n3")
SETTLED = 5.0  # seconds after which a requeued job's first script has ended on its node, which would refuse a second
FAILED = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")

# Jobs in `high` preempt jobs in `low`, which are asked to stop and requeued.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={root}/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/%n.spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=20
MinJobAge=3600
ReturnToService=2
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing_programs() -> str:
    """The reason why Slurm cannot run here, or an empty string."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"needs Slurm ({', '.join(missing)} not found): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "needs root: slurmd starts jobs as root only"


class SlurmCluster:
    """Start with `with SlurmCluster(folder) as slurm`; the folder's path must be short, for Unix sockets."""

    def __init__(self, root: Path, cpus: int = 8):
        self.root = root
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
        self.environment |= {
            "SLURM_CONF": str(root / "slurm.conf"),
            "PATH": os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")),
        }
        self._daemons: dict[str, subprocess.Popen] = {}
        host, ports = socket.gethostname(), _free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}"
            for name, port in zip(NODES, ports[1:], strict=True)
        )
        (root / "slurm.conf").write_text(CONFIGURATION.format(root=root, host=host, ports=ports, nodes=nodes))
        (root / "state").mkdir()
        for name in NODES:
            (root / f"{name}.spool").mkdir()
        key = root / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def __enter__(self) -> SlurmCluster:
        try:
            self._start(
                "munged",
                "munged",
                "--foreground",
                "--force",
                "--num-threads=2",
                *(
                    f"--{option}={self.root / name}"
                    for option, name in (
                        ("key-file", "munge.key"),
                        ("socket", "munge.socket"),
                        ("pid-file", "munge.pid"),
                        ("seed-file", "munge.seed"),
                    )
                ),
            )
            wait_until("munged to listen", lambda: (self.root / "munge.socket").exists(), seconds=60)
            self._start("slurmctld", "slurmctld", "-D")
            for name in NODES:
                self.start_node(name)
            wait_until("the nodes to be idle", lambda: self.node_states() == dict.fromkeys(NODES, "idle"), seconds=120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self._daemons:
            with contextlib.suppress(subprocess.SubprocessError):
                self.run("scancel", "--state=PENDING")
                self.run("scancel", "--state=RUNNING")
                wait_until("jobs to end", lambda: not self.run("squeue", "--noheader", "--states=R,CG"), seconds=60)
        for name in reversed(self._daemons):
            self._daemons[name].terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self._processes_of(*NODES):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def run(self, *command: str, **options) -> str:
        """Run a Slurm command and return its output. Raises `CalledProcessError`."""
        options = {"env": self.environment, "timeout": 60, **options}
        return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.strip()

    def node_states(self) -> dict[str, str]:
        try:
            lines = self.run("sinfo", "--Node", "--noheader", "--format=%N %t", "--partition=low").splitlines()
        except subprocess.SubprocessError:  # not up yet
            return {}
        return dict(line.split() for line in lines)

    # ------------------------------------------------------------------------------------------------ jobs

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, ..., also after the end; of an array, the worst of its tasks' states."""
        command = ("squeue", "--noheader", "--array", "--states=all", "--format=%T", f"--jobs={job}")
        states = set(self.run(*command).split())
        return min(states, key=lambda state: (state not in FAILED, state == "COMPLETED"))

    def restarts(self, job: str) -> int:
        return int(self._shown(job, "Restarts"))

    def nodes_of(self, job: str) -> list[str]:
        return self.run("scontrol", "show", "hostnames", self._shown(job, "NodeList")).split()

    def _shown(self, job: str, field: str) -> str:
        fields = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return next(value for name, _, value in (word.partition("=") for word in fields) if name == field)

    def hurry(self, job: str) -> None:
        """Start a requeued job now; Slurm would hold it for two minutes."""
        with contextlib.suppress(subprocess.CalledProcessError):  # it runs already
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def hold_still(self, job: str, seconds: float) -> None:
        """Suspend the steps of a running job until it has run for `seconds`, or Slurm has ended it."""
        self.run("scancel", "--signal=STOP", job)
        wait_until(
            "the held job's time to pass",
            lambda: self.state(job) != "RUNNING" or self._runs_for(job) >= seconds,
            seconds + 60,
        )
        if self.state(job) == "RUNNING":
            self.run("scancel", "--signal=CONT", job)

    def _runs_for(self, job: str) -> int:
        hours, minutes, seconds = map(int, self._shown(job, "RunTime").split(":"))
        return 3600 * hours + 60 * minutes + seconds

    def wait(self, *jobs: str, seconds: float = 240) -> None:
        """Wait until all jobs have completed, starting requeued ones soon. `AssertionError` if one fails."""
        pending_since: dict[str, float] = {}

        def over() -> bool:
            for job in jobs:
                state = self.state(job)
                assert state not in FAILED, f"job {job}: {state}\n{self.run('scontrol', 'show', 'job', job)}"
                if state != "PENDING":
                    pending_since.pop(job, None)
                elif time.monotonic() - pending_since.setdefault(job, time.monotonic()) > SETTLED:
                    self.hurry(job)
            return all(self.state(job) == "COMPLETED" for job in jobs)

        wait_until(f"jobs {', '.join(jobs)}", over, seconds, every=1.0)

    # ----------------------------------------------------------------------------------------------- nodes

    def start_node(self, name: str) -> None:
        self._start(name, "slurmd", "-D", "-N", name)

    def take_down(self, name: str) -> None:
        """Simulate a power failure: kill the node's slurmd and everything that runs on it."""
        daemon = self._daemons.pop(name)
        for pid in (daemon.pid, *self._processes_of(name)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.wait()

    def _processes_of(self, *names: str) -> list[int]:
        """Processes of jobs on these nodes, and their slurmstepd."""
        pids = set()
        this_cluster = f"SLURM_CONF={self.environment['SLURM_CONF']}"
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                if this_cluster in variables and any(f"SLURMD_NODENAME={name}" in variables for name in names):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    watcher = Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd")
                    pids |= {int(entry.name), parent} if watcher else {int(entry.name)}
        return sorted(pids, reverse=True)

    def _start(self, name: str, *command: str) -> None:
        with open(self.root / f"{name}.out", "w") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )


def wait_until(what: str, condition: Callable[[], bool], seconds: float, every: float = 0.2) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(every)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: even if the tests are killed


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
