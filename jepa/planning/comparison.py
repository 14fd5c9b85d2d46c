"""How often a world model's plans reach the goal, beside baselines on the same pairs of starts and goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from rich.table import Table

from jepa.planning.episodes import Episodes, World, run_episodes
from jepa.planning.planners.planner import Planner
from jepa.planning.policies import Baseline, ModelView, Planned, RandomActions, StateView
from jepa.planning.rules import RULES, named_rules, wilson_interval
from jepa.utils.errors import UserError

BASELINES = {
    "random": "random actions",
    "straight": "straight towards the goal",
    "expert": "the expert, through the door",
    "true_state": "same planner on true states, cost: length of the way",
    "true_state_straight": "same planner on true states, cost: distance through walls",
    "random_encoder": "same planner, random encoder, predictor trained on it",
}
"""Name -> what it is."""
TASK = ("low", "high", "max_norm", "pairs", "open")
WORLD = ("low", "high", "start", "goal", "reset", "step", "distance")
"""What planning needs of a task and of the world that it opens; some baselines and pictures need more."""


class Task(Protocol):
    """An environment to plan in, as `jepa.worlds.two_rooms_task.TwoRoomsTask`.

    low, high: bounds of an action, not finite where there are none. max_norm: length of the longest, or None.
    It may have `rules`, name -> when an episode counts as solved; otherwise those of two rooms hold.
    """

    low: Sequence[float]
    high: Sequence[float]
    max_norm: float | None

    def pairs(self, split: str, count: int) -> Any:
        """Return starts and goals of the "validation" or "test" list, with `sha256`, a hash of them."""

    def open(self, pairs: Any, radius: float) -> World:
        """Return the world of these pairs, for agents of a radius."""


class Comparison:
    """Runs policies over the same pairs of a task, by the same rules.

    planner: called with the bounds of an action, `chunk` and `max_norm` where it has none of its own; `given` are the
        bounds that it was given. split: "validation" or "test" pairs, so many episodes.
    chunk: actions in a step of the model. seed: of planners and random actions.

    Raises UserError for a task or a world that lacks what planning needs, and for rules that the task does not know.
    """

    def __init__(
        self,
        *,
        task: Task,
        planner: Callable[..., Planner],
        rules: str,
        split: str = "test",
        episodes: int = 100,
        over: str = "sum",
        seed: int = 0,
    ) -> None:
        check_has("task", task, TASK)
        self.task, self.over, self.seed = task, over, seed
        self.rules = named_rules(rules, getattr(task, "rules", RULES))
        self.pairs = task.pairs(split, episodes)
        check_has("list of pairs", self.pairs, ("sha256",))
        self.world = task.open(self.pairs, self.rules.radius)
        check_has("world", self.world, WORLD)
        if len(task.low) != len(self.world.low):
            widths = f"{len(task.low)} components in its task, {len(self.world.low)} in its world"
            raise UserError(f"environment: `low` has {widths}: expected as many")
        self.make_planner = planner

    def planner(self, chunk: int = 1, model: Any = None) -> Planner:
        """Return the planner for steps of `chunk` actions, with the bounds that it was given or the environment's.

        model: whose data may have known a narrower range of actions. Raise UserError for settings that do not fit.
        """
        low, high = np.tile(self.task.low, chunk), np.tile(self.task.high, chunk)
        if model is not None:
            low = np.maximum(low, model.action_low.cpu().numpy())
            high = np.minimum(high, model.action_high.cpu().numpy())
        ours = {
            "low": low.reshape(chunk, -1).max(axis=0).tolist(),  # of each component the narrowest in a step
            "high": high.reshape(chunk, -1).min(axis=0).tolist(),
            "max_norm": self.task.max_norm,
        }
        given = getattr(self.make_planner, "keywords", {})
        try:
            made = self.make_planner(chunk=chunk, **{name: ours[name] for name in ours if given.get(name) is None})
        except ValueError as error:
            raise UserError(str(error)) from error
        bounds = f"planner.low={made.low} and planner.high={made.high}"
        if len(made.low) != len(ours["low"]):
            raise UserError(f"{bounds}: expected a number for each of the {len(ours['low'])} components of an action")
        low, high = np.array(ours["low"]), np.array(ours["high"])
        beyond = np.maximum(low - made.low, made.high - high)
        if model is not None and bool((beyond > 1e-3 * (high - low)).any()):
            known = f"from {low.round(3).tolist()} to {high.round(3).tolist()}"
            raise UserError(f"{bounds}: the environment and the model's data know actions {known}: stay within these")
        return made

    def check_fits(self, view: ModelView) -> None:
        """Raise UserError for a model of other actions or observations than the environment's, and for the planner."""
        model, width = view.model, len(self.world.low)
        if width * view.chunk != model.action_dim:
            raise UserError(
                f"environment: its actions have {width} components, in steps of data.frame_skip={view.chunk}, and the "
                f"model takes {model.action_dim}: expected the environment that the data are of"
            )
        try:
            view.begin(self.world.reset(self.world.start)[:1])
        except ValueError as error:
            raise UserError(f"the model does not take the environment's observations: {error}") from error
        self.planner()  # of baselines, which know no bounds of the model's data
        self.planner(view.chunk, model)

    def model(self, view: ModelView, *, keep: int = 0) -> tuple[dict[str, Any], Episodes, Planned]:
        """Return the scores of planning with a model, its episodes and the policy. keep: as in `run_episodes`."""
        policy = Planned(self.planner(view.chunk, view.model), view, self.seed, watched=keep)
        return *self._scored(policy, keep), policy

    def baseline(self, name: str, random_view: Callable[[], ModelView] | None = None) -> dict[str, Any]:
        """Return the scores of one of BASELINES.

        random_view: makes the model whose encoder is random, with a predictor trained on it.
        """
        world = self.world
        if name in ("straight", "expert"):
            return self._scored(Baseline(getattr(world, name)))[0]
        if name == "random":
            planner = self.planner()
            return self._scored(RandomActions(planner.low, planner.high, self.seed))[0]
        if name == "random_encoder":
            return self.model(random_view())[0]
        distance = "way" if name == "true_state" else "distance"
        return self._scored(Planned(self.planner(), StateView(world, distance=distance, over=self.over), self.seed))[0]

    def _scored(self, policy: Any, keep: int = 0) -> tuple[dict[str, Any], Episodes]:
        episodes = run_episodes(self.world, policy, self.rules, keep=keep)
        return scores(episodes, policy), episodes


