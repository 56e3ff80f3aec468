"""A SLURM of one node for tests, whose processes listen on the loopback interface only.

Its files lie in a temporary folder, with a key and a socket of munge's own. Needs root and Debian's packages
`slurm-wlm` and `munge`.
"""

import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from project.runtime.process import die_with_parent

DAEMONS = ("munged", "slurmctld", "slurmd")
LIMIT_S = 1200.0
"""Time that all tests on one cluster may take [s]."""
START_LIMIT_S = 20.0
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credential of its earlier start has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
MaxArraySize=2
MpiDefault=none
ReturnToService=2
KillWait=5
MessageTimeout=5
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


class CannotStartError(RuntimeError):
    """SLURM cannot start on this machine."""


class SlurmCluster:
    """Processes of a SLURM in a folder; `running` starts and stops them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.deadline = time.monotonic() + LIMIT_S
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons.

        Raises:
            CannotStartError: a package or right is missing, or the node does not become idle.
        """
        if missing := [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name) is None]:
            raise CannotStartError(f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)")
        if os.geteuid() != 0:
            raise CannotStartError("slurmd needs root")
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)  # munged refuses to put its socket elsewhere
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller_port, node_port = free_ports(2)
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=platform.node().partition(".")[0],
                folder=self.folder,
                controller_port=controller_port,
                node_port=node_port,
            )
        )
        files = {"key-file": key} | {
            f"{name}{'' if name == 'socket' else '-file'}": self.folder / f"munge.{name}"
            for name in ("socket", "pid", "log", "seed")
        }
        self._spawn("munged", "--foreground", "--force", *(f"--{key}={file}" for key, file in files.items()))
        until(lambda: (self.folder / "munge.socket").exists(), time.monotonic() + START_LIMIT_S)
        self.start_controller()
        self._spawn("slurmd", "-D")
        until(lambda: "idle" in self.command("sinfo", "--noheader", "--format=%T"), self.deadline)

    def start_controller(self) -> None:
        self._spawn("slurmctld", "-D")

    def stop_controller(self) -> None:
        self._end("slurmctld")

    def stop(self) -> None:
        """End all jobs and daemons."""
        if "slurmctld" in self._processes:
            self.command("scancel", f"--user={os.getuid()}")
            with suppress(AssertionError):
                until(lambda: not self.command("squeue", "--noheader"), time.monotonic() + 10)
        for name in reversed(DAEMONS):
            self._end(name)

    def command(self, *words: str) -> str:
        """Run a command of SLURM; return its output and errors."""
        done = subprocess.run(
            words, env=os.environ | self.variables, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout + done.stderr

    def states(self) -> dict[str, str]:
        """Return the states of all jobs by their ids."""
        lines = self.command("squeue", "--states=all", "--array", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines if line[:1].isdigit())

    def wait(self, condition: Callable[[], Any], process: "subprocess.Popen[str] | None" = None) -> Any:
        """Wait for a condition; fail if the time of this cluster is over, or the process ends first."""
        return until(condition, self.deadline, process)

    def open_addresses(self) -> list[str]:
        """Return addresses other than loopback at which processes of SLURM listen."""
        done = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True, timeout=30)
        rows = [row for row in done.stdout.splitlines() if re.search(r'"(munged|slurm\w+|srun)"', row)]
        return [row.split()[3] for row in rows if not row.split()[3].startswith("127.0.0.1:")]

    def _spawn(self, name: str, *options: str) -> None:
        parent = os.getpid()
        with (self.folder / f"{name}.output").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [name, *options],
                env=os.environ | self.variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: die_with_parent(parent),  # a killed test leaves no daemon
            )

    def _end(self, name: str) -> None:
        if (process := self._processes.pop(name, None)) is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running() -> Iterator[SlurmCluster]:
    """Start a cluster, and stop it at the end.

    Raises:
        CannotStartError: SLURM cannot start here.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))  # a short path: that of a socket is limited
    cluster = SlurmCluster(folder)
    try:
        try:
            cluster.start()
        except (AssertionError, OSError) as error:
            logs = "".join(file.read_text(errors="replace")[-400:] for file in folder.glob("slurm*.output"))
            raise CannotStartError(f"{error} {logs}") from error
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def until(
    condition: Callable[[], Any], deadline: float, process: "subprocess.Popen[str] | None" = None
) -> Any:
    """Wait for a condition until a time of the monotonic clock."""
    while not (found := condition()):
        assert time.monotonic() < deadline, "SLURM or a test takes too long"
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    return found


def free_ports(number: int) -> list[int]:
    """Return ports of the loopback interface that nobody uses."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
