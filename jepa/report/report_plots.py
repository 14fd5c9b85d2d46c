"""The charts of a run's report, with plotly. Colours are legible on light and dark; the page sets those of text."""

from __future__ import annotations

import html
import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from markupsafe import Markup
from plotly.colors import qualitative

from jepa.report.html_page import blank_figure
from jepa.report.report_pictures import Classified, Embedded
from jepa.report.run_record import ROWS, Curve, Record, better, in_words

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#a05fd0", "#2ec4c4", "#9d755d", "#d4b72c", "#f781d8", "#8c8c8c")
"""In turn, of lines and classes."""

MAX_CLASSES = 20
AXIS = {"automargin": True, "zeroline": False, "gridcolor": "rgba(128,128,128,0.25)", "exponentformat": "power"}
DASHES = ("solid", "dot", "dash", "dashdot")

CHARTS = (
    ("Loss and its terms", r"(train|val)/loss(/.*)?", "loss", "It should fall and level off; val: held-out samples."),
    ("Learning rate", "lr|.*/lr", "rate", "Warm-up, then decay, as scheduled."),
    ("Weight decay", "weight_decay", "weight decay", "As scheduled."),
    ("Momentum of the target", "momentum", "momentum", "Share of the target network that a step keeps, as scheduled."),
    ("Gradient norms", r"grad_norm(/.*)?", "norm", "Before clipping; a jump that stays is a warning."),
    ("Size of updates", "update_ratio", "share", "How far a step moves the weights, as a share of their own size."),
    ("Throughput", "samples_per_second", "samples per second", "Training alone; a fall means that something waits."),
    ("Waiting for data", "data_wait", "share of the time", "Above a few percent, more loader workers help."),
    ("Memory", r"memory_gib|.*/memory_gib", "GiB", "Of the device, or of the process on a CPU."),
    ("Spread", r"monitor/(.*/)?\w+_spread|train/\w+_std", "deviation", "Between samples; near 0: a collapse."),
    (
        "Rank",
        r"monitor/(.*/)?\w+_(rank|dimensions)|(online|eval/trained)/(.*/)?rankme",
        "dimensions",
        "In how many directions features differ; a fall to a few means that dimensions are lost.",
    ),
)
"""Heading, which metrics (a pattern), y axis, what to see."""


def charts(records: Sequence[Record]) -> list[tuple[str, str, Markup]]:
    """Return (heading, what to see, HTML) of the curves of one run, or of several, overlaid."""
    found = []
    for heading, pattern, axis, note in CHARTS:
        lines = _lines(records, pattern)
        if lines:
            found.append((heading, note, _markup(line_chart(lines, axis))))
    if any(len({name for _, name in record.verdicts} - {"unknown"}) > 1 for record in records):
        found.append(("Verdict", "What the collapse monitor said by then.", _markup(verdict_chart(records))))
    return found


def probe_charts(records: Sequence[Record]) -> list[tuple[str, str, Markup]]:
    """Return (probe, what to see, HTML) of each probe over the steps, beside random weights and raw input."""
    found, patterns = [], [re.match(r"(?:eval/trained|online)/(.*)", name) for r in records for name in r.curves]
    names = {match[1] for match in patterns if match}
    for probe in sorted(names - {"feature_std"}):
        lines: dict[str, tuple[Curve, dict[str, Any]]] = {}
        head, _, tail = probe.rpartition("/")
        for number, record in enumerate(records):
            last = max((int(curve.steps[-1]) for curve in record.curves.values()), default=0)
            several = len(records) > 1
            beside = [each for each in record.curves if re.fullmatch(rf"eval/raw_input/{head}/\w+/{tail}", each)]
            simple = {each: each.split("/")[-2].replace("_", " ") for each in beside if head}  # forecasts of no network
            rows = {f"eval/{row}/{probe}": called for row, called in ROWS.items()}
            for place, (key, called) in enumerate((rows | simple).items()):
                curve = record.curves.get(key)
                if curve is None:
                    continue
                look = {"dash": DASHES[min(place, 3)], "color": COLOURS[number if several else place]}
                if place:  # they do not change with the step
                    curve = Curve(np.array([0, last]), np.repeat(curve.values[-1:], 2))
                lines[_named(records, record, called)] = curve, look
            if online := record.curves.get(f"online/{probe}"):
                look = {"color": COLOURS[number if several else 5]}
                lines[_named(records, record, "trained, online")] = online, look
        words = in_words(probe)
        drawn = _markup(line_chart(lines, re.split(r" of | \(", words)[0], logarithmic=False))
        found.append((words[0].upper() + words[1:], f"{better(probe).capitalize()} is better.", drawn))
    return found


