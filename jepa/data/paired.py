"""Pairs of modalities: two or more data sets whose samples belong together by label.

    python train.py model=crossmodal data=paired           # written and spoken digits
    python train.py model=crossmodal data=paired_coco      # pictures and captions, which belong together by picture

A batch is {"x": {name: (B, ...)}, "label": (B,)}. Where a sample lacks a modality, that input is empty: NaN throughout,
or nothing but the padding id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from jepa.data.base import VALIDATION_SEED, StreamData, check_counts, check_loading
from jepa.data.stream import BadSamples, Request, SampleOrder, Samples, fixed_order, load
from jepa.types import Batch, DataSpec
from jepa.utils.errors import DataError, UserError
from jepa.utils.random import generator

PADDING = 0
"""The id that stands for padding in inputs that are ids."""


class PairedData:
    """Batches of pairs: each sample of the anchor with a partner of its label from every other modality.

    modalities: name -> data, each with one view per sample; `DataSpec.spec` of each says what it holds. Evaluation
        looks at each by itself. Splits stay apart: training samples have training partners, test samples test ones.
    anchor: the modality whose samples are gone through; an epoch is one pass over them. The others' samples of the
        same label are drawn anew for each, in training by (seed, counter), in evaluation always alike.
    missing: name -> share of the training samples that come without this modality; the last one left is kept.
    A label need not be a class: data whose `class_names` are None may number what belongs together by `labels`.
    The other arguments are those of `StreamData`, and take the place of the modalities' own.

    Raises ValueError for a wrong setting, DataError for samples without labels or without a partner.
    """

    def __init__(
        self,
        *,
        modalities: Mapping[str, StreamData],
        anchor: str,
        missing: Mapping[str, float] | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        pin_memory: bool | Literal["auto"] = "auto",
        prefetch_factor: int = 2,
        max_bad_share: float = 0.1,
    ) -> None:
        check_loading(
            views=1,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            max_bad_share=max_bad_share,
        )
        if len(modalities) < 2 or anchor not in modalities:
            raise ValueError(
                f"data.anchor={anchor} and data.modalities={list(modalities)}: expected two or more modalities, one of "
                "which is the anchor"
            )
        for name, data in modalities.items():
            if data._several:
                raise ValueError(f"data.modalities.{name}: got several views of a sample, expected views=1")
        self.missing = dict(missing or {})
        for name, share in self.missing.items():
            if name not in modalities or not 0 <= share < 1:
                raise ValueError(
                    f"data.missing.{name}={share}: expected a share from 0 to below 1 of one of {list(modalities)}"
                )
        self.modalities = dict(modalities)
        self.anchor = anchor
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.max_bad_share = max_bad_share
        self.pin_memory = bool(pin_memory) and torch.cuda.is_available()
        self._partners = {split: self._find_partners(split) for split in ("train", "test")}
        mine = self.modalities[anchor].spec
        self._bad = {
            split: BadSamples(total=size, max_share=max_bad_share)
            for split, size in (("train", mine.num_train), ("test", mine.num_test))
        }
        self.spec = DataSpec(
            num_train=mine.num_train,
            num_test=mine.num_test,
            input_shape=mine.input_shape,
            classes=mine.classes,
            class_names=mine.class_names,
        )

    @property
    def bad_samples(self) -> dict[str, str]:
        """Path -> reason of the samples found unreadable so far."""
        return {**self._bad["train"], **self._bad["test"]}

    def train_batches(
        self, *, seed: int, start_step: int, stop_step: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """As those of `StreamData`: {"x": {name: (b, ...)}, "label": (b,)}."""
        order = SampleOrder(num_samples=self.spec.num_train, batch_size=self.batch_size, seed=seed)
        order.request(start_step, rank=rank, world_size=world_size)  # raises now, not at the first batch
        requests = (order.request(step, rank=rank, world_size=world_size) for step in range(start_step, stop_step))
        return self._load("train", requests, seed=seed)

    def evaluation_batches(self, split: str, *, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Pairs of a split in the anchor's order, nothing random, nothing missing."""
        if split not in self._partners:
            raise ValueError(f"split={split!r} is neither 'train' nor 'test'")
        check_counts(batch_size=batch_size)
        size = self.spec.num_train if split == "train" else self.spec.num_test
        return self._load(split, fixed_order(size, batch_size=batch_size, limit=limit), seed=None)

    def validation_batches(self, *, batch_size: int) -> Iterator[Batch]:
        """The test pairs, the same every time."""
        return self.evaluation_batches("test", batch_size=batch_size)

    def blank_batch(self, count: int) -> Batch:
        """A training batch of so many samples without content."""
        return {"x": {name: data.blank_batch(count)["x"] for name, data in self.modalities.items()}}

    def _load(self, split: str, requests: Iterator[Request], *, seed: int | None) -> Iterator[Batch]:
        bad = self._bad[split]
        make = _PairedBatches(
            modalities=self.modalities,
            split=split,
            anchor=self.anchor,
            partners=self._partners[split],
            missing=self.missing if seed is not None else {},
            seed=seed,
            bad_limit=bad.limit,
        )
        return load(
            make,
            requests,
            bad=bad,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            pin_memory=self.pin_memory,
        )

    def _find_partners(self, split: str) -> _Partners:
        labels = {name: labels_of(name, data._splits[split]) for name, data in self.modalities.items()}
        wanted = labels[self.anchor]
        by_label = {}
        for name in self.modalities:
            if name != self.anchor:
                mine = {int(label): (labels[name] == label).nonzero().flatten() for label in labels[name].unique()}
                if lacking := sorted(set(wanted.unique().tolist()) - set(mine)):
                    raise DataError(
                        f"data.modalities: the {split} split of {name} has no sample of the labels {lacking[:5]} that "
                        f"{self.anchor} has: without partners these cannot be used"
                    )
                by_label[name] = mine
        return _Partners(wanted, by_label)


