"""What can be opened, how strictly, and what is told of it."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from jepa.checkpoint import sharded
from jepa.interop import find, load, network_of
from jepa.interop.ijepa import renamed
from jepa.utils.errors import CheckpointError, UserError

HEADS = {"encoder.num_heads": 4}


@pytest.fixture(scope="module")
def parts(published):
    return torch.load(published, weights_only=True)


def opened(path, overrides=HEADS, **others):
    return load(path, overrides=overrides, **others)


def close(got, wanted, tolerance=1e-5):
    return torch.allclose(got, wanted, atol=tolerance)


def saved(content, folder, name="file.pt"):
    torch.save(content, folder / name)
    return folder / name


@torch.no_grad()
def test_a_published_file(published, expected):
    model = opened(published, image_size=(32, 32), channels=3)
    assert close(model.model.encoder(expected["image"]), expected["encoder_full"])
    assert close(model.model.encode_target(expected["image"]), expected["target_encoder_full"])
    words = "\n".join(model.lines)
    assert "prefix module." in words
    assert "left alone: opt, scaler, epoch" in words
    assert "pictures of 32 x 32" in words
    assert model.image_size == (32, 32)
    fresh = model.random_init()
    assert not close(fresh.encoder(expected["image"]), expected["encoder_full"])


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module.backbone.", "_orig_mod.module."])
def test_prefixes_and_ema_encoder(parts, expected, tmp_path, prefix):
    content = {
        name: renamed(parts[part], {r"^module\.": prefix})
        for name, part in {"encoder": "encoder", "predictor": "predictor", "ema_encoder": "target_encoder"}.items()
    }
    model = opened(saved(content, tmp_path))
    assert close(model.model.encode_target(expected["image"]), expected["target_encoder_full"])
    assert any("ema_encoder makes the targets" in line for line in model.lines)
    assert any(line.endswith(f"prefix {prefix}") for line in model.lines) == bool(prefix)


@torch.no_grad()
def test_half_precision(parts, expected, tmp_path):
    short = {
        name: {key: tensor.bfloat16() for key, tensor in parts[name].items()}
        for name in ("encoder", "predictor", "target_encoder")
    }
    model = opened(saved(short, tmp_path)).model
    assert close(model.encode_target(expected["image"]), expected["target_encoder_full"], 0.1)
    bare = opened(saved(short["target_encoder"], tmp_path))
    assert "its positions are sine-cosine, computed for the grid that comes" in bare.lines


@torch.no_grad()
def test_encoders_alone(parts, expected, tmp_path):
    x = expected["image"]
    both = opened(saved({"encoder": parts["encoder"], "target_encoder": parts["target_encoder"]}, tmp_path))
    assert close(network_of(both.model, "context")(x), expected["encoder_full"])
    assert close(network_of(both.model, "target")(x), expected["target_encoder_full"])
    one = opened(saved({"teacher": parts["target_encoder"], "epoch": 3}, tmp_path))
    assert close(one.model.encoder(x), expected["target_encoder_full"])
    assert "entry 'teacher'; left alone: epoch" in one.lines[0]
    save_file(renamed(parts["encoder"], {r"^module\.": ""}), tmp_path / "bare.safetensors")
    bare = opened(tmp_path / "bare.safetensors")
    assert close(bare.model.encoder(x), expected["encoder_full"])
    assert "its positions are sine-cosine, computed for the grid that comes" in bare.lines
    assert not close(bare.random_init().encoder(x), expected["encoder_full"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["encoder"].pop("module.norm.bias"), "encoder.vit.norm.bias: missing in the file"),
        (
            lambda c: c["encoder"].update({"module.norm.offset": c["encoder"].pop("module.norm.bias")}),
            r"1 keys missing, 1 unexpected, 0 of another shape(.|\n)*encoder.vit.norm.offset: in the file only",
        ),
        (
            lambda c: c["target_encoder"].update({"module.norm.bias": torch.zeros(3)}),
            r"target.encoder.vit.norm.bias: \(3,\) in the file, \(48,\) in the model",
        ),
        (
            lambda c: c["predictor"].update({"module.predictor_proj.bias": torch.zeros(3)}),
            r"predictor.project.bias: \(3,\) in the file, \(48,\) in the model",
        ),
        (lambda c: c["encoder"].update({"module.blocks.last.w": torch.zeros(1)}), "blocks.last.w: in the file only"),
        (lambda c: c["encoder"].update({"module.step": 3}), "its entry 'encoder' holds other things than tensors"),
        (lambda c: c["target_encoder"]["module.pos_embed"].add_(0.1), "target_encoder.pos_embed does not hold"),
        (lambda c: c.update(ema_encoder=c["encoder"]), "holds 3 encoders, encoder.module, target_encoder.module, ema"),
        (lambda c: c.update(student=c["encoder"]), "holds 3 encoders, .*: which is meant cannot be told"),
        (lambda c: c["predictor"].pop("module.mask_token"), "predictor lacks mask_token"),
        (lambda c: (c.clear(), c.update(a=1, b="x")), r"no known layout; it holds a \(int\), b \(str\)"),
    ],
)
def test_what_does_not_fit_is_refused(published, tmp_path, change, message):
    content = torch.load(published, weights_only=True)
    change(content)
    with pytest.raises(CheckpointError, match=message):
        opened(saved(content, tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"does not say how many attention heads its encoder has: give model.encoder.num_heads=<number>"),
        ({"encoder.num_heads": 5}, "model.encoder.num_heads=5 does not divide the width 48"),
        ({**HEADS, "encoder.embed_dim": 64}, r"model.encoder.embed_dim=64, but .* has 48: leave it out"),
        ({**HEADS, "predictor.num_heads": 7}, "model.predictor.num_heads=7 does not divide the width 24"),
        ({**HEADS, "encoder.head": 4}, "model.encoder.head=4: .* takes no such value"),
    ],
)
def test_what_is_given_must_fit_the_file(published, given, message):
    with pytest.raises(UserError, match=message):
        opened(published, given)


def test_other_channels_and_sizes(published):
    with pytest.raises(UserError, match=r"data.channels=1, but .* takes 3: add data.channels=3 \(grey"):
        opened(published, image_size=(32, 32), channels=1)
    assert "made for pictures of 32 x 32 pixels, used on 48 x 48" in opened(published, image_size=(48, 48)).lines


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="expected a run folder, a file, timm:<name>, hf:<name or folder>"):
        find(str(tmp_path / "absent"))
    (tmp_path / "cut.safetensors").write_bytes(b"12345")
    with pytest.raises(CheckpointError, match="cut short or not a safetensors file"):
        find(str(tmp_path / "cut.safetensors"))


@torch.no_grad()
def test_runs_in_every_form(run_folder, tmp_path):
    x = torch.randn(2, 1, 8, 8)
    last = run_folder / "checkpoints" / "last.pt"
    sharded.write(tmp_path / "last.sharded", torch.load(last, weights_only=True))
    forms = [run_folder, last.parent, last, run_folder.parent / "bare.pt", tmp_path / "last.sharded", tmp_path]
    models = [opened(form, {}) for form in forms]
    assert all(torch.equal(m.model.encode_target(x), models[0].model.encode_target(x)) for m in models)
    assert len({m.fingerprint for m in models}) == 1
    assert models[0].step == 3
    with pytest.raises(UserError, match=r"model.encoder.depth=7, but the model of .* has 2: .* leave it out"):
        opened(run_folder, {"encoder.depth": 7})
    opened(run_folder, {"encoder.depth": 2})


def test_a_run_that_does_not_fit(run_folder, tmp_path):
    content = torch.load(run_folder / "checkpoints" / "last.pt", weights_only=True)
    del content["model"]["encoder.vit.norm.bias"]
    with pytest.raises(CheckpointError, match=r"encoder.vit.norm.bias: missing in the file"):
        opened(saved(content, tmp_path), {})
    content["config"]["model"]["mask"]["_target_"] = "os.system"
    with pytest.raises(CheckpointError, match=r"would build 'os.system' as model.mask, .* trust=true"):
        opened(saved(content, tmp_path), {})
    del content["config"]["model"]
    with pytest.raises(CheckpointError, match="lacks its config or model"):
        opened(saved(content, tmp_path), {})
    with pytest.raises(CheckpointError, match="lacks its config or model"):
        opened(saved({"format": "jepa", "version": 2}, tmp_path))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A timm ViT with class token and learned positions, and a file of its weights with a classifier."""
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **sizes).eval()
    path = tmp_path_factory.mktemp("timm") / "vit.safetensors"
    save_file(model.state_dict(), path)
    return model, path


