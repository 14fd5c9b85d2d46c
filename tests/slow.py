"""A callback that makes a run slow, so that something can happen to it meanwhile."""

from __future__ import annotations

import time

from jepa.trainer import Callback
from jepa.utils.run_status import read_status


class Slow(Callback):
    """Waits after each step that is logged, of the first start of a run and of no later one. seconds: how long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def measured(self, trainer, metrics) -> None:
        """Wait."""
        if read_status(trainer.folder.path).starts == 1:
            time.sleep(self.seconds)
