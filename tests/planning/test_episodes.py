"""Episodes in two rooms: baselines, planning on true states and by an exact model, pictures, and what does not fit."""

from __future__ import annotations

import copy
import functools
import io
import json
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from jepa import build_trainer, load_config
from jepa.losses import MSE, Objective, OneStep
from jepa.models import EMATarget, SharedTarget
from jepa.models.encoders.impala import VectorEncoder
from jepa.models.world_model import WorldModel
from jepa.models.world_predictors import GRUPredictor
from jepa.optim import Constant
from jepa.planning.comparison import WORLD, Comparison, check_baselines, table
from jepa.planning.costs import GoalDistance
from jepa.planning.episode_pictures import check_drawable, frames, gif, imagined, mp4, plans_and_costs
from jepa.planning.episodes import run_episodes
from jepa.planning.planners.cem import CEM
from jepa.planning.planning_probe import PlanningProbe
from jepa.planning.policies import ModelView, Planned, StateView
from jepa.planning.random_encoder import errors, fit_predictor, standardised_windows
from jepa.planning.rules import RULES, Rules
from jepa.utils.errors import UserError
from jepa.worlds.two_rooms import Pairs
from jepa.worlds.two_rooms_task import TwoRoomsTask
from scripts.plan import check_is_world_model, check_pictures, make_task, plan

SMALL = functools.partial(CEM, samples=48, iterations=4, elites=6, horizon=30, exponent=1.0)
ONE_STEP = OneStep(distance=MSE())


def compared(rules="strict", episodes=4, task=None, planner=SMALL):
    return Comparison(task=task or TwoRoomsTask(), planner=planner, rules=rules, episodes=episodes)


def view(model, **settings):
    settings = {"normalised": lambda x: x.float(), "measure": GoalDistance(), **settings}
    return ModelView(model=model, device=torch.device("cpu"), **settings)


def in_one_room(pairs):
    """Pairs whose goals are 15 px beside the starts, so that the distance through walls leads there."""
    beside = torch.where(pairs.start[:, :1] < 32, pairs.start[:, :1] * 0.5 + 9, pairs.start[:, :1] * 0.5 + 24)
    return Pairs(pairs.start, torch.cat([beside, 66 - pairs.start[:, 1:]], dim=1).clamp(8, 56), pairs.layout, "")


def test_baselines_and_planning_on_true_states():
    comparison = compared(episodes=12)
    rows = {name: comparison.baseline(name) for name in ("random", "straight", "expert", "true_state")}
    assert rows["expert"]["success"] == rows["true_state"]["success"] == 1.0
    assert rows["random"]["success"] == 0.0
    assert rows["straight"]["success"] < 0.5
    fast = compared(episodes=12, task=TwoRoomsTask(options={"speed": 4}))
    assert fast.baseline("expert")["success"] == 1.0
    assert 20 < rows["expert"]["path_length"] < rows["true_state"]["path_length"] * 1.2 < 150
    assert rows["true_state"]["seconds_per_plan"] > 0
    assert rows["expert"]["low"] == pytest.approx(0.7575, abs=1e-3)
    results = {**rows["expert"], "baselines": rows, "rules": "strict", "rules_text": RULES["strict"].text}
    assert table(results).row_count == 5


def test_an_episode_does_not_depend_on_the_others():
    task = TwoRoomsTask(random_walls=True)
    world = task.open(task.pairs("test", 3), 1.3)
    paths = {}
    for rows in (3, 2):
        world = task.open(task.pairs("test", rows), 1.3)
        policy = Planned(SMALL(low=world.low, high=world.high), StateView(world, distance="way", over="sum"), 0)
        paths[rows] = run_episodes(world, policy, RULES["strict"]).actions
    steps = min(path.shape[1] for path in paths.values())
    assert torch.equal(paths[3][:2, :steps], paths[2][:, :steps])
    mine = TwoRoomsTask(goal=[12, 50]).pairs("test", 20)
    assert bool((mine.start[:, 0] > 32).all() & (mine.goal == torch.tensor([12, 50])).all())
    assert len({mine.sha256, task.pairs("test", 20).sha256, TwoRoomsTask(goal=[12, 51]).pairs("test", 20).sha256}) == 3
    assert task.pairs("test", 3).sha256 != TwoRoomsTask().pairs("test", 3).sha256
    assert task.pairs("test", 3).sha256 != task.pairs("validation", 3).sha256


