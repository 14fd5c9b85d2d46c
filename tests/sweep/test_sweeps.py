"""Sweeps as a user starts them, one run at a time or several: what is told, what goes on, what is refused."""

from __future__ import annotations

import csv
import pickle
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from jepa.config.job import check_folder, note_failure
from jepa.sweep.launcher import SweepRun, last_lines
from jepa.sweep.local_launcher import find_job, gpus_of_slot, threads_per_process, visible_gpus
from jepa.utils.errors import UserError
from jepa.utils.run_status import Status, is_alive, read_status, write_status

TESTS = Path(__file__).resolve().parents[1]
PYTHONPATH = f"{TESTS}:{TESTS.parent}"


@pytest.fixture
def options(tiny):
    """A tiny run with a validation at its end."""
    own = ["trainer.max_steps=4", "trainer.validate_every_steps=4", "optimized_metric=val/loss"]
    return [*tiny, "~logger.tensorboard", "evaluation=none", *own]


@pytest.fixture
def sweep(start, options):
    """Start a sweep in <tmp_path>/sweep; gives it under way."""

    def begin(*others, **environment):
        return start("-m", *options, "hydra.sweep.dir=sweep", *others, PYTHONPATH=PYTHONPATH, **environment)

    return begin


@pytest.fixture
def until(tmp_path):
    """Wait until a condition holds of the status of a run of the sweep; gives that status."""

    def wait(condition, run=0, timeout=60):
        end = time.monotonic() + timeout
        while (status := read_status(tmp_path / "sweep" / str(run))) is None or not condition(status):
            assert time.monotonic() < end, status
            time.sleep(0.05)
        return status

    return wait


def statuses(tmp_path, count):
    return [read_status(tmp_path / "sweep" / str(run)) for run in range(count)]


@pytest.mark.slow
@pytest.mark.faults
def test_failed_and_diverged_runs_end_no_sweep_and_what_is_done_is_not_repeated(sweep, start, tmp_path):
    rates = "optimizer.lr=1e-3,-1,1e30,2e-3"
    process = sweep(rates).wait()
    assert process.returncode == 1, process.stdout + process.stderr  # as one has failed
    found = statuses(tmp_path, 4)
    assert [status.state for status in found] == ["done", "failed", "failed", "done"]
    assert [status.verdict == "diverged" for status in found] == [False, False, True, False]
    assert [status.objective["val/loss"] == 1e9 for status in found] == [False, True, True, False]
    assert "Invalid learning rate" in found[1].reason
    assert found[1].reason in process.stderr
    assert "Traceback" not in process.stderr
    with (tmp_path / "sweep" / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["state"] for row in rows) == ["done", "done", "failed", "failed"]
    assert (tmp_path / "sweep" / "leaderboard.html").is_file()

    again = start("resume=sweep").wait()  # needs no other option
    assert again.returncode == 1, again.stderr
    assert again.stdout.count("done before, val/loss") == 2
    after = statuses(tmp_path, 4)
    assert [status.starts for status in after if status.state == "done"] == [1, 1]


@pytest.mark.slow
@pytest.mark.faults
def test_an_interrupted_sweep_goes_on(sweep, start, slowly, until, tmp_path):
    process = sweep("optimizer.lr=1e-3,2e-3", "trainer.seed=0", *slowly)
    until(lambda status: (status.step or 0) >= 1)
    process.signal(signal.SIGINT)
    stopped = process.wait()
    assert stopped.returncode == 130, stopped.stderr
    first = read_status(tmp_path / "sweep" / "0")
    assert (first.state, first.step) == ("stopped", first.step)
    assert read_status(tmp_path / "sweep" / "1") is None
    again = start("resume=sweep", PYTHONPATH=PYTHONPATH).wait()
    assert again.returncode == 0, again.stderr
    assert [(status.state, status.starts, status.step) for status in statuses(tmp_path, 2)] == [
        ("done", 2, 4),
        ("done", 1, 4),
    ]
    assert f"at step {first.step} of 4" in again.stdout


