"""The model of views, and the target that is the encoder itself with gradient."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from jepa.losses import Invariance, Objective, Projector, SIGReg, SmoothL1
from jepa.masks import RandomMask
from jepa.models import (
    EMATarget,
    LeJEPA,
    MaskedJEPA,
    Predictor,
    SharedTarget,
    StopGradientTarget,
    TransformerEncoder,
    vision_transformer,
)
from jepa.models.encoders.image_stem import ImageStem
from jepa.models.encoders.series_stem import SeriesStem
from jepa.models.encoders.spectrogram_stem import SpectrogramStem
from jepa.models.encoders.text_stem import TextStem
from jepa.models.encoders.tubelet_stem import TubeletStem
from jepa.optim import AveragingMomentum, Constant
from jepa.types import StepRandomness
from jepa.utils.log_mel import LogMel
from jepa.utils.tensors import grid_positions


def encoder(**sizes):
    torch.manual_seed(0)
    return vision_transformer(
        **{"image_size": 16, "channels": 1, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, **sizes}
    )


def objective(**terms):
    terms = terms or {
        "invariance": {"weight": 1.0, "term": Invariance()},
        "sigreg": {"weight": 0.1, "term": SIGReg(num_slices=8)},
    }
    return partial(Objective, terms=terms, projector=partial(Projector, hidden=[16], out_dim=8))


def make(**changes) -> LeJEPA:
    return LeJEPA(**{"encoder": encoder(), "loss": objective(), **changes})


def rng(total: int, start: int = 0, count: int | None = None) -> StepRandomness:
    return StepRandomness(seed=0, step=0, total=total, start=start, count=total if count is None else count)


def views(samples: int = 3, count: int = 2, local: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    batch = {"views": torch.randn(samples, count, 1, 16, 16)}
    return {**batch, "local_views": torch.randn(samples, local, 1, 8, 8)} if local else batch


def test_every_view_is_embedded_by_itself_global_ones_first():
    model, batch = make().eval(), views(local=3)
    latents = model(model.prepare(batch, rng(3)))
    assert latents.embeddings.shape == (5, 3, 32)
    assert latents.global_views == 2
    for number in range(2):
        alone = model.encoder(batch["views"][:, number]).mean(dim=1)
        assert torch.allclose(latents.embeddings[number], alone, atol=1e-5)
    for number in range(3):
        alone = model.encoder(batch["local_views"][:, number]).mean(dim=1)
        assert torch.allclose(latents.embeddings[2 + number], alone, atol=1e-5)


def test_masks_make_views_of_one_picture():
    model = make(mask=RandomMask(context_share=0.5, num_masks=2)).eval()
    batch = model.prepare({"x": torch.randn(4, 1, 16, 16)}, rng(4))
    latents = model(batch)
    assert latents.embeddings.shape == (2, 4, 32)
    seen = model.encoder(batch["x"], keep=batch["masks"][1].context).mean(dim=1)
    assert torch.allclose(latents.embeddings[1], seen, atol=1e-5)
    assert not torch.allclose(latents.embeddings[0], latents.embeddings[1], atol=1e-3)


def test_a_slice_of_the_batch_gets_its_part_of_the_draw():
    model = make(mask=RandomMask(context_share=0.5))
    batch = views(4)
    whole = model.prepare(batch, rng(4))["masks"][0]
    part = model.prepare({"views": batch["views"][2:]}, rng(4, start=2, count=2))["masks"][0]
    assert torch.equal(whole.context[4:], part.context)


def test_gradients_reach_the_encoder_through_every_view():
    for number in range(4):
        model = make(loss=objective(sigreg={"weight": 1.0, "term": SIGReg(num_slices=8)}))
        batch = views(local=2)
        name, index = ("views", number) if number < 2 else ("local_views", number - 2)
        batch[name].requires_grad_()
        model.loss(model(model.prepare(batch, rng(3))))["loss"].backward()
        assert batch[name].grad[:, index].abs().sum() > 0


MEL = LogMel(sample_rate=8000, n_fft=64, hop_length=32, mel_bins=8)
STEMS = {
    "clips": (partial(TubeletStem, channels=1, patch_size=4, tubelet_size=1), (1, 5, 8, 8)),
    "pictures": (partial(ImageStem, channels=1, patch_size=2), (1, 8, 10)),
    "convolutions": (partial(ImageStem, channels=1, patch_size=5, widths=(4, 6)), (1, 15, 20)),
    "series": (partial(SeriesStem, channels=3, patch_size=2, channel_independent=True), (3, 14)),
    "sound": (partial(SpectrogramStem, spectrogram=MEL, patch_size=(4, 2)), (1, 640)),
    "texts": (partial(TextStem, vocab_size=50), (20,)),
}


def stem_encoder(name: str, **settings):
    torch.manual_seed(0)
    stem, shape = STEMS[name]
    x = torch.randint(1, 50, (3, *shape)) if name == "texts" else torch.randn(3, *shape)
    return TransformerEncoder(stem=stem, embed_dim=24, depth=2, num_heads=2, **settings).eval(), x


@pytest.mark.parametrize("name", ["ViT", *STEMS])
def test_of_a_sparse_view_nothing_is_computed_but_the_tokens_it_keeps(name):
    network, x = (encoder(), torch.randn(3, 1, 16, 16)) if name == "ViT" else stem_encoder(name)
    tokens = torch.Size(network.grid(x)).numel()
    everything = torch.arange(tokens).expand(3, -1)
    assert torch.allclose(network(x, keep=everything.flip(1)).flip(1), network(x), atol=1e-5)
    share = 0.1 if tokens > 16 else 0.2
    mask = RandomMask(context_share=share, num_masks=2)
    model = make(encoder=network, mask=mask, local_mask=mask).eval()
    sizes = []
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            layer.register_forward_hook(lambda _, inputs, out: sizes.append(out.shape[1]))
    latents = model(model.prepare({"x": x, "local_views": x.unsqueeze(1)}, rng(3)))
    assert latents.global_views == 2
    assert latents.embeddings.isfinite().all()
    first, second, *local = latents.embeddings
    for one, other in ((first, second), (first, local[0]), (local[0], local[1])):
        assert not torch.allclose(one, other, atol=1e-3)
    assert set(sizes) == {round(share * tokens)}


@pytest.mark.parametrize(
    ("name", "steps", "later"),
    [
        ("clips", 2, np.s_[:, :, 2:]),
        ("series", 4, np.s_[..., 8:]),
        ("sound", 5, np.s_[..., 352:]),
        ("texts", 9, np.s_[:, 9:]),
    ],
)
def test_block_causal_features_do_not_change_with_what_comes_later(name, steps, later):
    for attention in ("block_causal", "full"):
        network, x = stem_encoder(name, attention=attention)
        grid = network.grid(x)
        time = torch.unravel_index(torch.arange(torch.Size(grid).numel()), grid)[network.stem.time_axis]
        other = x.clone()
        other[later] = 7
        for keep in (None, torch.randperm(len(time))[: len(time) // 2].expand(3, -1)):
            changed = (network(x, keep=keep) - network(other, keep=keep)).abs().amax(dim=-1) > 1e-5  # (3, K)
            early = (time if keep is None else time[keep[0]]) < steps
            assert changed[:, early].any() == (attention == "full")
            assert changed[:, ~early].any()


def test_block_causal_tokens_see_all_of_their_own_step_and_padding_stays_out():
    network, x = stem_encoder("clips", attention="block_causal")
    other = x.clone()
    other[:, :, 1, 4:, 4:] += 1  # the last patch of frame 1
    changed = ((network(x) - network(other)).abs().amax(dim=(0, 2)) > 1e-6).view(5, 4).all(dim=1)
    assert changed.tolist() == [False, True, True, True, True]
    network, x = stem_encoder("series", attention="block_causal")
    padded = torch.cat([torch.full((3, 3, 4), torch.nan), x], dim=2)  # so that the first steps see nothing but padding
    assert network(padded).isfinite().all()
    with pytest.raises(ValueError, match="ImageStem has no axis of time"):
        stem_encoder("pictures", attention="block_causal")
    with pytest.raises(ValueError, match="attention: got 'causal', expected one of full, block_causal"):
        stem_encoder("clips", attention="causal")


def test_an_average_of_the_weights_is_evaluated_and_takes_no_part_in_training():
    average = partial(EMATarget, momentum=Constant(value=0.75))
    plain, model = make().eval(), make(target=average).eval()
    x, batch = torch.randn(2, 1, 16, 16), views()
    losses = [m.loss(m(m.prepare(batch, rng(3))))["loss"] for m in (plain, model)]
    assert torch.equal(*losses)
    losses[1].backward()
    assert not any(p.requires_grad or p.grad is not None for p in model.target.parameters())
    with torch.no_grad():
        begin = model.encoder.vit.norm.weight.clone()
        model.encoder.vit.norm.weight += 4
    assert torch.equal(model.encode_target(x), plain.encode_target(x))
    assert model.update_target(0, None) == {"momentum": 0.75}
    assert torch.allclose(model.target.encoder.vit.norm.weight, begin + 1)
    assert [AveragingMomentum(final=0.99)(step, None) for step in (0, 8, 10**6)] == pytest.approx([0.1, 0.5, 0.99])
    for other in (SharedTarget, partial(average, average_layers=2)):
        with pytest.raises(ValueError, match="LeJEPA compares views and has no targets"):
            make(target=other)


def test_the_encoder_is_the_network_that_is_evaluated():
    model, x = make().eval(), torch.randn(2, 1, 16, 16)
    assert torch.equal(model.encode_target(x), model.encoder(x))
    first, last = model.encode_target(x, layers=[0, 1])
    assert torch.equal(last, model.encoder(x))
    assert not torch.equal(first, last)


def test_a_loss_that_lets_views_collapse_is_refused():
    alone = objective(invariance={"weight": 1.0, "term": Invariance()})
    with pytest.raises(ValueError, match="collapse to a constant"):
        make(loss=alone)
    assert make(loss=alone, allow_collapse=True)


def masked(target, **terms) -> MaskedJEPA:
    return MaskedJEPA(
        encoder=encoder(),
        predictor=partial(Predictor, embed_dim=16, depth=1),
        target=target,
        mask=RandomMask(context_share=0.4, target_share=0.3),
        loss=partial(Objective, terms=terms or {"prediction": {"weight": 1.0, "term": SmoothL1()}}),
        allow_collapse=True,
    )


def test_a_shared_target_moves_with_the_prediction_and_a_stopped_one_does_not():
    x = torch.randn(3, 1, 16, 16)
    reached = []
    for target in (SharedTarget, StopGradientTarget):
        model = masked(target).train()
        assert not model.target.prevents_collapse
        latents = model(model.prepare({"x": x}, rng(3)))
        reached.append(latents.targets[0].requires_grad)
        assert model.update_target(0, None) == {}
    assert reached == [True, False]
    assert [n for n, _ in model.target.named_parameters()] == [], "the encoder is not kept twice"


def test_positions_and_inputs_of_targets_are_made_where_the_loss_needs_them():
    class Reader(SmoothL1):
        needs = ("predictions", "targets", "positions", "inputs")

    plain, reading = masked(SharedTarget), masked(SharedTarget, prediction={"weight": 1.0, "term": Reader()})
    x = torch.arange(256.0).view(1, 1, 16, 16)
    batch = reading.prepare({"x": x}, rng(1))
    assert plain(batch).positions is None
    assert plain(batch).inputs is None
    latents = reading(batch)
    token = batch["masks"][0].targets[0, 0, 0].item()
    row, column = latents.positions[0][0, 0, 0].tolist()
    assert (row, column) == divmod(token, 4)
    patch = x[0, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    assert torch.equal(latents.inputs[0][0, 0, 0], patch.flatten())
    assert reading.encoder.token_values == 16


def test_positions_on_a_grid_of_three_axes():
    index = torch.tensor([[0, 23], [13, 6]])
    assert grid_positions((2, 3, 4), index).tolist() == [[[0, 0, 0], [1, 2, 3]], [[1, 0, 1], [0, 1, 2]]]
