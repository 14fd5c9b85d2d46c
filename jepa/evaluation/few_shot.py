"""The few-shot probe: linear probes on few labels."""

from __future__ import annotations

from collections.abc import Sequence

from jepa.evaluation.features import Features
from jepa.evaluation.linear import LinearProbe
from jepa.evaluation.stratified import stratified_subset
from jepa.utils.errors import UserError


class FewShotProbe:
    """Linear probes on shares of the training labels: the low-shot protocol of I-JEPA (arXiv 2301.08243, table 2).

    Each subset has its share of every class, and at least one sample of it. The penalty is chosen on a held-out part of
    the subset; the other training samples are not used.

    shares: of the training labels, in (0, 1]. repeats: random subsets whose accuracies are averaged.
    linear: the probe to fit; None for `LinearProbe()`.

    Raises ValueError for other shares and less than one repeat.
    """

    def __init__(
        self,
        *,
        shares: Sequence[float] = (0.01, 0.05, 0.1),
        repeats: int = 3,
        linear: LinearProbe | None = None,
    ) -> None:
        if not shares or min(shares) <= 0 or max(shares) > 1:
            raise ValueError(
                f"evaluation.probes.fewshot.shares: got {list(shares)}, expected shares above 0 and at most 1 "
                "(0.01 is 1 %)"
            )
        if repeats < 1:
            raise ValueError(f"evaluation.probes.fewshot.repeats must be at least 1, got {repeats}")
        self.shares = tuple(shares)
        self.repeats = repeats
        self.linear = linear or LinearProbe()

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> dict[str, float]:
        """Return the mean accuracy over the subsets, by the share in percent: {"1": ..., "5": ..., "10": ...}."""
        return {f"{100 * share:g}": self._accuracy(train, test, share, classes, seed) for share in self.shares}

    def _accuracy(self, train: Features, test: Features, share: float, classes: int, seed: int) -> float:
        total = 0.0
        for repeat in range(self.repeats):
            subset = train[stratified_subset(train.labels, share, seed, repeat)]
            if len(subset) < 2:
                raise UserError(
                    f"evaluation.probes.fewshot.shares: {share:g} of {len(train)} training samples is {len(subset)}, "
                    "expected at least 2: use larger shares"
                )
            total += self.linear(subset, test, classes=classes, seed=seed + repeat)
        return total / self.repeats
