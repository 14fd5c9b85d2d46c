"""World models: an encoder of each frame, and a predictor of the states that follow under actions.

    python train.py experiment=two_rooms                       # a world model of a room with a wall and a door
    python train.py model=world loss=lewm data=two_rooms       # LeWM's objective: next state, and SIGReg
    python train.py model=world data=trajectories data.root=DIR

The models of eb_jepa and PLDM (a recurrent predictor, VICReg's terms) and of LeWM (a causal transformer, SIGReg), by
choice of `model/predictor` and `loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from jepa.models.base_model import JEPA, check_no_collapse
from jepa.models.targets import SharedTarget, StopGradientTarget, TeacherTarget
from jepa.types import Batch, StepRandomness, WorldLatents
from jepa.utils.errors import check_at_least
from jepa.utils.tensors import masked_mean

MADE = ("predictions", "targets", "embeddings", "states", "target_states", "one_step", "actions", "rng")
"""The fields of latents."""
SLACK = 1e-3
"""Share of the range of actions by which one may lie outside it."""


class WorldModel(JEPA):
    """An encoder per frame, an action-conditioned predictor, and targets: a batch of trajectories to `WorldLatents`.

    A state is the mean of a frame's tokens through a final norm, which predictions go through as well.

    predictor: called with `embed_dim=` and `action_dim=` (see `world_predictors`), target with `encoder=`, loss with
        `embedding_dim=` and `token_values=`, the width of an action.
    target: what predictions are compared with: the states themselves, with gradient or without, or those of a moving
        average of the encoder.
    action_dim, action_low, action_high, action_mean, action_std: of the data's actions; the bounds and statistics are
        numbers, or one for each of their values. Inside, actions are standardised.
    history: frames from which is rolled out. rollout_steps: how many steps, in training.
    norm: of states and predictions, "layer", or "none" (where a loss as SIGReg sets their scale).
    freeze_encoder: leave the encoder as it is, and the norm of its states, which could else shrink them to nothing.
    allow_collapse: accept a target and a loss that do not prevent collapse; otherwise they raise ValueError.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        predictor: Callable[..., nn.Module],
        target: Callable[..., nn.Module],
        loss: Callable[..., nn.Module],
        action_dim: int,
        action_low: float | Sequence[float],
        action_high: float | Sequence[float],
        action_mean: float | Sequence[float] = 0.0,
        action_std: float | Sequence[float] = 1.0,
        history: int = 1,
        rollout_steps: int = 8,
        norm: Literal["layer", "none"] = "layer",
        freeze_encoder: bool = False,
        allow_collapse: bool = False,
    ) -> None:
        super().__init__()
        check_at_least("model", 1, action_dim=action_dim, history=history, rollout_steps=rollout_steps)
        if norm not in ("layer", "none"):
            raise ValueError(f"model.norm: got {norm!r}, expected 'layer' or 'none'")
        self.encoder, self.action_dim = encoder, action_dim
        self.history, self.rollout_steps, self.freeze_encoder = history, rollout_steps, freeze_encoder
        self.norm = nn.LayerNorm(encoder.embed_dim) if norm == "layer" else nn.Identity()
        self.predictor = predictor(embed_dim=encoder.embed_dim, action_dim=action_dim)
        self.target = target(encoder=encoder)
        if isinstance(self.target, TeacherTarget) or self.target.layers is not None:
            raise ValueError(
                "model.target: predictions are rolled out, so that targets have to be states of the last block: use "
                "model/target=shared, stop_gradient or ema; model/encoder=frozen takes a trained encoder"
            )
        if freeze_encoder:
            if not isinstance(self.target, SharedTarget):
                raise ValueError(
                    "model.freeze_encoder=true: an encoder that does not learn is its own target: use "
                    "model/target=shared"
                )
            encoder.requires_grad_(False)
            self.norm.requires_grad_(False)
        self.loss = loss(embedding_dim=encoder.embed_dim, token_values=action_dim)
        self.loss.require(MADE, by="WorldModel")
        if not freeze_encoder:
            check_no_collapse(self.target, self.loss, allow_collapse)
        bounds = {"action_low": action_low, "action_high": action_high}
        for name, values in {**bounds, "action_mean": action_mean, "action_std": action_std}.items():
            self.register_buffer(name, per_value(name, values, action_dim), persistent=False)
        if not bool((self.action_low <= self.action_high).all()):
            raise ValueError(f"model: got action_low={action_low} above action_high={action_high}")
        if not bool((self.action_std > 0).all()):
            raise ValueError(f"model.action_std={action_std}: expected numbers above 0")

    def train(self, mode: bool = True) -> WorldModel:
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()
        return self

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        """Return the batch with `rng`. Raise ValueError for one that is no batch of trajectories."""
        x, actions = batch.get("x"), batch.get("actions")
        if not isinstance(x, Tensor) or not isinstance(actions, Tensor):
            raise ValueError(
                "model=world takes trajectories, frames x (B, T, ...) and actions (B, T - 1, A), and the batches have "
                f"{', '.join(batch)}: use data=two_rooms or data=trajectories"
            )
        if actions.ndim != 3 or actions.shape[:2] != (len(x), x.shape[1] - 1):
            raise ValueError(
                f"got frames of shape {tuple(x.shape)} with actions of shape {tuple(actions.shape)}, expected an "
                "action between every two frames"
            )
        self.check_width(actions)
        if "predictions" in self.loss.needs and self.history + self.rollout_steps > x.shape[1]:
            raise ValueError(
                f"model.history={self.history} and model.rollout_steps={self.rollout_steps} need windows of "
                f"{self.history + self.rollout_steps} frames, and data.history + data.horizon is {x.shape[1]}: set "
                f"model.rollout_steps={max(1, x.shape[1] - self.history)} or a longer data.horizon"
            )
        return {**batch, "rng": rng}

    def forward(self, batch: Batch) -> WorldLatents:
        x, actions, needs = batch["x"], self.standardised(batch["actions"]), self.loss.needs
        states = self.encode(x)
        target_states = states
        if isinstance(self.target, StopGradientTarget):
            target_states = states.detach()
        elif not isinstance(self.target, SharedTarget):
            target_states = self.encode_target(x).detach()
        latents = WorldLatents(
            states=states,
            target_states=target_states,
            embeddings=states.transpose(0, 1),
            actions=actions,
            history=self.history,
            rng=batch["rng"],
        )
        if "predictions" in needs:
            end = self.history + self.rollout_steps
            predicted = self._rolled_out(states[:, : self.history], actions[:, : end - 1])
            latents.predictions = [predicted.unsqueeze(1)]
            latents.targets = [target_states[:, self.history : end].unsqueeze(1)]
        if "one_step" in needs:
            latents.one_step = self.one_step(states, batch["actions"])
        return latents

    def encode(self, observations: Tensor) -> Tensor:
        """Return states (B, T, D) of frames (B, T, C, H, W), or (B, T, d), as batches have them in `x`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            tokens = self.encoder(observations.flatten(0, 1))
        return self._states(tokens, observations)

    def encode_target(self, x: Tensor) -> Tensor:
        """Return states (B, T, D) of frames by the network that makes the targets."""
        return self._states(self.target.encode(self.encoder, x.flatten(0, 1)), x)

    def _states(self, tokens: Tensor, observations: Tensor) -> Tensor:
        return self.norm(masked_mean(tokens)).unflatten(0, observations.shape[:2])

    def rollout(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return the k states (B, k, D) after a history (B, h, D) under actions (B, h - 1 + k, A), in the data's units.

        The first h - 1 actions lie within the history. Raise ValueError for actions that are none of the data's kind.
        """
        self.check_width(actions)
        if actions.shape[1] < states.shape[1] or len(actions) != len(states):
            raise ValueError(
                f"a history of shape {tuple(states.shape)} wants at least {states.shape[1]} actions for each of its "
                f"{len(states)} samples, got actions of shape {tuple(actions.shape)}"
            )
        self._check_range(actions)
        return self._rolled_out(states, self.standardised(actions.to(states.dtype)))

    def one_step(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return predictions (B, T - 1, D) of states 1 ... T - 1 of (B, T, D), each from the true ones before it."""
        states, actions, context = states[:, :-1], self.standardised(actions), self.predictor.context
        first = self.norm(self.predictor(states[:, :context], actions[:, :context]))
        if states.shape[1] <= context:
            return first
        windows = [
            each.unfold(1, context, 1)[:, 1:].transpose(2, 3) for each in (states, actions)
        ]  # (B, m, context, *)
        last = self.norm(self.predictor(*(each.flatten(0, 1) for each in windows))[:, -1])
        return torch.cat([first, last.unflatten(0, windows[0].shape[:2])], dim=1)

    def _rolled_out(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return what `rollout` does, of standardised actions."""
        history, context = states.shape[1], self.predictor.context
        window, predicted = states[:, -context:], []
        for end in range(history, actions.shape[1] + 1):
            following = self.predictor(window, actions[:, end - window.shape[1] : end])[:, -1:]
            predicted.append(self.norm(following))
            window = predicted[-1] if context == 1 else torch.cat([window, predicted[-1]], dim=1)[:, -context:]
        return torch.cat(predicted, dim=1)

    def standardised(self, actions: Tensor) -> Tensor:
        """Return actions (..., A) minus their mean, over their deviation."""
        return (actions - self.action_mean) / self.action_std

    def check_width(self, actions: Tensor) -> None:
        """Raise ValueError unless actions are floats (B, steps, action_dim)."""
        if actions.ndim != 3 or actions.shape[-1] != self.action_dim or not actions.is_floating_point():
            raise ValueError(
                f"got actions of shape {tuple(actions.shape)} and {str(actions.dtype).removeprefix('torch.')}, and the "
                f"model takes floats (B, steps, {self.action_dim})"
            )

    def _check_range(self, actions: Tensor) -> None:
        """Raise ValueError for actions that are not finite, or outside the range of the data's."""
        slack = SLACK * (self.action_high - self.action_low).nan_to_num(posinf=0.0)
        inside = actions.isfinite() & (actions >= self.action_low - slack) & (actions <= self.action_high + slack)
        if not bool(inside.all()):
            wrong = actions[~inside][0].item()
            raise ValueError(
                f"got an action of {wrong:g}, and the model was trained on actions from {self.action_low.tolist()} to "
                f"{self.action_high.tolist()}: give them in the units of its data"
            )


def per_value(name: str, values: float | Sequence[float], count: int) -> Tensor:
    """Return one float32 for each value of an action, (A,). Raise ValueError for another number of them."""
    tensor = torch.tensor(values, dtype=torch.float32).flatten()
    if len(tensor) not in (1, count) or bool(tensor.isnan().any()):
        raise ValueError(f"model.{name}={values}: expected a number, or {count}, one for each value of an action")
    return tensor.expand(count).clone()
