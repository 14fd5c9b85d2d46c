"""Planners: bounds, determinism, the least cost; costs of roll-outs; rules."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch

from jepa import load_config
from jepa.config.build import build, to_plain
from jepa.config.check import check_config
from jepa.planning.comparison import Comparison
from jepa.planning.costs import GoalDistance, ModelCost
from jepa.planning.planners.cem import CEM
from jepa.planning.planners.gradient import Gradient
from jepa.planning.planners.icem import ICEM
from jepa.planning.planners.mppi import MPPI
from jepa.planning.planners.planner import coloured
from jepa.planning.planners.random_shooting import RandomShooting
from jepa.planning.rules import RULES, named_rules, wilson_interval
from jepa.utils.errors import UserError
from jepa.utils.random import generator
from scripts.plan import make_task

PLANNERS = {
    "cem": functools.partial(CEM, samples=64, iterations=6, elites=8),
    "icem": functools.partial(ICEM, samples=64, iterations=6, elites=8),
    "mppi": functools.partial(MPPI, samples=64, iterations=6, elites=8),
    "random_shooting": functools.partial(RandomShooting, samples=512),
    "gradient": functools.partial(Gradient, samples=4, iterations=20),
}
GOALS = torch.tensor([[6.0, 0.0], [-3.0, 4.0], [0.0, -7.0]])


def cost(goals, actions):
    """How far from the goals sums of actions are; one sample is no number."""
    costs = (actions.cumsum(dim=2) - goals[:, None, None]).square().sum(dim=(-2, -1))
    return torch.where(torch.arange(costs.shape[1]) == 1, torch.nan, 1.0) * costs


def generators(*numbers):
    return [generator("cpu", 0, "plan", number) for number in numbers]


@pytest.mark.parametrize("name", PLANNERS)
def test_planners_go_to_the_goal_within_bounds_each_episode_by_itself(name):
    planner = PLANNERS[name](low=[-2.0, -2.0], high=[2.0, 2.0], max_norm=2.2, horizon=8, execute=2)
    plans = planner(functools.partial(cost, GOALS), None, generators(0, 1, 2))
    assert plans.shape == (3, 8, 2)
    assert plans.abs().max() <= 2
    assert torch.linalg.vector_norm(plans, dim=-1).max() <= 2.2 + 1e-5
    on = functools.partial(cost, GOALS)(torch.stack([torch.zeros_like(plans)] * 3 + [plans], dim=1))
    assert (on[:, 3] < 0.6 * on[:, 0]).all()
    alone = planner(functools.partial(cost, GOALS[1:2]), None, generators(1))
    assert torch.equal(alone[0], plans[1])
    rest = planner.rest(plans)
    assert torch.equal(rest[:, :6], plans[:, 2:])
    assert not rest[:, 6:].any()
    again = planner(functools.partial(cost, GOALS), rest, generators(3, 4, 5))
    assert torch.isfinite(again).all()
    assert not torch.equal(again, plans)
    weight = torch.ones((), requires_grad=True)  # of a model that is trained

    def few_allowed(actions):
        allowed = torch.arange(actions.shape[1]) < 3
        return torch.where(allowed, weight * actions.square().sum(dim=(-2, -1)), torch.inf)

    with torch.no_grad():
        assert torch.isfinite(planner(few_allowed, None, generators(0))).all()
    assert weight.grad is None
    two = PLANNERS[name](low=[-2.0, -2.0], high=[2.0, 2.0], max_norm=2.2, chunk=3, horizon=4, execute=2)
    long = two(lambda actions: -actions.sum(dim=(-2, -1)), None, generators(0))
    assert long.shape == (1, 4, 6)
    assert torch.linalg.vector_norm(long.unflatten(-1, (3, 2)), dim=-1).max() <= 2.2 + 1e-5


BOUNDS = {"low": [-1.0], "high": [1.0]}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CEM(), "planner: got low=None and high=None, the actions have no bounds: set planner.low"),
        (lambda: CEM(low=[-torch.inf], high=[1.0]), "have no bounds, they go from"),
        (lambda: CEM(low=[1.0], high=[1.0]), "expected low < high"),
        (lambda: CEM(low=[0.0, 0.0], high=[1.0]), "expected low < high"),
        (lambda: CEM(elites=200, **BOUNDS), "planner.elites=200: expected at most planner.samples=128"),
        (lambda: CEM(execute=50, **BOUNDS), "planner.execute=50: a plan has only planner.horizon=40"),
        (lambda: CEM(std=0.0, **BOUNDS), "planner.std must be above 0"),
        (lambda: CEM(finest=0.0, **BOUNDS), "planner.finest=0.0: expected above 0 and at most 1"),
        (lambda: ICEM(momentum=1.0, **BOUNDS), "momentum in"),
        (lambda: MPPI(temperature=-1.0, **BOUNDS), "planner.temperature must be above 0"),
        (lambda: Gradient(learning_rate=0.0, **BOUNDS), "planner.learning_rate must be above 0"),
        (lambda: GoalDistance(over="mean"), "cost.over='mean': expected 'sum' or 'last'"),
        (lambda: named_rules("fair"), "rules=fair: expected published or strict"),
    ],
)
def test_bad_settings_are_named(make, said):
    with pytest.raises((ValueError, UserError), match=said.replace("(", r"\(")):
        make()


def test_slow_noise_has_unit_variance_and_goes_further():
    white = torch.randn(4000, 25, 2, generator=generator("cpu", 0, "noise"))
    slow = coloured(white, 2.0)
    assert abs(float(slow.square().mean()) - 1) < 0.05
    assert slow.sum(dim=1).std() > 2 * white.sum(dim=1).std()
    singly, in_steps = (
        CEM(low=[-1.0], high=[1.0], horizon=12 // chunk, execute=1, chunk=chunk).noise(generators(0), 5, 2.0)
        for chunk in (1, 3)
    )
    assert in_steps.shape == (1, 5, 4, 3)
    assert torch.equal(in_steps.flatten(2), singly.flatten(2))


def test_fine_samples_find_a_plan_that_stays_at_the_goal():
    near, bounds = torch.tensor([[2.0, 0.0]]), {"low": [-2.45] * 2, "high": [2.45] * 2}
    costs = {}
    for finest in (1.0, 0.1):
        plan = ICEM(samples=64, iterations=4, horizon=40, exponent=2.0, finest=finest, **bounds)(
            functools.partial(cost, near), None, generators(0)
        )
        costs[finest] = (plan.cumsum(dim=1) - near).square().sum().item()
    assert costs[0.1] < 0.5 * costs[1.0], costs


def test_calls_of_the_model_have_one_size_and_costs_are_sums_or_last(exact):
    model, goal = exact(), torch.tensor([[10.0, 10.0], [12.0, 10.0], [10.0, 30.0]])
    history, past = torch.full((3, 1, 2), 20.0), torch.zeros(3, 0, 2)
    actions = torch.randn(3, 5, 4, 2, generator=generator("cpu", 0, "actions"))
    costs = {
        over: ModelCost(
            model=model, measure=GoalDistance(over=over), history=history, past=past, goal=goal, together=2
        )(actions)
        for over in ("sum", "last")
    }
    assert model.shapes == {((10, 1, 2), (10, 4, 2))}
    assert model.calls == 4
    far = (20 + actions.cumsum(dim=2) - goal[:, None, None]).square().mean(dim=-1)
    torch.testing.assert_close(costs["sum"], far.sum(dim=-1))
    torch.testing.assert_close(costs["last"], far[..., -1])


def test_rules():
    far, near = 9.0, 1.0
    published, strict = RULES["published"], RULES["strict"]
    for rules, distances, solved in [
        (published, [far] * 199 + [near], True),
        (published, [near] * 199 + [far], False),
        (published, [near] * 5, False),  # not yet at the last step
        (strict, [far] * 9 + [near] * 5, True),
        (strict, [near] * 5 + [far] * 195, True),
        (strict, ([near] * 4 + [far]) * 40, False),
        (strict, [4.5] * 200, False),
        (strict, [near] * 4, False),
    ]:
        assert rules.solved(torch.tensor([distances])).tolist() == [solved]
    # Wilson (1927); values of statsmodels' proportion_confint.
    for (successes, count), interval in {
        (8, 10): (0.4902, 0.9433),
        (0, 20): (0.0, 0.1611),
        (100, 100): (0.9630, 1.0),
    }.items():
        assert wilson_interval(successes, count) == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize("name", PLANNERS)
def test_configurations_make_planners_with_the_bounds_of_the_environment(name):
    config = load_config([f"planner={name}", "checkpoint=run"], config_name="plan")
    plain = {key: to_plain(config)[key] for key in ("planner", "cost")}
    check_config(plain)
    comparison = Comparison(task=make_task(config), planner=build(config, "planner"), rules=config.rules, episodes=1)
    planner = comparison.planner(chunk=2)
    assert type(planner) is PLANNERS[name].func
    assert planner.lowest.tolist() == pytest.approx([-2.45] * 4)
    assert planner.max_norm == 2.45
    data = SimpleNamespace(action_low=torch.tensor([-9.0, -2.0, -1.0, -9.0]), action_high=torch.full((4,), 2.0))
    within = comparison.planner(2, data)
    assert within.lowest.tolist() == pytest.approx([-1.0, -2.0] * 2)
    assert within.highest.tolist() == [2.0] * 4
    own = Comparison(
        task=comparison.task,
        planner=functools.partial(build(config, "planner"), low=[-1.0, -2.0], max_norm=1.5),
        rules="strict",
        episodes=1,
    ).planner()
    assert (own.lowest.tolist(), own.max_norm) == ([-1.0, -2.0], 1.5)
