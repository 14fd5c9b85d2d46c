"""Training that starts from weights of a run or of another project: what is taken, fresh or refused."""

from __future__ import annotations

import json
import logging
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from test_other_projects import SIZES, as_published, gap, perturbed, prefixed, vit

from jepa import load_config
from jepa.config.build import build_model
from jepa.interop import load, load_into
from jepa.utils.errors import CheckpointError, UserError

PICTURES = ("data=cifar10", "data.image_size=16", "model.encoder.patch_size=4")
VIT = (
    *PICTURES,
    "model.encoder.embed_dim=32",
    "model.encoder.depth=2",
    "model.encoder.num_heads=2",
    "model.predictor.embed_dim=24",
    "model.predictor.depth=1",
)
VIEWS = ("loss=sigreg_views", "data.views=2")
CLIPS = ("model=video", "data=moving_mnist", "data.image_size=32", "data.channels=3")


def model(*overrides):
    """An untrained model of a configuration."""
    return build_model(load_config(overrides))


@pytest.fixture
def said(caplog):
    """What is logged, as one text."""
    caplog.set_level(logging.INFO, logger="jepa")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def followed(message, overrides):
    """Overrides with the options that a message names."""
    options = dict(re.findall(r"((?:model|data)[\w./]*)=([^\s;,]+)", message))
    assert options
    return [option for option in overrides if option.partition("=")[0] not in options] + [
        f"{key}={value}" for key, value in options.items()
    ]


@torch.no_grad()
def without_positions(network, x):
    """Features of a ViT of timm that has sine-cosine positions and no class token, as our models have."""
    ours = model(*VIT).encoder
    network.class_token = network.cls_token = network.reg_token = None
    network.num_prefix_tokens, network.has_class_token = 0, False
    network.pos_embed = torch.nn.Parameter(ours.positions(ours.grid(x), x.device)[None])
    network.no_embed_class = True
    return network.forward_features(x)


@torch.no_grad()
def test_dinov2_into_a_masked_jepa(tmp_path, said):
    """Its layer scale, which our blocks lack, is kept in the weights beside it."""
    network = vit(init_values=1.0)
    torch.save({**network.state_dict(), "mask_token": torch.zeros(1, 32)}, tmp_path / "vit.pth")
    started = model(*VIT)
    before = started.predictor.project.weight.clone()
    load_into(started, tmp_path / "vit.pth")
    x = torch.randn(2, 3, 16, 16)
    assert gap(started.encode_target(x), started.encoder(x)) == 0
    assert gap(started.encoder(x), without_positions(network, x)) < 1e-5
    assert torch.equal(started.predictor.project.weight, before)
    for line in (
        "weights taken for encoder, target",
        "start alike",
        "starts fresh: predictor",
        "cls_token, pos_embed",
        "2 attention",
    ):
        assert line in said()


@torch.no_grad()
def test_student_and_teacher_into_a_masked_jepa_and_lejepa(tmp_path, said):
    student, teacher = vit(), perturbed(vit())
    content = {"student": prefixed(student, "module.backbone."), "teacher": prefixed(teacher, "backbone.")}
    torch.save(content, tmp_path / "both.pth")
    started, x = model(*VIT), torch.randn(2, 3, 16, 16)
    load_into(started, tmp_path / "both.pth")
    assert gap(started.encoder(x), without_positions(student, x)) < 1e-5
    assert gap(started.encode_target(x), without_positions(teacher, x)) < 1e-5
    overrides = [option for option in VIT if "predictor" not in option]
    alone = model("model=lejepa", *VIEWS, *overrides)
    load_into(alone, tmp_path / "both.pth")
    assert gap(alone.encoder(x), started.encoder(x)) == 0
    assert "not used: target" in said()
    assert "starts fresh: loss" in said()


def test_a_run_says_what_its_network_was_before(run_folder):
    """As of experiment=continue: the first row is of the weights before the first step."""
    results = json.loads((run_folder / "results.json").read_text())
    assert results["initial"].keys() == results["trained"].keys()
    assert results["initial"]["rankme"] != results["trained"]["rankme"]


@torch.no_grad()
@pytest.mark.parametrize("form", ["run", "export"])
def test_a_run_of_another_method(run_folder, export, tmp_path, said, form):
    """Encoder and target of a masked JEPA; LeJEPA has no target and its heads start fresh, and the other way round."""
    path = run_folder if form == "run" else export(f"checkpoint={run_folder}", f"output={tmp_path / 'e.safetensors'}")
    config = load(run_folder).encoder
    sizes = [f"model.encoder.{key}={config[key]}" for key in ("patch_size", "embed_dim", "depth", "num_heads")]
    alone = model("data=digits", "model=lejepa", *VIEWS, *sizes)
    load_into(alone, path)
    x = torch.randn(2, 1, 8, 8)
    assert gap(alone.encoder(x), load(path).model.encoder(x)) == 0
    assert ("not used: predictor, target" in said()) == (form == "run")
    other = model("data=digits", *sizes, "model.predictor.embed_dim=16", "model.predictor.depth=1")
    torch.save({"model": alone.state_dict()}, tmp_path / "bare.pt")
    load_into(other, tmp_path / "bare.pt")
    assert gap(other.encode_target(x), alone.encoder(x)) == 0
    with pytest.raises(CheckpointError, match=r"other settings than the model: set model.encoder.num_heads=") as caught:
        load_into(model("data=digits", "model=lejepa", *VIEWS, *sizes[:3], "model.encoder.num_heads=1"), path)
    load_into(model("data=digits", "model=lejepa", *VIEWS, *followed(str(caught.value), sizes)), path)