@torch.no_grad()
def test_a_timm_file(vit, tmp_path):
    model, path = vit
    x = torch.randn(2, 3, 16, 16)
    given = {"encoder.num_heads": 2}
    found = opened(path, given, image_size=(16, 16), channels=3)
    assert close(found.model.encoder(x), model.forward_features(x)[:, 1:])
    assert close(found.model.encoder(x, layers=[1, 0])[0], model.forward_features(x)[:, 1:])
    assert "left alone: head" in found.lines
    assert not close(found.random_init().encoder(x), found.model.encoder(x))
    larger = opened(path, given, image_size=(24, 24))
    assert larger.model.encoder(torch.randn(1, 3, 24, 24)).shape == (1, 36, 32)
    weights = model.state_dict() | {"blocks.0.extra.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"blocks.0.extra.weight: in the file only(.|\n)*model.encoder.name="):
        opened(saved(weights, tmp_path), given)


@torch.no_grad()
def test_a_timm_name(vit, monkeypatch):
    model, path = vit
    create = timm.create_model
    sizes = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}

    def local(name, **others):
        overlay = {"file": str(path), "input_size": (3, 16, 16), "num_classes": 5}
        return create(name, **sizes, **others, pretrained_cfg_overlay=overlay)

    monkeypatch.setattr(timm, "create_model", local)
    name = "timm:vit_tiny_patch16_224.augreg_in21k"
    found = load(name, image_size=(16, 16), channels=3)
    x = torch.randn(2, 3, 16, 16)
    assert close(found.model.encode_target(x), model.forward_features(x)[:, 1:])
    assert "its 1 class or register tokens are no features" in found.lines
    assert found.mean == (0.5, 0.5, 0.5)
    assert not close(found.random_init().encoder(x), found.model.encoder(x))


