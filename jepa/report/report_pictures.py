"""What a network makes of samples, as plain data, and the sections of the report that show it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from jepa.report.figures import seen_and_predicted, target_blocks
from jepa.report.run_record import ROWS
from jepa.report.sample_media import Medium, figure, packed
from jepa.report.token_decoder import Decoded
from jepa.types import Grid, Mask
from jepa.utils.tensors import nearest_rows

NEAREST, WORST = 5, 16  # neighbours of a sample, and wrongly classified samples, that are drawn
BLOCKS = ((245, 133, 24), (84, 162, 75), (228, 87, 86), (178, 121, 162), (114, 183, 178), (212, 167, 44))
"""Colours of target blocks in masks, in turn."""

COVER = (70, 78, 86, 215)  # of tokens that the encoder does not see


@dataclass(frozen=True)
class Shown:
    """A few samples and their tokens.

    x: inputs (n, C, *S). captions: n texts, label and place. grid: of the tokens. tokens: (n, N, D) of the trained
    network, NaN at padding. stages: name -> colours (n, *grid, 3) uint8 of the tokens then. masks: as in training.
    """

    x: Tensor
    captions: list[str]
    grid: Grid
    tokens: Tensor
    stages: dict[str, np.ndarray] = field(default_factory=dict)
    masks: list[Mask] = field(default_factory=list)


@dataclass(frozen=True)
class Embedded:
    """Many samples as vectors, held-out ones first. features: row of the results -> (m, D).

    thumbnails: m pieces of HTML. labels: (m,), None without; names: of the classes. places: file, row or time of each
    sample. said: what they are a part of. held_out: how many of the m. starts: (m,) first steps of windows of series.
    overlap: (m, m) bool, which windows share a part; both None of other samples.
    """

    features: dict[str, Tensor]
    thumbnails: list[Markup]
    labels: Tensor | None
    names: Sequence[str]
    places: list[str]
    said: str
    held_out: int
    starts: np.ndarray | None = None
    overlap: Tensor | None = None

    def label(self, row: int) -> str:
        """Return a sample's label as a text; "" without."""
        if self.labels is None or self.labels[row] < 0:
            return ""
        label = int(self.labels[row])
        return str(self.names[label] if label < len(self.names) else label)

    def split(self, row: int) -> str:
        """Return whether training has seen a sample."""
        return "held out" if row < self.held_out else "training"


@dataclass(frozen=True)
class Classified:
    """What a linear classifier of frozen training features says of the held-out samples.

    probabilities: (held_out, classes). trained_on: how many training samples.
    """

    probabilities: Tensor
    trained_on: int


def mask_pictures(shown: Shown, medium: Medium) -> Markup:
    """Return samples under their masks, a part with a heading for each of several masks."""
    rows = []
    for place, mask in enumerate(shown.masks, 1):
        seen = seen_and_predicted(mask, shown.grid)[0].numpy()
        blocks = target_blocks(mask, shown.grid).numpy()
        cells = []
        for number, x in enumerate(shown.x):
            colours = np.zeros((*shown.grid, 4), np.uint8)
            colours[~seen[number]] = COVER
            for block, colour in zip(blocks[number], itertools.cycle(BLOCKS)):
                colours[block] = (*colour, 110 if medium.kind == "series" else 200)
            cells.append(medium.figure(x, shown.captions[number], colours))
        if len(shown.masks) > 1:
            rows.append(Markup("<h3>Mask {} of {}</h3>").format(place, len(shown.masks)))
        rows.append(together(cells))
    return Markup("").join(rows)


def decoded_cells(
    shown: Shown, decoded: Decoded, kind: str | None
) -> Iterator[list[tuple[str, np.ndarray | None, Tensor | None]]]:
    """Yield of each sample what stands side by side: caption, colours of the tokens, what is drawn in its place.

    That is the sample, what the encoder sees of it, what is predicted, and what the features of all of it hold. kind:
    of the medium.
    """
    seen = seen_and_predicted(shown.masks[0], shown.grid)[0].numpy()
    for number, x in enumerate(shown.x):
        unseen, neither = (np.zeros((*shown.grid, 4), np.uint8) for _ in range(2))
        unseen[~seen[number]] = (*COVER[:3], 255)
        if kind == "series":  # curves do not show which part of them was hidden
            neither[~seen[number]] = (*BLOCKS[0], 110)
        neither[decoded.hidden[number].view(shown.grid).numpy()] = (*COVER[:3], 255)
        yield [
            (f"input: {shown.captions[number]}", None, None),
            ("what the encoder sees", unseen, x),
            ("predicted where nothing is seen", neither, decoded.predicted[number]),
            ("from the features of all of it", None, decoded.full[number]),
        ]


def decoded_pictures(shown: Shown, decoded: Decoded, medium: Medium) -> Markup:
    """Return the pictures of `decoded_cells`, a row for each sample."""
    rows = []
    for x, cells in zip(shown.x, decoded_cells(shown, decoded, medium.kind)):
        rows.append(together(medium.figure(x, text, colours, drawn=drawn) for text, colours, drawn in cells))
    return together(rows, "compared")


