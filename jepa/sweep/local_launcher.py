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
from jepa.sweep.planned import PlannedRun
from jepa.utils.errors import Interrupted
from jepa.utils.run_status import Status, is_alive, read_status, update_status

log = logging.getLogger(__name__)


class LocalLauncher(JobLauncher):
    """Runs of a sweep side by side on this machine, `parallel` at a time, each with its share of cores and GPUs.

    tasks_per_node: processes of a run. threads: of each process; null shares the cores out, unless OMP_NUM_THREADS is
    set. gpus: numbers of those to use; null is all that are visible, none where trainer.device=cpu. Each run gets its
    share; where there are fewer than runs at a time, they share them in turn.

    Raises ValueError for a number out of range.
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
        self._slots: dict[int, PlannedRun] = {}
        return super().launch(job_overrides, initial_job_idx)

    def _submit(self, runs: Sequence[PlannedRun]) -> None:
        from jepa.sweep.local import visible_gpus

        for slot, run in list(self._slots.items()):
            if run.value is not None:
                del self._slots[slot]
        free = [slot for slot in range(self.parallel) if slot not in self._slots]
        if free and not hasattr(self, "_gpus"):
            cpu = OmegaConf.select(self.config, "trainer.device") == "cpu"
            self._gpus = visible_gpus(self.params["gpus"], cpu)
        for slot, run in zip(free, runs):
            self._slots[slot] = run
            run.job = self._start(run, slot)

    def _start(self, run: PlannedRun, slot: int) -> Any:
        from jepa.sweep.local import SessionExecutor, share_of_gpus, share_of_threads

        for result in self._folder(run).glob("*_result.pkl"):  # numbers of processes come again
            result.unlink()
        threads = share_of_threads(self.threads, self.parallel * self.tasks)
        executor = SessionExecutor(
            self._folder(run),
            tasks=self.tasks,
            gpus=share_of_gpus(self._gpus, slot, self.tasks),
            threads=threads,
        )
        job = executor.submit(self, *self._arguments(run))
        if read_status(run.folder).state == "queued":
            update_status(run.folder, executor.signs_of_life(job))
        return job

    def _job_of(self, status: Status, run: PlannedRun) -> Any | None:
        if not is_alive(status):
            return None
        from jepa.sweep.local import FoundJob

        try:
            return FoundJob(self._folder(run), status, self.tasks)
        except (ProcessLookupError, psutil.NoSuchProcess):  # it has ended since
            return None

    def _folder(self, run: PlannedRun) -> Path:
        """Where submitit keeps what it has of a run."""
        return Path(self.params["submitit_folder"]) / str(run.number)

    def _living(self, runs: Sequence[PlannedRun]) -> set[int] | None:
        return {run.number for run in runs if self._lives(run)}

    def _lives(self, run: PlannedRun) -> bool:
        state = run.job.get_info()["jobState"]
        return state == "RUNNING" or (state != "FINISHED" and is_alive(read_status(run.folder)))

    def _how_it_ended(self, run: PlannedRun) -> str:
        return "its process has ended (killed? out of memory?)"

    def _interrupted(self, runs: Sequence[PlannedRun]) -> None:
        """Let the runs under way save and stop; a second interruption leaves them to it."""
        log.info("stopping the runs under way, which save first")
        for run in runs:
            if run.job is not None:
                run.job.stop()
        end = time.monotonic() + 60
        while any(run.job is not None and self._lives(run) for run in runs) and time.monotonic() < end:
            time.sleep(0.2)

    def _give_back(self, stop: Interrupted, folder: Path) -> None:
        from jepa.distributed.collectives import destroy_process_group

        if stop.agreed:
            destroy_process_group()