def test_names_that_do_not_exist(tmp_path, monkeypatch):
    sizes = {"image_size": (16, 16), "channels": 3}
    with pytest.raises(UserError, match=r"timm has no model 'vit_smal_patch16_224'; it has"):
        load("timm:vit_smal_patch16_224", **sizes)
    with pytest.raises(UserError, match=r"timm has no weights 'mine' of vit_tiny_patch16_224; it has augreg_in21k"):
        load("timm:vit_tiny_patch16_224.mine", **sizes)
    with pytest.raises(UserError, match=r"the folder has no config.json"):
        load(f"hf:{tmp_path}", **sizes)
    with pytest.raises(UserError, match="says what the model is; leave it out"):
        load("timm:vit_tiny_patch16_224", overrides=HEADS, **sizes)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"checkpoint=hf:nobody/nothing cannot be opened: (.|\n)*Is there a network\?"):
        load("hf:nobody/nothing", **sizes)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    from transformers import IJepaConfig, IJepaModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = IJepaModel(IJepaConfig(**sizes, image_size=16, patch_size=4)).eval()
    folder = tmp_path_factory.mktemp("hf") / "ijepa"
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
def test_a_hugging_face_folder(hugging_face, tmp_path):
    model, folder = hugging_face
    x = torch.randn(2, 3, 16, 16)
    source = find(f"hf:{folder}")
    found = load(source, image_size=(16, 16), channels=3)
    assert close(found.model.encode_target(x), model(x).last_hidden_state)
    assert close(found.model.encoder(x, layers=[0, 1])[1], model(x).last_hidden_state)
    assert not close(found.random_init().encoder(x), found.model.encoder(x))
    larger = load(source, image_size=(24, 24), channels=3)
    assert larger.model.encoder(torch.randn(1, 3, 24, 24)).shape == (1, 36, 32)
    with pytest.raises(UserError, match=r"data.channels=1, but .* takes 3: add data.channels=3"):
        load(source, image_size=(16, 16), channels=1)
    weights = model.state_dict()
    weights["layernorm.offset"] = weights.pop("layernorm.bias")
    weights["layernorm.weight"] = torch.ones(5)
    model.config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"bias: missing in(.|\n)*offset: in the(.|\n)*weight: of another shape"):
        load(f"hf:{tmp_path}", image_size=(16, 16), channels=3)


@torch.no_grad()
@pytest.mark.parametrize("nested", [True, False])
def test_a_hugging_face_folder_in_the_format_of_timm(tmp_path, nested):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    timm.models.save_for_hf(model, tmp_path)
    if not nested:  # as older versions of timm wrote it
        settings = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "input_size": [3, 32, 32]}
        (tmp_path / "config.json").write_text(json.dumps(settings))
    found = load(f"hf:{tmp_path}", image_size=(32, 32), channels=3)
    x = torch.randn(2, 3, 32, 32)
    assert close(found.model.encode_target(x), model.forward_features(x)[:, 1:])
    assert found.lines[0] == f"hf:{tmp_path} is in timm's format"


@torch.no_grad()
def test_class_and_register_tokens_of_hugging_face(tmp_path):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_register_tokens": 3}
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, image_size=16, patch_size=4)).eval()
    model.save_pretrained(tmp_path)
    found = load(f"hf:{tmp_path}", image_size=(16, 16), channels=3)
    x = torch.randn(2, 3, 16, 16)
    assert close(found.model.encode_target(x), model(x).last_hidden_state[:, 4:])
