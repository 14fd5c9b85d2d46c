"""Pairs of modalities: two or more data sets whose samples belong together by label.

    python train.py model=crossmodal data=paired           # written and spoken digits
    python train.py model=crossmodal data=paired_coco      # pictures and captions, which belong together by picture

A batch is {"x": {name: (B, ...)}, "label": (B,)}. Where a sample lacks a modality, that input is empty: NaN throughout,
or nothing but the padding id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from jepa.data.data_module import VALIDATION_SEED, DataModule, Reading, found_by, lines_of
from jepa.data.sources.splits import Splits
from jepa.data.stream import Request, Samples
from jepa.types import Batch
from jepa.utils.errors import DataError, UserError
from jepa.utils.random import generator

PADDING = 0  # the id that stands for padding in inputs that are ids


@dataclass(kw_only=True, eq=False)
class PairedData(DataModule):
    """Batches of pairs: each sample of the anchor with a partner of its label from every other modality.

    modalities: name -> data, each with one view per sample, of which no loader settings are used; each is evaluated
        by itself. Training samples have training partners, test samples test ones.
    anchor: the modality whose samples are gone through; an epoch is one pass over them. The others' samples of the
        same label are drawn again for each, in training by (seed, counter), in evaluation always alike.
    missing: name -> share of the training samples that come without this modality; the last one left is kept.
    A label need not be a class: data whose `class_names` are None may number what belongs together by `labels`.
    Raises ValueError for a wrong setting, DataError for samples without labels or without a partner.
    """

    modalities: Mapping[str, DataModule]
    anchor: str
    missing: Mapping[str, float] | None = None
    views: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = list(self.modalities)
        if len(names) < 2 or self.anchor not in names:
            expected = "two or more modalities, one of which is the anchor"
            raise ValueError(f"data.anchor={self.anchor} and data.modalities={names}: expected {expected}")
        for name, data in self.modalities.items():
            if data.has_several_views:
                raise ValueError(f"data.modalities.{name}: got several views of a sample, expected views=1")
            data.check_scored(self, f"data.modalities.{name}")
        self.missing = dict(self.missing or {})
        for name, share in self.missing.items():
            if name not in names or not 0 <= share < 1:
                raise ValueError(f"data.missing.{name}={share}: expected a share from 0 to below 1 of one of {names}")
        self.partners = {split: self._find_partners(split) for split in ("train", "test")}
        mine = self.modalities[self.anchor]
        self.setup(
            Splits(**mine.splits, class_names=mine.spec.class_names, lines=lines_of(self.modalities)),
            prepare=mine.prepare,
            input_shape=mine.spec.input_shape,
            found=found_by(self.modalities),
        )

    def blank_batch(self, count: int) -> Batch:
        return {"x": {name: data.blank_batch(count)["x"] for name, data in self.modalities.items()}}

    def make_batch(self, request: Request, reading: Reading) -> Batch:
        """Make {"x": {name: (b, ...)}, "label": (b,)}; in evaluation nothing is missing."""
        labels = self.partners[reading.split][0][torch.as_tensor(request.indices)]
        chosen = [self._choose(counter, int(label), reading) for counter, label in zip(request.counters, labels)]
        bad: dict[str, str] = {}
        x = {}
        for name, data in self.modalities.items():
            indices = request.indices if name == self.anchor else [partners[name] for partners, _ in chosen]
            lost = torch.tensor([name in absent for _, absent in chosen])
            batch = data.make_batch(Request(request.counters, indices), reading)
            if found := batch.get("bad"):  # each of them is missing, as its neighbour would be no partner
                bad |= found
                singles = [Request([counter], [index]) for counter, index in zip(request.counters, indices)]
                lost |= torch.tensor([bool(data.make_batch(single, reading).get("bad")) for single in singles])
            inputs = batch["x"]
            empty = float("nan") if inputs.is_floating_point() else PADDING
            x[name] = inputs.masked_fill(lost.view(-1, *[1] * (inputs.ndim - 1)), empty)
        return {"x": x, "label": labels, "bad": bad}

    def _choose(self, counter: int, label: int, reading: Reading) -> tuple[dict[str, int], set[str]]:
        seed, missing = (VALIDATION_SEED, {}) if reading.seed is None else (reading.seed, self.missing)
        draws = torch.rand(2, len(self.modalities), generator=generator("cpu", seed, "partner", counter))
        partners = {}
        for draw, (name, by_label) in zip(draws[0], self.partners[reading.split][1].items()):
            candidates = by_label[label]
            # The product, in single precision, may round up to the number of candidates.
            partners[name] = int(candidates[min(int(draw * len(candidates)), len(candidates) - 1)])
        # The modality that is least likely to be left out by its draw is kept.
        margin = {name: float(draw) - missing.get(name, 0.0) for name, draw in zip(self.modalities, draws[1])}
        return partners, {name for name, value in margin.items() if value < 0} - {max(margin, key=margin.get)}

    def _find_partners(self, split: str) -> tuple[Tensor, dict[str, dict[int, Tensor]]]:
        """Labels (n,) of the anchor's samples, and name -> label -> indices of the partners."""
        labels = {name: labels_of(name, data.splits[split]) for name, data in self.modalities.items()}
        wanted = labels.pop(self.anchor)
        partners = {}
        for name, mine in labels.items():
            found, counts = mine.unique(return_counts=True)
            partners[name] = dict(zip(found.tolist(), mine.argsort(stable=True).split(counts.tolist())))
            if lacking := sorted(set(wanted.tolist()) - set(partners[name])):
                problem = f"has no sample of the labels {lacking[:5]} that {self.anchor} has: without partners these"
                raise DataError(f"data.modalities: the {split} split of {name} {problem} cannot be used")
        return wanted, partners


