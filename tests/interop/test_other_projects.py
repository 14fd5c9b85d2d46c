"""Files of other projects: features equal to those of timm and transformers, from files written by them."""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from jepa.checkpoint.load import LeftOut, read_file
from jepa.interop import find, load, network_of
from jepa.interop.network_names import renamed
from jepa.utils.errors import CheckpointError, UserError

HEADS = {"encoder.num_heads": 2}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
}
"""Of models of transformers, for pictures of 16 pixels."""

PUBLISHED = {
    r"^embeddings\.patch_embeddings\.(projection\.)?": "patch_embed.proj.",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.": "",
    r"^(encoder\.|model\.)?layer\.": "blocks.",
    r"\.attention\.o_proj\.": ".attn.proj.",
    r"\.layer_scale(\d)\.lambda1": r".ls\1.gamma",
    r"^layernorm\.": "norm.",
    r"\.mlp\.gate_proj\.": ".mlp.w1.",
}
"""Name of transformers in memory -> of facebookresearch/dinov2 and dinov3."""


def perturbed(model):
    """A model whose parameters all differ from what they start with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def vit(**changes):
    """A ViT of timm."""
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return perturbed(VisionTransformer(**{**sizes, **changes}))


def prefixed(model, prefix):
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def gap(got, wanted):
    assert got.shape == wanted.shape
    return (got - wanted).abs().max().item()


def size_of(x):
    return {"image_size": tuple(x.shape[2:]), "channels": x.shape[1]}


GATED = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 8.0}
DECODER = {"mask_token": torch.zeros(1, 1, 16), "decoder_pos_embed": torch.zeros(1, 17, 16)}
DECODER |= {"decoder_blocks.0.norm1.weight": torch.ones(16), "decoder_pred.bias": torch.ones(48)}

FILES = {
    "DINOv2": (vit(init_values=1.0), lambda m: {**m.state_dict(), "mask_token": torch.zeros(1, 32)}),
    "DINOv2 giant": (vit(init_values=1.0, **GATED), lambda m: renamed(m.state_dict(), {"fc1": "w12", "fc2": "w3"})),
    "DINOv2 in training": (
        vit(init_values=1.0),
        lambda m: {
            "teacher": renamed(prefixed(m, "backbone."), {r"blocks\.(\d)": r"blocks.0.\1"})
            | {"dino_head.mlp.0.weight": torch.ones(3, 3)}
        },
    ),
    "registers of timm": (vit(reg_tokens=3, no_embed_class=True), lambda m: m.state_dict()),
    "MAE": (vit(), lambda m: {"model": {**m.state_dict(), **DECODER}, "epoch": 3}),
    "Lightning": (
        vit(),
        lambda m: {
            "state_dict": {**prefixed(m, "model.backbone."), "model.projector.0.weight": torch.ones(3, 3)},
            "hyper_parameters": {"lr": 1.0},
        },
    ),
    "a compiled owner": (
        vit(),
        lambda m: {"model": renamed(prefixed(m, "_orig_mod.net."), {"attn": "_orig_mod.attn"})},
    ),
    "DeiT distilled": (vit(reg_tokens=1), lambda m: renamed(m.state_dict(), {"reg_token": "dist_token"})),
    "DeiT III": (
        vit(no_embed_class=True, init_values=1.0),
        lambda m: renamed(m.state_dict(), {r"ls(\d).gamma": r"gamma_\1"}),
    ),
    "pooled before the norm": (vit(global_pool="avg", fc_norm=True, num_classes=2), lambda m: m.state_dict()),
    "no class token": (vit(class_token=False, global_pool="avg"), lambda m: m.state_dict()),
}
"""Name -> a model of timm, and what a file with it holds."""


@torch.no_grad()
@pytest.mark.parametrize("name", FILES)
def test_a_file(name, tmp_path):
    model, content = FILES[name]
    torch.save(content(model), tmp_path / "file.pt")
    x = torch.randn(2, 3, 16, 16)
    found = load(tmp_path / "file.pt", overrides=HEADS, **size_of(x))
    assert gap(found.model.encode_target(x), model.forward_features(x)[:, model.num_prefix_tokens :]) < 1e-5
    assert gap(found.random_init().encoder(x), found.model.encoder(x)) > 1e-2
    left = {
        "MAE": "decoder_pred",
        "Lightning": "model.projector.0",
        "DINOv2": "mask_token",
        "DINOv2 in training": "dino_head.mlp.0",
        "pooled before the norm": "head",
    }
    said = [line for line in found.lines if line.startswith("left alone: ")]
    assert [left[name] in line for line in said] == [True] if name in left else not said


@torch.no_grad()
@pytest.mark.parametrize(
    ("layout", "which"),
    [
        (lambda a, b: {"student": prefixed(a, "module.backbone."), "teacher": prefixed(b, "backbone.")}, "teacher"),
        (
            lambda a, b: {"state_dict": prefixed(a, "backbone.") | prefixed(b, "momentum_backbone.")},
            "state_dict.momentum_backbone",
        ),
        (lambda a, b: {"state_dict": a.state_dict(), "state_dict_ema": b.state_dict()}, "state_dict_ema"),
    ],
)
def test_two_networks_of_which_one_makes_the_targets(layout, which, tmp_path):
    """DINO with heads and its arguments, solo-learn, and timm's own training."""
    student, teacher = vit(), vit()
    perturbed(teacher)
    content = layout(student, teacher) | {"epoch": 1, "args": argparse.Namespace(arch="vit_small", lr=0.1)}
    next(iter(content.values()))["projector.0.weight"] = torch.ones(3, 3)
    torch.save(content, tmp_path / "both.pth")
    found = load(tmp_path / "both.pth", overrides=HEADS)
    x = torch.randn(2, 3, 16, 16)
    assert gap(network_of(found.model, "context")(x), student.forward_features(x)[:, 1:]) < 1e-5
    assert gap(found.model.encode_target(x), teacher.forward_features(x)[:, 1:]) < 1e-5
    assert f"{which} makes the targets" in found.lines


