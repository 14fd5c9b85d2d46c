"""Evaluation of data with several modalities: each modality by itself, and retrieval between them.

    python train.py model=crossmodal data=paired

Metrics of a modality are named after it (`written/linear`), those of retrieval after the direction
(`retrieval/written_to_spoken/recall_at_1`), each beside its value by chance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from jepa.evaluation.feature_source import random_model
from jepa.evaluation.features import check_finite, evaluation_mode
from jepa.evaluation.nearest_neighbours import CrossModalRetrieval
from jepa.evaluation.probe import needs
from jepa.utils.errors import UserError
from jepa.utils.tensors import token_valid


class ModalityView(nn.Module):
    """One modality of a model of several, as evaluation takes models: inputs are tensors."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.encoder = _ModalityEncoder(model.encoder, name)

    def encode_target(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return features (B, N, D) of the network that makes the targets."""
        return self.model.encode_target({self.name: x}, layers=layers)


class _ModalityEncoder(nn.Module):
    def __init__(self, encoder: nn.Module, name: str) -> None:
        super().__init__()
        self.encoder, self.name = encoder, name
        self.embed_dim, self.depth = encoder.embed_dim, encoder.depth

    def grid(self, x: Tensor) -> tuple[int, ...]:
        return self.encoder.grid({self.name: x})

    def token_valid(self, x: Tensor) -> Tensor | None:
        return token_valid(self.encoder, {self.name: x})

    def forward(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        return self.encoder({self.name: x}, layers=layers)


def modality_of(model: nn.Module, name: str) -> nn.Module:
    """Return one modality of a model: the task of a model with one task per modality (`model.tasks`), else a view."""
    tasks = getattr(model, "tasks", None)
    return tasks[model.model_of_task[name]] if isinstance(tasks, nn.ModuleDict) else ModalityView(model, name)


def evaluate_pairs(
    evaluation: Any,
    model: nn.Module | None,
    data: Any,
    *,
    random_init: Callable[..., nn.Module],
    device: torch.device,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Return the metrics of `FrozenEvaluation` for each modality, and of retrieval between them; sets `std`.

    Features are not cached, as the names of the cache do not include the modality.
    """
    results: dict[str, dict[str, float]] = {}
    std: dict[str, dict[str, float]] = {}

    @functools.lru_cache(maxsize=1)  # one at a time in memory
    def random_of(seed: int) -> nn.Module:
        return random_model(random_init, seed, device)

    for name, single in data.modalities.items():
        part = of_modality(evaluation, name)
        rows = part(
            None if model is None else modality_of(model, name),
            single,
            random_init=lambda seed=0, name=name: modality_of(random_of(seed), name),
            device=device,
            seed=seed,
        )
        for target, source in ((results, rows), (std, part.std)):
            for row, metrics in source.items():
                target.setdefault(row, {}).update({f"{name}/{metric}": value for metric, value in metrics.items()})
    for probe_name, probe in evaluation.probes.items():
        if needs(probe) == "pairs" and hasattr(data, "evaluation_batches"):  # unpaired sets have none
            for row, network in (("trained", model), ("random_init", random_of(seed))):
                if network is not None:
                    scores = retrieve(probe, network, data, evaluation.extraction, device=device, name=row)
                    results[row].update({f"{probe_name}/{metric}": value for metric, value in scores.items()})
    evaluation.std = std
    return results


def quick_pairs(evaluation: Any, model: nn.Module, data: Any, *, device: torch.device, seed: int) -> dict[str, float]:
    """Return the metrics of `FrozenEvaluation.quick` for each modality."""
    scores = {}
    for name, single in data.modalities.items():
        quick = of_modality(evaluation, name).quick(modality_of(model, name), single, device=device, seed=seed)
        scores |= {f"{name}/{metric}": value for metric, value in quick.items()}
    return scores


def of_modality(evaluation: Any, name: str) -> Any:
    """Return the evaluation of one modality: a copy with baselines of its own."""
    if name not in evaluation.of_modality:
        # Augmented views of a single modality are no input of a model of several.
        probes = {n: probe for n, probe in evaluation.probes.items() if needs(probe) not in ("pairs", "views")}
        evaluation.of_modality[name] = part = replace(evaluation, probes=probes)
        part._warned = evaluation._warned  # each warning once
    return evaluation.of_modality[name]


def retrieve(
    probe: CrossModalRetrieval, model: nn.Module, data: Any, extraction: Any, *, device: torch.device, name: str
) -> dict[str, float]:
    """Return a probe's recall on the test pairs. Raises UserError for a model without `embed`."""
    if not hasattr(model, "embed"):
        raise UserError(
            f"evaluation.probes: {type(model).__name__} has no `embed` that puts modalities into one space: remove the "
            "probe with evaluation.probes.retrieval=null"
        )
    parts: dict[str, list[Tensor]] = {}
    labels = []
    with evaluation_mode(model):
        for batch in data.evaluation_batches("test", batch_size=extraction.batch_size, limit=extraction.limit("test")):
            x = {modality: values.to(device, non_blocking=True) for modality, values in batch["x"].items()}
            for modality, embedding in model.embed(x, network=extraction.network).items():
                parts.setdefault(modality, []).append(embedding.float())
            labels.append(batch["label"].to(device))
    embeddings = {modality: torch.cat(batches) for modality, batches in parts.items()}
    for modality, embedding in embeddings.items():
        check_finite(embedding, f"{name}, {modality} of the test pairs")
    with torch.autocast(device.type, enabled=False):
        return probe(embeddings, torch.cat(labels))
