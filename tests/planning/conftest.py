"""A world model of two rooms that is exact: its state is where the agent's blob is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from jepa.worlds.two_rooms import RoomLayout, move


class Exact(nn.Module):
    """A world model of the fixed rooms, for rules=strict; `shapes` are those of the calls of `rollout`."""

    action_dim = 2
    action_low, action_high = torch.tensor([-9.0]), torch.tensor([9.0])

    def __init__(self, history: int = 1) -> None:
        super().__init__()
        self.history, self.shapes, self.calls = history, set(), 0

    def encode(self, x: Tensor) -> Tensor:
        blob = x[..., 0, :, :].double()
        lines, total = torch.arange(65.0).double(), blob.sum(dim=(-2, -1))
        places = (blob.sum(dim=-2) @ lines, blob.sum(dim=-1) @ lines)
        return torch.stack([place / total for place in places], dim=-1).float()

    encode_target = encode

    def rollout(self, states: Tensor, actions: Tensor) -> Tensor:
        self.shapes.add((tuple(states.shape), tuple(actions.shape)))
        self.calls += 1
        place, places = states[:, -1], []
        for action in actions[:, states.shape[1] - 1 :].unbind(1):
            for single in action.unflatten(-1, (-1, 2)).unbind(1):
                place = move(place, single, RoomLayout.fixed(len(place)), 1.3)
            places.append(place)
        return torch.stack(places, dim=1)


@pytest.fixture
def exact():
    return Exact
