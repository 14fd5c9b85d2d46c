from __future__ import annotations

from functools import partial

import pytest
import torch

from jepa.losses import Objective, SIGReg, SmoothL1
from jepa.losses.projector import Projector
from jepa.masks import MultiBlockMask, RandomMask
from jepa.models import EMATarget, MaskedJEPA, Predictor, StopGradientTarget, vision_transformer
from jepa.models.predictor import as_one_block, valid_tokens
from jepa.optim import Constant
from jepa.types import Mask, RunLength, StepRandomness
from jepa.utils.tensors import attention_mask

HORIZON = RunLength(max_steps=10, steps_per_epoch=5)


def prediction_loss():
    return partial(Objective, terms={"prediction": {"weight": 1.0, "term": SmoothL1()}})


def make(**changes) -> MaskedJEPA:
    torch.manual_seed(0)
    parts = {
        "encoder": vision_transformer(image_size=16, channels=1, patch_size=4, embed_dim=32, depth=2, num_heads=2),
        "predictor": partial(Predictor, embed_dim=16, depth=2),
        "target": partial(EMATarget, momentum=Constant(value=0.9)),
        "mask": RandomMask(context_share=0.4),
        "loss": prediction_loss(),
    }
    return MaskedJEPA(**{**parts, **changes})


def rng(total: int, start: int = 0, count: int | None = None, step: int = 0) -> StepRandomness:
    return StepRandomness(seed=0, step=step, total=total, start=start, count=total if count is None else count)


def test_each_block_is_predicted_by_itself():
    model, x = make().eval(), torch.randn(3, 1, 16, 16)
    masker = MultiBlockMask(num_targets=2, target_scale=(0.15, 0.2), min_context=2)
    [mask] = masker(3, (4, 4), generator=torch.Generator().manual_seed(0))
    both = model.latents(x, [mask]).predictions[0]
    alone = model.latents(x, [Mask(mask.context, mask.targets[:, 1:])]).predictions[0]
    assert torch.allclose(both[:, 1:], alone, atol=1e-5)


def test_shared_context_and_last_layer_change_nothing():
    """Against every token in every block, gradients included; together all blocks are as one."""
    mask = Mask(
        context=torch.stack([torch.randperm(16)[:5] for _ in range(2)]),
        targets=torch.randint(0, 16, (2, 3, 4)),
        context_valid=torch.rand(2, 5) > 0.3,
        target_valid=torch.rand(2, 3, 4) > 0.3,
    )
    encoder, features = make().encoder, torch.randn(2, 5, 32, requires_grad=True)
    for positions, depth in (("sincos", 1), ("sincos", 2), ("rotary", 1), ("rotary", 3)):
        predictor = Predictor(encoder=encoder, embed_dim=16, depth=depth, num_heads=2, positions=positions)
        leaves = [features, *predictor.parameters()]
        results = [predictor(features, mask, (4, 4)), every_token(predictor, features, mask, (4, 4))]
        assert torch.allclose(*results, atol=1e-5)
        weights = torch.randn(2, 3, 4, 32)
        for one, other in zip(*(torch.autograd.grad((result * weights).sum(), leaves) for result in results)):
            assert torch.allclose(one, other, atol=1e-4)
        predictor.joint = True
        [together] = every_token(predictor, features, as_one_block(mask), (4, 4)).unbind(1)
        assert torch.allclose(predictor(features, mask, (4, 4)).flatten(1, 2), together, atol=1e-5)


def every_token(predictor: Predictor, context: torch.Tensor, mask: Mask, grid: tuple[int, ...]) -> torch.Tensor:
    """The predictions by whole blocks, on copies of the context."""
    index = torch.cat([mask.context.repeat_interleave(mask.targets.shape[1], 0), mask.targets.flatten(0, 1)], dim=1)
    context = predictor.embed(context).repeat_interleave(mask.targets.shape[1], 0)
    tokens = torch.cat([context, predictor.mask_token[0].expand(*mask.targets.flatten(0, 1).shape, -1)], dim=1)
    rotate = None if predictor.rotary is None else predictor.rotary.rotation(grid, context.device, index)
    if predictor.positions is not None:
        tokens = tokens + predictor.positions(grid, context.device)[index]
    for block in predictor.blocks:
        tokens = block(tokens, attention_mask(valid_tokens(mask)), rotate)
    hidden = tokens[:, mask.context.shape[1] :]
    return predictor.project(predictor.norm(hidden)).unflatten(0, mask.targets.shape[:2])


def test_a_prediction_depends_on_its_position_alone_beside_the_context():
    model, x = make().eval(), torch.randn(1, 1, 16, 16)
    context = torch.tensor([[0, 1, 2]])
    ab = model.latents(x, [Mask(context, torch.tensor([[[8, 9]]]))]).predictions[0]
    ba = model.latents(x, [Mask(context, torch.tensor([[[9, 8]]]))]).predictions[0]
    assert torch.allclose(ab[0, 0], ba[0, 0].flip(0), atol=1e-5)
    assert not torch.allclose(ab[0, 0, 0], ab[0, 0, 1], atol=1e-3)


