"""hydra/launcher=slurm: the runs of a sweep as a SLURM job array, resumed when they are queued again."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import DictConfig

from jepa.distributed.launch import read_launch
from jepa.sweep.launcher import JobLauncher, SweepRun
from jepa.sweep.slurm_queue import end_of_job, queued_jobs
from jepa.utils.errors import Interrupted, UserError, check_choice
from jepa.utils.run_status import Status, read_status, update_status
from jepa.utils.signals import USER_SIGNALS

log = logging.getLogger(__name__)

SUBMITIT_KEYS = {field.name for field in dataclasses.fields(BaseQueueConf)}
"""Parameters that submitit has for every kind of executor; the others are SLURM's."""

OWN_KEYS = {"submitit_folder", "poll_seconds", "max_num_timeout", "image"}
OWN_KEYS |= {"container_runtime", "container_mounts", "container_python"}
"""Parameters that sbatch does not have."""


class SlurmLauncher(JobLauncher):
    """Run a sweep as one SLURM job array, each run on `nodes` machines with `tasks_per_node` processes.

    Parameters are sbatch's, and null leaves one out. Besides:

    gpus_per_node: 0 for none. timeout_min: for each run. mem_gb: for each machine. signal_delay_s: how long before its
    time limit a run is asked to save. max_num_timeout: how often it is then queued again; preemptions do not count.
    array_parallelism: runs at a time. setup: shell lines before each run. image: of a container, run by
    `container_runtime` ("pyxis", an srun plugin, or "apptainer") with `container_mounts` ("/data:/data") and the
    interpreter `container_python`. additional_parameters: of sbatch, by name. poll_seconds: between two looks at the
    queue.

    Raise ValueError for another container runtime.
    """

    _EXECUTOR = "slurm"

    def __init__(
        self,
        *,
        submitit_folder: str,
        poll_seconds: float,
        timeout_min: int,
        signal_delay_s: int,
        max_num_timeout: int,
        array_parallelism: int,
        name: str,
        nodes: int,
        tasks_per_node: int,
        gpus_per_node: int | None = None,
        gpus_per_task: int | None = None,
        cpus_per_task: int | None = None,
        cpus_per_gpu: int | None = None,
        mem_gb: float | None = None,
        mem_per_cpu: str | None = None,
        mem_per_gpu: str | None = None,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        nodelist: str | None = None,
        exclude: str | None = None,
        gres: str | None = None,
        comment: str | None = None,
        setup: Sequence[str] = (),
        srun_args: Sequence[str] = (),
        stderr_to_stdout: bool = False,
        image: str | None = None,
        container_runtime: str = "pyxis",
        container_mounts: Sequence[str] = (),
        container_python: str = "python",
        additional_parameters: DictConfig | None = None,
    ) -> None:
        settings = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__(**settings)
        check_choice("hydra.launcher.container_runtime", container_runtime, ("pyxis", "apptainer"))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self._queue: dict[str, str] | None = None
        return super().launch(job_overrides, initial_job_idx)

    def _executor(self) -> Any:
        python, arguments = container_command(self.params)
        settings = {key: value for key, value in self.params.items() if key not in OWN_KEYS}
        settings["gpus_per_node"] = settings["gpus_per_node"] or None
        settings["srun_args"] = [*(settings["srun_args"] or ()), *arguments]
        settings = {key: value for key, value in settings.items() if value not in (None, [], {})}
        try:
            executor = submitit.AutoExecutor(
                folder=self.params["submitit_folder"],
                cluster="slurm",
                slurm_max_num_timeout=self.params["max_num_timeout"],
                slurm_python=python,
            )
        except RuntimeError as error:
            raise UserError(f"hydra/launcher=slurm: {error} (srun is not on PATH)") from error
        executor.update_parameters(
            **{key if key in SUBMITIT_KEYS else f"slurm_{key}": value for key, value in settings.items()}
        )
        return executor

    def _submit(self, runs: Sequence[SweepRun]) -> None:
        executor = self._executor()
        try:
            if len(runs) == 1:  # submitit has no arrays of one job
                jobs = [executor.submit(self, *self._job_arguments(runs[0]))]
            else:
                jobs = executor.map_array(self, *zip(*map(self._job_arguments, runs)))
        except (subprocess.CalledProcessError, OSError, RuntimeError) as error:
            reason = getattr(error, "stderr", None) or getattr(error, "output", None) or str(error)
            reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
            raise UserError(f"hydra/launcher=slurm: sbatch refused the jobs: {reason.strip()}") from error
        for run, job in zip(runs, jobs):
            run.job = job
            status = read_status(run.folder)
            if status is not None and status.state == "queued":
                update_status(run.folder, {"job": job.job_id})
        first, last = jobs[0].job_id, jobs[-1].job_id
        log.info(f"submitted {len(jobs)} as {first if first == last else f'{first} to {last}'}")

    def _find_job(self, status: Status, run: SweepRun) -> Any | None:
        if status.job is None:
            return None
        if self._queue is None:
            self._queue = queued_jobs()
        if self._queue is None:
            raise UserError("hydra/launcher=slurm: squeue does not answer, so it cannot be told which runs still wait")
        if status.job not in self._queue:
            return None
        count = self.params["nodes"] * self.params["tasks_per_node"]
        return submitit.SlurmJob(self.params["submitit_folder"], status.job, list(range(count)))

    def _active(self, runs: Sequence[SweepRun]) -> set[int] | None:
        queue = queued_jobs()
        return None if queue is None else {run.number for run in runs if run.job.job_id in queue}

    def _end_of_job(self, run: SweepRun) -> str:
        return end_of_job(run.job.job_id)

    def _on_interrupt(self, runs: Sequence[SweepRun]) -> None:
        jobs = sorted({run.job.job_id.partition("_")[0] for run in runs if run.job is not None})
        if jobs:
            log.info(
                f"the jobs stay in the queue; wait for them again with `python train.py -m "
                f"resume={self.config.hydra.sweep.dir}`, end them with `scancel {' '.join(jobs)}`"
            )

    def _after_save(self, stop: Interrupted, folder: Path) -> None:
        """Requeue the job, on rank 0, if the signal announced its time limit.

        After a plain SIGTERM SLURM itself requeues the job (preemption, `scontrol requeue`) or ends it (`scancel`).
        """
        if read_launch().rank > 0:
            raise SystemExit(0)
        if stop.signal_number not in USER_SIGNALS:
            return
        update_status(folder, {"state": "preempted"})
        requeue = signal.getsignal(submitit.JobEnvironment()._usr_sig())
        try:
            requeue(stop.signal_number, None)  # submitit's handler: notes the count, calls scontrol, raises SystemExit
        except submitit.core.utils.UncompletedJobError as error:
            limit = self.params["max_num_timeout"]
            reason = f"ran into its time limit more than hydra.launcher.max_num_timeout={limit} times"
            update_status(folder, {"state": "stopped", "reason": reason})
            raise error


def container_command(params: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """Return the command that starts Python in a container and further arguments of srun; (None, []) without one."""
    image = params["image"]
    if image is None:
        return None, []
    mounts, python = list(params["container_mounts"]), params["container_python"]
    if params["container_runtime"] == "apptainer":
        binds = [part for mount in mounts for part in ("--bind", mount)]
        return shlex.join(["apptainer", "exec", "--nv", *binds, "--pwd", os.getcwd(), image, python]), []
    arguments = [f"--container-image={image}", f"--container-workdir={os.getcwd()}"]
    return python, arguments + ([f"--container-mounts={','.join(mounts)}"] if mounts else [])
