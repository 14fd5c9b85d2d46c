"""submitit jobs on this machine in sessions of their own, and each job's share of the cores and GPUs."""

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
"""submitit's module that starts the processes of a local job and passes signals on to them."""

TIMEOUT_MINUTES = 60 * 24 * 365
"""submitit's local jobs need a time limit."""


class SessionExecutor(LocalExecutor):
    """Start jobs in sessions of their own, so that Ctrl-C in a terminal reaches the launcher alone.

    tasks: processes of a job. gpus: their names. threads: of each process.
    """

    def __init__(self, folder: str | Path, *, tasks: int, gpus: Sequence[str], threads: int) -> None:
        super().__init__(folder)
        self.update_parameters(tasks_per_node=tasks, timeout_min=TIMEOUT_MINUTES)
        self.gpus, self.threads = list(gpus), threads

    def _submit_command(self, command: str) -> LocalJob:
        tasks = self._num_tasks()
        environment = {
            **os.environ,
            "SUBMITIT_LOCAL_NTASKS": str(tasks),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * TIMEOUT_MINUTES),
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
    def process_status(job: LocalJob) -> dict[str, Any]:
        """Return the fields of a run's status that name the process of its job."""
        created = psutil.Process(int(job.job_id)).create_time()
        return {"host": socket.gethostname(), "pid": int(job.job_id), "pid_created": created}


class SessionJob(LocalJob):
    """A local job that goes on without its launcher and can be asked to save and stop."""

    def __del__(self) -> None:
        """Do nothing; submitit's own cancels the job."""

    def stop(self) -> None:
        """Send SIGTERM to the controller, which passes it on to each process once; they save and stop."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(self.job_id), signal.SIGTERM)


class FoundJob(SessionJob):
    """A job of an earlier launcher, found by its run's status."""

    def __init__(self, folder: str | Path, status: Status, tasks: int) -> None:
        # submitit numbers a job by its controller, which leads the session. A run started by a person has none.
        leader = os.getpgid(status.pid)
        job = leader if CONTROLLER in psutil.Process(leader).cmdline() else status.pid
        super().__init__(folder, str(job), tasks=list(range(tasks)))
        self.status = status

    def get_info(self, mode: str = "force") -> dict[str, str]:
        """Return whether its process exists, in submitit's form."""
        return {"jobState": "RUNNING" if is_alive(self.status) else "NO PROCESS"}


def threads_per_process(threads: int | None, processes: int) -> int:
    """Return the threads of each process: as set, else OMP_NUM_THREADS, else an equal share of the cores."""
    if threads is not None:
        return threads
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(os.environ["OMP_NUM_THREADS"])
    return max(1, len(os.sched_getaffinity(0)) // processes)


def visible_gpus(gpus: Sequence[int] | None, cpu: bool) -> list[str]:
    """Return the names of the GPUs: as set, else those in CUDA_VISIBLE_DEVICES, else all; none on the CPU."""
    if gpus is not None or cpu:
        return [str(gpu) for gpu in gpus or ()]
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        return [name.strip() for name in names.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def gpus_of_slot(gpus: Sequence[str], slot: int, tasks: int) -> list[str]:
    """Return the GPUs of the run in a slot, one for each process; slots share GPUs in turn if there are too few."""
    return [gpus[(slot * tasks + task) % len(gpus)] for task in range(min(tasks, len(gpus)))]