@pytest.mark.parametrize(("history", "chunk"), [(1, 1), (3, 2)])
def test_a_model_plans_from_its_history_in_steps_of_several_actions(exact, history, chunk):
    model = exact(history)
    planner = functools.partial(SMALL, horizon=12, execute=3)
    comparison = compared(planner=planner, episodes=3)
    comparison.world = comparison.task.open(in_one_room(comparison.pairs), 1.3)
    found, episodes, policy = comparison.model(view(model, chunk=chunk), keep=2)
    assert found["success"] == 1.0
    assert set(policy.trace[0]) == {0, 1}
    assert episodes.actions.shape[1] < 60  # it ends when the last is solved
    known = {(past[0][1], past[1][1] - 12) for past in model.shapes}
    assert known == {(1, 0)} if history == 1 else known == {(1, 0), (3, 2)}
    assert {past[1][2] for past in model.shapes} == {2 * chunk}


def test_pictures_show_what_is_planned(exact):
    comparison = compared(episodes=2)
    ours = view(exact())
    _found, episodes, policy = comparison.model(ours, keep=1)
    plans = imagined(ours, comparison.world, policy)
    places = plans[0][0]  # of an exact model they are where the plan leads, to the next of the places known
    state, world = comparison.world.start[:1], comparison.world
    for action, place in zip(policy.trace[0][0][0], places):
        state = world.move(state, action[None], torch.tensor([0]))
        assert np.abs(place - state[0].numpy()).max() <= 1.01
    costs, states = ours.landscape(world, 0)
    at = np.unravel_index(int(costs.argmin()), costs.shape)
    assert torch.linalg.vector_norm(world.places(0)[at] - world.goal[0]) < 1.5
    assert states.shape == (*costs.shape, 2)
    pictures = frames(episodes, world.goal, 4.5, plans)
    assert Image.open(io.BytesIO(gif(pictures[:5]))).n_frames == 5
    with av.open(io.BytesIO(mp4([each.crop((0, 0, 265, 277)) for each in pictures[:3]]))) as video:
        shown = [frame.to_image() for frame in video.decode(video=0)]
    assert len(shown) == 3 + 11  # the last one stands for a second
    assert np.abs(np.subtract(shown[2], pictures[2].crop((0, 0, 264, 276)), dtype=float)).mean() < 8
    png = Image.open(io.BytesIO(plans_and_costs(ours, world, episodes, policy, plans)))
    assert png.width == 1000
    assert len(png.convert("RGB").getcolors(1 << 24)) > 500


def test_the_probe_plans_on_the_validation_list(exact):
    probe = PlanningProbe(
        task=TwoRoomsTask(), planner=functools.partial(SMALL, iterations=1), rules="strict", episodes=2
    )
    data = SimpleNamespace(normalised=lambda x: x.float(), frame_skip=1)
    found = probe(exact(), data, batches=None, device=torch.device("cpu"), seed=0)
    shown = probe.animation
    assert Image.open(io.BytesIO(shown)).n_frames > 5
    probe(exact(), data, batches=None, device=torch.device("cpu"), seed=0)
    assert probe.animation is shown  # the baselines come second
    assert set(found) == {"/success", "/low", "/high", "/seconds_per_episode"}
    assert 0 <= found["/low"] <= found["/high"]


