"""Which of how many processes this is."""

from __future__ import annotations

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
