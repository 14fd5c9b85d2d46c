"""Terms of world models: prediction of the next state, smoothness in time, and the action between two states."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from jepa.losses.objective import Term
from jepa.losses.regression import Regression
from jepa.types import Latents, WorldLatents


class OneStep(Term):
    """A regression of every frame's state from the true states before it: teacher-forced (LeWM's prediction).

    distance: between two states, such as MSE. Prediction over several steps, rolled out, is the distance by itself.
    """

    needs = ("one_step", "target_states")

    def __init__(self, *, distance: Regression) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, latents: WorldLatents) -> Tensor:
        pairs = {"predictions": latents.one_step, "targets": latents.target_states[:, 1:]}
        return self.distance(Latents(**{name: [states.unsqueeze(1)] for name, states in pairs.items()}))


class Smoothness(Term):
    """Mean squared difference of the states of consecutive frames (eb_jepa's temporal similarity)."""

    needs = ("states",)

    def forward(self, latents: WorldLatents) -> Tensor:
        return latents.states.float().diff(dim=1).square().mean()


class InverseDynamics(Term):
    """Mean squared error of an MLP from the states of two consecutive frames to the (standardised) action between them.

    It prevents collapse: from equal states only the mean action can be told.

    in_dim, out_dim: the width of the states and of the actions; set by the objective. hidden: widths of hidden layers
    with ReLU.
    """

    prevents_collapse = True
    needs = ("states", "actions")

    def __init__(self, *, in_dim: int, out_dim: int, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_width, out_width in pairwise([2 * in_dim, *hidden]):
            layers += [nn.Linear(in_width, out_width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear([2 * in_dim, *hidden][-1], out_dim))

    def forward(self, latents: WorldLatents) -> Tensor:
        pairs = torch.cat([latents.states[:, :-1], latents.states[:, 1:]], dim=-1)  # (B, T - 1, 2 D)
        return (self.layers(pairs).float() - latents.actions).square().mean()
