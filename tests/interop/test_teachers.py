"""A frozen teacher from a file or a run: its features, what a run keeps of it, and going on without it."""

from __future__ import annotations

import copy
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_other_projects import gap, perturbed, vit

from jepa import build_trainer, load_config
from jepa.config.load_encoder import PUBLISHED
from jepa.config.teacher import teacher_target
from jepa.interop import load
from jepa.models import TransformerEncoder, vision_transformer
from jepa.models.encoders.tubelet_stem import TubeletStem
from jepa.utils.errors import CheckpointError, UserError

SIZES = {"embed_dim": 24, "depth": 1, "num_heads": 2}
AS_IMAGENET = {name: PUBLISHED[name] for name in ("mean", "std")}


@torch.no_grad()
def test_published_files(shared_dir, tmp_path):
    """Features as the published code has computed them, of pictures and clips; of timm without class token."""
    folder = shared_dir / "fixtures"
    arrays = {name: np.load(folder / f"{name}_expected.npz") for name in ("ijepa_tiny", "vjepa2_tiny")}
    encoder = vision_transformer(image_size=32, channels=3, patch_size=4, **SIZES)
    make = partial(teacher_target, encoder=encoder, checkpoint=f"{folder}/ijepa_tiny.pth.tar", data_image_size=32)
    with pytest.raises(UserError, match=r"does not say how many attention heads .*model.target.settings.num_heads=<"):
        make(**AS_IMAGENET)
    for network in ("target", "context"):
        target = make(**AS_IMAGENET, settings={"num_heads": 4, "name": None}, network=network)
        wanted = {"target": "target_encoder_full", "context": "encoder_full"}[network]
        found = target.teach(encoder, torch.from_numpy(arrays["ijepa_tiny"]["image"]))
        assert gap(found, torch.from_numpy(arrays["ijepa_tiny"][wanted])) < 1e-5
    stem = partial(TubeletStem, channels=3, patch_size=8, tubelet_size=2)
    encoder = TransformerEncoder(stem=stem, **SIZES)
    clips = make(encoder=encoder, checkpoint=f"{folder}/vjepa2_tiny.pt", settings={"num_heads": 4}, **AS_IMAGENET)
    found = clips.teach(encoder, torch.from_numpy(arrays["vjepa2_tiny"]["video"]))
    assert gap(found, torch.from_numpy(arrays["vjepa2_tiny"]["target_encoder_full"])) < 1e-5
    network, x = perturbed(vit()), torch.randn(2, 1, 8, 8)
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    encoder = vision_transformer(image_size=8, channels=1, patch_size=2, **SIZES)
    own = {"checkpoint": str(tmp_path / "vit.pt"), "settings": {"num_heads": 2}, "mean": 0.3, "std": 0.4}
    target = teacher_target(encoder=encoder, data_image_size=8, image_size=16, **own)
    seen = target.teacher_input(x)  # grey pictures of 8 pixels in three channels of 16
    assert seen.shape == (2, 3, 16, 16)
    assert gap(target.teach(encoder, x), network.forward_features(seen)[:, 1:]) < 1e-5
    assert target.state_dict() == {}


def test_a_run_goes_on_with_the_same_teacher_alone(run_folder, quick, tmp_path):
    """No file that a checkpoint names is opened to use its encoder."""
    options = [o for o in quick if not o.startswith(("model.", "trainer.max_steps"))]
    options += [f"model.encoder.{name}={value}" for name, value in SIZES.items()]
    options += ["model.predictor.embed_dim=24", "model.predictor.depth=1", "scheduler=constant", "~logger.console"]
    config = load_config([*options, "model/target=teacher", f"model.target.checkpoint={tmp_path / 'teacher'}"])

    def run(name, steps, **changes):
        own = copy.deepcopy(config)
        values = {"run_dir": str(tmp_path / name), "trainer.max_steps": steps, "resume": "auto", **changes}
        for key, value in values.items():
            OmegaConf.update(own, key, value)
        trainer = build_trainer(own)
        trainer.fit()
        return trainer

    shutil.copytree(run_folder, tmp_path / "teacher")
    whole = run("whole", 3).model
    run("parts", 2)
    trainer = run("parts", 3)
    model = trainer.model
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    path = tmp_path / "parts" / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    assert not any(name.startswith("target.") for name in content["model"])
    assert content["config"]["model"]["target"]["out_dim"] == model.predictor.project.out_features == 32
    moved = tmp_path / "moved"
    (tmp_path / "teacher").rename(moved)
    assert trainer.random_init(seed=1).state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load(path).model.encode_target(x), model.eval().encoder(x))
    with pytest.raises(CheckpointError, match=r"model.target.checkpoint=\S*teacher: no run folder or checkpoint at"):
        run("parts", 4)
    changed = torch.load(moved / "checkpoints" / "last.pt", weights_only=True)
    changed["model"]["target.encoder.vit.norm.bias"] += 1
    torch.save(changed, moved / "checkpoints" / "last.pt")
    with pytest.raises(UserError, match=r"frozen teacher \S*teacher \(.*=\S*moved holds other weights \(.* init_from="):
        run("parts", 4, **{"model.target.checkpoint": str(moved)})
    content["config"]["model"]["target"]["out_dim"] = 10**7
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"claims more than its .* values by model.target.out_dim"):
        load(path)


def test_a_frozen_encoder_is_kept_with_the_run(tmp_path):
    """A world model on the encoder of another run: which stays as it is, and whose checkpoint is needed no more."""
    options = ["data=two_rooms", "model=world", "data.horizon=3", "model.rollout_steps=2", "data.batch_size=4"]
    options += ["data.source.train_walks=8", "data.source.test_walks=8", "trainer.max_steps=2", "evaluation=none"]
    options += ["scheduler=constant", "logger=[]", "report=none", "trainer.device=cpu", "trainer.precision=fp32"]

    def run(name, *more):
        trainer = build_trainer(load_config([*options, *more, f"run_dir={tmp_path / name}"]))
        trainer.fit()
        return trainer.model

    sizes = [f"model.encoder.{name}={value}" for name, value in SIZES.items()]
    whole = run("whole", "model/encoder=vit", *sizes)
    frozen = run("frozen", "model/encoder=frozen", f"model.encoder.checkpoint={tmp_path / 'whole'}")
    (tmp_path / "whole").rename(tmp_path / "moved")
    loaded = load(tmp_path / "frozen").model
    for network in (frozen, loaded):
        for name, tensor in whole.encoder.state_dict().items():
            assert torch.equal(tensor, network.encoder.state_dict()[name]), name
    assert torch.equal(frozen.norm.weight, torch.ones(24))
    assert all(not parameter.requires_grad for parameter in loaded.encoder.parameters())
    assert torch.equal(loaded.action_high, torch.tensor([2.45, 2.45]))
    with pytest.raises(CheckpointError, match=r"model.encoder.checkpoint=\S*whole: no run folder or checkpoint at"):
        run("again", "model/encoder=frozen", f"model.encoder.checkpoint={tmp_path / 'whole'}")
    with pytest.raises(UserError, match="model/encoder=frozen goes with model=world; model/target=teacher"):
        build_trainer(load_config(["model/encoder=frozen", f"model.encoder.checkpoint={tmp_path / 'moved'}"]))
    with pytest.raises(UserError, match=r"go with model=world: python train.py data=two_rooms .* model=world"):
        build_trainer(load_config(["data=two_rooms", "data.source.train_walks=8"]))
