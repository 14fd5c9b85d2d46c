"""Forecasts from frozen features: a ridge regression to the steps that follow a window."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from jepa.utils.errors import UserError
from jepa.utils.tensors import masked_mean

log = logging.getLogger("jepa")

Encode = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Inputs (b, C, T) to tokens (b, N, D) and which of them are not padding (b, N), or None."""


class Windows(Protocol):
    """Windows of one part of a series, and what follows each of them; `period` steps make a season (None: unknown)."""

    period: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x (b, C, T) as the network gets it, future (b, C, H), level and scale (b, C, 1), the window (b, C, T).

        Window and future are z-scored; x = (window - level) / scale.
        """


class Forecast:
    """Mean squared and absolute error of a linear head from frozen features to the horizon, by closed form.

    The head sees the features of a window, all its tokens side by side as in PatchTST (arXiv 2211.14730), standardised;
    for raw input the window itself. It learns (future - level) / scale (`Windows`), and errors are taken of what
    is z-scored with the statistics of the training part, as is usual for ETT. Ridge regression in fp64; the penalty is
    chosen on the validation part, and the head is not fitted again: training part only. Every row of the results
    uses the same windows. Missing steps of the future count neither in training, which leaves such windows out, nor in
    the errors.

    horizons: steps ahead, each a head of its own. penalties: times the number of samples; each feature has variance 1.
    pooling: "flatten", or "mean" over tokens, of fewer features and blind to when something was.
    max_train_windows, max_validation_windows: windows, evenly spread over the part, of at most so many; None for all.
        Test windows are all used.

    For raw input it also gives `last_value`, the last value there is repeated, and where the season is known
    `seasonal_naive`, the value one season earlier. Keys: "/96/mse", "/96/mae", "/96/last_value/mse", ...

    Raises ValueError for values outside these.
    """

    needs = "windows"
    uses_seed = False

    def __init__(
        self,
        *,
        horizons: Sequence[int] = (24, 96),
        penalties: Sequence[float] = (1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4),
        pooling: Literal["flatten", "mean"] = "flatten",
        max_train_windows: int | None = 2000,
        max_validation_windows: int | None = 500,
    ) -> None:
        key = "evaluation.probes.forecast"
        if not horizons or min(horizons) < 1:
            raise ValueError(f"{key}.horizons: got {list(horizons)}, expected numbers of steps, at least 1")
        if not penalties or min(penalties) <= 0:
            raise ValueError(f"{key}.penalties: got {list(penalties)}, expected at least one, all above 0")
        if pooling not in ("flatten", "mean"):
            raise ValueError(f"{key}.pooling: got {pooling!r}, expected 'flatten' or 'mean'")
        for name, value in {
            "max_train_windows": max_train_windows,
            "max_validation_windows": max_validation_windows,
        }.items():
            if value is not None and value < 1:
                raise ValueError(f"{key}.{name} must be at least 1 or null, got {value}")
        self.horizons = tuple(horizons)
        self.penalties = tuple(sorted(penalties, reverse=True))
        self.pooling = pooling
        self.limits = {"train": max_train_windows, "validation": max_validation_windows, "test": None}

    def __call__(
        self, encode: Encode | None, data: Any, *, device: torch.device, batch_size: int
    ) -> dict[str, float] | None:
        """Errors by horizon; None for data that has no windows to forecast from. encode: None for the raw window."""
        parts: dict[str, _Part] = {}
        every = {}
        for horizon in sorted(set(self.horizons)):
            every[horizon] = {split: data.windows(split, horizon=horizon) for split in self.limits}
            if None in every[horizon].values():
                return None
        for split, limit in self.limits.items():  # the windows of the shortest horizon hold those of the others
            windows = every[min(every)][split]
            parts[split] = _Part(encode, windows, limit, pooling=self.pooling, device=device, batch_size=batch_size)
        ridge = _Ridge(parts["train"])
        scores: dict[int, dict[str, float]] = {}
        for horizon in sorted(every, reverse=True):
            windows = every[horizon]
            heads = ridge.fit(windows["train"], self.penalties)
            choice = _errors(parts["validation"], windows["validation"], {str(n): h for n, h in enumerate(heads)})
            best = min(range(len(heads)), key=lambda n: choice[str(n)][0])
            log.debug("forecast %d: penalty %g, validation errors %s", horizon, self.penalties[best], choice)
            rivals: dict[str, Tensor | str] = {"": heads[best]}
            if encode is None:
                rivals["last_value/"] = "last"
                if windows["test"].period is not None:
                    rivals["seasonal_naive/"] = "season"
            errors = _errors(parts["test"], windows["test"], rivals)
            scores[horizon] = {
                f"/{horizon}/{name}{kind}": value
                for name, both in errors.items()
                for kind, value in zip(("mse", "mae"), both)
            }
        return {name: value for horizon in sorted(scores) for name, value in scores[horizon].items()}


class _Part:
    """Features (n, F) float32 of some windows of a part, by `index`; each window has `rows` of them, one per sample."""

    def __init__(
        self,
        encode: Encode | None,
        windows: Windows,
        limit: int | None,
        *,
        pooling: str,
        device: torch.device,
        batch_size: int,
    ) -> None:
        count = len(windows)
        self.index = torch.arange(0, count, 1 if limit is None else max(1, -(-count // limit)))
        self.device = device
        found = []
        for chunk in self.index.split(max(1, batch_size)):
            x = windows[chunk][0].to(device)
            if encode is None:
                found.append(x.nan_to_num(0.0).flatten(1))
                continue
            tokens, valid = encode(x)
            if pooling == "mean":
                found.append(masked_mean(tokens, valid))
                continue
            tokens = tokens.float() if valid is None else tokens.float().masked_fill(~valid.unsqueeze(-1), 0.0)
            found.append(tokens.flatten(1))
        self.x = torch.cat(found)
        self.rows = len(self.x) // len(self.index)
        if not bool(self.x.isfinite().all()):
            raise UserError("evaluation: forecast: features hold NaN or infinite values: use trainer.precision=fp32")

    def chunks(self, windows: Windows, size: int = 256) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """Features (b, F) and what `windows` says, on the device, of those windows that its horizon leaves."""
        index = self.index[self.index < len(windows)]
        for number, chunk in enumerate(index.split(size)):
            first = number * size * self.rows
            yield self.x[first : first + len(chunk) * self.rows], tuple(t.to(self.device) for t in windows[chunk])


class _Ridge:
    """Ridge regression to several horizons from the same features, the longest first.

    A window that has a whole future at one horizon has one at every shorter one, so the products of features are
    only ever added to.
    """

    def __init__(self, part: _Part) -> None:
        self.part = part
        self.mean, std = part.x.mean(dim=0), part.x.std(dim=0, correction=0)
        # Constant features (rounding can leave a trace) become zeros.
        self.scale = torch.where(std > 1e-6 * (1e-3 + self.mean.abs()), 1 / std.clamp(min=1e-12), 0.0)
        width = part.x.shape[1] + 1  # the intercept last
        self.gram = torch.zeros(width, width, dtype=_exact(part.device), device=part.device)
        self.counted = torch.zeros(len(part.x), dtype=torch.bool, device=part.device)

    def fit(self, windows: Windows, penalties: Sequence[float]) -> list[Tensor]:
        """Heads (F + 1, C * H), float32, on features as they are, one per penalty."""
        products, first = 0.0, 0
        for x, (_, future, level, scale, _) in self.part.chunks(windows):
            target = ((future - level) / scale).flatten(1)
            whole = ~target.isnan().any(dim=1)
            design = _design((x - self.mean) * self.scale).to(self.gram.dtype)
            products = products + design[whole].T @ target[whole].to(design.dtype)
            counted = self.counted[first : first + len(x)]
            new = design[whole & ~counted]
            self.gram += new.T @ new
            counted |= whole
            first += len(x)
        samples = int(self.counted.sum())
        if not samples:
            steps = windows[torch.zeros(1, dtype=torch.int64)][1].shape[2]
            raise UserError(
                f"evaluation.probes.forecast: every training window of horizon {steps} "
                "has missing values in its future: use shorter horizons"
            )
        heads = []
        for penalty in penalties:
            ridge = torch.full((len(self.gram),), penalty * samples, dtype=self.gram.dtype, device=self.gram.device)
            ridge[-1] = 0.0  # not of the intercept
            # A feature that is always zero has no other entry than its penalty.
            solution = torch.cholesky_solve(products, torch.linalg.cholesky(self.gram + ridge.diag()))
            weights = solution[:-1] * self.scale.to(solution.dtype)[:, None]
            intercept = solution[-1] - self.mean.to(solution.dtype) @ weights
            heads.append(torch.cat([weights, intercept[None]]).float())
        return heads


def _errors(part: _Part, windows: Windows, forecasts: dict[str, Tensor | str]) -> dict[str, tuple[float, float]]:
    """Mean squared and absolute error of each forecast: a head (F + 1, C * H), "last" or "season"."""
    sums = {name: torch.zeros(2, dtype=_exact(part.device), device=part.device) for name in forecasts}
    count = 0
    for x, (_, future, level, scale, window) in part.chunks(windows):
        known = ~future.isnan()
        count += int(known.sum())
        for name, forecast in forecasts.items():
            if isinstance(forecast, Tensor):
                predicted = (_design(x) @ forecast).view_as(future) * scale + level
            elif forecast == "last":
                predicted = _repeated(window, 1, future.shape[2])
            else:
                predicted = _repeated(window, windows.period, future.shape[2])
            error = (predicted - future)[known].to(sums[name].dtype)
            sums[name] += torch.stack([error.square().sum(), error.abs().sum()])
    if not count:
        raise UserError(
            "evaluation.probes.forecast: the future holds nothing but missing values: use other data.source.splits"
        )
    return {name: tuple((total / count).tolist()) for name, total in sums.items()}


def _repeated(window: Tensor, period: int, horizon: int) -> Tensor:
    """The last `period` steps of windows (b, C, T) again and again: (b, C, horizon).

    A step that is missing, or before the window, takes the last value there is before it; before any, 0, the mean.
    """
    steps = torch.arange(window.shape[2], device=window.device)
    last = torch.where(window.isnan(), -1, steps).cummax(dim=2).values  # (b, C, T), -1 before any
    filled = window.nan_to_num(0.0).gather(2, last.clamp(min=0)).masked_fill(last < 0, 0.0)
    period = min(period, window.shape[2])
    return filled[..., -period:].repeat(1, 1, -(-horizon // period))[..., :horizon]


def _design(x: Tensor) -> Tensor:
    """A column of ones beside features: (n, F) -> (n, F + 1)."""
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def _exact(device: torch.device) -> torch.dtype:
    """fp64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
