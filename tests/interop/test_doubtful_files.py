"""Files that leave something open or are damaged: grids of positions, and what each error offers."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from test_other_projects import HEADS, SIZES, gap, perturbed, size_of, vit

from jepa.interop import load
from jepa.utils.errors import CheckpointError, UserError

WIDE = {"img_size": (56, 48), "patch_size": 4}
"""14 x 12 patches: with a class token as many positions as 13 x 13 without."""


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "given", "size"),
    [
        (WIDE, {}, (56, 48)),
        (WIDE, {"encoder.image_size": [56, 48]}, (28, 28)),
        (WIDE | {"class_token": False, "global_pool": "avg"}, {}, (56, 48)),
        (WIDE | {"reg_tokens": 2, "no_embed_class": True}, {}, (56, 48)),
        ({"img_size": 52, "no_embed_class": True}, {}, (52, 52)),
        ({"img_size": 56}, {}, (56, 48)),
        ({"img_size": (32, 72)}, {}, (32, 72)),  # 8 x 18, as many as 12 x 12
        ({"img_size": 52, "no_embed_class": True}, {"encoder.image_size": 52}, (28, 28)),
    ],
)
def test_the_grid_of_positions(model, given, size, tmp_path):
    model = vit(**model)
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    x = torch.randn(2, 3, *size)
    found = load(tmp_path / "vit.pt", overrides={**HEADS, **given}, **size_of(x))
    model.set_input_size(size)
    assert gap(found.model.encode_target(x), model.forward_features(x)[:, model.num_prefix_tokens :]) < 1e-5


@pytest.mark.parametrize(
    "model", [WIDE, WIDE | {"class_token": False, "global_pool": "avg"}, {"img_size": 52, "no_embed_class": True}]
)
@pytest.mark.parametrize("size", [(64, 64), None])
def test_a_grid_that_cannot_be_told(model, size, tmp_path):
    """Each size that the error names is taken."""
    torch.save(vit(**model).state_dict(), tmp_path / "vit.pt")
    source = tmp_path / "vit.pt"
    with pytest.raises(UserError, match=r"grid cannot be told: give .* model.encoder.image_size=") as caught:
        load(source, overrides=HEADS, image_size=size, channels=3)
    offered = re.findall(r"\[(\d+),(\d+)\]", str(caught.value))
    assert ("56", "48") in offered or ("52", "52") in offered
    for height, width in offered:
        load(source, overrides={**HEADS, "encoder.image_size": [int(height), int(width)]}, image_size=size, channels=3)
    with pytest.raises(UserError, match=r"image_size=\[60, 60\] does not fit"):
        load(source, overrides={**HEADS, "encoder.image_size": [60, 60]}, image_size=size, channels=3)


# What cannot be read, and what the message offers.


def test_heads_and_sizes_that_are_offered_are_taken(tmp_path):
    from transformers import ViTConfig, ViTModel

    torch.save(vit().state_dict(), tmp_path / "vit.pt")
    with pytest.raises(UserError, match=r"give model.encoder.num_heads=<number> \(it divides 32: one of") as caught:
        load(tmp_path / "vit.pt")
    for number in re.findall(r"\d+", str(caught.value).partition("one of [")[2]):
        load(tmp_path / "vit.pt", overrides={"encoder.num_heads": int(number)})
    ViTModel(ViTConfig(**{**SIZES, "image_size": [16, 24]})).save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match=r"is not a multiple of .* use data.image_size=\[16,24\]$"):
        load(tmp_path / "hf", image_size=(18, 18), channels=3)
    load(tmp_path / "hf", image_size=(16, 24), channels=3)


@torch.no_grad()
@pytest.mark.parametrize(("name", "grid"), [("eva02_tiny_patch14_224", 28), ("vit_tiny_patch16_224", 32)])
def test_a_model_that_is_named(name, grid, tmp_path):
    """EVA has learned positions and rotary ones, and its file says no size; a plain ViT may be named all the same."""
    model = perturbed(timm.create_model(name, img_size=grid, num_classes=5))
    torch.save(model.state_dict(), tmp_path / "file.pt")
    x = torch.randn(2, 3, grid, grid)
    if name.startswith("eva"):
        with pytest.raises(CheckpointError, match=r"model.encoder.name=<name in timm>"):
            load(tmp_path / "file.pt", overrides={"encoder.num_heads": 3}, **size_of(x))
    found = load(tmp_path / "file.pt", overrides={"encoder.name": name}, **size_of(x))
    assert gap(found.model.encode_target(x), model.forward_features(x)[:, 1:]) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.0.norm1.weight"), r"blocks.0.norm1.weight: missing"),
        (lambda s: [s.pop(n) for n in list(s) if n.startswith("blocks.0.")], "block 0 of its encoder is missing, of 2"),
        (lambda s: s.update({"blocks.99999999.norm1.weight": torch.ones(32)}), r"block 2 .* missing, of 100000000"),
        (
            lambda s: s.update(pos_embed=torch.ones(1).expand(1, 2**40, 32)),
            "claims .*, more values than the file holds",
        ),
        (
            lambda s: s.update({"norm_pre.weight": torch.ones(32)}),
            r"norm_pre.weight: in the file only(.|\n)*encoder.name=",
        ),
    ],
)
def test_damaged_and_oversized_files(change, message, tmp_path):
    state = dict(vit().state_dict())
    change(state)
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "file.pt", overrides=HEADS)