def test_what_stands_beside_weights_is_left_out(tmp_path):
    """Settings and results of others are read as nothing, and by nobody else than this reader."""
    settings = {"args": argparse.Namespace(lr=0.1), "config": OmegaConf.create({"a": [1, {"b": None}]})}
    results = {"best": np.float64(0.5), "curve": np.ones(3), "folder": Path("x"), "counts": defaultdict(int)}
    torch.save(settings | results | {"state_dict": vit().state_dict()}, tmp_path / "file.pt")
    content = read_file(tmp_path / "file.pt", leave_out=True)
    assert {type(content[name]) for name in settings | results} == {LeftOut}
    assert not any(vars(content[name]) for name in settings | results)
    load(tmp_path / "file.pt", overrides=HEADS)
    with pytest.raises(CheckpointError, match=r"it holds [a-z]+.*, and not only tensors"):
        read_file(tmp_path / "file.pt")


@torch.no_grad()
def test_networks_that_cannot_be_told_apart(tmp_path, monkeypatch):
    """The error's code writes one of them, which can be read."""
    one, two = vit(), vit(embed_dim=48)
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"nets": prefixed(one, "left.") | prefixed(two, "right.")}}, "file.pt")
    with pytest.raises(CheckpointError, match=r"2 encoders, model.nets.left, model.nets.right: which") as caught:
        find("file.pt")
    exec(str(caught.value).partition("\n")[2], {})
    x = torch.randn(2, 3, 16, 16)
    assert gap(load("encoder.pt", overrides=HEADS).model.encoder(x), one.forward_features(x)[:, 1:]) < 1e-5


# Hugging Face.


