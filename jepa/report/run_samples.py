"""What a network makes of samples, as plain data, and the sections of the report that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from jepa.report.figures import seen_and_predicted, target_blocks
from jepa.report.run_record import ROWS
from jepa.report.sample_media import Medium, packed, stack
from jepa.report.token_decoder import Decoded
from jepa.types import Grid, Mask
from jepa.utils.tensors import nearest_rows

NEAREST, WORST = 5, 16
"""Neighbours of a sample, and wrongly classified samples, that are drawn."""

BLOCKS = ((245, 133, 24), (84, 162, 75), (228, 87, 86), (178, 121, 162), (114, 183, 178), (212, 167, 44))
"""Colours of target blocks in masks, in turn."""


@dataclass(frozen=True)
class Shown:
    """A few samples and their tokens.

    x: inputs (n, C, *S). labels: n texts. grid: of the tokens. tokens: (n, N, D) of the trained network, NaN at
    padding. stages: name -> colours (n, *grid, 3) uint8 of the tokens then. masks: as training draws them.
    """

    x: Tensor
    labels: list[str]
    grid: Grid
    tokens: Tensor
    stages: dict[str, np.ndarray] = field(default_factory=dict)
    masks: list[Mask] = field(default_factory=list)


@dataclass(frozen=True)
class Embedded:
    """Many held-out samples as vectors. features: row of the results -> (m, D). thumbnails: m pieces of HTML.

    labels: (m,), None without; names: of the classes. said: what it is a part of.
    """

    features: dict[str, Tensor]
    thumbnails: list[Markup]
    labels: Tensor | None
    names: Sequence[str]
    said: str

    def label(self, row: int) -> str:
        """Return a sample's label as a text; "" without."""
        if self.labels is None or self.labels[row] < 0:
            return ""
        label = int(self.labels[row])
        return str(self.names[label] if label < len(self.names) else label)


@dataclass(frozen=True)
class Classified:
    """What a linear classifier of frozen training features says of the embedded samples.

    probabilities: (m, classes). trained_on: how many training samples.
    """

    probabilities: Tensor
    trained_on: int


def mask_pictures(shown: Shown, medium: Medium) -> Markup:
    """Return samples under their masks, a row of pictures for each mask."""
    rows = []
    for mask in shown.masks:
        seen = seen_and_predicted(mask, shown.grid)[0].numpy()
        blocks = target_blocks(mask, shown.grid).numpy()
        cells = []
        for number, x in enumerate(shown.x):
            colours = np.zeros((*shown.grid, 4), np.uint8)
            colours[~seen[number]] = (70, 78, 86, 215)
            for place, block in enumerate(blocks[number]):
                colours[block] = (*BLOCKS[place % len(BLOCKS)], 200)
            cells.append(figure(stack(medium, medium.picture(x), medium.layout(colours)), shown.labels[number]))
        rows.append(Markup('<div class="row">{}</div>').format(Markup("").join(cells)))
    return Markup("").join(rows)


def decoded_pictures(shown: Shown, decoded: Decoded, medium: Medium) -> Markup:
    """Return samples beside what the encoder sees of them, what their features hold, and what is predicted."""
    seen = seen_and_predicted(shown.masks[0], shown.grid)[0]
    cover = torch.tensor([70, 78, 86, 255], dtype=torch.uint8)
    rows = []
    for number, x in enumerate(shown.x):
        hidden, missing = (
            medium.layout((dark.view(*shown.grid, 1) * cover).numpy())
            for dark in (~seen[number], decoded.hidden[number])
        )
        cells = [
            figure(stack(medium, medium.picture(x)), shown.labels[number] or "input"),
            figure(stack(medium, medium.picture(x), hidden), "seen"),
            figure(stack(medium, medium.picture(decoded.predicted[number]), missing), "predicted"),
            figure(stack(medium, medium.picture(decoded.full[number])), "from its features"),
        ]
        rows.append(Markup('<div class="row">{}</div>').format(Markup("").join(cells)))
    return Markup('<div class="compared">{}</div>').format(Markup("").join(rows))


