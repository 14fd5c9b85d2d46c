"""The training loop, its files and its words."""

from jepa.trainer.batch_size import BatchSizeFinding, find_batch_size
from jepa.trainer.console import Console
from jepa.trainer.finders import LearningRateFinding, find_learning_rate
from jepa.trainer.loggers import JSONLines, Logger, TensorBoard
from jepa.trainer.trainer import Trainer

__all__ = [
    "BatchSizeFinding",
    "Console",
    "JSONLines",
    "LearningRateFinding",
    "Logger",
    "TensorBoard",
    "Trainer",
    "find_batch_size",
    "find_learning_rate",
]
