"""Gradient norms and update ratios: closed forms, and the same numbers when the model is sharded."""

from __future__ import annotations

import math
import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from jepa.trainer.gradients import UpdateRatio, gradient_norms, trained_parameters


class Two(nn.Module):
    """Two trained modules, a frozen one, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(1))
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
        self.target = nn.Linear(5, 3).requires_grad_(False)
        self.predictor = nn.Linear(3, 1, bias=False)

    def forward(self, x):
        return self.predictor(self.encoder(x)) * self.scale


def set_gradients(model, values):
    for name, value in values.items():
        parameter = model.get_parameter(name)
        parameter.grad = torch.full_like(parameter, value)


def as_floats(values):
    return {name: value.item() for name, value in values.items()}


def test_norms_in_closed_form():
    model = Two()
    set_gradients(model, {"scale": 3.0, "encoder.0.weight": 2.0, "encoder.1.bias": -4.0})
    assert as_floats(gradient_norms(model)) == pytest.approx(
        {
            "grad_norm/scale": 3.0,
            "grad_norm/encoder": math.sqrt(35 * 4 + 3 * 16),
            "grad_norm/predictor": 0.0,  # trained, but nothing has reached it
        }
    )
    norms = as_floats(gradient_norms(model, of_parameters=True))
    assert norms["grad_norm/encoder.0.weight"] == pytest.approx(math.sqrt(35 * 4))
    assert norms["grad_norm/encoder.1.bias"] == pytest.approx(math.sqrt(48))
    assert norms["grad_norm/encoder.0.bias"] == 0.0
    assert not any("target" in name for name in norms)
    assert all(norm.shape == () and norm.dtype == torch.float32 for norm in gradient_norms(model).values())


def test_low_precision_gradients_are_summed_in_fp32():
    model = nn.ModuleDict({"a": nn.Linear(1000, 1000, bias=False, dtype=torch.bfloat16)})
    set_gradients(model, {"a.weight": 1.0})
    assert gradient_norms(model)["grad_norm/a"].item() == pytest.approx(1000.0, rel=1e-6)


def test_a_shared_parameter_counts_once():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    set_gradients(model, {"a.weight": 1.0})
    assert as_floats(gradient_norms(model)) == {"grad_norm/a": 2.0}


def test_a_model_without_trained_parameters():
    assert gradient_norms(nn.Identity(), of_parameters=True) == {}


def test_names_without_wrappers():
    inner = nn.ModuleDict({"_checkpoint_wrapped_module": nn.Linear(2, 2)})
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"_orig_mod": nn.ModuleDict({"block": inner})})})
    assert list(trained_parameters(model)) == ["encoder.block.weight", "encoder.block.bias"]


def test_update_ratio_in_closed_form():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(0.0)
    set_gradients(model, {"weight": 1.0, "bias": 0.0})
    ratio = UpdateRatio(model)
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    assert ratio.read().item() == pytest.approx(0.5 / 2.0)
    assert UpdateRatio(model).read().item() == 0.0  # no step: nothing has changed


def test_update_ratio_looks_at_a_sample_that_stands_for_all():
    model = nn.ModuleDict({"large": nn.Linear(300, 100, bias=False), "small": nn.Linear(2, 2, bias=False)})
    with torch.no_grad():
        model["large"].weight.fill_(1.0)
        model["small"].weight.fill_(100.0)
    ratio = UpdateRatio(model, sample=50)
    assert [len(entries) for entries in ratio._before] == [50, 4]
    with torch.no_grad():
        model["large"].weight.add_(0.1)
    expected = math.sqrt(30000 * 0.1**2 / (30000 + 4 * 100**2))
    assert ratio.read().item() == pytest.approx(expected, rel=1e-5)


# On two ranks.


def measure(model):
    """Every number of one step of SGD."""
    x = torch.linspace(-1, 1, 20).view(4, 5)
    model(x).square().mean().backward()
    values, ratio = gradient_norms(model, of_parameters=True), UpdateRatio(model)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return as_floats({**values, "update_ratio": ratio.read()})


def on_one_rank(rank, port, expected):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        mesh = init_device_mesh("cpu", (2,))
        whole = fully_shard(Two(), mesh=mesh)
        nested = Two()
        fully_shard(nested.encoder[0], mesh=mesh)
        fully_shard(nested, mesh=mesh)
        ignoring = Two()  # of which some stays whole on every rank
        fully_shard(ignoring, mesh=mesh, ignored_params={ignoring.predictor.weight})
        # Shards of one rank, which the other repeats.
        hybrid = fully_shard(Two(), mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))
        # 7 and 3 rows in 2 shards; the predictor's single row leaves one shard empty.
        for model in (whole, nested, ignoring, hybrid, Two()):
            assert measure(model) == pytest.approx(expected, rel=1e-5)
        sharded = fully_shard(Two(), mesh=mesh)
        assert len(sharded.predictor.weight.to_local()) == 1 - rank
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_norms_equal_whole_ones():
    expected = measure(Two())
    assert expected["grad_norm/encoder"] > 0
    assert expected["update_ratio"] > 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(on_one_rank, (port, expected), nprocs=2)
