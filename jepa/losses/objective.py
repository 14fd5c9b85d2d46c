"""The objective: named terms times weights over one set of latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, TypedDict

from torch import Tensor, nn

from jepa.types import Latents


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
    """One entry of `loss.terms`: a term and the factor it enters the loss with."""

    weight: float
    term: Term


class Objective(nn.Module):
    """Weighted sum of named terms.

    terms: name -> WeightedTerm; an entry of None is left out, so that a config can remove what another brought.
    projector: called with `in_dim=` to be completed; the terms that read projections share it.
    embedding_dim: width of the embeddings.

    Raises ValueError without terms, and when terms read projections and there is no projector.
    """

    def __init__(
        self,
        *,
        terms: Mapping[str, WeightedTerm | None],
        embedding_dim: int,
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
        self.weights = {name: entry["weight"] for name, entry in present.items()}
        wanting = [name for name, term in self.terms.items() if "projections" in term.needs]
        if wanting and projector is None:
            raise ValueError(f"loss.terms {wanting} read projections: set loss.projector")
        self.projector = projector(in_dim=embedding_dim) if wanting else None

    @property
    def term_names(self) -> list[str]:
        """Names of the terms, in order."""
        return list(self.terms)

    @property
    def prevents_collapse(self) -> bool:
        """Whether some term with a positive weight does."""
        return any(term.prevents_collapse for name, term in self.terms.items() if self.weights[name] > 0)

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
