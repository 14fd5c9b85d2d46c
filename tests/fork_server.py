"""Runs train.py in forks of one process that has everything imported: a run then takes its own time alone.

Started by the `start` fixture of conftest.py. In come JSON lines of {"argv", "cwd", "environment", "output"},
out go {"pid": ...} when a run has started and {"pid": ..., "code": ...} when it has ended.
"""

from __future__ import annotations

import faulthandler
import json
import os
import runpy
import selectors
import signal
import sys
import traceback
from pathlib import Path

import sklearn.tree  # noqa: F401
import timm  # noqa: F401
import torch._dynamo
import torch.distributed.checkpoint
import torch.utils.tensorboard  # noqa: F401
from hydra import main  # noqa: F401

import jepa.config.build
import jepa.config.job
import jepa.data.sources
import jepa.evaluation

HANGS_SECONDS = 280
TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def run(request: dict) -> int:
    """train.py, or another script of the repository, with these arguments, in this process; gives its exit code."""
    script = str(TRAIN.parent / request.get("script", TRAIN.name))
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    sys.path[:0] = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = [script, *request["argv"]]
    if "REPORT" not in request["environment"]:  # a page takes longer than most runs of tests
        jepa.config.job.write_report = lambda folder, device: None
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def start(request: dict) -> int:
    """Fork a run whose output goes to <output>.out and <output>.err; gives its process id."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((0, "/dev/null"), (1, request["output"] + ".out"), (2, request["output"] + ".err")):
        target = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, number)
    faulthandler.dump_traceback_later(HANGS_SECONDS)  # to stderr, which the test shows
    code = run(request)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer until the input ends."""

    def say(**message: int) -> None:
        os.write(1, (json.dumps(message) + "\n").encode())

    wake_in, wake_out = os.pipe()
    os.set_blocking(wake_out, False)
    signal.signal(signal.SIGCHLD, lambda *_: os.write(wake_out, b"."))
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(wake_in, selectors.EVENT_READ)
        rest = b""
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if wake_in in ready:
                os.read(wake_in, 1024)
                while True:
                    try:
                        pid, status = os.waitpid(-1, os.WNOHANG)
                    except ChildProcessError:
                        break
                    if not pid:
                        break
                    say(pid=pid, code=os.waitstatus_to_exitcode(status))
            if 0 in ready:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    say(pid=start(json.loads(line)))


if __name__ == "__main__":
    serve()