def _named(records: Sequence[Record], record: Record, name: str) -> str:
    return name if len(records) == 1 else f"{record.name}: {name}"


def _lines(records: Sequence[Record], pattern: str) -> dict[str, tuple[Curve, dict[str, Any]]]:
    """Return name -> (curve, look) of the metrics of a pattern that change; of several runs a colour for each run."""
    curves = [item for record in records for item in record.curves.items()]
    names = sorted({name for name, curve in curves if re.fullmatch(pattern, name) and np.ptp(curve.values)})
    terms = [name for name in names if re.fullmatch("(train|val)/loss/[^/]+", name)]
    only = [name for name in terms if sum(each.startswith(name.rpartition("/")[0]) for each in terms) == 1]
    names = [name for name in names if name not in only]  # the loss is that term
    styles, lines, several = ("solid", "dash", "dot", "dashdot"), {}, len(records) > 1
    for number, record in enumerate(records):
        for place, name in enumerate(names):
            if name in record.curves:
                colour = COLOURS[(number if several else place) % len(COLOURS)]
                look = {"color": colour, "dash": styles[place % 4] if several else "solid"}
                lines[_named(records, record, name)] = record.curves[name], look
    return lines


def line_chart(
    lines: Mapping[str, tuple[Curve, dict[str, Any]]], axis: str, logarithmic: bool | None = None
) -> go.Figure:
    """Draw curves over the steps. logarithmic: None where the values span more than a factor of 50."""
    figure = new_figure(280 + 10 * len(lines))  # the names stand above
    for order, (name, (curve, look)) in enumerate(lines.items()):
        figure.add_scatter(
            x=curve.steps,
            y=curve.values.astype(np.float32),
            mode="lines" if len(curve.steps) > 1 else "markers",
            line={"width": 1.8, **look},
            marker={"size": 9},
            zorder=-order,  # the first are on top
            name=html.escape(name, quote=False),
        )
    values = np.concatenate([curve.values for curve, _ in lines.values()])
    if logarithmic is None:
        logarithmic = bool(values.min() > 0 and values.max() > 50 * values.min())
    figure.update_xaxes(title="step", rangemode="tozero")
    return figure.update_yaxes(
        title=f"{axis}, logarithmic" if logarithmic else axis, type="log" if logarithmic else "linear"
    )


def verdict_chart(records: Sequence[Record]) -> go.Figure:
    """Draw the monitor's verdict at each step."""
    figure = new_figure(300)
    for number, record in enumerate(records):
        figure.add_scatter(
            x=[step for step, _ in record.verdicts],
            y=[name for _, name in record.verdicts],
            mode="lines+markers",
            line={"width": 1, "shape": "hv", "color": COLOURS[number % len(COLOURS)]},
            name=html.escape(record.name, quote=False),
        )
    figure.update_xaxes(title="step", rangemode="tozero")
    return figure.update_yaxes(type="category", title="verdict")


def maps(embedded: Embedded) -> list[tuple[str, str, Markup]]:
    """Return (heading, what to see, HTML) of samples in two dimensions by each network's features."""
    found = []
    for name, features in embedded.features.items():
        centred = (features - features.mean(dim=0)).double()
        kept = torch.linalg.svd(centred, full_matrices=False)
        share = float(kept.S[:2].square().sum() / kept.S.square().sum().clamp(min=1e-12))
        note = f"The first two principal components, with {share:.0%} of the variance."
        points = (kept.U * kept.S)[:, :2].numpy()
        found.append((ROWS[name].capitalize(), note, _markup(scatter(points, embedded, "principal component"))))
    if importlib.util.find_spec("umap") and len(embedded.thumbnails) > 15:
        import umap

        points = umap.UMAP(metric="cosine", random_state=0).fit_transform(embedded.features["trained"].numpy())
        note = "UMAP keeps neighbours together; distances between groups mean little."
        found.insert(1, ("Trained, by UMAP", note, _markup(scatter(points, embedded, "UMAP axis"))))
    return found


