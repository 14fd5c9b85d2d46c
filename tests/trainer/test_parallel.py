"""Sharded models for evaluation, of several modalities and tasks; how they train is under tests/distributed."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from jepa.distributed.parallel import Parallel
from jepa.evaluation.modalities import modality_of


class Encoders(nn.Module):
    """One linear layer for {name: x} of a single name; another for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim, self.depth, self.layer = 4, 1, nn.Linear(3, 4)
        self.blocks = nn.ModuleList([self.layer])

    def forward(self, x, layers=None):
        return self.layer(x["seen"] if isinstance(x, dict) else x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoders()

    def encode_target(self, x, layers=None):
        return self.encoder(x)

    def embed(self, x, *, network="target"):
        return {name: self.encoder({name: values}) for name, values in x.items()}


class Tasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tasks = nn.ModuleDict({"one": Model(), "two": Model()})
        self.model_of_task = {name: name for name in self.tasks}


@pytest.fixture
def one_rank():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model):
    optimizer = torch.optim.SGD(model.parameters())
    parallel = Parallel("fsdp", model, optimizer, device=torch.device("cpu"), find_unused=False)
    assert isinstance(parallel.step, FSDPModule)
    return parallel.networks()


@pytest.mark.usefixtures("one_rank")
def test_of_several_modalities():
    model, x = Model(), torch.ones(2, 5, 3)
    expected = model.encoder(x).detach()
    networks = sharded(model)
    view = modality_of(networks, "seen")
    assert view.encoder.embed_dim == 4
    for found in (view.encode_target(x), view.encoder(x), networks.embed({"seen": x}, network="target")["seen"]):
        assert torch.equal(found.detach(), expected)


@pytest.mark.usefixtures("one_rank")
def test_of_several_tasks():
    model, x = Tasks(), torch.ones(2, 5, 3)
    expected = model.tasks["two"].encoder(x).detach()
    task = modality_of(sharded(model), "two")
    assert torch.equal(task.encode_target(x).detach(), expected)
    assert torch.equal(task.encoder(x).detach(), expected)
