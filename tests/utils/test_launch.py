"""Which of how many processes this is."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import psutil
import pytest

from jepa.distributed.launch import SLURM_PORTS, Launch, first_node, read_launch, slurm_job_id
from jepa.utils.errors import UserError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "1234"}
BATCH = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
BATCH |= {"SLURM_JOB_NODELIST": "gpu[03-04]"}
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu[04,07]"}
STEP |= {"SLURM_PROCID": "2", "SLURM_LOCALID": "1"}


def test_one_process():
    assert read_launch({}) == Launch() == Launch(rank=0, world_size=1, local_rank=0, by=None)
    assert read_launch({"RANK": "0"}) == Launch()
    assert read_launch({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) == Launch()
    assert read_launch({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == Launch()


def test_torchrun():
    assert read_launch(TORCHRUN) == Launch(3, 4, 1, "head", 1234, "torchrun")
    assert read_launch({**STEP, **TORCHRUN}) == Launch(3, 4, 1, "head", 1234, "torchrun")  # torchrun within srun


def test_a_step_of_slurm():
    launch = read_launch(STEP)
    assert (launch.rank, launch.world_size, launch.local_rank, launch.address) == (2, 4, 1, "gpu04")
    assert launch.by == "SLURM"
    assert launch.port in SLURM_PORTS
    others = [read_launch({**STEP, "SLURM_PROCID": str(rank)}) for rank in range(4)]
    assert {other.port for other in others} == {launch.port}
    assert read_launch({**STEP, "SLURM_JOB_ID": "78"}).port != launch.port
    assert read_launch({**STEP, "SLURM_STEP_ID": "1"}).port != launch.port
    given = read_launch({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"})
    assert (given.address, given.port) == ("10.0.0.1", 5)
    older = {name: value for name, value in STEP.items() if name != "SLURM_STEP_NUM_TASKS"}
    assert read_launch(older).world_size == 4


def test_a_batch_script_is_one_process():
    """It has the number of tasks, but runs once."""
    assert read_launch(BATCH) == Launch()
    assert read_launch({**BATCH, "MASTER_ADDR": "gpu03"}).world_size == 4  # processes that were started by hand


@pytest.mark.parametrize(
    ("task", "terminal", "world_size"),
    [
        ("shell", "/dev/pts/3", 1),  # python train.py in srun --pty bash
        ("gone", None, 1),  # the same in a container of its own
        ("self", "/dev/pts/3", 4),  # srun --pty python train.py
        ("self", None, 4),  # srun python train.py in that shell, which hands on its variables
        ("shell", None, 4),  # srun ./wrapper.sh in that shell
    ],
)
def test_a_shell_of_srun_is_one_process(monkeypatch, task, terminal, world_size):
    monkeypatch.setattr(psutil.Process, "terminal", lambda process: terminal)
    pids = {"shell": os.getppid(), "self": os.getpid(), "gone": 2**22 + 1}
    shell = {**STEP, "SLURM_PTY_PORT": "41234", "SLURM_TASK_PID": str(pids[task])}
    assert read_launch(shell).world_size == world_size
    assert read_launch({**shell, **TORCHRUN}).by == "torchrun"
    assert read_launch({**shell, "MASTER_ADDR": "gpu03"}).world_size == 4
    unnamed = {name: value for name, value in shell.items() if name != "SLURM_TASK_PID"}
    assert read_launch(unnamed) == Launch()


JOIN = """
import torch
from jepa.distributed import collectives
collectives.RENDEZVOUS_SECONDS, collectives.SAY_SECONDS = 2, 0.5
try:
    collectives.init_process_group(torch.device("cpu"))
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_what_is_waited_for_and_a_port_that_is_taken_are_said():
    """Of both launches with a store of ours; torchrun's is made by torchrun."""

    def join(**changes):
        environment = {**os.environ, **STEP, "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "127.0.0.1", **changes}
        python = [sys.executable, "-c", JOIN]
        return subprocess.run(python, env=environment, capture_output=True, text=True, timeout=120, check=True)

    waiting = join(SLURM_JOB_ID=str(os.getpid()))
    assert re.search(r"rank 0 waits at 127.0.0.1:\d+ for the other 3 of 4 processes, which SLURM", waiting.stderr)
    assert "UserError: rank 0 of 4 (SLURM) could not join the others" in waiting.stdout
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        port = str(taken.getsockname()[1])
        taken.listen()
        for by_hand in ({}, {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}):
            output = join(MASTER_PORT=port, **by_hand).stdout
            assert output.startswith(f"UserError: port {port} of 127.0.0.1"), output
            assert "set MASTER_PORT to a free one" in output


def test_a_local_job_of_submitit():
    """Also within a job of SLURM, whose variables it sees."""
    local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2"}
    local |= {"SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_JOB_ID": "4711"}
    launch = read_launch({**STEP, **local})
    assert (launch.rank, launch.world_size, launch.local_rank) == (1, 2, 1)
    assert (launch.by, launch.address) == ("submitit", "127.0.0.1")
    assert launch.port == read_launch({**local, "SUBMITIT_LOCAL_GLOBALID": "0"}).port
    assert launch.port != read_launch({**local, "SUBMITIT_LOCAL_JOB_ID": "4712"}).port
    assert slurm_job_id({**STEP, **local}) is None


def test_the_job_of_the_scheduler():
    assert slurm_job_id({}) is None
    assert slurm_job_id(STEP) == "77"
    assert slurm_job_id({**STEP, "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "7"}) == "70_7"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RANK": "4"}, "RANK=4 is not below WORLD_SIZE=4"),
        ({"RANK": "-1"}, "RANK=-1 is not below WORLD_SIZE=4"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE.*are no numbers.*four"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT are no numbers"),
    ],
)
def test_what_contradicts_itself(change, words):
    with pytest.raises(UserError, match=words):
        read_launch({**TORCHRUN, **change})
    with pytest.raises(UserError, match="SLURM_PROCID=9 is not below SLURM_STEP_NUM_TASKS=4"):
        read_launch({**STEP, "SLURM_PROCID": "9"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[03-05,9],login", "gpu03"),
        ("login,gpu[03-05]", "login"),
        ("a-b[1,2]", "a-b1"),
        ("rack[2-3]-gpu", "rack2-gpu"),
        ("node-1.cluster.org", "node-1.cluster.org"),
        ("rack[1-2]n[03-04]", "rack1n03"),
    ],
)
def test_node_lists(nodes, first):
    assert first_node(nodes) == first
