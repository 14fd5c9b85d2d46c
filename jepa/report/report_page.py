"""The report of a run, or of several, as one HTML page that needs no network.

python scripts/report.py run=outputs/mine
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from markupsafe import Markup

from jepa.report import report_pictures as pictures
from jepa.report import report_plots as plots
from jepa.report import run_record
from jepa.report.formatting import number, plural
from jepa.report.html_page import render
from jepa.report.report_pictures import Learned, chosen
from jepa.report.run_files import result_values
from jepa.report.run_record import ROWS, Record, better, differences, environment, in_words
from jepa.report.sample_media import AXES
from jepa.utils.files import write_text
from jepa.utils.read_data import printable

REPORT = "report.html"  # in the run folder
MASKS = "The encoder sees the clear tokens, the predictor predicts features of the coloured blocks; dark is neither."
PREDICTIONS = (
    "A small decoder, fitted to frozen features of training samples, turns features back into inputs. Compare what it "
    "makes of the predictions where the encoder sees nothing with what it makes of the true features: it explains "
    "{1:.0%} of the variance of the input there from predictions, {0:.0%} from features. What only the latter have "
    "cannot be told from the rest of the sample; what neither has is not in the features."
)
LITTLE = 0.1, " So little is poor: predictions look like an average sample. More steps, or more data, help most."
FEATURES = (
    "The first three principal components of the tokens as red, green and blue, at several steps on the same axes: "
    "tokens of one colour are alike to the network, so parts of a kind should share one. Move over the left picture to "
    "see which tokens are most similar to the one below the pointer."
)
NEIGHBOURS = "Other samples of most similar features, with the cosine; the trained network's should be more alike."
SAME_CLASS, APART = " Green: of the same class, red: of another.", " Windows that overlap the sample are left out."
MAP = "Each point is a sample; move over it to see which. Diamonds are held out, circles were trained on. "
GROUPS = {
    "labels": "Colours are labels, which training has not seen: groups of one colour are what the network tells apart.",
    "times": "Colours are the time at which a window begins: look for seasons, drifts and windows far from others.",
    "": "Groups of points are samples that the network takes to be of a kind.",
}
LINEAR = "A linear classifier of the frozen features: which classes it confuses, and where it is surest of a wrong one."


@dataclass(frozen=True)
class Table:
    """A table of texts. folded: shown after a click."""

    heading: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: charts, each (heading, what to see, HTML), then HTML, then tables."""

    id: str
    heading: str
    note: str
    charts: list[tuple[str, str, Markup]] = field(default_factory=list)
    body: str = ""
    tables: list[Table] = field(default_factory=list)


