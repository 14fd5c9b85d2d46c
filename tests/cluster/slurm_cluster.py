"""A real SLURM of two nodes on this machine: own munge key, ports, configuration and spool in one temporary folder.

For the tests, and to try sweeps with: python tests/cluster/slurm_cluster.py, as root.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "setpriv")
NODES = ("127.0.0.1", "127.0.0.2")
"""Addresses as names: submitit makes the first node's name MASTER_ADDR, and processes must find it."""

PORTS = range(10000, 20000)
"""Below those the system hands out, and beside those of jepa.distributed.launch, so that nobody takes one meanwhile."""

ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MailProg=/bin/true
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# Without a default each job takes the memory of its whole node, and jobs run one after the other.
DefMemPerCPU=500
# More CPUs and memory than the machine has.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
JobRequeue=1
KillWait=5
# Ended jobs stay visible to squeue and scontrol, as there is no accounting to ask.
MinJobAge=3600
ReturnToService=2
# A busy machine answers late.
SlurmdTimeout=300
MessageTimeout=30
BatchStartTimeout=60
{generic}
NodeName={nodes[0]} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8000 {resources}
NodeName={nodes[1]} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8000 {resources}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


PATIENCE = 300.0
"""Seconds after which a wait fails, many times what a busy machine takes: what SLURM says of a job ends it before."""


class SlurmError(AssertionError):
    """What SLURM was waited for did not come; tells the queue and the ends of the daemons' logs."""


