"""A user's mistakes: each ends in one clear error, code 1, no traceback, nothing lost."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
import torch

pytestmark = pytest.mark.slow

MISTAKES = {
    "unknown option": (["model=vitt"], ["model=vitt", "Did you mean model=vit?"]),
    "unknown data": (["data=mnits"], ["Did you mean data=mnist?"]),
    "unknown key": (["model.encoder.dept=3"], ["model.encoder.dept", "Did you mean model.encoder.depth=3?"]),
    "unknown key of a partial": (["optimizer.lrr=1"], ["optimizer.lrr", "Did you mean optimizer.lr=1?"]),
    "added key": (["+model.encoder.dept=3"], ["model.encoder.dept", "Did you mean model.encoder.depth=3?"]),
    "added key of a partial": (["+optimizer.lrr=1"], ["optimizer.lrr", "Did you mean optimizer.lr=1?"]),
    "word for a number": (["model.encoder.depth=abc"], ["model.encoder.depth=abc", "expects a whole number"]),
    "fraction for a count": (["trainer.max_steps=1.5"], ["trainer.max_steps=1.5", "whole number"]),
    "word for a rate": (["optimizer.lr=fast"], ["optimizer.lr=fast", "expects a number"]),
    "number for a switch": (["optimizer.fused=3"], ["optimizer.fused=3", "true or false"]),
    "no such class": (["optimizer._target_=torch.optim.Adamm"], ["torch.optim.Adamm cannot be imported"]),
    "batch that does not divide": (
        ["trainer.micro_batch_size=5"],
        ["does not divide data.batch_size=32", "[1, 2, 4"],
    ),
    "patch that does not divide": (["model.encoder.patch_size=3"], ["patch", "3", "8"]),
    "heads that do not divide": (["model.encoder.num_heads=5"], ["heads", "5", "32"]),
    "masks that cannot fit": (["model.mask.target_scale=[0.9,0.95]"], ["model.mask", "context"]),
    "image too small for masks": (["model.encoder.patch_size=8"], ["model"]),
    "number for an option": (["data=1"], ["data=1", "must be a string"]),
    "name that the system refuses": (["resume=" + "a" * 300], ["no run folder or checkpoint at aaa"]),
    "no data root": (["data=image_folder"], ["data.root is not set", "data.root=..."]),
    "data root missing": (["data=image_folder", "data.root=nowhere"], ["data.root=nowhere is not a folder"]),
    "data root empty": (["data=image_folder", "data.root=empty"], ["holds no images"]),
    "resume from nowhere": (["resume=nowhere"], ["no run folder or checkpoint at nowhere"]),
    "init from nowhere": (["init_from=nowhere"], ["no run folder or checkpoint at nowhere"]),
    "unknown device": (["trainer.device=gpu"], ["trainer.device=gpu cannot be used here"]),
    "unknown precision": (["trainer.precision=fp8"], ["trainer.precision", "fp8"]),
    "the folder by Python's name": (["run_dir=other"], ["run_dir=other", "hydra.run.dir=other"]),
    "no length": (["trainer.max_steps=null", "trainer.max_epochs=null"], ["trainer.max_epochs"]),
    "collapse": (
        ["model/target=stop_gradient"],
        ["collapses", "allow_collapse"],
    ),
    "syntax": (["model.mask.target_scale=[0.1"], ["[0.1"]),
    "a word alone": (["smooth_l1"], ["smooth_l1"]),
    "a value that is refused": (["data.views=0"], ["data.views must be at least 1, got 0"]),
}


@pytest.mark.parametrize(("mistake", "words"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes(train, quick, refused, tmp_path, mistake, words):
    (tmp_path / "empty").mkdir()
    if "data=image_folder" in mistake:
        quick = [override for override in quick if "projector" not in override]  # which only digits have
        quick += ["model.encoder.patch_size=2", "model.encoder.num_heads=4", "model.mask.num_targets=1"]
        quick += ["model.mask.min_context=4"]
    message = refused(train(*quick, "hydra.run.dir=run", *mistake))
    for word in words:
        assert word in message
    assert not list(tmp_path.rglob("*.pt"))


@contextlib.contextmanager
def mounted(folder, options):
    """A small tmpfs; skips where mounting is not permitted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.faults
def test_a_run_folder_that_cannot_be_made(train, quick, refused, tmp_path):
    (tmp_path / "file").touch()
    assert "file/run: Not a directory" in refused(train(*quick, "hydra.run.dir=file/run"))


@pytest.mark.faults
def test_a_read_only_output_folder(train, quick, refused, tmp_path):
    with mounted(tmp_path / "locked", "size=1m,ro") as folder:
        assert "Read-only file system" in refused(train(*quick, f"hydra.run.dir={folder}/run"))


@pytest.mark.faults
def test_a_disk_that_fills_up(train, quick, refused, tmp_path):
    """What was saved before stays whole, and the run goes on from it elsewhere or with more room."""
    with mounted(tmp_path / "small", "size=4m") as folder:
        run = [*quick, f"hydra.run.dir={folder}/run", "trainer.save_every_steps=2", "trainer.best_k=0"]
        assert train(*run, "trainer.max_steps=4").returncode == 0
        last = folder / "run/checkpoints/last.pt"
        before = last.read_bytes()
        used = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
        (folder / "ballast").write_bytes(b"x" * (4 * 2**20 - used - len(before) // 2))
        message = refused(train(f"resume={folder}/run", "trainer.max_steps=8"))
        assert "could not write the checkpoint" in message
        assert "MiB free" in message
        assert f"The checkpoint written before is intact: {last}" in message
        assert last.read_bytes() == before
        assert [path.name for path in last.parent.iterdir()] == ["last.pt"]
        (folder / "ballast").unlink()
        assert train(f"resume={folder}/run", "trainer.max_steps=8").returncode == 0
        assert torch.load(last, weights_only=True)["step"] == 8


@pytest.mark.faults
def test_a_disk_that_is_full(train, quick, refused, tmp_path):
    """Not even room for the log."""
    with mounted(tmp_path / "small", "size=1m") as folder:
        (folder / "run").mkdir()
        with contextlib.suppress(OSError), open(folder / "ballast", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        assert "No space left" in refused(train(*quick, f"hydra.run.dir={folder}/run"))
        assert not list(folder.rglob("*.pt"))
