"""Putting checkpoints where they belong: plain, sharded, in the background, killed half-way."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import threading

import pytest
import torch
from toy import Bomb, ToyData, adam, assert_identical, disk_full, file_contents, listing, toy_trainer

from jepa.checkpoint import plain as checkpoint
from jepa.checkpoint import saver, sharded
from jepa.checkpoint.load import locate, read_file
from jepa.checkpoint.saver import Saver, copied, find_checkpoint
from jepa.config.compose import run_folder_of
from jepa.trainer import Logger
from jepa.utils.errors import CheckpointError, NonFiniteError

SETTINGS = {"max_steps": 8, "optimizer": adam, "validate_every_steps": 2, "save_every_steps": 3}
SETTINGS |= {"snapshot_every_steps": 4, "best_k": 2, "best_metric": "train/loss"}


def state(step=3, value=1.0):
    """A state with tensors on several levels."""
    whole = dict.fromkeys(checkpoint.KEYS) | {"step": step, "best": {"table": [(0.5, 2)]}}
    moments = {"step": torch.tensor(float(step)), "exp_avg": torch.full((3,), value)}
    return whole | {"model": {"w": torch.full((2, 3), value)}, "optimizer": {"state": {0: moments}}}


def value_of(path):
    """The number that stands in every tensor of such a state."""
    content = read_file(path)
    return content["model"]["w"][0, 0].item()


def contents(folder):
    """Name -> content of every checkpoint in a folder."""
    return {path.stem: read_file(path) for path in folder.iterdir() if path.suffix in saver.SUFFIXES.values()}


class Watch(Logger):
    """Knows whether it was closed."""

    closed = False

    def close(self):
        self.closed = True


def killed(function):
    """Run a function in a fork that must be killed before it returns."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The checkpoints of a run that saved plainly and at once."""
    folder = tmp_path_factory.mktemp("whole")
    toy_trainer(folder, **SETTINGS).fit()
    return contents(folder / "checkpoints")


@pytest.mark.parametrize("kind", ["plain", "sharded"])
@pytest.mark.parametrize("background", [False, True])
def test_formats_and_background_change_nothing(tmp_path, whole, kind, background):
    trainer = toy_trainer(tmp_path, checkpoint_format=kind, async_save=background, **SETTINGS)
    trainer.fit()
    folder = tmp_path / "checkpoints"
    assert_identical(contents(folder), whole)
    best = {f"best_{step:08d}" for _, step in trainer.checkpoints.best.table}
    assert whole.keys() == {"last", "step_00000004", "step_00000008", *best}
    if kind == "sharded":  # a folder for each step that a name stands for, and no other
        parts = {f"sharded_{content['step']:08d}" for content in whole.values()}
        assert {path.name.removesuffix("_again") for path in folder.glob("sharded_*")} == parts
        assert len(list(folder.glob("sharded_*"))) == len(parts)
    assert not list(folder.glob(".*"))
    again = toy_trainer(tmp_path, checkpoint_format=kind, **SETTINGS)
    again.load_checkpoint(tmp_path)
    assert_identical(again.optimizer.state_dict(), trainer.optimizer.state_dict())
    assert_identical(again.model.state_dict(), trainer.model.state_dict())
    assert again.metrics == trainer.metrics


@pytest.mark.parametrize("formats", [("plain", "sharded", "plain"), ("sharded", "plain", "sharded")])
def test_the_format_may_change_at_a_resume(tmp_path, whole, formats):
    """Whatever stands there is gone on from; what is displaced goes, whichever format it has."""
    for number, (kind, failed) in enumerate(zip(formats, (4, 7, None))):
        data = ToyData(poison=failed)
        trainer = toy_trainer(
            tmp_path, data=data, checkpoint_format=kind, resume="auto" if number else None, **SETTINGS
        )
        if failed is None:
            trainer.fit()
        else:
            with pytest.raises(NonFiniteError):
                trainer.fit()
        folder = tmp_path / "checkpoints"
        assert [path.name for path in folder.glob("last.*")] == [f"last{saver.SUFFIXES[kind]}"]
        assert find_checkpoint(folder) == folder / f"last{saver.SUFFIXES[kind]}"
    assert_identical(contents(folder), whole)


def test_a_plain_file_of_a_sharded_run(tmp_path):
    trainer = toy_trainer(tmp_path / "run", checkpoint_format="sharded", **SETTINGS)
    trainer.fit()
    trainer.save_checkpoint(tmp_path / "out.pt")
    assert_identical(checkpoint.read(tmp_path / "out.pt"), read_file(tmp_path / "run/checkpoints/last.sharded"))