def feature_pictures(shown: Shown, medium: Medium) -> Markup:
    """Return samples, whose tokens are compared on hover, beside their features as colours at several steps."""
    rows = []
    for number, x in enumerate(shown.x):
        picture = medium.picture(x)
        hover = stack(medium, picture, data=packed(shown.tokens[number], medium, shown.grid))
        cells = [figure(hover + medium.beside(x), shown.labels[number])]
        for name, colours in shown.stages.items():
            cells.append(figure(stack(medium, picture, medium.layout(colours[number])), name))
        rows.append(Markup('<div class="row">{}</div>').format(Markup("").join(cells)))
    return Markup('<div class="compared">{}</div>').format(Markup("").join(rows))


def neighbour_pictures(embedded: Embedded, queries: Sequence[int]) -> Markup:
    """Return samples beside their nearest ones, by cosine similarity, of each row of the results."""
    found = {name: nearest_rows(features, queries, NEAREST).tolist() for name, features in embedded.features.items()}
    head = Markup("").join(Markup("<th>{}</th>").format(ROWS[name]) for name in found)
    rows = []
    for number, query in enumerate(queries):
        cells = Markup("").join(
            Markup('<td><div class="row">{}</div></td>').format(
                Markup("").join(thumbnail(embedded, row, embedded.label(query)) for row in found[name][number])
            )
            for name in found
        )
        rows.append(Markup("<tr><td>{}</td>{}</tr>").format(thumbnail(embedded, query), cells))
    return Markup('<div class="wide"><table class="near"><tr><th>sample</th>{}</tr>{}</table></div>').format(
        head, Markup("").join(rows)
    )


def shares_of_same_label(embedded: Embedded) -> str:
    """Return what share of labelled samples have their label in common with the nearest other, as a sentence.

    "" where fewer than two have a label.
    """
    if embedded.labels is None or int((known := embedded.labels >= 0).sum()) < 2:
        return ""
    labels = embedded.labels[known]
    shares = []
    for name, features in embedded.features.items():
        nearest = nearest_rows(features[known], range(len(labels)), 1).squeeze(1)
        shares.append(f"{float((labels[nearest] == labels).float().mean()):.0%} ({ROWS[name]})")
    return f"Share of samples whose nearest one (k=1) has the same label: {', '.join(shares)}."


def worst_pictures(embedded: Embedded, classified: Classified) -> Markup:
    """Return the samples for whose wrong class the classifier was surest, with what it said."""
    said = classified.probabilities.max(dim=1)
    wrong = (said.indices != embedded.labels) & (embedded.labels >= 0)
    rows = torch.where(wrong, said.values, -1.0).argsort(descending=True)[: min(WORST, int(wrong.sum()))].tolist()
    cells = []
    for row in rows:
        claim = f"{embedded.label(row)}, said {embedded.names[int(said.indices[row])]} ({said.values[row]:.0%})"
        cells.append(thumbnail(embedded, row, said=claim))
    return Markup('<div class="row near">{}</div>').format(Markup("").join(cells) or "None is wrong.")


def thumbnail(embedded: Embedded, row: int, wanted: str | None = None, said: str = "") -> Markup:
    """Return a small picture with its label, green where that is the wanted one and red elsewhere."""
    label = embedded.label(row)
    kind = "" if not wanted else " same" if label == wanted else " other"
    return figure(embedded.thumbnails[row], said or label, kind)


def thumbnails(embedded: Embedded) -> Markup:
    """Return all samples, hidden, for those that the pointer is on in a map."""
    items = Markup("").join(figure(each, embedded.label(row)) for row, each in enumerate(embedded.thumbnails))
    return Markup('<template class="thumbnails">{}</template>').format(items)


def figure(content: Markup, caption: str, kind: str = "") -> Markup:
    """Return a picture with its caption."""
    return Markup('<figure class="{}">{}<figcaption>{}</figcaption></figure>').format(kind, content, caption)


def chosen(labels: Tensor | None, count: int, total: int) -> list[int]:
    """Return at most `count` rows of `total`: one of each class in turn, or evenly spaced ones without labels."""
    if labels is None:
        return sorted({round(row) for row in np.linspace(0, total - 1, min(count, total))})
    rows: list[int] = []
    queues: Mapping[int, list[int]] = {}
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