def feature_pictures(shown: Shown, medium: Medium) -> Markup:
    """Return samples, whose tokens are compared on hover, beside their features as colours at several steps."""
    rows = []
    for number, x in enumerate(shown.x):
        data = packed(shown.tokens[number], medium, shown.grid)
        cells = [medium.figure(x, shown.captions[number], data=data)]
        cells += [medium.figure(x, name, colours[number], drawn=x) for name, colours in shown.stages.items()]
        rows.append(together(cells))
    return together(rows, "compared")


def together(parts: Iterable[Markup], kind: str = "row") -> Markup:
    """Return parts in one block of a class of the style sheet."""
    return Markup('<div class="{}">{}</div>').format(kind, Markup("").join(parts))


def neighbour_pictures(embedded: Embedded, queries: Sequence[int], kind: str) -> Markup:
    """Return samples beside their nearest ones, by cosine similarity, of each row of the results.

    Samples that share a part of the query are left out. kind: of the medium.
    """
    every = embedded.features.items()
    found = {name: nearest_rows(features, queries, NEAREST, embedded.overlap) for name, features in every}
    rows = []
    for number, query in enumerate(queries):
        cells = [Markup("<div><small>sample</small>{}</div>").format(thumbnail(embedded, query))]
        for name, (values, indices) in found.items():
            near = zip(indices[number].tolist(), values[number].tolist())
            figures = [thumbnail(embedded, row, query, f"{value:.2f}") for row, value in near if value > -torch.inf]
            cells.append(Markup("<div><small>{}</small>{}</div>").format(ROWS[name], together(figures)))
        rows.append(together(cells, f"near {kind}"))
    return Markup("").join(rows)


def shares_of_same_label(embedded: Embedded) -> str:
    """Return what share of labelled samples have their label in common with the nearest other, as a sentence.

    "" where fewer than two have a label.
    """
    if embedded.labels is None or int((known := embedded.labels >= 0).sum()) < 2:
        return ""
    labels = embedded.labels[known]
    shares = []
    for name, features in embedded.features.items():
        nearest = nearest_rows(features[known], range(len(labels)), 1)[1].squeeze(1)
        shares.append(f"{float((labels[nearest] == labels).float().mean()):.0%} ({ROWS[name]})")
    return f"Share of samples whose nearest one (k=1) has the same label: {', '.join(shares)}."


def worst_pictures(embedded: Embedded, classified: Classified) -> Markup:
    """Return the held-out samples for whose wrong class the classifier was surest, with what it said."""
    said = classified.probabilities.max(dim=1)
    wrong = (said.indices != embedded.labels[: embedded.held_out]) & (embedded.labels[: embedded.held_out] >= 0)
    rows = torch.where(wrong, said.values, -1.0).argsort(descending=True)[: min(WORST, int(wrong.sum()))].tolist()
    claims = [f"taken for {embedded.names[int(said.indices[row])]}, {said.values[row]:.0%}" for row in rows]
    cells = [thumbnail(embedded, row, said=claim) for row, claim in zip(rows, claims)]
    return together(cells or [Markup("None is wrong.")], "row worst")


def thumbnail(embedded: Embedded, row: int, query: int | None = None, said: str = "") -> Markup:
    """Return a small picture with its label and place, green where it has the label of a query and red elsewhere."""
    label, place = embedded.label(row), embedded.places[row]
    wanted = embedded.label(query) if query is not None else ""
    kind = "" if not wanted else "same" if label == wanted else "other"
    text = "\n".join(filter(None, (said, label, place.rsplit("/", 1)[-1])))
    return figure(embedded.thumbnails[row], text, kind, f"{place}, {embedded.split(row)}")


def thumbnails(embedded: Embedded) -> Markup:
    """Return all samples, hidden, for those that the pointer is on in a map."""
    texts = [f"{embedded.label(row)} {place} ({embedded.split(row)})" for row, place in enumerate(embedded.places)]
    items = Markup("").join(map(figure, embedded.thumbnails, texts))
    return Markup('<template class="thumbnails">{}</template>').format(items)


def chosen(labels: Tensor | None, count: int, total: int) -> list[int]:
    """Return at most `count` rows of `total`: one of each class in turn, or evenly spaced ones without labels."""
    if labels is None:
        return sorted({round(row) for row in np.linspace(0, total - 1, min(count, total))})
    rows: list[int] = []
    queues: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        queues.setdefault(label, []).append(row)
    while len(rows) < min(count, total):
        rows += [queue.pop(0) for _, queue in sorted(queues.items()) if queue]
    return rows[:count]


@dataclass(frozen=True)
class Learned:
    """All that the page shows of what a network, or its part for one modality, makes of samples.

    name: of the modality, "" of data of one. medium: how samples are shown. classified: None without labels.
    shown: None for samples that cannot be. decoded: None of models that predict nothing, and of texts.
    """

    name: str
    medium: Medium
    embedded: Embedded
    classified: Classified | None = None
    shown: Shown | None = None
    decoded: Decoded | None = None
