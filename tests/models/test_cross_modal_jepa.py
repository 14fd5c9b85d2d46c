"""Cross-modal prediction: who learns from whom, missing modalities, shared trunks and refused settings."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from jepa.distributed.parallel import blocks_of
from jepa.losses import Objective, SmoothL1
from jepa.losses.invariance import Invariance
from jepa.losses.sigreg import SIGReg
from jepa.masks import RandomMask
from jepa.masks.time_frequency import SpectrogramMask
from jepa.models import EMATarget, StopGradientTarget, TransformerEncoder
from jepa.models.cross_modal_jepa import CrossModalJEPA, ModalityEncoders
from jepa.models.cross_predictor import CrossPredictor
from jepa.models.encoders.image_stem import ImageStem
from jepa.models.encoders.spectrogram_stem import SpectrogramStem
from jepa.models.encoders.text_stem import TextStem
from jepa.optim import Constant
from jepa.types import Mask, RunLength, StepRandomness
from jepa.utils.log_mel import LogMel

FRONT = {"sample_rate": 8000, "n_fft": 256, "hop_length": 100, "mel_bins": 20, "mean": -3.0, "std": 2.0}


def encoders(**changes) -> dict[str, TransformerEncoder]:
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, **changes}
    return {
        "seen": TransformerEncoder(stem=partial(ImageStem, channels=1, patch_size=4), **sizes),
        "heard": TransformerEncoder(
            stem=partial(SpectrogramStem, spectrogram=LogMel(**FRONT), patch_size=[20, 2]), **sizes
        ),
    }


def objective(**terms):
    found = {"prediction": {"weight": 1.0, "term": SmoothL1()}}
    found |= {name: term and {"weight": 1.0, "term": term} for name, term in terms.items()}
    return partial(Objective, terms=found)


def make(**changes) -> CrossModalJEPA:
    torch.manual_seed(0)
    parts = {
        "encoders": encoders(),
        "predictor": partial(CrossPredictor, embed_dim=16, depth=1, num_heads=2),
        "target": partial(EMATarget, momentum=Constant(value=0.9)),
        "masks": {"seen": RandomMask(context_share=0.5), "heard": SpectrogramMask(frequency_share=0.0)},
        "loss": objective(),
    }
    return CrossModalJEPA(**{**parts, **changes})


def inputs(samples: int = 4) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    heard = torch.randn(samples, 1, 1600, generator=random)
    heard[1, :, 900:] = float("nan")
    return {"seen": torch.randn(samples, 1, 16, 16, generator=random), "heard": heard}


def run(model: CrossModalJEPA, x: dict[str, torch.Tensor]):
    samples = len(x["seen"])
    rng = StepRandomness(seed=0, step=0, total=samples, start=0, count=samples)
    return model(model.prepare({"x": x}, rng))


@pytest.mark.parametrize("predict", ["pooled", "tokens"])
@pytest.mark.parametrize("in_modality", [True, False])
@pytest.mark.parametrize("shared_trunk", [True, False])
def test_every_direction_is_predicted_and_trained(predict, in_modality, shared_trunk):
    model = make(predict=predict, in_modality=in_modality, shared_trunk=shared_trunk)
    latents = run(model, inputs())
    assert len(latents.predictions) == len(latents.targets) == (4 if in_modality else 2)
    for prediction, target, weight in zip(latents.predictions, latents.targets, latents.target_weights):
        assert prediction.shape == target.shape
        assert not target.requires_grad
        assert weight.shape == prediction.shape[:3]
    assert latents.embeddings.shape == (2, 4, 32)
    loss = model.loss(latents)["loss"]
    loss.backward()
    untouched = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not untouched
    assert model.update_target(0, RunLength(max_steps=2, steps_per_epoch=1))["momentum"] == 0.9


def test_a_shared_trunk_is_one_in_the_target_too():
    model = make(shared_trunk=True)
    for network in (model.encoder, model.target.encoder):
        assert network.encoders["seen"].blocks is network.encoders["heard"].blocks
        assert network.encoders["seen"].stem is not network.encoders["heard"].stem
    apart = sum(p.numel() for p in make().encoder.parameters())
    assert sum(p.numel() for p in model.encoder.parameters()) < apart
    with pytest.raises(ValueError, match="shared_trunk"):
        make(encoders={**encoders(), "heard": encoders(depth=1)["heard"]}, shared_trunk=True)


def test_cross_prediction_reads_the_other_modality_alone():
    model = make(in_modality=False)
    x = {name: values.requires_grad_() for name, values in inputs().items()}
    latents = run(model, x)
    latents.predictions[0].square().sum().backward()  # from what is seen
    assert x["seen"].grad.abs().sum() > 0
    assert x["heard"].grad is None or not x["heard"].grad.abs().sum()


@pytest.mark.parametrize("lost", ["seen", "heard"])
def test_a_missing_modality_changes_nothing_for_the_others(lost):
    model = make(loss=objective(invariance=Invariance())).eval()
    whole, x = inputs(), inputs()
    x[lost][2] = float("nan")
    assert model.encoder.present({lost: x[lost]}).tolist() == [True, True, False, True]
    a, b = run(model, whole), run(model, x)
    others = [0, 1, 3]
    for one, two in zip(a.predictions, b.predictions):
        assert torch.allclose(one[others], two[others], atol=1e-5)
    assert torch.allclose(a.embeddings[:, others], b.embeddings[:, others], atol=1e-5)
    for weight in b.target_weights[:4]:
        assert (weight[others] > 0).any()
    crossed = [1, 2]  # seen to heard, heard to seen
    for number in crossed:
        assert not b.target_weights[number][2].any()
    view = model.modalities.index(lost)
    assert torch.equal(b.embeddings[view, 2], b.embeddings[1 - view, 2])  # what is there stands in
    loss = model.loss(b)["loss"]
    assert torch.isfinite(loss)
    for values in model.embed(x).values():
        assert values.isfinite().all()


def test_without_a_predictor_embeddings_alone_are_compared():
    masks = {name: RandomMask(context_share=0.5, num_masks=2) for name in ("seen", "heard")}
    views = partial(objective, prediction=None, invariance=Invariance())
    model = make(predictor=None, masks=masks, loss=views(sigreg=SIGReg(num_slices=4)))
    latents = run(model, inputs())
    assert latents.predictions is None
    assert latents.embeddings.shape == (4, 4, 32)  # two views of each modality
    model.loss(latents)["loss"].backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    with pytest.raises(ValueError, match="predictions"):
        make(predictor=None)
    with pytest.raises(ValueError, match="collapse"):  # an average that predicts nothing does not help
        make(predictor=None, loss=views())


def test_texts_of_padding_alone_are_missing_whatever_its_id():
    text = TransformerEncoder(stem=partial(TextStem, vocab_size=9, padding_id=7), embed_dim=32, depth=1, num_heads=2)
    both = ModalityEncoders({"seen": encoders()["seen"], "read": text})
    assert both.present({"read": torch.tensor([[7, 7], [0, 0], [0, 7]])}).tolist() == [False, True, True]


def test_a_missing_modality_gets_no_gradient():
    model = make(loss=objective(invariance=Invariance(), sigreg=SIGReg(num_slices=4)))
    x = inputs()
    x["heard"][:] = float("nan")
    latents = run(model, x)
    loss = model.loss(latents)["loss"]
    loss.backward()
    heard = [p.grad for p in model.encoder.encoders["heard"].parameters() if p.grad is not None]
    assert all(not grad.abs().sum() for grad in heard)
    assert all(p.grad.isfinite().all() for p in model.encoder.encoders["seen"].parameters())


def test_micro_batches_draw_the_masks_of_the_whole_batch():
    model, x = make().eval(), inputs()
    whole = run(model, x)
    part = {name: values[2:] for name, values in x.items()}
    latents = model(model.prepare({"x": part}, StepRandomness(seed=0, step=0, total=4, start=2, count=2)))
    for one, two in zip(whole.predictions, latents.predictions):
        assert torch.allclose(one[2:], two, atol=1e-5)


def test_what_is_asked_of_padding_changes_no_other_prediction():
    model = make(predict="tokens").eval()
    context, index = model.encoder({"seen": inputs()["seen"]}), torch.arange(6).expand(4, -1)
    source = ("seen", (4, 4), Mask(torch.arange(16).expand(4, -1), index.unsqueeze(1)))
    valid = torch.arange(6).expand(4, -1) < 3
    padded = model.predictor(context, source, ("heard", (1, 8)), index, valid)
    alone = model.predictor(context, source, ("heard", (1, 8)), index[:, :3])
    assert torch.allclose(padded[:, :3], alone, atol=1e-6)


def test_layers_that_are_shared_are_listed_once():
    model = make(encoders=encoders(), shared_trunk=True)
    assert len(blocks_of(model, "test")) == 2 + 1 + 2  # the trunk, the predictor, the trunk's average


def test_wrong_settings_are_explained():
    with pytest.raises(ValueError, match=r"model\.masks has"):
        make(masks={"seen": RandomMask()})
    with pytest.raises(ValueError, match="pooled"):
        make(predict="all")
    with pytest.raises(ValueError, match="widths"):
        make(encoders={**encoders(), "heard": encoders(embed_dim=64)["heard"]})
    with pytest.raises(ValueError, match="collapses"):
        make(target=StopGradientTarget)
    model = make()
    with pytest.raises(ValueError, match="data=paired"):
        model.prepare({"x": torch.zeros(2, 1, 8, 8)}, StepRandomness(seed=0, step=0, total=2, start=0, count=2))