@dataclass(kw_only=True, eq=False)
class WrittenAndSpokenDigits(PairedData):
    """Digits paired by class: `written` is completed with root=mnist_root, `spoken` with root=fsdd_root."""

    mnist_root: str
    fsdd_root: str
    written: Callable[..., DataModule]
    spoken: Callable[..., DataModule]
    anchor: str = "spoken"
    modalities: Mapping[str, DataModule] = field(init=False)

    def __post_init__(self) -> None:
        self.modalities = {}
        for name, make, key in (("written", self.written, "mnist_root"), ("spoken", self.spoken, "fsdd_root")):
            try:
                self.modalities[name] = make(root=getattr(self, key), score_on=self.score_on)
            except DataError as error:
                raise DataError(str(error).replace("data.root", f"data.{key}")) from error
        super().__post_init__()


@dataclass(kw_only=True, eq=False)
class PicturesAndCaptions(PairedData):
    """Pictures and captions of one folder, paired by picture; allow_outside: of the pictures that the captions list."""

    root: str
    allow_outside: bool = False
    picture: Callable[..., DataModule]
    caption: Callable[..., DataModule]
    anchor: str = "picture"
    modalities: Mapping[str, DataModule] = field(init=False)

    def __post_init__(self) -> None:
        if self.score_on != "test":
            raise ValueError("data.score_on=validation: not for pictures and captions, give them a val folder")
        picture = self.picture
        if self.allow_outside:
            picture = partial(picture, source=partial(picture.keywords["source"], allow_outside=True))
        self.modalities = {"picture": picture(root=self.root), "caption": self.caption(root=self.root)}
        super().__post_init__()


def labels_of(name: str, samples: Samples) -> Tensor:
    """Labels (n,) int64 of a split, without reading its samples. Raises UserError where it has none."""
    labels = getattr(samples, "labels", None)
    if labels is None:
        what = f"{type(samples).__name__} has no labels to pair by"
        raise UserError(f"data.modalities.{name}: {what}: give data with class folders or labels")
    return torch.as_tensor(labels).long()
