"""Other systems than Linux: what only POSIX has is not needed to import, and devices are chosen by what torch has."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from jepa.trainer import precision

WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, sys
import torch, torch.distributed.checkpoint, torch.utils.data, hydra, submitit, psutil
import hydra_plugins.hydra_submitit_launcher.config

for name in "fcntl resource pwd grp termios tty pty".split():
    sys.modules[name] = None
for name in "SIGUSR1 SIGUSR2 SIGKILL SIGSTOP SIGHUP SIGCHLD pthread_sigmask SIG_BLOCK SIG_SETMASK".split():
    delattr(signal, name)
for name in "statvfs fork getuid geteuid getpgid killpg setsid sched_getaffinity set_blocking".split():
    delattr(os, name)
import jepa
names = [module.name for module in pkgutil.walk_packages(jepa.__path__, "jepa.")]
for name in names:
    importlib.import_module(name)
from jepa.config.command import load_config
from jepa.data.stream import BadSamples, Request, load
from jepa.utils.signals import SIGNALS, USER_SIGNALS

requests, settings = [Request([0], [0])], {"num_workers": 0, "prefetch_factor": 2, "pin_memory": False}
list(load(lambda request: {"x": torch.zeros(1)}, requests, bad=BadSamples(total=1, max_share=0), **settings))
print(len(names) > 100, load_config(["trainer.seed=3"]).trainer.seed, [int(number) for number in SIGNALS], USER_SIGNALS)
"""


def test_it_imports_without_what_windows_lacks():
    python = [sys.executable, "-c", WITHOUT_POSIX]
    process = subprocess.run(python, capture_output=True, text=True, timeout=300, check=False)
    assert process.stdout == "True 3 [2, 15] ()\n", process.stderr[-2000:]


@pytest.mark.parametrize(
    ("cuda", "mps", "ranks", "expected"),
    [
        (False, True, False, "mps"),
        (False, False, False, "cpu"),
        (False, True, True, "cpu"),
        (True, True, False, "cuda"),
    ],
)
def test_auto_takes_the_device_that_torch_has(monkeypatch, cuda, mps, ranks, expected):
    """By stand-ins for the devices, so no more than the choice is tested; several processes have no MPS."""
    made = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda size, device: made.append(device))
    monkeypatch.delenv("RANK", raising=False)
    if ranks:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
    device = precision.resolve_device("auto")
    assert device.type == expected
    assert made == [device]


def test_mps_computes_in_fp32_unless_told_otherwise():
    device = torch.device("mps")
    assert precision.resolve_precision("auto", device) == "fp32"
    made = precision.Precision("auto", device)
    assert made.dtype == torch.float32
    assert not made.scaler.is_enabled()
    with made.autocast():
        assert not torch.is_autocast_enabled("mps")
