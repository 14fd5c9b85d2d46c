"""Measure what the code costs: python scripts/benchmark.py [masks] [loop]

masks: milliseconds to draw multi-block masks for 256 images on a 14 x 14 grid, one thread.
loop:  the share of a ViT-S/16 step (batch 16, 224 px) that is not forward, backward, optimizer or target update.
Prints medians as JSON. Timings on a shared machine vary: compare ratios, not runs.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch

from jepa import build_trainer, load_config
from jepa.masks import MultiBlockMask
from jepa.trainer import RunInfo
from jepa.types import DataSpec


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call in milliseconds, after three calls to warm up."""
    times = []
    for number in range(repeats + 3):
        begun = time.perf_counter()
        function()
        if number >= 3:
            times.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(times)


def masks() -> dict[str, float]:
    """Time of one draw."""
    torch.set_num_threads(1)
    masker, generator = MultiBlockMask(), torch.Generator().manual_seed(0)
    return {"milliseconds": median_ms(lambda: masker(256, (14, 14), generator=generator), 200)}


class FixedImages:
    """The same random pictures at every step, so that only the loop is measured."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.spec = DataSpec(num_train=10**6, num_test=0, input_shape=(1, 224, 224), classes=None)
        self._x = torch.randn(batch_size, 1, 224, 224)

    def train_batches(self, *, seed: int, start_step: int, stop_step: int):
        """The batch, as often as there are steps."""
        for _ in range(start_step, stop_step):
            yield {"x": self._x}


def loop(steps: int = 8) -> dict[str, float]:
    """Time of whole steps, and of their forward, backward, optimizer and target update, in the same run."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            [
                "experiment=ijepa_digits",
                "model/encoder=vit_small",
                "data.image_size=224",
                "model.predictor={dim: 384, depth: 6}",
                "model.mask={num_targets: 4, target_scale: [0.15, 0.2], context_scale: [0.85, 1.0]}",
                "data.batch_size=16",
                f"trainer.max_steps={steps}",
                "trainer.validate_every_epochs=null",
                "trainer.save_every_epochs=null",
                "trainer.best_k=0",
                "trainer.log_every=1",
                "evaluation=none",
                f"run_dir={folder}",
            ]
        )
        trainer = build_trainer(config)
        trainer.data = FixedImages(16)
        for logger in trainer.loggers.values():
            logger.open(RunInfo(trainer.folder.path, 0, trainer.horizon))
        inside = 0.0

        def timed(function: Callable) -> Callable:
            def call(*args, **kwargs):
                nonlocal inside
                begun = time.perf_counter()
                try:
                    return function(*args, **kwargs)
                finally:
                    inside += time.perf_counter() - begun

            return call

        trainer.model.forward = timed(trainer.model.forward)
        trainer.model.loss.forward = timed(trainer.model.loss.forward)
        trainer.model.update_target = timed(trainer.model.update_target)
        trainer.optimizer.step = timed(trainer.optimizer.step)
        torch.Tensor.backward = timed(torch.Tensor.backward)
        shares = []
        batches = trainer.data.train_batches(seed=0, start_step=0, stop_step=steps)
        for number, batch in enumerate(batches):
            inside, begun = 0.0, time.perf_counter()
            trainer.train_step(batch)
            if number < steps - 1:
                trainer._after_step(stopping=False)
            total = time.perf_counter() - begun
            if number >= 2:
                shares.append(1 - inside / total)
        return {"overhead_share": statistics.median(shares), "steps": len(shares)}


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["masks", "loop"]
    known = {"masks": masks, "loop": loop}
    print(json.dumps({name: known[name]() for name in chosen}, indent=2))
