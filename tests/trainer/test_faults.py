"""Faults of the machine: each is named in one sentence with the checkpoint that stands, or the run goes on."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from toy import Bomb, listing, toy_trainer

from jepa.checkpoint.load import read_file
from jepa.data.stream import BadSamples, Request, load
from jepa.trainer import JSONLines, Logger, Trainer
from jepa.trainer.settings import explaining_out_of_memory
from jepa.utils.errors import CheckpointError, Interrupted, UserError
from jepa.utils.run_status import read_status

pytestmark = pytest.mark.faults

SHARED = "unable to write to file </torch_12_34_0>: No space left on device (28)"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "x: No space left on device: make room"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: Read-only file system"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            r"pid 7\) was killed by signal: Kil.*mem",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), r"pid 7, 8\) exited .*data.num_workers"),
        (RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\n{SHARED}"), "no room in /dev/shm"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"), "no room in /dev/shm"),
    ],
    ids=["disk full", "read-only", "worker killed", "workers gone", "shared memory", "bus error"],
)
def test_what_the_system_refuses_is_named_with_the_checkpoint_that_stands(tmp_path, error, words):
    class Fails(Trainer):
        def training_step(self, batch, step):
            if step == 2:
                raise error
            return super().training_step(batch, step)

    with pytest.raises(UserError, match=words) as caught:
        toy_trainer(tmp_path, kind=Fails, save_every_steps=1).fit()
    assert str(caught.value).endswith(f"; {tmp_path}/checkpoints/last.pt stands: go on with resume={tmp_path}")
    assert "\n" not in str(caught.value)
    assert read_status(tmp_path).reason == str(caught.value)


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        ({}, r"set trainer\.micro_batch_size=6 .*find_batch_size\.py finds the largest\), trainer\.act.*=true or a sm"),
        ({"micro_batch_size": 1}, r"set trainer\.activation_checkpointing=true or a smaller model \(model\.encoder"),
    ],
)
def test_an_out_of_memory_step_names_what_takes_less(tmp_path, settings, ways):
    class Fails(Trainer):
        def training_step(self, batch, step):
            if step == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
            return super().training_step(batch, step)

    size = settings.get("micro_batch_size", 12)
    trainer = toy_trainer(tmp_path, kind=Fails, save_every_steps=1, **settings)
    with pytest.raises(UserError, match=rf"with micro-batches of {size} \(data\.batch_size=12\): {ways}") as caught:
        trainer.fit()
    message = str(caught.value)
    assert message.startswith("out of memory at step 3 on cpu")
    assert message.endswith(f"allocate 2.00 GiB.; {tmp_path}/checkpoints/last.pt stands: go on with resume={tmp_path}")
    trainer.model.loss.batch_statistics = True
    with pytest.raises(UserError, match=r"smaller data\.batch_size\. Torch says"), explaining_out_of_memory(trainer):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_any_other_error_is_a_bug(tmp_path):
    class Fails(Trainer):
        def training_step(self, batch, step):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        toy_trainer(tmp_path, kind=Fails).fit()


def make_batch(request):
    if request.indices == [4]:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"x": torch.zeros(2)}


def test_a_killed_worker_is_named(tmp_path):
    """By torch's own error, so that another wording of a later version is noticed."""

    class Reads(Trainer):
        def training_step(self, batch, step):
            requests = [Request([i], [i]) for i in range(6)]
            bad = BadSamples(total=6, max_share=0)
            list(load(make_batch, requests, bad=bad, num_workers=1, prefetch_factor=2, pin_memory=False))

    with pytest.raises(UserError, match=r"a process that reads data .*(was killed|exited).*data.num_workers"):
        toy_trainer(tmp_path, kind=Reads).fit()