@torch.no_grad()
def test_models_of_hugging_face_and_timm(tmp_path, said, monkeypatch):
    from transformers import IJepaConfig, IJepaModel, VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    pictures = perturbed(IJepaModel(IJepaConfig(**{**SIZES, "intermediate_size": 128})))
    pictures.save_pretrained(tmp_path / "ijepa")
    for form in (f"hf:{tmp_path}/ijepa", f"{tmp_path}/ijepa", f"{tmp_path}/ijepa/model.safetensors"):
        started = model(*VIT)
        load_into(started, form)
        wanted = pictures.layers[1].mlp.fc2.weight
        assert torch.equal(started.encoder.vit.blocks[1].mlp.fc2.weight, wanted)
        assert torch.equal(started.target.encoder.vit.blocks[1].mlp.fc2.weight, wanted)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 4}
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    clips = perturbed(VJEPA2Model(VJEPA2Config(**sizes, **predictor, crop_size=32, patch_size=16, frames_per_clip=4)))
    clips.save_pretrained(tmp_path / "vjepa2")
    overrides = [*CLIPS, "model.encoder.num_heads=1", "model.predictor.num_heads=1"]
    for _ in range(4):  # each message says what comes next
        started = model(*overrides)
        try:
            load_into(started, tmp_path / "vjepa2")
            break
        except CheckpointError as error:
            overrides = followed(str(error), overrides)
    x = torch.randn(1, 3, 4, 32, 32)
    assert gap(started.encoder(x), clips(x.transpose(1, 2), skip_predictor=True).last_hidden_state) < 1e-5
    assert "weights taken for encoder, predictor, target" in said()
    path, small = tmp_path / "timm.safetensors", {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2}
    weights = perturbed(timm.create_model("vit_tiny_patch16_224", num_heads=2, num_classes=5, **small)).state_dict()
    save_file(weights, path)
    create, overlay = timm.create_model, {"file": str(path), "num_classes": 5}
    sizes = {**small, "num_heads": 2, "pretrained_cfg_overlay": overlay}
    monkeypatch.setattr(timm, "create_model", lambda name, **others: create(name, **sizes, **others))
    started = model(*VIT)
    load_into(started, "timm:vit_tiny_patch16_224.augreg_in21k")
    assert torch.equal(started.encoder.vit.norm.weight, weights["norm.weight"])


@pytest.mark.parametrize("change", ["embed_dim", "patch_size", "depth", "predictor"])
def test_other_sizes_are_named(change, tmp_path, shared_dir):
    """The options that the error gives are those with which the file is taken."""
    if change == "predictor":
        path = shared_dir / "fixtures" / "ijepa_tiny.pth.tar"
        overrides = ["data=cifar10", "model.encoder.num_heads=4"]
    else:
        path = tmp_path / "vit.pt"
        torch.save(vit().state_dict(), path)
        overrides = [option for option in VIT if change not in option] + ["model.encoder.num_heads=2"]
        overrides += {"embed_dim": ["model.encoder.embed_dim=64"], "depth": ["model.encoder.depth=3"]}.get(change, [])
        overrides += ["model.encoder.patch_size=8"] if change == "patch_size" else []
    with pytest.raises(CheckpointError, match=r"of another model: (.|\n)*Its sizes: ") as caught:
        load_into(model(*overrides), path)
    load_into(model(*followed(str(caught.value), overrides)), path)


def test_what_does_not_go_together(tmp_path, shared_dir, run_folder):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    dinov3 = perturbed(DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=3)))
    path = tmp_path / "dinov3.pth"
    torch.save(as_published(dinov3, "dinov3"), path)
    with pytest.raises(CheckpointError, match=rf"start from DINOv2, or use its features, checkpoint={path} of scripts"):
        load_into(model(*VIT), path)
    load(path, image_size=(16, 16), channels=3)  # as it says
    torch.save(vit().state_dict(), tmp_path / "vit.pt")
    with pytest.raises(CheckpointError, match="is of pictures, but the model's encoder is a TransformerEncoder: use"):
        load_into(model(*CLIPS), tmp_path / "vit.pt")
    with pytest.raises(CheckpointError, match=r"is a V-JEPA, of clips, but .* ImageEncoder: use model=video"):
        load_into(model(*VIT), shared_dir / "fixtures" / "vjepa2_tiny.pt")
    with pytest.raises(CheckpointError, match="init_from=random: expected a run folder, a file of weights"):
        load_into(model(*VIT), "random")
    with pytest.raises(UserError, match="timm has no model 'vit_smal_patch16_224'; it has"):
        load_into(model(*VIT), "timm:vit_smal_patch16_224")
