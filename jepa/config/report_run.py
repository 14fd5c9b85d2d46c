"""The report of a run folder: its checkpoint and data are opened here, what the network makes of samples is computed
within a bounded time, and `jepa.report.report_page` draws it."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from jepa.config.build import build, to_plain
from jepa.config.command import load_config
from jepa.config.encoder_inputs import series_place
from jepa.config.open_checkpoint import open_checkpoint
from jepa.config.overrides import quoted
from jepa.data.stream import fixed_order
from jepa.evaluation.feature_source import Extraction, FeatureSource, random_model
from jepa.evaluation.features import Features, evaluation_mode
from jepa.evaluation.linear import LinearProbe
from jepa.evaluation.modalities import modality_of
from jepa.evaluation.results import compared
from jepa.monitor.verdict import Thresholds, judge
from jepa.report.formatting import shape_text
from jepa.report.report_pictures import Classified, Embedded, Learned, Shown, chosen
from jepa.report.run_files import RUN_FILES, run_folders
from jepa.report.run_record import PLACES, Record, read_record, without_places
from jepa.report.runs import texts_of
from jepa.report.sample_media import Medium
from jepa.report.token_decoder import Decoded, decode, decodes
from jepa.trainer.precision import Precision, resolve_device
from jepa.types import StepRandomness
from jepa.utils.errors import UserError
from jepa.utils.lazy_import import require
from jepa.utils.read_data import DamagedFileError, printable
from jepa.utils.tensors import nan_at_padding
from jepa.visualise import Snapshot, aligned, as_colours, principal_components, read_snapshots

AXES = {1: "tokens", 2: "channels x steps", 3: "channels x height x width", 4: "channels x frames x height x width"}
"""Axes of an input -> what they are."""

SHOWN, MAX_TOKENS, MAX_EMBEDDED, MAX_FITTED, FEWEST = 8, 4096, 1000, 4000, 128
MOST_DECODED = 50_000  # tokens that the decoder is fitted to
SECONDS = 8.0  # of one pass over samples, about
BATCH = 16


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
    from jepa.report.report_page import REPORT, write_report

    for folder in folders:
        if run_folders(folder) != [folder]:
            expected = f"a run folder, with {', '.join(RUN_FILES)}"
            raise UserError(f"run={folder} {'holds no run' if folder.is_dir() else 'is no folder'}: give {expected}")
    path = output or folders[0] / REPORT
    records = [read_record(folder, lambda history: judge(history, Thresholds()).name) for folder in folders]
    if len({record.name for record in records}) < len(records):
        records = [dataclasses.replace(record, name=printable(str(record.path), keep="")) for record in records]
    place = resolve_device(device)
    single = of_single_run(records[0], device, trust) if len(records) == 1 else {}
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


@dataclass(frozen=True)
class Networks:
    """A trained network and what it is compared with, on a data module.

    sources: of features as in the run's evaluation, by their rows of the results. step: of the trained one. seed: of
    the run. modality: of which these are, "" of data of one.
    """

    sources: dict[str, FeatureSource]
    data: Any
    step: int
    seed: int
    modality: str

    @property
    def trained(self) -> nn.Module:
        return self.sources["trained"].model

    def batches(self, split: str, limit: int) -> Iterator[dict[str, Any]]:
        """Yield batches of at most `limit` samples of a split, always the same ones, on the device."""
        device = self.sources["trained"].device
        for batch in self.data.evaluation_batches(split, batch_size=BATCH, limit=limit):
            yield {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}

    @functools.cached_property
    def seconds_per_sample(self) -> float:
        """How long it takes to read a training sample and to encode it with each network."""
        for _ in range(2):  # the first pass starts workers and kernels
            start = time.monotonic()
            for batch in self.batches("train", BATCH):
                for source in self.sources.values():
                    pooled(source, batch["x"])
        return (time.monotonic() - start) / BATCH

    def affordable(self, most: int) -> int:
        """Return how many samples can be read and encoded by all in SECONDS, at most `most`."""
        return max(FEWEST, min(most, int(SECONDS / self.seconds_per_sample)))


def networks_of(loaded: Any, data: Any, evaluation: Any, device: torch.device, seed: int) -> list[Networks]:
    """Return the networks of an opened checkpoint, on the device, for each modality of its data."""
    extraction, found = getattr(evaluation, "extraction", None) or Extraction(), []
    whole = {"trained": loaded.model.to(device), "random_init": random_model(loaded.random_init, seed, device)}
    for name, part in getattr(data, "modalities", {"": data}).items():
        models = {row: modality_of(model, name) if name else model for row, model in whole.items()}
        rows = (models | {"raw_input": None}).items()
        sources = {row: FeatureSource(row, model, part, extraction, device=device) for row, model in rows}
        found.append(Networks(sources, part, loaded.step or 0, seed, name))
    return found


def learned(networks: Networks, folder: Path) -> Learned:
    """Return what the page shows of samples. folder: of the run, with its snapshots of features."""
    spec, model = networks.data.spec, networks.trained
    split, shown = "test" if spec.num_test else "train", None
    with evaluation_mode(model), evaluation_mode(networks.sources["random_init"].model):
        first = next(iter(networks.data.evaluation_batches(split, batch_size=BATCH, limit=BATCH)))
        medium = Medium(networks.data, model.encoder, first["x"])
        embedded = embed(networks, medium)
        if medium.kind is not None and hasattr(model.encoder, "grid"):
            shown = show(networks, split, snapshots_of(folder, networks.modality))
        labelled = embedded.labels is not None and bool((embedded.labels[: embedded.held_out] >= 0).any())
        classified = classify(networks, embedded) if labelled and spec.classes else None
        decoded = decoded_samples(networks, shown, medium)
    return Learned(networks.modality, medium, embedded, classified, shown, decoded)


def decoded_samples(networks: Networks, shown: Shown | None, medium: Medium) -> Decoded | None:
    """Return what is decoded of shown samples; None of models that predict nothing behind masks, and of texts."""
    if shown is None or not shown.masks or not decodes(networks.trained, shown.x):
        return None
    limit = networks.affordable(max(FEWEST, MOST_DECODED // shown.tokens.shape[1]))
    inputs = (batch["x"] for batch in networks.batches("train", limit))
    return decode(networks.trained, shown.x, shown.masks[0], shown.grid, medium, fitted_to=inputs)


def snapshots_of(folder: Path, modality: str) -> list[Snapshot]:
    """Return the snapshots of a run's features of a modality; none where they are damaged."""
    try:
        return [snapshot for snapshot in read_snapshots(folder) if snapshot.modality == modality]
    except DamagedFileError:
        return []


