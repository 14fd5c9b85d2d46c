"""What a probe is: something that says how good features are, and what it has to be shown for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

from jepa.evaluation.features import Features

Needs: TypeAlias = Literal["features", "tokens", "views", "encoder", "pairs", "windows"]

Score: TypeAlias = float | Mapping[str, float]
"""One number, reported under the probe's name, or several by suffix: `fewshot` gives {"1": ...}, `fewshot_1`.

A suffix that opens with a slash is a path: `forecast` gives {"/96/mse": ...}, `forecast/96/mse`.
"""


class Probe(Protocol):
    """Learns from the train features and scores the test features: an accuracy in [0, 1], or several by suffix.

    A probe that sets nothing is called with pooled features (N, D). Two optional attributes change that:

    needs: what it is called with.
        "features", "tokens": (train, test, classes=, seed=), x being (N, D) or (N, T, D).
        "views": (embeddings,), (n, q, D) of q views of n samples; also where there are no labels.
        "encoder": (encoder, data, pool=, classes=, device=, seed=), a copy of the encoder that it may train.
        "pairs": (embeddings, labels), name of the modality -> (N, E), of data that are pairs.
        "windows": (encode, data, device=, batch_size=), of data that has `windows(split, horizon=)` (see
            `jepa.evaluation.forecast`); encode gives tokens (b, T, D) and what is not padding, None for raw input.
            Also where there are no labels.
        Raw input has neither tokens nor an encoder: such probes leave its row out.
    uses_seed: False for one whose score does not depend on the seed, which is then not repeated.
    """

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> Score: ...


def needs(probe: Any) -> Needs:
    """What a probe is called with."""
    return getattr(probe, "needs", "features")


def uses_seed(probe: Any) -> bool:
    """Whether a probe's score depends on the seed."""
    return getattr(probe, "uses_seed", True)


def named(name: str, score: Score) -> dict[str, float]:
    """A probe's score as metrics."""
    if isinstance(score, Mapping):
        return {name + (s if s.startswith("/") else f"_{s}"): float(value) for s, value in score.items()}
    return {name: float(score)}
