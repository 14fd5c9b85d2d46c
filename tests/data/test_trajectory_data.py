"""Trajectories: windows of stored episodes in every layout that is read, and of walks made as they are read."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from data_helpers import same

from jepa.data import TrajectoryData
from jepa.data.sources import episode_files
from jepa.utils.errors import DataError, UserError
from jepa.worlds import two_rooms
from jepa.worlds.two_rooms import RoomLayout
from jepa.worlds.walk_data import two_rooms_walks


def episode(number: int, steps: int = 12, pictures: bool = True) -> dict[str, np.ndarray]:
    """An episode whose arrays tell their episode and step: pixels 10 e + t, actions and states (e, t)."""
    times = np.arange(steps)
    told = np.stack((np.full(steps, number), times), axis=1).astype(np.float32)
    shape = (steps, 3, 4, 6) if pictures else (steps, 5)
    values = np.broadcast_to((10 * number + times).reshape(-1, *(1,) * (len(shape) - 1)), shape)
    return {"observations": values.astype(np.uint8 if pictures else np.float32), "actions": told, "states": 2 * told}


def joined(episodes: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([each[name] for each in episodes]) for name in episodes[0]}


def write(folder: Path, layout: str, episodes: list[dict[str, np.ndarray]]) -> Path:
    """Write episodes as one of the layouts that are read; gives data.root."""
    folder.mkdir(exist_ok=True)
    whole, lengths = joined(episodes), np.array([len(each["actions"]) for each in episodes])
    if layout in ("npz", "compressed"):
        for number, each in enumerate(episodes):
            save = np.savez if layout == "npz" else np.savez_compressed
            save(folder / f"{number}.npz", **each)
        return folder
    if layout == "ends":  # several in a file, whose last action is not there
        ends = np.zeros(len(whole["actions"]), dtype=bool)
        ends[np.cumsum(lengths) - 1] = True
        np.savez(folder / "all.npz", **whole, truncated=ends, terminated=np.zeros_like(ends))
        return folder
    if layout == "numbers":
        np.savez(folder / "all.npz", **whole, ep_idx=np.repeat(np.arange(len(lengths)), lengths))
        return folder
    with h5py.File(folder / "all.h5", "w") as file:  # as stable-worldmodel has it: channels last, NaN at the end
        file["pixels"] = np.moveaxis(whole["observations"], 1, -1)
        actions = whole["actions"].copy()
        actions[np.cumsum(lengths) - 1] = np.nan
        file["action"], file["proprio"], file["ep_len"] = actions, whole["states"], lengths
        file["ep_offset"] = np.cumsum(lengths) - lengths
        file.create_group("meta")
    return folder / "all.h5"


def stored(root: Path, **settings) -> TrajectoryData:
    source = {"val_fraction": 0.25} | settings.pop("source", {})
    defaults = {"history": 2, "horizon": 2, "batch_size": 4, "mean": 0.0, "std": 1 / 255}
    return TrajectoryData(source=partial(episode_files, **source), root=str(root), **{**defaults, **settings})


@pytest.mark.parametrize("frame_skip", [1, 3])
@pytest.mark.parametrize("layout", ["npz", "compressed", "ends", "numbers", "hdf5"])
def test_every_layout_gives_the_same_windows(tmp_path, layout, frame_skip):
    data = stored(
        write(tmp_path / layout, layout, [episode(i) for i in range(4)]),
        frame_skip=frame_skip,
        num_workers=frame_skip // 3,
    )
    span = 3 * frame_skip
    assert data.spec.num_train == 3 * (12 - span)
    assert data.spec.num_test == 12 - span
    assert data.spec.input_shape == (4, 3, 4, 6)
    assert data.spec.found["image_size"] == [4, 6]
    assert data.spec.found["action_dim"] == 2 * frame_skip
    assert data.action_high == [3, 10] * frame_skip  # of the step before the last one, which leads nowhere
    seen = set()
    for split, count in (("train", 3), ("test", 1)):
        for batch in data.evaluation_batches(split, batch_size=5):
            number, first = (batch["states"][:, 0] / 2).unbind(1)
            time = first.unsqueeze(1) + frame_skip * torch.arange(4)
            torch.testing.assert_close(
                batch["states"], 2 * torch.stack((number.unsqueeze(1).expand(-1, 4), time), dim=2)
            )
            torch.testing.assert_close(batch["x"][:, :, 0, 0, 0], 10 * number.unsqueeze(1) + time)
            between = batch["actions"].unflatten(2, (frame_skip, 2)).flatten(1, 2)
            torch.testing.assert_close(between[..., 1], first.unsqueeze(1) + torch.arange(span))
            assert (between[..., 0] == number.unsqueeze(1)).all()  # no window crosses episodes
            seen |= {(split, n) for n in number.tolist()}
        assert len([each for each in seen if each[0] == split]) == count
    assert not {n for s, n in seen if s == "train"} & {n for s, n in seen if s == "test"}
    truth = next(data.truth_batches("test", batch_size=3, what="states"))
    assert data.has_truth("states")
    assert not data.has_truth("events")
    assert torch.equal(torch.stack(truth["truth"]), truth["states"])
    assert (
        f"{layout if layout != 'hdf5' else 'all.h5'}: 4 episodes of 12 to 12 frames, 48 in all; 3 to train on"
        in data.lines[0]
    )


def test_vectors_without_states_are_standardised_and_scored_by_episode(tmp_path):
    episodes = [{name: each for name, each in episode(i, pictures=False).items() if name != "states"} for i in range(8)]
    data = stored(write(tmp_path, "npz", episodes), mean="auto", std="auto", score_on="validation")
    batch = next(data.train_batches(seed=0, start_step=0, stop_step=1))
    assert sorted(batch) == ["actions", "x"]
    alike = stored(write(tmp_path / "alike", "npz", [{**each, "actions": 0 * each["actions"]} for each in episodes]))
    assert alike.action_std == [1, 1]
    assert batch["x"].shape == (4, 4, 5)
    assert (data.spec.found["channels"], data.spec.found["image_size"]) == (5, 0)
    whole = torch.cat([each["x"] for each in data.evaluation_batches("train", batch_size=64)]).flatten(0, 1)
    assert float(whole.mean()) == pytest.approx(0, abs=0.2)
    assert float(whole.std()) == pytest.approx(1, abs=0.1)
    trained = {
        float(each) for batch in data.evaluation_batches("train", batch_size=64) for each in batch["actions"][:, 0, 0]
    }
    scored = {
        float(each) for batch in data.evaluation_batches("test", batch_size=64) for each in batch["actions"][:, 0, 0]
    }
    assert len(scored) == 2  # a third of the six episodes to train on
    assert not trained & scored


def spoil(name: str, value) -> dict[str, np.ndarray]:
    return episode(1) | {name: value}


NAN = episode(1)["actions"].copy()
NAN[3] = np.nan
BAD = {
    "cut h5": (None, "1.h5 (OSError: Unable"),
    "cut npz": (None, "1.npz (BadZipFile: File is not a zip file"),
    "NaN actions": (spoil("actions", NAN), "1.npz, steps 0 to 11 (the action of step 3 is NaN or infinite)"),
    "other width": (spoil("actions", np.zeros((12, 3), np.float32)), "actions of width 3, the others 2"),
    "other type": (
        spoil("actions", np.zeros((12, 2), int)),
        "actions are int64 of shape (12, 2); expected floats (T, A)",
    ),
    "too few": (spoil("actions", np.zeros((5, 2), np.float32)), "it has 12 observations, but 5 actions"),
    "no actions": ({"observations": episode(1)["observations"]}, "it has no actions, but observations"),
    "other pictures": (
        spoil("observations", np.zeros((12, 3, 8, 8), np.uint8)),
        "observations of (3, 8, 8), the others (3, 4, 6)",
    ),
    "objects": (spoil("actions", np.array([{}] * 12)), "holds Python objects"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_named_and_left_out(tmp_path, name):
    arrays, reason = BAD[name]
    root = write(tmp_path, "npz", [episode(i) for i in range(4)])
    if arrays is None:
        path = root / f"1.{name.partition(' ')[2]}"
        if path.suffix == ".h5":
            (root / "1.npz").unlink()
            with h5py.File(path, "w") as file:
                file.update(episode(1))
        path.write_bytes(path.read_bytes()[:1000])
    else:
        np.savez(root / "1.npz", **arrays)
    data = stored(root)
    assert data.spec.num_train + data.spec.num_test == 3 * 9
    assert any("left out 1." in line and reason in line for line in data.lines)
    with pytest.raises(DataError, match="1 files or episodes cannot be used") as error:
        stored(root, max_bad_share=0.0)
    assert reason in str(error.value)


def test_data_that_does_not_fit_gets_one_sentence(tmp_path):
    root = write(tmp_path, "npz", [episode(i) for i in range(4)])
    for settings, message in (
        ({"horizon": 11}, "all 4 episodes are shorter than a window of 13 steps"),
        ({"views": 2}, "data.views=2: trajectories are not augmented"),
        ({"channels": 1}, "data.channels=1, but the data has 3"),
        ({"action_dim": 3}, "data.action_dim=3, but the data has 2"),
        ({"action_low": [0.0]}, "data.action_low has 1 values, actions 2"),
        (
            {"action_high": [3.0, 5.0]},
            r"go from 0 to 10, beyond data.action_low=\[0.0, 0.0\], data.action_high=\[3.0, 5.0\]",
        ),
        ({"source": {"states": "speed"}}, "has no array speed .data.source.states., but actions, observations, states"),
        ({"mean": [0.0, 1.0]}, "data.mean has 2 values, the data 3 channels"),
    ):
        with pytest.raises((DataError, ValueError), match=message):
            stored(root, **settings)
    with pytest.raises(DataError, match="is neither a folder nor a file"):
        stored(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no episodes"):
        stored(tmp_path / "empty")
    for name, starts, message in (("a.h5", [0, 9], "do not lie within its 12 rows"), ("b.h5", [3, 0], "overlap")):
        with h5py.File(tmp_path / "empty" / name, "w") as file:
            file.update(episode(0) | {"ep_len": np.array([9, 9]), "ep_offset": np.array(starts)})
        with pytest.raises(DataError, match=message):
            stored(tmp_path / "empty" / name)
    data = stored(root, image_size=8)
    assert data.normalised(np.zeros((5, 3, 4, 6), np.uint8)).shape == (5, 3, 8, 8)
    for other in (np.zeros((5, 2, 65, 65), np.uint8), np.zeros((5, 3, 4, 6), np.float32)):
        with pytest.raises(UserError, match=r"do not fit: the model was trained on .3, 4, 6., uint8"):
            data.normalised(other)


def rooms(**settings) -> TrajectoryData:
    source = settings.pop("source", {})
    defaults = {"batch_size": 8, "horizon": 4, "mean": [0.0026, 0.0989], "std": [0.0369, 0.2986]}
    return TrajectoryData(source=partial(two_rooms_walks, train_walks=100, **source), **{**defaults, **settings})


@pytest.mark.parametrize("frame_skip", [1, 3])
def test_walks_are_made_of_seed_and_counter(frame_skip):
    data = rooms(frame_skip=frame_skip, source={"random_walls": True})
    straight = list(data.train_batches(seed=3, start_step=0, stop_step=14))
    assert same(straight[5:7], data.train_batches(seed=3, start_step=5, stop_step=7))
    halves = [next(data.train_batches(seed=3, start_step=2, stop_step=3, rank=r, world_size=2)) for r in (0, 1)]
    assert torch.equal(torch.cat([half["x"] for half in halves]), straight[2]["x"])
    states = torch.cat([batch["states"] for batch in straight])
    assert len({tuple(each) for each in states[:, 0].tolist()}) == 112  # new walks in the second epoch
    assert not same(straight[:1], data.train_batches(seed=4, start_step=0, stop_step=1))
    other = rooms(frame_skip=frame_skip, score_on="validation", source={"random_walls": True})
    assert not same(
        data.evaluation_batches("test", batch_size=4, limit=4), other.evaluation_batches("test", batch_size=4, limit=4)
    )
    (batch,) = straight[:1]
    walls = batch["x"][:, 0, 1] > 0
    middle = walls[:, 5, 19:].float().argmax(1) + 20.0  # of three columns
    closed = walls[torch.arange(8), :, middle.long()]
    layout = RoomLayout(middle, torch.tensor([float((~each).nonzero().float().mean()) for each in closed]))
    torch.testing.assert_close(batch["x"], data.normalised(two_rooms.render(batch["states"], layout)))
    assert torch.equal(batch["factors"], torch.stack((layout.wall_x, layout.door_y), dim=1))
    position = batch["states"][:, 0]
    for step, action in enumerate(batch["actions"].unflatten(2, (frame_skip, 2)).flatten(1, 2).unbind(1), start=1):
        position = two_rooms.move(position, action, layout)
        if step % frame_skip == 0:
            torch.testing.assert_close(position, batch["states"][:, step // frame_skip])


def test_training_walks_in_a_row_share_a_layout():
    steps = {"seed": 3, "start_step": 125, "stop_step": 131}  # from walk 1,000 on; 1,024 are made at once
    sources = [{"random_walls": True, "walks_per_layout": count} for count in (8, 12, 1)]
    batches = [list(rooms(source=source).train_batches(**steps)) for source in sources]
    alike = [[len(batch["factors"].unique(dim=0)) for batch in each] for each in batches]
    assert alike[:2] == [[1] * 6, [1, 1, 2, 1, 1, 2]]
    assert all(torch.equal(shared["x"][0], own["x"][0]) for shared, own in zip(batches[0], batches[2]))
    held_out = [rooms(source=source).evaluation_batches("test", batch_size=8, limit=4) for source in sources]
    assert same(held_out[0], held_out[2])


def test_impossible_events_begin_at_their_frame():
    data = rooms(source={"random_walls": True, "radius": 1.3}, horizon=8)
    batch = next(data.truth_batches("test", batch_size=64, what="events"))
    event = int(batch["event"][0])
    places = {name: place(batch[name]) for name in ("x", "wall", "teleport")}
    assert torch.equal(batch["x"][:, :event], batch["wall"][:, :event])
    assert torch.equal(batch["x"][:, :event], batch["teleport"][:, :event])
    assert torch.equal(batch["x"][:, event - 1], batch["x"][:, event])  # it is stopped
    far = {name: (places[name] - places["x"]).norm(dim=2) for name in ("wall", "teleport")}
    assert (far["wall"][:, event:].diff(dim=1) > 0.3).all()  # farther and farther
    assert (far["teleport"][:, event:] > 10).all()
    assert batch["actions"].shape == (64, 8, 2)


def place(x: torch.Tensor) -> torch.Tensor:
    """The centre of the agent's blob in inputs (n, T, 2, 65, 65)."""
    blob = x[:, :, 0] - x[:, :, 0].amin((2, 3), keepdim=True)
    lines = torch.arange(65.0)
    return torch.stack([(blob.sum(axis) * lines).sum(2) / blob.sum((2, 3)) for axis in (2, 3)], dim=2)


def test_walks_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="a walk has 90 steps"):
        rooms(horizon=91)
    with pytest.raises(ValueError, match=r"data.source.radius=4: expected at least 0 and less than 4"):
        rooms(source={"radius": 4})
    with pytest.raises(ValueError, match=r"walks_per_layout=8: .* add data.source.random_walls=true"):
        rooms(source={"walks_per_layout": 8})
