from __future__ import annotations

import math

import pytest
import torch

from jepa.models.transformer import SinCosPositions, sincos_positions


def test_closed_form_on_two_axes():
    positions = sincos_positions(8, (3, 5))
    assert positions.shape == (15, 8)
    row, column = 2, 4
    code = positions[row * 5 + column]
    expected = []
    for place in (column, row):  # the last axis first
        angles = [place, place / 100]  # 10000^0 and 10000^(-1/2)
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert torch.allclose(code, torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("grid", [(7,), (4, 6), (2, 3, 4)])
def test_every_cell_has_its_own_code(grid):
    positions = sincos_positions(48, grid)
    assert torch.unique(positions, dim=0).shape[0] == math.prod(grid)


def test_refuses_a_width_that_the_axes_cannot_share():
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sincos_positions(6, (2, 2))


def test_module_has_no_state_and_follows_the_grid():
    module = SinCosPositions(8)
    assert not module.state_dict()
    assert module((2, 2), torch.device("cpu")).shape == (4, 8)
    assert module((3, 2), torch.device("cpu")).shape == (6, 8)
