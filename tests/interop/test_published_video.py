"""Parity with the published V-JEPA and V-JEPA 2 implementations (shared/fixtures), and files of V-JEPA 2.1's form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from jepa.interop import find, load, load_into, load_published
from jepa.interop.ijepa import renamed
from jepa.interop.vjepa import LEVELS, model_config, sincos_layout
from jepa.models.positions import sincos_positions
from jepa.types import Mask
from jepa.utils.errors import CheckpointError, UserError

NAMES = ("vjepa1_tiny", "vjepa2_tiny")
SIZES = {"image_size": 32, "patch_size": 8, "num_heads": 4}
CLIP = {"num_frames": 8, "tubelet_size": 2, "predictor_heads": 2}


@pytest.fixture(scope="module")
def files(shared_dir):
    folder = shared_dir / "fixtures"
    return {name: (folder / f"{name}.pt", np.load(folder / f"{name}_expected.npz")) for name in NAMES}


def expected_of(arrays):
    return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}


def close(got, wanted, tolerance=1e-5):
    return got.shape == wanted.shape and (got - wanted).abs().max().item() < tolerance


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_features_predictions_and_loss(files, name, device, precision):
    path, arrays = files[name]
    expected = {name: tensor.to(device) for name, tensor in expected_of(arrays).items()}
    model, x, tolerance = load_published(path, **SIZES, **CLIP).to(device), expected["video"], 1e-5 * precision
    masks = [Mask(expected[f"mask{i}_context_index"], expected[f"mask{i}_target_index"][:, None]) for i in range(2)]
    assert close(model.encoder(x), expected["encoder_full"], tolerance)
    assert close(model.encode_target(x), expected["target_encoder_full"], tolerance)
    latents = model.latents(x, masks)
    for i, mask in enumerate(masks):
        assert close(model.encoder(x, keep=mask.context), expected[f"mask{i}_encoder_context"], tolerance)
        assert close(latents.predictions[i][:, 0], expected[f"mask{i}_prediction"], tolerance)
        assert close(latents.targets[i][:, 0], expected[f"mask{i}_target"], tolerance)
    assert model.loss(latents)["loss"].item() == pytest.approx(expected["loss_l1"].item(), rel=1e-6 * precision)


def test_conventions_are_read_off_the_format(files):
    first, second = (load_published(files[name][0], **SIZES, **CLIP) for name in NAMES)
    assert first.encoder.positions.layout == "uniform_power"
    assert second.encoder.rotary.convention == second.predictor.rotary.convention == "tiled"
    asked = load_published(files["vjepa2_tiny"][0], **SIZES, **CLIP, rotary_convention="interleaved")
    assert asked.encoder.rotary.convention == asked.predictor.rotary.convention == "interleaved"


def test_ema_encoder_is_the_form_of_2_1(files, tmp_path):
    content = torch.load(files["vjepa2_tiny"][0], weights_only=True)
    content["ema_encoder"] = content.pop("target_encoder")
    torch.save(content, tmp_path / "renamed.pt")
    model = load_published(tmp_path / "renamed.pt", **SIZES, **CLIP)
    assert model.encoder.rotary.convention == "interleaved"
    tiled = load_published(tmp_path / "renamed.pt", **SIZES, **CLIP, rotary_convention="tiled")
    x = torch.from_numpy(files["vjepa2_tiny"][1]["video"])
    assert close(tiled.encode_target(x), torch.from_numpy(files["vjepa2_tiny"][1]["target_encoder_full"]))
    assert not close(model.encode_target(x), tiled.encode_target(x), 1e-3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tubelet_size": 4}, CheckpointError, "has tubelets of 2 frames, got tubelet_size=4"),
        ({"patch_size": 16}, CheckpointError, "has patches of 8 x 8 pixels, got patch_size=16"),
        ({"num_frames": 9}, CheckpointError, "num_frames=9 is not a multiple of 2"),
        ({"num_frames": 16}, CheckpointError, "clips of 8 frames of 32 pixels, got num_frames=16 and image_size=32"),
        ({"image_size": 64}, CheckpointError, "clips of 8 frames of 32 pixels, got num_frames=8 and image_size=64"),
        ({"num_heads": 5}, UserError, "heads=5 does not divide"),
        ({"rotary_convention": "tiled"}, UserError, "has sine-cosine positions; leave it out"),
    ],
)
def test_other_sizes_are_refused(files, changes, error, message):
    with pytest.raises(error, match=message):
        load_published(files["vjepa1_tiny"][0], **{**SIZES, **CLIP, **changes})


def test_pictures_as_clips_and_damaged_positions_are_refused(files, shared_dir, tmp_path):
    pictures = shared_dir / "fixtures" / "ijepa_tiny.pth.tar"
    with pytest.raises(CheckpointError, match="is of pictures, not of clips: leave out num_frames"):
        load_published(pictures, image_size=32, patch_size=4, num_heads=4, num_frames=8)
    content = torch.load(files["vjepa1_tiny"][0], weights_only=True)
    content["encoder"]["module.backbone.pos_embed"].add_(0.1)
    torch.save(content, tmp_path / "damaged.pt")
    with pytest.raises(CheckpointError, match=r"encoder.pos_embed does not hold sine-cosine positions of clips"):
        load_published(tmp_path / "damaged.pt", **SIZES, **CLIP)


@pytest.mark.parametrize("layout", ["half_time", "uniform_power"])
def test_a_layout_and_its_grid_are_found(layout, tmp_path):
    table = sincos_positions(48, (2, 6, 6), layout)[None]
    assert sincos_layout(table, "pos_embed", tmp_path) == (layout, (2, 6, 6))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_opening_for_evaluation(files, name, tmp_path):
    path, arrays = files[name]
    opened = load(str(path), overrides={"encoder.num_heads": 4, "predictor.num_heads": 2})
    x = torch.from_numpy(arrays["video"])
    assert close(opened.model.encode_target(x), torch.from_numpy(arrays["target_encoder_full"]))
    assert opened.channels == 3
    assert any({"vjepa1_tiny": "uniform_power", "vjepa2_tiny": "tiled"}[name] in line for line in opened.lines)
    assert not close(opened.random_init().encode_target(x), opened.model.encode_target(x), 1e-3)
    with pytest.raises(UserError, match="does not say how many attention heads its encoder has"):
        load(str(path))
    with pytest.raises(UserError, match=r"model.encoder.stem.tubelet_size=4, but .* has 2"):
        load(str(path), overrides={"encoder.num_heads": 4, "encoder.stem.tubelet_size": 4})
    torch.save(torch.load(path, weights_only=True)["encoder"], tmp_path / "encoder.pt")
    alone = load(str(tmp_path / "encoder.pt"), overrides={"encoder.num_heads": 4})
    assert close(alone.model.encode_target(x), torch.from_numpy(arrays["encoder_full"]))


def fresh(path, **changes):
    """An untrained model of a file's sizes."""
    source = find(str(path))
    source.overrides = {"encoder.num_heads": 4, "predictor.num_heads": 2}
    config = model_config(source)
    config["encoder"] |= changes
    return instantiate(config, _convert_="all").eval()


