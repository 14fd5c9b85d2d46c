"""Evaluation of pairs: every modality by itself, and whether one finds the other.

    python train.py model=crossmodal data=paired

Metrics of a modality are named after it (`written/linear`), those of retrieval after the direction
(`retrieval/written_to_spoken/recall_at_1`), with what chance would give beside each.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.evaluation.features import check_finite, evaluation_mode
from jepa.evaluation.probe import needs
from jepa.utils.errors import UserError
from jepa.utils.random import seeded
from jepa.utils.tensors import token_valid


class CrossModalRetrieval:
    """Recall at k between the modalities of test pairs, by cosine similarity where the loss compares them.

    The share of queries for which one of the k nearest of the other modality has the query's label: its class, or,
    where pairs are single items, the item. Raw input has no common space and no such row.

    at: the k, each at least 1; ValueError for less.
    """

    needs = "pairs"
    uses_seed = False

    def __init__(self, *, at: Sequence[int] = (1, 5, 10)) -> None:
        if not at or min(at) < 1:
            raise ValueError(f"evaluation.probes.retrieval.at: got {list(at)}, expected numbers from 1")
        self.at = tuple(at)

    def __call__(self, embeddings: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
        """{"a_to_b/recall_at_1": ..., "a_to_b/recall_at_1_chance": ...} of name -> (N, E) and labels (N,)."""
        scores = {}
        same = labels[:, None] == labels
        for one, queries in embeddings.items():
            for other, bank in embeddings.items():
                if one == other:
                    continue
                order = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).argsort(dim=1, descending=True)
                hits = same.gather(1, order)
                for k in self.at:
                    scores[f"{one}_to_{other}/recall_at_{k}"] = float(hits[:, :k].any(dim=1).float().mean())
                    scores[f"{one}_to_{other}/recall_at_{k}_chance"] = chance_of(same.sum(dim=1), len(labels), k)
        return scores


def chance_of(right: Tensor, total: int, k: int) -> float:
    """Mean probability that one of k of `total` drawn at random is among the `right` (N,) ones of each query."""
    missed = torch.ones(len(right), dtype=torch.float64)
    for drawn in range(min(k, total)):
        missed *= ((total - drawn - right.cpu().double()) / (total - drawn)).clamp(min=0)
    return float((1 - missed).mean())


class ModalityView(nn.Module):
    """One modality of a model of several, as evaluation takes models: inputs are tensors."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.encoder = _ModalityEncoder(model.encoder, name)

    def encode_target(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Features (B, N, D) of the network that makes the targets."""
        return self.model.encode_target({self.name: x}, layers=layers)


class _ModalityEncoder(nn.Module):
    def __init__(self, encoder: nn.Module, name: str) -> None:
        super().__init__()
        self.encoder, self.name = encoder, name
        self.embed_dim, self.depth = encoder.embed_dim, encoder.depth

    def token_valid(self, x: Tensor) -> Tensor | None:
        """Which tokens hold more than padding."""
        return token_valid(self.encoder, {self.name: x})

    def forward(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Features (B, N, D)."""
        return self.encoder({self.name: x}, layers=layers)


def modality_of(model: nn.Module, name: str) -> nn.Module:
    """One modality of a model: of a model that is one for each (`model.tasks`), that one."""
    tasks = getattr(model, "tasks", None)
    return tasks[model.model_of_task[name]] if isinstance(tasks, nn.ModuleDict) else ModalityView(model, name)


def is_paired(data: Any) -> bool:
    """Whether data are several in one: they have `modalities`, name -> data."""
    return isinstance(getattr(data, "modalities", None), Mapping)


def evaluate_pairs(
    evaluation: Any,
    model: nn.Module | None,
    data: Any,
    *,
    random_init: Callable[..., nn.Module],
    device: torch.device,
    seed: int,
) -> dict[str, dict[str, float]]:
    """What `FrozenEvaluation` says of each modality, and of retrieval between them; row -> metric -> value.

    Features are not kept in a cache, whose names would not tell modalities apart.
    """
    results: dict[str, dict[str, float]] = {}
    spread: dict[str, dict[str, float]] = {}
    made: dict[int, nn.Module] = {}

    def fresh(seed: int = seed) -> nn.Module:
        if seed not in made:
            with seeded(seed, "evaluation/random_init"):
                made.clear()
                takes_seed = "seed" in inspect.signature(random_init).parameters
                made[seed] = (random_init(seed=seed) if takes_seed else random_init()).to(device)
        return made[seed]

    for name, single in data.modalities.items():
        rows = of_modality(evaluation, name)(
            None if model is None else modality_of(model, name),
            single,
            random_init=functools.partial(_fresh_view, fresh, name),
            device=device,
            seed=seed,
        )
        for row, metrics in rows.items():
            results.setdefault(row, {}).update({f"{name}/{metric}": value for metric, value in metrics.items()})
        for row, metrics in of_modality(evaluation, name).spread.items():
            spread.setdefault(row, {}).update({f"{name}/{metric}": value for metric, value in metrics.items()})
    for probe_name, probe in evaluation.probes.items():
        if needs(probe) == "pairs" and hasattr(data, "evaluation_batches"):  # sets side by side are no pairs
            for row, network in (("trained", model), ("random_init", fresh())):
                if network is not None:
                    scores = retrieve(probe, network, data, evaluation.extraction, device=device, name=row)
                    results[row].update({f"{probe_name}/{metric}": value for metric, value in scores.items()})
    evaluation.spread = spread
    return results


def online_pairs(evaluation: Any, model: nn.Module, data: Any, *, device: torch.device, seed: int) -> dict[str, float]:
    """What `FrozenEvaluation.online` says of each modality."""
    scores = {}
    for name, single in data.modalities.items():
        found = of_modality(evaluation, name).online(modality_of(model, name), single, device=device, seed=seed)
        scores |= {f"{name}/{metric}": value for metric, value in found.items()}
    return scores


def of_modality(evaluation: Any, name: str) -> Any:
    """The evaluation of one modality: a copy that remembers baselines of its own."""
    kept = evaluation.__dict__.setdefault("_of_modality", {})
    if name not in kept:
        kept[name] = copy.copy(evaluation)
        kept[name].spread, kept[name]._baselines, kept[name]._baselines_of = {}, {}, (None, 0)
        # Augmented views of a single modality are no input of a model of several.
        alone = {n: probe for n, probe in evaluation.probes.items() if needs(probe) not in ("pairs", "views")}
        kept[name].probes = alone
        kept[name].__dict__.pop("_of_modality", None)
    return kept[name]


def retrieve(
    probe: CrossModalRetrieval, model: nn.Module, data: Any, extraction: Any, *, device: torch.device, name: str
) -> dict[str, float]:
    """A probe's recall on the test pairs. Raises UserError where the model cannot embed modalities alike."""
    if not hasattr(model, "embed"):
        raise UserError(
            f"evaluation.probes: {type(model).__name__} has no `embed` that puts modalities into one space: remove the "
            "probe with evaluation.probes.retrieval=null"
        )
    found: dict[str, list[Tensor]] = {}
    labels = []
    with evaluation_mode(model):
        for batch in data.evaluation_batches("test", batch_size=extraction.batch_size, limit=extraction.limit("test")):
            x = {modality: values.to(device, non_blocking=True) for modality, values in batch["x"].items()}
            for modality, embedding in model.embed(x, network=extraction.network).items():
                found.setdefault(modality, []).append(embedding.float())
            labels.append(batch["label"].to(device))
    embeddings = {modality: torch.cat(parts) for modality, parts in found.items()}
    for modality, embedding in embeddings.items():
        check_finite(embedding, f"{name}, {modality} of the test pairs")
    with torch.autocast(device.type, enabled=False):
        return probe(embeddings, torch.cat(labels))


def _fresh_view(fresh: Callable[..., nn.Module], name: str, seed: int = 0) -> nn.Module:
    return modality_of(fresh(seed), name)
