"""Whole runs of train.py, as a user types them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def ok(process):
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    return process.stdout


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_default_run(train, tiny, tmp_path):
    process = train(*tiny, "trainer.validate_every_steps=3", "trainer.save_every_steps=4")
    output = ok(process)
    (folder,) = tmp_path.glob("outputs/*/*")
    assert (folder / "config.yaml").is_file()
    assert list((folder / "tensorboard").iterdir())
    lines = lines_of(folder)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "val/loss" in line] == [3, 6]
    needed = {
        "train/loss",
        "train/loss/prediction",
        "train/target_std",
        "train/prediction_std",
        "lr",
        "weight_decay",
    }
    assert needed | {"momentum", "grad_norm", "samples_per_second", "memory_gib"} <= set(lines[0])
    results = json.loads((folder / "results.json").read_text())
    assert {"trained", "random_init", "raw_input", "step"} <= set(results)
    assert results["step"] == 6
    for row in ("trained", "random_init", "raw_input"):
        assert {"linear", "knn"} <= set(results[row])
        assert all(type(value) is float for value in results[row].values())
        assert all(0 < results[row][probe] <= 1 for probe in ("linear", "knn"))
    assert results["raw_input"]["knn"] > 0.95
    assert results["trained"]["knn"] < 0.95
    content = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert {"model", "optimizer", "step", "config"} <= set(content)
    assert content["step"] == 6
    assert content["config"]["model"]["encoder"]["embed_dim"] == 32
    assert f"training from scratch in {tmp_path}" in output or "training from scratch in outputs" in output
    assert "step 6/6" in output
    assert "trained" in output
    assert process.stderr == ""


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["--help"], ["model=vitt"]])
def test_torch_is_not_imported_for_help(tmp_path, arguments):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['train.py', *{arguments!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "except BaseException as stop:\n"
        "    print(type(stop), file=sys.stderr)\n"
        "slow = {'torch', 'timm', 'sklearn', 'numpy', 'PIL', 'rich', 'tensorboard'} & set(sys.modules)\n"
        "print('slow', sorted(slow), file=sys.stderr)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "slow []" in process.stderr, process.stderr
    if arguments == ["--cfg", "job"]:
        assert process.stdout.startswith("data:")
        assert "_target_: jepa.trainer.Trainer" in process.stdout
    if arguments == ["--help"]:
        assert "python train.py -m loss=smooth_l1,mse" in process.stdout
        assert re.search("^experiment +audio_fsdd", process.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep(train, quick, tmp_path):
    ok(train("-m", *quick, "loss=smooth_l1,mse", "hydra.sweep.dir=sweep"))
    losses = [lines_of(tmp_path / "sweep" / job)[0]["train/loss/prediction"] for job in "01"]
    assert losses[0] < losses[1]


def test_a_bad_job_of_a_sweep_does_not_end_the_others(train, quick, tmp_path):
    process = train("-m", *quick, "trainer.micro_batch_size=5,null", "hydra.sweep.dir=sweep")
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert process.stderr.count("error: trainer.micro_batch_size=5 does not divide") == 1
    assert not (tmp_path / "sweep/0/checkpoints").exists()
    assert (tmp_path / "sweep/1/checkpoints/last.pt").exists()


def test_the_options_of_the_trainer(train, quick, refused, tmp_path):
    keep = [o for o in quick if not o.startswith(("trainer.", "data.batch_size", "evaluation="))]
    output = ok(train(*keep, "trainer=debug", "trainer.device=cpu", "hydra.run.dir=debug"))
    assert "4 steps of 2 on cpu in fp32" in output
    assert output.count("gradient norms  ") == 4
    lines = lines_of(tmp_path / "debug")
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    assert {"val/loss", "eval/trained/knn"} <= {name for line in lines for name in line}
    assert any(name.startswith("grad_norm/encoder.") for name in lines[0])
    steps = ["trainer.max_steps=1", "evaluation=none"]
    assert " on cpu in " in ok(train(*keep, *steps, "trainer=cpu", "hydra.run.dir=cpu"))
    if not torch.cuda.is_available():
        message = refused(train(*keep, *steps, "trainer=gpu", "hydra.run.dir=gpu"))
        assert message.startswith("error: trainer.device=cuda cannot be used here (")
        assert message.endswith("): use auto, cpu, cuda or mps\n")
        assert not (tmp_path / "gpu/checkpoints").exists()


def test_a_users_own_yaml_from_another_folder(train, quick, tmp_path):
    folder = tmp_path / "my_conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\ntrainer:\n  seed: 7\noptimizer:\n  lr: 0.5\nscheduler:\n  warmup_epochs: 0\n"
    )
    run = ["experiment=mine", "hydra.run.dir=run", "optimizer.lr=0.25", "trainer.max_steps=1"]
    ok(train("--config-dir", "my_conf", *quick, *run))
    config = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["config"]
    assert (config["trainer"]["seed"], config["optimizer"]["lr"]) == (7, 0.25)
    assert lines_of(tmp_path / "run")[0]["lr"] == pytest.approx(1e-6)  # the end of a run of one step


OWN = '''
import torch
from torch import nn
from jepa.trainer import Trainer


class PatchEncoder(nn.Module):
    """An encoder of one layer."""

    def __init__(self, *, embed_dim: int, patch_size: int):
        super().__init__()
        self.embed_dim, self.patch_size = embed_dim, patch_size
        self.embed = nn.Conv2d(1, embed_dim, patch_size, patch_size)
        self.place = nn.Parameter(torch.randn(64, embed_dim))

    def grid(self, x):
        return tuple(side // self.patch_size for side in x.shape[2:])

    def forward(self, x, keep=None, valid=None, layers=None):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.place[: tokens.shape[1]]
        if keep is None:
            return tokens
        return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, self.embed_dim))


class Cube(nn.Module):
    """Mean cubed error."""

    prevents_collapse = False
    batch_statistics = False
    needs = ("predictions", "targets")

    def forward(self, latents):
        pairs = zip(latents.predictions, latents.targets)
        return sum((p - t).abs().pow(3).mean() for p, t in pairs)


class MyTrainer(Trainer):
    """Logs a number of its own."""

    def training_step(self, batch, step):
        batch = self.prepare_batch(batch)
        return {"loss": self.criterion(self.model(batch))["loss"], "mine": torch.tensor(step * 10.0)}
'''


def test_a_users_own_classes(train, quick, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "my_parts.py").write_text(OWN)
    (tmp_path / "my_conf/model/encoder").mkdir(parents=True)
    (tmp_path / "my_conf/model/encoder/patch.yaml").write_text(
        "_target_: my_parts.PatchEncoder\nembed_dim: 24\npatch_size: 2\n"
    )
    keep = [o for o in quick if not o.startswith("model.encoder.")]
    own = [
        "model/encoder=patch",
        "model.predictor.num_heads=4",
        "loss.terms.prediction.term={_target_: my_parts.Cube}",
        "trainer._target_=my_parts.MyTrainer",
        "hydra.run.dir=run",
    ]
    ok(train("--config-dir=my_conf", *keep, *own, PYTHONPATH=str(tmp_path / "lib")))
    lines = lines_of(tmp_path / "run")
    assert [line["train/mine"] for line in lines] == [0, 10, 20, 30, 40, 50]
    weights = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["model"]
    assert weights["encoder.embed.weight"].shape == (24, 1, 2, 2)
    assert "target.encoder.place" in weights


def test_starting_from_our_weights(train, quick, tmp_path):
    ok(train(*quick, "hydra.run.dir=first"))
    weights = torch.load(tmp_path / "first/checkpoints/last.pt", weights_only=True)["model"]
    for number, source in enumerate(("first", "first/checkpoints/last.pt")):
        still = ["optimizer.lr=0", "scheduler=constant", "optimizer.weight_decay=0", "trainer.max_steps=1"]
        ok(train(*quick, *still, f"init_from={source}", f"hydra.run.dir=second{number}", "trainer.seed=9"))
        after = torch.load(tmp_path / f"second{number}/checkpoints/last.pt", weights_only=True)
        assert after["step"] == 1
        for name in weights:
            if name.startswith(("encoder.", "predictor.")):
                assert torch.equal(after["model"][name], weights[name]), name
    config = (tmp_path / "second0/config.yaml").read_text()
    assert "init_from: first" in config


def test_starting_from_published_weights(train, tiny, shared_dir, refused, tmp_path):
    published = shared_dir / "fixtures" / "ijepa_tiny.pth.tar"
    file = torch.load(published, map_location="cpu", weights_only=True)
    encoder, predictor = file["encoder"], file["predictor"]
    depth = [
        1 + max(int(n.split(".")[2]) for n in w if f".{b}." in n)
        for w, b in ((encoder, "blocks"), (predictor, "predictor_blocks"))
    ]
    (tmp_path / "images").mkdir()
    from PIL import Image

    for number in range(12):
        Image.new("RGB", (40, 40), (number * 20, 0, 99)).save(tmp_path / "images" / f"{number}.png")
    run = [
        "data=image_folder",
        "data.root=images",
        "data.image_size=32",
        "data.batch_size=8",
        "data.num_workers=0",
        "model.encoder.patch_size=4",
        f"model.encoder.embed_dim={encoder['module.patch_embed.proj.weight'].shape[0]}",
        f"model.encoder.depth={depth[0]}",
        "model.encoder.num_heads=4",
        f"model.predictor.embed_dim={predictor['module.mask_token'].shape[-1]}",
        f"model.predictor.depth={depth[1]}",
        "optimizer.lr=0",
        "optimizer.weight_decay=0",
        "scheduler=constant",
        "evaluation=none",
        "trainer.device=cpu",
        "trainer.precision=fp32",
        "trainer.max_steps=1",
        "~logger.tensorboard",
        f"init_from={published}",
    ]
    ok(train(*run, "hydra.run.dir=run"))
    weights = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["model"]
    assert torch.equal(weights["encoder.vit.patch_embed.proj.weight"], encoder["module.patch_embed.proj.weight"])
    message = refused(train(*run, "model.encoder.depth=1", "hydra.run.dir=other"))
    assert "in the file only" in message
    assert not (tmp_path / "other/checkpoints").exists()


def test_python_gives_the_same_run(train, quick, tmp_path):
    from jepa import build_trainer, load_config

    ok(train(*quick, "hydra.run.dir=one"))
    metrics = build_trainer(load_config([*quick, f"run_dir={tmp_path}/two", "~logger.console"])).fit()
    one, two = (torch.load(tmp_path / n / "checkpoints/last.pt", weights_only=True)["model"] for n in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)  # another process, another alignment
    assert metrics["train/loss"] == pytest.approx(lines_of(tmp_path / "one")[-1]["train/loss"], rel=1e-5)


def test_the_seed_decides(train, quick, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        ok(train(*quick, f"hydra.run.dir={name}", f"trainer.seed={seed}", "trainer.max_steps=1"))
    a, b = (torch.load(tmp_path / n / "checkpoints/last.pt", weights_only=True)["model"] for n in "ab")
    name = next(n for n in a if n.endswith("patch_embed.proj.weight"))
    assert not torch.equal(a[name], b[name])


def test_evaluation_during_training_and_resume_keep_results(train, tiny, tmp_path):
    """Results of an evaluation before the interruption are still in results.json after it."""
    shared = [
        *tiny,
        "~logger.tensorboard",
        "evaluation.every_steps=2",
        "evaluation.at_end=false",
        "hydra.run.dir=run",
    ]
    shared += [
        "evaluation.max_train_samples=100",
        "evaluation.max_test_samples=100",
        "trainer.save_every_steps=1",
    ]
    ok(train(*shared, "trainer.max_steps=3"))
    before = json.loads((tmp_path / "run/results.json").read_text())
    ok(train("resume=run", "trainer.max_steps=4", "evaluation.every_steps=null"))
    after = json.loads((tmp_path / "run/results.json").read_text())
    assert before["trained"] == after["trained"]
    assert os.path.exists(tmp_path / "run/checkpoints/last.pt")
