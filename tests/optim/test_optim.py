from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from jepa.optim import Constant, Cosine, Linear, WarmupCosine, parameter_groups
from jepa.types import Horizon

RUN = Horizon(max_steps=100, steps_per_epoch=12.5)


def test_constant_and_linear():
    assert Constant(value=0.3)(57, RUN) == 0.3
    linear = Linear(start=0.9, final=1.0)
    assert [linear(step, RUN) for step in (0, 50, 100, 120)] == pytest.approx([0.9, 0.95, 1.0, 1.0])


def test_cosine():
    cosine = Cosine(start=2.0, final=4.0)
    expected = [2.0, 3 - math.cos(math.pi / 4), 3.0, 4.0]
    assert [cosine(step, RUN) for step in (0, 25, 50, 100)] == pytest.approx(expected)


def test_warmup_then_cosine():
    schedule = WarmupCosine(start=0.1, peak=1.0, final=0.2, warmup_epochs=1.6)
    assert schedule(0, RUN) == pytest.approx(0.1)
    assert schedule(10, RUN) == pytest.approx(0.55)
    assert schedule(20, RUN) == pytest.approx(1.0)
    assert schedule(60, RUN) == pytest.approx(0.6)
    assert schedule(100, RUN) == pytest.approx(0.2)
    values = [schedule(step, RUN) for step in range(20, 101)]
    assert values == sorted(values, reverse=True)


def test_warmup_in_steps_is_the_same_as_in_epochs():
    epochs, steps = WarmupCosine(peak=1.0, warmup_epochs=2), WarmupCosine(peak=1.0, warmup_steps=25)
    assert [epochs(s, RUN) for s in range(101)] == [steps(s, RUN) for s in range(101)]
    with pytest.raises(ValueError, match="not both"):
        WarmupCosine(peak=1.0, warmup_epochs=2, warmup_steps=25)


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_stretch_is_the_longer_run_cut_short(kind):
    longer = Horizon(max_steps=125, steps_per_epoch=12.5)
    stretched, plain = kind(start=0.0, final=1.0, stretch=1.25), kind(start=0.0, final=1.0)
    assert [stretched(s, RUN) for s in range(101)] == pytest.approx([plain(s, longer) for s in range(101)])
    assert stretched(100, RUN) < 1.0


def test_stretch_of_zero():
    with pytest.raises(ValueError, match="stretch must be positive"):
        Cosine(start=0.0, final=1.0, stretch=0.0)


def test_biases_and_norms_do_not_decay_but_mask_tokens_do():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 3), nn.LayerNorm(3)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, 3))
            self.frozen = nn.Linear(3, 3).requires_grad_(False)

    model = Model()
    decaying, still = parameter_groups(model)
    assert {id(p) for p in decaying["params"]} == {id(model.linear.weight), id(model.mask_token)}
    assert {id(p) for p in still["params"]} == {id(model.linear.bias), id(model.norm.weight), id(model.norm.bias)}
    assert decaying["decays"]
    assert not still["decays"]
    assert still["weight_decay"] == 0
    with pytest.raises(ValueError, match="no trainable"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))
