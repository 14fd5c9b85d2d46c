"""Exports give the features of what was exported, wherever they are loaded."""

from __future__ import annotations

import json

import onnxruntime
import pytest
import timm
import torch

from jepa.interop import Loaded, load
from jepa.interop import export as export_loaded
from jepa.interop.exporting import compare, timm_call
from jepa.interop.frozen_networks import FrozenNetworks
from jepa.models import timm_vision_transformer, vision_transformer
from jepa.utils.errors import CheckpointError, UserError
from jepa.utils.files import write_atomic


@pytest.fixture(scope="module")
def run(run_folder):
    opened = load(str(run_folder))
    return run_folder, opened.model, torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def loaded_of(encoder, config, image_size):
    return Loaded(FrozenNetworks(encoder=encoder), None, [], {}, encoder=config, image_size=image_size, channels=1)


def largest(a, b):
    return (a - torch.as_tensor(b)).abs().max().item()


@torch.no_grad()
def test_timm(run, export, tmp_path, capsys):
    folder, model, x = run
    path = export(f"checkpoint={folder}", "format=timm", f"output={tmp_path / 'out' / 'timm.pth'}")
    card = json.loads((tmp_path / "out" / "timm.pth.json").read_text())
    call = card["export"]["create_model"]
    wanted = {"num_classes": 0, "global_pool": "avg", "fc_norm": False, "class_token": False}
    assert wanted.items() <= call.items()
    assert (call["img_size"], call["patch_size"], call["in_chans"]) == (8, 2, 1)
    loaded = timm.create_model(**call, checkpoint_path=str(path)).eval()
    assert largest(loaded(x), model.encode_target(x).mean(dim=1)) < 1e-5
    assert card["results"]["trained"]["knn"] == json.loads((folder / "results.json").read_text())["trained"]["knn"]
    assert card["data"]["source"]["_target_"] == "jepa.data.sources.digits"
    assert card["step"] == 3
    text = (tmp_path / "out" / "timm.pth.md").read_text()
    assert 'timm.create_model(\n    "vit_base_patch16_224",\n    num_classes=0,' in text
    code = text.split("```python\n")[1].split("```")[0].replace('"timm.pth"', repr(str(path)))
    names = {"x": x}
    exec(code, names)
    assert names["features"].shape == (3, 32)
    again = load(str(path), overrides={"encoder.num_heads": model.encoder.num_heads})
    assert torch.equal(again.model.encoder(x), model.encode_target(x))
    assert "features agree to" in capsys.readouterr().out


@torch.no_grad()
@pytest.mark.parametrize("network", ["target", "context"])
def test_safetensors(run, export, evaluate, tmp_path, network):
    folder, model, x = run
    path = export(f"checkpoint={folder}", f"network={network}", f"output={tmp_path / 'e.safetensors'}")
    again = load(str(path))
    wanted = model.encoder(x) if network == "context" else model.encode_target(x)
    assert torch.equal(again.model.encoder(x), wanted)
    assert again.step == 3
    if network == "target":
        scored = evaluate(f"checkpoint={path}")  # on the data its header names
        assert scored["trained"]["knn"] == json.loads((folder / "results.json").read_text())["trained"]["knn"]
        assert scored["step"] == 3


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
@pytest.mark.parametrize("features", ["tokens", "pooled"])
def test_torchscript(run, export, tmp_path, features):
    folder, model, x = run
    path = export(f"checkpoint={folder}", "format=torchscript", f"features={features}", f"output={tmp_path / 'e.ts'}")
    wanted = model.encode_target(x)
    assert largest(torch.jit.load(path)(x), wanted if features == "tokens" else wanted.mean(dim=1)) < 1e-5


