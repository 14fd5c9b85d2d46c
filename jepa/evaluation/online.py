"""Probes that are trained along with a run, on the features of its own steps: nothing is encoded for them.

    python train.py evaluation=online

Features are the mean over the tokens that the trained encoder has seen in a step, over all views: `Latents.embeddings`.
They are detached, and nothing random is drawn, so that a run has the same weights with and without probes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.distributed.collectives import all_gather_rows
from jepa.evaluation.features import Features
from jepa.evaluation.nearest_neighbours import KNNProbe
from jepa.utils.errors import UserError, check_at_least
from jepa.utils.tensors import rankme

MOST = 1024  # samples of a batch, and held-out ones of a rank, that are scored


class OnlineProbe:
    """What is learned of features (n, D) and their labels, kept as `state`: name -> tensor.

    A probe overrides `score`, and `learn` where it learns; one that learns nothing says `ready = True`.

    label: key of the batch with the classes; None for a probe that needs none. classes: their number, set at the start.
    """

    label: str | None = None
    classes: int | None = None

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    @property
    def ready(self) -> bool:
        """Whether it can score: once something is learned."""
        return bool(self.state)

    def learn(self, x: Tensor, labels: Tensor | None) -> None:
        """Learn from the features of a step, the same on every rank; nothing unless overridden."""

    def score(self, x: Tensor, labels: Tensor | None) -> float:
        """Return the score of features; asked when it is `ready`."""
        raise NotImplementedError

    def train_score(self, x: Tensor, labels: Tensor | None) -> float:
        """Return the score of the features of a step that the probe has not yet learned from."""
        return self.score(x, labels)


class OnlineLinear(OnlineProbe):
    """A linear classifier by SGD with momentum, on standardised features; its score is the accuracy.

    The features are divided by sqrt(D) as well, so that their covariance has a trace of 1 and `lr` serves any width.
    """

    def __init__(self, *, lr: float = 1.0, momentum: float = 0.9, label: str = "label") -> None:
        super().__init__()
        if lr <= 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"evaluation.online: got lr={lr}, momentum={momentum}, expected lr > 0, momentum in [0, 1)"
            )
        self.lr, self.momentum, self.label = lr, momentum, label

    def _design(self, x: Tensor) -> Tensor:
        scaled = (x - self.state["mean"]) * (self.state["variance"] + 1e-6).rsqrt() / x.shape[1] ** 0.5
        return F.pad(scaled, (0, 1), value=1.0)

    def learn(self, x: Tensor, labels: Tensor | None) -> None:
        moments = {"mean": x.mean(dim=0), "variance": x.var(dim=0, correction=0)}
        blank = x.new_zeros(x.shape[1] + 1, self.classes)  # the intercept last
        state = self.state = self.state or {**moments, "weight": blank, "velocity": blank}
        for name, value in moments.items():
            state[name] = state[name].lerp(value, 0.1)
        design = self._design(x)
        error = (design @ state["weight"]).softmax(dim=1) - F.one_hot(labels, self.classes)
        state["velocity"] = self.momentum * state["velocity"] + design.T @ error / len(x)
        state["weight"] = state["weight"] - self.lr * state["velocity"]

    def score(self, x: Tensor, labels: Tensor | None) -> float:
        found = (self._design(x) @ self.state["weight"]).argmax(dim=1)
        return float((found == labels).float().mean())


class OnlineQueue(OnlineProbe):
    """A probe of the last features: `queue` samples."""

    def __init__(self, queue: int) -> None:
        super().__init__()
        check_at_least("evaluation.online", 1, queue=queue)
        self.queue = queue

    def learn(self, x: Tensor, labels: Tensor | None) -> None:
        new = {"x": x} if labels is None else {"x": x, "labels": labels}
        for name, rows in new.items():
            self.state[name] = torch.cat([self.state.get(name, rows[:0]), rows])[-self.queue :]


class OnlineKNN(OnlineQueue):
    """k-NN among the last features of training (`KNNProbe`); its score is the accuracy.

    In training, samples that were in the queue an epoch ago help; held-out ones have no such help.
    """

    def __init__(self, *, k: int = 20, queue: int = 4096, temperature: float = 0.07, label: str = "label") -> None:
        super().__init__(queue)
        self.knn, self.label = KNNProbe(k=min(k, queue), temperature=temperature), label

    def score(self, x: Tensor, labels: Tensor | None) -> float:
        bank = Features(self.state["x"], self.state["labels"])
        return self.knn(bank, Features(x, labels), classes=self.classes)


class OnlineRank(OnlineQueue):
    """RankMe of the last features of training, and of the held-out ones."""

    def __init__(self, *, queue: int = 512) -> None:
        super().__init__(queue)

    def score(self, x: Tensor, labels: Tensor | None) -> float:
        return rankme(x[: self.queue])

    def train_score(self, x: Tensor, labels: Tensor | None) -> float:
        return rankme(self.state["x"])


class OnlineProbes:
    """A callback (`jepa.trainer.callbacks`) that logs `online/<probe>/train` and, with the validation, `.../val`.

    Scores of training are of the features of a step before the probe learns from them, every `every_steps`.
    """

    def __init__(self, *, probes: Mapping[str, OnlineProbe | None], every_steps: int = 50) -> None:
        check_at_least("evaluation.online", 1, every_steps=every_steps)
        self.probes = {name: probe for name, probe in probes.items() if probe is not None}
        self.every_steps = every_steps
        self._parts: dict[bool, list[tuple[Tensor, Mapping[str, Tensor]]]] = {True: [], False: []}  # by model.training
        self._hook: Any = None

    def begin(self, trainer: Any) -> None:
        """Begin to look at the latents of the model. Raise UserError for classes that the data do not have."""
        for name, probe in self.probes.items():
            probe.classes = trainer.data.spec.classes
            probe.state = {key: value.to(trainer.device) for key, value in probe.state.items()}
            if probe.label is not None and probe.classes is None:
                key = f"evaluation.online.probes.{name}"
                raise UserError(f"{key} needs labels, and the data has none: set {key}=null (rank needs none)")
        self.end(trainer)  # after a rollback
        self._hook = trainer.model.register_forward_hook(self._see)

    def end(self, trainer: Any) -> None:
        """Look no longer."""
        for parts in self._parts.values():
            parts.clear()
        if self._hook is not None:
            self._hook.remove()

    def _see(self, model: nn.Module, arguments: tuple, latents: Any) -> None:
        """Keep the features (n, D) of a micro-batch and its labels."""
        batch, parts = arguments[0] if arguments else None, self._parts[model.training]
        embeddings = getattr(latents, "embeddings", None)
        if not isinstance(batch, Mapping) or not isinstance(embeddings, Tensor):
            return
        if model.training or sum(len(x) for x, _ in parts) < MOST:
            labels = {name: batch[name] for name in {p.label for p in self.probes.values()} if name in batch}
            parts.append((embeddings.detach().float().mean(dim=0), labels))

    @torch.no_grad()
    def step_end(self, trainer: Any) -> None:
        """Score and train the probes by the features of the step."""
        self._parts[False].clear()  # evaluation has views encoded, too
        x, labels = self._seen(trainer, training=True)
        scores = {}
        for name, probe in self.probes.items():
            known, classes = self._known(name, probe, x, labels)
            if len(known):
                if probe.ready and trainer.step % self.every_steps == 0:
                    scores[f"online/{name}/train"] = probe.train_score(
                        known[:MOST], None if classes is None else classes[:MOST]
                    )
                probe.learn(known, classes)
        if scores:
            trainer.log(scores)

    @torch.no_grad()
    def measured(self, trainer: Any, metrics: Mapping[str, float]) -> None:
        """Score what the validation has just encoded."""
        if "val/loss" not in metrics:
            return
        x, labels = self._seen(trainer, training=False)
        known = {name: self._known(name, probe, x, labels) for name, probe in self.probes.items() if probe.ready}
        trainer.log({f"online/{name}/val": self.probes[name].score(*both) for name, both in known.items()})

    def _seen(self, trainer: Any, *, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the features and labels kept of the step or the validation, of all ranks, and forget them."""
        parts = self._parts[training]
        if not parts:
            raise UserError(
                f"evaluation.online: the step of {type(trainer.model).__name__} gives no `embeddings` of a single kind "
                "of input: set evaluation.online=null"
            )
        x = torch.cat([features for features, _ in parts])
        labels = {name: torch.cat([each[name] for _, each in parts]) for name in parts[0][1]}
        parts.clear()
        return all_gather_rows(x), {name: all_gather_rows(each) for name, each in labels.items()}

    def _known(
        self, name: str, probe: OnlineProbe, x: Tensor, labels: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the features that have a label, and the labels."""
        if probe.label is None:
            return x, None
        if probe.label not in labels:
            raise UserError(
                f"evaluation.online.probes.{name}.label={probe.label}: a batch holds no such labels, expected "
                f"{', '.join(labels) or 'label'}"
            )
        known = labels[probe.label] >= 0
        return x[known], labels[probe.label][known]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each probe."""
        return {name: dict(probe.state) for name, probe in self.probes.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, of the probes that there are."""
        for name in self.probes.keys() & state.keys():
            self.probes[name].state = dict(state[name])
