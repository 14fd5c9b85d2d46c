"""Collapse statistics: pure functions of a few rows of latents.

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
from jepa.types import Latents, Mask, WorldLatents
from jepa.utils.tensors import rankme

INPUT_SAMPLES, INPUT_VALUES = 64, 4096  # number of inputs, and of values of each, in `Rows.inputs`
DEAD = 0.01  # deviation of a feature over the root mean square of all, up to which it hardly varies
MIN_SHARED_POSITIONS = 64  # rows that share theirs, below which `monitor/target_places` is not measured


@dataclass(frozen=True)
class Rows:
    """The measured rows of a step, fp32 on the model's device; None where the method makes none.

    embeddings (V, b, D) and projections (V, b, E), of the global views. targets and predictions (n, D), where n may
    differ. positions (n,): the flat grid index of each row of targets, -1 for a token of a sample that is among the
    rows already. inputs (V, b, values), a subset of their values. moved (2, n): of world models, the squared errors of
    the prediction of a state, and of that nothing has moved.
    """

    embeddings: Tensor | None = None
    projections: Tensor | None = None
    targets: Tensor | None = None
    predictions: Tensor | None = None
    positions: Tensor | None = None
    inputs: Tensor | None = None
    moved: Tensor | None = None


@torch.no_grad()
def take_rows(latents: Latents, batch: Any, max_rows: int) -> Rows:
    """Return evenly spaced rows of a step's latents, copied, so that the latents may be freed.

    batch: the argument of the model; inputs and positions of targets are read where it has them.
    max_rows: of each kind; of embeddings at least two samples.
    """
    batch = batch if isinstance(batch, Mapping) else {}
    rows: dict[str, Tensor | None] = {"inputs": input_rows(batch)}
    if latents.embeddings is not None:
        rows["embeddings"] = view_rows(latents.embeddings, latents.global_views, max_rows)
    for kind, tensors in {"targets": latents.targets, "predictions": latents.predictions}.items():
        if not tensors:
            continue
        weights = latents.target_weights or [None] * len(tensors)
        picked = [pick_rows(t, w, max_rows // len(tensors)) for t, w in zip(tensors, weights)]
        rows[kind] = torch.cat(
            [t.flatten(0, -2)[i].float() for t, i in zip(tensors, picked) if t.shape[-1] == tensors[0].shape[-1]]
        )
        if kind == "targets":
            rows["positions"] = target_positions(batch.get("masks") or [], tensors, picked)
    return Rows(**rows, moved=motion_errors(latents) if isinstance(latents, WorldLatents) else None)


@torch.no_grad()
def motion_errors(latents: WorldLatents) -> Tensor | None:
    """Return `Rows.moved`: of rolled-out states beside the last one of the history, or of single steps."""
    true, start = latents.target_states, latents.history
    if latents.predictions:
        guess, after = latents.predictions[0].squeeze(1), latents.targets[0].squeeze(1)
        before = true[:, start - 1 : start]
    elif latents.one_step is not None:
        guess, after, before = latents.one_step, true[:, 1:], true[:, :-1]
    else:
        return None
    return torch.stack([(each - after).float().square().mean(dim=-1).flatten() for each in (guess, before)])


@torch.no_grad()
def view_rows(tensor: Tensor, views: int | None, max_rows: int) -> Tensor:
    """Return evenly spaced samples, at least two, of the first views of (V, B, D) in fp32. views: None for all."""
    tensor = tensor[:views][:max_rows]
    samples = evenly_spaced(tensor.shape[1], max(2, max_rows // len(tensor)), tensor.device)
    return tensor.index_select(1, samples).float()


def evenly_spaced(length: int, count: int, device: torch.device) -> Tensor:
    """Return at most `count` evenly spaced indices below `length`, int64."""
    count = min(count, length)
    return torch.linspace(0, length - 1, count, device=device, dtype=torch.float64).round().long()


def pick_rows(tensor: Tensor, weights: Tensor | None, count: int) -> Tensor:
    """Return the indices of evenly spaced rows of (..., D) of weight > 0, with repetitions if these are few."""
    number = tensor.shape[:-1].numel()
    indices = evenly_spaced(number, max(2, count), tensor.device)
    if weights is None or weights.shape != tensor.shape[:-1]:
        return indices
    weighted = weights.flatten().nonzero().flatten()
    return weighted[(indices * len(weighted)) // number] if len(weighted) else indices


def target_positions(masks: Sequence[Mask], targets: Sequence[Tensor], picked: Sequence[Tensor]) -> Tensor | None:
    """Return the positions of the picked rows of targets (see `Rows`); None where the masks are not those of targets.

    Target blocks overlap, and a token picked twice is equal: counted twice, it would seem explained by its position.
    """
    fits = len(masks) == len(targets) and all(m.targets.shape == t.shape[:-1] for m, t in zip(masks, targets))
    if not fits or len({t.shape[-1] for t in targets}) > 1:
        return None
    positions = torch.cat([mask.targets.flatten()[i] for mask, i in zip(masks, picked)])
    samples = torch.cat([i // mask.targets.shape[1:].numel() for mask, i in zip(masks, picked)])
    tokens, order = (samples * 2**32 + positions).sort(stable=True)
    repeated = torch.zeros_like(positions, dtype=torch.bool)
    repeated[order[1:]] = tokens[1:] == tokens[:-1]
    return positions.masked_fill(repeated, -1)


def input_rows(batch: Mapping[str, Any]) -> Tensor | None:
    """Return some values of some inputs (V, b, values), from `views` (B, V, ...) or `x` (B, ...)."""
    x = batch.get("views", batch.get("x"))
    if not isinstance(x, Tensor) or x.ndim < 2:
        return None
    x = x.flatten(2) if "views" in batch and x.ndim > 2 else x.flatten(1).unsqueeze(1)  # (B, V, values)
    x = x[evenly_spaced(x.shape[0], INPUT_SAMPLES, x.device)]
    x = x[..., evenly_spaced(x.shape[2], INPUT_VALUES, x.device)].float().transpose(0, 1)
    return x.nan_to_num()  # padding and missing values


def all_gather_row_sets(rows: Rows | None, device: torch.device) -> Rows | None:
    """Return the rows of all ranks, the same on each; None unless all ranks have rows of the same shape."""
    if not is_distributed():
        return rows
    tensors = {} if rows is None else {f.name: getattr(rows, f.name) for f in fields(rows)}
    sizes = [size for tensor in tensors.values() for size in (-1, *(() if tensor is None else tensor.shape))]
    signature = torch.tensor(([len(sizes), *sizes] + [0] * 32)[:32], device=device, dtype=torch.float32)
    limits = all_reduce_max(torch.cat([signature, -signature]))
    if rows is None or not torch.equal(limits[:32], -limits[32:]):
        return None

    def gather(tensor: Tensor, dim: int) -> Tensor:
        slots = tensor.new_zeros(get_world_size(), *tensor.shape)
        slots[get_rank()] = tensor
        return torch.cat(all_reduce_sum(slots).unbind(), dim=dim)

    samples_second = ("embeddings", "projections", "inputs", "moved")
    return replace(rows, **{n: gather(t, int(n in samples_second)) for n, t in tensors.items() if t is not None})


@torch.no_grad()
def statistics(rows: Rows) -> dict[str, float]:
    """Return metrics of the rows, without those of missing or non-finite rows.

    train/<kind>_std: standard deviation over samples or tokens, mean over features, in units of the latents.
    monitor/<kind>_spread: root of the variance over samples or tokens as a share of the mean square, 0 to 1.
    monitor/<kind>_dimensions: effective rank of the centred rows. monitor/<kind>_cosine: mean cosine of two rows.
    monitor/embedding_rank: effective rank of embeddings, not centred (RankMe). monitor/dead_features: share of the
    features of embeddings that hardly vary. monitor/view_variance: share of the variance of embeddings that lies
    between the views of a sample; of world models these are time steps. monitor/step_change: share of it that lies
    between consecutive ones, monitor/motion_predicted: share of the squared change of states that is predicted, both of
    world models. monitor/target_places: share of the variance of targets that their position explains.
    monitor/input_likeness: share of the variance of inputs that all samples share; 1 for constant data.
    monitor/input_views: variance of inputs between views of a sample over that between samples.
    """
    values: dict[str, float] = {}
    if has_finite_rows(rows.embeddings):
        flat = rows.embeddings.flatten(0, 1)
        values["train/embedding_std"] = view_deviation(rows.embeddings)
        dead = deviations(flat) <= DEAD * flat.square().mean().sqrt()
        values["monitor/dead_features"] = float(dead.float().mean())
        values |= spread_metrics("embedding", flat)
        values["monitor/embedding_rank"] = rankme(flat)
        if len(rows.embeddings) > 1:
            values["monitor/view_variance"] = view_variance(rows.embeddings)
            if rows.moved is not None:
                change = rows.embeddings.diff(dim=0).square().sum(dim=-1).mean() / 2
                values["monitor/step_change"] = float(change / flat.var(dim=0).sum().clamp(min=1e-30))
    if has_finite_rows(rows.projections):
        values["train/projection_std"] = view_deviation(rows.projections)
        values["monitor/projection_spread"] = relative_spread(rows.projections.flatten(0, 1))
    if has_finite_rows(rows.targets):
        values["train/target_std"] = float(deviations(rows.targets).mean())
        values |= spread_metrics("target", rows.targets)
        places = None if rows.positions is None else explained_variance(rows.targets, rows.positions)
        values |= {} if places is None else {"monitor/target_places": places}
    if has_finite_rows(rows.predictions):
        values["train/prediction_std"] = float(deviations(rows.predictions).mean())
    if rows.moved is not None and bool(rows.moved.isfinite().all()):
        predicted, still = rows.moved.mean(dim=1).tolist()
        values["monitor/motion_predicted"] = 1 - predicted / max(still, 1e-30)
    if has_finite_rows(rows.inputs):
        values["monitor/input_likeness"] = shared_variance(rows.inputs[0])
        if len(rows.inputs) > 1:
            values["monitor/input_views"] = view_variance(rows.inputs)
    return values


def has_finite_rows(rows: Tensor | None) -> bool:
    """Return whether there are at least two rows, all finite."""
    return rows is not None and rows.shape[-2] > 1 and bool(torch.isfinite(rows).all())


def spread_metrics(kind: str, rows: Tensor) -> dict[str, float]:
    """Return spread, dimensions and cosine of rows (n, D)."""
    return {
        f"monitor/{kind}_spread": relative_spread(rows),
        f"monitor/{kind}_dimensions": rankme(rows - rows.mean(dim=0)),
        f"monitor/{kind}_cosine": mean_pair_cosine(rows),
    }


def deviations(rows: Tensor) -> Tensor:
    """Return the standard deviation (D,) of each feature of rows (n, D)."""
    return rows.std(dim=0, correction=min(1, len(rows) - 1))


def view_deviation(rows: Tensor) -> float:
    """Return the standard deviation over samples of (V, b, D), mean over views and features."""
    return float(torch.stack([deviations(view).mean() for view in rows]).mean())


def relative_spread(rows: Tensor) -> float:
    """Return sqrt(variance / mean square) of rows (n, D), summed over features: 0 for equal rows, 1 for mean 0."""
    square = rows.square().sum(dim=-1).mean()
    return float((rows.var(dim=0, correction=0).sum() / square.clamp(min=1e-30)).sqrt())


def mean_pair_cosine(rows: Tensor) -> float:
    """Return the mean cosine over all pairs of rows (n, D), by the norm of the sum of their unit vectors."""
    unit = F.normalize(rows.double() if rows.device.type != "mps" else rows, dim=-1)
    count = len(unit)
    return float((unit.sum(dim=0).square().sum() - count) / (count * (count - 1)))


def view_variance(rows: Tensor) -> float:
    """Return the variance between views of a sample over that between samples, of (V, b, D); 1: samples are alike."""
    within = rows.var(dim=0, correction=1).sum() / rows.shape[1]
    across = rows.flatten(0, 1).var(dim=0, correction=1).sum()
    return float(within / across) if across > 0 else 1.0


def explained_variance(rows: Tensor, groups: Tensor) -> float | None:
    """Return the unbiased share of the variance of rows (n, D) that their group (n,) explains; None for too few rows.

    Rows of a group below 0 are left out.
    """
    rows, groups = rows[groups >= 0], groups[groups >= 0]
    _, group, counts = groups.unique(return_inverse=True, return_counts=True)
    means = rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, group, rows) / counts.unsqueeze(1)
    counts = counts[group]
    shared = counts > 1
    if int(shared.sum()) < MIN_SHARED_POSITIONS:
        return None
    residuals = (rows - means[group]).square().sum(dim=-1)[shared]
    residual = (residuals * counts[shared] / (counts[shared] - 1)).mean()
    total = rows.var(dim=0, correction=1).sum()
    return float(1 - residual / total) if total > 0 else None


def shared_variance(rows: Tensor) -> float:
    """Return the share of the variance of rows (b, values) that all rows share: 1 if equal, 0 if independent."""
    total = (rows - rows.mean()).square().mean()
    return max(0.0, float(1 - rows.var(dim=0, correction=1).mean() / total)) if total > 0 else 1.0
