"""The objective: named terms times weights over one set of latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, TypedDict

from torch import Tensor, nn

from jepa.types import Horizon, Latents, Schedule
from jepa.utils.schedules import SAMPLE_RUN, values_over_a_run


class Term(Protocol):
    """A module from latents to one fp32 scalar.

    prevents_collapse: the term is large when all samples get the same embedding. batch_statistics: its value
    depends on the whole batch at once, so that micro-batches do not add up to it. needs: the fields of `Latents`
    it reads.
    """

    prevents_collapse: bool
    batch_statistics: bool
    needs: tuple[str, ...]

    def __call__(self, latents: Latents) -> Tensor: ...


class WeightedTerm(TypedDict):
    """One entry of `loss.terms`: a term and the factor, or schedule of the factor, it enters the loss with."""

    weight: float | Schedule
    term: Term


class Objective(nn.Module):
    """Weighted sum of named terms.

    terms: name -> WeightedTerm; an entry of None is left out, so that a config can remove what another brought.
    projector: called with `in_dim=` to be completed; the terms that read projections share it.
    embedding_dim: width of the embeddings.

    A weight may be a schedule; `set_step` puts its value in force, until then it is the one a run starts with.

    Raises ValueError without terms, for a weight that is neither a finite number nor a schedule, and when terms
    read projections and there is no projector.
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
        self.terms = nn.ModuleDict({name: entry["term"] for name, entry in present.items()})
        self.schedules: dict[str, Schedule] = {}
        self.weights: dict[str, float] = {}
        for name, entry in present.items():
            weight = entry["weight"]
            check_weight(name, weight)
            if callable(weight):
                self.schedules[name] = weight
                weight = weight(0, SAMPLE_RUN)
            self.weights[name] = weight
        wanting = [name for name, term in self.terms.items() if "projections" in term.needs]
        if wanting and projector is None:
            raise ValueError(f"loss.terms {wanting} read projections: set loss.projector")
        self.projector = projector(in_dim=embedding_dim) if wanting else None

    @property
    def term_names(self) -> list[str]:
        """Names of the terms, in order."""
        return list(self.terms)

    @property
    def needs(self) -> set[str]:
        """The fields of `Latents` that the terms read."""
        return {name for term in self.terms.values() for name in term.needs}

    def require(self, made, by) -> None:
        pass

    @property
    def prevents_collapse(self) -> bool:
        """Whether some term with a positive weight does.

        A scheduled weight counts when it is positive at any time of a run. That refuses what cannot work and no
        more: while the weight is 0, nothing of that term holds the embeddings apart.
        """
        return any(term.prevents_collapse for name, term in self.terms.items() if self._ever_positive(name))

    def _ever_positive(self, name: str) -> bool:
        if name in self.schedules:
            return max(values_over_a_run(self.schedules[name])) > 0
        return self.weights[name] > 0

    def set_step(self, step: int, horizon: Horizon) -> dict[str, float]:
        """Put in force the weights of a step; `step` counts the updates made before.

        Gives {"weight/<term>": its weight} of the scheduled terms, to log.
        """
        for name, schedule in self.schedules.items():
            self.weights[name] = float(schedule(step, horizon))
        return {f"weight/{name}": self.weights[name] for name in self.schedules}

    @property
    def batch_statistics(self) -> bool:
        """Whether micro-batches do not add up to the batch: a term or the projector looks at all samples at once."""
        return any(term.batch_statistics for term in self.terms.values()) or any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules()
        )

    def forward(self, latents: Latents) -> dict[str, Tensor]:
        """{"loss": the weighted sum, "loss/<term>": each term before its weight}, fp32 scalars."""
        if self.projector is not None:
            latents = replace(latents, projections=self.projector(latents.embeddings))
        values = {name: term(latents) for name, term in self.terms.items()}
        total = sum(self.weights[name] * value for name, value in values.items())
        return {"loss": total, **{f"loss/{name}": value for name, value in values.items()}}


def check_weight(name: str, weight: object) -> None:
    """Raise ValueError for a weight that is neither a finite number nor a schedule of finite numbers."""
    values = values_over_a_run(weight) if callable(weight) else [weight]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(
                f"loss.terms.{name}.weight={value!r}: expected a number, or a schedule such as "
                "{_target_: jepa.optim.Linear, start: 0.0, final: 0.05}; loss.terms." + name + "=null leaves it out"
            )