@torch.no_grad()
def test_onnx(tmp_path):
    """Of one block, as torch takes seconds for each."""
    config = {"image_size": 8, "channels": 1, "patch_size": 2, "embed_dim": 32, "depth": 1, "num_heads": 2}
    encoder = vision_transformer(**config).eval()
    export_loaded(loaded_of(encoder, config, (8, 12)), tmp_path / "e.onnx", format="onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "e.onnx"))
    for batch in (1, 5):
        x = torch.randn(batch, 1, 8, 12)
        (got,) = session.run(["features"], {"x": x.numpy()})
        assert largest(encoder(x), got) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"e.onnx", "e.onnx.json", "e.onnx.md"}


def test_what_a_writer_puts_beside_its_file_keeps_its_name(tmp_path):
    """As ONNX keeps the name of its file of weights."""

    def write(path):
        path.with_name(f"{path.name}.data").write_text("weights")
        path.write_text(f"{path.name}.data")

    write_atomic(tmp_path / "out" / "e.onnx", write)
    assert (tmp_path / "out" / (tmp_path / "out" / "e.onnx").read_text()).read_text() == "weights"
    assert len(list((tmp_path / "out").iterdir())) == 2
    with pytest.raises(ZeroDivisionError):
        write_atomic(tmp_path / "out" / "e.onnx", lambda path: path.write_text(str(1 / 0)))
    assert (tmp_path / "out" / "e.onnx").read_text() == "e.onnx.data"


@torch.no_grad()
def test_a_published_file(published, expected, export, tmp_path):
    path = export(
        f"checkpoint={published}", "model.encoder.num_heads=4", "format=timm", f"output={tmp_path / 'e.safetensors'}"
    )
    call = json.loads((tmp_path / "e.safetensors.json").read_text())["export"]["create_model"]
    features = timm.create_model(**call, checkpoint_path=str(path)).eval()(expected["image"])
    assert largest(features, expected["target_encoder_full"].mean(dim=1)) < 1e-5


def test_sizes_of_timm_take_its_name():
    with torch.device("meta"):
        small = vision_transformer(image_size=32, channels=3, patch_size=4, embed_dim=384, depth=12, num_heads=6)
        named = timm_vision_transformer(name="vit_small_patch14_reg4_dinov2", image_size=28, channels=3)
    call = timm_call(small, None, (32, 32))
    assert (call["model_name"], call["patch_size"]) == ("vit_small_patch16_224", 4)
    assert "embed_dim" not in call
    call = timm_call(named, {"name": "vit_small_patch14_reg4_dinov2"}, (28, 28))
    assert (call["model_name"], call["reg_tokens"]) == ("vit_small_patch14_reg4_dinov2", 0)


@torch.no_grad()
def test_a_named_encoder_with_parts_of_its_own(tmp_path):
    config = {"name": "vit_tiny_patch16_224", "image_size": 32, "channels": 1}
    encoder = timm_vision_transformer(**config).eval()
    torch.nn.init.normal_(encoder.vit.norm.bias)
    card, _ = export_loaded(loaded_of(encoder, config, (32, 32)), tmp_path / "e.pth", format="timm")
    assert card["export"]["create_model"]["model_name"] == "vit_tiny_patch16_224"
    assert card["export"]["difference"] < 1e-5


def test_mistakes(run, export, tmp_path):
    folder = run[0]
    for override, message in [
        ("format=tflite", "format=tflite: expected one of safetensors, timm, torchscript, onnx"),
        ("network=teacher", "network=teacher: expected one of target, context"),
        (f"output={tmp_path / 'e.bin'}", "a file of format=safetensors ends with .safetensors"),
        ("data.image_size=9", "data.image_size=9 is not a multiple of the patches of 2 pixels"),
        ("results=absent.json", "results=absent.json cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            export(f"checkpoint={folder}", override)
    with pytest.raises(UserError, match="Linear is not one of our Vision"):
        timm_call(torch.nn.Linear(1, 1), None, (8, 8))
    with pytest.raises(CheckpointError, match=r"differ by up to 0.5"):
        compare("onnx", torch.zeros(2), torch.full((2,), 0.5))