@pytest.mark.parametrize(
    ("target", "term"), [(SharedTarget, MSE()), (functools.partial(EMATarget, momentum=Constant(value=0.9)), ONE_STEP)]
)
def test_a_predictor_learns_on_an_encoder_that_stays_random(target, term):
    torch.manual_seed(0)
    model = WorldModel(
        encoder=VectorEncoder(channels=2, embed_dim=16, hidden=[32]),
        predictor=GRUPredictor,
        target=target,
        loss=functools.partial(Objective, terms={"prediction": {"weight": 1.0, "term": term}}),
        action_dim=2,
        action_low=-1.0,
        action_high=1.0,
        rollout_steps=4,
        allow_collapse=True,
    )
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    actions = 2 * torch.rand(64, 4, 2) - 1
    x = torch.cat([torch.randn(64, 1, 2), actions], dim=1).cumsum(dim=1)
    fresh = copy.deepcopy(model)
    untrained = errors(fresh, standardised_windows(fresh, [{"x": x, "actions": actions}]))
    found = fit_predictor(model, [{"x": x, "actions": actions}], 60)
    assert found["prediction_error_still"] == untrained["prediction_error_still"]
    assert found["prediction_error"] < 0.75 * untrained["prediction_error"]
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all(name.startswith("predictor.") for name in changed)
    assert torch.equal(model.encode(x), model.encode_target(x))
    assert torch.allclose(model.encoder(x.flatten(0, 1)).std(dim=0), torch.ones(16), atol=1e-4)  # as it is, 0.1 to 0.3


def probed(exact, width=2, chunk=1, normalised=lambda x: x.float()):
    """What a probe says before training."""
    model, data = exact(), SimpleNamespace(normalised=normalised, frame_skip=chunk)
    model.action_dim, model.weight = width, torch.nn.Parameter(torch.zeros(()))
    PlanningProbe(task=TwoRoomsTask(), planner=SMALL, episodes=1).check(model, data)


def other_frames(x):
    raise ValueError("expected frames (B, 2, 32, 32)")


def bounded(exact, **bounds):
    return compared(planner=functools.partial(SMALL, **bounds)).planner(1, exact())


SETTINGS = OmegaConf.create({"environment": "two_rooms", "settings": {"walls": 2}, "options": None})
UNBOUNDED = SimpleNamespace(
    **{name: getattr(TwoRoomsTask(), name) for name in ("pairs", "open")},
    low=[-torch.inf] * 2,
    high=[1.0] * 2,
    max_norm=None,
)


def test_a_task_brings_its_own_rules():
    task = TwoRoomsTask()
    task.rules = {"near": Rules(name="near", text="under 60 px", distance=60.0, hold=1, steps=1)}
    assert compared("near", task=task).baseline("random")["success"] == 1.0