@pytest.mark.slow
def test_a_folder_of_other_runs_is_refused(sweep, start, tmp_path):
    assert sweep("optimizer.lr=1e-3", "trainer.seed=0").wait().returncode == 0
    other = sweep("optimizer.lr=5e-3", "trainer.seed=0", "resume=auto").wait()
    assert other.returncode == 1
    assert "0 holds a run with optimizer.lr=0.001 where this sweep has optimizer.lr=0.005" in other.stderr
    assert read_status(tmp_path / "sweep" / "0").starts == 1
    resumed = start("resume=sweep").wait()  # still with its own options
    assert resumed.returncode == 0, resumed.stderr
    assert "done before" in resumed.stdout
    longer = start("resume=sweep", "trainer.max_steps=6").wait()
    assert longer.returncode == 0, longer.stderr
    assert read_status(tmp_path / "sweep" / "0").step == 6  # and not what it was at step 4
    unknown = sweep(
        "optimizer.lr=1e-3", "trainer.seed=0", "trainer.max_steps=6", "optimized_metric=val/los", "resume=auto"
    ).wait()
    assert unknown.returncode == 1
    assert "optimized_metric=val/los was not among the metrics of the run: did you mean val/loss?" in unknown.stderr


@pytest.mark.slow
@pytest.mark.faults
def test_a_study_that_is_killed_goes_on(sweep, slowly, until, tmp_path):
    study = ["sweep=optuna", "sweep.trials=3", *slowly]
    process = sweep(*study)
    until(lambda status: (status.step or 0) >= 1, run=1)
    process.signal(signal.SIGKILL)
    process.wait()
    again = sweep(*study).wait()
    assert again.returncode == 0, again.stderr
    assert "goes on: 1 of 3 trials done" in again.stdout
    found = statuses(tmp_path, 3)
    assert [(status.state, status.starts) for status in found] == [("done", 1), ("done", 2), ("done", 1)]
    trials = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/sweep/study.db").trials
    assert [trial.value for trial in trials] == [status.objective["val/loss"] for status in found]
    assert all(f"optimizer.lr={trial.params['optimizer.lr']}" in s.overrides for trial, s in zip(trials, found))


LOCAL = ["hydra/launcher=local", "hydra.launcher.poll_seconds=0.2"]


@pytest.mark.slow
@pytest.mark.faults
def test_runs_side_by_side_share_the_machine_and_survive_their_launcher(sweep, slowly, until, tmp_path):
    options = [*LOCAL, "hydra.launcher.parallel=2", "hydra.launcher.threads=1", "optimizer.lr=1e-3,2e-3,-1", *slowly]
    process = sweep(*options)
    for run in (0, 1):
        until(lambda status: (status.step or 0) >= 1, run=run)
    assert all(map(is_alive, statuses(tmp_path, 2)))  # two at a time
    assert read_status(tmp_path / "sweep" / "2").state == "queued"
    process.signal(signal.SIGKILL)
    process.wait()
    again = sweep(*options).wait()
    assert again.returncode == 1, again.stdout + again.stderr
    assert "3 runs in sweep: 1 to start, 2 under way already" in again.stdout
    assert "#2 failed: optimizer: Invalid learning rate: -1" in again.stdout
    assert [(s.state, s.starts) for s in statuses(tmp_path, 3)] == [("done", 1), ("done", 1), ("failed", 1)]


@pytest.mark.slow
@pytest.mark.faults
def test_an_interruption_lets_all_runs_save(sweep, slowly, until, tmp_path):
    options = [*LOCAL, "hydra.launcher.parallel=2", "optimizer.lr=1e-3,2e-3,3e-3", *slowly]
    process = sweep(*options)
    for run in (0, 1):
        until(lambda status: (status.step or 0) >= 1, run=run)
    process.signal(signal.SIGINT)
    stopped = process.wait()
    assert stopped.returncode == 130, stopped.stdout + stopped.stderr
    assert [status.state for status in statuses(tmp_path, 2)] == ["stopped", "stopped"]
    assert read_status(tmp_path / "sweep" / "2") is None  # as nobody waits for it
    assert "stopping the runs under way, which save first" in stopped.stdout
    again = sweep(*options).wait()
    assert again.returncode == 0, again.stdout + again.stderr
    assert [(s.state, s.starts, s.step) for s in statuses(tmp_path, 3)] == [("done", 2, 4)] * 2 + [("done", 1, 4)]