@torch.no_grad()
def test_training_starts_from_a_file(files):
    path, arrays = files["vjepa2_tiny"]
    model = fresh(path)
    load_into(model, path)
    x = torch.from_numpy(arrays["video"])
    assert close(model.encoder(x), torch.from_numpy(arrays["encoder_full"]))
    with pytest.raises(CheckpointError, match=r"set model.encoder.rotary_convention=tiled"):
        load_into(fresh(path, rotary_convention="interleaved"), path)
    with pytest.raises(
        CheckpointError, match=r"set model.encoder.positions=sincos model.encoder.sincos_layout=uniform"
    ):
        load_into(fresh(path), files["vjepa1_tiny"][0])


NAMES_2_1 = {
    r"^stem\.proj\.": "patch_embed.proj.",
    r"^stem\.picture_proj\.": "patch_embed_img.proj.",
    r"^level_norms\.": "norms_block.",
    r"^norm\.": "norms_block.3.",
}
PREDICTOR_NAMES_2_1 = {
    r"^(embed|blocks|norm)\.": r"predictor_\1.",
    r"^project\.": "predictor_proj.",
    r"^project_context\.": "predictor_proj_context.",
}


def as_published_2_1(network, names):
    """Our weights as app/vjepa_2_1 stores them, which has no fixture."""
    state, out = network.state_dict(), {}
    for name in {"modality", "stem.modality"} & state.keys():
        out["video_mod_embed"], out["img_mod_embed"] = state.pop(name)[:, None, None]
    for number, token in enumerate(state.pop("mask_token", ())):
        out[f"mask_tokens.{number}"] = token[None]
    for name, tensor in renamed(state, names).items():
        frames = {"patch_embed.proj.weight": 2, "patch_embed_img.proj.weight": 1}.get(name)
        out[name] = tensor.view(-1, 3, frames, 8, 8) if frames else tensor
    return {f"module.backbone.{name}": tensor for name, tensor in out.items()}


