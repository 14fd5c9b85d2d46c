"""Trajectories: windows of observations with the actions between them, stored in files or made as they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.data.data_module import DataModule, Reading, read_source
from jepa.data.sources.splits import scored_on_validation
from jepa.data.stream import Request
from jepa.types import Batch
from jepa.utils.errors import DataError, UserError, check_at_least

SAMPLED = 256  # windows that mean=auto and std=auto are computed of


@dataclass(kw_only=True, eq=False)
class TrajectoryData(DataModule):
    """Batches of windows: `x` (B, T, C, H, W) or (B, T, d) float32, `actions` (B, T - 1, A), and `states` (B, T, s).

    Action t leads from frame t to t + 1, in the units of the data. States are there where the data knows them, and read
    by evaluation only; `truth_batches(what="states")` has them, too, and "events" where the source makes some. So are
    `factors` (B, F), what does not change within a window, called `factor_names`.

    source: called as source(root=root, frames=T, frame_skip=frame_skip, max_bad_share=max_bad_share), root where there
        is one; returns `Splits` of windows, or of samples with `generate(numbers, seed)`, which makes a batch of them.
    history, horizon: frames that are given and that are predicted; T is both together.
    frame_skip: every how many steps a frame is taken; the actions between two frames stand one after another in A.
    image_size: of pictures, which are resized where they have another; None takes theirs, 0 stands for vectors.
    channels: of pictures, or the width of vectors; None takes what is found. mean, std: of each channel, of pixels in
        [0, 1]; "auto" of training windows.
    action_dim, action_low, action_high, action_mean, action_std: (A,) of the actions; None takes what is found.

    Raises DataError also for data of other channels or actions, and for actions outside of given bounds.
    """

    source: Callable[..., Any]
    root: str | None = None
    history: int = 1
    horizon: int = 16
    frame_skip: int = 1
    image_size: int | Sequence[int] | None = None
    channels: int | None = None
    mean: float | Sequence[float] | Literal["auto"] = "auto"
    std: float | Sequence[float] | Literal["auto"] = "auto"
    action_dim: int | None = None
    action_low: Sequence[float] | None = None
    action_high: Sequence[float] | None = None
    action_mean: Sequence[float] | None = None
    action_std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("data", 1, history=self.history, horizon=self.horizon, frame_skip=self.frame_skip)
        if self.views != 1:
            raise ValueError(f"data.views={self.views}: trajectories are not augmented: set data.views=1")
        frames = self.history + self.horizon
        settings = {"frames": frames, "frame_skip": self.frame_skip, "max_bad_share": self.max_bad_share}
        splits = read_source(self.source, root=self.root, **settings)
        if self.score_on == "validation":
            splits = splits.on_validation() if hasattr(splits, "on_validation") else scored_on_validation(splits)
        train = splits.train
        self.observation_shape, self.is_pixels = tuple(train.observation_shape), train.is_pixels
        self.state_dim, self.factor_names = train.state_dim, getattr(train, "factor_names", ())
        self.input_size = self._input_size()
        found = {"channels": self.observation_shape[0], "image_size": _as_given(self.input_size)}
        if self.channels not in (None, found["channels"]):
            raise DataError(
                f"data.channels={self.channels}, but the data has {found['channels']}: set data.channels=null"
            )
        found |= self._actions(train.action_statistics)
        self.mean, self.std = self._statistics(train)
        self.setup(
            splits,
            prepare=self.prepare_window,
            input_shape=(frames, found["channels"], *self.input_size),
            found=found | {"mean": self.mean, "std": self.std},
        )

    def _input_size(self) -> tuple[int, ...]:
        """The height and width of inputs, () for vectors."""
        size = self.image_size
        if len(self.observation_shape) == 1:
            if size:
                raise DataError(f"data.image_size={size}, but observations are vectors: set data.image_size=null")
            return ()
        if size is None:
            return self.observation_shape[1:]
        size = (size, size) if isinstance(size, int) else tuple(size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"data.image_size={self.image_size}: expected pixels, or [height, width]")
        return size

    def _actions(self, statistics: dict[str, Any]) -> dict[str, Any]:
        """What is found of actions, where frames may be several steps apart; given values win."""
        found = {f"action_{name}": np.tile(values, self.frame_skip).tolist() for name, values in statistics.items()}
        width = len(found["action_low"])
        if self.action_dim not in (None, width):
            raise DataError(f"data.action_dim={self.action_dim}, but the data has {width}: set data.action_dim=null")
        measured = {name: np.asarray(found[f"action_{name}"]) for name in ("low", "high")}
        for key in found:
            if (given := getattr(self, key)) is not None:
                if len(given) != width:
                    raise DataError(f"data.{key} has {len(given)} values, actions {width}: set data.{key}=null")
                found[key] = [float(value) for value in given]
        low, high = np.asarray(found["action_low"]), np.asarray(found["action_high"])
        slack = 1e-6 + 1e-6 * np.abs(high - low)
        if (measured["low"] < low - slack).any() or (measured["high"] > high + slack).any():
            span = f"{measured['low'].min():g} to {measured['high'].max():g}"
            bounds = f"data.action_low={low.tolist()}, data.action_high={high.tolist()}"
            raise DataError(f"actions of the data go from {span}, beyond {bounds}: set both to null")
        for key, values in found.items():
            setattr(self, key, values)
        self.action_dim = width
        return {"action_dim": width} | found

    def _statistics(self, train: Any) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel, of which "auto" takes those of training windows."""
        channels, given = self.observation_shape[0], {"mean": self.mean, "std": self.std}
        if "auto" in given.values():
            numbers = sorted(set(np.linspace(0, len(train) - 1, SAMPLED).round().astype(int).tolist()))
            if hasattr(train, "generate"):
                values = train.generate(numbers, None)["observations"]
            else:
                values = torch.stack([train[number][0]["observations"] for number in numbers])
            values = (values / 255 if self.is_pixels else values).flatten(0, 1).transpose(0, 1).flatten(1).double()
            std = values.std(1)
            computed = {"mean": values.mean(1), "std": torch.where(std > 1e-6, std, 1.0)}
            given = {name: computed[name].tolist() if value == "auto" else value for name, value in given.items()}
        for name, value in given.items():
            given[name] = [float(value)] * channels if isinstance(value, (int, float)) else [float(v) for v in value]
            if len(given[name]) not in (1, channels):
                raise DataError(
                    f"data.{name} has {len(value)} values, the data {channels} channels: set data.{name}=auto"
                )
        if min(given["std"]) <= 0:
            raise ValueError(f"data.std={given['std']} must be positive")
        return given["mean"], given["std"]

    def prepare_window(self, window: dict[str, Tensor], random: None) -> Tensor:
        """Return the observations of a window as inputs."""
        return self.normalised(window["observations"])

    def normalised(self, observations: Any) -> Tensor:
        """Return observations (..., C, H, W) or (..., d) of a world as inputs, float32: resized and normalised.

        Raises UserError for others than the data has, as from another environment.
        """
        values = torch.as_tensor(observations)
        shape = tuple(values.shape[-len(self.observation_shape) :])
        if shape != self.observation_shape or (values.dtype == torch.uint8) != self.is_pixels:
            kind = "uint8" if self.is_pixels else "floats"
            raise UserError(
                f"observations of shape {tuple(values.shape)}, {str(values.dtype).removeprefix('torch.')}, do not fit: "
                f"the model was trained on {self.observation_shape}, {kind}; give data and an environment of these"
            )
        values = values.float()
        if self.input_size != shape[1:]:
            flat = values.reshape(-1, *shape)
            flat = F.interpolate(flat, self.input_size, mode="bilinear", antialias=True, align_corners=False)
            values = flat.view(*values.shape[:-2], *self.input_size)
        mean, std = (torch.tensor(each).view(-1, *(1 for _ in self.input_size)) for each in (self.mean, self.std))
        scale, shift = 1 / (std * (255 if self.is_pixels else 1)), -mean / std
        return values.mul(scale.to(values.device)).add_(shift.to(values.device))

    def has_truth(self, what: str) -> bool:
        return self.state_dim > 0 if what == "states" else super().has_truth(what)

    def make_inputs(self, value: Any, counter: int, reading: Reading) -> dict[str, Tensor]:
        rest = {name: each for name, each in value.items() if name != "observations"}
        return {"x": self.prepare(value, None)} | rest

    def make_truth(self, what: str, index: int, value: Any, reading: Reading) -> Tensor:
        return value[what]

    def make_batch(self, request: Request, reading: Reading) -> Batch:
        if reading.views is not None:
            raise UserError("trajectories have no augmented views: leave out what needs them (evaluation.probes.lidar)")
        samples = self.splits[reading.split]
        if not hasattr(samples, "generate"):
            return super().make_batch(request, reading)
        if reading.truth == "events":
            made = samples.events(request.indices)
            return {name: self.normalised(each) if each.dtype == torch.uint8 else each for name, each in made.items()}
        made = samples.generate(request.indices if reading.seed is None else request.counters, reading.seed)
        batch = {"x": self.normalised(made.pop("observations")), **made, "bad": {}}
        return batch | ({} if reading.truth is None else {"truth": list(made[reading.truth].unbind(0))})

    def blank_batch(self, count: int) -> Batch:
        """Windows without content, in which nothing but mean actions is done."""
        actions = torch.tensor(self.action_mean).expand(count, self.history + self.horizon - 1, -1)
        states = {"states": torch.zeros(count, self.history + self.horizon, self.state_dim)} if self.state_dim else {}
        return {"x": self.blank.expand(count, *self.blank.shape).clone(), "actions": actions.clone(), **states}


def _as_given(size: tuple[int, ...]) -> int | list[int]:
    if not size:
        return 0
    return size[0] if size[0] == size[1] else list(size)
