"""The objective: a weighted sum of named terms of one set of latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from typing import TypedDict

from torch import Tensor, nn

from jepa.types import EXAMPLE_RUN, Latents, RunLength, Schedule, WorldLatents, sample_schedule

LATENTS = tuple(field.name for field in fields(WorldLatents))
EXAMPLES = {"prevents_collapse": False, "batch_statistics": False, "needs": ("predictions", "targets")}
"""Attributes of every term, with the values of one that compares tokens."""


class Term(nn.Module):
    """Base class of terms, from latents to one fp32 scalar. Any module with these attributes will do.

    prevents_collapse: whether the term is large when all samples have the same embedding. batch_statistics: whether its
    value depends on all samples of the batch at once, so that it is not the mean over micro-batches. needs: the fields
    of `Latents` that it reads.
    """

    prevents_collapse = False
    batch_statistics = False
    needs: tuple[str, ...]


class WeightedTerm(TypedDict):
    """One entry of `loss.terms`: a term and its weight, or the schedule of its weight."""

    weight: float | Schedule
    term: nn.Module | Callable[..., nn.Module]


class Objective(nn.Module):
    """Weighted sum of named terms.

    terms: name -> WeightedTerm; None removes an entry that another config has added. A partial term is built with
        `in_dim=embedding_dim, out_dim=token_values`. A term of weight 0 is computed and logged.
    embedding_dim: width of the embeddings, and of the predictions.
    token_values: number of input values of a token, None where the encoder has no `token_values`.
    projector: partial, built with `in_dim=`; shared by the terms that read projections. None: projections are the
        embeddings.

    A weight may be a schedule, whose value `set_step` sets; before, it is that of step 0.
    """

    def __init__(
        self,
        *,
        terms: Mapping[str, WeightedTerm | None],
        embedding_dim: int,
        token_values: int | None = None,
        projector: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        present = {name: entry for name, entry in terms.items() if entry is not None}
        if not present:
            raise ValueError("loss.terms is empty: give at least one term, such as loss.terms.prediction")
        for name, entry in present.items():
            if set(entry) != {"weight", "term"}:
                raise ValueError(f"loss.terms.{name} has the keys {sorted(entry)}, expected weight and term")
        self.terms = nn.ModuleDict(
            {name: build_term(name, entry["term"], embedding_dim, token_values) for name, entry in present.items()}
        )
        self.schedules: dict[str, Schedule] = {}
        self.weights: dict[str, float] = {}
        for name, entry in present.items():
            weight = entry["weight"]
            check_weight(name, weight)
            if callable(weight):
                self.schedules[name] = weight
            self.weights[name] = weight(0, EXAMPLE_RUN) if callable(weight) else weight
        # DDP waits for the gradients of every parameter, so there is no projector that no term reads.
        needed = projector is not None and "projections" in self.needs
        self.projector = projector(in_dim=embedding_dim) if needed else None

    @property
    def term_names(self) -> list[str]:
        return list(self.terms)

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of `Latents` that the terms read."""
        return tuple(field for field in LATENTS if any(field in term.needs for term in self.terms.values()))

    def require(self, made: Collection[str], *, by: str) -> None:
        """Raise ValueError unless a model makes all fields of `Latents` that the terms read.

        made: the fields that it fills; embeddings are enough for projections. by: its name.
        """
        available = {*made, *(["projections"] if "embeddings" in made else [])}
        missing = {name: [field for field in term.needs if field not in available] for name, term in self.terms.items()}
        if missing := {name: lacking for name, lacking in missing.items() if lacking}:
            reads = "; ".join(f"loss.terms.{name} reads {', '.join(lacking)}" for name, lacking in missing.items())
            without = " ".join(f"loss.terms.{name}=null" for name in missing)
            raise ValueError(
                f"{by} makes {', '.join(field for field in LATENTS if field in available)}, but {reads}: leave out "
                f"what it cannot compute ({without}), or choose another loss or model"
            )

    @property
    def prevents_collapse(self) -> bool:
        """Whether a term with a positive weight prevents collapse.

        A scheduled weight counts when it is positive at any step, although nothing prevents collapse while it is 0.
        """
        largest = self.weights | {name: max(sample_schedule(schedule)) for name, schedule in self.schedules.items()}
        return any(term.prevents_collapse and largest[name] > 0 for name, term in self.terms.items())

    def set_step(self, step: int, run_length: RunLength) -> dict[str, float]:
        """Set the weights after `step` updates; return {"weight/<term>": its weight} of the scheduled ones, to log."""
        for name, schedule in self.schedules.items():
            self.weights[name] = float(schedule(step, run_length))
        return {f"weight/{name}": self.weights[name] for name in self.schedules}

    @property
    def over_batch(self) -> list[str]:
        """What depends on all samples of the batch at once: terms, and batch norms of the projector or of terms."""
        over = {name: term for name, term in self.terms.items() if term.batch_statistics}
        terms = [f"loss.terms.{name} ({type(term).__name__})" for name, term in over.items()]
        norms = nn.modules.batchnorm._BatchNorm
        owners = (name.split(".layers")[0] for name, module in self.named_modules() if isinstance(module, norms))
        return terms + [f"the batch norm of loss.{owner}" for owner in dict.fromkeys(owners)]

    @property
    def batch_statistics(self) -> bool:
        """Whether anything depends on all samples of the batch at once."""
        return bool(self.over_batch)

    def forward(self, latents: Latents) -> dict[str, Tensor]:
        """Return {"loss": the weighted sum, "loss/<term>": each term before its weight}, fp32 scalars."""
        if latents.embeddings is not None and "projections" in self.needs:
            projections = latents.embeddings if self.projector is None else self.projector(latents.embeddings)
            latents = replace(latents, projections=projections)
        values = {name: term(latents) for name, term in self.terms.items()}
        total = sum(self.weights[name] * value for name, value in values.items())
        return {"loss": total, **{f"loss/{name}": value for name, value in values.items()}}


