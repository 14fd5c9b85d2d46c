"""What latents tell of collapse: pure functions of a few rows of them.

n rows (tokens or samples)    V views    b samples    D width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.distributed.collectives import all_reduce_max, all_reduce_sum, get_rank, get_world_size, is_distributed
from jepa.types import Latents, Mask
from jepa.utils.feature_rank import rankme

INPUT_SAMPLES, INPUT_VALUES = 64, 4096
"""Samples, and values of each, that are looked at of the inputs."""
FEWEST_OF_A_PLACE = 64
"""Rows that share their place with others, below which nothing is said about places."""


@dataclass(frozen=True)
class Rows:
    """The rows of a step that are looked at, fp32 on the model's device; None where the method makes none.

    embeddings (V, b, D), of the views that show the whole of a sample; projections (V, b, E), of the same. targets and
    predictions (n, D), each of another n perhaps. places (n,): the flat grid index of each row of targets, -1 where the
    same token of the same sample stands among them already. inputs (V, b, values), a subset of their values.
    """

    embeddings: Tensor | None = None
    projections: Tensor | None = None
    targets: Tensor | None = None
    predictions: Tensor | None = None
    places: Tensor | None = None
    inputs: Tensor | None = None


@torch.no_grad()
def take_rows(latents: Latents, batch: Any, max_rows: int) -> Rows:
    """Evenly spaced rows of a step's latents, copied, so that the latents may be freed.

    batch: what the model was called with; inputs and the places of targets are read where it has them.
    max_rows: of each kind; of embeddings at least two samples.
    """
    batch = batch if isinstance(batch, Mapping) else {}
    embeddings = latents.embeddings
    if embeddings is not None:
        embeddings = view_rows(embeddings, latents.global_views, max_rows)
    targets, places = None, None
    weights = latents.target_weights or [None] * len(latents.targets or latents.predictions or [])
    if latents.targets:
        masks = batch.get("masks") or []
        picked = [pick(t, w, max_rows // len(latents.targets)) for t, w in zip(latents.targets, weights)]
        targets = joined_rows(latents.targets, picked)
        places = places_of(masks, latents.targets, picked)
    predictions = None
    if latents.predictions:
        picked = [pick(p, w, max_rows // len(latents.predictions)) for p, w in zip(latents.predictions, weights)]
        predictions = joined_rows(latents.predictions, picked)
    return Rows(
        embeddings=embeddings, targets=targets, predictions=predictions, places=places, inputs=input_rows(batch)
    )


@torch.no_grad()
def view_rows(tensor: Tensor, views: int | None, max_rows: int) -> Tensor:
    """Evenly spaced samples, at least two, of the first views of (V, B, D), copied in fp32. views: None for all."""
    tensor = tensor[:views][:max_rows]
    samples = spaced(tensor.shape[1], max(2, max_rows // len(tensor)), tensor.device)
    return tensor.index_select(1, samples).float()


def spaced(length: int, count: int, device: torch.device) -> Tensor:
    """At most `count` evenly spaced indices below `length`, int64."""
    count = min(count, length)
    return torch.linspace(0, length - 1, count, device=device, dtype=torch.float64).round().long()


def pick(tensor: Tensor, weights: Tensor | None, count: int) -> Tensor:
    """Indices of evenly spaced rows of (..., D) among those that count; as many as if all did, if need be twice."""
    number = tensor.shape[:-1].numel()
    indices = spaced(number, max(2, count), tensor.device)
    if weights is None or weights.shape != tensor.shape[:-1]:
        return indices
    counting = weights.flatten().nonzero().flatten()
    return counting[(indices * len(counting)) // number] if len(counting) else indices


def joined_rows(tensors: Sequence[Tensor], picked: Sequence[Tensor]) -> Tensor:
    """The picked rows of several tensors (..., D); of those of the first one's width."""
    width = tensors[0].shape[-1]
    return torch.cat([t.flatten(0, -2)[i].float() for t, i in zip(tensors, picked) if t.shape[-1] == width])


