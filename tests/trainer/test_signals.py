"""Signals: the first one asks, a second one ends the process at once, an echo of the first does not count."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from toy import toy_trainer

from jepa.utils.signals import SIGNALS, StopRequest


def in_fork(function):
    """Run a function in a fork; gives its process id and a pipe that reads what the function writes."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            function(lambda: os.write(writing, b"."))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    return pid, reading


def code_of(pid, timeout=20):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("did not end")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.faults
def test_the_first_signal_asks(number):
    handlers = {n: signal.getsignal(n) for n in SIGNALS}
    threads = threading.active_count()
    with StopRequest() as stop:
        assert stop.number is None
        os.kill(os.getpid(), number)
        while stop.number is None:
            time.sleep(0.001)
        assert stop.number == number
    assert {n: signal.getsignal(n) for n in SIGNALS} == handlers
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


def test_elsewhere_than_in_the_main_thread():
    def work():
        with StopRequest() as stop:
            results.append(stop.number)

    results = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [None]


@pytest.mark.parametrize(("first", "second"), [(2, 2), (15, 2), (signal.SIGUSR1, 15), (2, signal.SIGUSR2)])
@pytest.mark.faults
def test_a_second_signal_ends_a_step_that_hangs(tmp_path, first, second):
    """As it does where another rank never comes."""

    def run(say):
        trainer = toy_trainer(tmp_path, save_every_steps=1)
        forward_backward = trainer.forward_backward

        def hang(batch):
            if trainer.step == 2:
                say()
                lock = threading.Lock()
                lock.acquire()
                lock.acquire()
            return forward_backward(batch)

        trainer.forward_backward = hang
        trainer.fit()

    pid, reading = in_fork(run)
    assert os.read(reading, 1) == b"."
    os.kill(pid, first)
    time.sleep(0.1)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, second)
    assert code_of(pid) == 128 + second
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]


@pytest.mark.faults
def test_the_echo_of_a_launcher_is_no_second_signal(monkeypatch):
    def run(say):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
        monkeypatch.setattr("jepa.utils.signals.ECHO_SECONDS", 0.3)
        with StopRequest() as stop:
            say()
            while stop.number is None:
                time.sleep(0.001)
            time.sleep(20)

    pid, reading = in_fork(run)
    assert os.read(reading, 1) == b"."
    os.kill(pid, signal.SIGINT)
    time.sleep(0.05)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.4)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGTERM)
    assert code_of(pid) == 128 + signal.SIGTERM