READS = """
import torch
from jepa.data.stream import BadSamples, Request, load
requests = [Request([i], [i]) for i in range(20)]
bad = BadSamples(total=20, max_share=0)
try:
    list(load(lambda request: {"x": torch.zeros(300000)}, requests, bad=bad, num_workers=1, prefetch_factor=2,
              pin_memory=False))
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_no_room_in_shared_memory_is_named():
    """Where a file system of 1 MiB can be mounted there for one process; torch alone would wait forever."""
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    inside = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, READS]
    output = subprocess.run(inside, capture_output=True, text=True, timeout=120, check=True).stdout
    assert output.startswith("DataError: there is no room in /dev/shm")


# Files that cannot be written.


def test_metrics_that_cannot_be_written_are_kept_until_there_is_room(tmp_path, monkeypatch, caplog):
    full = {2, 3}

    class Full(JSONLines):
        def _write(self):
            if self.step in full:
                raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
            super()._write()

        def log(self, metrics, step):
            self.step = step
            super().log(metrics, step)

    toy_trainer(tmp_path, loggers=[Full()], max_steps=4).fit()
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]
    assert caplog.text.count("logger.0 cannot write: metrics.jsonl: No space left on device") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_full_disk(tmp_path, caplog):
    """By a device that is always full: metrics are not worth a run, a checkpoint is."""
    (tmp_path / "full").symlink_to("/dev/full")
    trainer = toy_trainer(tmp_path, loggers=[JSONLines(path="full")], save_every_steps=1)
    trainer.fit()
    assert trainer.step == 5
    assert caplog.text.count("cannot write") == 1
    (tmp_path / "checkpoints" / ".last.pt.writing").symlink_to("/dev/full")
    before = (tmp_path / "checkpoints/last.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"No space left on device \([\d,]+ MiB free\).*written before is intact"):
        toy_trainer(tmp_path, resume="auto", max_steps=9, save_every_steps=1).fit()
    assert (tmp_path / "checkpoints/last.pt").read_bytes() == before


def test_a_half_written_line_is_taken_back(tmp_path, monkeypatch):
    class Info:
        folder, step = tmp_path, 0

    logger = JSONLines()
    logger.open(Info())
    logger.log({"loss": 1.0}, 1)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    class Short(io.FileIO):
        def write(self, data):
            return super().write(data[:5])

    with monkeypatch.context() as patch:
        patch.setattr("jepa.trainer.loggers.open", lambda path, *_, **__: Short(path, "ab"), raising=False)
        with pytest.raises(OSError, match="No space left"):
            logger.log({"loss": 2.0}, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    logger.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_folder_that_is_deleted_is_made_anew(tmp_path, caplog):
    """What the run still has, its configuration, checkpoint and metrics from there on, is there to go on from."""

    class Deletes(Logger):
        def advance(self, step):
            if step == 3:
                shutil.rmtree(tmp_path / "run")

    loggers = [Deletes(), JSONLines()]
    config = {"trainer": {"seed": 3}}
    toy_trainer(tmp_path / "run", loggers=loggers, config=config, save_every_steps=1).fit()
    assert "was deleted while the run goes on" in caplog.text
    assert {"checkpoints", "config.yaml", "metrics.jsonl", "results.json", "status.json"} <= set(
        listing(tmp_path / "run")
    )
    status = read_status(tmp_path / "run")
    assert (status.state, status.pid, status.step) == ("done", os.getpid(), 5)
    again = toy_trainer(tmp_path / "run", resume="auto", max_steps=6)
    again.fit()
    assert again.step == 6


# A file that is hostile.


def test_a_hostile_file_is_called_that_without_advice_to_load_it(tmp_path):
    torch.save({"model": Bomb(tmp_path / "boom")}, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"x.pt was not read, as that would execute code: it holds \w+.mkdir"
    ) as caught:
        read_file(tmp_path / "x.pt")
    assert not re.search("weights_only|torch.load|trusted source", str(caught.value))
    assert caught.value.__suppress_context__
    (tmp_path / "y.pt").write_bytes(b"\x80\x04\x95\x00\x01garbage")
    with pytest.raises(CheckpointError, match="cannot read the checkpoint") as caught:
        read_file(tmp_path / "y.pt")
    assert "weights_only" not in str(caught.value)


# A signal during the final evaluation.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_final_evaluation(tmp_path, number):
    """Nothing of the training is lost: what goes on only evaluates."""

    class Evaluation:
        every_epochs = every_steps = online_every_epochs = online_every_steps = None
        at_end, signals = True, [number]

        def __call__(self, model, data, *, random_init, device, seed):
            if self.signals:
                os.kill(os.getpid(), self.signals.pop())
            return {"trained": {"knn": 0.5}}

        def table(self, results):
            return "table"

    evaluation = Evaluation()
    with pytest.raises(Interrupted, match=f"stopped while measuring at step 5 of 5.*resume={tmp_path}"):
        toy_trainer(tmp_path, evaluation=evaluation).fit()
    assert read_status(tmp_path).state == "stopped"
    trainer = toy_trainer(tmp_path, evaluation=evaluation, resume="auto")
    trainer.train_step = None
    assert trainer.fit()["eval/trained/knn"] == 0.5
    assert json.loads((tmp_path / "results.json").read_text())["trained"] == {"knn": 0.5}
