"""Two rooms: one rule of collision for data and evaluation, walks of the published distribution, pictures, pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa.utils.errors import UserError
from jepa.worlds import two_rooms
from jepa.worlds.two_rooms import RoomLayout, move

FIXED = RoomLayout.fixed(1)  # wall at 31 .. 33, door at 14 .. 22

WAYS = {
    "free": ([10, 10], [2, 1], 0.0, True),
    "to the border": ([5, 10], [-1, 0], 0.0, True),
    "over the border": ([5, 10], [-1.5, 0], 0.0, False),
    "to the border with a radius": ([6, 10], [-1, 0], 1.3, False),
    "into the wall": ([30, 40], [2, 0], 0.0, False),
    "through the wall in one step, which ends free": ([30, 40], [30, 0], 0.0, False),
    "to the face of the wall": ([30, 40], [1, 0], 0.0, True),
    "along the face of the wall": ([31, 40], [0, 2], 0.0, True),
    "from the face away": ([31, 40], [-1, 1], 0.0, True),
    "through the door": ([30, 18], [4, 0], 0.0, True),
    "through the door, slanting": ([30, 15], [4, 4], 0.0, True),
    "through the door into its edge": ([32, 20], [0, 3], 0.0, False),
    "through the door, cutting its corner": ([30, 20], [2, 3], 0.0, False),
    "past the corner of the door": ([30, 24], [1, -2.1], 0.0, True),
    "along the edge of the door": ([30, 22], [4, 0], 0.0, True),
    "through the door with a radius": ([29, 20], [6, 0], 1.3, True),
    "too near the edge of the door for a radius": ([29, 21], [6, 0], 1.3, False),
    "the wall is thicker for a radius": ([28, 40], [2, 0], 1.3, False),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_blocked_agent_stays(name):
    start, action, radius, passes = WAYS[name]
    start, action = torch.tensor([start], dtype=torch.float32), torch.tensor([action], dtype=torch.float32)
    mirrored = RoomLayout(64 - FIXED.wall_x, FIXED.door_y)  # the same from the right
    for side, layout in ((1, FIXED), (-1, mirrored)):
        turn = torch.tensor([float(side), 1.0])
        begin = start if side == 1 else start * turn + torch.tensor([64.0, 0.0])
        end = move(begin, action * turn, layout, radius)
        assert torch.equal(end, begin + action * turn if passes else begin)
        if passes:  # the rule knows no direction
            torch.testing.assert_close(move(end, -action * turn, layout, radius), begin)


def test_no_way_leads_through_the_wall_but_by_the_door():
    """Dense points on random segments, tested one by one, say the same as the swept rule."""
    random = torch.Generator().manual_seed(0)
    layout = RoomLayout.drawn(torch.rand(20_000, 2, generator=random))
    start = 4 + 56 * torch.rand(20_000, 2, generator=random)
    start, layout = start[(free := two_rooms.is_free(start, layout))], layout[free]
    action = 8 * torch.randn(len(start), 2, generator=random)
    moved = (move(start, action, layout) != start).any(1)
    shares = torch.linspace(0, 1, 200)
    steps = [two_rooms.is_free(start + share * action, layout) for share in shares]
    along = torch.stack(steps).all(0)
    assert not (moved & ~along).any()
    assert (moved != along).float().mean() < 0.003  # corners cut between two points
    assert 0.3 < moved.float().mean() < 0.9


def test_walks_follow_the_rule_and_the_published_distribution():
    numbers = torch.rand(10_000, two_rooms.WALK_NUMBERS, generator=torch.Generator().manual_seed(0))
    positions, actions, layout = two_rooms.walks_of(numbers)
    assert positions.shape == (10_000, 91, 2)
    assert actions.shape == (10_000, 90, 2)
    for step in range(90):
        torch.testing.assert_close(move(positions[:, step], actions[:, step], layout), positions[:, step + 1])
    assert two_rooms.is_free(positions.flatten(0, 1), layout[torch.arange(10_000).repeat_interleave(91)]).all()
    length = actions.norm(dim=2)
    assert 0.2 <= length.min() <= length.max() <= 1.8 + 1e-5
    assert float(length.mean()) == pytest.approx(1.0, abs=0.01)
    turns = (actions[:, 1:] * actions[:, :-1]).sum(2) / (length[:, 1:] * length[:, :-1])
    went = (positions[:, 1:] != positions[:, :-1]).any(2)
    assert float(turns[went[:, 1:] & went[:, :-1]].mean()) == pytest.approx(0.893, abs=0.01)  # I1(5) / I0(5)
    side = (positions[:, :, 0] > layout.wall_x.unsqueeze(1)).float()
    crossed = side.amax(1) != side.amin(1)
    assert 0.35 < float(crossed.float().mean()) < 0.45  # those that are built to, and some of the others
    assert torch.equal(two_rooms.walks_of(numbers[5:9])[0], positions[5:9])  # a walk is a function of its numbers
    fixed, _, _ = two_rooms.walks_of(numbers[:100], RoomLayout.fixed(100))
    assert two_rooms.is_free(fixed.flatten(0, 1), RoomLayout.fixed(9_100)).all()


def test_pictures_show_agent_and_walls():
    positions = torch.tensor([[10.0, 40.0], [32.0, 18.5]])
    pictures = two_rooms.render(positions, RoomLayout.fixed(2))
    assert pictures.shape == (2, 2, 65, 65)
    assert pictures.dtype == torch.uint8
    assert pictures[0, 0, 40, 10] == 255
    assert pictures[0, 0, 41, 10] == int(255 * np.exp(-1 / (2 * 1.3**2)))  # row y, column x
    assert pictures[0, 0, :, 20:].amax() == 0
    wall = pictures[0, 1]
    assert wall.unique().tolist() == [0, 255]
    assert wall[30, 30:35].tolist() == [0, 255, 255, 255, 0]
    assert (wall[:, 32] == 0).nonzero().flatten().tolist() == list(range(14, 23))
    assert bool((wall[4] == 255).all() & (wall[:, 60] == 255).all())
    # The statistics that are published for normalisation.
    positions, _, layout = two_rooms.walks_of(torch.rand(500, two_rooms.WALK_NUMBERS))
    pictures = two_rooms.render(positions[:, ::30], layout) / 255
    assert pictures.shape == (500, 4, 2, 65, 65)
    assert pictures.mean((0, 1, 3, 4)).tolist() == pytest.approx([0.0026, 0.0989], abs=2e-3)
    assert pictures.transpose(0, 2).flatten(1).std(1).tolist() == pytest.approx([0.0369, 0.2986], abs=2e-3)


@pytest.mark.parametrize("radius", [0.0, 1.3])
def test_the_expert_reaches_every_goal_of_the_pairs(radius):
    start, goal, layout, _ = two_rooms.pairs(3, 300, random_walls=True)
    assert ((start[:, 0] < layout.wall_x) != (goal[:, 0] < layout.wall_x)).all()
    assert two_rooms.is_free(
        torch.cat((start, goal)), RoomLayout(layout.wall_x.tile(2), layout.door_y.tile(2)), 2.5
    ).all()
    for _ in range(100):
        action = two_rooms.expert(start, goal, layout, radius)
        assert action.abs().max() <= two_rooms.MAX_ACTION + 1e-5
        start = move(start, action, layout, radius)
    torch.testing.assert_close(start, goal)


def test_pairs_are_a_function_of_seed_and_number():
    first, more, other = (two_rooms.pairs(*arguments) for arguments in ((0, 10), (0, 20), (1, 10)))
    assert torch.equal(first.start, more.start[:10])
    assert len({first.sha256, more.sha256, other.sha256}) == 3
    assert first.sha256 == two_rooms.pairs(0, 10).sha256


def test_a_place_in_no_room_is_named():
    with pytest.raises(UserError, match=r"goal=\[32, 40\] is in no room: expected x and y in \[4, 60\]"):
        two_rooms.check_free("goal", torch.tensor([[10.0, 10.0], [32.0, 40.0]]), RoomLayout.fixed(2))
    with pytest.raises(UserError, match="is in no room"):
        two_rooms.check_free("goal", torch.tensor([[float("nan"), 10.0]]), FIXED)