def pooled(source: FeatureSource, x: Tensor) -> Tensor:
    """Return features (b, D) of inputs on the CPU."""
    return source.pool(*source.encode_pooled(x)).float().cpu()


def embed(networks: Networks, medium: Medium) -> Embedded:
    """Return many samples of both splits as vectors of each network."""
    spec, sources, data = networks.data.spec, networks.sources, getattr(networks.data, "evaluated", networks.data)
    num_train, num_test = (len(data.splits[split]) for split in ("train", "test"))  # of a mix those of one part
    most = networks.affordable(MAX_EMBEDDED // (4 if medium.kind == "video" else 1))
    held_out = min(num_test, max(most // 2, most - num_train))
    limits = {"test": held_out, "train": min(num_train, most - held_out)}
    thumbnails, labels, places, said = [], [], [], []
    features: dict[str, list[Tensor]] = {name: [] for name in sources}
    for split, limit in limits.items():
        for batch in networks.batches(split, limit) if limit else ():
            for name, source in sources.items():
                features[name].append(pooled(source, batch["x"]))
            thumbnails += [medium.thumbnail(x) if medium.kind else "" for x in batch["x"].cpu()]
            labels.append(batch["label"].cpu() if "label" in batch else torch.full((len(batch["x"]),), -1))
        places += places_in(data, split, limit)
        total = num_test if split == "test" else num_train
        part = f"all {total:,}" if total == limit else f"a random {limit:,} of {total:,}"
        said += [f"{part} {'held-out' if split == 'test' else 'training'}"] if limit else []
    series, starts = torch.tensor([place[1:] for place in places]).T
    windows, label = bool(getattr(data, "timelines", None)), torch.cat(labels)
    shares = (series[:, None] == series) & ((starts[:, None] - starts).abs() < spec.input_shape[-1])
    return Embedded(
        features={name: torch.cat(each) for name, each in features.items()},
        thumbnails=thumbnails,
        labels=label if (label >= 0).any() else None,
        names=spec.class_names or [str(label) for label in range(spec.classes or 0)],
        places=[name for name, *_ in places],
        said=f"{' and '.join(said)} samples",
        held_out=held_out,
        starts=starts.numpy() if windows else None,
        overlap=shares if windows else None,
    )


def places_in(data: Any, split: str, limit: int | None) -> list[tuple[str, int, int]]:
    """Return file, row or time of each sample that `evaluation_batches` yields; its series and first step, or 0."""
    data = getattr(data, "evaluated", data)
    bad, reading, count = data.bad[split], data.reading(split), len(data.splits[split])
    found, root = [], f"{os.path.expanduser(getattr(data, 'root', None) or '')}/"
    for index in (each for one in fixed_order(count, batch_size=BATCH, limit=limit) for each in one.indices):
        while (name := data.describe(index, reading)) in bad:  # the next one took its place
            index = (index + 1) % count
        number, start = 0, 0
        if getattr(data, "timelines", None):
            number, start, channel = series_place(data, split, index)
            line = data.timelines[number]
            parts = [line.names[channel]] if data.split_channels else []
            parts += [os.path.basename(line.path)] if len(data.timelines) > 1 else []
            parts += [f"row {start + 1:,}" if line.times is None else f"{line.times.iloc[start]:%Y-%m-%d %H:%M}"]
            name = ", ".join(parts)
        found.append((name.removeprefix(root), number, start))
    return found


def classify(networks: Networks, embedded: Embedded) -> Classified | None:
    """Return what a linear probe of training features says of samples; None where fewer than two classes are known."""
    source, found, labels = networks.sources["trained"], [], []
    for batch in networks.batches("train", networks.affordable(MAX_FITTED)):
        if "label" not in batch:
            return None
        found.append(pooled(source, batch["x"]))
        labels.append(batch["label"].cpu())
    train = Features(torch.cat(found), torch.cat(labels))
    train = train[train.labels >= 0]
    if len(train.labels.unique()) < 2:
        return None
    with torch.autocast(source.device.type, enabled=False):
        probe = LinearProbe().fit(train, classes=len(embedded.names), seed=networks.seed)
        standardised = (embedded.features["trained"][: embedded.held_out] - probe.mean) / probe.std
        logits = standardised @ probe.coefficients[:-1] + probe.coefficients[-1]
    return Classified(logits.softmax(dim=1), len(train))


def show(networks: Networks, split: str, snapshots: list[Snapshot]) -> Shown | None:
    """Return a few samples with their tokens; those of the snapshots where there are any."""
    samples = snapshots[-1].samples if snapshots else None
    limit = 8 * SHOWN if samples is None else samples.limit
    found = list(networks.batches(split if samples is None else samples.split, limit))
    x, labels = torch.cat([each["x"] for each in found]), None
    if all("label" in each for each in found):
        labels = torch.cat([each["label"] for each in found]).cpu()
    rows = chosen(labels, SHOWN, len(x)) if samples is None else samples.rows[:SHOWN].tolist()
    x = x[rows]
    trained, random = (networks.sources[name] for name in ("trained", "random_init"))
    grid = tuple(networks.trained.encoder.grid(x))
    tokens, before = (nan_at_padding(*source.encode(x)).cpu() for source in (trained, random))
    if tokens.shape[1] != int(np.prod(grid)) or tokens.shape[1] > MAX_TOKENS:
        return None
    names = networks.data.spec.class_names
    known = [-1] * len(x) if labels is None else labels[rows].tolist()
    places = places_in(networks.data, split if samples is None else samples.split, limit)
    texts = [[str(names[label] if names else label)] if label >= 0 else [] for label in known]
    return Shown(
        x=x.cpu(),
        captions=["\n".join([*text, places[row][0].rsplit("/", 1)[-1]]) for text, row in zip(texts, rows)],
        grid=grid,
        tokens=tokens,
        stages=stages(tokens, before, grid, networks.step, snapshots),
        masks=masks_of(networks, x),
    )


def stages(
    tokens: Tensor, before: Tensor, grid: tuple[int, ...], step: int, snapshots: list[Snapshot]
) -> dict[str, np.ndarray]:
    """Return name -> colours (n, *grid, 3) of the tokens at several steps, on the axes of the last.

    tokens, before: those of the trained network and of random weights, (n, N, D).
    """
    last, _ = principal_components(tokens.unflatten(1, grid), 3)
    found = {"random weights": principal_components(before.unflatten(1, grid), 3)[0]}
    for number in sorted({round(n) for n in np.linspace(0, len(snapshots) - 1, min(len(snapshots), 4))}):
        components = torch.from_numpy(snapshots[number].components.astype(np.float32))[: len(tokens), ..., :3]
        if components.shape == last.shape and snapshots[number].step != step:
            found.pop("random weights", None)
            found[f"step {snapshots[number].step:,}"] = components
    return {name: as_colours(aligned(each, last)) for name, each in (found | {f"step {step:,}": last}).items()}


def masks_of(networks: Networks, x: Tensor) -> list[Any]:
    """Return masks of inputs as training draws them; none of a model without."""
    if not hasattr(networks.trained, "mask_sampler"):
        return []
    rng = StepRandomness(seed=networks.seed, step=networks.step, total=len(x), start=0, count=len(x))
    return [mask.to("cpu") for mask in networks.trained.prepare({"x": x}, rng).get("masks", [])]