@torch.no_grad()
def test_a_file_of_2_1(tmp_path):
    from jepa.losses.context_prediction import ContextPrediction
    from jepa.losses.objective import Objective
    from jepa.losses.regression import L1
    from jepa.masks import RandomMask
    from jepa.models import EMATarget, MaskedJEPA, Predictor, TransformerEncoder
    from jepa.models.encoders.tubelet_stem import TubeletStem
    from jepa.optim import Constant

    torch.manual_seed(0)
    encoder = TransformerEncoder(
        stem=lambda embed_dim: TubeletStem(embed_dim=embed_dim, patch_size=8, images=True),
        embed_dim=24,
        depth=12,
        num_heads=2,
        positions="rotary",
        level_layers=LEVELS[12],
    )
    model = MaskedJEPA(
        encoder=encoder,
        predictor=lambda encoder, out_dim: Predictor(
            encoder=encoder,
            out_dim=out_dim,
            embed_dim=16,
            depth=2,
            positions="rotary",
            mask_tokens=2,
            context_layers=LEVELS[12],
            predict_context=True,
            modality_vectors=True,
        ),
        target=lambda encoder: EMATarget(encoder=encoder, momentum=Constant(value=0.9), concat_layers=LEVELS[12]),
        mask=RandomMask(),
        loss=lambda **sizes: Objective(
            terms={
                "prediction": {"weight": 1.0, "term": L1()},
                "context": {"weight": 0.5, "term": ContextPrediction(distance=L1())},
            },
            **sizes,
        ),
    ).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    networks = {"encoder": model.encoder, "ema_encoder": model.target.encoder}
    content = {part: as_published_2_1(network, NAMES_2_1) for part, network in networks.items()}
    content["predictor"] = as_published_2_1(model.predictor, PREDICTOR_NAMES_2_1)
    torch.save(content | {"epoch": 1}, tmp_path / "2_1.pt")
    loaded = load_published(tmp_path / "2_1.pt", image_size=16, patch_size=8, num_heads=2)
    assert loaded.encoder.rotary.convention == "interleaved"
    masks = [Mask(torch.tensor([[0, 3, 5]]), torch.tensor([[[1, 2, 4]]]))]
    x = torch.randn(1, 3, 4, 16, 16)
    ours, theirs = model.latents(x, masks), loaded.latents(x, masks)
    assert ours.predictions[0].shape == (1, 1, 3, 96)
    assert close(theirs.predictions[0], ours.predictions[0])
    assert close(theirs.context.predictions[0], ours.context.predictions[0])
    assert close(theirs.targets[0], ours.targets[0])
    assert model.loss(ours)["loss"].item() == pytest.approx(loaded.loss(theirs)["loss"].item(), rel=1e-6)
    picture = torch.randn(1, 3, 16, 16)
    assert close(loaded.encoder(picture), model.encoder(picture))
    assert close(loaded.encoder(picture), loaded.encoder(picture[:, :, None]))
