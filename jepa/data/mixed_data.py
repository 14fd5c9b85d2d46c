"""Several data sets as one: mixed sample by sample, each with its share, or side by side, one for each task of a model.

    python train.py data=mix +data@data.parts.a=mnist +data@data.parts.b=fashion_mnist \\
        data.parts.a.root=... data.parts.b.root=... data.weights='{a: 0.7, b: 0.3}'
    python train.py experiment=multitask_digits_heartbeats data.parts.heartbeats.root=ucr
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from jepa.data.data_module import DataModule, Reading, found_by, lines_of
from jepa.data.sources.splits import Splits
from jepa.data.stream import Request, SampleOrder
from jepa.types import Batch, DataSpec
from jepa.utils.errors import UserError, check_at_least

PERIOD = 1000  # samples after which the interleaving of the parts repeats: shares are met to 1 / 1000


def present_parts(parts: Mapping[str, DataModule | None]) -> dict[str, DataModule]:
    """Return the parts that are not None. Raise ValueError if there is none."""
    found = {name: part for name, part in parts.items() if part is not None}
    if not found:
        raise ValueError("data.parts is empty: add data sets, such as +data@data.parts.digits=digits")
    return found


@dataclass(kw_only=True, eq=False)
class MixedData(DataModule):
    """Data sets whose samples have one shape, mixed sample by sample; evaluated on one of them.

    parts: name -> a data set, of which neither the batch size nor the loader's settings are used; None is left out.
    weights: name -> share of the samples, of any scale; None mixes by size, as if the sets were joined.
    evaluate: the part that probes and validation loss are computed on; None for the first.
    channels, image_size, length, vocab_size: what the model is built with; None takes what the parts have.

    Which part sample counter c comes from is a function of c and the weights alone, evenly interleaved; a part keeps
    its own order. An epoch is as many samples as all parts have. Unreadable samples are counted over all parts.
    Raises ValueError for weights that do not fit the parts, UserError for parts that do not fit together.
    """

    parts: Mapping[str, DataModule | None]
    weights: Mapping[str, float] | None = None
    evaluate: str | None = None
    channels: int | None = None
    image_size: int | Sequence[int] | None = None
    length: int | None = None
    vocab_size: int | None = None
    views: int = field(init=False)
    max_bad_share: float = field(init=False)

    def __post_init__(self) -> None:
        self.parts = present_parts(self.parts)
        sizes = {name: part.spec.num_train for name, part in self.parts.items()}
        weights = sizes if self.weights is None else self.weights
        if set(weights) != set(self.parts) or not all(weight > 0 for weight in weights.values()):
            expected = f"a share above 0 for each of data.parts {list(self.parts)}"
            raise ValueError(f"data.weights={dict(weights)}: expected {expected}")
        evaluate = next(iter(self.parts)) if self.evaluate is None else self.evaluate
        if evaluate not in self.parts:
            raise ValueError(f"data.evaluate={evaluate!r}: expected one of data.parts {list(self.parts)}")
        shapes = {n: {k: tuple(v.shape) for k, v in part.blank_batch(1).items()} for n, part in self.parts.items()}
        if any(shape != shapes[evaluate] for shape in shapes.values()):
            raise UserError(f"data.parts give batches of different shapes, {shapes}: set the same sizes and views")
        for name, part in self.parts.items():
            part.check_scored(self, f"data.parts.{name}")
        self.evaluated, self.sizes = self.parts[evaluate], list(sizes.values())
        self.shares = [float(weights[name]) for name in self.parts]
        self.views = self.evaluated.views
        self.max_bad_share = max(part.max_bad_share for part in self.parts.values())
        super().__post_init__()
        spec = self.evaluated.spec
        self.setup(
            Splits(range(sum(self.sizes)), range(spec.num_test), spec.class_names, lines_of(self.parts)),
            prepare=self.evaluated.prepare,
            input_shape=spec.input_shape,
            found=self._check_found() | found_by(self.parts),
        )
        of_all_kinds = ("evaluation_batches", "validation_batches", "view_batches", "blank_batch")
        for name in (*of_all_kinds, "raw_features", "words"):
            if hasattr(self.evaluated, name):
                setattr(self, name, getattr(self.evaluated, name))

    def _check_found(self) -> dict[str, Any]:
        """The sizes that a model of these samples is built with. Raises UserError where others were asked for."""
        spec = self.evaluated.spec
        known = dict(spec.found)
        if len(spec.input_shape) == 3:
            known = {"channels": spec.input_shape[0], "image_size": list(spec.input_shape[1:])} | known
        for name in ("channels", "image_size", "length", "vocab_size"):
            value = getattr(self, name)
            if name == "image_size" and value is not None:
                value = [value, value] if isinstance(value, int) else list(value)
            if value not in (None, known.get(name)):
                has = known.get(name, "no such size")
                raise UserError(f"data.{name}={value}, but the parts have {has}: leave it out")
        return known

    @property
    def bad_samples(self) -> dict[str, str]:
        return {**super().bad_samples, **self.evaluated.bad_samples}

    def order(self, seed: int) -> SampleOrder:
        return MixedOrder(sizes=self.sizes, weights=self.shares, batch_size=self.batch_size, seed=seed)

    def make_batch(self, request: Request, reading: Reading) -> Batch:
        offsets = [0, *accumulate(self.sizes)]
        owners = [bisect_right(offsets, index) - 1 for index in request.indices]
        made: list[Batch] = []
        places: list[int] = []
        for number, part in enumerate(self.parts.values()):
            if mine := [place for place, owner in enumerate(owners) if owner == number]:
                drawn = [(request.counters[place], request.indices[place] - offsets[number]) for place in mine]
                made.append(part.make_batch(Request(*map(list, zip(*drawn))), reading))
                places += mine
        order = torch.tensor(places).argsort()
        joined: Batch = {"bad": {name: why for batch in made for name, why in batch.pop("bad", {}).items()}}
        for name in set.intersection(*(set(batch) for batch in made)):
            joined[name] = torch.cat([batch[name] for batch in made])[order]
        return joined


class MixedOrder(SampleOrder):
    """The order of data sets of these sizes, numbered one after another, mixed by weights; each as `SampleOrder`."""

    def __init__(self, *, sizes: Sequence[int], weights: Sequence[float], batch_size: int, seed: int) -> None:
        super().__init__(num_samples=sum(sizes), batch_size=batch_size, seed=seed)
        self.pattern = interleave(weights, PERIOD)  # (PERIOD,) part of each counter
        self._before = torch.stack([(self.pattern == part).cumsum(0) - 1 for part in range(len(sizes))])
        self._counts = torch.bincount(self.pattern, minlength=len(sizes)).tolist()
        self._offsets = [0, *accumulate(sizes)]
        self._orders = [SampleOrder(num_samples=size, batch_size=1, seed=seed) for size in sizes]

    def _indices(self, start: int, stop: int) -> Tensor:
        counters = torch.arange(start, stop)
        periods, places = counters // PERIOD, counters % PERIOD
        indices = torch.empty_like(counters)
        for part, order in enumerate(self._orders):
            mine = self.pattern[places] == part
            if mine.any():
                before = periods[mine] * self._counts[part] + self._before[part, places[mine]]
                indices[mine] = self._offsets[part] + order._indices(int(before[0]), int(before[-1]) + 1)
        return indices


def interleave(weights: Sequence[float], length: int) -> Tensor:
    """Which part each of `length` places belongs to, (length,): by smooth weighted round robin, shares rounded."""
    shares = torch.tensor(weights, dtype=torch.float64)
    shares = shares / shares.sum()
    credit, places = torch.zeros_like(shares), []
    for _ in range(length):
        credit += shares
        part = int(credit.argmax())
        credit[part] -= 1
        places.append(part)
    if missing := set(range(len(weights))) - set(places):
        raise ValueError(f"data.weights={list(weights)}: part {min(missing)} has less than 1 in {length} samples")
    return torch.tensor(places)


@dataclass(kw_only=True, eq=False)
class TaskData:
    """The batches of several data sets, under keys that start with their names: `digits/x`, `heartbeats/x`, ...

    parts: name -> a data set of any kind, whose batch size becomes the one set here; one that is None is left out.
    batch_size: samples of each part in a training step, of all ranks together. score_on, hints: see `DataModule`.

    An epoch is one pass through the largest part; validation ends with the smallest test split. The weight of a task is
    a setting of the model. Raises ValueError without parts, and for names that would not do as prefixes.
    """

    parts: Mapping[str, DataModule | None]
    batch_size: int = 256
    score_on: Literal["test", "validation"] = "test"
    hints: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_at_least("data", 1, batch_size=self.batch_size)
        self.parts = present_parts(self.parts)
        if wrong := [name for name in self.parts if "/" in name]:
            raise ValueError(f"data.parts: names must not hold a slash, got {wrong}")
        for name, part in self.parts.items():
            part.batch_size = self.batch_size
            part.check_scored(self, f"data.parts.{name}")
        specs = [part.spec for part in self.parts.values()]
        self.spec = DataSpec(
            num_train=max(spec.num_train for spec in specs),
            num_test=min(spec.num_test for spec in specs),
            input_shape=(),
            classes=None,
            found=found_by(self.parts),
        )
        self.lines = lines_of(self.parts)

    @property
    def modalities(self) -> dict[str, Any]:
        return self.parts

    @property
    def bad_samples(self) -> dict[str, str]:
        return {name: why for part in self.parts.values() for name, why in part.bad_samples.items()}

    def train_batches(
        self, *, seed: int, start_step: int, stop_step: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        where = {"start_step": start_step, "stop_step": stop_step, "rank": rank, "world_size": world_size}
        return zip_batches({name: part.train_batches(seed=seed, **where) for name, part in self.parts.items()})

    def validation_batches(self, *, batch_size: int) -> Iterator[Batch]:
        return zip_batches({n: part.validation_batches(batch_size=batch_size) for n, part in self.parts.items()})

    def blank_batch(self, count: int) -> Batch:
        return with_prefixes({name: part.blank_batch(count) for name, part in self.parts.items()})


def zip_batches(streams: Mapping[str, Iterator[Batch]]) -> Iterator[Batch]:
    """The streams' batches side by side until one ends, cut to the shortest of them; closes all streams."""
    with contextlib.ExitStack() as stack:
        for stream in streams.values():
            stack.callback(stream.close)
        for batches in zip(*streams.values()):
            count = min(len(next(iter(batch.values()))) for batch in batches)
            cut = [{name: value[:count] for name, value in batch.items()} for batch in batches]
            yield with_prefixes(dict(zip(streams, cut)))


def with_prefixes(batches: Mapping[str, Batch]) -> Batch:
    """One batch with the keys of all, each behind the name of its own."""
    return {f"{name}/{key}": value for name, batch in batches.items() for key, value in batch.items()}
