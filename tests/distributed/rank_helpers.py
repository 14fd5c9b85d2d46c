"""What configs of these tests name: data of odd size, a trainer's own step, models and callbacks that misbehave."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import torch

from jepa.data.sources import Splits, TensorImages, digits
from jepa.distributed import failure
from jepa.models import MaskedJEPA
from jepa.trainer import Callback, Trainer
from jepa.utils.errors import UserError
from jepa.utils.tensors import gather_tokens, layer_norm


def few_digits(*, tests: int) -> Splits:
    """The digits with few test samples, so that the last batch of validation is uneven."""
    splits = digits()
    return replace(splits, test=TensorImages(splits.test.images[:tests], splits.test.labels[:tests]))


class OwnStep(Trainer):
    """Calls the model's parts itself; the loss and its projector take no part."""

    def training_step(self, batch, step):
        batch = self.prepare_batch(batch)
        x, (mask,) = batch["views"].flatten(0, 1), batch["masks"]
        predictions = self.model.predictor(self.model.encoder(x, keep=mask.context), mask, self.model.encoder.grid(x))
        targets = gather_tokens(layer_norm(self.model.encode_target(x)), mask.targets)
        return (predictions - targets).square().mean()


def idle_model(*, encoder, predictor, target, mask, loss, token_weights="uniform", allow_collapse=False):
    """A model with a parameter that takes no part in the loss."""
    parts = {"encoder": encoder, "predictor": predictor, "target": target, "mask": mask, "loss": loss}
    model = MaskedJEPA(**parts, token_weights=token_weights, allow_collapse=allow_collapse)
    model.idle = torch.nn.Parameter(torch.zeros(3))
    return model


class Slow(Callback):
    """Waits after every step, so that a signal finds the run under way."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds

    def step_end(self, trainer: Trainer) -> None:
        time.sleep(self.seconds)


class Fault(Callback):
    """Goes wrong on one rank after a step.

    kind: user_error, bug, kill (SIGKILL), exit (os._exit), hang (sleeps with its beats), silent (no beats either).
    """

    def __init__(self, *, kind: str, rank: int = 1, step: int = 2) -> None:
        self.kind, self.rank, self.step = kind, rank, step

    def step_end(self, trainer: Trainer) -> None:
        if trainer.rank == self.rank and trainer.step == self.step:
            getattr(self, self.kind)()

    def user_error(self):
        raise UserError("the sensor on the roof is wet: dry it")

    def bug(self):
        return {}["lost key"]

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def exit(self):
        os._exit(7)

    def hang(self):
        time.sleep(600)

    def silent(self):
        os.kill(os.getpid(), signal.SIGSTOP)


class ShortPatience(Callback):
    """Shortens the times after which a rank counts as dead."""

    def begin(self, trainer: Trainer) -> None:
        failure.HEARTBEAT_SECONDS, failure.TIMEOUT_SECONDS, failure.GRACE_SECONDS = 0.2, 3.0, 2.0


class AskForTheEnd(Callback):
    """Asks on one rank for the end of the run."""

    def __init__(self, *, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def step_end(self, trainer: Trainer) -> None:
        if trainer.rank == self.rank and trainer.step == self.step:
            trainer.stop(f"rank {self.rank} has had enough")
