"""Jobs of submitit on this machine, in a session of their own, and how cores and GPUs are shared between them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from submitit.local.local import LocalExecutor, LocalJob

from jepa.utils.run_status import Status, is_alive

CONTROLLER = "submitit.local._local"
"""The module that starts the processes of a local job and passes signals on to them."""

LONG_MINUTES = 60 * 24 * 365
"""submitit's local jobs have a time limit; ours have none."""


class SessionExecutor(LocalExecutor):
    """Starts jobs in a session of their own: Ctrl-C in a terminal reaches the launcher alone, which tells them.

    tasks: processes of a job. gpus: those it may use. threads: of each process.
    """

    def __init__(self, folder: str | Path, *, tasks: int, gpus: Sequence[str], threads: int) -> None:
        super().__init__(folder)
        self.update_parameters(tasks_per_node=tasks, timeout_min=LONG_MINUTES)
        self.gpus, self.threads = list(gpus), threads

    def _submit_command(self, command: str) -> LocalJob:
        tasks = self._num_tasks()
        environment = {
            **os.environ,
            "SUBMITIT_LOCAL_NTASKS": str(tasks),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * LONG_MINUTES),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_EXECUTOR": "local",
            "CUDA_VISIBLE_DEVICES": ",".join(self.gpus),
            "OMP_NUM_THREADS": str(self.threads),
        }
        controller = [sys.executable, "-m", CONTROLLER, str(self.folder)]
        process = subprocess.Popen(controller, env=environment, start_new_session=True)
        return SessionJob(self.folder, str(process.pid), tasks=list(range(tasks)), process=process)

    @staticmethod
    def signs_of_life(job: LocalJob) -> dict[str, Any]:
        """What a run's status says of its job until it has started."""
        created = psutil.Process(int(job.job_id)).create_time()
        return {"host": socket.gethostname(), "pid": int(job.job_id), "pid_created": created}


class SessionJob(LocalJob):
    """A job that can be told to save and stop."""

    def __del__(self) -> None:
        """Nothing: the job goes on without its launcher, where submitit's own would be cancelled."""

    def stop(self) -> None:
        """Tell its processes to save and stop, by its controller, which passes the signal on to each once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(self.job_id), signal.SIGTERM)


class FoundJob(SessionJob):
    """A job of an earlier launcher, known by its run's status alone."""

    def __init__(self, folder: str | Path, status: Status, tasks: int) -> None:
        # The controller leads the session, and is what submitit numbers the job by. Whom a person has started has none.
        leader = os.getpgid(status.pid)
        job = leader if CONTROLLER in psutil.Process(leader).cmdline() else status.pid
        super().__init__(folder, str(job), tasks=list(range(tasks)))
        self.status = status

    def get_info(self, mode: str = "force") -> dict[str, str]:
        """Whether its process is there."""
        return {"jobState": "RUNNING" if is_alive(self.status) else "NO PROCESS"}


def share_of_threads(threads: int | None, processes: int) -> int:
    """Threads of each of so many processes: as given, else OMP_NUM_THREADS, else an equal share of the cores."""
    if threads is not None:
        return threads
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(os.environ["OMP_NUM_THREADS"])
    return max(1, len(os.sched_getaffinity(0)) // processes)


def visible_gpus(gpus: Sequence[int] | None, cpu: bool) -> list[str]:
    """Names of the GPUs to use: as given, else those in CUDA_VISIBLE_DEVICES, else all by number; none on the CPU."""
    if gpus is not None or cpu:
        return [str(gpu) for gpu in gpus or ()]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def share_of_gpus(gpus: Sequence[str], slot: int, tasks: int) -> list[str]:
    """The GPUs of the run in a slot, one for each of its processes; slots share them in turn where they are too few."""
    return [gpus[(slot * tasks + place) % len(gpus)] for place in range(min(tasks, len(gpus)))]
