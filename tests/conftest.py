"""Fixtures for all tests: the shared data, and runs of train.py."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

TINY = (
    "data.batch_size=32",
    "data.image_size=8",
    "model.encoder.embed_dim=32",
    "model.encoder.depth=1",
    "model.predictor.embed_dim=32",
    "model.predictor.depth=1",
    "trainer.max_steps=6",
    "trainer.log_every=1",
    "trainer.validate_every_epochs=null",
    "trainer.save_every_epochs=null",
    "trainer.precision=fp32",
    "trainer.device=cpu",
)
"""Overrides that make the default run take seconds."""


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of test data beside the repository (or $JEPA_SHARED); skips without it."""
    folder = Path(os.environ.get("JEPA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no test data: {folder.name}/ is not beside the repository and JEPA_SHARED is not set")
    return folder


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The device of tests marked `gpu`: CUDA, or $JEPA_TEST_DEVICE, to run what can be run without; else skips."""
    if name := os.environ.get("JEPA_TEST_DEVICE"):
        return torch.device(name)
    if not torch.cuda.is_available():
        pytest.skip("no GPU: torch.cuda.is_available() is false")
    return torch.device("cuda", 0)


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    """Each of both devices; that of a GPU as `gpu`."""
    return torch.device("cpu") if request.param == "cpu" else request.getfixturevalue("gpu")


@pytest.fixture(scope="session")
def old_runs() -> Path:
    """Run folders as an earlier version wrote them (tests/fixtures/README.md)."""
    return ROOT / "tests" / "fixtures" / "old_runs"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and two busy processes on two cores lose a lot by them."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides that make the default run take seconds."""
    return list(TINY)


@pytest.fixture(scope="session")
def quick(tiny) -> list[str]:
    """A tiny run of the default job without evaluation and TensorBoard."""
    return [*tiny, "~logger.tensorboard", "evaluation=none"]


@pytest.fixture
def slowly() -> list[str]:
    """Options of a run whose first start takes a second for each step, with tests/ on PYTHONPATH."""
    return ["+callbacks.slow._target_=slow.Slow", "+callbacks.slow.seconds=1"]


class Run:
    """A run of train.py under way."""

    def __init__(self, server: ForkServer, pid: int, output: Path) -> None:
        self.pid = pid
        self._server, self._output = server, output

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """The finished process; `returncode` is minus the signal's number where one ended it."""
        try:
            code = self._server.code_of(self.pid, timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its stderr:\n{self._output.with_suffix('.err').read_text()}") from error
        out, err = (self._output.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        return subprocess.CompletedProcess(["train.py"], code, out, err)

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


class ForkServer:
    """Starts runs of train.py, each a fork of one process with everything imported (tests/fork_server.py)."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self._codes: dict[int, int] = {}
        self._started: list[int] = []

    def start(self, arguments: list[str], folder: Path, environment: dict[str, str], script: str = "train.py") -> Run:
        """Start a run in a folder."""
        output = folder / f".run{time.monotonic_ns()}"
        request = {"argv": arguments, "cwd": str(folder), "environment": environment, "output": str(output)}
        request["script"] = script
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        self._hear(until=lambda: self._started, timeout=300)
        return Run(self, self._started.pop(), output)

    def code_of(self, pid: int, timeout: float) -> int:
        """Exit code of a run, waited for."""
        try:
            self._hear(until=lambda: pid in self._codes, timeout=timeout)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise
        return self._codes[pid]

    def _hear(self, until: Callable[[], object], timeout: float) -> None:
        end = time.monotonic() + timeout
        while not until():
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no answer from train.py in {timeout} s")
            line = os.read(self._process.stdout.fileno(), 1 << 16).decode()
            assert line, "the fork server ended"
            for message in map(json.loads, line.splitlines()):
                if "code" in message:
                    self._codes[message["pid"]] = message["code"]
                else:
                    self._started.append(message["pid"])

    def close(self) -> None:
        """End it."""
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """One for all tests."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def start(tmp_path: Path, fork_server: ForkServer) -> Callable[..., Run]:
    """Start train.py as a user does, from an empty folder (or `folder=`); gives the run under way."""

    def begin(*arguments: str, folder: Path | None = None, **environment: str) -> Run:
        return fork_server.start(list(arguments), folder or tmp_path, environment)

    return begin


@pytest.fixture
def train(start: Callable[..., Run]) -> Callable[..., subprocess.CompletedProcess]:
    """Run train.py as a user does, from an empty folder (or `folder=`); gives the finished process."""

    def run(*arguments: str, timeout: float = 300, **others: str) -> subprocess.CompletedProcess:
        return start(*arguments, **others).wait(timeout)

    return run
