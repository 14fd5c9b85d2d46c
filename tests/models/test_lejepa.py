"""The model of views, and the target that is the encoder itself with gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from jepa.losses import Invariance, Objective, Projector, SIGReg, SmoothL1
from jepa.masks import RandomMask
from jepa.models import LeJEPA, MaskedJEPA, Predictor, SharedTarget, StopGradientTarget, vision_transformer
from jepa.types import StepRandomness
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
