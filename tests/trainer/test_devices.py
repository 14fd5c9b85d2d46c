"""Forward passes on a GPU that torch only imagines: tensors of two devices never meet, and no value is read."""

from __future__ import annotations

import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from jepa import build_trainer, load_config
from jepa.masks import MultiBlockMask, SpanMask, multiblock
from jepa.masks.tubes import TubeMask
from jepa.utils import random
from jepa.utils.tensors import map_tensors

CUDA = torch.device("cuda", 0)
REAL_GENERATOR = random.generator
OPTIONS = ("model.encoder.depth=1", "data.batch_size=8", "trainer.precision=fp32", "trainer.device=cpu", "monitor=none")
OPTIONS += ("evaluation=none", "visualise=none", "~logger.console", "~logger.jsonl", "~logger.tensorboard")


class Generator:
    """Stands for one of CUDA, which torch makes on a real device alone."""

    device = CUDA

    def initial_seed(self):
        return 3

    def get_offset(self):
        return 0


def generator(device, seed, stream, *counters):
    return Generator() if torch.device(device).type == "cuda" else REAL_GENERATOR(device, seed, stream, *counters)


@pytest.fixture
def imagined(monkeypatch):
    """Generators of CUDA that draw nothing; what is computed on the CPU once stays real."""
    for module in list(sys.modules.values()):
        for name in ("generator", "make_generator"):
            if getattr(module, name, None) is REAL_GENERATOR and module is not random:
                monkeypatch.setattr(module, name, generator)

    def without_generator(function):
        def draw(*sizes, generator=None, **options):
            real = {} if isinstance(generator, Generator | None) else {"generator": generator}
            return function(*sizes, **real, **options)

        return draw

    for name in ("rand", "randn", "randint", "randperm"):
        monkeypatch.setattr(torch, name, without_generator(getattr(torch, name)))

    def on_the_cpu(function):
        def call(*arguments):
            cpu = [torch.device("cpu") if argument == CUDA else argument for argument in arguments]
            with _disable_current_modes():
                found = function(*cpu)
            if arguments == tuple(cpu) or not isinstance(found, tuple):
                return found
            return tuple(item.to(CUDA) if isinstance(item, torch.Tensor) else item for item in found)

        return call

    for owner, name in (
        (multiblock, "block_areas"),
        (MultiBlockMask, "_calibrate"),
        (TubeMask, "_calibrate"),
        (SpanMask, "sizes"),
    ):
        monkeypatch.setattr(owner, name, on_the_cpu(getattr(owner, name)))


@pytest.mark.usefixtures("imagined")
@pytest.mark.parametrize(
    "overrides",
    [
        ["model=vit"],
        ["model=vit", "loss=contrastive", "data.views=2", "model.token_weights=inverse_coverage"],
        ["model=vit", "loss=multiscale", "model.mask.compat=fixed"],
        ["model=vit", "loss=vicreg_views", "data.views=2"],
        ["model=lejepa", "data.views=2"],
        ["model=video", "data=moving_mnist", "data.root=SHARED/mnist", "data.source.train_clips=32"],
        ["experiment=series_ecg5000", "data.root=SHARED/ucr", "model/mask=span"],
        ["experiment=text_banking77", "data.root=SHARED/banking77"],
    ],
    ids=["default", "contrastive", "multiscale", "vicreg", "lejepa", "video", "series", "text"],
)
def test_a_step_stays_on_its_device(shared_dir, tmp_path, monkeypatch, overrides):
    overrides = [override.replace("SHARED", str(shared_dir / "data")) for override in overrides]
    trainer = build_trainer(load_config([*overrides, *OPTIONS, f"run_dir={tmp_path}"]))
    batch = next(trainer.data.train_batches(seed=0, start_step=0, stop_step=1))
    model = trainer.model.train()
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: None)  # autograd asks for the real device
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, value in list(module._parameters.items()):
                if value is not None:
                    module._parameters[name] = torch.nn.Parameter(value.detach().to(CUDA), value.requires_grad)
            for name, value in list(module._buffers.items()):
                module._buffers[name] = None if value is None else value.to(CUDA)
        trainer.device = trainer.precision.device = CUDA
        values = trainer.forward_backward(map_tensors(batch, lambda tensor: tensor.to(CUDA)))
        assert {value.device for value in values.values()} == {CUDA}
        model.update_target(0, trainer.run_length, skip=torch.zeros((), device=CUDA))
        with pytest.raises(RuntimeError, match="device"):  # so it would be seen
            torch.ones(2, device=CUDA) + torch.ones(2)
