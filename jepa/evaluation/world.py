"""What a world model knows of what follows: roll-outs beside "nothing moves", true states, impossible events.

python train.py experiment=two_rooms evaluation=world
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jepa.evaluation.dense import ridge_regression
from jepa.utils.errors import UserError, check_at_least
from jepa.utils.random import seeded

EVENTS = ("wall", "teleport")
"""Keys of a batch of events: trajectories that go on impossibly, a walk through the wall and a jump."""


class WorldProbe:
    """Measures of roll-outs of `steps` steps from a model's history, over test trajectories of true actions.

    error/<k>: mean squared difference of the k-th predicted state and the true one's, over the variance of states;
        error/still/<k>: the same if nothing moved.
    state_error/linear/<k>, state_error/mlp/<k>: mean distance, in the units of the data's `states`, between these and
        what a ridge regression, or an MLP, tells of predicted states; .../encoded: of those of the frames themselves.
        Both are fitted to training frames. Data without `states` have none.
    factor/<name>: of each of the data's `factors` that varies, such as where a wall is, the share of its variance (R^2)
        that a ridge regression tells of the states of test frames.
    surprise/<event>/auc: probability that the error of one step is larger at an impossible event than at the possible
        one in its place; surprise/<event>/ratio: the mean error there over that of possible ones. Of data that know
        events, see `EVENTS`.

    steps: those that fit into the data's windows are taken. hidden, learning_rate, epochs: of the MLP.
    """

    needs = "trajectories"

    def __init__(
        self,
        *,
        steps: Sequence[int] = (1, 4, 8, 16),
        hidden: int = 512,
        learning_rate: float = 1e-3,
        epochs: int = 20,
    ) -> None:
        key = "evaluation.probes.world"
        if not steps or min(steps) < 1:
            raise ValueError(f"{key}.steps: got {list(steps)}, expected numbers of steps, at least 1")
        check_at_least(key, 1, hidden=hidden, epochs=epochs)
        self.steps = sorted(set(steps))
        self.hidden, self.learning_rate, self.epochs = hidden, learning_rate, epochs

    def __call__(
        self, model: Any, data: Any, *, batches: Callable[..., Iterator[Any]], device: torch.device, seed: int
    ) -> dict[str, float]:
        """Return the measures. model: has `encode`, `encode_target`, `rollout`, `one_step`, `history` (`WorldModel`).

        batches: (split, what=) -> batches with `x`, `actions` and perhaps `states`; what: None, or "events".
        """
        states, target, actions, truth = self._encoded(model, batches("test"), device)
        horizon, variance = states.shape[1] - model.history, target.flatten(0, 1).var(dim=0).mean().clamp(min=1e-12)
        steps = [step for step in self.steps if step <= horizon]
        parts = zip(states[:, : model.history].split(256), actions.split(256))
        predicted = torch.cat([model.rollout(*part) for part in parts])
        true, last = target[:, model.history :], target[:, model.history - 1]
        scores = {}
        for step in steps:
            for name, guess in (("error", predicted[:, step - 1]), ("error/still", last)):
                scores[f"/{name}/{step}"] = float((guess - true[:, step - 1]).square().mean() / variance)
        if truth:
            _, x, _, y = self._encoded(model, batches("train"), device)
            if "states" in truth:
                pairs = (x, y["states"]), (target, truth["states"])
                scores |= self._state_errors(*pairs, predicted, steps, seed)
            if "factors" in truth:
                scores |= recovered(data.factor_names, (x, y["factors"]), (target, truth["factors"]))
        if hasattr(data, "has_truth") and data.has_truth("events"):
            scores |= self._surprise(model, batches("test", what="events"), device)
        return scores

    def _encoded(
        self, model: Any, batches: Iterator[Any], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Return states by the encoder and of the targets (n, T, D), actions (n, T - 1, A) and what is known.

        That is `states` (n, T, s) and `factors` (n, F), or one or none of them.
        """
        parts = []
        for batch in batches:
            target = model.encode_target(batch["x"]).float()
            known = {name: batch[name].to(device).float() for name in ("states", "factors") if name in batch}
            parts.append((model.encode(batch["x"]).float(), target, batch["actions"].to(device), known))
        states, target, actions, known = zip(*parts)
        if not bool(torch.cat(states).isfinite().all()):
            raise UserError("evaluation: world: states hold NaN or infinite values: use trainer.precision=fp32")
        truth = {name: torch.cat([each[name] for each in known]) for name in known[0]}
        return torch.cat(states), torch.cat(target), torch.cat(actions), truth

    def _state_errors(
        self,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        predicted: Tensor,
        steps: Sequence[int],
        seed: int,
    ) -> dict[str, float]:
        (x, y), (encoded, truth) = (each.flatten(0, 1) for each in train), test
        history = truth.shape[1] - predicted.shape[1]
        with seeded(seed, "evaluation/world"):
            probes = {"linear": ridge_regression(x, y), "mlp": self._fitted_mlp(x, y)}
        scores = {}
        for name, probe in probes.items():
            scores[f"/state_error/{name}/encoded"] = float((probe(encoded) - truth).norm(dim=-1).mean())
            distance = (probe(predicted) - truth[:, history:]).norm(dim=-1).mean(dim=0)
            scores |= {f"/state_error/{name}/{step}": float(distance[step - 1]) for step in steps}
        return scores

    @torch.enable_grad()
    def _fitted_mlp(self, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        """Return an MLP of one hidden layer from x (n, D) to y (n, s), both standardised, after AdamW."""
        (mean, std), (centre, scale) = ((v.mean(dim=0), v.std(dim=0).clamp(min=1e-6)) for v in (x, y))
        layers = nn.Sequential(nn.Linear(x.shape[1], self.hidden), nn.ReLU(), nn.Linear(self.hidden, y.shape[1]))
        layers = layers.to(x.device)
        optimizer = torch.optim.AdamW(layers.parameters(), lr=self.learning_rate)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x)).split(256):
                rows = rows.to(x.device)
                loss = (layers((x[rows] - mean) / std) - (y[rows] - centre) / scale).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        layers.requires_grad_(False)
        return lambda new: layers((new - mean) / std) * scale + centre

    def _surprise(self, model: Any, batches: Iterator[Any], device: torch.device) -> dict[str, float]:
        found: dict[str, list[Tensor]] = {name: [] for name in ("x", *EVENTS)}
        for batch in batches:
            actions, rows = batch["actions"].to(device), torch.arange(len(batch["x"]), device=device)
            event = batch["event"].to(device)
            for name, errors in found.items():
                frames = batch[name].to(device)
                guess = model.one_step(model.encode(frames), actions)[rows, event - 1]
                errors.append((guess - model.encode_target(frames)[rows, event]).float().square().mean(dim=-1))
        possible, scores = torch.cat(found["x"]), {}
        for name in EVENTS:
            errors = torch.cat(found[name])
            scores[f"/surprise/{name}/auc"] = float((errors[:, None] > possible).float().mean())
            scores[f"/surprise/{name}/ratio"] = float(errors.mean() / possible.mean().clamp(min=1e-12))
        return scores


def recovered(names: Sequence[str], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return "/factor/<name>": R^2 on test frames of a ridge regression from states to each factor that varies.

    train, test: states (n, T, D) and factors (n, F) of their windows, called `names`.
    """
    varies = torch.stack([factors.amax(dim=0) > factors.amin(dim=0) for _, factors in (train, test)]).all(dim=0)
    if not bool(varies.any()):
        return {}
    (x, y), (states, factors) = ((states, factors[:, varies]) for states, factors in (train, test))
    told = ridge_regression(x.flatten(0, 1), y.repeat_interleave(x.shape[1], dim=0))(states)
    rest = (told - factors.unsqueeze(1)).square().mean(dim=(0, 1)) / factors.var(dim=0, correction=0)
    kept = (name for name, varied in zip(names, varies.tolist()) if varied)
    return {f"/factor/{name}": 1 - share for name, share in zip(kept, rest.tolist())}