def test_padding_never_changes_a_prediction():
    model, x = make().eval(), torch.randn(1, 1, 16, 16)
    plain = Mask(torch.tensor([[0, 1, 2]]), torch.tensor([[[8, 9]]]))
    padded = Mask(
        torch.tensor([[0, 1, 2, 0]]),
        torch.tensor([[[8, 9, 0]]]),
        context_valid=torch.tensor([[True, True, True, False]]),
        target_valid=torch.tensor([[[True, True, False]]]),
    )
    a, b = model.latents(x, [plain]), model.latents(x, [padded])
    assert torch.allclose(a.predictions[0], b.predictions[0][:, :, :2], atol=1e-5)
    assert torch.allclose(a.embeddings, b.embeddings, atol=1e-5)
    assert torch.allclose(model.loss(a)["loss"], model.loss(b)["loss"], atol=1e-6)


def test_targets_are_layer_normed_and_carry_no_gradient():
    model, x = make(), torch.randn(2, 1, 16, 16)
    batch = model.prepare({"x": x}, rng(2))
    latents = model(batch)
    target = latents.targets[0]
    assert not target.requires_grad
    assert latents.predictions[0].requires_grad
    assert torch.allclose(target.mean(-1), torch.zeros(()), atol=1e-5)
    assert torch.allclose(target.var(-1, unbiased=False), torch.ones(()), atol=1e-3)


def test_views_of_a_sample_lie_in_one_column_of_the_embeddings():
    model = make(mask=RandomMask(context_share=0.4, num_masks=2)).eval()
    views = torch.randn(3, 2, 1, 16, 16)
    batch = model.prepare({"views": views}, rng(3))
    embeddings = model(batch).embeddings
    assert embeddings.shape == (4, 3, 32)  # 2 masks x 2 views
    for number, mask in enumerate(batch["masks"]):
        for view in range(2):
            alone = model.encoder(views[:, view], keep=mask.context[view::2]).mean(1)
            assert torch.allclose(embeddings[number * 2 + view], alone, atol=1e-5)


def test_slices_of_a_batch_get_the_masks_of_the_whole():
    model, views = make(), torch.randn(4, 2, 1, 16, 16)
    whole = model.prepare({"views": views}, rng(4, step=3))["masks"][0]
    second = model.prepare({"views": views[2:]}, rng(4, start=2, count=2, step=3))["masks"][0]
    assert torch.equal(whole.context[4:], second.context)
    assert torch.equal(whole.targets[4:], second.targets)
    other = model.prepare({"views": views}, rng(4, step=4))["masks"][0]
    assert not torch.equal(whole.context, other.context)


def test_ema_follows_the_encoder_by_one_minus_momentum():
    model = make()
    before = [p.clone() for p in model.target.encoder.parameters()]
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    assert model.update_target(0, HORIZON) == {"momentum": 0.9}
    for old, new in zip(before, model.target.encoder.parameters()):
        assert torch.allclose(new, old + 0.1, atol=1e-6)
        assert not new.requires_grad


def test_the_step_puts_loss_weights_in_force_and_the_momentum_is_a_schedule():
    scheduled = {"prediction": {"weight": lambda step, run_length: 1 - step / run_length.max_steps, "term": SmoothL1()}}
    target = partial(EMATarget, momentum=Constant(value=0.9), reference_batch_size=2)
    model = make(loss=partial(Objective, terms=scheduled), target=target)
    assert model.set_step(4, HORIZON) == {"weight/prediction": pytest.approx(0.6)}
    assert model.loss.weights == {"prediction": pytest.approx(0.6)}
    assert make().set_step(4, HORIZON) == {}
    at_four = RunLength(max_steps=10, steps_per_epoch=5, batch_size=4)
    assert model.momentum_schedule(3, at_four) == pytest.approx(0.81)
    assert model.update_target(3, at_four) == {"momentum": pytest.approx(0.81)}
    assert make(target=StopGradientTarget, allow_collapse=True).momentum_schedule is None


def test_ema_target_stays_in_evaluation_mode():
    encoder = vision_transformer(
        image_size=16, channels=1, patch_size=4, embed_dim=32, depth=2, num_heads=2, dropout=0.5, drop_path=0.5
    )
    model, x = make(encoder=encoder).train(), torch.randn(2, 1, 16, 16)
    assert torch.equal(model.encode_target(x), model.encode_target(x))
    assert not torch.equal(model.encoder(x), model.encoder(x))


def test_stop_gradient_target_needs_something_against_collapse():
    target = partial(StopGradientTarget)
    with pytest.raises(ValueError, match=r"StopGradientTarget with the loss terms \['prediction'\] collapses"):
        make(target=target)
    assert make(target=target, allow_collapse=True).update_target(0, HORIZON) == {}
    sigreg = partial(
        Objective,
        terms={"sigreg": {"weight": 0.1, "term": SIGReg()}},
        projector=partial(Projector, hidden=[8], out_dim=4),
    )
    model, x = make(target=target, loss=sigreg), torch.randn(2, 1, 16, 16)
    assert not model.encode_target(x).requires_grad
    assert torch.equal(model.encode_target(x), model.encoder(x))


def test_inverse_coverage_counts_every_token_once():
    model, x = make(token_weights="inverse_coverage"), torch.randn(1, 1, 16, 16)
    mask = Mask(torch.tensor([[0, 1]]), torch.tensor([[[4, 5], [5, 6]]]))
    weights = model.latents(x, [mask]).target_weights[0]
    torch.testing.assert_close(weights, torch.tensor([[[4 / 3, 2 / 3], [2 / 3, 4 / 3]]]))  # 1 and 1/2, of mean 1
    with pytest.raises(ValueError, match="token_weights"):
        make(token_weights="some")


def test_weights_come_from_one_seed():
    first, second = make().state_dict(), make().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
