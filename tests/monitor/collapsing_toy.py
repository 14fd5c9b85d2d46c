"""A toy whose embeddings collapse at a step, unless the seed of steps is high enough."""

from __future__ import annotations

import torch
from torch import nn
from toy import ToyData, ToyModel

from jepa.monitor import CollapseMonitor
from jepa.optim import Constant
from jepa.trainer import JSONLines, Logger, Trainer
from jepa.types import Latents


class EmbeddingLoss(nn.Module):
    """Mean square of the embeddings."""

    batch_statistics = False
    term_names = ["square"]

    def forward(self, latents):
        return {"loss": latents.embeddings.square().mean()}


class CollapsingModel(ToyModel):
    """Gives Latents; they are constant from step `from_step` on while the seed of steps is below `cured_by`."""

    def __init__(self, from_step, cured_by=10**9):
        super().__init__()
        self.loss, self.from_step, self.cured_by = EmbeddingLoss(), from_step, cured_by

    def forward(self, batch):
        embeddings = super().forward(batch).values
        if batch["rng"].step >= self.from_step and batch["rng"].seed < self.cured_by:
            embeddings = 0 * embeddings + 1 + self.bias
        return Latents(embeddings=embeddings.unsqueeze(0))


class Words(Logger):
    """Keeps messages, statuses and how often it was opened."""

    def __init__(self):
        self.messages, self.statuses, self.opened = [], [], []

    def open(self, run):
        self.opened.append(run.step)

    def message(self, text):
        self.messages.append(str(text))

    def status(self, text):
        self.statuses.append(text)


def collapsing_trainer(
    run_dir, *, from_step=8, cured_by=10**9, kind=Trainer, monitor=None, watched=True, words=None, **settings
):
    """A trainer of the collapsing toy, every second step watched, or none."""
    model = CollapsingModel(from_step, cured_by)
    defaults = {"max_steps": 24, "device": "cpu", "precision": "fp32", "log_every": 1, "save_every_steps": 3}
    defaults |= {"validate_every_epochs": None}
    return kind(
        model=model,
        data=ToyData(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
        scheduler={"lr": Constant(value=0.01)},
        loggers={"jsonl": JSONLines(), "words": words or Words()},
        monitor=CollapseMonitor(**{"every_steps": 2, **(monitor or {})}) if watched else None,
        run_dir=run_dir,
        **{**defaults, **settings},
    )
