"""Batch norms that are made to span ranks."""

from __future__ import annotations

import pytest
from timm.layers import BatchNormAct2d
from torch import nn

from jepa.distributed.parallel import RankBatchNorm, span_ranks
from jepa.utils.errors import UserError


def test_torchs_own_are_replaced_and_keep_their_parameters():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(norm := nn.BatchNorm1d(4, momentum=0.3)))
    names, weight = list(model.state_dict()), norm.weight
    span_ranks(model)
    assert type(model[1][0]) is RankBatchNorm
    assert model[1][0].weight is weight
    assert model[1][0].momentum == 0.3
    assert list(model.state_dict()) == names


def test_one_that_does_more_is_refused():
    with pytest.raises(UserError, match=r"BatchNormAct2d .0 of Sequential. is a batch norm that is not torch's own"):
        span_ranks(nn.Sequential(BatchNormAct2d(4)))
