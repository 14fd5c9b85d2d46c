"""The forecast probe: ridge regression from the frozen features of a window to the steps after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from jepa.utils.errors import DataError, UserError, check_at_least, check_choice
from jepa.utils.tensors import masked_mean

log = logging.getLogger("jepa")

FEW = 0.2  # share of the training windows below which a warning says how few are without gaps
WAYS_OUT = "use shorter evaluation.probes.forecast.horizons, fewer data.source.columns, or fill the gaps of the table"

Encode = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Inputs (b, C, T) -> tokens (b, N, D) and valid (b, N) bool, False at padding, or None."""


class Windows(Protocol):
    """Windows of one split of a series and the steps after each; `period`: steps of a season, None if unknown.

    unit: what errors are multiplied by to be in the unit of the only channel that is forecast, None of several.
    """

    period: int | None
    unit: float | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return x (b, C, T), the network's input, future (b, C, H), level and scale (b, C, 1), and window (b, C, T).

        Window and future are z-scored; x = (window - level) / scale.
        """


class Forecast:
    """Mean squared and absolute error of a linear head from frozen features to the horizon, in closed form.

    The head's input are the standardised features of a window, all tokens concatenated as in PatchTST (arXiv
    2211.14730), or the window itself for raw input; its output is (future - level) / scale (`Windows`). Errors are
    those of values z-scored with the statistics of the training split, as is usual for ETT. Ridge regression in fp64 on
    the training split, with the penalty chosen on the validation split. Every row of the results uses the same windows.
    Missing steps of the future do not count in the errors; training leaves out windows with any.

    horizons: steps ahead, with a head each. column: the channel that is forecast, from all of them; None: all.
    penalties: candidates, times the number of samples; features have variance 1.
    pooling: "flatten", or "mean" over tokens: fewer features, without the order in time.
    max_train_windows, max_validation_windows: evenly spaced windows of the split, at most so many; None for all. All
        test windows are used.

    Raw input has two more scores: `last_value`, the last value repeated, and where the season is known
    `seasonal_naive`, the value one season earlier. Keys: "/96/mse", "/96/mae", "/96/last_value/mse", ... Of one column
    also "/24/rmse", in its unit, of the 24 steps, and "/24/rmse_last_step", of the last one, 24 steps ahead.

    Raises ValueError for invalid values.
    """

    needs = "windows"
    uses_seed = False

    def __init__(
        self,
        *,
        horizons: Sequence[int] = (24, 96),
        column: str | None = None,
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
        check_choice(f"{key}.pooling", pooling, ("flatten", "mean"))
        check_at_least(key, 1, max_train_windows=max_train_windows, max_validation_windows=max_validation_windows)
        self.horizons, self.column = tuple(horizons), column
        self._left_out: set[int] = set()
        self._told: set[int] = set()
        self.penalties = tuple(sorted(penalties, reverse=True))
        self.pooling = pooling
        self.limits = {"train": max_train_windows, "validation": max_validation_windows, "test": None}

    def __call__(
        self, encode: Encode | None, data: Any, *, device: torch.device, batch_size: int
    ) -> dict[str, float] | None:
        """Return errors by horizon; None for data without windows to forecast from. encode: None for raw input.

        A horizon that the data are too short for, or have no complete future at, is left out with a warning.
        """
        windows, options = {}, {} if self.column is None else {"column": self.column}
        for horizon in sorted(set(self.horizons), reverse=True):
            try:
                windows[horizon] = {split: data.windows(split, horizon=horizon, **options) for split in self.limits}
            except DataError as error:
                self._leave_out(horizon, error)
        horizons = list(windows)
        if any(None in splits.values() for splits in windows.values()):
            return None
        if not horizons:
            return {}
        settings = {"pooling": self.pooling, "device": device, "batch_size": batch_size}
        parts = {  # the shortest horizon has all windows of the others
            split: _SplitFeatures(encode, windows[horizons[-1]][split], limit, **settings)
            for split, limit in self.limits.items()
        }
        ridge = _Ridge(parts["train"])
        scores: dict[str, float] = {}
        for horizon in horizons:
            try:
                scores = (
                    self._scores(ridge, parts, windows[horizon], horizon, encode is None) | scores
                )  # shortest first
            except DataError as error:
                self._leave_out(horizon, error)
        return scores

    def _scores(
        self, ridge: _Ridge, parts: dict[str, _SplitFeatures], windows: dict[str, Windows], horizon: int, is_raw: bool
    ) -> dict[str, float]:
        """Return the errors at one horizon. Raise DataError for windows without a future."""
        heads = ridge.fit(windows["train"], self.penalties)
        if ridge.share < FEW and horizon not in self._told:
            self._told.add(horizon)
            log.warning(
                "evaluation: forecasts of %d steps are fitted to %.2g %% of the training windows, as the others have "
                "missing values in their future: %s",
                *(horizon, 100 * ridge.share, WAYS_OUT),
            )
        choice = _errors(parts["validation"], windows["validation"], dict(enumerate(heads)))
        best = min(choice, key=lambda number: choice[number]["mse"])
        log.debug("forecast %d: penalty %g, validation errors %s", horizon, self.penalties[best], choice)
        forecasts: dict[str, Tensor | int] = {"": heads[best]}
        if is_raw:
            forecasts["last_value/"] = 1
            if windows["test"].period is not None:
                forecasts["seasonal_naive/"] = windows["test"].period
        errors = _errors(parts["test"], windows["test"], forecasts)
        return {f"/{horizon}/{name}{kind}": v for name, both in errors.items() for kind, v in both.items()}

    def _leave_out(self, horizon: int, error: DataError) -> None:
        """Warn of a horizon that is left out, once for all rows."""
        if horizon not in self._left_out:
            self._left_out.add(horizon)
            log.warning("evaluation: no forecasts of %d steps: %s", horizon, error)


class _SplitFeatures:
    """Features (n, F) float32 of the windows `index` of a split; each window has `rows` of them, one per sample."""

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
        features = []
        for chunk in self.index.split(max(1, batch_size)):
            x = windows[chunk][0].to(device)
            if encode is None:
                features.append(x.nan_to_num(0.0).flatten(1))
                continue
            tokens, valid = encode(x)
            if pooling == "mean":
                features.append(masked_mean(tokens, valid))
                continue
            tokens = tokens.float() if valid is None else tokens.float().masked_fill(~valid.unsqueeze(-1), 0.0)
            features.append(tokens.flatten(1))
        self.x = torch.cat(features)
        self.rows = len(self.x) // len(self.index)
        if not bool(self.x.isfinite().all()):
            raise UserError("evaluation: forecast: features hold NaN or infinite values: use trainer.precision=fp32")

    def chunks(self, windows: Windows, size: int = 256) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """Yield features (b, F) and the tensors of `windows`, on the device, of the windows that its horizon has."""
        index = self.index[self.index < len(windows)]
        for number, chunk in enumerate(index.split(size)):
            first = number * size * self.rows
            yield self.x[first : first + len(chunk) * self.rows], tuple(t.to(self.device) for t in windows[chunk])


class _Ridge:
    """Ridge regression to several horizons from the same features, the longest first.

    A window with a complete future at one horizon has one at every shorter horizon, so windows are only ever added to
    the Gram matrix.

    share: of the training windows, that the last fit has used.
    """

    def __init__(self, part: _SplitFeatures) -> None:
        self.part = part
        self.mean, std = part.x.mean(dim=0), part.x.std(dim=0, correction=0)
        # Constant features, whose std may be a rounding error, become zeros.
        self.scale = torch.where(std > 1e-6 * (1e-3 + self.mean.abs()), 1 / std.clamp(min=1e-12), 0.0)
        width = part.x.shape[1] + 1  # the intercept last
        self.gram = torch.zeros(width, width, dtype=_solver_dtype(part.device), device=part.device)
        self.counted = torch.zeros(len(part.x), dtype=torch.bool, device=part.device)
        self.share = 1.0

    def fit(self, windows: Windows, penalties: Sequence[float]) -> list[Tensor]:
        """Return heads (F + 1, C * H), float32, on features that are not standardised, one per penalty."""
        products, first = 0.0, 0
        for x, (_, future, level, scale, _) in self.part.chunks(windows):
            target = ((future - level) / scale).flatten(1)
            complete = ~target.isnan().any(dim=1)
            design = _design((x - self.mean) * self.scale).to(self.gram.dtype)
            products = products + design[complete].T @ target[complete].to(design.dtype)
            counted = self.counted[first : first + len(x)]
            new = design[complete & ~counted]
            self.gram += new.T @ new
            counted |= complete
            first += len(x)
        samples = int(self.counted.sum())
        if not samples:
            raise DataError(f"every training window has missing values in its future: {WAYS_OUT}")
        self.share = samples / first
        heads = []
        for penalty in penalties:
            ridge = torch.full((len(self.gram),), penalty * samples, dtype=self.gram.dtype, device=self.gram.device)
            ridge[-1] = 0.0  # not of the intercept
            # The matrix is regular: a feature that is always zero has its penalty on the diagonal.
            solution = torch.cholesky_solve(products, torch.linalg.cholesky(self.gram + ridge.diag()))
            weights = solution[:-1] * self.scale.to(solution.dtype)[:, None]
            intercept = solution[-1] - self.mean.to(solution.dtype) @ weights
            heads.append(torch.cat([weights, intercept[None]]).float())
        return heads


def _errors(
    part: _SplitFeatures, windows: Windows, forecasts: Mapping[Any, Tensor | int]
) -> dict[Any, dict[str, float]]:
    """Return the errors of each forecast: a head (F + 1, C * H), or how many last steps are repeated."""
    dtype = _solver_dtype(part.device)
    sums = dict.fromkeys(forecasts, 0.0)  # (3,): squares, absolute values, squares of the last step
    count = torch.zeros(3, dtype=dtype, device=part.device)
    for x, (_, future, level, scale, window) in part.chunks(windows):
        known = ~future.isnan()
        count += torch.stack([known.sum(), known.sum(), known[..., -1].sum()])
        for name, forecast in forecasts.items():
            if isinstance(forecast, Tensor):
                predicted = (_design(x) @ forecast).view_as(future) * scale + level
            else:
                predicted = _repeated(window, forecast, future.shape[2])
            error = (predicted - future).to(dtype).masked_fill(~known, 0.0)
            sums[name] += torch.stack([error.square().sum(), error.abs().sum(), error[..., -1].square().sum()])
    if not count[0]:
        raise DataError("the future holds nothing but missing values: use other data.source.splits")
    errors = {}
    for name, total in sums.items():
        mse, mae, last = (total / count).tolist()
        errors[name] = {"mse": mse, "mae": mae}
        if windows.unit is not None and count[2]:
            errors[name] |= {"rmse": mse**0.5 * windows.unit, "rmse_last_step": last**0.5 * windows.unit}
    return errors


def _repeated(window: Tensor, period: int, horizon: int) -> Tensor:
    """Return the last `period` steps of windows (b, C, T), repeated to (b, C, horizon).

    A missing step takes the last value before it; 0, the mean, where there is none.
    """
    steps = torch.arange(window.shape[2], device=window.device)
    last = torch.where(window.isnan(), -1, steps).cummax(dim=2).values  # (b, C, T), -1 before any
    filled = window.nan_to_num(0.0).gather(2, last.clamp(min=0)).masked_fill(last < 0, 0.0)
    period = min(period, window.shape[2])
    return filled[..., -period:].repeat(1, 1, -(-horizon // period))[..., :horizon]


def _design(x: Tensor) -> Tensor:
    """Return features with a column of ones: (n, F) -> (n, F + 1)."""
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def _solver_dtype(device: torch.device) -> torch.dtype:
    """Return fp64, or fp32 on devices without."""
    return torch.float32 if device.type == "mps" else torch.float64
