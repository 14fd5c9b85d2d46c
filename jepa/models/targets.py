"""Who makes the targets: an exponential moving average of the encoder, or the encoder itself without gradient."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from jepa.types import Encoder, Horizon, Schedule


class EMATarget(nn.Module):
    """A copy of the encoder that follows it slowly: target <- m * target + (1 - m) * encoder.

    momentum: m as a schedule over the run, called with the number of updates made before this one (the first
    update uses the schedule's value at 0, as published). The copy stays in evaluation mode, so that targets carry
    no dropout, and takes no gradient. Buffers are copied, not averaged.
    """

    prevents_collapse = True  # by itself: in practice, with a slow enough momentum

    def __init__(self, *, encoder: nn.Module, momentum: Schedule) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.momentum = momentum

    def train(self, mode: bool = True) -> EMATarget:
        """Switch everything but the averaged copy, which stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, encoder: Encoder, x: Tensor) -> Tensor:
        """Features (B, N, D) of whole inputs by the averaged copy."""
        return self.encoder(x)

    @torch.no_grad()
    def update(self, encoder: nn.Module, step: int, horizon: Horizon) -> dict[str, float]:
        """Follow the encoder by one update; gives {"momentum": m}."""
        momentum = self.momentum(step, horizon)
        torch._foreach_lerp_(list(self.encoder.parameters()), list(encoder.parameters()), 1 - momentum)
        for mine, theirs in zip(self.encoder.buffers(), encoder.buffers()):
            mine.copy_(theirs)
        return {"momentum": momentum}


class StopGradientTarget(nn.Module):
    """The encoder itself, without gradient; collapses unless a loss term prevents it.

    encoder: every target is completed with it; nothing of it is kept here.
    """

    prevents_collapse = False

    def __init__(self, *, encoder: nn.Module) -> None:
        super().__init__()

    @torch.no_grad()
    def encode(self, encoder: Encoder, x: Tensor) -> Tensor:
        """Features (B, N, D) of whole inputs by the encoder that is being trained."""
        return encoder(x)

    def update(self, encoder: nn.Module, step: int, horizon: Horizon) -> dict[str, float]:
        """Nothing to follow."""
        return {}