def test_sharded_checkpoints_by_their_paths(tmp_path):
    """Like files: a run goes on by its folder, its checkpoints folder or the checkpoint itself."""
    run = tmp_path / "run"
    toy_trainer(run, checkpoint_format="sharded", max_steps=2).fit()
    last = run / "checkpoints" / "last.sharded"
    for number, given in enumerate((run, run / "checkpoints", last)):
        assert locate(given) == last
        assert run_folder_of(str(given), "default") == str(run)
        longer = toy_trainer(run, checkpoint_format="sharded", max_steps=3 + number, resume=str(given))
        longer.fit()
        assert longer.step == 3 + number


# Copies and the background.


def test_copies_are_copies():
    base = torch.arange(6.0)
    node = {"a": [base[::2], (base.view(2, 3), 5)], 7: torch.tensor(True), "b": torch.ones(2, dtype=torch.bfloat16)}
    node["c"] = {"p": torch.nn.Parameter(torch.ones(1)), "none": None, "text": "x"}
    copy = copied(node)
    base.zero_()
    node[7].fill_(False)
    node["b"].zero_()
    assert copy["a"][0].tolist() == [0, 2, 4]
    assert copy["a"][1][0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert isinstance(copy["a"][1], tuple)
    assert copy[7].item() is True
    assert copy["b"].dtype == torch.bfloat16
    assert copy["b"].tolist() == [1, 1]
    assert not copy["c"]["p"].requires_grad
    assert (copy["c"]["none"], copy["c"]["text"]) == (None, "x")


@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_training_goes_on_while_writing(tmp_path, monkeypatch, kind):
    """What is written is the state as it was; the next save waits for it, and nothing stands before it is whole."""
    module = {"plain": checkpoint, "sharded": sharded}[kind]
    go, write = threading.Event(), module.write

    def slow(*arguments):
        assert go.wait(timeout=30)
        return write(*arguments)

    monkeypatch.setattr(module, "write", slow)
    made = Saver(tmp_path, kind=kind, asynchronous=True)
    content = state(value=1.0)
    made.save(content, ["step_00000003", "last"], [])
    content["model"]["w"].fill_(2.0)
    made.poll()
    assert find_checkpoint(tmp_path) is None
    go.set()
    made.save(state(step=4, value=3.0), ["last"], ["step_00000001"])
    assert value_of(made.path("step_00000003")) == 1.0
    made.close()
    assert value_of(made.path("last")) == 3.0


@pytest.mark.parametrize("kind", ["plain", "sharded"])
@pytest.mark.parametrize("method", ["poll", "wait", "save", "close"])
@pytest.mark.faults
def test_an_error_in_the_background_comes_up(tmp_path, monkeypatch, kind, method):
    made = Saver(tmp_path, kind=kind, asynchronous=True)
    made.save(state(), ["last"], [])
    made.wait()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        made.save(state(step=4, value=2.0), ["last"], ["never"])
        while not made._writing.done():
            pass
        with pytest.raises(CheckpointError, match=r"could not write the checkpoint .*No space left.*before is intact"):
            made.save(state(step=5), ["last"], []) if method == "save" else getattr(made, method)()
    assert value_of(made.path("last")) == 1.0
    if method == "close":
        made = Saver(tmp_path, kind=kind, asynchronous=True)
    made.save(state(step=6, value=6.0), ["last"], [])  # goes on with room made
    made.close()
    assert value_of(made.path("last")) == 6.0
    assert len(listing(tmp_path)) == (1 if kind == "plain" else 2)


@pytest.mark.faults
def test_a_run_ends_by_an_error_in_the_background(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", disk_full)
    watch = Watch()
    trainer = toy_trainer(tmp_path, loggers=[watch], async_save=True, max_steps=50, save_every_steps=2)
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.fit()
    assert trainer.step < 50
    assert watch.closed


@pytest.mark.faults
def test_an_error_of_the_run_comes_before_one_in_the_background(tmp_path, monkeypatch):
    watch, failing = Watch(), threading.Event()

    def write(path, content):
        assert failing.wait(timeout=30)
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(checkpoint, "write", write)
    trainer = toy_trainer(tmp_path, loggers=[watch], async_save=True, data=ToyData(poison=1), save_every_steps=1)
    close = trainer.checkpoints.saver.close
    trainer.checkpoints.saver.close = lambda: (failing.set(), close())
    try:
        with pytest.raises(NonFiniteError):
            trainer.fit()
    finally:
        assert watch.closed


# Killed.


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.faults
def test_a_killed_plain_writer_leaves_the_old_file(tmp_path, monkeypatch, background):
    made = Saver(tmp_path, kind="plain", asynchronous=False)
    made.save(state(value=1.0), ["last"], [])

    def half(content, file):
        file.write(b"half of it")
        file.flush()
        die()

    def save():
        monkeypatch.setattr(torch, "save", half)
        Saver(tmp_path, kind="plain", asynchronous=background).save(state(step=4), ["step_00000004", "last"], [])
        threading.Event().wait(30)

    killed(save)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["last.pt"]
    assert value_of(tmp_path / "last.pt") == 1.0
    made.save(state(step=4, value=2.0), ["step_00000004", "last"], [])
    assert listing(tmp_path) == ["last.pt", "step_00000004.pt"]
    assert value_of(tmp_path / "last.pt") == 2.0


@pytest.mark.parametrize(
    ("place", "name"), [(sharded.dcp, "save"), (sharded, "publish"), (os, "replace"), (sharded, "prune")]
)
@pytest.mark.faults
def test_a_killed_sharded_writer_leaves_the_old_folder(tmp_path, monkeypatch, place, name):
    """Killed before the parts are written, before a name stands for them, between two names, and before tidying up."""
    made = Saver(tmp_path, kind="sharded", asynchronous=False)
    made.save(state(value=1.0), ["last"], [])
    replace = os.replace

    def second(source, target):
        die() if str(target).endswith("last.sharded") else replace(source, target)

    def save():
        monkeypatch.setattr(place, name, second if place is os else die)
        made.save(state(value=2.0), ["step_00000003", "last"], [])

    killed(save)
    assert value_of(tmp_path / "last.sharded") == (2.0 if name == "prune" else 1.0)
    for path in tmp_path.glob("step_*"):
        assert value_of(path) == 2.0
    made.save(state(step=5, value=3.0), ["step_00000005", "last"], ["step_00000003"])
    assert listing(tmp_path) == ["last.sharded", "sharded_00000005", "step_00000005.sharded"]
    assert value_of(tmp_path / "last.sharded") == 3.0


def test_a_step_saved_many_times_never_takes_a_folder_that_stands(tmp_path, monkeypatch):
    made = Saver(tmp_path, kind="sharded", asynchronous=False)
    made.save(state(value=1.0), ["step_00000003", "last"], [])
    for value in (2.0, 3.0, 4.0):
        made.save(state(value=value), ["last"], [])
        assert value_of(tmp_path / "step_00000003.sharded") == 1.0
        assert value_of(tmp_path / "last.sharded") == value
    with monkeypatch.context() as patch:
        patch.setattr(sharded.dcp, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(CheckpointError, match="broken"):
            made.save(state(value=5.0), ["last"], [])
    assert value_of(tmp_path / "last.sharded") == 4.0


@pytest.mark.parametrize("damage", ["state.pt", ".metadata", "__0_0.distcp"])
@pytest.mark.faults
def test_a_damaged_part_is_named_and_nothing_is_overwritten(tmp_path, damage):
    toy_trainer(tmp_path, checkpoint_format="sharded", max_steps=2).fit()
    (part,) = tmp_path.glob(f"checkpoints/sharded_*/{damage}")
    for content in (part.read_bytes()[: part.stat().st_size // 2], None):
        part.unlink() if content is None else part.write_bytes(content)
        before = file_contents(tmp_path)
        with pytest.raises(CheckpointError, match="checkpoint"):
            toy_trainer(tmp_path, checkpoint_format="sharded", max_steps=4, resume="auto").fit()
        assert file_contents(tmp_path) == before


@pytest.mark.parametrize("file", ["state.pt", ".metadata"])
@pytest.mark.faults
def test_reading_parts_executes_nothing(tmp_path, file):
    folder = tmp_path / "parts"
    sharded.write(folder, checkpoint.with_format(state()))
    (folder / file).write_bytes(pickle.dumps({"x": Bomb(tmp_path / "boom")}, protocol=2))
    with pytest.raises(CheckpointError, match=r"(cannot read the checkpoint|was not read, as that would execute code)"):
        read_file(folder)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("size", [(10**6, 10**6, 10**6), (-1, 4)])
@pytest.mark.faults
def test_sizes_that_are_not_there_take_no_memory(tmp_path, size):
    folder = tmp_path / "parts"
    sharded.write(folder, checkpoint.with_format(state()))
    parts = pickle.loads((folder / sharded.PARTS).read_bytes())
    for described in parts.state_dict_metadata.values():
        described.size = torch.Size(size)
    (folder / sharded.PARTS).write_bytes(pickle.dumps(parts))
    with pytest.raises(CheckpointError, match=r"its tensors have .* bytes, but its parts"):
        read_file(folder)