class Slurm:
    """A cluster under way: two nodes of 4 CPUs, 8 GB and, where device files can be made, two pretend GPUs each.

    folder: an empty folder of a short path (a socket's path has at most 107 characters), removed by `stop`.
    environment: what a process needs in its environment to reach this cluster and no other.
    gpus: pretend GPUs per node; 0 where none could be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.gpus = 2 if _make_devices(folder, 2) else 0
        self._daemons: list[subprocess.Popen] = []

    # Asking and telling the cluster

    def run(self, command: list[str], check: bool = True, **options: object) -> subprocess.CompletedProcess:
        """Run a command that reaches this cluster; text is captured, and a failure raises unless check=False."""
        environment = {**self.clean_environment(), **options.pop("env", {})}
        options = {"capture_output": True, "text": True, "timeout": PATIENCE, **options}
        done = subprocess.run([str(part) for part in command], env=environment, check=False, **options)
        if check and done.returncode != 0:
            raise SlurmError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def clean_environment(self) -> dict[str, str]:
        """os.environ with this cluster's variables, and none of a job these tests may themselves be run by."""
        foreign = re.compile(r"S(LURM|BATCH|ALLOC|RUN|QUEUE|CANCEL)_")
        return {name: value for name, value in os.environ.items() if not foreign.match(name)} | self.environment

    def submit(self, *arguments: object, **options: object) -> str:
        """The id of a job submitted by sbatch with these arguments."""
        return self.run(["sbatch", "--parsable", *map(str, arguments)], **options).stdout.strip().split(";")[0]

    def jobs(self) -> dict[str, str]:
        """The state of each job, waiting, running or ended; tasks of an array are "<id>_<task>"."""
        lines = self.run(["squeue", "--noheader", "--array", "--states=all", "--format=%i %T"]).stdout.splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def wait_for(self, job: str | int, state: str) -> None:
        """Wait until a job, or each task of an array, is in a state. Raises SlurmError when it has ended otherwise."""
        self.wait_until(lambda: self.states_of(job) == {state}, job, f"job {job} is not {state}", also=state)

    def states_of(self, job: str | int) -> set[str]:
        """The states of a job, or of the tasks of an array."""
        return {state for name, state in self.jobs().items() if name == str(job) or name.startswith(f"{job}_")}

    def wait_until(self, holds: Callable[[], object], job: str | int | None, missing: str, also: str = "") -> None:
        """Wait until a condition holds. Raises SlurmError, with `missing` first, when the job has ended before.

        job: None for one that is not known yet. also: a state of ended jobs that some may be in meanwhile.
        """
        end = time.monotonic() + PATIENCE
        while not holds():
            ended = set() if job is None else (self.states_of(job) & ENDED) - {also}
            if (ended and not holds()) or time.monotonic() > end:
                why = f"its job is {', '.join(sorted(ended))}" if ended else f"{PATIENCE:.0f} s are over"
                raise SlurmError(f"{missing}: {why}\n{self.report(job)}")
            time.sleep(0.2)

    def details(self, job: str | int) -> dict[str, str]:
        """What `scontrol show job` tells, by its names: JobState, Restarts, ExitCode, StdOut, ..."""
        line = self.run(["scontrol", "--oneliner", "show", "job", str(job)]).stdout.splitlines()[0]
        return dict(re.findall(r"(?:^|\s)([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)", line))

    def start_now(self, job: str | int) -> None:
        """Let a requeued job start now, which SLURM else holds back for two minutes; waits until it is pending.

        And until its first start has left the nodes: the end of that would be taken for the end of the new one. Nor may
        it start in the second in which that was ended, when slurmd takes it to be ended already.
        """
        self.wait_for(job, "PENDING")
        steps = f"slurmstepd: [{self.details(job)['JobId']}."
        self.wait_until(
            lambda: not any("".join(process.cmdline()[:1]).startswith(steps) for process in self._processes()),
            job,
            f"steps of job {job} are still there",
        )
        self.run(["scontrol", "update", f"JobId={job}", "StartTime=now+2"])

    def end_soon(self, job: str | int, seconds: int) -> None:
        """Let the time limit of a running job be over in so many seconds.

        SLURM looks at limits every 30 s, and sends a signal that announces one up to 30 s early.
        """
        self.run(["scontrol", "update", f"JobId={job}", f"EndTime=now+{seconds}"])

    def signal(self, job: str | int, name: str, *options: str) -> None:
        """Send a signal to the steps of a job; with "--batch" to its script, as --signal=B: does, "--full" to both."""
        self.run(["scancel", f"--signal={name}", *options, str(job)])

    def report(self, job: str | int | None = None, lines: int = 25) -> str:
        """The queue, one job's details and output, and the last lines of every daemon's log."""
        parts = []
        if self._daemons and all(daemon.poll() is None for daemon in self._daemons):  # else they would not be answered
            parts.append(self.run(["squeue", "--array", "--states=all"], check=False).stdout)
            if job is not None:
                shown = self.run(["scontrol", "show", "job", str(job)], check=False).stdout
                names = dict.fromkeys(re.findall(r"Std(?:Out|Err)=(.+)", shown))
                parts += [shown, *(f"--- {name}\n{_tail(Path(name), lines)}" for name in names)]
        else:
            parts += [f"--- {log.name}\n{_tail(log, lines)}" for log in sorted(self.folder.glob("*.out"))]
        parts += [f"--- {log.name}\n{_tail(log, lines)}" for log in sorted(self.folder.glob("*.log"))]
        return "\n".join(parts)

    # Its life

    def start(self, timeout: float = PATIENCE / 3) -> None:
        """Start the daemons; gives back control when both nodes are idle. Raises SlurmError when they are not."""
        for tries_left in (2, 1, 0):
            self._configure()
            self._daemons = [
                self._daemon("munged", *self._munge_options(), "--foreground", "--force"),
                self._daemon("slurmctld", "-D", "-c"),
                *(self._daemon("slurmd", "-D", "-N", node) for node in NODES),
            ]
            if self._ready(timeout):
                return
            failure = self.report()
            self._end_daemons()
            if not tries_left:  # a port was free when it was looked at, and can be taken a moment later
                raise SlurmError(f"SLURM did not start in {timeout} s\n{failure}")

    def stop(self) -> None:
        """End every job and daemon, at once as nothing of them stays, and remove the folder."""
        self._end_daemons()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        gpus = self.gpus
        text = CONFIGURATION.format(
            folder=self.folder,
            ports=free_ports(3),
            nodes=NODES,
            generic="GresTypes=gpu" if gpus else "",
            resources=f"Gres=gpu:{gpus}" if gpus else "",
        )
        (self.folder / "slurm.conf").write_text(text)
        if gpus:
            devices = f"Name=gpu File={self.folder}/gpu[0-{gpus - 1}]"
            lines = [f"NodeName={node} {devices}" for node in NODES]
            (self.folder / "gres.conf").write_text("\n".join(["AutoDetect=off", *lines, ""]))
        (self.folder / "state").mkdir(exist_ok=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def _munge_options(self) -> list[str]:
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return [f"--{option}={self.folder}/munge.{ending}" for option, ending in names.items()]

    def _daemon(self, *command: str) -> subprocess.Popen:
        with (self.folder / f"{command[0]}.out").open("a") as output:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],  # a pytest that is killed takes its daemons along
                env=self.clean_environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is pytest's
            )

    def _ready(self, timeout: float) -> bool:
        end = time.monotonic() + timeout
        while time.monotonic() < end and all(daemon.poll() is None for daemon in self._daemons):
            states = self.run(["sinfo", "--noheader", "--Node", "--format=%T"], check=False).stdout.split()
            if states == ["idle"] * len(NODES):
                return True
            time.sleep(0.1)
        return False

    def _end_daemons(self) -> None:
        for _ in range(50):
            if not (processes := self._processes()):
                break
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=0.1)
        for daemon in self._daemons:
            daemon.wait(10)
        self._daemons = []

    def _processes(self) -> list[psutil.Process]:
        """The daemons, the jobs and what these have started; told from everybody else's by environment and folder.

        A slurmstepd outlives its daemon, belongs to no parent, and has overwritten its environment with its title.
        """
        mark, mine = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode(), {}
        tests = {process.pid for process in [psutil.Process(), *psutil.Process().parents()]}
        for process in psutil.process_iter():
            try:
                environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                if process.pid not in tests and (mark in environment or process.cwd().startswith(str(self.folder))):
                    mine |= {each.pid: each for each in [process, *process.children(recursive=True)]}
            except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):  # ended meanwhile
                continue
        return [process for process in mine.values() if _alive(process)]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    if lacking := [command for command in COMMANDS if shutil.which(command) is None]:
        return f"no {', '.join(lacking)}: bash tests/cluster/install_slurm.sh installs SLURM"
    if os.geteuid() != 0:
        return "a SLURM of its own needs root"
    return None


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens at."""
    ports: list[int] = []
    # Not the tests' seeded generator: clusters that are started side by side must draw differently.
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == number:
            return ports
    raise SlurmError(f"not {number} free ports from {PORTS.start} to {PORTS.stop}")


def _make_devices(folder: Path, number: int) -> bool:
    """Make the device files of pretend GPUs (each another /dev/null); False where that is not allowed."""
    try:
        for index in range(number):
            os.mknod(folder / f"gpu{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        return False
    return True


def _tail(path: Path, lines: int) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"({error.strerror})"


def main() -> None:
    """Start a cluster to try sweeps on, until Ctrl-C."""
    if reason := missing():
        raise SystemExit(reason)
    cluster = Slurm(Path(tempfile.mkdtemp(prefix="slurm")))
    try:
        cluster.start()
        print(f"two nodes are up; use them with: export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in the background
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
