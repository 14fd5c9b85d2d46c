"""Fixtures that start train.py, or a script of checks, as two ranks in forks of one process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # rank_helpers.py, under any import mode


class Ranks:
    """The runs of all ranks under way."""

    def __init__(self, runs: list) -> None:
        self.runs = runs

    def wait(self, timeout: float = 300) -> list[subprocess.CompletedProcess]:
        """The finished processes, by rank; kills the others when one does not end in time."""
        end = time.monotonic() + timeout
        try:
            return [run.wait(max(0.1, end - time.monotonic())) for run in self.runs]
        except TimeoutError:
            for run in self.runs:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(run.pid, signal.SIGKILL)
            raise

    def succeed(self, timeout: float = 300) -> list[subprocess.CompletedProcess]:
        """The finished processes, by rank, none of which has failed."""
        processes = self.wait(timeout)
        assert {process.returncode for process in processes} == {0}, [process.stderr for process in processes]
        return processes

    def signal(self, number: int, *ranks: int) -> None:
        """Send a signal to some ranks, or to all."""
        for rank in ranks or range(len(self.runs)):
            self.runs[rank].signal(number)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def torchrun_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in own.items()}


def slurm_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What srun sets, with a job's number that gives a port of its own."""
    own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": ranks, "SLURM_STEP_ID": 0}
    own |= {"SLURM_NTASKS": ranks, "SLURM_JOB_ID": port, "SLURM_STEP_NODELIST": "127.0.0.1"}
    return {name: str(value) for name, value in own.items()}


@pytest.fixture(scope="session")
def begin_ranks(fork_server) -> Callable[..., Ranks]:
    """Start train.py, or another script of the repository, as several ranks in a folder; gives them under way."""

    def begin(
        *arguments: str, folder: Path, ranks: int = 2, slurm: bool = False, script: str = "train.py", **own: str
    ) -> Ranks:
        port, variables = free_port(), slurm_variables if slurm else torchrun_variables
        scratch = folder / "scratch"  # for what a rank writes to no run folder
        scratch.mkdir(exist_ok=True)
        own = {"PYTHONPATH": str(HERE), "TMPDIR": str(scratch), **own}
        environments = [{**variables(rank, ranks, port), **own} for rank in range(ranks)]
        return Ranks([fork_server.start(list(arguments), folder, each, script) for each in environments])

    return begin


@pytest.fixture
def start_ranks(tmp_path, begin_ranks) -> Callable[..., Ranks]:
    """Start several ranks in an empty folder (or `folder=`); gives them under way."""

    def begin(*arguments: str, folder: Path | None = None, **others) -> Ranks:
        return begin_ranks(*arguments, folder=folder or tmp_path, **others)

    return begin


@pytest.fixture
def train_ranks(start_ranks) -> Callable[..., list[subprocess.CompletedProcess]]:
    """Run several ranks in an empty folder (or `folder=`) to their end; gives the finished processes, by rank."""

    def run(*arguments: str, **others) -> list[subprocess.CompletedProcess]:
        return start_ranks(*arguments, **others).succeed()

    return run