def grouped(projections: Tensor, views_together: bool) -> Tensor:
    """Return projections (V, B, E) as the groups of which statistics are taken: each view, or (1, V * B, E)."""
    return projections.flatten(0, 1).unsqueeze(0) if views_together else projections


def build_term(name: str, term: Term | Callable[..., Term], embedding_dim: int, token_values: int | None) -> nn.Module:
    """Return a term, built if it is partial. Raise ValueError if it is no module or lacks attributes of `Term`."""
    key = f"loss.terms.{name}.term"
    if callable(term) and not isinstance(term, nn.Module):
        try:
            term = term(in_dim=embedding_dim, out_dim=token_values)
        except TypeError as error:
            raise ValueError(
                f"{key} is partial, and completing it with in_dim=, out_dim= failed ({error}): take both, or leave out "
                "_partial_"
            ) from error
    if not isinstance(term, nn.Module):
        raise ValueError(f"{key}: got {type(term).__name__}, expected a torch.nn.Module")
    for attribute, example in EXAMPLES.items():
        if not hasattr(term, attribute):
            raise ValueError(
                f"{key}: {type(term).__name__} has no attribute {attribute}: give the class one, such as "
                f"{attribute} = {example} (see jepa.losses.objective.Term)"
            )
    unknown = [term.needs] if isinstance(term.needs, str) else [field for field in term.needs if field not in LATENTS]
    if unknown:
        raise ValueError(
            f"{key}: {type(term).__name__}.needs is {term.needs!r}, expected fields of jepa.types.WorldLatents: "
            f"{', '.join(LATENTS)}"
        )
    return term


def check_weight(name: str, weight: object) -> None:
    """Raise ValueError for a weight that is neither a finite number nor a schedule of finite numbers."""
    for value in sample_schedule(weight) if callable(weight) else [weight]:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(
                f"loss.terms.{name}.weight={value!r}: expected a number, or a schedule such as "
                "{_target_: jepa.optim.Linear, start: 0.0, final: 0.05}; loss.terms." + name + "=null leaves it out"
            )
