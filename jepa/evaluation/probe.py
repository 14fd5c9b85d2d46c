"""The protocol of probes: a score of features, and what it is computed from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

from jepa.evaluation.features import Features

Needs: TypeAlias = Literal[
    "features", "tokens", "views", "encoder", "pairs", "windows", "truth", "motion", "trajectories"
]

Score: TypeAlias = float | Mapping[str, float]
"""One number, reported under the probe's name, or several by suffix: `fewshot` gives {"1": ...}, `fewshot_1`.

A suffix that opens with a slash is a path: `forecast` gives {"/96/mse": ...}, `forecast/96/mse`.
"""


class Probe(Protocol):
    """Fits the train features and scores the test features: an accuracy in [0, 1], or several by suffix.

    Not a dataclass: OmegaConf would turn one in `probes` into a config.

    Optional attributes:

    needs: the arguments of its call, "features" by default.
        "features", "tokens": (train, test, classes=, seed=), x being (N, D) or (N, T, D).
        "views": (embeddings,), (n, q, D) of q views of n samples; also without labels.
        "encoder": (encoder, data, pool=, classes=, device=, seed=), the encoder being a copy that it may train.
        "pairs": (embeddings, labels), name of the modality -> (N, E), of data that are pairs.
        "windows": (encode, data, device=, batch_size=), of data with `windows(split, horizon=)` (see
            `jepa.evaluation.forecast`); encode returns tokens (b, T, D) and valid (b, T), and is None for raw input.
            Also without labels.
        "trajectories": (model, data, batches=, device=, seed=), of models that roll out under the data's actions (see
            `jepa.evaluation.world`); also without labels.
        "truth", "motion": (encode, data, batches=), of data that know of it (see `jepa.evaluation.dense`); also without
            labels.
        Raw input has neither tokens nor an encoder and no score of such probes.
    uses_seed: False for a score that does not depend on the seed, which is not repeated over seeds.
    check: (model, data), called before training, which raises UserError for what the probe cannot score.
    """

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> Score: ...


def needs(probe: Any) -> Needs:
    """Return what a probe is called with."""
    return getattr(probe, "needs", "features")


def uses_seed(probe: Any) -> bool:
    """Return whether a probe's score depends on the seed."""
    return getattr(probe, "uses_seed", True)


def named_scores(name: str, score: Score) -> dict[str, float]:
    """Return a probe's score as metrics."""
    if isinstance(score, Mapping):
        return {name + (s if s.startswith("/") else f"_{s}"): float(value) for s, value in score.items()}
    return {name: float(score)}
