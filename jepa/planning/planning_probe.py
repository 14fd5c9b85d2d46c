"""Planning as a probe of training: how often plans reach the goal.

python train.py experiment=two_rooms evaluation=planning
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jepa.planning.comparison import Comparison, Task
from jepa.planning.costs import GoalDistance, Measure
from jepa.planning.episode_pictures import check_drawable, frames, gif, imagined
from jepa.planning.planners.planner import Planner
from jepa.planning.policies import ModelView, together_on
from jepa.utils.errors import check_at_least


class PlanningProbe:
    """Share of episodes of the validation list that plans of a world model solve, with its 95 % interval.

    task: see `jepa.planning.comparison.Task`. planner: called with the bounds of its actions. rules: "published" or
    "strict". cost: of predicted states and the goal's; None for the sum of `GoalDistance`.

    pictures: episodes that are shown in `animation`, a GIF of the network that is scored first, which who takes it sets
        to None.

    Raises ValueError for no episodes.
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
        check_at_least("evaluation.probes.planning", 0, pictures=pictures)
        self.rules, self.cost = rules, cost or GoalDistance()
        self.task, self.make_planner, self.episodes = task, planner, episodes
        self.pictures, self.animation = pictures, None

    def check(self, model: Any, data: Any) -> None:
        """Raise UserError before training, for rules, planner, model or data that do not go with the environment."""
        if not hasattr(model, "rollout"):
            return  # and no score
        comparison, device = self.comparison(seed=0), next(model.parameters()).device
        comparison.check_fits(self.view(model, data, device))
        if self.pictures:
            check_drawable(comparison.world, "evaluation.probes.planning.pictures")

    def __call__(self, model: Any, data: Any, *, batches: Any, device: torch.device, seed: int) -> dict[str, float]:
        """Return "/success", its ends "/low" and "/high", and "/seconds_per_episode"."""
        comparison, view = self.comparison(seed), self.view(model, data, device)
        comparison.check_fits(view)
        keep = min(self.pictures, self.episodes) if self.animation is None else 0
        found, episodes, policy = comparison.model(view, keep=keep)
        if keep:
            plans = imagined(view, comparison.world, policy)
            self.animation = gif(frames(episodes, comparison.world.goal, comparison.rules.distance, plans))
        return {f"/{name}": found[name] for name in ("success", "low", "high", "seconds_per_episode")}

    def comparison(self, seed: int) -> Comparison:
        """Return what plans on the validation list."""
        settings = {"task": self.task, "planner": self.make_planner, "rules": self.rules}
        return Comparison(**settings, split="validation", episodes=self.episodes, seed=seed)

    def view(self, model: Any, data: Any, device: torch.device) -> ModelView:
        """Return the model as planners see it."""
        return ModelView(
            model=model,
            normalised=data.normalised,
            measure=self.cost,
            device=device,
            chunk=getattr(data, "frame_skip", 1),
            together=together_on(device),
        )
