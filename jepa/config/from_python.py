"""For Python: what guides call by other names, as thin functions over the same parts, and files of settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from jepa.config.build import build_trainer
from jepa.tools import find_batch_size
from jepa.trainer import Trainer
from jepa.types import Batch, DataSpec
from jepa.utils.errors import UserError
from jepa.utils.tensors import batch_length


def JEPATrainer(config: DictConfig) -> Trainer:
    """Return `build_trainer(config)`: the trainer of what `load_config` composes. Derive classes from `Trainer`.

    Raise UserError for anything else than a composed configuration.
    """
    if not isinstance(config, DictConfig) or "trainer" not in config:
        raise UserError(
            f"JEPATrainer({type(config).__name__}): expected a composed configuration, "
            'JEPATrainer(load_config("my.yaml")) or JEPATrainer(load_config(["data=mnist"]))'
        )
    return build_trainer(config)


def find_optimal_batch_size(
    trained: Trainer | nn.Module,
    dataloader: Iterable[Any] | None = None,
    *,
    device: str = "auto",
    limit_gib: float | None = None,
    max_size: int | None = None,
) -> int:
    """Return the largest batch that fits into memory in one forward and backward pass, see `find_batch_size`.

    trained: a trainer, or a model with its loss, as `build_model` makes it.
    dataloader: with a model: what yields its batches, {"x": ...} or tuples or tensors, of which the first is taken.
    device: of a model.
    limit_gib, max_size: of `find_batch_size`; at most four times the batch of the trainer or loader by default.

    Raise UserError where nothing fits, or for a model without a loader.
    """
    if isinstance(trained, nn.Module):
        if dataloader is None or not hasattr(trained, "loss"):
            raise UserError(
                f"find_optimal_batch_size({type(trained).__name__}): expected a trainer, or a model with its loss "
                "(build_model(config)) and a dataloader"
            )
        with tempfile.TemporaryDirectory() as folder:  # in which nothing is written
            trainer = Trainer(
                model=trained,
                data=_Repeated(dataloader),
                optimizer=torch.optim.AdamW(p for p in trained.parameters() if p.requires_grad),
                scheduler={"lr": lambda step, run_length: 1e-3},
                max_steps=1,
                device=device,
                run_dir=folder,
            )
            return find_batch_size(trainer, limit_gib=limit_gib, max_size=max_size, repeats=0).largest
    return find_batch_size(trained, limit_gib=limit_gib, max_size=max_size, repeats=0).largest


class _Repeated:
    """The first batch of a loader, again and again, as a trainer's data."""

    def __init__(self, dataloader: Iterable[Any]) -> None:
        batch = next(iter(dataloader), None)
        if isinstance(batch, (tuple, list)) and batch:
            batch = batch[0]  # what follows is labels
        if not isinstance(batch, (dict, torch.Tensor)):
            raise UserError(f"the loader yields {type(batch).__name__}, expected {{'x': tensor}}, a tuple or a tensor")
        self.batch: Batch = batch if isinstance(batch, dict) else {"x": batch}
        self.batch_size = batch_length(self.batch)
        self.spec = DataSpec(num_train=self.batch_size, num_test=0, input_shape=(), classes=None)

    def train_batches(self, **_: Any) -> Iterator[Batch]:
        """Yield the batch."""
        yield self.batch
