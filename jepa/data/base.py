"""What all data has in common: splits, the sample stream for training, and fixed orders for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from jepa.data.sources.base import Splits
from jepa.data.stream import BadSamples, Request, SampleOrder, Samples, fixed_order, load, read
from jepa.types import Batch, DataSpec
from jepa.utils.errors import DataError
from jepa.utils.random import generator

VALIDATION_SEED = 0
"""Of the views of the test split on which the loss is measured: the same ones in every run, whatever its seed."""

Prepare = Callable[[Any, torch.Generator | None], Tensor]
"""One input of a source, and where its randomness comes from (None: there is none), to the tensor of one sample."""


class StreamData:
    """Batches of a data set: the sample stream for training, and both splits in fixed order for evaluation.

    splits: see `Splits`. prepare: makes a sample's `x` of what the source gives; it runs in the workers.
    input_shape: of what `prepare` gives. found: see `DataSpec`.
    blank: what fills blank batches, a value that the encoder takes for input and not for padding.
    views: how often a training sample is prepared, each time with other random choices.
    batch_size: samples per training step, of all ranks and micro-batches together.
    num_workers: processes that read ahead, 0 to read in the main process; prefetch_factor: batches each reads ahead.
    pin_memory: True or False; `auto` pins when there is a GPU to copy to.
    max_bad_share: the run stops when more than this share of a split cannot be read.

    Raises ValueError for a wrong setting and DataError for an empty split.
    """

    def __init__(
        self,
        splits: Splits,
        *,
        prepare: Prepare,
        input_shape: tuple[int, ...],
        found: Mapping[str, int] | None = None,
        blank: Tensor | None = None,
        views: int = 1,
        batch_size: int = 256,
        num_workers: int = 0,
        pin_memory: bool | Literal["auto"] = "auto",
        prefetch_factor: int = 2,
        max_bad_share: float = 0.1,
    ) -> None:
        check_loading(
            views=views,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            max_bad_share=max_bad_share,
        )
        self.prepare = prepare
        self.views = views
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        # Pinning without a GPU only makes torch warn.
        self.pin_memory = bool(pin_memory) and torch.cuda.is_available()
        self._splits: dict[str, Samples] = {"train": splits.train, "test": splits.test}
        self._bad = {
            name: BadSamples(total=len(samples), max_share=max_bad_share) for name, samples in self._splits.items()
        }
        for name, samples in self._splits.items():
            if not len(samples):
                raise DataError(f"the {name} split of the data is empty")
        self._blank = torch.zeros(input_shape) if blank is None else blank
        self.spec = DataSpec(
            num_train=len(splits.train),
            num_test=len(splits.test),
            input_shape=tuple(input_shape),
            classes=None if splits.class_names is None else len(splits.class_names),
            class_names=splits.class_names,
            found=found or {},
        )

    @property
    def bad_samples(self) -> dict[str, str]:
        """Path -> reason of the samples found unreadable so far."""
        return {**self._bad["train"], **self._bad["test"]}

    def train_batches(
        self, *, seed: int, start_step: int, stop_step: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """The batches of steps start_step .. stop_step - 1; of each, this rank's b samples.

        b is batch_size / world_size. Yields `x` (b, *input_shape), or `views` (b, V, *input_shape) if there are
        several, and `label` (b,) int64 if the data has labels. A batch depends on the seed, the step and the rank
        alone (`jepa.data.stream`). Raises UserError if the ranks cannot share a batch evenly, DataError if too many
        samples are unreadable. Close the iterator if you leave it early: it may own processes.
        """
        order = self.order(seed)
        order.request(start_step, rank=rank, world_size=world_size)  # raises now, not at the first batch
        requests = (order.request(step, rank=rank, world_size=world_size) for step in range(start_step, stop_step))
        return self._load("train", requests, seed=seed)

    def order(self, seed: int) -> SampleOrder:
        """The samples of every step."""
        return SampleOrder(num_samples=self.spec.num_train, batch_size=self.batch_size, seed=seed)

    def evaluation_batches(
        self, split: Literal["train", "test"], *, batch_size: int, limit: int | None = None
    ) -> Iterator[Batch]:
        """A split in fixed order, nothing random; `x` and `label` as above, the last batch short.

        limit: at most that many samples, a random subset that is the same in every call.
        Raises ValueError for a split there is not, DataError if too many samples are unreadable.
        """
        if split not in self._splits:
            raise ValueError(f"split={split!r} is neither 'train' nor 'test'")
        check_counts(batch_size=batch_size)
        requests = fixed_order(len(self._splits[split]), batch_size=batch_size, limit=limit)
        return self._load(split, requests, seed=None)

    def validation_batches(self, *, batch_size: int) -> Iterator[Batch]:
        """The test split as training batches look, the same every time.

        Several views of a sample are drawn at random, as they would else be one; a single one is not.
        """
        if not self._several:
            return self.evaluation_batches("test", batch_size=batch_size)
        requests = fixed_order(self.spec.num_test, batch_size=batch_size)
        return self._load("test", requests, seed=VALIDATION_SEED)

    def view_batches(
        self, split: Literal["train", "test"], *, views: int, batch_size: int, limit: int | None = None, seed: int = 0
    ) -> Iterator[Batch]:
        """`views` (b, views, *input_shape), random as in training, of at most `limit` samples; the same for a seed."""
        check_counts(views=views, batch_size=batch_size)
        requests = fixed_order(len(self._splits[split]), batch_size=batch_size, limit=limit)
        return self._load(split, requests, seed=seed, views=views)

    def blank_batch(self, count: int) -> Batch:
        """A training batch of so many samples without content and without labels."""
        if self._several:
            return {"views": self._blank.expand(count, self.views, *self._blank.shape).clone()}
        return {"x": self._blank.expand(count, *self._blank.shape).clone()}

    @property
    def _several(self) -> bool:
        """Whether a training sample comes as `views` rather than `x`."""
        return self.views > 1

    def _load(
        self, split: str, requests: Iterable[Request], *, seed: int | None, views: int | None = None
    ) -> Iterator[Batch]:
        """views: None takes those of training, or `x` where there is one; a number always gives `views`."""
        bad = self._bad[split]
        return load(
            self._batches(split, seed=seed, views=views, bad_limit=bad.limit),
            requests,
            bad=bad,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            pin_memory=self.pin_memory,
        )

    def _batches(
        self, split: str, *, seed: int | None, views: int | None, bad_limit: float
    ) -> Callable[[Request], Batch]:
        """Reads and prepares the samples of a request, in a worker if there are any. seed: None for evaluation."""
        return PreparedBatches(
            samples=self._splits[split],
            prepare=self.prepare,
            views=views or self.views,
            stacked=self._several if views is None else True,
            seed=seed,
            labelled=self.spec.classes is not None,
            bad_limit=bad_limit,
        )


@dataclass(frozen=True)
class PreparedBatches:
    """One sample after another, each view from a generator of its own; seed: None to evaluate."""

    samples: Samples
    prepare: Prepare
    views: int
    stacked: bool
    seed: int | None
    labelled: bool
    bad_limit: float

    def __call__(self, request: Request) -> Batch:
        bad: dict[str, str] = {}
        labels, inputs = [], []
        for counter, index in zip(request.counters, request.indices):
            sample, label = read(self.samples, index, bad=bad, limit=self.bad_limit)
            inputs.append(self._views(sample, counter))
            labels.append(label)
        batch: Batch = {"views" if self.stacked and self.seed is not None else "x": torch.stack(inputs), "bad": bad}
        if self.labelled:
            batch["label"] = torch.as_tensor(labels, dtype=torch.int64)
        return batch

    def _views(self, sample: Any, counter: int) -> Tensor:
        if self.seed is None:
            return self.prepare(sample, None)
        random = generator("cpu", self.seed, "augment", counter)
        if not self.stacked:
            return self.prepare(sample, random)
        return torch.stack([self.prepare(sample, random) for _ in range(self.views)])


def check_loading(
    *,
    views: int,
    batch_size: int,
    num_workers: int,
    pin_memory: bool | str,
    prefetch_factor: int,
    max_bad_share: float,
) -> None:
    """Raise ValueError for a setting of the loader that makes no sense."""
    check_counts(views=views, batch_size=batch_size, prefetch_factor=prefetch_factor)
    if num_workers < 0:
        raise ValueError(f"data.num_workers={num_workers} is negative; 0 reads in the main process")
    if pin_memory not in (True, False, "auto"):
        raise ValueError(f"data.pin_memory={pin_memory} is not true, false or auto")
    if not 0 <= max_bad_share < 1:
        raise ValueError(f"data.max_bad_share={max_bad_share} is not in [0, 1)")


def check_counts(**counts: int) -> None:
    """Raise ValueError for a count below 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"data.{name}={value} is less than 1")
