"""What a decoder makes of the states of a world model whose states are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from jepa.config.decode_run import world_sheet
from jepa.report.state_decoder import decode_states, reduced
from jepa.utils.errors import UserError

SIZE = 12
LINES = torch.arange(float(SIZE))


class Mirrored:
    """Its state is where the spot is, as cosines and sines; it believes that actions lead the other way."""

    history = 1

    def encode(self, x):
        spot = x[:, :, 0].clamp(min=0)
        moments = torch.stack([spot.sum(dim=axis) @ LINES for axis in (-2, -1)], dim=-1)
        return self.states(moments / spot.sum(dim=(-2, -1)).unsqueeze(-1))

    encode_target = encode

    def states(self, place):
        angle = place.unsqueeze(-1) * torch.pi / SIZE * torch.tensor([1.0, 2.0])
        return torch.cat([angle.cos(), angle.sin(), place.unsqueeze(-1)], dim=-1).flatten(-2)

    def rollout(self, states, actions):
        return self.states(states[..., [4, 9]] - actions.cumsum(dim=1))


def windows(seed, count=16):
    """Batches of 4 frames in which a spot on black, beside a wall, moves by its actions, up to 1.5 px in all."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        start = 3 + 6 * torch.rand(32, 1, 2, generator=generator)
        actions = torch.rand(32, 3, 2, generator=generator) - 0.5
        place = torch.cat([start, start + actions.cumsum(dim=1)], dim=1)
        across, down = torch.exp((LINES - place.unsqueeze(-1)).square() / -2).unbind(2)
        wall = torch.zeros(32, 4, SIZE, SIZE)
        wall[..., 0] = 3.0
        yield {"x": torch.stack([down.unsqueeze(-1) * across.unsqueeze(-2), wall], dim=2), "actions": actions}


def test_decoded_states_show_the_spot():
    (batch,) = windows(1, count=1)
    found = decode_states(Mirrored(), windows(0), [batch])
    assert found.frames.shape == found.own.shape == found.rolled_out.shape == (32, 3, 2, SIZE, SIZE)
    assert min(found.explained) > 0.8
    assert found.explained_rolled_out[2] < found.explained_rolled_out[0] < min(found.explained)
    assert (found.rolled_out[:, :, 1, :, 0] > 2.9).all(), "the wall"
    model = Mirrored()
    believed = model.encode(batch["x"][:, :1])[..., [4, 9]] - batch["actions"].cumsum(dim=1)
    shown = model.encode(found.rolled_out)[..., [4, 9]]
    assert float((shown - believed).norm(dim=-1).median()) < 0.3
    assert reduced(torch.ones(1, 3, 144, 288)).shape == (1, 3, 36, 72)


def test_vectors_are_no_pictures():
    with pytest.raises(UserError, match=r"vectors of 5 values and no pictures: expected frames \(C, H, W\)"):
        world_sheet(Mirrored(), SimpleNamespace(observation_shape=(5,)), torch.device("cpu"))
