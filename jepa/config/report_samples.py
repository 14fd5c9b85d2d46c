"""What a trained network makes of samples, computed for the report within a bounded time."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa.data.stream import fixed_order
from jepa.evaluation.feature_source import Extraction, FeatureSource, random_model
from jepa.evaluation.features import Features, evaluation_mode
from jepa.evaluation.linear import LinearProbe
from jepa.evaluation.modalities import modality_of
from jepa.report.figures import seen_and_predicted
from jepa.report.run_samples import Classified, Embedded, Learned, Shown, chosen
from jepa.report.sample_media import Medium
from jepa.report.token_decoder import Decoded, explained, fit_decoder, place
from jepa.types import StepRandomness
from jepa.utils.read_data import DamagedFileError
from jepa.visualise.components import aligned, as_colours, principal_components
from jepa.visualise.snapshots import Snapshot, read_snapshots

SHOWN, MAX_TOKENS = 8, 4096
MAX_EMBEDDED, MAX_FITTED, FEWEST = 1000, 4000, 128
MOST_DECODED = 50_000
"""Tokens that the decoder is fitted to."""

SECONDS = 8.0
"""Of one pass over samples, about."""

BATCH = 16


@dataclass(frozen=True)
class Networks:
    """A trained network and what it is compared with, on a data module.

    extraction: which network and pooling, as in the run's evaluation. step: of the trained one. seed: of the run.
    modality: of which these are, "" of data of one.
    """

    trained: nn.Module
    random: nn.Module
    data: Any
    extraction: Extraction
    device: torch.device
    step: int
    seed: int
    modality: str = ""

    def sources(self) -> dict[str, FeatureSource]:
        """Return the sources of features, by their rows of the results."""
        models = {"trained": self.trained, "random_init": self.random, "raw_input": None}
        return {
            name: FeatureSource(name, model, self.data, self.extraction, device=self.device)
            for name, model in models.items()
        }

    @functools.cached_property
    def seconds_per_sample(self) -> float:
        """How long it takes to read a training sample and to encode it with each network."""
        for _ in range(2):  # the first pass starts workers and kernels
            start = time.monotonic()
            for batch in batches(self, "train", BATCH):
                for source in self.sources().values():
                    pooled(source, batch["x"])
        return (time.monotonic() - start) / BATCH


def networks_of(loaded: Any, data: Any, evaluation: Any, device: torch.device, seed: int) -> list[Networks]:
    """Return the networks of an opened checkpoint, on the device, for each modality of its data."""
    trained, random = loaded.model.to(device), random_model(loaded.random_init, seed, device)
    extraction = getattr(evaluation, "extraction", None) or Extraction()
    step = loaded.step or 0
    if not hasattr(data, "modalities"):
        return [Networks(trained, random, data, extraction, device, step, seed)]
    return [
        Networks(modality_of(trained, name), modality_of(random, name), part, extraction, device, step, seed, name)
        for name, part in data.modalities.items()
    ]


def learned(networks: Networks, folder: Path) -> Learned:
    """Return what the page shows of samples. folder: of the run, with its snapshots of features."""
    split = "test" if networks.data.spec.num_test else "train"
    with evaluation_mode(networks.trained), evaluation_mode(networks.random):
        first = next(iter(networks.data.evaluation_batches(split, batch_size=BATCH, limit=BATCH)))
        medium = Medium(networks.data, networks.trained.encoder, first["x"])
        embedded = embed(networks, medium)
        shown = None
        if medium.kind is not None and hasattr(networks.trained.encoder, "grid"):
            shown = show(networks, split, snapshots_of(folder, networks.modality))
        decoded = decode(networks, shown, medium) if shown is not None and shown.masks else None
        labelled = embedded.labels is not None and bool((embedded.labels[: embedded.held_out] >= 0).any())
        classified = classify(networks, embedded) if labelled and networks.data.spec.classes else None
    return Learned(networks.modality, medium, embedded, classified, shown, decoded)


def snapshots_of(folder: Path, modality: str) -> list[Snapshot]:
    """Return the snapshots of a run's features of a modality; none where they are damaged."""
    try:
        return [snapshot for snapshot in read_snapshots(folder) if snapshot.modality == modality]
    except DamagedFileError:
        return []


