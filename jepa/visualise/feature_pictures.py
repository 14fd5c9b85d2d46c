"""What the network makes of a few samples, drawn while it trains.

python train.py visualise.every=500
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa.distributed.collectives import broadcast_from_rank0, is_rank0, no_collectives
from jepa.types import RunLength
from jepa.utils.errors import check_at_least
from jepa.utils.run_status import warn_if_not_written
from jepa.utils.tensors import masked_mean, nan_at_padding, nearest_rows, token_valid
from jepa.visualise.components import aligned, as_colours, principal_components
from jepa.visualise.sheets import SampleArtist, sheet
from jepa.visualise.snapshots import Samples, Snapshot, write_snapshot

PARTS = 6  # of a run, between pictures
SHARE = 0.01  # of the time of training, which pictures may take
MOST_SAMPLES, MOST_BYTES = 256, 2**27  # of a modality, and in memory
NEIGHBOURS = 5
COMPONENTS, POOLED_COMPONENTS = 8, 32


@dataclass(kw_only=True, eq=False)
class FeaturePictures:
    """Draws features of the network that makes the targets, always of the same held-out samples, to the loggers, and
    writes them to the run folder (`jepa.visualise.snapshots`).

    every: steps between two pictures; None draws at the start, at five points in between and at the end, and of a run
        of fewer steps at the end alone.
    samples: whose tokens are drawn. Neighbours are looked for among up to 256, fewer in a short run.

    Nothing of the run depends on it. Where pictures would take more than 1 % of the time of training, only those of the
    start and the end are certain.

    Raises ValueError for values below 1.
    """

    every: int | None = None
    samples: int = 16

    def __post_init__(self) -> None:
        check_at_least("visualise", 1, every=self.every, samples=self.samples)
        self._parts: list[_Part] | None = None
        self._spent, self._cost, self._said = 0.0, 0.0, False  # seconds of all pictures and of the last one

    def due(self, step: int, run_length: RunLength) -> bool:
        """Return whether there is a picture after so many steps, time permitting."""
        if self.every is None and run_length.max_steps < PARTS:
            return step == run_length.max_steps
        every = run_length.max_steps / PARTS if self.every is None else self.every
        return step in (0, run_length.max_steps) or math.floor(step / every) > math.floor((step - 1) / every)

    def draw(self, trainer: Any) -> None:
        """Draw what is due at the trainer's step; every rank calls this alike, and rank 0 draws."""
        step, ends = trainer.step, trainer.ended
        if not (ends or self.due(step, trainer.run_length)):
            return
        if not (step == 0 or ends or broadcast_from_rank0(lambda: self._affordable(trainer))):
            return
        is_sharded = trainer.parallel.name == "fsdp"
        if not (is_sharded or is_rank0()):
            return
        with evaluating(trainer), contextlib.nullcontext() if is_sharded else no_collectives():
            begun = time.perf_counter()
            if self._parts is None:
                self._parts = self._read(trainer)
            read = time.perf_counter()
            for part in self._parts:
                part.draw(trainer, last=ends)
        now = time.perf_counter()
        self._cost, self._spent = now - read, self._spent + now - begun

    def _affordable(self, trainer: Any) -> bool:
        """Return whether this picture and the last one fit into SHARE of the time of training; say if they do not."""
        expected = trainer.state.train_seconds * trainer.run_length.max_steps / trainer.step
        fits = self._spent + 2 * self._cost <= SHARE * expected
        if not (fits or self._said):
            self._said = True
            trainer.say(
                f"pictures of features take {self._cost:.2g} s each: between start and end some are left out, so that "
                f"they stay within {SHARE:.0%} of the run"
            )
        return fits

    def _read(self, trainer: Any) -> list[_Part]:
        """Return what is drawn, each modality or the one there is, with its samples; say so where nothing can be."""
        found = sources(trainer)
        if not all(hasattr(source[2], "evaluation_batches") for source in found.values()):
            found = {}
        if not found:
            names = " and ".join(type(each).__name__ for each in (trainer.model, trainer.data))
            trainer.say(f"no pictures of features: {names} lack encode_target or evaluation_batches")
        trained = trainer.run_length.max_steps * trainer.data.batch_size
        most = max(self.samples, min(MOST_SAMPLES, trained // 500))  # reading and encoding them is then below SHARE
        return [_Part(n, source, trainer.device, samples=self.samples, most=most) for n, source in found.items()]


Source = tuple[Callable[[Tensor], Tensor], Any, Any]
"""Of a modality: inputs to features (B, N, D) of the target network, the encoder, the data."""


def sources(trainer: Any) -> dict[str, Source]:
    """Return modality -> where its features come from; by "" if there is one.

    Nothing for a model without such a network.
    """
    model, networks, data = trainer.model, trainer.parallel.networks(), trainer.data
    modalities, tasks = getattr(data, "modalities", None), getattr(model, "tasks", None)
    if isinstance(tasks, nn.ModuleDict):
        owner = {name: model.model_of_task[name] for name in modalities or () if name in model.model_of_task}
        return {n: (networks.tasks[t].encode_target, tasks[t].encoder, modalities[n]) for n, t in owner.items()}
    if not hasattr(model, "encode_target"):
        return {}
    if modalities is None:
        return {"": (networks.encode_target, model.encoder, data)}

    def encode(name: str, x: Tensor) -> Tensor:
        return networks.encode_target({name: x})

    return {n: (partial(encode, n), model.encoder.encoders[n], single) for n, single in modalities.items()}


class _Part:
    """The samples of one modality, and their pictures. most: samples, of which the tokens of `samples` are drawn."""

    def __init__(self, name: str, source: Source, device: torch.device, *, samples: int, most: int) -> None:
        self.name, (self.encode, self.encoder, data) = name, source
        spec = data.spec
        split = "test" if spec.num_test else "train"
        limit = max(1, min(most, MOST_BYTES // (4 * max(1, math.prod(spec.input_shape)))))
        batches = list(data.evaluation_batches(split, batch_size=min(limit, 32), limit=limit))
        self.x = torch.cat([batch["x"] for batch in batches])
        labels = torch.cat([batch["label"] for batch in batches]).numpy() if "label" in batches[0] else None
        rows = np.linspace(0, len(self.x) - 1, min(samples, len(self.x))).round().astype(np.int64)
        self.samples = Samples(split, limit, rows, labels)
        self.artist = SampleArtist(self.encoder, data, device)
        self.kind = self.artist.kind(self.x)
        self.thumbnails = None if self.kind is None else self.artist.thumbnails(self.x)
        if labels is None:
            self.labels = [f"sample {row}" for row in range(len(self.x))]
        else:
            self.labels = [str(spec.class_names[label]) if spec.class_names else str(label) for label in labels]
        self._before: Tensor | None = None  # components of the picture before, for equal colours

    def draw(self, trainer: Any, *, last: bool) -> None:
        """Draw the features as they are now, and write the snapshot; only rank 0 does."""
        tokens, pooled = self._encode(trainer)
        if not is_rank0():
            return
        values = principal_components(tokens, COMPONENTS)[0].cpu()
        rows, log, place = self.samples.rows, trainer.run_log, "/".join(filter(None, ("features", self.name)))
        self._before = values[..., :3] if self._before is None else aligned(values, self._before)
        projected = principal_components(pooled, POOLED_COMPONENTS)[0].cpu().numpy()
        snapshot = Snapshot(trainer.step, values.numpy(), projected, self.samples, self.name)
        with warn_if_not_written(f"the snapshot of features at step {trainer.step}"):
            write_snapshot(trainer.folder.path, snapshot)
        if self.kind is None:
            return
        tiles = self.artist.tiles(self.x[rows], as_colours(self._before))
        head = (
            f"Step {trainer.step:,}: {self.samples.split} samples, {self.kind}, as the network gets them, and beside "
            "them their tokens, whose features' first three principal components are red, green and blue. Tokens of "
            "one colour have similar features; grey is padding."
        )
        log.picture(f"{place}/components", sheet(tiles, [self.labels[row] for row in rows], head))
        log.embeddings(
            place,
            vectors=projected,
            labels=self.labels,
            thumbnails=self.thumbnails,
            neighbours=dict(zip(rows.tolist(), nearest_rows(pooled, rows, NEIGHBOURS)[1].tolist())),
            last=last,
        )

    def _encode(self, trainer: Any) -> tuple[Tensor, Tensor]:
        """Return the tokens (n, *grid, D) of the drawn samples, NaN at padding, and the mean tokens (m, D) of all."""
        size = min(trainer.micro_batch_size, 32)
        kept, pooled = [], []
        for start in range(0, len(self.x), size):
            x = self.x[start : start + size].to(trainer.device)
            with trainer.precision.autocast():
                features = self.encode(x)
            features, valid = features.float(), token_valid(self.encoder, x)
            pooled.append(masked_mean(features, valid))
            chosen = self.samples.rows
            inside = chosen[(chosen >= start) & (chosen < start + len(x))] - start
            if len(inside):
                kept.append(nan_at_padding(features, valid)[torch.from_numpy(inside).to(features.device)])
        tokens = torch.cat(kept)
        grid = tuple(self.encoder.grid(x)) if hasattr(self.encoder, "grid") else ()
        return tokens.unflatten(1, grid if math.prod(grid) == tokens.shape[1] else (-1,)), torch.cat(pooled)


@contextlib.contextmanager
def evaluating(trainer: Any) -> Iterator[None]:
    """Return a context in evaluation mode, without gradients, that keeps the random state."""
    was, device = trainer.model.training, trainer.device
    trainer.model.eval()
    gpus = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(gpus):
        yield
    trainer.model.train(was)