@pytest.mark.slow
@pytest.mark.faults
def test_an_interruption_while_a_job_is_starting(sweep, slowly, until, tmp_path):
    """Its processes import for seconds, and are not ready to save."""
    process = sweep(*LOCAL, "hydra.launcher.parallel=1", "trainer.max_steps=300", *slowly)
    until(lambda status: status.pid is not None)
    time.sleep(1)
    process.signal(signal.SIGINT)
    stopped = process.wait()
    assert stopped.returncode == 130, stopped.stdout + stopped.stderr
    status = read_status(tmp_path / "sweep" / "0")
    assert (status.state, status.step) == ("stopped", 1)


def test_a_run_that_a_person_has_started_is_told_itself(tmp_path):
    """Not the shell it was started from."""
    shell = ["bash", "-c", "sleep 60 & echo $!; wait"]
    script = subprocess.Popen(shell, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        pid = script.stdout.readline().strip()
        job = find_job(tmp_path, Status(state="running", pid=int(pid), host=socket.gethostname()), tasks=1)
        assert job.job_id == pid
        job.stop()
        assert script.wait(10) == 0  # as its child has ended
    finally:
        script.kill()


def test_gpus_and_cores_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f6d, MIG-1,2")
    gpus = visible_gpus(None, cpu=False)
    assert gpus == ["GPU-8f6d", "MIG-1", "2"]
    assert (visible_gpus([1, 3], cpu=False), visible_gpus(None, cpu=True)) == (["1", "3"], [])
    assert [gpus_of_slot(["0", "1", "2", "3"], slot, 2) for slot in (0, 1, 2)] == [["0", "1"], ["2", "3"], ["0", "1"]]
    assert [gpus_of_slot(["0", "1"], slot, 1) for slot in range(3)] == [["0"], ["1"], ["0"]]
    assert gpus_of_slot([], 0, 2) == []
    assert threads_per_process(3, 8) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_per_process(None, 8) == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert (threads_per_process(None, 4), threads_per_process(None, 32)) == (4, 1)


def test_a_queued_run_of_other_options_is_refused(tmp_path):
    """It would be waited for, and taken for what this sweep asks for."""
    write_status(tmp_path, Status(state="queued", overrides=["optimizer.lr=1e-3"], job="7"))
    with pytest.raises(UserError, match=r"holds a run with optimizer.lr=1e-3 where this sweep has optimizer.lr=5e-3"):
        check_folder(tmp_path, ["optimizer.lr=5e-3", "resume=auto", "trainer.max_steps=3"])
    assert check_folder(tmp_path, ["optimizer.lr='1e-3'"]).job == "7"


@pytest.mark.faults
def test_a_damaged_status_ends_no_sweep_but_its_folder_keeps_to_its_options(tmp_path):
    (tmp_path / "status.json").write_text("[" * 100_000)
    (tmp_path / "config.yaml").write_text("overrides: [optimizer.lr=1e-3]")
    assert check_folder(tmp_path, ["optimizer.lr=1e-3", "resume=auto"]) is None
    with pytest.raises(UserError, match=r"holds a run with optimizer.lr=1e-3"):
        check_folder(tmp_path, ["optimizer.lr=5e-3"])
    (tmp_path / "config.yaml").write_text("overrides: 5")
    assert check_folder(tmp_path, ["optimizer.lr=5e-3"]) is None
    note_failure(tmp_path, ["a=1"], UserError("its job left no result"), {"val/loss": 1e9})
    assert (read_status(tmp_path).state, read_status(tmp_path).overrides) == ("failed", ["a=1"])


@pytest.mark.faults
def test_the_files_of_a_job_may_be_damaged(tmp_path):
    (tmp_path / "log").write_bytes(b"x" * 2**20 + b"\n\x1b[2J\xff\nlast\n")
    assert last_lines(tmp_path / "log", 2) == ["\\x1b[2J\ufffd", "last"]
    assert last_lines(tmp_path) == last_lines(tmp_path / "none") == []
    for content in (b"", b"\x80", b"junk", pickle.dumps(5), pickle.dumps(("success", None))[:-4]):
        (tmp_path / "result.pkl").write_bytes(content)
        task = SimpleNamespace(paths=SimpleNamespace(result_pickle=tmp_path / "result.pkl", stderr="err"))
        objective = SimpleNamespace(failed=lambda: {"val/loss": 1e9})
        run = SweepRun(0, [], ["a=1"], tmp_path / "run", objective, job=SimpleNamespace(task={0: task}.get))
        run.read_result()
        assert (run.value, read_status(tmp_path / "run").state) == ({"val/loss": 1e9}, "failed")
        assert "result.pkl, is damaged" in read_status(tmp_path / "run").reason


def test_a_stopped_run_does_not_become_a_failed_one(tmp_path):
    write_status(tmp_path, Status(state="stopped", reason="by a signal", starts=1))
    note_failure(tmp_path, [], UserError("its job left no result"), {"val/loss": 1e9})
    assert read_status(tmp_path).reason == "by a signal"


@pytest.mark.slow
def test_two_processes_of_a_run_on_this_machine(sweep, tmp_path):
    process = sweep(*LOCAL, "hydra.launcher.parallel=1", "trainer=ddp", "trainer.devices=2").wait()
    assert process.returncode == 0, process.stdout + process.stderr
    assert read_status(tmp_path / "sweep" / "0").state == "done"
    logs = sorted((tmp_path / "sweep" / ".submitit" / "0").glob("*_log.out"))
    assert [log.read_text().count("2 ranks") for log in logs] == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["hydra/launcher=slurm", "trainer.devices=1,2"], "trainer.devices cannot be swept over (run 0 has 1"),
        (["hydra/launcher=slurm", "trainer.nodes=1,2"], "trainer.nodes cannot be swept over"),
        (["hydra/launcher=local", "trainer.nodes=2"], "trainer.nodes=2: hydra/launcher=local has this machine alone"),
        (["hydra/launcher=local", "hydra.launcher.parallel=0"], "parallel=0: expected a whole number from 1"),
        (["hydra/launcher=local", "hydra.launcher.threads=0"], "threads=0: expected a whole number from 1"),
        (["hydra/launcher=local", "hydra.launcher.gpus=0"], "gpus=0: expected a list"),
        (["hydra/launcher=local", "hydra.launcher.poll_seconds=abc"], "poll_seconds='abc': expected seconds"),
        (["hydra/launcher=slurm", "hydra.launcher.container_runtime=docker"], "expected one of pyxis, apptainer"),
        (["hydra/launcher=slurm", "hydra.launcher.partitoin=gpu"], "partitoin"),
        (["sweep.direction=up"], "sweep.direction=up: expected maximize, minimize"),
    ],
)
def test_what_cannot_be_swept(sweep, others, message, tmp_path):
    process = sweep(*others).wait()
    assert process.returncode == 1, process.stdout
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert read_status(tmp_path / "sweep" / "0") is None


def test_no_slurm_here(sweep, tmp_path):
    process = sweep("hydra/launcher=slurm", PATH=str(tmp_path)).wait()
    assert process.returncode == 1
    assert "hydra/launcher=slurm" in process.stderr
    assert "not on PATH" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("option", ["sweep=grid", "hydra/launcher=local"])
def test_a_sweep_without_its_flag(start, options, option):
    process = start(*options, option).wait()
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: {option} ")
    assert "python train.py -m" in process.stderr


def test_other_scripts_have_no_launchers_of_ours(fork_server, tmp_path):
    arguments = ["-m", "checkpoint=random", "hydra/launcher=local"]
    process = fork_server.start(arguments, tmp_path, {}, "scripts/evaluate.py").wait()
    assert process.returncode == 1
    assert "hydra/launcher=slurm and the sweeps of Optuna are for train.py alone" in process.stderr
    assert "Traceback" not in process.stderr


def test_processes_that_nobody_has_started(start, options):
    process = start(*options, "trainer.devices=2", "trainer.nodes=2").wait()
    assert process.returncode == 1
    assert "trainer.nodes=2 times trainer.devices=2 are 4 processes, but 1 was started" in process.stderr