def write_report(
    records: Sequence[Record],
    path: Path,
    *,
    trained: tuple[str, str] | None = None,
    learned: Sequence[Learned] = (),
    compared: str | None = None,
    defaults: Mapping[str, str] | None = None,
    device: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Write the page. Raise UserError where it cannot be written.

    trained: a title and a sentence, compared, learned: of a single run; see `sentences`. defaults: dotted key -> value
        of a run of the same groups. notes: sentences on what is left out.
    """
    one = records[0] if len(records) == 1 else None
    sections = [section for each in learned for section in of_samples(each)]
    note = "Click on a name to hide its line, drag over a chart to enlarge a part, double click to go back."
    sections += [probes(records), Section("training", "Training", note, charts=plots.charts(records))]
    if one is None:
        title = f"Report of {plural(len(records), 'run')}"
        summary = [" ".join(run_record.sentences(record, None, None)) for record in records]
        sections.insert(0, comparison(records))
    else:
        title = trained[0] if trained else f"Report of {one.name}"
        summary = run_record.sentences(one, trained[1] if trained else None, compared)
        sections.append(configuration(one, defaults or {}, device))
    page = render(
        "report_page.html",
        title=printable(title, keep=""),
        summary=[*summary, *notes],
        figures=run_record.key_figures(one) if one else [],
        sections=[section for section in sections if section.charts or section.body or section.tables],
        date=time.strftime("%Y-%m-%d %H:%M"),
    )
    write_text(path, page)


def probes(records: Sequence[Record]) -> Section:
    """Return what simple classifiers find in frozen features, over the steps and as a table."""
    tables = []
    for record in records:
        rows = record.rows
        names = dict.fromkeys(itertools.chain(*rows.values()))
        names = [name for name in names if name.count("/") < 3 and name != "feature_std"]
        cells = [[in_words(n), better(n), *(number(each.get(n)) for each in rows.values())] for n in names]
        if cells:
            heading = "At the end" if len(records) == 1 else record.name
            tables.append(Table(heading, ["of frozen features", "better is", *(ROWS[row] for row in rows)], cells))
    note = "What simple probes find in features. Training has helped where it beats random weights and raw input."
    return Section("probes", "Probes", note, charts=plots.probe_charts(records), tables=tables)


def of_samples(learned: Learned) -> list[Section]:
    """Return what the network makes of samples: masks, features as colours, neighbours."""
    shown, medium, found = learned.shown, learned.medium, []
    axes = AXES.get(medium.kind or "", "")
    if shown is not None and shown.masks:
        found.append(Section("masks", "Masks", MASKS + axes, body=pictures.mask_pictures(shown, medium)))
    if shown is not None and learned.decoded is not None:
        explained = learned.decoded.explained
        note = PREDICTIONS.format(*explained) + (LITTLE[1] if explained[1] < LITTLE[0] else "") + axes
        body = pictures.decoded_pictures(shown, learned.decoded, medium)
        found.append(Section("predictions", "What is predicted behind a mask", note, body=body))
    if shown is not None:
        body = pictures.feature_pictures(shown, medium)
        found.append(Section("features", "Features as colours", FEATURES + axes, body=body))
    if medium.kind is not None:
        embedded = learned.embedded
        labels, count = embedded.labels, embedded.held_out or len(embedded.thumbnails)
        queries = chosen(None if labels is None else labels[:count], 8, count)
        note = NEIGHBOURS + (SAME_CLASS if labels is not None else "") + (APART if embedded.overlap is not None else "")
        body = pictures.neighbour_pictures(embedded, queries, medium.kind)
        shares = pictures.shares_of_same_label(embedded)
        found.append(Section("neighbours", "Nearest neighbours", f"{note} Among {embedded.said}. {shares}", body=body))
        kind = "labels" if labels is not None else "times" if embedded.starts is not None else ""
        note = f"{MAP}{GROUPS[kind]} Drawn: {embedded.said}."
        found.append(Section("map", "Map", note, plots.maps(embedded), body=pictures.thumbnails(embedded)))
        if learned.classified is not None:
            charts = [plots.confusion(embedded, learned.classified)]
            worst = Markup("<h3>Held-out samples that it is surest of, and wrong</h3>")
            worst += pictures.worst_pictures(embedded, learned.classified)
            note = f"{LINEAR} It was fitted to {learned.classified.trained_on:,} training samples."
            found.append(Section("mistakes", "Mistakes", note, charts, body=worst))
    if not learned.name:
        return found
    name = printable(learned.name, keep="")
    return [replace(each, id=f"{each.id}-{name}", heading=f"{each.heading}: {name}") for each in found]


def configuration(record: Record, defaults: Mapping[str, str], device: str) -> Section:
    """Return the options of a run, where they differ from the defaults, its environment and cost."""
    changed = [[key, *values] for key, values in differences([record.options, defaults])] if defaults else []
    typed = {option.lstrip("+").partition("=")[0] for option in record.overrides}  # other values a run has found
    changed = [row for row in changed if row[1] and (row[0] in typed or row[2] not in ("auto", "null"))]
    differs = "What differs from the defaults of the chosen data, model and other groups"
    tables = [
        Table("Environment and cost", ["", ""], environment(record, device, Path(__file__).parent)),
        Table(differs, ["option", "this run", "default"], changed),
        Table("All options", ["option", "value"], list(record.options.items()), folded=True),
    ]
    note = "Versions and commit are those of the moment at which this page was written."
    return Section("configuration", "Configuration", note, tables=tables)


def comparison(records: Sequence[Record]) -> Section:
    """Return the options and the results in which runs differ."""
    names = [record.name for record in records]
    options = [[key, *values] for key, values in differences([record.options for record in records])]
    results = [{key: number(value) for key, value in result_values(record.results).items()} for record in records]
    scores = [[key, *values] for key, values in differences(results)]
    tables = [
        Table("Options that differ", ["option", *names], options, "" if options else "None."),
        Table("Results that differ", ["metric", *names], scores, "" if scores else "None."),
    ]
    return Section("comparison", "Differences", "What is the same in all runs is left out.", tables=tables)
