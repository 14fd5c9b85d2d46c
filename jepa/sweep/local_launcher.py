"""hydra/launcher=local: several runs of a sweep at a time on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from jepa.sweep.launcher import JobLauncher, check_poll_seconds
from jepa.sweep.local_jobs import FoundJob, SessionExecutor, gpus_of_slot, threads_per_process, visible_gpus
from jepa.sweep.sweep_run import SweepRun
from jepa.utils.errors import Interrupted
from jepa.utils.run_status import Status, is_alive, read_status, update_status

log = logging.getLogger(__name__)

SAVE_SECONDS = 60
"""How long an interrupted launcher waits for its runs to save."""


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
        for key, value in (("parallel", parallel), ("threads", threads)):
            if not (isinstance(value, int) and value >= 1) and not (key == "threads" and value is None):
                raise ValueError(f"hydra.launcher.{key}={value!r}: expected a whole number from 1")
        if isinstance(gpus, (int, str)):
            raise ValueError(f"hydra.launcher.gpus={gpus!r}: expected a list, as [0,1]")
        check_poll_seconds(poll_seconds)
        if nodes != 1:
            raise ValueError(f"trainer.nodes={nodes}: hydra/launcher=local has this machine alone")
        super().__init__(submitit_folder=submitit_folder, poll_seconds=poll_seconds, gpus=gpus)
        self.parallel, self.tasks, self.threads = parallel, tasks_per_node, threads

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self._slots: dict[int, SweepRun] = {}
        self._gpus: list[str] | None = None
        return super().launch(job_overrides, initial_job_idx)

    def _submit(self, runs: Sequence[SweepRun]) -> None:
        self._slots = {slot: run for slot, run in self._slots.items() if run.value is None}
        free = [slot for slot in range(self.parallel) if slot not in self._slots]
        if free and self._gpus is None:
            cpu = OmegaConf.select(self.config, "trainer.device") == "cpu"
            self._gpus = visible_gpus(self.params["gpus"], cpu)
        for slot, run in zip(free, runs):
            self._slots[slot] = run
            run.job = self._start(run, slot)

    def _start(self, run: SweepRun, slot: int) -> Any:
        for result in self._job_folder(run).glob("*_result.pkl"):  # named by process, whose numbers come again
            result.unlink()
        executor = SessionExecutor(
            self._job_folder(run),
            tasks=self.tasks,
            gpus=gpus_of_slot(self._gpus, slot, self.tasks),
            threads=threads_per_process(self.threads, self.parallel * self.tasks),
        )
        job = executor.submit(self, *self._job_arguments(run))
        if read_status(run.folder).state == "queued":
            update_status(run.folder, executor.process_status(job))
        return job

    def _find_job(self, status: Status, run: SweepRun) -> Any | None:
        if not is_alive(status):
            return None
        try:
            return FoundJob(self._job_folder(run), status, self.tasks)
        except (ProcessLookupError, psutil.NoSuchProcess):  # it has just ended
            return None

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

    def _after_save(self, stop: Interrupted, folder: Path) -> None:
        from jepa.distributed.collectives import destroy_process_group

        if stop.agreed:
            destroy_process_group()
