from __future__ import annotations

import pytest
import torch
from torch import nn

from jepa.optim import parameter_groups


def ids(parameters):
    return {id(p) for p in parameters}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 3), nn.LayerNorm(3)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_biases_and_norms_do_not_decay_but_mask_tokens_do():
    model = Model()
    matrices, tokens, still = parameter_groups(model)
    assert ids(matrices["params"]) == ids([model.linear.weight])
    assert ids(tokens["params"]) == ids([model.mask_token])
    assert ids(still["params"]) == ids([model.linear.bias, model.norm.weight, model.norm.bias])
    assert [group["decays"] for group in (matrices, tokens, still)] == [True, True, False]
    assert still["weight_decay"] == 0
    with pytest.raises(ValueError, match="no trainable"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))


def test_groups_without_parameters_are_left_out():
    assert [group["use_muon"] for group in parameter_groups(nn.Linear(2, 2, bias=False))] == [True]


def test_matrices_map_features_to_features():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(1, 8, 2, 2)  # 8 x 4 when flattened, though of a single channel
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
            self.attention = nn.MultiheadAttention(8, 2)
            self.table = nn.Embedding(10, 8)
            self.shared = nn.Linear(8, 10, bias=False)
            self.shared.weight = self.table.weight
            self.positions = nn.Parameter(torch.zeros(16, 8))
            self.score = nn.Linear(8, 1)

    model = Many()
    matrices, others, _ = parameter_groups(model)
    expected = [model.patches.weight, model.attention.in_proj_weight, model.attention.out_proj.weight]
    assert ids(matrices["params"]) == ids(expected)
    rest = [model.depthwise.weight, model.table.weight, model.positions, model.score.weight]
    assert ids(others["params"]) == ids(rest)
