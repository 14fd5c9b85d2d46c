"""The base of all data: loader settings, the sample stream for training, and fixed orders for evaluation."""

# Without `from __future__ import annotations`: subclasses inherit the fields, and `typing.get_type_hints` of their
# constructors would look strings up in the subclass's file.
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from jepa.data.sources.splits import Splits, scored_on_validation
from jepa.data.stream import (
    BadSamples,
    Request,
    SampleOrder,
    Samples,
    TooManyUnreadable,
    UnreadableSample,
    blamed,
    fixed_order,
    load,
    shown,
    wrong_values,
)
from jepa.types import Batch, DataSpec
from jepa.utils.errors import DataError, check_at_least
from jepa.utils.random import generator

VALIDATION_SEED = 0  # of the test split's views on which the loss is measured: the same in every run, whatever its seed
Prepare = Callable[[Any, torch.Generator | None], Tensor]
"""(input of a source, generator, or None where nothing is random) -> the tensor of one sample."""


@dataclass(frozen=True)
class Reading:
    """How batches of a split are made. seed: None for evaluation, where nothing is random.

    views: of each sample, which then come as `views`; None takes what training has. bad_limit: more unreadable samples
    end the reading. truth: what to add of what is known of a sample, see `DataModule.truth_batches`. raw: pictures
    stay as their pixels, of 8 bits where they can, for `ImageData.finish`; device: where that is done. whole: they are
    not even cropped, and have to be of 8 bits and this shape, for `ImageData.hold`; () for any.
    """

    split: str
    seed: int | None
    views: int | None
    bad_limit: float
    truth: str | None = None
    raw: bool = False
    device: torch.device | None = None
    whole: tuple[int, ...] | None = None


