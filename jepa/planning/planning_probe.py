"""Planning as a probe of training: how often plans reach the goal.

python train.py experiment=two_rooms evaluation=planning
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jepa.planning.comparison import Comparison, Task
from jepa.planning.costs import GoalDistance, Measure
from jepa.planning.episode_pictures import frames, gif, imagined
from jepa.planning.planners.planner import Planner
from jepa.planning.policies import ModelView, together_on
from jepa.planning.rules import named_rules
from jepa.utils.errors import check_at_least


class PlanningProbe:
    """Share of episodes of the validation list that plans of a world model solve, with its 95 % interval.

    task: see `jepa.planning.comparison.Task`. planner: called with the bounds of its actions. rules: "published" or
    "strict". cost: of predicted states and the goal's; None for the sum of `GoalDistance`.

    pictures: episodes that are shown in `animation`, a GIF of the network that is scored first, which who takes it sets
        to None.

    Raises ValueError for no episodes, UserError for rules that there are not.
    """

    needs = "trajectories"

    def __init__(
        self,
        *,
        task: Task,
        planner: Callable[..., Planner],
        rules: str = "published",
        episodes: int = 20,
        cost: Measure | None = None,
        pictures: int = 4,
    ) -> None:
        check_at_least("evaluation.probes.planning", 1, episodes=episodes)
        self.rules, self.cost = named_rules(rules), cost or GoalDistance()
        self.task, self.make_planner, self.episodes = task, planner, episodes
        self.pictures, self.animation = pictures, None

    def __call__(self, model: Any, data: Any, *, batches: Any, device: torch.device, seed: int) -> dict[str, float]:
        """Return "/success", its ends "/low" and "/high", and "/seconds_per_episode"."""
        comparison = Comparison(
            task=self.task,
            planner=self.make_planner,
            rules=self.rules,
            split="validation",
            episodes=self.episodes,
            seed=seed,
        )
        view = ModelView(
            model=model,
            normalised=data.normalised,
            measure=self.cost,
            device=device,
            chunk=getattr(data, "frame_skip", 1),
            together=together_on(device),
        )
        keep = min(self.pictures, self.episodes) if self.animation is None else 0
        found, episodes, policy = comparison.model(view, keep=keep)
        if keep:
            plans = imagined(view, comparison.world, policy)
            self.animation = gif(frames(episodes, comparison.world.goal, self.rules.distance, plans))
        return {f"/{name}": found[name] for name in ("success", "low", "high", "seconds_per_episode")}