def opening(world):
    task = TwoRoomsTask()
    task.open = lambda pairs, radius: world
    return task


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda exact: compared(task=TwoRoomsTask(goal=[70, 10])), r"goal=\[70, 10\] is in no room"),
        (lambda exact: compared(task=TwoRoomsTask(start=[32, 40])), r"state=\[32, 40\] is in no room"),
        (lambda exact: TwoRoomsTask(goal=[1, 2, 3]), r"goal=\[1, 2, 3\]: expected \[x, y\]"),
        (lambda exact: compared(task=TwoRoomsTask(options={"size": 2})), "reset knows no option size"),
        (lambda exact: compared(task=UNBOUNDED).check_fits(view(exact())), "the actions have no bounds"),
        (lambda exact: check_baselines(["optimal"]), "baselines: there is no optimal, expected some of random"),
        (
            lambda exact: check_is_world_model(SimpleNamespace(model=torch.nn.Linear(1, 1), source="run")),
            "run holds a Lin",
        ),
        (
            lambda exact: make_task(OmegaConf.create({"environment": "push_t"})),
            "environment=push_t: expected two_rooms, or",
        ),
        (
            lambda exact: make_task(OmegaConf.create({"environment": "my.Task"})),
            "environment=my.Task cannot be imported",
        ),
        (lambda exact: make_task(SETTINGS), "settings.walls"),
        (
            lambda exact: check_pictures(OmegaConf.create({"video": "avi"}), Path("p.json")),
            "video=avi: expected mp4",
        ),
        (
            lambda exact: check_pictures(OmegaConf.create({"video": "mp4", "pictures": 0}), Path("p.json")),
            "pictures=0: set pictures=4",
        ),
        (lambda exact: check_pictures(OmegaConf.create({"video": None}), Path("p.gif")), "end its name in .json"),
        (lambda exact: probed(exact, width=3), "its actions have 2 components, in steps of data.frame_skip=1, and the"),
        (lambda exact: probed(exact, normalised=other_frames), r"the model does not take .*expected frames \(B, 2, 32"),
        (lambda exact: bounded(exact, execute=50), "planner.execute=50: a plan has only planner.horizon=30 steps"),
        (lambda exact: bounded(exact, low=[-1], high=[1]), "expected a number for each of the 2 components"),
        (
            lambda exact: bounded(exact, low=[-9, 0], high=[1, 1]),
            r"know actions from \[-2.45, -2.45\] to",
        ),
        (lambda exact: compared(rules="fair"), "rules=fair: expected published or strict"),
        (
            lambda exact: compared(task=SimpleNamespace(low=[0.0], pairs=0, open=0)),
            "task has no high and no max_norm; Task in",
        ),
        (
            lambda exact: compared(task=opening(SimpleNamespace(start=0))),
            "its world has no low and no high and no goal",
        ),
        (
            lambda exact: compared(task=opening(SimpleNamespace(**{name: [0.0] for name in WORLD}))),
            "low. has 2 components in its",
        ),
        (lambda exact: TwoRoomsTask(options={"layout": [25, 20]}), "options.layout: pairs set it"),
        (lambda exact: compared(task=TwoRoomsTask(start=[9, 9], goal=[9, 50])), r"goal=\[9, 50\] are in one room"),
        (lambda exact: check_baselines(["expert"], SimpleNamespace()), "expert takes a `expert` of the environment"),
        (
            lambda exact: check_drawable(SimpleNamespace(start=0, reset=lambda start: torch.zeros(1, 4)), "pictures"),
            r"these are \(4,\): set pictures=0",
        ),
        (
            lambda exact: compared().model(view(exact(), measure=lambda predicted, goal: predicted.mean((1, 2, 3)))),
            r"cost: got costs of shape \(1,\), expected \(1, 48\)",
        ),
    ],
)
def test_what_does_not_fit_is_said(exact, what, said):
    with pytest.raises((ValueError, UserError), match=said):
        what(exact)


def test_the_script_writes_what_the_model_solves_before_baselines_are_run(tmp_path, monkeypatch):
    options = ["data=two_rooms", "model=world", "data.horizon=3", "model.rollout_steps=2", "data.batch_size=4"]
    options += ["model/encoder=impala_small", "model.encoder.embed_dim=8", "data.source.train_walks=8"]
    options += ["trainer.max_steps=1", "scheduler=constant", "evaluation=none", "logger=[]", "report=none"]
    build_trainer(load_config([*options, "trainer.device=cpu", f"run_dir={tmp_path / 'run'}"])).fit()
    output = tmp_path / "found.seed0"
    options = [f"checkpoint={tmp_path / 'run'}", f"output={output}", "rules=strict", "episodes=2", "pictures=1"]
    options += [f"planner.{name}" for name in ("horizon=5", "samples=2", "elites=1", "iterations=1", "again=1")]
    config = load_config([*options, "baselines=[random]", "trainer.device=cpu"], config_name="plan")
    found = plan(config)
    assert json.loads(output.read_text()) == json.loads(json.dumps(found))
    assert found["planner"]["finest"] == 0.1
    assert 0 <= found["low"] <= found["success"] <= found["high"] <= 1
    assert found["baselines"]["random"].keys() >= {"success", "low", "high"}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "found.seed0", "found.seed0.gif", "found.seed0.png"}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.plan.baselines", interrupted)
    output.unlink()
    with pytest.raises(KeyboardInterrupt):
        plan(config)
    assert json.loads(output.read_text()) | {"seconds_per_episode": 0, "seconds_per_plan": 0} == json.loads(
        json.dumps(found | {"baselines": {}, "seconds_per_episode": 0, "seconds_per_plan": 0})
    )
