"""hydra/launcher=local: several runs of a sweep at a time on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from omegaconf import OmegaConf
from submitit.local.local import LocalExecutor, LocalJob

from jepa.sweep.launcher import JobLauncher, SweepRun
from jepa.utils.run_status import Status, is_alive, read_status, update_status

log = logging.getLogger(__name__)

SAVE_SECONDS = 60  # how long an interrupted launcher waits for its runs to save
CONTROLLER = "submitit.local._local"  # starts the processes of a local job and passes signals on to them
TIMEOUT_MINUTES = 60 * 24 * 365  # submitit's local jobs need a time limit


class LocalLauncher(JobLauncher):
    """Run `parallel` runs of a sweep at a time on this machine, each with its share of the cores and GPUs.

    tasks_per_node: processes of a run. threads: of each process; null shares the cores out, unless OMP_NUM_THREADS is
    set. gpus: numbers of the GPUs to use; null for all that are visible, none if trainer.device=cpu. If there are
    fewer GPUs than processes, runs share them in turn.

    Raise ValueError for a number out of range.
    """

    _EXECUTOR = "local"

    def __init__(
        self,
        *,
        submitit_folder: str,
        poll_seconds: float,
        parallel: int,
        tasks_per_node: int,
        nodes: int,
        threads: int | None = None,
        gpus: Sequence[int] | None = None,
    ) -> None:
        for key, value in (("parallel", parallel), ("threads", 1 if threads is None else threads)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"hydra.launcher.{key}={value!r}: expected a whole number from 1")
        if isinstance(gpus, (int, str)):
            raise ValueError(f"hydra.launcher.gpus={gpus!r}: expected a list, as [0,1]")
        if nodes != 1:
            raise ValueError(f"trainer.nodes={nodes}: hydra/launcher=local has this machine alone")
        super().__init__(submitit_folder=submitit_folder, poll_seconds=poll_seconds, gpus=gpus)
        self.parallel, self.tasks, self.threads = parallel, tasks_per_node, threads
        self._slots: dict[int, SweepRun] = {}
        self._gpus: list[str] | None = None

    def _submit(self, runs: Sequence[SweepRun]) -> None:
        self._slots = {slot: run for slot, run in self._slots.items() if run.value is None}
        free = [slot for slot in range(self.parallel) if slot not in self._slots]
        if free and self._gpus is None:
            cpu = OmegaConf.select(self.config, "trainer.device") == "cpu"
            self._gpus = visible_gpus(self.params["gpus"], cpu)
        threads = threads_per_process(self.threads, self.parallel * self.tasks)
        for slot, run in zip(free, runs):
            self._slots[slot] = run
            folder, gpus = self._job_folder(run), gpus_of_slot(self._gpus, slot, self.tasks)
            for result in folder.glob("*_result.pkl"):  # named by process, whose numbers come again
                result.unlink()
            executor = SessionExecutor(folder, tasks=self.tasks, gpus=gpus, threads=threads)
            run.job = executor.submit(self, *self._job_arguments(run))
            status, pid = read_status(run.folder), int(run.job.job_id)
            if status is not None and status.state == "queued":
                created = psutil.Process(pid).create_time()
                update_status(run.folder, {"host": socket.gethostname(), "pid": pid, "pid_created": created})

    def _find_job(self, status: Status, run: SweepRun) -> Any | None:
        return find_job(self._job_folder(run), status, self.tasks) if is_alive(status) else None

    def _job_folder(self, run: SweepRun) -> Path:
        return Path(self.params["submitit_folder"]) / str(run.number)

    def _active(self, runs: Sequence[SweepRun]) -> set[int] | None:
        return {run.number for run in runs if self._is_active(run)}

    def _is_active(self, run: SweepRun) -> bool:
        state = run.job.get_info()["jobState"]
        return state == "RUNNING" or (state != "FINISHED" and is_alive(read_status(run.folder)))

    def _end_of_job(self, run: SweepRun) -> str:
        return "its process has ended (killed? out of memory?)"

    def _on_interrupt(self, runs: Sequence[SweepRun]) -> None:
        """Ask the runs to save and stop, and wait for them; a second Ctrl-C ends the launcher at once."""
        log.info("stopping the runs under way, which save first")
        runs = [run for run in runs if run.job is not None]
        for run in runs:
            run.job.stop()
        end = time.monotonic() + SAVE_SECONDS
        while any(map(self._is_active, runs)) and time.monotonic() < end:
            time.sleep(0.2)


class SessionExecutor(LocalExecutor):
    """Start jobs in sessions of their own, so that Ctrl-C in a terminal reaches the launcher alone.

    tasks: processes of a job. gpus: their names. threads: of each process.
    """

    def __init__(self, folder: str | Path, *, tasks: int, gpus: Sequence[str], threads: int) -> None:
        super().__init__(folder)
        self.update_parameters(tasks_per_node=tasks, timeout_min=TIMEOUT_MINUTES)
        self.tasks, self.gpus, self.threads = tasks, list(gpus), threads

    def _submit_command(self, command: str) -> LocalJob:
        environment = {
            **os.environ,
            "SUBMITIT_LOCAL_NTASKS": str(self.tasks),
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
        return SessionJob(self.folder, str(process.pid), tasks=list(range(self.tasks)), process=process)


class SessionJob(LocalJob):
    """A local job that goes on without its launcher and can be asked to save and stop."""

    def __del__(self) -> None:
        """Do nothing; submitit's own cancels the job."""

    def stop(self) -> None:
        """Send SIGTERM to the controller, which passes it on to each process once; they save and stop."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(self.job_id), signal.SIGTERM)


def find_job(folder: str | Path, status: Status, tasks: int) -> SessionJob | None:
    """Return the job of an earlier launcher by its run's status; None if it has ended."""
    try:
        # submitit numbers a job by its controller, which leads the session. A run started by a person has none.
        leader = os.getpgid(status.pid)
        number = leader if CONTROLLER in psutil.Process(leader).cmdline() else status.pid
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None
    return SessionJob(folder, str(number), tasks=list(range(tasks)))


def threads_per_process(threads: int | None, processes: int) -> int:
    """Return the threads of each process: as set, else OMP_NUM_THREADS, else an equal share of the cores."""
    common = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
    return threads or (int(common) if common.isdigit() else max(1, cores // processes))


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