def hugging_face_models():
    import transformers as t

    torch.manual_seed(0)
    dinov3 = {**SIZES, "num_register_tokens": 3}
    return {
        "ijepa": (t.IJepaModel(t.IJepaConfig(**SIZES)), 0),
        "vit": (t.ViTModel(t.ViTConfig(**SIZES)), 1),
        "deit": (t.DeiTModel(t.DeiTConfig(**SIZES)), 2),
        "mae": (t.ViTMAEModel(t.ViTMAEConfig(**SIZES)), 1),
        "dinov2": (t.Dinov2Model(t.Dinov2Config(**SIZES)), 1),
        "dinov2 giant": (t.Dinov2Model(t.Dinov2Config(**SIZES, use_swiglu_ffn=True)), 1),
        "dinov2 registers": (t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**SIZES)), 5),
        "dinov3": (t.DINOv3ViTModel(t.DINOv3ViTConfig(**dinov3)), 4),
        "dinov3 plus": (t.DINOv3ViTModel(t.DINOv3ViTConfig(**dinov3, use_gated_mlp=True, hidden_act="silu")), 4),
        "beit": (t.BeitModel(t.BeitConfig(**SIZES, use_relative_position_bias=True)), 1),
    }


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Name -> folder with a model of transformers, its features of a picture, and the model itself."""
    x, found = torch.randn(2, 3, 16, 16), {}
    for name, (model, prefix) in hugging_face_models().items():
        folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
        perturbed(model).save_pretrained(folder)
        order = {"noise": torch.arange(16).expand(2, -1)} if name == "mae" else {}
        if order:
            model.config.mask_ratio = 0.0
        with torch.no_grad():
            found[name] = folder, model(x, **order).last_hidden_state[:, prefix:], model
    return x, found


NAMES = ("ijepa", "vit", "deit", "mae", "dinov2", "dinov2 giant", "dinov2 registers", "dinov3", "dinov3 plus", "beit")


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_hugging_face(stored, name, tmp_path):
    """As a folder with and without hf:, as its model.safetensors there and alone, and as a state dict."""
    x, (folder, wanted, model) = stored[0], stored[1][name]
    (tmp_path / "alone.safetensors").hardlink_to(folder / "model.safetensors")
    torch.save({"state_dict": prefixed(model, "encoder.")}, tmp_path / "state.pt")
    for form in (f"hf:{folder}", folder, folder / "model.safetensors"):
        assert gap(load(form, **size_of(x)).model.encode_target(x), wanted) < 1e-5
    for form in (tmp_path / "alone.safetensors", tmp_path / "state.pt"):
        if name == "beit":  # a bias of relative positions, which no ViT has
            with pytest.raises(CheckpointError, match=r"hf:<folder>"):
                load(form, overrides=HEADS, **size_of(x))
        else:
            assert gap(load(form, overrides=HEADS, **size_of(x)).model.encode_target(x), wanted) < 1e-5


def as_published(model, name):
    """The weights of a model of transformers as DINOv2 and DINOv3 store them, with what else these files hold."""
    state = renamed(model.state_dict(), PUBLISHED)
    gated = any(".mlp.w1." in key for key in state)
    state = renamed(state, {"up_proj": "w2" if gated else "fc1", "down_proj": "w3" if gated else "fc2"})
    for number, kind in itertools.product(range(2), ("weight", "bias")):
        three = [state.pop(f"blocks.{number}.attention.{part}_proj.{kind}", None) for part in "qkv"]
        zeros = torch.zeros_like(three[0])
        state[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat([zeros if part is None else part for part in three])
        if name.startswith("dinov3"):
            state[f"blocks.{number}.attn.qkv.bias_mask"] = torch.ones(96)
    if name.startswith("dinov3"):
        state["storage_tokens"] = state.pop("register_tokens")
        state["rope_embed.periods"] = 100 ** (torch.arange(4) / 4)
        state["local_cls_norm.weight"] = torch.ones(32)
    return state


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov2", "dinov2 registers", "dinov3", "dinov3 plus"])
def test_a_file_as_meta_publishes_it(stored, name, tmp_path):
    x, (_, wanted, model) = stored[0], stored[1][name]
    torch.save(as_published(model, name), tmp_path / "file.pth")
    known = {} if name.startswith("dinov3") else HEADS  # its periods tell the heads
    found = load(tmp_path / "file.pth", overrides=known, **size_of(x))
    assert gap(found.model.encode_target(x), wanted) < 1e-5
    last = found.model.encoder(x, layers=[0, 1])[1]
    assert gap(last, wanted) < 1e-5
    if known:
        return
    wide = torch.randn(1, 3, 16, 24)
    assert gap(found.model.encoder(wide), model(wide).last_hidden_state[:, 4:]) < 1e-5
    with pytest.raises(UserError, match=r"num_heads=4, but .* has 2: leave it out"):
        load(tmp_path / "file.pth", overrides={"encoder.num_heads": 4}, **size_of(x))


@torch.no_grad()
def test_dinov3_of_timm(tmp_path):
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = perturbed(timm.create_model("vit_small_patch16_dinov3_qkvb", **sizes))
    save_file(model.state_dict(), tmp_path / "file.safetensors")
    x = torch.randn(2, 3, 16, 16)
    found = load(tmp_path / "file.safetensors", overrides=HEADS, **size_of(x))
    assert gap(found.model.encode_target(x), model.forward_features(x)[:, 5:]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("classifier", [False, True])
def test_v_jepa_2_of_hugging_face(classifier, tmp_path):
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 2}
    config = VJEPA2Config(**sizes, **predictor, crop_size=32, patch_size=16, frames_per_clip=4)
    model = perturbed((VJEPA2ForVideoClassification if classifier else VJEPA2Model)(config))
    model.save_pretrained(tmp_path / "folder")
    (tmp_path / "alone.safetensors").hardlink_to(tmp_path / "folder" / "model.safetensors")
    x = torch.randn(1, 3, 4, 32, 32)
    network = model.vjepa2 if classifier else model
    wanted = network(x.transpose(1, 2), skip_predictor=True).last_hidden_state
    forms = {f"hf:{tmp_path}/folder": {}, f"{tmp_path}/folder": {}, f"{tmp_path}/folder/model.safetensors": {}}
    forms[f"{tmp_path}/alone.safetensors"] = HEADS
    for form, given in forms.items():
        found = load(form, overrides=given, image_size=(32, 32), channels=3)
        assert gap(found.model.encode_target(x), wanted) < 1e-5
        assert any("pooler" in line for line in found.lines) == classifier
