"""The linear probe, multinomial logistic regression on standardised features, and the same on few labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.evaluation.features import Features, stratified_holdout, stratified_subset
from jepa.evaluation.logistic import fit_logistic
from jepa.utils.errors import UserError, check_at_least

log = logging.getLogger("jepa")


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted probe: mean and std (D,), coefficients (D + 1, C), the intercept last, and the penalty."""

    mean: Tensor
    std: Tensor
    coefficients: Tensor
    penalty: float

    def logits(self, x: Tensor) -> Tensor:
        """Return a score for each class (..., C) of features x (..., D)."""
        return _design(x, self.mean, self.std) @ self.coefficients

    def predict(self, x: Tensor) -> Tensor:
        """Return class indices (...) of features x (..., D)."""
        return self.logits(x).argmax(dim=-1)


class LinearProbe:
    """Logistic regression whose L2 penalty is chosen on a held-out part of the training split.

    It is then fitted to all training samples. Neither the standardisation nor the penalty depends on the test samples.

    penalties: candidates, all fitted at once; the loss is mean cross-entropy + penalty / 2 * |weights|^2 without the
        intercept, so that scikit-learn's `C` is 1 / (penalty * N). The largest of equally good ones is taken.
    held_out_every: each n-th training sample of a class is held out for the choice (5: a fifth).
    """

    def __init__(
        self,
        *,
        penalties: Sequence[float] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
        held_out_every: int = 5,
    ) -> None:
        if not penalties or min(penalties) <= 0:
            raise ValueError(
                f"evaluation.probes.linear.penalties: got {list(penalties)}, expected at least one and all "
                "above 0 (without penalty, separable classes have no solution)"
            )
        check_at_least("evaluation.probes.linear", 2, held_out_every=held_out_every)
        self.penalties = tuple(sorted(penalties, reverse=True))
        self.held_out_every = held_out_every

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> float:
        """Return the accuracy on the test features, in [0, 1]."""
        classifier = self.fit(train, classes=classes, seed=seed)
        return float((classifier.predict(test.x) == test.labels).double().mean())

    def fit(self, train: Features, *, classes: int, seed: int) -> LinearClassifier:
        """Return the classifier with the chosen penalty; the seed decides which samples are held out.

        Raises UserError when there are fewer than two training samples.
        """
        if len(train) < 2:
            raise UserError(f"the linear probe needs at least 2 training samples, got {len(train)}")
        mean, std = train.x.mean(dim=0), train.x.std(dim=0, correction=0)
        # Constant features, whose std may be a rounding error, become zeros instead of noise.
        std = torch.where(std > 1e-6 * mean.abs(), std, 1.0)
        design = _design(train.x, mean, std)
        penalty, start = self._choose(design, train.labels, classes, seed)
        # A loose tolerance is enough to choose the penalty; the final fit starts from its solution.
        coefficients = fit_logistic(
            design,
            train.labels,
            classes=classes,
            penalties=design.new_tensor([penalty]),
            start=start,
            tolerance=1e-4,
        )
        return LinearClassifier(mean, std, coefficients[:, 0], penalty)

    def _choose(self, design: Tensor, labels: Tensor, classes: int, seed: int) -> tuple[float, Tensor]:
        """Return the penalty with the best held-out accuracy, and its coefficients (D + 1, 1, C)."""
        held_out = stratified_holdout(labels, self.held_out_every, seed)
        coefficients = fit_logistic(
            design[~held_out],
            labels[~held_out],
            classes=classes,
            penalties=design.new_tensor(self.penalties),
            tolerance=1e-3,
        )
        logits = torch.tensordot(design[held_out], coefficients, dims=1)  # (n, R, C)
        correct = (logits.argmax(dim=2) == labels[held_out, None]).sum(dim=0).tolist()
        best = correct.index(max(correct))
        log.debug("linear probe: penalty %g, correct per penalty %s", self.penalties[best], correct)
        return self.penalties[best], coefficients[:, best : best + 1]


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
        check_at_least("evaluation.probes.fewshot", 1, repeats=repeats)
        self.shares = tuple(shares)
        self.repeats = repeats
        self.linear = linear or LinearProbe()

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> dict[str, float]:
        """Return the mean accuracy over the subsets, by the share in percent: {"1": ..., "5": ..., "10": ...}."""
        scores = {}
        for share in self.shares:
            total = 0.0
            for repeat in range(self.repeats):
                subset = train[stratified_subset(train.labels, share, seed, repeat)]
                if len(subset) < 2:
                    raise UserError(
                        f"evaluation.probes.fewshot.shares: {share:g} of {len(train)} training samples is "
                        f"{len(subset)}, expected at least 2: use larger shares"
                    )
                total += self.linear(subset, test, classes=classes, seed=seed + repeat)
            scores[f"{100 * share:g}"] = total / self.repeats
        return scores


def _design(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return standardised features and a column of ones: (..., D) -> (..., D + 1)."""
    return torch.cat([(x - mean) / std, x.new_ones(*x.shape[:-1], 1)], dim=-1)