def places_of(masks: Sequence[Mask], targets: Sequence[Tensor], picked: Sequence[Tensor]) -> Tensor | None:
    """Places of the picked rows of targets, see `Rows`; None where masks do not tell.

    Target blocks overlap, and what is picked twice is alike: counted, it would pass for what the place explains.
    """
    told = len(masks) == len(targets) and all(m.targets.shape == t.shape[:-1] for m, t in zip(masks, targets))
    if not told or len({t.shape[-1] for t in targets}) > 1:
        return None
    places = torch.cat([mask.targets.flatten()[i] for mask, i in zip(masks, picked)])
    samples = torch.cat([i // mask.targets.shape[1:].numel() for mask, i in zip(masks, picked)])
    tokens, order = (samples * 2**32 + places).sort(stable=True)
    again = torch.zeros_like(places, dtype=torch.bool)
    again[order[1:]] = tokens[1:] == tokens[:-1]
    return places.masked_fill(again, -1)


def input_rows(batch: Mapping[str, Any]) -> Tensor | None:
    """Some values of some inputs (V, b, values), from `views` (B, V, ...) or `x` (B, ...)."""
    x = batch.get("views", batch.get("x"))
    if not isinstance(x, Tensor) or x.ndim < 2:
        return None
    x = x.flatten(2) if "views" in batch and x.ndim > 2 else x.flatten(1).unsqueeze(1)  # (B, V, values)
    x = x[spaced(x.shape[0], INPUT_SAMPLES, x.device)]
    x = x[..., spaced(x.shape[2], INPUT_VALUES, x.device)].float().transpose(0, 1)
    return x.nan_to_num()  # padding and missing values


def of_all_ranks(rows: Rows | None, device: torch.device, widest: int = 8) -> Rows | None:
    """The rows of all ranks together, the same on each; None where not all ranks have rows of the same shape."""
    if not is_distributed():
        return rows
    given = {} if rows is None else {f.name: getattr(rows, f.name) for f in fields(rows)}
    sizes = [size for tensor in given.values() for size in (-1, *(() if tensor is None else tensor.shape))]
    signature = torch.tensor(([len(sizes), *sizes] + [0] * 32)[:32], device=device, dtype=torch.float32)
    limits = all_reduce_max(torch.cat([signature, -signature]))
    if rows is None or not torch.equal(limits[:32], -limits[32:]):
        return None

    def gathered(tensor: Tensor, dim: int) -> Tensor:
        slots = tensor.new_zeros(get_world_size(), *tensor.shape)
        slots[get_rank()] = tensor
        return torch.cat(all_reduce_sum(slots).unbind(), dim=dim)

    along = {"embeddings": 1, "projections": 1, "inputs": 1}
    return replace(rows, **{n: gathered(t, along.get(n, 0)) for n, t in given.items() if t is not None})


@torch.no_grad()
def statistics(rows: Rows) -> dict[str, float]:
    """Metrics of the rows; what cannot be said is left out, as are rows that are not finite.

    train/<kind>_std: standard deviation over samples or tokens, mean over features, in units of the latents.
    monitor/<kind>_spread: root of the variance over samples or tokens as a share of the mean square, 0 to 1.
    monitor/<kind>_dimensions: effective rank around their mean, which is not counted. monitor/<kind>_cosine: mean
        cosine of two of them. monitor/embedding_rank: effective rank of embeddings, mean included (RankMe).
    monitor/dead_features: share of the features of embeddings that hardly vary.
    monitor/view_variance: share of the variance of embeddings that lies between the views of a sample.
    monitor/target_places: share of the variance of targets that their place explains, whatever the sample.
    monitor/input_likeness: share of the variance of inputs that is alike in all samples; 1 for constant data.
    monitor/input_views: how different views of a sample are, in units of how different samples are; 1 is alike.
    """
    values: dict[str, float] = {}
    if usable(rows.embeddings):
        flat = rows.embeddings.flatten(0, 1)
        values["train/embedding_std"] = view_deviation(rows.embeddings)
        values["monitor/dead_features"] = dead_share(flat)
        values |= shape_of("embedding", flat)
        values["monitor/embedding_rank"] = rankme(flat)
        if len(rows.embeddings) > 1:
            values["monitor/view_variance"] = within_share(rows.embeddings)
    if usable(rows.projections):
        values["train/projection_std"] = view_deviation(rows.projections)
        values["monitor/projection_spread"] = relative_spread(rows.projections.flatten(0, 1))
    if usable(rows.targets):
        values["train/target_std"] = float(deviations(rows.targets).mean())
        values |= shape_of("target", rows.targets)
        places = None if rows.places is None else explained_share(rows.targets, rows.places)
        values |= {} if places is None else {"monitor/target_places": places}
    if usable(rows.predictions):
        values["train/prediction_std"] = float(deviations(rows.predictions).mean())
    if usable(rows.inputs):
        values["monitor/input_likeness"] = likeness(rows.inputs[0])
        if len(rows.inputs) > 1:
            values["monitor/input_views"] = within_share(rows.inputs)
    return values


def usable(rows: Tensor | None) -> bool:
    """Whether there are at least two finite rows."""
    return rows is not None and rows.shape[-2] > 1 and bool(torch.isfinite(rows).all())


def shape_of(kind: str, rows: Tensor) -> dict[str, float]:
    """Spread, dimensions and cosine of rows (n, D)."""
    return {
        f"monitor/{kind}_spread": relative_spread(rows),
        f"monitor/{kind}_dimensions": rankme(rows - rows.mean(dim=0)),
        f"monitor/{kind}_cosine": pair_cosine(rows),
    }


def deviations(rows: Tensor) -> Tensor:
    """Standard deviation (D,) of each feature of rows (n, D)."""
    return rows.std(dim=0, correction=min(1, len(rows) - 1))


def view_deviation(rows: Tensor) -> float:
    """Standard deviation over samples of (V, b, D), mean over views and features."""
    return float(torch.stack([deviations(view).mean() for view in rows]).mean())


def relative_spread(rows: Tensor) -> float:
    """Root of the variance of rows (n, D), summed over features, per mean square: 0 constant, 1 without a mean."""
    square = rows.square().sum(dim=-1).mean()
    return float((rows.var(dim=0, correction=0).sum() / square.clamp(min=1e-30)).sqrt())


def pair_cosine(rows: Tensor) -> float:
    """Mean cosine over all pairs of rows (n, D): by the length of the sum of their unit vectors."""
    unit = F.normalize(rows.double() if rows.device.type != "mps" else rows, dim=-1)
    count = len(unit)
    return float((unit.sum(dim=0).square().sum() - count) / (count * (count - 1)))


def dead_share(rows: Tensor, least: float = 0.01) -> float:
    """Share of the features of rows (n, D) that deviate by less than `least` times the rows' root mean square."""
    return float((deviations(rows) <= least * rows.square().mean().sqrt()).float().mean())


def within_share(rows: Tensor) -> float:
    """Variance between the V rows of a sample, in units of that between samples, of (V, b, D); 1: no sample differs."""
    within = rows.var(dim=0, correction=1).sum()
    across = rows.flatten(0, 1).var(dim=0, correction=1).sum()
    samples = rows.shape[1]
    within = within / samples
    return float(within / across) if across > 0 else 1.0


def explained_share(rows: Tensor, groups: Tensor) -> float | None:
    """Share of the variance of rows (n, D) that their group (n,) explains, without bias; None for too few in groups.

    Rows of a group below 0 are left out.
    """
    rows, groups = rows[groups >= 0], groups[groups >= 0]
    _, group, counts = groups.unique(return_inverse=True, return_counts=True)
    means = rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, group, rows) / counts.unsqueeze(1)
    counts = counts[group]
    shared = counts > 1
    if int(shared.sum()) < FEWEST_OF_A_PLACE:
        return None
    residues = (rows - means[group]).square().sum(dim=-1)[shared]
    residue = (residues * counts[shared] / (counts[shared] - 1)).mean()
    whole = rows.var(dim=0, correction=1).sum()
    return float(1 - residue / whole) if whole > 0 else None


def likeness(rows: Tensor) -> float:
    """Share of the variance of all values of rows (b, values) that is the same in each row; 1 for equal rows.

    0 for rows that have nothing in common, however few they are.
    """
    whole = (rows - rows.mean()).square().mean()
    return max(0.0, float(1 - rows.var(dim=0, correction=1).mean() / whole)) if whole > 0 else 1.0
