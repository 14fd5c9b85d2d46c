"""A model and data of a few numbers, to test the loop without a network."""

from __future__ import annotations

import errno
import os

import torch
from torch import nn

from jepa.models import JEPA
from jepa.optim import Constant
from jepa.trainer import Trainer
from jepa.types import DataSpec, StepRandomness
from jepa.utils.random import generator


class ToyLoss(nn.Module):
    """Mean square of the latents."""

    batch_statistics = False
    term_names = ["square"]

    def forward(self, latents):
        loss = latents.values.square().mean()
        return {"loss": loss, "loss/square": loss}


class ToyLatents:
    """What the toy hands to its loss."""

    def __init__(self, values):
        self.values = values


class ToyModel(JEPA):
    """x @ weight + bias + noise of (seed, step), drawn for the whole batch; counts the target's updates."""

    def __init__(self):
        super().__init__()
        self.loss = ToyLoss()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 6).view(3, 2))
        self.bias = nn.Parameter(torch.full((2,), 0.5))
        self.prepared: list[StepRandomness] = []
        self.updates: list[int] = []

    def prepare(self, batch, rng):
        self.prepared.append(rng)
        noise = torch.randn(rng.total, 2, generator=rng.generator("cpu", "noise"))
        return {**batch, "noise": noise[rng.samples]}

    def forward(self, batch):
        return ToyLatents(batch["x"] @ self.weight + self.bias + batch["noise"])

    def set_step(self, step, run_length):
        return {}

    def update_target(self, step, run_length):
        self.updates.append(step)
        return {"momentum": 0.5}


class ToyData:
    """Normal numbers, a function of seed and step; `poison` is a step at which they are infinite."""

    def __init__(self, batch_size=12, poison=None, scale=1.0):
        self.batch_size, self.poison, self.scale = batch_size, poison, scale
        self.spec = DataSpec(num_train=30, num_test=20, input_shape=(3,), classes=None)

    def train_batches(self, *, seed, start_step, stop_step, rank=0, world_size=1):
        for step in range(start_step, stop_step):
            x = torch.randn(self.batch_size, 3, generator=generator("cpu", seed, "data", step)) * self.scale
            yield {"x": torch.full_like(x, float("inf")) if step == self.poison else x}

    def validation_batches(self, *, batch_size):
        for x in torch.linspace(-1, 1, 60).view(20, 3).split(batch_size):
            yield {"x": x}


def toy_trainer(run_dir, *, kind=Trainer, data=None, loggers=(), lr=0.1, optimizer=None, **settings):
    """A trainer of the toy by SGD."""
    model = ToyModel()
    groups = [
        {"params": [model.weight], "decays": True},
        {"params": [model.bias], "decays": False, "weight_decay": 0.0},
    ]
    defaults = {"max_steps": 5, "device": "cpu", "precision": "fp32", "log_every": 1, "validate_every_epochs": None}
    return kind(
        model=model,
        data=data or ToyData(),
        optimizer=(optimizer or torch.optim.SGD)(groups, lr=lr),
        scheduler={"lr": Constant(value=lr)},
        loggers={str(number): logger for number, logger in enumerate(loggers)},
        run_dir=run_dir,
        **{**defaults, **settings},
    )


def adam(groups, lr):
    return torch.optim.AdamW(groups, lr=lr)


def disk_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def file_contents(folder):
    """Path -> bytes of every file in a folder and those below."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_identical(one, two):
    """Bit by bit, through dicts and lists, but for times and for a list that stands for a tuple."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
        assert one.dtype == two.dtype
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one.keys() - {"metrics", "libraries", "train_seconds"}:
            assert_identical(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for mine, theirs in zip(one, two):
            assert_identical(mine, theirs)
    else:
        assert one == two


class Bomb:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