def written_and_spoken(
    *,
    mnist_root: str,
    fsdd_root: str,
    written: Callable[..., StreamData],
    spoken: Callable[..., StreamData],
    anchor: str = "spoken",
    missing: Mapping[str, float] | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    pin_memory: bool | Literal["auto"] = "auto",
    prefetch_factor: int = 2,
    max_bad_share: float = 0.1,
) -> PairedData:
    """Written and spoken digits, paired by digit: `written` is completed with root=mnist_root, `spoken` by fsdd_root.

    The other arguments are those of `PairedData`.
    """
    return PairedData(
        modalities={"written": written(root=mnist_root), "spoken": spoken(root=fsdd_root)},
        anchor=anchor,
        missing=missing,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor,
        max_bad_share=max_bad_share,
    )


def pictures_and_captions(
    *,
    root: str,
    picture: Callable[..., StreamData],
    caption: Callable[..., StreamData],
    anchor: str = "picture",
    missing: Mapping[str, float] | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    pin_memory: bool | Literal["auto"] = "auto",
    prefetch_factor: int = 2,
    max_bad_share: float = 0.1,
) -> PairedData:
    """Pictures and captions of one folder: both are completed with root=root and paired by picture.

    Of a picture's captions one is drawn anew each time. The other arguments are those of `PairedData`.
    """
    return PairedData(
        modalities={"picture": picture(root=root), "caption": caption(root=root)},
        anchor=anchor,
        missing=missing,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor,
        max_bad_share=max_bad_share,
    )


@dataclass(frozen=True)
class _Partners:
    """Labels (n,) of the anchor's samples, and name -> label -> indices of the partners."""

    labels: Tensor
    by_label: Mapping[str, Mapping[int, Tensor]]


@dataclass(frozen=True)
class _PairedBatches:
    """Reads the pairs of a request, in a worker if there are any. seed: None to evaluate."""

    modalities: Mapping[str, StreamData]
    split: str
    anchor: str
    partners: _Partners
    missing: Mapping[str, float]
    seed: int | None
    bad_limit: float

    def __call__(self, request: Request) -> Batch:
        labels = self.partners.labels[torch.as_tensor(request.indices)]
        chosen = [self._choose(counter, int(label)) for counter, label in zip(request.counters, labels)]
        bad: dict[str, str] = {}
        x = {}
        for name, data in self.modalities.items():
            indices = request.indices if name == self.anchor else [partner[name] for partner, _ in chosen]
            make = data._batches(self.split, seed=self.seed, views=None, bad_limit=self.bad_limit)
            x[name] = read_or_empty(make, request.counters, indices, bad)
            lost = torch.tensor([name in absent for _, absent in chosen])
            x[name] = empty_where(x[name], lost)
        return {"x": x, "label": labels, "bad": bad}

    def _choose(self, counter: int, label: int) -> tuple[dict[str, int], set[str]]:
        """The partners' indices, and the modalities that are left out."""
        random = generator("cpu", VALIDATION_SEED if self.seed is None else self.seed, "partner", counter)
        draws = torch.rand(2, len(self.modalities), generator=random)
        partners = {}
        for draw, (name, by_label) in zip(draws[0], self.partners.by_label.items()):
            candidates = by_label[label]
            partners[name] = int(candidates[int(draw * len(candidates))])
        # What is least likely to be left out by its draw is kept.
        margin = {name: float(draw) - self.missing.get(name, 0.0) for name, draw in zip(self.modalities, draws[1])}
        absent = {name for name, value in margin.items() if value < 0}
        return partners, absent - {max(margin, key=margin.get)}


def read_or_empty(make: Any, counters: Sequence[int], indices: Sequence[int], bad: dict[str, str]) -> Tensor:
    """The inputs of a modality; empty where a sample cannot be read, as its neighbour would be no partner."""
    batch = make(Request(counters, indices))
    found = batch.get("bad", {})
    if not found:
        return batch["x"]
    bad.update(found)
    lost = [bool(make(Request([c], [i])).get("bad")) for c, i in zip(counters, indices)]
    return empty_where(batch["x"], torch.tensor(lost))


def empty_where(x: Tensor, lost: Tensor) -> Tensor:
    """Inputs (B, ...) with those marked in lost (B,) bool emptied."""
    if not bool(lost.any()):
        return x
    return x.masked_fill(lost.view(-1, *[1] * (x.ndim - 1)), float("nan") if x.is_floating_point() else PADDING)


def labels_of(name: str, samples: Samples) -> Tensor:
    """Labels (n,) int64 of a split, without reading its samples. Raises UserError where it does not tell."""
    labels = getattr(samples, "labels", None)
    if labels is None:
        raise UserError(
            f"data.modalities.{name}: {type(samples).__name__} has no labels to pair by: give data with class folders "
            "or labels"
        )
    return torch.as_tensor(labels).long()