def scores(episodes: Episodes, policy: Any) -> dict[str, Any]:
    """Return the share of solved episodes with its 95 % interval, the mean path of these, and seconds."""
    count, solved = len(episodes.solved), int(episodes.solved.sum())
    low, high = wilson_interval(solved, count)
    found: dict[str, Any] = {"success": solved / count, "low": low, "high": high}
    found["path_length"] = float(episodes.path[episodes.solved].mean()) if solved else None
    found["seconds_per_episode"] = episodes.seconds / count
    if plans := getattr(policy, "plans", 0):
        found["seconds_per_plan"] = policy.seconds / plans
    return found


def table(results: Mapping[str, Any]) -> Table:
    """Return the results of scripts/plan.py for rich to print."""
    shown = Table(title=f"rules={results['rules']}: {results['rules_text']}", title_justify="left")
    for number, column in enumerate(("", "solved", "95 % interval", "path", "s / episode", "s / plan")):
        shown.add_column(column, justify="right" if number else "left")
    rows = {"the model": results, **{BASELINES[name]: row for name, row in results["baselines"].items()}}
    for name, row in rows.items():
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        path = "" if row["path_length"] is None else f"{row['path_length']:.1f}"
        plan = f"{row['seconds_per_plan']:.3f}" if "seconds_per_plan" in row else ""
        shown.add_row(name, f"{row['success']:.1%}", interval, path, f"{row['seconds_per_episode']:.3f}", plan)
    return shown


def check_has(what: str, made: Any, names: Sequence[str]) -> None:
    """Raise UserError for a part of an environment that lacks some of what planning needs of it."""
    if missing := [name for name in names if not hasattr(made, name)]:
        protocol = "World in jepa/planning/episodes.py" if names is WORLD else "Task in jepa/planning/comparison.py"
        raise UserError(f"environment: its {what} has no {' and no '.join(missing)}; {protocol} says what each is")


def check_baselines(names: Sequence[str], world: World | None = None) -> None:
    """Raise UserError for a name that is none of BASELINES, or one that a world cannot give."""
    wants = {"straight": ["straight"], "expert": ["expert"]}
    wants |= {"true_state": ["move", "way"], "true_state_straight": ["move", "distance"]}
    for name in names:
        if name not in BASELINES:
            raise UserError(f"baselines: there is no {name}, expected some of {', '.join(BASELINES)}")
        for method in wants.get(name, ()):
            if world is not None and not hasattr(world, method):
                raise UserError(f"baselines: {name} takes a `{method}` of the environment's world: leave {name} out")