def affordable(networks: Networks, most: int) -> int:
    """Return how many samples can be read and encoded by both networks in SECONDS, at most `most`."""
    return max(FEWEST, min(most, int(SECONDS / networks.seconds_per_sample)))


def batches(networks: Networks, split: str, limit: int) -> Iterator[dict[str, Any]]:
    """Yield batches of at most `limit` samples of a split, always the same ones, on the device."""
    for batch in networks.data.evaluation_batches(split, batch_size=BATCH, limit=limit):
        yield {name: value.to(networks.device) for name, value in batch.items() if isinstance(value, Tensor)}


def pooled(source: FeatureSource, x: Tensor) -> Tensor:
    """Return features (b, D) of inputs on the CPU."""
    if source.model is None:
        return source._raw(x).float().cpu()
    return source.pool(*source.encode(x)).float().cpu()


def embed(networks: Networks, medium: Medium) -> Embedded:
    """Return many samples of both splits as vectors of each network."""
    spec, sources, data = networks.data.spec, networks.sources(), getattr(networks.data, "evaluated", networks.data)
    num_train, num_test = (len(data.splits[split]) for split in ("train", "test"))  # of a mix those of one part
    most = affordable(networks, MAX_EMBEDDED // (4 if medium.kind == "video" else 1))
    held_out = min(num_test, max(most // 2, most - num_train))
    limits = {"test": held_out, "train": min(num_train, most - held_out)}
    thumbnails, labels, places, said = [], [], [], []
    features: dict[str, list[Tensor]] = {name: [] for name in sources}
    for split, limit in limits.items():
        for batch in batches(networks, split, limit) if limit else ():
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
    bad, reading, samples = data.bad[split], data.reading(split), data.splits[split]
    found, root = [], f"{os.path.expanduser(getattr(data, 'root', None) or '')}/"
    for index in (each for one in fixed_order(len(samples), batch_size=BATCH, limit=limit) for each in one.indices):
        while (name := data.describe(index, reading)) in bad:  # the next one took its place
            index = (index + 1) % len(samples)
        number, start = 0, 0
        if getattr(data, "timelines", None):
            number, start = samples.places[index // samples.channels]
            line = data.timelines[number]
            start += max(0, line.ends[1] - data.spec.input_shape[-1]) if split == "test" else 0  # it looks back
            parts = [line.names[index % samples.channels]] if data.split_channels else []
            parts += [os.path.basename(line.path)] if len(data.timelines) > 1 else []
            parts += [f"row {start + 1:,}" if line.times is None else f"{line.times.iloc[start]:%Y-%m-%d %H:%M}"]
            name = ", ".join(parts)
        found.append((name.removeprefix(root), number, start))
    return found


def classify(networks: Networks, embedded: Embedded) -> Classified | None:
    """Return what a linear probe of training features says of samples; None where fewer than two classes are known."""
    source, found, labels = networks.sources()["trained"], [], []
    for batch in batches(networks, "train", affordable(networks, MAX_FITTED)):
        if "label" not in batch:
            return None
        found.append(pooled(source, batch["x"]))
        labels.append(batch["label"].cpu())
    train = Features(torch.cat(found), torch.cat(labels))
    train = train[train.labels >= 0]
    if len(train.labels.unique()) < 2:
        return None
    with torch.autocast(networks.device.type, enabled=False):
        probe = LinearProbe().fit(train, classes=len(embedded.names), seed=networks.seed)
        standardised = (embedded.features["trained"][: embedded.held_out] - probe.mean) / probe.std
        logits = standardised @ probe.coefficients[:-1] + probe.coefficients[-1]
    return Classified(logits.softmax(dim=1), len(train))


def show(networks: Networks, split: str, snapshots: list[Snapshot]) -> Shown | None:
    """Return a few samples with their tokens; those of the snapshots where there are any."""
    samples = snapshots[-1].samples if snapshots else None
    limit = 8 * SHOWN if samples is None else samples.limit
    found = list(batches(networks, split if samples is None else samples.split, limit))
    x, labels = torch.cat([each["x"] for each in found]), None
    if all("label" in each for each in found):
        labels = torch.cat([each["label"] for each in found]).cpu()
    rows = chosen(labels, SHOWN, len(x)) if samples is None else samples.rows[:SHOWN].tolist()
    x = x[rows]
    trained, random = (networks.sources()[name] for name in ("trained", "random_init"))
    grid = tuple(networks.trained.encoder.grid(x))
    tokens, before = (without_padding(*source.encode(x)) for source in (trained, random))
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


def without_padding(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Return tokens (n, N, D) on the CPU, NaN at padding."""
    return (tokens if valid is None else tokens.masked_fill(~valid.unsqueeze(-1), torch.nan)).float().cpu()


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


def decode(networks: Networks, shown: Shown, medium: Medium) -> Decoded | None:
    """Return what a small decoder makes of features and of predictions; None of models and inputs that have none."""
    model, encoder = networks.trained, networks.trained.encoder
    parts = (model, "latents"), (model, "target"), (encoder, "token_inputs")
    if not all(hasattr(*part) for part in parts) or not shown.x.is_floating_point():
        return None
    if getattr(model, "teachers", None):  # which a run is loaded without
        return None
    features, values = [], []
    most = max(FEWEST, MOST_DECODED // shown.tokens.shape[1])
    for batch in batches(networks, "train", affordable(networks, most)):
        features.append(model.target.targets(encoder, batch["x"]).float().flatten(0, 1))
        values.append(encoder.token_inputs(batch["x"]).float().flatten(0, 1))
    decoder = fit_decoder(torch.cat(features), torch.cat(values))
    x, mask = shown.x.to(networks.device), shown.masks[0].to(networks.device)
    targets, truth = model.target.targets(encoder, x), encoder.token_inputs(x).float()
    predictions = model.latents(x, [mask]).predictions[0].float()
    seen, predicted = (tokens.flatten(1).to(x.device) for tokens in seen_and_predicted(mask, shown.grid))
    places = mask.targets.flatten(1).unsqueeze(-1)
    weights = torch.ones_like(places) if mask.target_valid is None else mask.target_valid.flatten(1).unsqueeze(-1)
    mean = predictions.new_zeros(*truth.shape[:2], predictions.shape[-1] + 1)
    rows = torch.cat([predictions.flatten(1, 2), torch.ones_like(places)], dim=-1) * weights
    mean.scatter_add_(1, places.expand_as(rows), rows)
    guessed, whole = decoder(mean[..., :-1] / mean[..., -1:].clamp(min=1)), decoder(targets)
    like = medium.stem.log_mel_image(x) if medium.kind == "sound" else x
    index = places_of(encoder, like, shown.grid, medium)
    shares = explained(truth[predicted], whole[predicted]), explained(truth[predicted], guessed[predicted])
    mixed = torch.where(seen.unsqueeze(-1), truth, guessed)
    full, partly = (place(each, index, like).cpu() for each in (whole, mixed))
    return Decoded(full, partly, (~seen & ~predicted).cpu(), shares)


def places_of(encoder: nn.Module, like: Tensor, grid: tuple[int, ...], medium: Medium) -> Tensor:
    """Return 1 + the flat place in an input that each value of each token is of, (N, P); 0 for padding."""
    numbers = torch.arange(1, like[0].numel() + 1, device=like.device).view_as(like[:1])
    if medium.kind == "sound":  # its tokens are of the spectrogram
        patches = numbers[0, 0].unflatten(1, (grid[1], -1)).unflatten(0, (grid[0], -1))
        return patches.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return encoder.token_inputs(numbers.float())[0].long()
