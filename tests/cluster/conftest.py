"""The SLURM that the tests of this folder submit to, and sweeps through it."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # slurm_cluster.py, under any import mode

from slurm_cluster import Slurm, missing  # noqa: E402

from jepa.utils.run_status import Status, read_status  # noqa: E402


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A cluster of two nodes on this machine, stopped at the end; skips where it cannot be started."""
    if reason := missing():
        pytest.skip(reason)
    cluster = Slurm(Path(tempfile.mkdtemp(prefix="slurm")))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def submit(slurm: Slurm, start: Callable, quick: list[str]) -> Callable:
    """Start a sweep of tiny runs by hydra/launcher=slurm in <tmp_path>/sweep; gives the launcher under way."""
    fixed = [*quick, "hydra/launcher=slurm", "hydra.launcher.poll_seconds=0.5", "hydra.sweep.dir=sweep"]
    variables = {**slurm.environment, "PYTHONPATH": f"{HERE.parent}:{HERE.parents[1]}"}

    def begin(*options: str, **others: str):
        return start("-m", *fixed, *options, **variables, **others)

    return begin


@pytest.fixture
def two_ranks(start: Callable, tmp_path: Path) -> Callable:
    """Train with two processes that nothing happens to; gives the run folder."""

    def run(*options: str) -> Path:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(sock.getsockname()[1])}
        ranks = [
            start(*options, "hydra.run.dir=let_be", RANK=str(rank), LOCAL_RANK=str(rank), **variables)
            for rank in (0, 1)
        ]
        for process in ranks:
            done = process.wait()
            assert done.returncode == 0, done.stderr
        return tmp_path / "let_be"

    return run


@pytest.fixture
def until(slurm: Slurm, tmp_path: Path) -> Callable:
    """Wait until a condition holds of the status of a run of the sweep; gives that status."""

    def wait(condition: Callable[[Status], bool], run: int = 0) -> Status:
        folder = tmp_path / "sweep" / str(run)

        def holds(condition: Callable[[Status], object]) -> bool:
            return (status := read_status(folder)) is not None and bool(condition(status))

        slurm.wait_until(lambda: holds(lambda status: status.job), None, f"no job was submitted for run {run}")
        job = read_status(folder).job
        slurm.wait_until(lambda: holds(condition), job, f"run {run} is not as it should be")
        return read_status(folder)

    return wait
