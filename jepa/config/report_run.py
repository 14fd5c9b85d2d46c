"""The report of a run folder: its checkpoint and data opened, and handed to `jepa.report.run_report`."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from jepa.config.build import build, to_plain
from jepa.config.command import load_config
from jepa.config.open_checkpoint import open_checkpoint
from jepa.config.overrides import quoted
from jepa.config.report_samples import learned, networks_of
from jepa.evaluation.results import compared
from jepa.monitor.verdict import Thresholds, judge
from jepa.report.formatting import shape_text
from jepa.report.run_files import RUN_FILES, run_folders
from jepa.report.run_record import PLACES, Record, read_record, without_places
from jepa.report.runs import texts_of
from jepa.trainer.precision import Precision, resolve_device
from jepa.utils.errors import UserError
from jepa.utils.lazy_import import require
from jepa.utils.read_data import printable

AXES = {1: "tokens", 2: "channels x steps", 3: "channels x height x width", 4: "channels x frames x height x width"}
"""Axes of an input -> what they are."""


def report_runs(
    folders: Sequence[Path], *, output: Path | None = None, device: str = "auto", trust: bool = False
) -> Path:
    """Write the page on a run, or on several, and return its path: report.html in the first one without `output`.

    device: of the network. trust: build also what is not jepa's own.

    Raise UserError for a folder that is no run's, for packages of the extra `report` that are missing, and for a page
    that cannot be written. What of a checkpoint or its data cannot be opened is left out, and said on the page.
    """
    for package in ("plotly", "jinja2"):
        require(package, extra="report", purpose="the report of a run")
    from jepa.report.run_report import REPORT, write_report

    for folder in folders:
        if run_folders(folder) != [folder]:
            expected = f"a run folder, with {', '.join(RUN_FILES)}"
            raise UserError(f"run={folder} {'holds no run' if folder.is_dir() else 'is no folder'}: give {expected}")
    path = output or folders[0] / REPORT
    judged = functools.partial(judge, thresholds=Thresholds())
    records = [read_record(folder, lambda history: judged(history).name) for folder in folders]
    if len({record.name for record in records}) < len(records):
        records = [dataclasses.replace(record, name=printable(str(record.path), keep="")) for record in records]
    place = resolve_device(device)
    single: dict[str, Any] = {}
    if len(records) == 1:
        single = of_single_run(records[0], device, trust)
    write_report(records, path, device=str(place), **single)
    return path


def of_single_run(record: Record, device: str, trust: bool) -> dict[str, Any]:
    """Return what the page on a single run has besides its record, as `write_report` takes it."""
    found: dict[str, Any] = {"compared": compared(record.rows), "defaults": defaults_of(record)}
    try:
        given = [f"checkpoint={quoted(str(record.path))}", f"trust={trust}".lower()]
        loaded, joined = open_checkpoint(load_config(given, config_name="evaluate"), data="splits")
        data, evaluation = build(joined, "data"), build(joined, "evaluation")
        found["trained"] = trained_on(record, loaded.model, data)
        tested = min(data.spec.num_test, evaluation.max_test_samples or data.spec.num_test)
        found["compared"] = compared(record.rows, samples=tested)
        settings, place = joined.trainer, resolve_device(device)
        precision = Precision(settings.precision, place)
        precision.choose_attention(loaded.model)
        with precision.kernels(), precision.autocast():
            networks = networks_of(loaded, data, evaluation, place, settings.seed)
            found["learned"] = [learned(each, record.path) for each in networks]
    except UserError as error:
        found["notes"] = [f"Without pictures of samples and features: {error}"]
    return found


def trained_on(record: Record, model: nn.Module, data: Any) -> tuple[str, str]:
    """Return what was trained on what, as a title and as a sentence."""
    spec, size = data.spec, sum(p.numel() for p in model.parameters() if p.requires_grad)
    source = record.options.get("data.source._target_", type(data).__name__).rpartition(".")[2]
    name = record.options.get("data.name") or Path(str(getattr(data, "root", None) or source)).name
    inputs = f"{shape_text(spec.input_shape)} ({AXES.get(len(spec.input_shape), '')})"
    if hasattr(data, "sample_rate"):
        inputs = f"{spec.input_shape[-1] / data.sample_rate:g} s at {data.sample_rate:,} Hz"
    title = f"{type(model).__name__} on {name}"
    return title, (
        f"{title}: {size / 1e6:.2f} M trainable parameters; {spec.num_train:,} training and {spec.num_test:,} held-out "
        f"samples of {inputs}, {'no labels' if spec.classes is None else f'{spec.classes} classes'}."
    )


def defaults_of(record: Record) -> dict[str, str]:
    """Return dotted key -> value of a run of the same groups without other options, as texts like those of a record."""
    if not record.options:
        return {}
    kept = r"data\.root|[\w/]+(@\w+)?"  # own data has no default
    groups = [option for option in record.overrides if re.fullmatch(kept, option.partition("=")[0])]
    try:
        defaults = load_config([option for option in groups if not option.startswith(PLACES)])
    except UserError:  # groups of another version
        defaults = load_config([])
    for key in OmegaConf.missing_keys(defaults):  # such as data.path, model.target.checkpoint
        OmegaConf.update(defaults, key, "")
    return without_places(texts_of(to_plain(defaults)) | {"data.root": ""})