@dataclass(kw_only=True, eq=False)
class DataModule:
    """Batches of a data set: the sample stream for training, and both splits in fixed order for evaluation.

    A subclass is a dataclass that adds the settings of its modality. Its `__post_init__` calls this one's, checks its
    own settings, reads the source and calls `setup`.

    views: how often a training sample is prepared, each time with other random choices.
    batch_size: samples per training step, of all ranks and micro-batches together.
    num_workers: processes that read ahead, 0 to read in the main process; prefetch_factor: batches each reads ahead.
    pin_memory: `auto` pins when there is a GPU to copy to. max_bad_share: of a split that may be unreadable.
    score_on: what probes and the validation loss are computed on. validation: samples that are kept aside from the
        training split (`keep_aside`), or the validation part of long series; the test split is not used.
    hints: what a configuration tells other groups (`data.hints.patch_size`); not read here.

    Raises ValueError for a wrong setting, before data is read, and DataError for data that is missing or damaged.
    """

    nan_is_missing: ClassVar[bool] = False
    """Whether NaN in an input is what is missing or padding; else it makes the sample a bad one."""

    views: int = 1
    batch_size: int = 256
    num_workers: int = 0
    pin_memory: bool | Literal["auto"] = "auto"
    prefetch_factor: int = 2
    max_bad_share: float = 0.1
    score_on: Literal["test", "validation"] = "test"
    hints: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least("data", 1, views=self.views, batch_size=self.batch_size, prefetch_factor=self.prefetch_factor)
        check_at_least("data", 0, num_workers=self.num_workers)
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"data.max_bad_share={self.max_bad_share} is not in [0, 1)")

    def setup(
        self,
        splits: Splits,
        *,
        prepare: Prepare,
        input_shape: tuple[int, ...],
        found: Mapping[str, Any] | None = None,
        blank: Tensor | None = None,
    ) -> None:
        """Set the splits and how their samples are prepared. Raises DataError for an empty split.

        prepare: makes a sample's `x`, of shape input_shape, of an input of the source; it runs in the workers.
        found: see `DataSpec`. blank: fills blank batches; a value that the encoder does not take for padding.
        """
        self.prepare, self.lines = prepare, splits.lines
        self.splits: dict[str, Samples] = {"train": splits.train, "test": splits.test}
        for name, samples in self.splits.items():
            if not len(samples):
                raise DataError(f"the {name} split of the data is empty")
        self.bad = {name: BadSamples(total=len(s), max_share=self.max_bad_share) for name, s in self.splits.items()}
        self.blank = torch.zeros(input_shape) if blank is None else blank
        names = splits.class_names
        self.spec = DataSpec(
            num_train=len(splits.train),
            num_test=len(splits.test),
            input_shape=tuple(input_shape),
            classes=None if names is None else len(names),
            class_names=names,
            found=found or {},
        )

    def read_splits(self, source: Callable[..., Splits], **settings: Any) -> Splits:
        """The splits of a source, called as by `read_source`, with the samples to score as its test split."""
        splits = read_source(source, **settings)
        return splits if self.score_on == "test" else scored_on_validation(splits)

    def check_scored(self, whole: "DataModule", key: str) -> None:
        """Raise ValueError unless a data set that this one is a part of, at `key`, is scored on the same split."""
        if self.score_on != whole.score_on:
            raise ValueError(f"{key}.score_on={self.score_on}, but data.score_on={whole.score_on}: give both the same")

    @property
    def bad_samples(self) -> dict[str, str]:
        """Name -> reason of the samples that could not be read so far."""
        return {**self.bad["train"], **self.bad["test"]}

    @property
    def has_several_views(self) -> bool:
        """Whether a training sample comes as `views` rather than `x`."""
        return self.views > 1

    def order(self, seed: int) -> SampleOrder:
        """Return the order of the training samples of a run with this seed."""
        return SampleOrder(num_samples=self.spec.num_train, batch_size=self.batch_size, seed=seed)

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
        self.hold("train")
        requests = (order.request(step, rank=rank, world_size=world_size) for step in range(start_step, stop_step))
        return self._load(requests, replace(self.reading("train", seed=seed), device=getattr(self, "finish_on", None)))

    def evaluation_batches(
        self, split: Literal["train", "test"], *, batch_size: int, limit: int | None = None
    ) -> Iterator[Batch]:
        """A split in fixed order, nothing random; `x` and `label` as above, the last batch short.

        limit: at most that many samples, a random subset that is the same in every call.
        Raises ValueError for an unknown split, DataError if too many samples are unreadable.
        """
        if split not in self.splits:
            raise ValueError(f"split={split!r} is neither 'train' nor 'test'")
        return self._load_in_order(self.reading(split), batch_size, limit)

    def hold(self, split: str) -> None:
        """Called before a split is read for training, or from end to end: what can be read once is read."""

    def has_truth(self, what: str) -> bool:
        """Return whether samples of this source know such a truth at their places, see `truth_batches`."""
        return hasattr(self.splits["train"], what)

    @property
    def truth_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the "truth" of a sample; None where it holds other numbers."""
        return self.splits["train"].truth_names

    def truth_batches(
        self, split: Literal["train", "test"], *, batch_size: int, limit: int | None = None, what: str = "truth"
    ) -> Iterator[Batch]:
        """`evaluation_batches` with `truth`, a list of what the source knows of each sample besides its label.

        what: "truth", a class for each place of the input, int64, -1 where there is none, or a number, float32, NaN
        where there is none, in a resolution of its own; or "motion", pixels per frame (2,) to the right and down.
        """
        return self._load_in_order(self.reading(split, truth=what), batch_size, limit)

    def make_truth(self, what: str, index: int, value: Any, reading: Reading) -> Tensor:
        """What the source knows of a sample and its input `value`, where the sample shows it."""
        return getattr(self.splits[reading.split], what)(index, value)

    def validation_batches(self, *, batch_size: int) -> Iterator[Batch]:
        """The test split as training batches, the same every time; only several views of a sample are random."""
        seed = VALIDATION_SEED if self.has_several_views else None
        return self._load_in_order(self.reading("test", seed=seed), batch_size)

    def view_batches(
        self, split: Literal["train", "test"], *, views: int, batch_size: int, limit: int | None = None, seed: int = 0
    ) -> Iterator[Batch]:
        """`views` (b, views, *input_shape), random as in training, of at most `limit` samples; the same for a seed."""
        check_at_least("data", 1, views=views)
        return self._load_in_order(self.reading(split, seed=seed, views=views), batch_size, limit)

    def blank_batch(self, count: int) -> Batch:
        """A training batch of `count` samples without content and without labels."""
        x = self.blank.expand(count, self.views, *self.blank.shape).clone()
        return {"views": x} if self.has_several_views else {"x": x[:, 0]}

    def reading(
        self, split: str, *, seed: int | None = None, views: int | None = None, truth: str | None = None
    ) -> Reading:
        """Return how the samples of a split are read; seed: None for evaluation, without augmentation."""
        return Reading(split, seed, views, self.bad[split].limit, truth)

    def make_batch(self, request: Request, reading: Reading) -> Batch:
        """Read and prepare the samples of a request; the key `bad` has the unreadable ones, name -> reason."""

        def sample(index: int, *, counter: int) -> tuple[dict[str, Tensor], int | None]:
            value, label = self.splits[reading.split][index]
            made = self.make_inputs(value, counter, reading)  # which may decode, as of videos
            if problem := wrong_values(made, nan_is_missing=self.nan_is_missing):
                raise UnreadableSample(self.describe(index, reading), problem)
            if reading.truth is not None:
                made["truth"] = self.make_truth(reading.truth, index, value, reading)
            return made, label

        bad: dict[str, str] = {}
        places = zip(request.counters, request.indices)
        made = [self.read_or_next(partial(sample, counter=c), index, bad, reading) for c, index in places]
        batch: Batch = {name: [inputs[name] for inputs, _ in made] for name in made[0][0]}
        batch = {name: each if name == "truth" else self.stack(each) for name, each in batch.items()}
        return self.with_labels(batch | {"bad": bad}, [label for _, label in made])

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return one input of several samples as a batch."""
        return torch.stack(tensors)

    def read_or_next(self, read: Callable[[int], Any], index: int, bad: dict[str, str], reading: Reading) -> Any:
        """Return `read(index)`, or what the next sample gives where that one is `blamed`; `bad` names these."""
        count = len(self.splits[reading.split])
        for place in range(index, index + count):
            try:
                return read(place % count)
            except Exception as error:
                name, reason = blamed(error, self.describe(place % count, reading))
                bad[name] = reason
            if len(bad) > reading.bad_limit:
                raise TooManyUnreadable(bad) from None
        # The limit lets one be bad, and where others are mixed in it is a share of them all.
        raise DataError(f"none of the {count} samples of the {reading.split} split can be read: {shown(name, reason)}")

    def describe(self, index: int, reading: Reading) -> str:
        """Return the name of a sample for messages: what its source calls it, else its number."""
        samples = self.splits[reading.split]
        if hasattr(samples, "describe"):
            return samples.describe(index)
        return f"sample {index} of the {reading.split} split"

    def make_inputs(self, value: Any, counter: int, reading: Reading) -> dict[str, Tensor]:
        """The tensors of one sample: `x`, or `views` (V, ...), random by the seed and the sample's counter."""
        if reading.seed is None:
            return {"x": self.prepare(value, None)}
        random = generator("cpu", reading.seed, "augment", counter)
        if not self.gives_views(reading):
            return {"x": self.prepare(value, random)}
        return {"views": torch.stack([self.prepare(value, random) for _ in range(reading.views or self.views)])}

    def gives_views(self, reading: Reading) -> bool:
        """Return whether batches have `views` in place of `x`."""
        return reading.seed is not None and (reading.views is not None or self.has_several_views)

    def with_labels(self, batch: Batch, labels: Any) -> Batch:
        """Return the batch with `label` (B,) int64, unless the data have no classes."""
        return batch if self.spec.classes is None else batch | {"label": torch.as_tensor(labels, dtype=torch.int64)}

    def _load_in_order(self, reading: Reading, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        check_at_least("data", 1, batch_size=batch_size)
        if limit is None and reading.truth is None:
            self.hold(reading.split)
        return self._load(fixed_order(len(self.splits[reading.split]), batch_size=batch_size, limit=limit), reading)

    def _load(self, requests: Iterable[Request], reading: Reading) -> Iterator[Batch]:
        return load(
            partial(self.make_batch, reading=reading),
            requests,
            bad=self.bad[reading.split],
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            pin_memory=self.pins,
        )

    @property
    def pins(self) -> bool:
        """Whether batches are pinned; without a GPU that only makes torch warn."""
        return bool(self.pin_memory) and torch.cuda.is_available()


def read_source(source: Callable[..., Any], **settings: Any) -> Any:
    """Call a source with the settings that are not None; `~` in root is expanded."""
    given = {name: value for name, value in settings.items() if value is not None}
    if "root" in given:
        given["root"] = os.path.expanduser(given["root"])  # a shell leaves the ~ of data.root=~/images to us
    return source(**given)


def lines_of(parts: Mapping[str, Any]) -> tuple[str, ...]:
    """The `lines` of several data sets, each behind the name of its own."""
    return tuple(f"{name}: {line}" for name, part in parts.items() for line in getattr(part, "lines", ()))


def found_by(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What several data sets have found out, by name.key."""
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.spec.found.items()}


def check_choices(settings: Any) -> None:
    """Raise ValueError for a field that is not among the values of its Literal type; for settings made from Python."""
    for name, hint in get_type_hints(type(settings)).items():
        types, value = (hint,) if get_origin(hint) is Literal else get_args(hint), getattr(settings, name)
        choices = [choice for each in types if get_origin(each) is Literal for choice in get_args(each)]
        choices += [True, False] if choices and bool in types else []
        of_others = any(get_origin(each) is not Literal and each is not bool for each in types)
        if choices and value not in choices and not (of_others and not isinstance(value, str)):
            raise ValueError(f"data.{name}={value}: expected one of {', '.join(map(str, choices))}")