def scatter(points: np.ndarray, embedded: Embedded, axis: str) -> go.Figure:
    """Draw samples at points (m, 2), coloured by label or time; the page shows their thumbnails on hover."""
    figure = new_figure(400)
    labels = np.zeros(len(points), int) if embedded.labels is None else embedded.labels.numpy()
    palette = COLOURS if len(embedded.names) <= len(COLOURS) else qualitative.Dark24
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        out = rows < embedded.held_out
        look = {"color": palette[label % len(palette)]}
        if embedded.labels is None and embedded.starts is not None:
            ticks = np.unique(embedded.starts[np.linspace(0, len(points) - 1, 5).round().astype(int)])
            texts = [embedded.places[int(np.flatnonzero(embedded.starts == tick)[0])].split(", ")[-1] for tick in ticks]
            bar = {"tickvals": ticks, "ticktext": [text[:10] for text in texts], "thickness": 10, "outlinewidth": 0}
            look = {"color": embedded.starts, "colorscale": "Viridis", "colorbar": bar}
        figure.add_scatter(
            x=points[rows, 0].astype(np.float32),
            y=points[rows, 1].astype(np.float32),
            mode="markers",
            marker={
                "size": np.where(out, 11, 7),
                "symbol": np.where(out, "diamond", "circle"),
                "opacity": 0.9,
                "line": {"width": 0.5, "color": "rgba(128,128,128,0.6)"},
                **look,
            },
            customdata=rows,
            hoverinfo="none",
            name=html.escape(embedded.label(int(rows[0])) or "no label", quote=False),
        )
    figure.update_layout(showlegend=1 < len(figure.data) <= len(qualitative.Dark24), meta="map")
    figure.update_xaxes(title=f"first {axis}")
    return figure.update_yaxes(title=f"second {axis}", scaleanchor="x")


def confusion(embedded: Embedded, classified: Classified) -> tuple[str, str, Markup]:
    """Return (heading, what to see, HTML) of which class the classifier takes for which."""
    labels = embedded.labels[: embedded.held_out]
    true, said = labels[labels >= 0], classified.probabilities.argmax(dim=1)[labels >= 0]
    count = len(embedded.names)
    table = torch.bincount(true * count + said, minlength=count * count).view(count, count)
    errors = table.sum(dim=0) + table.sum(dim=1) - 2 * table.diagonal()
    kept = errors.topk(min(MAX_CLASSES, count)).indices.sort().values
    table = table[kept][:, kept].numpy()
    names = [html.escape(str(embedded.names[label])[:24], quote=False) for label in kept]
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure = new_figure(200 + 18 * len(kept))
    look = {"colorscale": [[0, "rgba(76,120,168,0)"], [1, "rgba(76,120,168,0.6)"]], "showscale": False}
    text = np.where(table > 0, table.astype(str), "")
    hover = "%{y}, taken for %{x}: %{z:.0%}<extra></extra>"
    figure.add_heatmap(z=share, text=text, texttemplate="%{text}", hovertemplate=hover, **look)
    ticks = {"tickvals": list(range(len(names))), "ticktext": names}  # names may begin alike
    ticks |= {"showgrid": False, "title_standoff": 14}
    figure.update_xaxes(title="taken for", **ticks).update_yaxes(title="true class", autorange="reversed", **ticks)
    part = f", of the {len(kept)} classes of most errors" if len(kept) < count else ""
    accuracy = float((true == said).double().mean())
    chance = 1.96 * (accuracy * (1 - accuracy) / max(1, len(true))) ** 0.5
    few = f", ±{chance:.0%} by chance, as they are few" if chance > 0.02 else ""
    note = (
        f"{accuracy:.1%} of {len(true):,} held-out samples are right{few}: those on the diagonal{part}. Samples in a "
        "row are of that class."
    )
    return "Confusion", note, _markup(figure)


def new_figure(height: int) -> go.Figure:
    """Return an empty figure in the look of the page."""
    return blank_figure(
        height,
        template="none",
        colorway=COLOURS,
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#777"},
        margin={"t": 10, "b": 40, "l": 60, "r": 10},
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "bgcolor": "rgba(0,0,0,0)"},
        hoverlabel={"namelength": -1},
        xaxis=AXIS,
        yaxis=AXIS,
    )


def _markup(figure: go.Figure) -> Markup:
    """Return a figure as data that the page draws once all of it is laid out."""
    drawn = figure.to_json().replace("<", "\\u003c")
    return Markup(f'<div class="chart"></div><script type="application/json">{drawn}</script>')
