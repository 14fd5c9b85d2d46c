"""Several data sets side by side: each step brings samples of all of them, one set for each task of a model.

python train.py experiment=multitask_digits_heartbeats data.parts.heartbeats.root=ucr
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jepa.data.data_module import DataModule, check_counts
from jepa.types import Batch, DataSpec


@dataclass(kw_only=True, eq=False)
class TaskData:
    """The batches of several data sets, under keys that start with their names: `digits/x`, `heartbeats/x`, ...

    parts: name -> a data set of any kind, whose batch size becomes the one set here; one that is None is left out.
    batch_size: samples of each part in a training step, of all ranks and micro-batches together.
    hints: see `DataModule`.

    An epoch is one pass through the largest part; smaller ones go on with their next epoch. Validation ends with the
    smallest test split. The weight of a task is a setting of the model (`jepa.models.multitask.MultiTask`); to mix sets
    of one kind, sample by sample, take `MixedData`.

    Raises ValueError without parts, and for names that would not do as prefixes.
    """

    parts: Mapping[str, DataModule | None]
    batch_size: int = 256
    hints: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size)
        self.parts = {name: part for name, part in self.parts.items() if part is not None}
        if not self.parts:
            raise ValueError("data.parts is empty: add data sets, such as +data@data.parts.digits=digits")
        if wrong := [name for name in self.parts if "/" in name]:
            raise ValueError(f"data.parts: names must not hold a slash, got {wrong}")
        for part in self.parts.values():
            part.batch_size = self.batch_size
        specs = [part.spec for part in self.parts.values()]
        self.spec = DataSpec(
            num_train=max(spec.num_train for spec in specs),
            num_test=min(spec.num_test for spec in specs),
            input_shape=(),
            classes=None,
        )

    @property
    def modalities(self) -> dict[str, Any]:
        """The parts, each of which is evaluated by itself."""
        return self.parts

    @property
    def bad_samples(self) -> dict[str, str]:
        """Path -> reason of the samples found unreadable so far, of all parts."""
        return {name: why for part in self.parts.values() for name, why in part.bad_samples.items()}

    def train_batches(
        self, *, seed: int, start_step: int, stop_step: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """As `DataModule.train_batches`, of all parts."""
        where = {"start_step": start_step, "stop_step": stop_step, "rank": rank, "world_size": world_size}
        return zip_batches({name: part.train_batches(seed=seed, **where) for name, part in self.parts.items()})

    def validation_batches(self, *, batch_size: int) -> Iterator[Batch]:
        """As `DataModule.validation_batches`, of all parts, as long as each has samples."""
        return zip_batches({n: part.validation_batches(batch_size=batch_size) for n, part in self.parts.items()})

    def blank_batch(self, count: int) -> Batch:
        """A training batch of `count` samples of each part, without content and without labels."""
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
