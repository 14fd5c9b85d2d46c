"""What planners share: bounds of actions, random numbers of each episode's own, and plans that go on.

B episodes    S samples    H steps of a plan    A width of an action
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from jepa.utils.errors import UserError, check_at_least

Cost: TypeAlias = Callable[[Tensor], Tensor]
"""Actions (B, S, H, A) -> costs (B, S), each of one sample alone; both on the CPU."""


@dataclass(kw_only=True, eq=False)
class Planner:
    """Searches for plans (B, H, A) of least cost, one for each episode.

    low, high: bounds of an action, one number for each of its components.
    chunk: actions that a step of the plan consists of, side by side: the frame_skip of the model.
    horizon: steps of a plan. execute: steps that are taken before the next plan is made.
    samples: plans that are weighed at a time. std: of their noise at first, in halves of the range of actions.
    max_norm: length of the longest action; None for any within the bounds.
    warm_start: begin with what is left of the plan before.

    Raises ValueError for values out of range, UserError for actions without bounds.
    """

    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    chunk: int = 1
    horizon: int = 40
    execute: int = 5
    samples: int = 128
    std: float = 0.6
    max_norm: float | None = None
    warm_start: bool = True

    def __post_init__(self) -> None:
        check_at_least("planner", 1, horizon=self.horizon, execute=self.execute, samples=self.samples)
        if self.execute > self.horizon:
            raise ValueError(f"planner.execute={self.execute}: a plan has only planner.horizon={self.horizon} steps")
        for name in ("std", "max_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"planner.{name} must be above 0, got {value}")
        self.lowest, self.highest = bounds(self.low, self.high, self.chunk)
        self.middle = (self.highest + self.lowest) / 2
        self.half = (self.highest - self.lowest) / 2
        self.deviation = self.std * self.half

    def __call__(self, cost: Cost, plan: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
        """Return plans (B, H, A) within the bounds.

        plan: (B, H, A) to begin with, None for none. generators: one for each episode, on the CPU, so that its plan
        does not depend on which others there are.
        """
        raise NotImplementedError

    def begin(self, plan: Tensor | None, count: int) -> Tensor:
        """Return the plans (B, H, A) that a search begins with: those given, or the middle of the bounds."""
        return self.middle.expand(count, self.horizon, -1) if plan is None else plan

    def rest(self, plan: Tensor) -> Tensor | None:
        """Return what is left of a plan after `execute` steps, filled up to its length; None without a warm start."""
        if not self.warm_start:
            return None
        return torch.cat([plan[:, self.execute :], self.middle.expand(len(plan), self.execute, -1)], dim=1)

    def bounded(self, actions: Tensor) -> Tensor:
        """Return actions (..., A) brought within the bounds."""
        actions = actions.clamp(self.lowest, self.highest)
        if self.max_norm is None:
            return actions
        single = actions.unflatten(-1, (self.chunk, -1))
        length = torch.linalg.vector_norm(single, dim=-1, keepdim=True).clamp(min=1e-12)
        return (single * (self.max_norm / length).clamp(max=1)).flatten(-2)

    def noise(self, generators: Sequence[torch.Generator], samples: int, exponent: float = 0.0) -> Tensor:
        """Return noise (B, samples, H, A) of deviation 1.

        exponent: its power falls with the frequency as 1 / f ** exponent, also from action to action of a step; 0 is
        white. Slow noise goes further.
        """
        size = samples, self.horizon * self.chunk, len(self.lowest) // self.chunk
        white = torch.stack([torch.randn(size, generator=generator) for generator in generators])
        return coloured(white, exponent).unflatten(2, (self.horizon, self.chunk)).flatten(3)


def bounds(low: Sequence[float] | None, high: Sequence[float] | None, chunk: int) -> tuple[Tensor, Tensor]:
    """Return the bounds of `chunk` actions side by side, (A,) each. Raise UserError where they are none."""
    how = "set planner.low and planner.high, lists of one number for each component of an action"
    if low is None or high is None:
        raise UserError(f"planner: got low={low} and high={high}, the actions have no bounds: {how}")
    ends = [torch.tensor(list(map(float, end))) for end in (low, high)]
    if not all(bool(end.isfinite().all()) for end in ends):
        raise UserError(f"planner: the actions have no bounds, they go from {list(low)} to {list(high)}: {how}")
    if len(ends[0]) != len(ends[1]) or not bool((ends[0] < ends[1]).all()):
        raise UserError(f"planner: got low={list(low)} and high={list(high)}, expected low < high for each component")
    return ends[0].repeat(chunk), ends[1].repeat(chunk)


def coloured(white: Tensor, exponent: float) -> Tensor:
    """Return noise (..., H, A) of variance 1 whose power along H is 1 / f ** exponent, made of white noise."""
    steps = white.shape[-2]
    if exponent == 0 or steps < 2:
        return white
    frequencies = torch.fft.rfftfreq(steps)
    frequencies[0] = frequencies[1]
    power = frequencies**-exponent
    times = torch.full_like(power, 2.0)  # that a frequency of a real signal counts
    times[0] = 1.0
    times[-1] = 1.0 if steps % 2 == 0 else 2.0
    power = power * steps / (times * power).sum()
    return torch.fft.irfft(torch.fft.rfft(white, dim=-2) * power.sqrt()[:, None], n=steps, dim=-2)


def best(actions: Tensor, costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the samples (B, count, H, A) of least cost and their costs (B, count), the least first; NaN comes last."""
    costs, rows = costs.nan_to_num(nan=math.inf, posinf=math.inf).topk(count, dim=1, largest=False)
    return actions.gather(1, rows[:, :, None, None].expand(-1, -1, *actions.shape[2:])), costs
